"""What another manager sends that cannot be read: it is refused or skipped, and this manager goes on."""

from __future__ import annotations

import pytest

from swarm import api
from swarm.api import raftpb
from swarm.errors import Code
from swarm.rpc import MANAGER_ROLE, Peer, Reply, StreamEnd
from tests.fuzz.house import CLUSTER, House, furnish
from tests.swarm.manager.group.test_changes import promote

LEADER = Peer("n2", MANAGER_ROLE, CLUSTER, "10.0.0.2:4000")


@pytest.fixture(scope="module")
def start() -> raftpb.Snapshot:
    return furnish()


def followed(start: raftpb.Snapshot) -> House:
    """A manager that knows of another member."""
    house = House(start)
    house.write(promote("n1", "n2"))
    house.manager.recall({}, [api.RaftMember(raft_id=2, node_id="n2", addr="10.0.0.2:2377")])
    return house


def said(house: House, message: raftpb.Message) -> Reply | StreamEnd:
    """What the sender of a message is answered."""
    (answer,) = house.call("Raft/ProcessRaftMessage", api.ProcessRaftMessageRequest(message=message), LEADER)
    assert isinstance(answer, Reply | StreamEnd)
    return answer


def from_leader(house: House, kind: raftpb.MessageType) -> raftpb.Message:
    """A message of a leader of the next term that fits this member's log."""
    raft = house.manager.raft
    message = raftpb.Message(type=kind, to=1, term=raft.term + 1, index=raft.log.last_index, logTerm=raft.log.last_term)
    setattr(message, "from", 2)
    return message


def test_a_snapshot_that_cannot_be_read_is_refused_before_it_replaces_anything(start: raftpb.Snapshot) -> None:
    house = followed(start)
    before, term = house.content(), house.manager.raft.term
    message = from_leader(house, raftpb.MsgSnap)
    message.snapshot.CopyFrom(start)
    message.snapshot.metadata.index += 100
    message.snapshot.data = b"\xff\xff\xff"
    answer = said(house, message)
    assert isinstance(answer, StreamEnd)
    assert answer.error is not None
    assert answer.error.code == Code.INVALID_ARGUMENT
    assert (house.content(), house.manager.raft.term) == (before, term)


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff", raftpb.ConfChange(node_id=2, context=b"\xff\xff\xff").SerializeToString()]
)
def test_a_change_of_the_group_that_cannot_be_read_ends_no_manager(start: raftpb.Snapshot, data: bytes) -> None:
    house = followed(start)
    message = from_leader(house, raftpb.MsgApp)
    index = message.index + 1
    message.entries.add(Type=raftpb.EntryConfChange, Index=index, Term=message.term, Data=data)
    message.commit = index
    assert isinstance(said(house, message), Reply)
    assert house.store.index == index
    voters = house.manager.raft.membership.voters
    assert set(house.manager.group.members) == {*voters, 2}
    assert all(raft_id == member.raft_id for raft_id, member in house.manager.group.members.items())
