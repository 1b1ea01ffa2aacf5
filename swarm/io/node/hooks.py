"""What a node process needs of the daemon around it: an executor, and a listener for changes of the store.

(swarmkit: node/node.go Config, agent/exec)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm import api, defaults
from swarm.io.node.agent_process import AgentProcess, TaskEffect
from swarm.store.store import Change


class Runner(Protocol):
    """The executor of this node (engine_api.executor.executor)."""

    def perform(self, effect: TaskEffect) -> None:
        """Begin one effect of the agent."""
        ...

    async def describe(self) -> api.NodeDescription:
        """What this node has; raises when the engine does not answer."""
        ...

    async def close(self) -> None:
        """Stop all work for tasks; containers keep running."""
        ...

    async def remove_all(self, node_id: str) -> None:
        """Delete every container of tasks of this node."""
        ...


@dataclass(frozen=True)
class NodeHooks:
    """What a node needs of the daemon around it.

    make_runner: the executor for a node ID, feeding events to the agent. remove_containers: deletes the containers of
    all tasks of a stopped node. is_expected: whether an exception of these is an operating error, such as an engine
    that does not answer, and no bug. on_changes: committed changes of the store, on managers. mixed_leadership: this
    node's manager may lead stock managers. replicas_max: how many tasks it lets one service ask for.
    """

    make_runner: Callable[[str, AgentProcess], Awaitable[Runner]]
    remove_containers: Callable[[str], Awaitable[None]]
    is_expected: Callable[[Exception], bool]
    on_changes: Callable[[Sequence[Change]], None]
    mixed_leadership: bool = False
    replicas_max: int = defaults.SERVICE_REPLICAS_MAX
