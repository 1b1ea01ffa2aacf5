"""Asking a manager to become a member (swarm.manager.group.dialogues), against a server that keeps its own list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from certs.tls import server_context
from swarm import api
from swarm.errors import FailedPrecondition, JoinUndecided, SwarmError, Unavailable
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.node.peers import dialler
from swarm.manager.group import dialogues
from swarm.rpc import Call, Reply, StreamEnd
from tests.swarm.io.conftest import MakeServed, Served

if TYPE_CHECKING:
    from tests.conftest import Authority

ADDRESS = "10.0.0.2:2377"


class Group:
    """A group that knows a node as one member until that one leaves, and then as the next."""

    def __init__(self, authority: Authority, served: Served) -> None:
        self.served = served
        self.raft_id = 7
        self.heeds = True
        self.refusal: Exception | None = None
        tls = authority.client(authority.issue("manager2"))
        self._dial = dialler(lambda: tls)
        served.call = self.answer  # type: ignore[method-assign]

    def answer(self, call: Call) -> None:
        match call.request:
            case api.JoinRequest(addr=addr):
                assert addr == ADDRESS
                self.served.server.send(Reply(call.stream, api.JoinResponse(raft_id=self.raft_id)))
            case api.LeaveRequest(node=node) if self.refusal is None:
                assert (node.raft_id, node.node_id) == (7, "manager2")
                self.raft_id += self.heeds
                self.served.server.send(Reply(call.stream, api.LeaveResponse()))
            case api.LeaveRequest():
                self.served.server.send(StreamEnd(call.stream, self.refusal))  # type: ignore[arg-type]

    async def join(self, *past_raft_ids: int) -> int:
        managers = ["127.0.0.1:1", self.served.address]
        return (await dialogues.join(managers, "manager2", ADDRESS, past_raft_ids, self._dial)).raft_id

    @property
    def asked(self) -> list[str]:
        return [event.method for event in self.served.events if isinstance(event, Call)]


@pytest_asyncio.fixture
async def group(authority: Authority, make_served: MakeServed) -> Group:
    context = server_context(authority.issue("manager1"), authority.pem)
    return Group(authority, await make_served(lambda: context, ClusterAuthorizer("cluster1", lambda _: False)))


async def test_the_first_manager_that_answers_takes_a_node_in(group: Group) -> None:
    assert await group.join() == 7
    assert group.asked == ["RaftMembership/Join"]


async def test_a_member_that_the_node_was_and_gave_up_is_removed_before_it_comes_back(group: Group) -> None:
    assert await group.join(3, 7) == 8
    assert group.asked == ["RaftMembership/Join", "RaftMembership/Leave", "RaftMembership/Join"]


async def test_who_is_known_as_the_old_member_still_does_not_come_back_as_it(group: Group) -> None:
    group.heeds = False
    with pytest.raises(Unavailable, match="has not removed the member yet"):
        await group.join(7)


async def test_why_the_old_member_cannot_go_is_told(group: Group) -> None:
    group.refusal = FailedPrecondition("too few managers would be left")
    with pytest.raises(SwarmError, match="too few managers would be left"):
        await group.join(7)


async def test_without_an_answer_nobody_knows_whether_the_node_was_taken_in(group: Group) -> None:
    group.refusal = Unavailable("the manager is stopping")
    with pytest.raises(JoinUndecided):
        await group.join(7)
