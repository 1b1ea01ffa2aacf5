"""When managers save their stores: every so many entries, each member of a group in its turn."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import api
from swarm.api import raftpb
from swarm.manager import assemble
from swarm.manager.group.members import RaftGroup
from swarm.manager.manager import Manager
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import MANAGER_ROLE, Call, Peer
from swarm.store.store import Store

INTERVAL = 30
MEMBERS = (11, 12, 13)
LEADER = Peer("n11", MANAGER_ROLE, "c1", "10.0.0.11:40000")


def log_of(length: int) -> tuple[raftpb.Entry, ...]:
    """The group's members, a cluster with a short interval, and configs."""
    entries = []
    for number, raft_id in enumerate(MEMBERS, 1):
        member = api.RaftMember(raft_id=raft_id, node_id=f"n{raft_id}", addr=f"10.0.0.{raft_id}:2377")
        change = raftpb.ConfChange(
            type=raftpb.ConfChangeAddNode, node_id=raft_id, context=member.SerializeToString()
        ).SerializeToString()
        entries.append(raftpb.Entry(Type=raftpb.EntryConfChange, Term=1, Index=number, Data=change))
    cluster = api.Cluster(id="c1", spec=api.ClusterSpec(annotations=api.Annotations(name="default")))
    cluster.spec.raft.snapshot_interval = INTERVAL
    cluster.spec.raft.log_entries_for_slow_followers = 5
    create = api.StoreActionKind.STORE_ACTION_CREATE
    for index in range(len(entries) + 1, length + 1):
        action = api.StoreAction(action=create)
        if index == len(MEMBERS) + 1:
            action.cluster.CopyFrom(cluster)
        else:
            spec = api.ConfigSpec(annotations=api.Annotations(name=f"config{index}"))
            action.config.CopyFrom(api.Config(id=f"config{index}", spec=spec))
        data = api.InternalRaftRequest(id=index, action=[action]).SerializeToString()
        entries.append(raftpb.Entry(Type=raftpb.EntryNormal, Term=1, Index=index, Data=data))
    return tuple(entries)


class Follower:
    """A member whose disk answers at once; the leader sends it one entry at a time."""

    def __init__(self, raft_id: int) -> None:
        self.raft_id = raft_id
        self.saved: list[int] = []
        self._now = 1000.0
        raft = Raft(events.Config(raft_id), Random(1), None, None, (), 0, self._now)
        parts = assemble.parts(f"n{raft_id}", "c1", assemble.Group(lambda: self.manager))
        self.manager = Manager(raft, Store(), parts, Random(1), strict=True)
        self._tell(None)

    def _tell(self, event: object) -> None:
        waiting = [event]
        while waiting:
            for effect in self.manager.handle(waiting.pop(0), self._now):  # type: ignore[arg-type]
                if isinstance(effect, events.Persist):
                    if effect.snapshot is not None:
                        self.saved.append(effect.snapshot.metadata.index)
                    waiting.append(events.Persisted(effect.token))

    def append(self, entry: raftpb.Entry) -> None:
        """The leader has the entry, and says that it is decided."""
        for entries in ((entry,), ()):
            previous = entry.Index - len(entries)
            message = raftpb.Message(type=raftpb.MsgApp, to=self.raft_id, term=1, index=previous)
            message.logTerm = 1 if previous else 0
            message.commit = entry.Index if not entries else previous
            message.entries.extend(entries)
            setattr(message, "from", MEMBERS[0])
            request = api.ProcessRaftMessageRequest(message=message)
            self._tell(Call(entry.Index, "Raft/ProcessRaftMessage", request, LEADER))


@pytest.mark.parametrize(("raft_id", "first"), [(12, 10), (13, 20)])
def test_members_save_their_stores_at_different_entries_and_once_in_each_interval(raft_id: int, first: int) -> None:
    follower = Follower(raft_id)
    for entry in log_of(5 * INTERVAL):
        follower.append(entry)
    assert follower.manager.store.index == 5 * INTERVAL
    assert follower.saved == [first + turn * INTERVAL for turn in range(5)]


@given(st.lists(st.integers(1, 2**62), min_size=1, max_size=7, unique=True), st.integers(1, 20_000))
def test_every_member_has_a_turn_and_no_two_have_the_same(raft_ids: list[int], interval: int) -> None:
    turns = []
    for raft_id in raft_ids:
        group = RaftGroup(raft_id)
        group.members = {other: api.RaftMember(raft_id=other) for other in raft_ids}
        turns.append(group.turn(interval))
    assert all(0 <= turn < interval for turn in turns)
    assert len(set(turns)) >= min(len(raft_ids), interval)
    assert min(turns) == 0
