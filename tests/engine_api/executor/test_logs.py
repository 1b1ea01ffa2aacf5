"""Publication of logs over a fake engine and a fake call to the managers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from engine_api.engine.client import EngineClient
from engine_api.executor import logs
from engine_api.executor.logs import LogPublisher, LogSink
from engine_api.executor.watch import ContainerWatch
from swarm import api
from swarm.agent.events import LogsEnded, PublishLogs
from swarm.errors import Unavailable
from tests.engine_api.fake_engine import FakeEngine

STAMP = "2026-11-22T14:52:0{}.000000000Z  "


def frame(number: int, text: str) -> bytes:
    payload = (STAMP.format(number) + text).encode()
    return b"\x01\0\0\0" + len(payload).to_bytes(4, "big") + payload


class Sink:
    """A call that takes everything, until it breaks."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.sizes: list[int] = []
        self.closed = asyncio.Event()
        self.broken = False
        self._grown = asyncio.Event()

    async def has(self, *lines: bytes) -> None:
        while self.lines != list(lines):
            self._grown.clear()
            await self._grown.wait()

    async def send(self, message: api.PublishLogsMessage) -> None:
        if self.broken:
            raise Unavailable("the manager is gone")
        assert message.subscription_id == "sub"
        self.lines += [entry.data for entry in message.messages]
        self.sizes.append(len(message.messages))
        self._grown.set()
        if message.close:
            self.closed.set()

    async def close(self) -> None:
        assert self.closed.is_set()


class LogPublisherHarness:
    """Drives a LogPublisher and a ContainerWatch on a fake engine."""

    def __init__(self, engine: FakeEngine, client: EngineClient) -> None:
        self.engine = engine
        self.sink = Sink()
        self.refused = False
        self.ended: asyncio.Queue[LogsEnded] = asyncio.Queue()
        self.watch = ContainerWatch(client)
        self.publisher = LogPublisher(client, self.watch, self._open, self.ended.put_nowait)

    async def _open(self, subscription_id: str) -> LogSink:
        if self.refused:
            raise Unavailable("no manager")
        return self.sink

    def publish(self, *tasks: api.Task, follow: bool = False) -> None:
        message = api.SubscriptionMessage(id="sub")
        message.options.follow = follow
        self.publisher.publish(PublishLogs(message, tasks))

    def container(self, number: int, *lines: str, status: str = "running") -> api.Task:
        task = api.Task(id=f"t{number}", slot=number, node_id="n1", service_id="s1")
        task.service_annotations.name = "web"
        name = f"web.{number}.t{number}"
        labels = {"com.docker.swarm.task": "", "com.docker.swarm.task.id": task.id}
        self.engine.add_container(name, {"Labels": labels})
        self.engine.containers[name]["State"]["Status"] = status
        self.engine.logs[name] = b"".join(frame(i, text) for i, text in enumerate(lines))
        return task


@pytest.fixture
async def harness(engine: FakeEngine, client: EngineClient) -> AsyncIterator[LogPublisherHarness]:
    made = LogPublisherHarness(engine, client)
    yield made
    await made.publisher.close()


async def test_the_logs_of_all_tasks_are_published_and_their_end_is_reported(harness: LogPublisherHarness) -> None:
    harness.publish(harness.container(1, "a\n", "b\n"), harness.container(2, "c\n"))
    assert await harness.ended.get() == LogsEnded("sub")
    assert sorted(harness.sink.lines) == [b"a\n", b"b\n", b"c\n"]
    assert harness.sink.closed.is_set()


async def test_nothing_to_publish_ends_at_once(harness: LogPublisherHarness) -> None:
    harness.publish()
    assert await harness.ended.get() == LogsEnded("sub")
    assert harness.sink.closed.is_set()


async def test_a_task_that_cannot_be_read_does_not_keep_the_others(harness: LogPublisherHarness) -> None:
    gone, good, bad = harness.container(1, "x\n"), harness.container(2, "a\n"), harness.container(3)
    del harness.engine.containers["web.1.t1"]
    harness.engine.logs["web.3.t3"] = b"\x09 nonsense"
    harness.publish(gone, good, bad)
    await harness.ended.get()
    assert harness.sink.lines == [b"a\n"]


async def test_an_engine_that_is_away_ends_what_is_not_followed(harness: LogPublisherHarness) -> None:
    task = harness.container(1, "a\n")
    await harness.engine.stop()
    harness.publish(task)
    await harness.ended.get()
    assert harness.sink.closed.is_set()


async def test_following_stays_open_for_tasks_that_come_later(harness: LogPublisherHarness) -> None:
    first, second = harness.container(1, "a\n"), harness.container(2, "b\n", status="created")
    harness.publish(first, follow=True)
    harness.publish(first, second, follow=True)
    running = asyncio.create_task(harness.watch.run())
    await harness.engine.followed.wait()
    await harness.sink.has(b"a\n")
    harness.engine.containers["web.2.t2"]["State"]["Status"] = "running"
    harness.engine.tell("web.2.t2", "start")
    await harness.sink.has(b"a\n", b"b\n")
    harness.publisher.stop("sub")
    await harness.sink.closed.wait()
    assert await harness.ended.get() == LogsEnded("sub")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reader_that_lost_the_engine_goes_on_after_its_last_line(harness: LogPublisherHarness) -> None:
    running = asyncio.create_task(harness.watch.run())
    await harness.engine.followed.wait()
    harness.engine.logs_cut = True
    harness.publish(harness.container(1, "a\n"), follow=True)
    await harness.sink.has(b"a\n")
    harness.engine.logs_cut = False
    harness.engine.logs["web.1.t1"] = frame(1, "b\n")
    harness.engine.lose_events()
    await harness.sink.has(b"a\n", b"b\n")
    assert harness.engine.queries["GET /containers/web.1.t1/logs"]["since"] == "1795359120.000000001"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_broken_call_ends_the_publication(harness: LogPublisherHarness) -> None:
    harness.sink.broken = True
    harness.publish(harness.container(1, "a\n"), harness.container(2, "b\n"))
    assert await harness.ended.get() == LogsEnded("sub")


async def test_a_call_that_cannot_be_opened_ends_the_publication(harness: LogPublisherHarness) -> None:
    harness.refused = True
    harness.publish(harness.container(1, "a\n"))
    assert await harness.ended.get() == LogsEnded("sub")
    assert harness.sink.lines == []


async def test_a_subscription_may_come_again_while_its_old_publication_ends(harness: LogPublisherHarness) -> None:
    task = harness.container(1, "a\n")
    harness.publish(task, follow=True)
    harness.publisher.stop("sub")
    harness.publisher.stop("sub")
    harness.publish(task)
    assert await harness.ended.get() == LogsEnded("sub")
    assert harness.ended.empty()
    assert harness.sink.lines == [b"a\n"]


async def test_many_lines_travel_together(harness: LogPublisherHarness) -> None:
    harness.publish(harness.container(1, *(["x\n"] * 9)))
    await harness.ended.get()
    assert max(harness.sink.sizes) > 1


async def test_the_rate_is_limited_after_the_first_second_s_worth() -> None:
    limit = logs.RateLimit(1000)
    await limit.take(1000)
    waiting = asyncio.create_task(limit.take(10_000_000))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
