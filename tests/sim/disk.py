"""What survives on one node: the log of Raft, the journal of its tasks, who it is and what it knows.

The log is synchronised before it is acknowledged; a write under way at a crash is there or not. The journal survives
the death of the process, but with the machine its newest records may go. Everything is kept as bytes, so that a
restart reads what was written, not yesterday's objects.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from swarm.api import raftpb
from swarm.io.disk.raft_disk import Loaded
from swarm.node.state import NodeState
from swarm.raft import events

JOURNAL_UNSYNCED_MAX = 20


class RaftImage:
    """As RaftDisk keeps it."""

    def __init__(self) -> None:
        self.raft_id = 0
        self.hard_state: bytes | None = None
        self.snapshot: bytes | None = None
        self.entries: list[tuple[int, bytes]] = []

    def write(self, persist: events.Persist) -> None:
        """All of it, atomically."""
        if persist.replaces_log:
            self.entries = []
        elif persist.compact_to:
            self.entries = [row for row in self.entries if row[0] > persist.compact_to]
        if persist.snapshot is not None:
            self.snapshot = persist.snapshot.SerializeToString()
        if persist.entries:
            first = persist.entries[0].Index
            self.entries = [row for row in self.entries if row[0] < first]
            last = max(self.entries[-1][0] if self.entries else 0, self._snapshot_index())
            assert first <= last + 1, f"entry {first} would leave a gap after {last}"
            self.entries += [(entry.Index, entry.SerializeToString()) for entry in persist.entries]
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state.SerializeToString()

    def _snapshot_index(self) -> int:
        if self.snapshot is None:
            return 0
        return raftpb.Snapshot.FromString(self.snapshot).metadata.index

    def load(self) -> Loaded:
        """For a start."""
        return Loaded(
            raft_id=self.raft_id,
            hard_state=raftpb.HardState.FromString(self.hard_state) if self.hard_state is not None else None,
            snapshot=raftpb.Snapshot.FromString(self.snapshot) if self.snapshot is not None else None,
            entries=tuple(raftpb.Entry.FromString(data) for _, data in self.entries),
        )


@dataclass
class Disk:
    """One node's disk. state_json: None while there is no such file; it makes this machine a node of a swarm."""

    certificate_pem: bytes = b""
    root_pem: bytes = b""
    state_json: str | None = None
    raft: RaftImage = field(default_factory=RaftImage)
    journal: dict[str, bytes] = field(default_factory=dict)
    _undo: deque[dict[str, bytes | None]] = field(default_factory=deque)

    # --- state.json ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> NodeState | None:
        """As a daemon that starts reads it."""
        return NodeState.from_json(self.state_json) if self.state_json is not None else None

    def save_state(self, state: NodeState) -> None:
        """Write it, synchronised."""
        self.state_json = state.to_json()

    def drop_state(self) -> None:
        """Delete it."""
        self.state_json = None

    @property
    def saved(self) -> bool:
        """Whether this machine is a node: an init or join was acknowledged, or soon will be."""
        return self.state_json is not None

    @property
    def raft_id(self) -> int:
        """Whose log must be there; 0: none is expected."""
        state = self.state
        return state.raft_id if state is not None else 0

    @property
    def past_raft_ids(self) -> tuple[int, ...]:
        """Members whose log was given up."""
        state = self.state
        return state.past_raft_ids if state is not None else ()

    def set_managers(self, managers: tuple[tuple[str, str], ...]) -> None:
        """An operator writes other managers into the file."""
        state = self.state
        assert state is not None
        self.save_state(state.with_managers(managers))

    # --- the rest --------------------------------------------------------------------------------------------------

    def forget_log(self) -> None:
        """Delete Raft's log."""
        self.raft = RaftImage()

    def erase(self) -> None:
        """Delete everything, state.json first."""
        self.state_json, self.certificate_pem, self.root_pem = None, b"", b""
        self.raft, self.journal = RaftImage(), {}
        self._undo.clear()

    def write_journal(self, puts: dict[str, bytes], drops: tuple[str, ...]) -> None:
        """One transaction of the journal."""
        before = {task_id: self.journal.get(task_id) for task_id in (*drops, *puts)}
        for task_id in drops:
            self.journal.pop(task_id, None)
        self.journal.update(puts)
        self._undo.append(before)
        if len(self._undo) > JOURNAL_UNSYNCED_MAX:
            self._undo.popleft()

    def lose_power(self, rng: Random) -> None:
        """The newest transactions of the journal never reached the platter."""
        for _ in range(rng.randint(0, len(self._undo))):
            for task_id, record in self._undo.pop().items():
                if record is None:
                    self.journal.pop(task_id, None)
                else:
                    self.journal[task_id] = record
        self._undo.clear()

    def synced(self) -> None:
        """The journal's file was checkpointed."""
        self._undo.clear()
