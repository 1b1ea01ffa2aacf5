"""What a member goes on with that accepts the loss of a part of its log, alone in a new cluster."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.api import raftpb
from swarm.raft.records import RecordCorrupt


def salvaged(
    state: raftpb.HardState | None, snapshot: raftpb.Snapshot | None, entries: Sequence[raftpb.Entry], term: int
) -> tuple[raftpb.HardState, tuple[raftpb.Entry, ...]]:
    """The hard state and the entries that follow from what is whole. Raises RecordCorrupt if that is nothing.

    state: None if it cannot be read. entries: those before the first that is damaged. term: the least that the member
    was in.
    """
    base = snapshot.metadata.index if snapshot else 0
    whole = tuple(entries)
    if whole and whole[0].Index > base + 1:
        whole = ()
    if not whole and not base:
        raise RecordCorrupt("nothing can be read from its beginning on")
    found = raftpb.HardState()
    if state is not None:
        found.CopyFrom(state)
    else:
        found.term = max(term, whole[-1].Term if whole else 0)
    found.commit = min(found.commit, max(whole[-1].Index if whole else 0, base))
    return found, whole
