"""What a member has confirmed: the least that its disk must hold, so that it may vote and lead again.

Who confirms an entry or a vote is counted on. A disk that holds less than that was damaged, or is an old copy; a member
with such a disk could vote twice in a term, and decide without entries that were acknowledged. So a few numbers about
each write are kept apart from the log and compared with it at the next start. All of them grow with each write, except
where a leader's entries replace others: then the promise is withdrawn first (``until``). (Raft: persistent state)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from swarm.api import raftpb
from swarm.raft.events import Persist

_NO_LIMIT = 1 << 64


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The hard state, the last entry (the snapshot's end counts as one), and the end of the newest snapshot.

    raft_id 0: the disk has no owner yet.
    """

    raft_id: int = 0
    term: int = 0
    vote: int = 0
    commit: int = 0
    last_index: int = 0
    last_term: int = 0
    snapshot_index: int = 0

    @classmethod
    def of(
        cls,
        raft_id: int,
        hard_state: raftpb.HardState | None,
        snapshot: raftpb.Snapshot | None,
        entries: Sequence[raftpb.Entry],
    ) -> Confirmed:
        """What a disk with this content confirms."""
        found = cls(raft_id).after(Persist(0, hard_state, (), snapshot))
        return found.after(Persist(0, None, tuple(entries[-1:]))) if entries else found

    def after(self, persist: Persist) -> Confirmed:
        """The same after this write."""
        term, vote, commit, end = self.term, self.vote, self.commit, self.snapshot_index
        last_index, last_term = (0, 0) if persist.replaces_log else (self.last_index, self.last_term)
        if persist.snapshot is not None:
            metadata = persist.snapshot.metadata
            end = metadata.index
            if end > last_index:
                last_index, last_term = end, metadata.term
        if persist.entries and (last := persist.entries[-1]).Index >= end:
            last_index, last_term = last.Index, last.Term
        if persist.hard_state is not None:
            state = persist.hard_state
            term, vote, commit = state.term, state.vote, state.commit
        return Confirmed(self.raft_id, term, vote, commit, last_index, last_term, end)

    def until(self, new: Confirmed, kept_index: int = _NO_LIMIT, kept_term: int = 0) -> Confirmed:
        """What holds before and after a write that leads to ``new`` and keeps the log up to entry kept_index."""
        both = replace(self, commit=min(self.commit, new.commit))
        if new.raft_id != self.raft_id:
            both = replace(both, raft_id=0)
        if not self._has_vote_of(new):
            both = replace(both, term=new.term, vote=0) if new.term < self.term else replace(both, vote=0)
        if new.snapshot_index < self.last_index and kept_index < self.last_index:
            both = replace(both, last_index=kept_index, last_term=kept_term)
        return replace(both, snapshot_index=min(self.snapshot_index, new.snapshot_index))

    def _has_vote_of(self, new: Confirmed) -> bool:
        return new.term > self.term or (new.term == self.term and self.vote in (0, new.vote))

    def lost_in(self, found: Confirmed, term_at: Callable[[int], int]) -> str:
        """What of it is missing on a disk, for users; empty: nothing. term_at: of an entry there, 0 if it is gone."""
        lost = []
        if self.raft_id not in (0, found.raft_id):
            lost.append(f"it belonged to member {self.raft_id:x}, and the file says {found.raft_id:x}")
        if found.term < self.term:
            lost.append(f"it was in term {self.term}, and the file says {found.term}")
        elif not self._has_vote_of(found):
            lost.append(f"its vote in term {self.term} is gone")
        if found.snapshot_index < self.last_index and term_at(self.last_index) != self.last_term:
            end = f"up to {found.last_index}" if found.last_index < self.last_index else "others"
            lost.append(f"it had confirmed entries up to {self.last_index}, and the file has {end}")
        if found.snapshot_index < self.snapshot_index:
            lost.append(f"its snapshot of entry {self.snapshot_index} is gone")
        if found.commit < self.commit:
            lost.append(f"it knew of {self.commit} decided entries, and the file says {found.commit}")
        return "; ".join(lost)

    def lost_from(
        self,
        raft_id: int,
        hard_state: raftpb.HardState | None,
        snapshot: raftpb.Snapshot | None,
        entries: Sequence[raftpb.Entry],
    ) -> str:
        """As lost_in, of a disk with this content."""
        terms = {entry.Index: entry.Term for entry in entries}
        return self.lost_in(Confirmed.of(raft_id, hard_state, snapshot, entries), lambda index: terms.get(index, 0))
