"""The log of one member: entries in memory, how far they are on disk, committed and handed out.

Indexes grow by one from first_index to last_index; earlier entries are covered by a snapshot. Four indexes tell how
far the log is: ``submitted`` (in a write that has begun), ``stable`` (certainly on disk), ``committed`` (agreed by a
majority) and ``applied`` (handed to the state machine). A leader may overwrite entries that are not committed, which
lowers the first two. (etcd/raft: log.go, log_unstable.go)
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm.api import raftpb
from swarm.raft.events import LogConflict

_ENTRY_OVERHEAD_BYTES = 24
_CHECKED_ENTRIES = 30


def entry_bytes(entry: raftpb.Entry) -> int:
    """About how many bytes this entry takes in a message."""
    return len(entry.Data) + _ENTRY_OVERHEAD_BYTES


class Log:
    """Entries after the offset. What is passed in at construction is on disk."""

    def __init__(self, snapshot: raftpb.SnapshotMetadata | None, entries: Sequence[raftpb.Entry]) -> None:
        """entries must be contiguous and reach back at least to the snapshot's end; else LogConflict is raised."""
        self._offset = snapshot.index if snapshot else 0
        self._offset_term = snapshot.term if snapshot else 0
        self._entries: list[raftpb.Entry] = []
        snapshot_index = self._offset
        if entries and entries[-1].Index >= snapshot_index:
            first = entries[0]
            if first.Index > snapshot_index + 1:
                raise LogConflict(f"the log begins at {first.Index}, after its snapshot's end at {snapshot_index}")
            if any(entry.Index != first.Index + i for i, entry in enumerate(entries)):
                raise LogConflict("the log has a gap")
            if first.Index == snapshot_index + 1:
                self._entries = list(entries)
            else:  # kept for slow followers; the oldest one is needed only for its term
                self._offset, self._offset_term = first.Index, first.Term
                self._entries = list(entries[1:])
        self.committed = self.applied = snapshot_index
        self.submitted = self.stable = self.last_index
        if snapshot and self.term_at(snapshot_index) != snapshot.term:
            raise LogConflict(f"log and snapshot disagree about the term of entry {snapshot_index}")

    @property
    def first_index(self) -> int:
        """Index of the oldest entry that is in memory, or of the next one if there is none."""
        return self._offset + 1

    @property
    def last_index(self) -> int:
        """Index of the newest entry, or of the snapshot's end if there is none."""
        return self._offset + len(self._entries)

    @property
    def last_term(self) -> int:
        """Term of the newest entry."""
        return self._entries[-1].Term if self._entries else self._offset_term

    def term_at(self, index: int) -> int | None:
        """Term of the entry at this index; None if it is compacted or does not exist yet."""
        position = index - self._offset
        if position == 0:
            return self._offset_term
        if 0 < position <= len(self._entries):
            return self._entries[position - 1].Term
        return None

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log whose last entry is (index, term) is at least as up-to-date as this one."""
        return (term, index) >= (self.last_term, self.last_index)

    def between(self, first: int, last: int) -> list[raftpb.Entry]:
        """Entries first to last, both included, as far as they are in memory."""
        return self._entries[max(first - self._offset - 1, 0) : max(last - self._offset, 0)]

    def batch(self, first: int, bytes_max: int) -> list[raftpb.Entry]:
        """Entries from first on, at least one if there is one, as many as fit."""
        position = start = first - self._offset - 1
        room = bytes_max
        while position < len(self._entries):
            room -= entry_bytes(self._entries[position])
            if room < 0 and position > start:
                break
            position += 1
        return self._entries[start:position]

    def conflict_hint(self, index: int, term: int) -> tuple[int, int]:
        """The last (index, term) at or before index whose term is not greater; term 0: unknown, it is compacted.

        Both sides skip whole terms with this: two logs are matched in as many rounds as they have different terms.
        """
        while index > 0:
            own = self.term_at(index)
            if own is None:
                return index, 0
            if own <= term:
                return index, own
            index -= 1
        return 0, 0

    def append(self, entries: Sequence[raftpb.Entry]) -> None:
        """Put these entries at their indexes; they replace everything from the first one's on."""
        if not entries:
            return
        first = entries[0].Index
        if not self.committed < first <= self.last_index + 1:
            raise LogConflict(f"entry {first} would overwrite what is committed up to {self.committed}, or leave a gap")
        if first <= self.last_index:
            del self._entries[first - self._offset - 1 :]
            self.submitted = min(self.submitted, first - 1)
            self.stable = min(self.stable, first - 1)
        self._entries.extend(entries)

    def merge(self, entries: Sequence[raftpb.Entry]) -> None:
        """Append what a leader sent, from the first entry on that differs from this log."""
        for i, entry in enumerate(entries):
            if self.term_at(entry.Index) != entry.Term:
                self.append(entries[i:])
                return

    def commit_to(self, index: int) -> bool:
        """Everything up to index is committed; returns whether that is news. The index must be in the log."""
        assert index <= self.last_index, (index, self.last_index)
        if index <= self.committed:
            return False
        self.committed = index
        return True

    def unsubmitted(self) -> tuple[raftpb.Entry, ...]:
        """The entries that are not in a write yet."""
        return tuple(self.between(self.submitted + 1, self.last_index))

    def compact(self, index: int) -> None:
        """Drop the entries up to index, which must be applied."""
        term = self.term_at(index)
        assert term is not None
        assert index <= self.applied
        del self._entries[: index - self._offset]
        self._offset, self._offset_term = index, term

    def restore(self, metadata: raftpb.SnapshotMetadata) -> None:
        """Replace the whole log by a leader's snapshot. ``applied`` follows when the state machine has it."""
        self._entries.clear()
        self._offset, self._offset_term = metadata.index, metadata.term
        self.committed = self.submitted = self.stable = metadata.index

    def check(self) -> None:
        """Assert what must always hold."""
        assert self.applied <= self.committed <= self.last_index
        assert self.stable <= self.submitted <= self.last_index
        newest = self._entries[-_CHECKED_ENTRIES:]  # the others were checked when they came
        first = self.last_index - len(newest) + 1
        previous = self.term_at(first - 1)
        assert previous is not None
        for index, entry in enumerate(newest, first):
            assert entry.Index == index
            assert entry.Term >= previous
            previous = entry.Term
