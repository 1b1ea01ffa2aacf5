"""Messages to members of the group, against servers that keep what they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest_asyncio

from certs.tls import server_context
from swarm import api
from swarm.api import extensions, raftpb
from swarm.errors import NotFound, Unavailable
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.node.peers import Peers
from swarm.manager.events import (
    Forward,
    ForwardAnswered,
    ForwardFailed,
    ForwardMore,
    ForwardOpened,
    FoundAt,
    PeerAnswered,
)
from swarm.manager.group.members import REMOVED_TEXT
from swarm.raft import events
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamData, StreamEnd
from tests.swarm.io.conftest import MakeServed, Served

if TYPE_CHECKING:
    from tests.conftest import Authority

OWN, OURS, STRANGER = 1, 2, 99


class Members:
    """Two managers' ports 2377, the first of which knows where the others are."""

    def __init__(self, authority: Authority, first: Served, second: Served) -> None:
        self.first, self.second = first, second
        self.reports: list[object] = []
        self.told: asyncio.Queue[object] = asyncio.Queue()
        self.addresses = {STRANGER: second.address}
        self.removed: dict[int, None] = {}
        self.moved: dict[int, None] = {}
        self.serves = True
        self.messages: asyncio.Queue[raftpb.Message] = asyncio.Queue()
        credentials = authority.issue("manager2")
        managers = [first.address]
        self.superseded: list[str] = []
        self.peers = Peers(
            lambda: authority.client(credentials), self.report, lambda peer: peer == OURS, managers, self.is_superseded
        )
        for served in (first, second):
            served.call = lambda call, served=served: self.answer(served, call)  # type: ignore[method-assign,misc]

    def is_superseded(self, peer: Peer) -> bool:
        assert peer.key
        assert peer.not_before
        return peer.node_id in self.superseded

    def report(self, event: object) -> None:
        self.reports.append(event)
        self.told.put_nowait(event)

    def answer(self, served: Served, call: Call) -> None:
        match call.request:
            case api.HealthCheckRequest(service="Raft") if self.serves:
                health = api.HealthCheckResponse(status=api.HealthCheckResponse.SERVING)
                served.server.send(Reply(call.stream, health))
            case api.HealthCheckRequest():
                served.server.send(StreamEnd(call.stream, Unavailable("this manager is not ready yet")))
            case api.ResolveAddressRequest(raft_id=raft_id) if raft_id in self.addresses:
                answer = api.ResolveAddressResponse(addr=self.addresses[raft_id])
                if raft_id in self.moved:
                    answer = extensions.with_extension(answer, extensions.MOVED)
                served.server.send(Reply(call.stream, answer))
            case api.ResolveAddressRequest(raft_id=raft_id) if raft_id in self.removed:
                served.server.send(StreamEnd(call.stream, NotFound(REMOVED_TEXT)))
            case api.ResolveAddressRequest():
                served.server.send(StreamEnd(call.stream, NotFound("member not found")))
            case api.ProcessRaftMessageRequest(message=message):
                self.messages.put_nowait(message)
                served.server.send(Reply(call.stream, api.ProcessRaftMessageResponse()))


@pytest_asyncio.fixture
async def members(authority: Authority, make_served: MakeServed) -> AsyncIterator[Members]:
    context = server_context(authority.issue("manager1"), authority.pem)
    made = [await make_served(lambda: context, ClusterAuthorizer("cluster1", lambda _: False)) for _ in range(2)]
    members = Members(authority, *made)
    yield members
    await members.peers.close()


def message(to: int) -> raftpb.Message:
    return raftpb.Message(type=raftpb.MsgAppResp, to=to, term=1)


async def test_a_leader_that_the_log_has_not_told_of_is_asked_for_and_answered(members: Members) -> None:
    members.peers.send(message(STRANGER), {}, {})
    assert members.reports == [events.Unreachable(STRANGER)]
    await members.first.until(lambda: bool(members.first.ends or members.first.calls))
    while members.messages.empty():
        members.peers.send(message(STRANGER), {}, {})
        await asyncio.sleep(0)
    assert (await members.messages.get()).to == STRANGER
    assert [call.method for call in members.first.calls] == ["Raft/ResolveAddress"]


async def test_a_stranger_that_has_moved_is_asked_for_again(members: Members) -> None:
    members.addresses[STRANGER] = "127.0.0.1:1"
    members.peers.send(message(STRANGER), {}, {})
    await members.first.until(lambda: bool(members.first.calls))
    while members.reports[-1] != events.Unreachable(STRANGER) or len(members.reports) < 2:
        await members.told.get()
        members.peers.send(message(STRANGER), {}, {})
    members.addresses[STRANGER] = members.second.address
    while members.messages.empty():
        members.peers.send(message(STRANGER), {}, {})
        await asyncio.sleep(0.01)
    assert (await members.messages.get()).to == STRANGER


async def test_a_caller_that_nobody_knows_is_answered_where_it_calls_from(members: Members) -> None:
    members.addresses.clear()
    caller = api.RaftMember(raft_id=STRANGER, addr=members.second.address)
    members.peers.send(message(STRANGER), {}, {STRANGER: caller})
    assert (await members.messages.get()).to == STRANGER
    assert members.reports == []


async def test_what_the_log_tells_counts_more_than_what_was_asked(members: Members) -> None:
    members.addresses[STRANGER] = "127.0.0.1:1"
    members.peers.send(message(STRANGER), {}, {})
    await members.first.until(lambda: bool(members.first.calls))
    known = {STRANGER: api.RaftMember(raft_id=STRANGER, addr=members.second.address)}
    members.peers.keep_only(known)
    members.peers.send(message(STRANGER), known, {})
    assert (await members.messages.get()).to == STRANGER


async def test_a_member_without_a_log_asks_whether_it_was_removed(members: Members) -> None:
    members.removed[OWN] = None
    members.peers.ask_for_us(OWN, [])
    assert await members.told.get() == events.Removed()


async def test_that_a_stranger_was_removed_says_nothing_about_us(members: Members) -> None:
    members.removed[STRANGER] = None
    members.peers.send(message(STRANGER), {}, {})
    members.addresses[OWN] = "127.0.0.1:1"
    members.peers.ask_for_us(OWN, [])
    while FoundAt("127.0.0.1:1") not in members.reports:
        await members.told.get()
    assert members.reports == [events.Unreachable(STRANGER), FoundAt("127.0.0.1:1")]


async def test_who_has_found_us_elsewhere_than_its_log_says_tells_it(members: Members) -> None:
    members.addresses[OWN] = "10.0.0.7:2377"
    members.moved[OWN] = None
    members.peers.ask_for_us(OWN, [])
    assert await members.told.get() == FoundAt("10.0.0.7:2377", moved=True)


async def test_an_address_counts_only_if_the_node_that_is_looked_for_serves_there(members: Members) -> None:
    address = members.first.address
    assert await members.peers.check(address, "manager1") == ("", False)
    error, _ = await members.peers.check(address, "manager7")
    assert "certificate is of node manager1, not manager7" in error
    assert [call.method for call in members.first.calls] == ["Health/Check"], "another node is asked nothing"
    members.serves = False
    assert (await members.peers.check(address, "manager1"))[0] == "this manager is not ready yet"
    error, _ = await members.peers.check("127.0.0.1:1", "manager1")
    assert "connection refused" in error


async def test_a_node_of_another_cluster_or_a_worker_is_not_found_whatever_it_is_called(
    members: Members, authority: Authority, other_authority: Authority, make_served: MakeServed
) -> None:
    for credentials in (other_authority.issue("manager1"), authority.issue("manager1", "swarm-worker")):
        context = server_context(credentials, authority.pem)
        served = await make_served(lambda context=context: context, ClusterAuthorizer("cluster1", lambda _: False))  # type: ignore[misc]
        error, _ = await members.peers.check(served.address, "manager1")
        assert "authentication handshake failed: x509" in error
        assert not served.calls


async def test_a_node_is_not_found_where_an_old_copy_of_its_certificate_is_shown(members: Members) -> None:
    address = members.first.address
    assert await members.peers.check(address, "manager1") == ("", False)
    members.superseded = ["manager1"]
    reason, _ = await members.peers.check(address, "manager1")
    assert reason.endswith(f"the manager at {address} has an old copy of its certificate")
    members.superseded = ["manager2"]
    assert await members.peers.check(address, "manager1") == ("", False)


async def test_messages_for_a_member_are_not_given_to_another_node_at_its_address(members: Members) -> None:
    known = {STRANGER: api.RaftMember(raft_id=STRANGER, node_id="manager7", addr=members.first.address)}
    members.peers.send(message(STRANGER), known, {})
    assert await members.told.get() == events.Unreachable(STRANGER)
    assert not members.first.calls
    known[STRANGER].node_id = "manager1"
    members.peers.send(message(STRANGER), known, {})
    assert (await members.messages.get()).to == STRANGER


async def test_a_member_that_nobody_knows_is_not_asked_for_again_and_again(members: Members) -> None:
    members.addresses.clear()
    for _ in range(100):
        members.peers.send(message(STRANGER), {}, {})
    await members.first.until(lambda: bool(members.first.calls))
    members.peers.send(message(STRANGER), {}, {})
    assert len(members.first.calls) == 1
    assert len(members.reports) == 101


async def test_the_way_to_a_manager_of_ours_is_measured(members: Members) -> None:
    known = {
        raft_id: api.RaftMember(raft_id=raft_id, addr=served.address)
        for raft_id, served in ((STRANGER, members.second), (OURS, members.first))
    }
    for raft_id in known:
        members.peers.send(message(raft_id), known, {})
    told = await members.told.get()
    assert isinstance(told, PeerAnswered)
    assert told.raft_id == OURS
    assert told.round_trip_s > 0


def publication(tag: int, address: str) -> Forward:
    """A client stream that goes to the manager at this address."""
    leader = api.RaftMember(raft_id=OURS, addr=address)
    return Forward(tag, Call(1000 + tag, "LogBroker/PublishLogs", None, LOCAL), leader)


def piece(tag: int, number: int) -> ForwardMore:
    return ForwardMore(tag, StreamData(1000 + tag, api.PublishLogsMessage(subscription_id=str(number))))


async def test_a_client_stream_is_opened_at_the_leader_before_more_of_it_is_wanted(members: Members) -> None:
    members.peers.forward(publication(1, members.first.address))
    assert await members.told.get() == ForwardOpened(1)
    for number in range(3):
        members.peers.more(piece(1, number))
    members.peers.more(ForwardMore(1, StreamEnd(1001)))
    answered = await members.told.get()
    assert isinstance(answered, ForwardAnswered)
    assert answered.tag == 1
    assert isinstance(answered.answer, Reply)
    came = [event.message for event in members.first.events if isinstance(event, StreamData)]
    assert came == [api.PublishLogsMessage(subscription_id=str(number)) for number in range(3)]
    assert members.peers.waiting_bytes(1001) == 0


async def test_a_call_that_cannot_be_given_to_the_leader_is_told_of(members: Members) -> None:
    members.peers.forward(publication(1, "127.0.0.1:1"))
    failed = await members.told.get()
    assert isinstance(failed, ForwardFailed)
    assert failed.tag == 1
    assert isinstance(failed.error, Unavailable)


async def test_a_call_that_is_cancelled_before_its_connection_is_made_is_not_opened(members: Members) -> None:
    members.peers.forward(publication(1, members.first.address))
    members.peers.more(ForwardMore(1, StreamEnd(1001, Unavailable("the caller went away"))))
    members.peers.forward(publication(2, members.first.address))
    assert await members.told.get() == ForwardOpened(2)
    members.peers.more(ForwardMore(2, StreamEnd(1002)))
    answered = await members.told.get()
    assert isinstance(answered, ForwardAnswered)
    assert answered.tag == 2
    assert len(members.first.calls) == 1
