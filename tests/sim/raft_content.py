"""What the database of a simulated log holds. Each record names the data key that it is sealed with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from swarm.api import raftpb
from swarm.raft import events
from swarm.raft.confirmed import Confirmed

CLEAR = b""  # the data key of a record that is not sealed


@dataclass(frozen=True)
class Owner:
    """Whose log it is: what RaftDisk.initialize writes."""

    raft_id: int
    node_id: str = ""
    cluster_id: str = ""


Write = events.Persist | Owner
"""One transaction."""


@dataclass(frozen=True)
class Record:
    """Bytes on disk, and the data key that they are sealed with; CLEAR: with none."""

    data: bytes
    data_key: bytes = CLEAR


@dataclass
class Content:
    """Entries are (index, term, record), without gaps."""

    owner: Owner = Owner(0)
    hard_state: bytes | None = None
    snapshot: Record | None = None
    entries: list[tuple[int, int, Record]] = field(default_factory=list)

    def copy(self) -> Content:
        """As it is now."""
        return Content(self.owner, self.hard_state, self.snapshot, list(self.entries))

    def records(self) -> list[Record]:
        """All that can be sealed."""
        snapshot = [self.snapshot] if self.snapshot is not None else []
        return [*snapshot, *(record for _, _, record in self.entries)]

    def sealed(self, key: bytes) -> Content:
        """The same, written anew with this data key."""
        snapshot = replace(self.snapshot, data_key=key) if self.snapshot is not None else None
        rows = [(index, term, replace(record, data_key=key)) for index, term, record in self.entries]
        return Content(self.owner, self.hard_state, snapshot, rows)

    @property
    def last_index(self) -> int:
        """Of the last entry; 0: there is none."""
        return self.entries[-1][0] if self.entries else 0

    def term_at(self, index: int) -> int:
        """Of the entry there; 0: there is none."""
        place = index - self.entries[0][0] if self.entries else -1
        return self.entries[place][1] if 0 <= place < len(self.entries) else 0

    def confirmed(self) -> Confirmed:
        """What a member confirms with it."""
        last = [raftpb.Entry(Index=index, Term=term) for index, term, _ in self.entries[-1:]]
        return Confirmed.of(self.owner.raft_id, self.read_hard_state(), self.read_snapshot(), last)

    def write(self, write: Write, key: bytes) -> None:
        """One transaction."""
        if isinstance(write, Owner):
            self.owner = write
            return
        if write.replaces_log:
            self.entries = []
        elif write.compact_to:
            self.entries = [row for row in self.entries if row[0] > write.compact_to]
        if write.snapshot is not None:
            self.snapshot = Record(write.snapshot.SerializeToString(), key)
        if write.entries:
            first = write.entries[0].Index
            if first <= self.last_index:
                self.entries = [row for row in self.entries if row[0] < first]
            if first != self.last_index + 1:
                last = max(self.last_index, self._snapshot_index())
                assert first <= last + 1, f"entry {first} would leave a gap after {last}"
            self.entries += [
                (entry.Index, entry.Term, Record(entry.SerializeToString(), key)) for entry in write.entries
            ]
        if write.hard_state is not None:
            self.hard_state = write.hard_state.SerializeToString()

    def read_hard_state(self) -> raftpb.HardState | None:
        """None: nothing was ever written."""
        return raftpb.HardState.FromString(self.hard_state) if self.hard_state is not None else None

    def read_snapshot(self) -> raftpb.Snapshot | None:
        """None: there is none."""
        return raftpb.Snapshot.FromString(self.snapshot.data) if self.snapshot is not None else None

    def read_entries(self) -> tuple[raftpb.Entry, ...]:
        """All of them."""
        return tuple(raftpb.Entry.FromString(record.data) for _, _, record in self.entries)

    def _snapshot_index(self) -> int:
        snapshot = self.read_snapshot()
        return snapshot.metadata.index if snapshot is not None else 0
