"""The voters of the group, changed one at a time by committed ConfChange entries.

(etcd/raft: confchange/, bootstrap.go; swarmkit: manager/state/raft/membership, createConfigChangeEnts)
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from swarm.api import raftpb
from swarm.raft.progress import quorum


class Membership:
    """The voters as of the last applied entry, in the order of their ids."""

    def __init__(self, conf_state: raftpb.ConfState | None = None) -> None:
        self.voters: tuple[int, ...] = tuple(sorted(conf_state.voters)) if conf_state else ()

    def restore(self, conf_state: raftpb.ConfState) -> None:
        """Take over the voters of a snapshot."""
        self.voters = tuple(sorted(conf_state.voters))

    @property
    def conf_state(self) -> raftpb.ConfState:
        """A fresh message with these voters."""
        return raftpb.ConfState(voters=self.voters)

    @property
    def quorum(self) -> int:
        """How many voters are a majority."""
        return quorum(len(self.voters))

    def alone(self, raft_id: int) -> bool:
        """Whether this member is the only voter."""
        return self.voters == (raft_id,)

    def allows(self, change: raftpb.ConfChange) -> bool:
        """Whether a leader may propose this change."""
        if not change.node_id:
            return False
        if change.type == raftpb.ConfChangeRemoveNode:
            return change.node_id in self.voters and len(self.voters) > 1
        if change.type == raftpb.ConfChangeUpdateNode:
            return change.node_id in self.voters
        return change.type == raftpb.ConfChangeAddNode and change.node_id not in self.voters

    def apply(self, change: raftpb.ConfChange) -> bool:
        """Apply a committed change; doing so twice is harmless. Returns whether the voters changed."""
        before = self.voters
        if change.type == raftpb.ConfChangeAddNode and change.node_id:
            self.voters = tuple(sorted({*self.voters, change.node_id}))
        elif change.type == raftpb.ConfChangeRemoveNode:
            self.voters = tuple(voter for voter in self.voters if voter != change.node_id)
        return self.voters != before


def parse_change(entry: raftpb.Entry) -> raftpb.ConfChange | None:
    """The ConfChange of an entry; None for other entries and for one that does not parse."""
    if entry.Type != raftpb.EntryConfChange:
        return None
    try:
        return raftpb.ConfChange.FromString(entry.Data)
    except DecodeError:
        return None


def _change_entry(kind: raftpb.ConfChangeType, raft_id: int, context: bytes, term: int, index: int) -> raftpb.Entry:
    change = raftpb.ConfChange(id=0, type=kind, node_id=raft_id, context=context)
    return raftpb.Entry(Type=raftpb.EntryConfChange, Term=term, Index=index, Data=change.SerializeToString())


def bootstrap_entries(raft_id: int, context: bytes) -> tuple[raftpb.Entry, ...]:
    """The log of a new group: its first member adds itself. context: the member's marshalled RaftMember.

    Pass it to Raft with hard_state None: it is written with the first Persist.
    """
    return (_change_entry(raftpb.ConfChangeAddNode, raft_id, context, 1, 1),)


def force_new_cluster(
    raft_id: int,
    context: bytes,
    hard_state: raftpb.HardState,
    snapshot: raftpb.Snapshot | None,
    entries: Sequence[raftpb.Entry],
) -> tuple[raftpb.HardState, tuple[raftpb.Entry, ...]]:
    """What to append to a stopped member's log so that it is the only voter when it starts again.

    All other members are removed, and this one is updated (or added where it was missing) with ``context``, its
    RaftMember, possibly with a new address. Write the entries and the hard state in one Persist, load again, start.
    The whole log counts as committed: the commit index on disk lags behind, and entries after it may have been
    acknowledged to clients. (Stock swarm drops them.) The new entries get a term of their own, so that no message that
    a former leader may still send fits the log.
    """
    snapshot_index = snapshot.metadata.index if snapshot else 0
    last = max(entries[-1].Index, snapshot_index) if entries else snapshot_index
    members = Membership(snapshot.metadata.conf_state if snapshot else None)
    for entry in entries:
        change = parse_change(entry) if entry.Index > snapshot_index else None
        if change:
            members.apply(change)
    term = hard_state.term + 1
    kind = raftpb.ConfChangeUpdateNode if raft_id in members.voters else raftpb.ConfChangeAddNode
    added = [_change_entry(kind, raft_id, context, term, last + 1)]
    for other in members.voters:
        if other != raft_id:
            added.append(_change_entry(raftpb.ConfChangeRemoveNode, other, b"", term, last + 1 + len(added)))
    return raftpb.HardState(term=term, vote=raft_id, commit=last + len(added)), tuple(added)
