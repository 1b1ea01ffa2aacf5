"""Expands the templates of one task on this node: in its container spec and in its secrets and configs.

(swarmkit: template/expand.go, template/getter.go)
"""

from __future__ import annotations

from collections.abc import Mapping

from engine_api.executor.errors import TaskError
from swarm import api
from swarm.expansion import TemplateError, env_function, expand_container, expand_payload
from swarm.template import FunctionError, getter

_DRIVER = "golang"


def container_spec(task: api.Task, node: api.NodeDescription) -> api.ContainerSpec:
    """The container spec of a task on this node. Raises TaskError."""
    try:
        return expand_container(node, task)
    except TemplateError as error:
        raise TaskError(str(error)) from None


class Payloads:
    """The secrets and configs of a task, with templates expanded, ready to be written to files."""

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
        self._functions = {
            "secret": getter(self._secret_at),
            "config": getter(self._config_at),
            "env": env_function(task),
        }

    def secret(self, secret_id: str) -> bytes:
        """Data of a secret. Raises TaskError."""
        if secret_id not in self._secrets:
            raise TaskError(f"unable to get secret from secret store: secret {secret_id} not found")
        spec = self._secrets[secret_id].spec
        if not spec.HasField("templating"):
            return spec.data
        what = f"unable to get secret from secret store: failed to expand templated secret {secret_id}"
        return self._expanded(spec.templating.name, spec.data, what)

    def config(self, config_id: str) -> bytes:
        """Data of a config. Raises TaskError."""
        if config_id not in self._configs:
            raise TaskError(f"unable to get config from config store: config {config_id} not found")
        spec = self._configs[config_id].spec
        if not spec.HasField("templating"):
            return spec.data
        what = f"unable to get config from config store: failed to expand templated config {config_id}"
        return self._expanded(spec.templating.name, spec.data, what)

    def _expanded(self, driver: str, data: bytes, what: str) -> bytes:
        if driver != _DRIVER:
            raise TaskError(f"{what}: unrecognized template type")
        try:
            return expand_payload(data, self._node, self._task, self._functions)
        except TemplateError as error:
            raise TaskError(f"{what}: {error}") from None

    def _secret_at(self, target: str) -> str:
        for reference in self._task.spec.container.secrets:
            if reference.HasField("file") and reference.file.name == target:
                if reference.secret_id not in self._secrets:
                    raise FunctionError(f"secret {reference.secret_id} not found")
                return self._secrets[reference.secret_id].spec.data.decode("utf-8", "surrogateescape")
        raise FunctionError(f"secret target {target} not found")

    def _config_at(self, target: str) -> str:
        for reference in self._task.spec.container.configs:
            if reference.HasField("file") and reference.file.name == target:
                if reference.config_id not in self._configs:
                    raise FunctionError(f"config {reference.config_id} not found")
                return self._configs[reference.config_id].spec.data.decode("utf-8", "surrogateescape")
        raise FunctionError(f"config target {target} not found")
