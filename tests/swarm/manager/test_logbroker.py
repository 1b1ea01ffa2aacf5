"""Service logs between readers and nodes."""

from __future__ import annotations

from random import Random

import pytest

from swarm import api, defaults
from swarm.errors import Code, SwarmError, Unavailable
from swarm.manager.logbroker import LogBroker
from swarm.rpc import LOCAL, Call, StreamData, StreamEnd
from tests.swarm.agent.agent_world import make_task
from tests.swarm.manager.service_harness import ServiceHarness

NOT_COMPLETE = "warning: incomplete log stream. some logs could not be retrieved for the following reasons: "


class LogBrokerHarness(ServiceHarness):
    """Drives a LogBroker over service s1 with running tasks t1 on n1 and t2 on n2."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = LogBroker(self.store, self.now, Random(3), "m1")
        self.service = self.broker
        for i in (1, 2):
            task = make_task(f"t{i}", f"n{i}")
            task.status.state = api.RUNNING
            self.create(task)

    def read(self, follow: bool = False, tail: int = 0, **selector: list[str]) -> int:
        """An API client asks for logs."""
        request = api.SubscribeLogsRequest(selector=api.LogSelector(**selector))
        request.options.follow = follow
        request.options.tail = tail
        self._streams += 1
        self.perform(self.broker.handle(Call(self._streams, "Logs/SubscribeLogs", request, LOCAL), self.now))
        return self._streams

    def listen(self, node_id: str) -> int:
        """An agent listens."""
        return self.call("LogBroker/ListenSubscriptions", api.ListenSubscriptionsRequest(), node_id)

    def asked(self, stream: int) -> list[api.SubscriptionMessage]:
        """What came to a listening agent."""
        return self.data(stream, api.SubscriptionMessage)

    def publish(self, node_id: str) -> int:
        """An agent opens a publication."""
        return self.call("LogBroker/PublishLogs", None, node_id)

    def line(self, stream: int, subscription_id: str, node_id: str, task_id: str, text: str, at_s: int = 1) -> None:
        """One line of output."""
        message = api.PublishLogsMessage(subscription_id=subscription_id)
        line = message.messages.add(data=text.encode())
        line.context.node_id, line.context.task_id = node_id, task_id
        line.timestamp.FromSeconds(at_s)
        self.send(StreamData(stream, message))

    def close(self, stream: int, subscription_id: str) -> None:
        """The agent sent everything."""
        self.send(StreamData(stream, api.PublishLogsMessage(subscription_id=subscription_id, close=True)))

    def lines(self, stream: int) -> list[str]:
        """What a reader got."""
        return [line.data.decode() for m in self.data(stream, api.SubscribeLogsMessage) for line in m.messages]

    def ending(self, stream: int) -> SwarmError | None:
        """How a reader's stream ended."""
        effect = self.take(stream)[-1]
        assert isinstance(effect, StreamEnd)
        return effect.error


@pytest.fixture
def broker() -> LogBrokerHarness:
    return LogBrokerHarness()


def test_lines_of_all_nodes_reach_the_reader_whose_stream_ends_with_the_last(broker: LogBrokerHarness) -> None:
    listeners = [broker.listen("n1"), broker.listen("n2")]
    reader = broker.read(service_ids=["s1"], tail=5)
    publications = []
    for node_id, listener in zip(("n1", "n2"), listeners, strict=True):
        asked = broker.asked(listener)[0]
        assert list(asked.selector.service_ids) == ["s1"]
        assert (asked.options.tail, asked.close) == (5, False)
        publications.append((broker.publish(node_id), asked.id))
    broker.line(*publications[0], "n1", "t1", "one")
    broker.line(*publications[1], "n2", "t2", "two")
    assert broker.lines(reader) == ["one", "two"]
    broker.close(*publications[0])
    assert broker.data(publications[0][0], api.PublishLogsResponse)
    assert broker.take(reader) == []
    broker.close(*publications[1])
    assert broker.ending(reader) is None
    assert [broker.asked(listener) for listener in listeners] == [[], []]


def test_a_node_that_does_not_listen_is_named_in_the_warning(broker: LogBrokerHarness) -> None:
    listener = broker.listen("n1")
    reader = broker.read(service_ids=["s1"])
    broker.close(broker.publish("n1"), broker.asked(listener)[0].id)
    error = broker.ending(reader)
    assert error is not None
    assert error.rpc_text == "rpc error: code = Unknown desc = " + NOT_COMPLETE + "node n2 is not available"


def test_a_task_that_has_no_node_yet_is_named_in_the_warning(broker: LogBrokerHarness) -> None:
    broker.create(api.Task(id="t3", service_id="s1"))
    error = broker.ending(broker.read(task_ids=["t3"]))
    assert str(error) == NOT_COMPLETE + "task t3 has not been scheduled"


def test_a_service_that_never_ran_has_no_logs(broker: LogBrokerHarness) -> None:
    broker.create(make_task("t3", "n1", service_id="s3"))
    broker.listen("n1")
    assert broker.ending(broker.read(service_ids=["s3"])) is None
    assert broker.ending(broker.read(service_ids=["unknown"])) is None


@pytest.mark.parametrize("selector", [None, api.LogSelector()])
def test_something_must_be_selected(broker: LogBrokerHarness, selector: api.LogSelector | None) -> None:
    request = api.SubscribeLogsRequest(selector=selector)
    stream = broker.call("Logs/SubscribeLogs", request, "m1")
    assert broker.error(stream).code == Code.INVALID_ARGUMENT


def test_following_goes_on_and_takes_in_new_tasks(broker: LogBrokerHarness) -> None:
    listeners = [broker.listen("n1"), broker.listen("n3")]
    reader = broker.read(follow=True, service_ids=["s1"])
    first = broker.asked(listeners[0])[0]
    broker.close(broker.publish("n1"), first.id)
    assert broker.take(reader) == []
    broker.create(api.Task(id="t3", service_id="s1"))
    assert broker.asked(listeners[1]) == []
    broker.edit(api.Task, "t3", lambda t: setattr(t, "node_id", "n3"))
    asked = broker.asked(listeners[1])[0]
    broker.line(broker.publish("n3"), asked.id, "n3", "t3", "hello")
    assert broker.lines(reader) == ["hello"]
    broker.create(make_task("t4", "n3"), make_task("t5", "n3", service_id="other"))
    assert broker.asked(listeners[1]) == []


def test_when_the_reader_goes_the_nodes_are_told(broker: LogBrokerHarness) -> None:
    listener = broker.listen("n1")
    reader = broker.read(follow=True, service_ids=["s1"])
    asked = broker.asked(listener)[0]
    publication = broker.publish("n1")
    broker.line(publication, asked.id, "n1", "t1", "one")
    broker.out.clear()
    broker.send(StreamEnd(reader))
    closing = broker.asked(listener)[0]
    assert (closing.id, closing.close) == (asked.id, True)
    assert broker.data(publication, api.PublishLogsResponse)
    late = broker.publish("n1")
    broker.line(late, asked.id, "n1", "t1", "two")
    error = broker.error(late)
    assert (error.code, str(error)) == (Code.NOT_FOUND, "unknown subscription ID")
    assert broker.out == []


def test_a_node_may_publish_only_its_own_lines_under_one_id(broker: LogBrokerHarness) -> None:
    listener = broker.listen("n1")
    broker.read(follow=True, service_ids=["s1"])
    asked = broker.asked(listener)[0]
    cases = [
        ("", "n1", Code.INVALID_ARGUMENT, "missing subscription ID"),
        ("other", "n1", Code.NOT_FOUND, "unknown subscription ID"),
        (asked.id, "n2", Code.PERMISSION_DENIED, "invalid NodeID: expected=n1;received=n2"),
    ]
    for subscription_id, node_id, code, text in cases:
        publication = broker.publish("n1")
        broker.line(publication, subscription_id, node_id, "t1", "x")
        error = broker.error(publication)
        assert (error.code, str(error)) == (code, text)
    publication = broker.publish("n1")
    broker.line(publication, asked.id, "n1", "t1", "x")
    broker.line(publication, "another", "n1", "t1", "x")
    assert str(broker.error(publication)) == "different subscription IDs in the same session"
    foreign = broker.publish("n2")
    broker.line(foreign, asked.id, "n2", "t2", "x")
    assert broker.error(foreign).code == Code.NOT_FOUND


def test_a_publication_that_ends_without_a_closing_message_counts_as_done(broker: LogBrokerHarness) -> None:
    listener = broker.listen("n1")
    reader = broker.read(task_ids=["t1"])
    publication = broker.publish("n1")
    broker.line(publication, broker.asked(listener)[0].id, "n1", "t1", "one")
    broker.send(StreamEnd(publication))
    assert broker.data(publication, api.PublishLogsResponse)
    assert broker.ending(reader) is None


def test_a_node_that_comes_back_goes_on_after_the_last_line(broker: LogBrokerHarness) -> None:
    listener = broker.listen("n1")
    reader = broker.read(follow=True, task_ids=["t1"], tail=-11)
    asked = broker.asked(listener)[0]
    publication = broker.publish("n1")
    for i in (1, 2):
        broker.line(publication, asked.id, "n1", "t1", str(i), at_s=i)
    broker.send(StreamEnd(publication, Unavailable("connection lost")))
    broker.send(StreamEnd(listener, Unavailable("connection lost")))
    closing, again = broker.asked(broker.listen("n1"))
    assert (closing.id, closing.close) == (asked.id, True)
    assert again.id != asked.id
    assert (again.options.since.seconds, again.options.tail, again.options.follow) == (2, 0, True)
    publication = broker.publish("n1")
    for i in (2, 3):
        broker.line(publication, again.id, "n1", "t1", str(i), at_s=i)
    assert broker.lines(reader) == ["1", "2", "3"]


def test_without_follow_a_lost_node_is_waited_for_only_so_long(broker: LogBrokerHarness) -> None:
    listener = broker.listen("n1")
    reader = broker.read(task_ids=["t1"])
    broker.send(StreamEnd(listener))
    broker.pass_time(defaults.LOG_RECONNECT_WAIT_S - 1)
    assert broker.take(reader) == []
    again = broker.listen("n1")
    assert [m.close for m in broker.asked(again)] == [True, False]
    broker.pass_time(100.0)
    assert broker.take(reader) == []
    broker.send(StreamEnd(again))
    broker.pass_time(defaults.LOG_RECONNECT_WAIT_S)
    assert str(broker.ending(reader)) == NOT_COMPLETE + "node n1 disconnected unexpectedly"


def test_the_old_stream_of_a_node_that_already_came_back_does_not_matter(broker: LogBrokerHarness) -> None:
    old = broker.listen("n1")
    reader = broker.read(task_ids=["t1"])
    new = broker.listen("n1")
    asked = broker.asked(new)[-1]
    broker.send(StreamEnd(old))
    assert broker.broker.deadline() is None
    broker.close(broker.publish("n1"), asked.id)
    assert broker.ending(reader) is None


def test_the_end_of_leadership_ends_everything(broker: LogBrokerHarness) -> None:
    listener = broker.listen("n1")
    reader = broker.read(follow=True, service_ids=["s1"])
    publication = broker.publish("n1")
    broker.perform(broker.broker.stop())
    for stream in (listener, reader, publication, broker.listen("n1")):
        assert broker.error(stream).code == Code.ABORTED


def test_the_number_of_readers_is_limited(broker: LogBrokerHarness) -> None:
    for _ in range(defaults.LOG_SUBSCRIPTIONS_MAX):
        broker.read(follow=True, service_ids=["s1"])
    assert broker.error(broker.read(follow=True, service_ids=["s1"])).code == Code.RESOURCE_EXHAUSTED


def test_nothing_is_left_behind_when_everyone_is_gone(broker: LogBrokerHarness) -> None:
    before = repr(sorted((k, str(v)) for k, v in vars(broker.broker).items() if isinstance(v, dict) and k != "_calls"))
    listener = broker.listen("n1")
    reader = broker.read(follow=True, service_ids=["s1"], node_ids=["n9"])
    publication = broker.publish("n1")
    broker.line(publication, broker.asked(listener)[0].id, "n1", "t1", "x")
    broker.send(StreamEnd(reader))
    broker.send(StreamEnd(publication))
    broker.send(StreamEnd(listener))
    after = repr(sorted((k, str(v)) for k, v in vars(broker.broker).items() if isinstance(v, dict) and k != "_calls"))
    assert after == before
