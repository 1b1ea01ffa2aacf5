"""The secrets and configs of this node (in memory only), and which of them a task may see.

(swarmkit: agent/dependency.go, agent/secrets, agent/configs)
"""

from __future__ import annotations

from collections.abc import Iterator

from swarm import api
from swarm.store.store import copy_of


def secret_ids(task: api.Task) -> Iterator[str]:
    """IDs of the secrets that a task references, each once."""
    yield from _references(task, (r.secret_id for r in task.spec.container.secrets), api.SECRET)


def config_ids(task: api.Task) -> Iterator[str]:
    """IDs of the configs that a task references, each once."""
    yield from _references(task, (r.config_id for r in task.spec.container.configs), api.CONFIG)


def _references(task: api.Task, of_container: Iterator[str], resource_type: int) -> Iterator[str]:
    seen = dict.fromkeys(of_container)
    for reference in task.spec.resource_references:
        if reference.resource_type == resource_type:
            seen[reference.resource_id] = None
    yield from seen


class Dependencies:
    """The secrets and configs that the manager sent. Its methods return only what a task references."""

    def __init__(self) -> None:
        self._secrets: dict[str, api.Secret] = {}
        self._configs: dict[str, api.Config] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._secrets.clear()
        self._configs.clear()

    def put(self, item: api.Secret | api.Config) -> None:
        """Add or replace a secret or config."""
        if isinstance(item, api.Secret):
            self._secrets[item.id] = copy_of(item)
        else:
            self._configs[item.id] = copy_of(item)

    def drop(self, item: api.Secret | api.Config) -> None:
        """Remove the secret or config with this ID, if it is present."""
        if isinstance(item, api.Secret):
            self._secrets.pop(item.id, None)
        else:
            self._configs.pop(item.id, None)

    def secrets_of(self, task: api.Task) -> dict[str, api.Secret]:
        """The available secrets that this task references, by ID."""
        found = {i: self._secret(i, task.id) for i in secret_ids(task)}
        return {i: secret for i, secret in found.items() if secret is not None}

    def configs_of(self, task: api.Task) -> dict[str, api.Config]:
        """The available configs that this task references, by ID."""
        return {i: self._configs[i] for i in config_ids(task) if i in self._configs}

    def missing(self, task: api.Task) -> str:
        """The error for the first dependency of the task that is missing; empty when the task can start."""
        for secret_id in secret_ids(task):
            if self._secret(secret_id, task.id) is None:
                return f"secret {secret_id} not found"
        for config_id in config_ids(task):
            if config_id not in self._configs:
                return f"config {config_id} not found"
        return ""

    def _secret(self, secret_id: str, task_id: str) -> api.Secret | None:
        """Stock managers send a driver's secret as "<secret>.<task>" when each task has a value of its own."""
        own = self._secrets.get(f"{secret_id}.{task_id}")
        if own is None:
            return self._secrets.get(secret_id)
        own = copy_of(own)
        own.id = secret_id
        return own
