"""A member whose address changed is found again where it calls from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from swarm import api, defaults
from swarm.api import extensions, raftpb
from swarm.manager.events import DialPeer, FoundAt
from swarm.manager.group.members import RaftGroup
from swarm.raft import events
from swarm.rpc import MANAGER_ROLE, Peer, Reply
from swarm.store.tx import Tx
from tests.fuzz.house import CLUSTER, House
from tests.swarm.manager.group.test_changes import promote

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


def dials(group: RaftGroup, now: float = 0.0) -> list[tuple[int, str, str]]:
    return [(member.raft_id, member.node_id, member.addr) for member in group.dials(now)]


def claim(group: RaftGroup, host: str, now: float = 0.0) -> str:
    """Where it is to be looked when the member cannot be reached and calls from this host."""
    group.lost(NODE2)
    group.heard(NODE2, sender(host))
    wanted = dials(group, now)
    assert [(raft_id, node_id) for raft_id, node_id, _ in wanted] == [(NODE2, "n2")]
    return wanted[0][2]


def test_a_member_that_calls_from_elsewhere_is_looked_for_there_once_its_address_is_dead() -> None:
    group = make()
    assert claim(group, "10.0.0.9") == NEW
    group.readdress()
    assert group.next_change() is None
    assert group.peers[NODE2].addr == OLD, "nobody has seen it there yet"
    assert group.dialled(NODE2, NEW, "")
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


def test_an_address_where_it_is_not_found_is_not_taken_and_tried_again_in_a_while() -> None:
    group = make()
    pause_s = defaults.PEER_DIAL_PAUSE_S
    told: list[bool] = []
    for turn in range(20):
        now = turn * pause_s / 4
        group.lost(NODE2)
        group.heard(NODE2, sender("10.0.0.9"))
        for raft_id, _, addr in dials(group, now):
            assert now == len(told) * pause_s, "no more than one in a while"
            told.append(group.dialled(raft_id, addr, "connection refused"))
    assert told == [True, False, False, False, False], "the log tells it once"
    group.readdress()
    assert group.next_change() is None
    assert group.peers[NODE2].addr == OLD


def test_one_dial_at_a_time_and_the_newest_address_comes_next() -> None:
    group = make()
    assert claim(group, "10.0.0.9") == NEW
    for host in ("10.0.0.10", "10.0.0.11"):
        group.lost(NODE2)
        group.heard(NODE2, sender(host))
        assert dials(group, 100.0) == []
    group.dialled(NODE2, NEW, "i/o timeout")
    for host in ("10.0.0.10", "10.0.0.11"):
        group.lost(NODE2)
        group.heard(NODE2, sender(host))
    assert dials(group, 0.0) == []
    assert dials(group, 100.0) == [(NODE2, "n2", "10.0.0.11:2377")]


def test_what_a_dial_finds_counts_no_more_when_the_log_has_told_meanwhile() -> None:
    group = make()
    claim(group, "10.0.0.9")
    member = api.RaftMember(raft_id=NODE2, node_id="n2", addr="10.0.0.12:2377")
    group.apply(raftpb.ConfChange(type=raftpb.ConfChangeUpdateNode, node_id=2, context=member.SerializeToString()))
    assert not group.dialled(NODE2, NEW, "")
    assert group.peers[NODE2].addr == "10.0.0.12:2377"
    group.readdress()
    assert group.next_change() is None


def test_a_dial_nobody_asked_for_moves_nobody() -> None:
    group = make()
    for raft_id in (NODE2, 3):
        assert not group.dialled(raft_id, NEW, "")
    claim(group, "10.0.0.9")
    assert not group.dialled(NODE2, "10.0.0.66:2377", "")
    assert group.peers == group.members


def test_one_that_can_be_reached_may_call_from_any_address() -> None:
    group = make()
    group.heard(NODE2, sender("10.0.0.9"))
    assert dials(group) == []


def test_nobody_else_moves_a_member_or_says_that_it_can_be_reached() -> None:
    group = make()
    group.lost(NODE2)
    group.heard(NODE2, sender("10.0.0.9", "n3"))
    assert not group.reachable(NODE2)
    group.heard(NODE2, Peer("n2", MANAGER_ROLE, "c1", ""))
    assert group.reachable(NODE2)
    assert dials(group) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "224.0.0.1", "[fe80::9]", "x"])
def test_nobody_is_looked_for_where_everybody_finds_himself_or_nobody(host: str) -> None:
    group = make()
    group.lost(NODE2)
    group.heard(NODE2, sender(host))
    group.found_at(f"{host}:2377", moved=True)
    assert dials(group) == []


def test_members_on_this_host_alone_may_move_on_it() -> None:
    group = make()
    member = api.RaftMember(raft_id=NODE2, node_id="n2", addr="127.0.0.1:2378")
    group.apply(raftpb.ConfChange(type=raftpb.ConfChangeUpdateNode, node_id=2, context=member.SerializeToString()))
    assert claim(group, "127.0.0.2") == "127.0.0.2:2378"


def test_a_leader_that_has_moved_hears_from_the_others_where_it_is_and_the_log_tells_everybody() -> None:
    group = make()
    group.found_at("10.0.0.1:2377", moved=False)
    assert dials(group) == []
    group.found_at("10.0.0.7:2377", moved=True)
    assert dials(group) == [(1, "n1", "10.0.0.7:2377")]
    group.readdress()
    assert group.next_change() is None
    group.dialled(1, "10.0.0.7:2377", "")
    group.readdress()
    pending = group.next_change()
    assert pending is not None
    assert (pending.change.type, pending.change.node_id) == (raftpb.ConfChangeUpdateNode, 1)
    group.apply(pending.change)
    assert group.members[1].addr == "10.0.0.7:2377"


def test_a_leader_does_not_go_back_to_where_it_was_for_a_member_whose_log_lags() -> None:
    group = make()
    group.found_at("10.0.0.99:2377", moved=False)
    assert dials(group) == []


def test_a_leader_that_is_found_where_the_log_has_it_stays_there() -> None:
    group = make()
    group.found_at("10.0.0.7:2377", moved=True)
    dials(group)
    group.dialled(1, "10.0.0.7:2377", "")
    group.found_at("10.0.0.1:2377", moved=False)
    group.readdress()
    assert group.next_change() is None


def test_who_leads_no_more_does_not_tell_later_where_it_was_once() -> None:
    group = make()
    group.found_at("10.0.0.7:2377", moved=True)
    dials(group)
    group.dialled(1, "10.0.0.7:2377", "")
    group.give_up()
    group.readdress()
    assert group.next_change() is None


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
    group.resolve(NODE2, sender("10.0.0.9", "n3"))
    assert dials(group) == []
    group.resolve(NODE2, sender("10.0.0.9"))
    assert dials(group) == [(NODE2, "n2", NEW)]
    group.dialled(NODE2, NEW, "")
    found = group.resolve(NODE2, sender("10.0.0.9", "n3"))
    assert found is not None
    assert found.addr == NEW
    assert group.resolve(3, sender("10.0.0.9", "n3")) is None


def test_a_member_that_moves_back_is_found_where_the_log_has_it() -> None:
    group = make()
    for now, (host, addr) in enumerate([("10.0.0.9", NEW), ("10.0.0.8", "10.0.0.8:2377"), ("10.0.0.2", OLD)]):
        assert claim(group, host, now * defaults.PEER_DIAL_PAUSE_S) == addr
        assert group.dialled(NODE2, addr, "")
        assert group.peers[NODE2].addr == addr
    group.readdress()
    assert group.next_change() is None


def test_a_member_that_is_removed_is_no_peer_wherever_it_was_heard() -> None:
    group = make()
    claim(group, "10.0.0.9")
    group.dialled(NODE2, NEW, "")
    claim(group, "10.0.0.8", 100.0)
    group.remove("n2")
    pending = group.next_change()
    assert pending is not None
    group.apply(pending.change)
    assert list(group.peers) == [1]
    assert not group.dialled(NODE2, "10.0.0.8:2377", "")
    assert dials(group, 200.0) == []


def test_addresses_of_version_six_keep_their_brackets() -> None:
    group = make()
    assert claim(group, "[fd00::9]") == "[fd00::9]:2377"


# --- the manager around it -------------------------------------------------------------------------------------------


def known(key: bytes, begins: int, tx: Tx) -> None:
    """The certificate that the follower is known to use."""
    authority = tx.edit(api.Node, "n2").authority
    authority.key = key
    authority.certified_from.FromSeconds(begins)


class Moving:
    """A leader whose only follower has moved: it cannot be reached, and calls from 10.0.0.9."""

    def __init__(self, error: str, key: bytes = b"", begins: int = 0) -> None:
        self.house = House(None)
        self.house.dial_error = error
        self.follower = Peer("n2", MANAGER_ROLE, CLUSTER, "10.0.0.9:40000")
        self.house.write(promote("n1", "n2", "n3"))
        self.house.write(partial(known, key, begins))
        self.house.stream = 1  # the number tells the house whether a joiner is ours
        self.house.call("RaftMembership/Join", api.JoinRequest(addr=OLD), self.follower)
        self.raft_id = next(key for key in self.group.members if key != 1)

    @property
    def group(self) -> RaftGroup:
        return self.house.manager.group

    def calls(self) -> None:
        """It is lost, and then heard."""
        self.house.tell(events.Unreachable(self.raft_id))
        message = raftpb.Message(type=raftpb.MsgHeartbeatResp, to=1, term=1)
        setattr(message, "from", self.raft_id)
        self.house.call("Raft/ProcessRaftMessage", api.ProcessRaftMessageRequest(message=message), self.follower)

    def proposed(self) -> list[str]:
        """The addresses that the log has been given for the follower since it joined."""
        entries = [entry for write in self.house.written for entry in write.entries]
        changes = [
            raftpb.ConfChange.FromString(entry.Data) for entry in entries if entry.Type == raftpb.EntryConfChange
        ]
        updates = [change for change in changes if change.type == raftpb.ConfChangeUpdateNode]
        return [api.RaftMember.FromString(change.context).addr for change in updates]

    def resolve(self) -> api.ResolveAddressResponse:
        """Where it is, as the leader tells others."""
        request = api.ResolveAddressRequest(raft_id=self.raft_id)
        (reply,) = self.house.call("Raft/ResolveAddress", request, Peer("n3", MANAGER_ROLE, CLUSTER, "10.0.0.3:4000"))
        assert isinstance(reply, Reply)
        assert isinstance(reply.message, api.ResolveAddressResponse)
        return reply.message


def test_the_log_is_given_an_address_only_after_this_very_node_answered_there() -> None:
    moving = Moving("")
    moving.calls()
    assert moving.house.dialled == [DialPeer(moving.raft_id, "n2", NEW)]
    assert moving.proposed() == [NEW]
    assert moving.resolve().addr == NEW
    assert extensions.has_extension(moving.resolve(), extensions.MOVED), "the log has not decided it"


def test_an_address_that_another_node_answers_on_changes_nothing() -> None:
    moving = Moving("x509: certificate is of node n7, not n2")
    for _ in range(5):
        moving.calls()
    assert moving.house.dialled == [DialPeer(moving.raft_id, "n2", NEW)]
    assert moving.proposed() == []
    assert moving.resolve().addr == OLD
    assert not extensions.has_extension(moving.resolve(), extensions.MOVED)


def test_who_only_follows_hears_about_its_own_address_from_its_leader() -> None:
    moving = Moving("")
    house = moving.house
    house.tell(FoundAt("10.0.0.7:2377", moved=True))
    assert house.dialled == [DialPeer(1, "n1", "10.0.0.7:2377")]
    message = raftpb.Message(type=raftpb.MsgHeartbeat, to=1, term=9)
    setattr(message, "from", moving.raft_id)
    house.tell(events.Received(message))
    assert not house.manager.leading
    assert moving.group.peers[1].addr == "10.0.0.1:2377", "the next leader finds out"
    house.now += 2 * defaults.PEER_DIAL_PAUSE_S
    house.tell(FoundAt("10.0.0.8:2377", moved=True))
    assert len(house.dialled) == 1


def test_an_old_copy_of_a_members_certificate_does_not_show_where_the_member_is() -> None:
    """It may still bring messages of the log: the node may not have dialled again since its renewal."""
    moving = Moving("nobody is there", b"new", 500)
    for key, begins, dialled in ((b"old", 400.0, False), (b"new", 500.0, True), (b"newer", 600.0, True)):
        before = len(moving.house.dialled)
        moving.follower = replace(moving.follower, key=key, not_before=begins)
        moving.calls()
        moving.house.call("Raft/ResolveAddress", api.ResolveAddressRequest(raft_id=moving.raft_id), moving.follower)
        moving.house.now += 2 * defaults.PEER_DIAL_PAUSE_S
        moving.house.tell(None)
        assert (len(moving.house.dialled) > before) is dialled, key
