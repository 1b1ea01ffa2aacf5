"""Publication of logs over a fake engine and a fake call to the managers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

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


class Bench:
    """A publisher over a fake engine."""

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
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with FakeEngine(tmp_path) as engine:
        client = EngineClient(engine.host)
        made = Bench(engine, client)
        yield made
        await made.publisher.close()
        await client.close()


async def test_all_tasks_are_published_and_the_end_is_told(bench: Bench) -> None:
    bench.publish(bench.container(1, "a\n", "b\n"), bench.container(2, "c\n"))
    assert await bench.ended.get() == LogsEnded("sub")
    assert sorted(bench.sink.lines) == [b"a\n", b"b\n", b"c\n"]
    assert bench.sink.closed.is_set()


async def test_nothing_to_publish_ends_at_once(bench: Bench) -> None:
    bench.publish()
    assert await bench.ended.get() == LogsEnded("sub")
    assert bench.sink.closed.is_set()


async def test_a_task_that_cannot_be_read_does_not_keep_the_others(bench: Bench) -> None:
    gone, good, bad = bench.container(1, "x\n"), bench.container(2, "a\n"), bench.container(3)
    del bench.engine.containers["web.1.t1"]
    bench.engine.logs["web.3.t3"] = b"\x09 nonsense"
    bench.publish(gone, good, bad)
    await bench.ended.get()
    assert bench.sink.lines == [b"a\n"]


async def test_an_engine_that_is_away_ends_what_is_not_followed(bench: Bench) -> None:
    task = bench.container(1, "a\n")
    await bench.engine.stop()
    bench.publish(task)
    await bench.ended.get()
    assert bench.sink.closed.is_set()


async def test_following_stays_open_for_tasks_that_come_later(bench: Bench) -> None:
    first, second = bench.container(1, "a\n"), bench.container(2, "b\n", status="created")
    bench.publish(first, follow=True)
    bench.publish(first, second, follow=True)
    running = asyncio.create_task(bench.watch.run())
    await bench.engine.followed.wait()
    await bench.sink.has(b"a\n")
    bench.engine.containers["web.2.t2"]["State"]["Status"] = "running"
    bench.engine.tell("web.2.t2", "start")
    await bench.sink.has(b"a\n", b"b\n")
    bench.publisher.stop("sub")
    await bench.sink.closed.wait()
    assert await bench.ended.get() == LogsEnded("sub")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reader_that_lost_the_engine_goes_on_after_its_last_line(bench: Bench) -> None:
    running = asyncio.create_task(bench.watch.run())
    await bench.engine.followed.wait()
    bench.engine.logs_cut = True
    bench.publish(bench.container(1, "a\n"), follow=True)
    await bench.sink.has(b"a\n")
    bench.engine.logs_cut = False
    bench.engine.logs["web.1.t1"] = frame(1, "b\n")
    bench.engine.lose_events()
    await bench.sink.has(b"a\n", b"b\n")
    assert bench.engine.queries["GET /containers/web.1.t1/logs"]["since"] == "1795359120.000000001"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_broken_call_ends_the_publication(bench: Bench) -> None:
    bench.sink.broken = True
    bench.publish(bench.container(1, "a\n"), bench.container(2, "b\n"))
    assert await bench.ended.get() == LogsEnded("sub")


async def test_a_call_that_cannot_be_opened_ends_the_publication(bench: Bench) -> None:
    bench.refused = True
    bench.publish(bench.container(1, "a\n"))
    assert await bench.ended.get() == LogsEnded("sub")
    assert bench.sink.lines == []


async def test_a_subscription_may_come_again_while_its_old_publication_ends(bench: Bench) -> None:
    task = bench.container(1, "a\n")
    bench.publish(task, follow=True)
    bench.publisher.stop("sub")
    bench.publisher.stop("sub")
    bench.publish(task)
    assert await bench.ended.get() == LogsEnded("sub")
    assert bench.ended.empty()
    assert bench.sink.lines == [b"a\n"]


async def test_many_lines_travel_together(bench: Bench) -> None:
    bench.publish(bench.container(1, *(["x\n"] * 9)))
    await bench.ended.get()
    assert max(bench.sink.sizes) > 1


async def test_the_rate_is_limited_after_the_first_second_s_worth() -> None:
    limit = logs.RateLimit(1000)
    await limit.take(1000)
    waiting = asyncio.create_task(limit.take(10_000_000))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
