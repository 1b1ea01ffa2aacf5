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
    """One node's disk. certificate_pem: what makes it a node at all; managers: (node ID, "ip:port")."""

    certificate_pem: bytes = b""
    root_pem: bytes = b""
    managers: tuple[tuple[str, str], ...] = ()
    raft_id: int = 0  # of state.json: whose log must be there
    past_raft_ids: list[int] = field(default_factory=list)
    saved: bool = False  # state.json exists: init or join was acknowledged
    raft: RaftImage = field(default_factory=RaftImage)
    journal: dict[str, bytes] = field(default_factory=dict)
    _undo: deque[dict[str, bytes | None]] = field(default_factory=deque)

    def without_log(self, others: tuple[tuple[str, str], ...]) -> None:
        """See NodeState.without_log; the log itself goes after this is on disk."""
        self.past_raft_ids.append(self.raft_id)
        self.raft_id, self.managers = 0, others or self.managers

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
