"""What a node knows of itself: the facts that the parts of a Node share, and the file that keeps some of them.

The file follows the facts: whenever ``state`` differs from what is on disk it is written, again and again while that
fails. Whoever relies on it being there waits for ``saved``.

(swarmkit: node/node.go; moby: daemon/cluster/noderunner.go, docker-state.json)
"""

from __future__ import annotations

from functools import partial

import structlog

from swarm import defaults
from swarm.node.events import Done, Failed, Identity, SaveState
from swarm.node.outbox import Outbox
from swarm.node.remotes import Remotes
from swarm.node.state import NodeState

log = structlog.get_logger()


class Record:
    """state: None in no swarm. role: of the certificate, empty without one. ready: managers accepted this node once.

    now: seconds since the epoch. agent_runs: there is an agent to talk to. engine_error: why the engine cannot be used;
    empty: it can.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.state: NodeState | None = None
        self.identity: Identity | None = None
        self.role = ""
        self.remotes = Remotes()
        self.ready = False
        self.agent_runs = False
        self.engine_error = ""

    @property
    def node_id(self) -> str:
        """This node's ID; empty before it has one."""
        return self.state.node_id if self.state is not None else ""

    def stop(self) -> None:
        """No role of this node runs any more."""
        self.ready = self.agent_runs = False

    def clear(self) -> None:
        """This node is in no swarm any more."""
        self.stop()
        self.state = self.identity = None
        self.role = ""
        self.remotes = Remotes()


class StateFile:
    """Keeps state.json as ``record.state`` is, once told to follow. error: of the last attempt, None after success."""

    def __init__(self, record: Record, out: Outbox) -> None:
        self.error: Exception | None = None
        self._record = record
        self._out = out
        self._following = False
        self._on_disk: NodeState | None = None
        self._writing: NodeState | None = None
        self._retry_at: float | None = None

    @property
    def following(self) -> bool:
        """Whether changes of the state are written."""
        return self._following

    @property
    def saved(self) -> bool:
        """Whether the disk has what the record says."""
        return self._on_disk == self._record.state

    def found(self, state: NodeState) -> None:
        """The file was read."""
        self._on_disk = state

    def follow(self) -> None:
        """From now on the file is written whenever the state changes."""
        self._following = True
        self.error = None

    def stop(self) -> None:
        """Write no more, and do not wait for what is being written; the file stays as it is."""
        self._following = False
        self._writing = self._retry_at = self.error = None

    def forget(self) -> None:
        """The file is gone."""
        self.stop()
        self._on_disk = None

    def decide(self) -> None:
        """Begin to write if that is due."""
        state = self._record.state
        if not self._following or state is None or self._writing is not None or state == self._on_disk:
            return
        if self._retry_at is not None and self._record.now < self._retry_at:
            return
        self._writing, self._retry_at = state, None
        self._out.perform(partial(SaveState, state=state), partial(self._written, state))

    def deadline(self) -> float | None:
        """When a failed attempt is repeated."""
        waits = self._following and self._writing is None and not self.saved
        return self._retry_at if waits else None

    def _written(self, state: NodeState, outcome: Done | Failed) -> None:
        if self._writing is not state:
            return  # nobody waits for it any more, see stop()
        self._writing = None
        if isinstance(outcome, Done):
            self._on_disk, self.error = state, None
            return
        self._on_disk = None  # an error does not tell which of the two is there
        self.error = outcome.error
        self._retry_at = self._record.now + defaults.DISK_RETRY_S
        log.error("node.not_saved", error=str(outcome.error), retry_s=defaults.DISK_RETRY_S)
