"""A member whose address changed is found again where it calls from."""

from __future__ import annotations

from swarm import api
from swarm.api import raftpb
from swarm.manager.group import RaftGroup
from swarm.rpc import MANAGER_ROLE, Peer

OLD, NEW, NODE2 = "10.0.0.2:2377", "10.0.0.9:2377", 2


def make() -> RaftGroup:
    group = RaftGroup(1)
    for raft_id, addr in ((1, "10.0.0.1:2377"), (NODE2, OLD)):
        member = api.RaftMember(raft_id=raft_id, node_id=f"n{raft_id}", addr=addr)
        change = raftpb.ConfChange(node_id=raft_id, context=member.SerializeToString())
        group.apply(change)
    return group


def sender(host: str, node_id: str = "n2") -> Peer:
    return Peer(node_id, MANAGER_ROLE, "c1", f"{host}:40000")


def test_a_member_that_calls_from_elsewhere_is_looked_for_there_once_its_address_is_dead() -> None:
    group = make()
    group.lost(NODE2)
    assert group.heard(NODE2, sender("10.0.0.9"))
    assert group.peers[NODE2].addr == NEW
    assert group.members[NODE2].addr == OLD, "the log has not told yet"
    group.readdress()
    group.readdress()
    pending = group.next_change()
    assert pending is not None
    assert pending.change.type == raftpb.ConfChangeUpdateNode
    group.apply(pending.change)
    pending.index = 7
    assert group.decided(7) is pending
    assert group.next_change() is None
    assert group.members[NODE2].addr == group.peers[NODE2].addr == NEW


def test_one_that_can_be_reached_may_call_from_any_address() -> None:
    group = make()
    assert not group.heard(NODE2, sender("10.0.0.9"))
    assert group.peers[NODE2].addr == OLD


def test_nobody_else_moves_a_member() -> None:
    group = make()
    for other in (sender("10.0.0.9", "n3"), Peer("n2", MANAGER_ROLE, "c1", "")):
        group.lost(NODE2)
        assert not group.heard(NODE2, other)
    assert group.peers[NODE2].addr == OLD


def test_a_leader_that_has_moved_hears_from_the_others_where_it_is_and_the_log_tells_everybody() -> None:
    group = make()
    group.found_at("10.0.0.1:2377")
    group.readdress()
    assert group.next_change() is None
    group.found_at("10.0.0.7:2377")
    group.readdress()
    pending = group.next_change()
    assert pending is not None
    assert (pending.change.type, pending.change.node_id) == (raftpb.ConfChangeUpdateNode, 1)
    group.apply(pending.change)
    assert group.members[1].addr == "10.0.0.7:2377"


def test_who_calls_without_being_a_member_is_remembered_until_the_log_tells() -> None:
    group = make()
    group.heard(3, sender("10.0.0.3", "n3"))
    assert group.callers[3].addr == "10.0.0.3:2377"
    assert 3 not in group.peers
    member = api.RaftMember(raft_id=3, node_id="n3", addr="10.0.0.3:2378")
    group.apply(raftpb.ConfChange(node_id=3, context=member.SerializeToString()))
    assert not group.callers
    for raft_id in range(10, 10_000):
        group.heard(raft_id, sender("10.0.0.3", "n3"))
    assert len(group.callers) <= 1000


def test_a_member_that_asks_for_itself_is_found_where_it_asks_from() -> None:
    group = make()
    group.lost(NODE2)
    for asker in (sender("10.0.0.9", "n3"), sender("10.0.0.9")):
        found = group.resolve(NODE2, asker)
        assert found is not None
        assert (found.addr == NEW) == (asker.node_id == "n2")
    assert group.resolve(3, sender("10.0.0.9", "n3")) is None


def test_a_member_that_moves_back_is_found_where_the_log_has_it() -> None:
    group = make()
    for host, addr in (("10.0.0.9", NEW), ("10.0.0.8", "10.0.0.8:2377"), ("10.0.0.2", OLD)):
        group.lost(NODE2)
        assert group.heard(NODE2, sender(host))
        assert group.peers[NODE2].addr == addr
    group.readdress()
    assert group.next_change() is None


def test_a_member_that_is_removed_is_no_peer_wherever_it_was_heard() -> None:
    group = make()
    group.lost(NODE2)
    group.heard(NODE2, sender("10.0.0.9"))
    group.remove("n2")
    pending = group.next_change()
    assert pending is not None
    group.apply(pending.change)
    assert list(group.peers) == [1]


def test_addresses_of_version_six_keep_their_brackets() -> None:
    group = make()
    group.lost(NODE2)
    assert group.heard(NODE2, Peer("n2", MANAGER_ROLE, "c1", "[fd00::9]:40000"))
    assert group.peers[NODE2].addr == "[fd00::9]:2377"
