"""The interface from the executor to the overlay: cluster networks for the containers of tasks.

(moby: daemon/cluster/executor/container/adapter.go: createNetworks, activateServiceBinding, removeNetworks)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine_api.executor.container import Endpoint, service_networks
from engine_api.executor.errors import TaskError
from swarm import api
from swarm.agent.events import Networks


@dataclass(frozen=True)
class Attachment:
    """The network configuration of a container: endpoints in the order of the task's attachments, and DNS servers."""

    endpoints: Sequence[Endpoint] = ()
    dns: Sequence[str] = field(default=())


class TaskNetworks(Protocol):
    """Every method but known() is idempotent and may raise TaskError or TemporaryTaskError."""

    def known(self, networks: Networks) -> None:
        """What the managers say of this node's networks. Returns at once."""
        ...

    async def prepare(self, task: api.Task) -> Attachment:
        """Ensure that the engine has all networks of a task. Called before its container is created."""
        ...

    async def activate(self, task: api.Task) -> None:
        """The task is healthy: its services may send traffic to it."""
        ...

    async def deactivate(self, task: api.Task) -> None:
        """The task is about to stop: its services must send no new traffic to it."""
        ...

    async def release(self, task: api.Task) -> None:
        """The container has ended: networks that are not used any more may be removed."""
        ...

    async def attached(self, task: api.Task) -> None:
        """This node has an address for a plain container: the task is an attachment."""
        ...

    async def detached(self, task: api.Task) -> None:
        """This node has that address no more."""
        ...

    async def remove_all(self) -> None:
        """This node has left its swarm, and its tasks' containers are gone. Raises EngineError, EngineUnavailable."""
        ...


class NoNetworks:
    """A node without an overlay: tasks run on the engine's own networks only."""

    def known(self, networks: Networks) -> None:
        """Nothing to do."""

    async def prepare(self, task: api.Task) -> Attachment:
        """Refuse tasks that need a cluster network."""
        for attachment in service_networks(task):
            name = attachment.network.spec.annotations.name
            raise TaskError(f"network {name} cannot be attached: this node has no overlay networks")
        return Attachment()

    async def activate(self, task: api.Task) -> None:
        """Nothing to do."""

    async def deactivate(self, task: api.Task) -> None:
        """Nothing to do."""

    async def release(self, task: api.Task) -> None:
        """Nothing to do."""

    async def attached(self, task: api.Task) -> None:
        """Never called: an attachment is refused when it is prepared."""

    async def detached(self, task: api.Task) -> None:
        """Nothing to do."""

    async def remove_all(self) -> None:
        """Nothing to do."""
