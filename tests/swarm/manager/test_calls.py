"""The book of open calls of a manager that does not lead: what is forwarded, tried again and given up, and when."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import cast

from swarm import api, defaults
from swarm.errors import NoLeader, NotTaken, PermissionDenied, SwarmError, Unavailable
from swarm.manager.calls import Calls, Place
from swarm.manager.events import (
    Forward,
    ForwardAnswered,
    ForwardFailed,
    ForwardMore,
    ForwardOpened,
    ManagerEffect,
)
from swarm.manager.group.members import RaftGroup
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd

WORKER = Peer("w1", WORKER_ROLE, "c1", "10.0.0.9:40000")
MANAGER = Peer("n3", MANAGER_ROLE, "c1", "10.0.0.3:40000", forwarder="n3")
LOST = "the leader of the swarm was lost before it answered; the request may have been carried out"


@dataclass
class Core:
    """What the book needs of the Raft core: who leads, and how long an election takes."""

    leader: int = 2
    config: events.Config = field(default_factory=lambda: events.Config(1))


class Book:
    """The calls of member 1 of three, which follows member 2 at first."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.core = Core()
        self.out: list[ManagerEffect] = []
        group = self.group = RaftGroup(1)
        for raft_id in (1, 2, 3):
            group.members[raft_id] = api.RaftMember(
                raft_id=raft_id, node_id=f"n{raft_id}", addr=f"10.0.0.{raft_id}:2377"
            )
        self.calls = Calls(cast(Raft, self.core), group, ("Control/ListTasks",), self.out, itertools.count(1))
        self.calls.leader_is(2, self.now)

    def take(self) -> list[ManagerEffect]:
        out = list(self.out)
        self.out.clear()
        return out

    def forward(self, call: Call) -> int:
        """Pass a call on, which the leader is given at once; its tag."""
        self.calls.pass_on(call, self.now)
        (effect,) = self.take()
        assert isinstance(effect, Forward)
        return effect.tag

    def leader_is(self, raft_id: int) -> None:
        self.core.leader = raft_id
        self.calls.leader_is(raft_id, self.now)

    def wait(self, seconds: float) -> None:
        """Time passes, and what is due is done: calls to be tried again are passed on, with what came meanwhile."""
        self.now += seconds
        for call, words in self.calls.expire(self.now):
            self.calls.pass_on(call, self.now)
            for word in words:
                self.calls.more(word)

    def answer(self, tag: int, answer: Reply | StreamData | StreamEnd) -> list[ManagerEffect]:
        self.calls.forward_answered(ForwardAnswered(tag, answer), self.now)
        return self.take()


def read(stream: int = 1) -> Call:
    return Call(stream, "Control/ListTasks", api.ListTasksRequest())


def write(stream: int = 1) -> Call:
    return Call(stream, "Control/CreateConfig", api.CreateConfigRequest())


def upload(stream: int = 1) -> Call:
    return Call(stream, "LogBroker/PublishLogs", None, WORKER)


def piece(number: int, stream: int = 1) -> StreamData:
    return StreamData(stream, api.PublishLogsMessage(subscription_id=str(number)))


def test_an_answer_of_the_leader_goes_to_the_caller_and_ends_the_call() -> None:
    book = Book()
    tag = book.forward(write())
    assert book.calls.by_place() == {Place.FORWARDED: 1}
    answer = Reply(1, api.CreateConfigResponse())
    assert book.answer(tag, answer) == [answer]
    assert book.calls.by_place() == {}
    assert book.answer(tag, answer) == [], "it was answered already"


def test_what_a_client_sends_waits_until_its_call_is_open_at_the_leader_and_keeps_its_order() -> None:
    book = Book()
    tag = book.forward(upload())
    book.calls.more(piece(1))
    book.calls.more(piece(2))
    assert book.take() == []
    assert book.calls.waiting_bytes(1) > 0
    book.calls.forward_opened(ForwardOpened(tag))
    book.calls.more(piece(3))
    book.calls.more(StreamEnd(1))
    assert book.take() == [ForwardMore(tag, word) for word in (piece(1), piece(2), piece(3), StreamEnd(1))]
    assert book.calls.waiting_bytes(1) == 0


def test_a_call_that_did_not_reach_the_leader_is_tried_again_with_all_that_its_client_has_sent() -> None:
    book = Book()
    tag = book.forward(upload())
    book.calls.more(piece(1))
    book.calls.forward_failed(ForwardFailed(tag, Unavailable("connection refused")), book.now)
    book.calls.more(piece(2))
    assert book.calls.by_place() == {Place.RETRY: 1}
    assert book.calls.deadline() == book.now + defaults.FORWARD_RETRY_S
    book.core.leader = 3
    book.wait(defaults.FORWARD_RETRY_S)
    (again,) = book.take()
    assert isinstance(again, Forward)
    assert again.leader.raft_id == 3
    book.calls.forward_opened(ForwardOpened(again.tag))
    assert book.take() == [ForwardMore(again.tag, piece(1)), ForwardMore(again.tag, piece(2))]


def test_a_client_stream_that_was_begun_is_not_given_to_another_leader_without_its_beginning() -> None:
    book = Book()
    tag = book.forward(upload())
    book.calls.more(piece(1))
    book.calls.forward_opened(ForwardOpened(tag))
    book.take()
    (end,) = book.answer(tag, StreamEnd(1, NotTaken()))
    assert isinstance(end, StreamEnd)
    assert isinstance(end.error, NoLeader)
    assert book.calls.by_place() == {}


def test_a_write_that_the_other_manager_did_not_take_is_tried_again_and_one_that_was_lost_is_not() -> None:
    book = Book()
    tag = book.forward(write())
    untaken = SwarmError(NotTaken().message)
    untaken.code = NotTaken().code
    assert book.answer(tag, StreamEnd(1, untaken)) == []
    book.wait(defaults.FORWARD_RETRY_S)
    (again,) = book.take()
    assert isinstance(again, Forward)
    lost = StreamEnd(1, Unavailable("the connection broke"))
    assert book.answer(again.tag, lost) == [lost]
    assert (book.calls.counts.forwarded, book.calls.counts.retried) == (2, 1)


def test_a_read_whose_answer_was_lost_is_asked_again() -> None:
    book = Book()
    tag = book.forward(read())
    assert book.answer(tag, StreamEnd(1, Unavailable("the connection broke"))) == []
    book.wait(defaults.FORWARD_RETRY_S)
    assert [type(effect) for effect in book.take()] == [Forward]


def test_an_error_of_the_leader_is_the_answer() -> None:
    book = Book()
    refusal = StreamEnd(1, PermissionDenied("no"))
    assert book.answer(book.forward(read()), refusal) == [refusal]
    tag = book.forward(read())
    assert refusal.error is not None
    book.calls.forward_failed(ForwardFailed(tag, refusal.error), book.now)
    assert book.take() == [refusal]


def test_calls_that_went_to_another_member_end_when_a_new_leader_is_known() -> None:
    book = Book()
    tag = book.forward(write())
    book.leader_is(3)
    cancel, end = book.take()
    assert isinstance(cancel, ForwardMore)
    assert cancel.tag == tag
    assert isinstance(end, StreamEnd)
    assert str(end.error) == LOST
    tag = book.forward(write(2))
    book.leader_is(3)
    assert book.take() == [], "it went to this very leader"


def test_a_lost_leader_is_given_up_after_a_while() -> None:
    book = Book()
    book.forward(write())
    book.leader_is(0)
    assert book.calls.deadline() == book.now + defaults.LEADER_GONE_S
    book.wait(defaults.LEADER_GONE_S)
    assert [type(effect) for effect in book.take()] == [ForwardMore, StreamEnd]
    assert book.calls.deadline() is None


def test_a_caller_that_goes_away_cancels_its_call_wherever_it_is() -> None:
    book = Book()
    gone = StreamEnd(1, Unavailable("the caller went away"))
    tag = book.forward(upload())
    book.calls.more(gone)
    assert book.take() == [ForwardMore(tag, gone)]
    assert book.answer(tag, StreamEnd(1)) == []
    tag = book.forward(read())
    book.calls.forward_failed(ForwardFailed(tag, Unavailable("no")), book.now)
    book.calls.more(gone)
    book.leader_is(0)
    book.calls.pass_on(read(), book.now)
    assert book.calls.by_place() == {Place.WAITING: 1}
    book.calls.more(gone)
    book.wait(60.0)
    assert book.take() == []
    assert book.calls.by_place() == {}


def test_a_call_waits_for_a_leader_no_longer_than_an_election_may_take() -> None:
    book = Book()
    book.leader_is(0)
    book.calls.pass_on(read(), book.now)
    due = book.calls.deadline()
    assert due == book.now + max(defaults.NO_LEADER_WAIT_S, book.core.config.election_s)
    book.wait(due - book.now)
    (end,) = book.take()
    assert isinstance(end, StreamEnd)
    assert isinstance(end.error, NoLeader)


def test_a_call_that_was_forwarded_to_this_manager_goes_no_further() -> None:
    book = Book()
    book.calls.pass_on(Call(1, "Control/ListTasks", api.ListTasksRequest(), MANAGER), book.now)
    (end,) = book.take()
    assert isinstance(end, StreamEnd)
    assert isinstance(end.error, NotTaken)
    assert book.calls.counts.refused == 1


def test_a_call_has_not_waited_for_a_leader_while_this_process_stood_still() -> None:
    book = Book()
    book.leader_is(0)
    book.calls.pass_on(read(), book.now)
    book.now += 30.0
    book.calls.stalled(30.0)
    book.wait(0.0)
    assert book.take() == []
    assert book.calls.by_place() == {Place.WAITING: 1}
    book.leader_is(2)
    for call in book.calls.take_waiting():
        book.calls.pass_on(call, book.now)
    assert isinstance(book.take()[0], Forward)


def test_after_a_stall_a_call_waits_for_a_leader_no_longer_than_before() -> None:
    book = Book()
    book.leader_is(0)
    book.calls.pass_on(read(), book.now)
    book.now += 30.0
    book.calls.stalled(30.0)
    book.wait(2 * defaults.NO_LEADER_WAIT_S + 10.0)
    (end,) = book.take()
    assert isinstance(end, StreamEnd)
    assert isinstance(end.error, NoLeader)


def test_a_forwarded_call_is_not_given_up_at_once_when_this_process_stood_still() -> None:
    book = Book()
    book.forward(write())
    book.leader_is(0)
    book.now += 30.0
    book.calls.stalled(30.0)
    book.wait(0.0)
    assert book.take() == []
    book.wait(defaults.LEADER_GONE_S)
    assert book.take() != []


def test_a_lapsed_certificate_renews_through_a_leader_of_ours_and_not_while_a_stock_manager_leads() -> None:
    peer = Peer("w1", WORKER_ROLE, "c1", "10.0.0.9:40000", certificate_error="x509: too late", renewable=True)
    for ours in (True, False, None):
        book = Book()
        if ours is not None:
            book.group.known(2, ours)
        book.calls.pass_on(Call(5, "NodeCA/IssueNodeCertificate", api.IssueNodeCertificateRequest(), peer), book.now)
        (effect,) = book.take()
        assert isinstance(effect, Forward) == (ours is True)
        if isinstance(effect, StreamEnd):
            assert "not while a stock manager leads" in str(effect.error)
