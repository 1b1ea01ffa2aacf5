"""Expands the templates of one task on this node: in its container spec and in its secrets and configs.

(swarmkit: template/expand.go, template/getter.go)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from engine_api.executor.errors import TaskError
from swarm import api
from swarm.expansion import TemplateError, env_function, expand_container, expand_payload, payload_budget
from swarm.template import FunctionError, getter

NOT_SHOWN = "the error is not shown, because it may contain parts of a secret"
_DRIVER = "golang"
_PLACE = re.compile(r"template: \w+(:\d+)+")


def container_spec(task: api.Task, node: api.NodeDescription) -> api.ContainerSpec:
    """The container spec of a task on this node. Raises TaskError."""
    try:
        return expand_container(node, task)
    except TemplateError as error:
        raise TaskError(str(error)) from None


class Payloads:
    """The secrets and configs of a task, with templates expanded, ready to be written to files.

    All of them are expanded from one budget, and each one only once, however many files it becomes.
    """

    def __init__(
        self,
        task: api.Task,
        node: api.NodeDescription,
        secrets: Mapping[str, api.Secret],
        configs: Mapping[str, api.Config],
    ) -> None:
        self._task = task
        self._node = node
        self._secrets = secrets
        self._configs = configs
        self._budget = payload_budget()
        self._done: dict[tuple[str, str], bytes] = {}
        container = task.spec.container
        self._secret_ids = _first(
            (reference.file.name, reference.secret_id) for reference in container.secrets if reference.HasField("file")
        )
        self._config_ids = _first(
            (reference.file.name, reference.config_id) for reference in container.configs if reference.HasField("file")
        )
        self._told_secret = False
        self._functions = {
            "secret": getter(self._secret_at),
            "config": getter(self._config_at),
            "env": env_function(task),
        }

    @property
    def templated(self) -> bool:
        """Whether any of them has to be expanded, which may take its time."""
        secrets, configs = self._secrets.values(), self._configs.values()
        return any(item.spec.HasField("templating") for items in (secrets, configs) for item in items)

    def secret(self, secret_id: str) -> bytes:
        """Data of a secret. Raises TaskError."""
        if secret_id not in self._secrets:
            raise TaskError(f"unable to get secret from secret store: secret {secret_id} not found")
        spec = self._secrets[secret_id].spec
        if not spec.HasField("templating"):
            return spec.data
        what = f"unable to get secret from secret store: failed to expand templated secret {secret_id}"
        return self._expanded(("secret", secret_id), spec.templating.name, spec.data, what)

    def config(self, config_id: str) -> bytes:
        """Data of a config. Raises TaskError."""
        if config_id not in self._configs:
            raise TaskError(f"unable to get config from config store: config {config_id} not found")
        spec = self._configs[config_id].spec
        if not spec.HasField("templating"):
            return spec.data
        what = f"unable to get config from config store: failed to expand templated config {config_id}"
        return self._expanded(("config", config_id), spec.templating.name, spec.data, what)

    def _expanded(self, key: tuple[str, str], driver: str, data: bytes, what: str) -> bytes:
        if driver != _DRIVER:
            raise TaskError(f"{what}: unrecognized template type")
        if key not in self._done:
            self._told_secret = key[0] == "secret"
            try:
                self._done[key] = expand_payload(data, self._node, self._task, self._functions, self._budget)
            except TemplateError as error:
                raise TaskError(f"{what}: {self._without_secrets(str(error))}") from None
        return self._done[key]

    def _without_secrets(self, error: str) -> str:
        """An error of a template, which may show parts of its text and of values: all managers see it."""
        if not self._told_secret:
            return error
        place = _PLACE.match(error)
        return f"{place[0] if place else 'template'}: {NOT_SHOWN}"

    def _secret_at(self, target: str) -> str:
        secret_id = self._secret_ids.get(target)
        if secret_id is None:
            raise FunctionError(f"secret target {target} not found")
        if secret_id not in self._secrets:
            raise FunctionError(f"secret {secret_id} not found")
        self._told_secret = True
        return self._secrets[secret_id].spec.data.decode("utf-8", "surrogateescape")

    def _config_at(self, target: str) -> str:
        config_id = self._config_ids.get(target)
        if config_id is None:
            raise FunctionError(f"config target {target} not found")
        if config_id not in self._configs:
            raise FunctionError(f"config {config_id} not found")
        return self._configs[config_id].spec.data.decode("utf-8", "surrogateescape")


def _first(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A dict in which the first of several values counts."""
    out: dict[str, str] = {}
    for key, value in pairs:
        out.setdefault(key, value)
    return out
