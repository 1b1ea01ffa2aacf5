"""Containers that nodes which left could not remove, because the engine did not answer.

(moby: daemon/cluster/swarm.go, Leave)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog

from swarm.node.events import Done, Failed, RemoveContainers
from swarm.node.outbox import Outbox
from swarm.node.record import Record
from swarm.node.steps import Procedure

log = structlog.get_logger()


class LeftBehind:
    """Removes them one node after the other. An empty node ID means the containers of all nodes."""

    def __init__(self, record: Record, out: Outbox, in_no_swarm: Callable[[], bool]) -> None:
        """in_no_swarm: whether containers of unknown nodes cannot be this node's."""
        self._record = record
        self._out = out
        self._in_no_swarm = in_no_swarm
        self._ids: dict[str, None] = {}
        self._cleaning: str | None = None

    def stop(self) -> None:
        """Roles are being stopped: what was asked for does not count any more."""
        self._cleaning = None

    def remove(self, node_id: str) -> Procedure:
        """The containers of a node that leaves; those that stay are remembered."""
        try:
            yield partial(RemoveContainers, node_id=node_id)
            self._ids.pop(node_id, None)
        except Exception as error:
            self._remember(node_id, error)

    def clean_up(self) -> None:
        """The engine answers: try again, one node at a time."""
        if self._cleaning is not None:
            return
        due = [node_id for node_id in self._ids if node_id or self._in_no_swarm()]
        if due:
            self._cleaning = due[0]
            self._out.perform(partial(RemoveContainers, node_id=due[0]), self._cleaned)

    def _cleaned(self, outcome: Done | Failed) -> None:
        node_id, self._cleaning = self._cleaning, None
        assert node_id is not None
        self._ids.pop(node_id, None)
        if isinstance(outcome, Failed):
            self._remember(node_id, outcome.error)  # after the others
        elif not self._record.engine_error:
            self.clean_up()

    def _remember(self, node_id: str, error: Exception) -> None:
        log.warning("swarm.containers_left_behind", node=node_id, error=str(error))
        self._ids[node_id] = None
