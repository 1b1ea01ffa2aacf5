"""Publishes the output of tasks to the managers that requested it.

There is one publication per subscription, with a reader for each of its tasks. A reader ends with its container's log,
or when the container cannot be read; the other readers continue. With follow, a publication stays open for later tasks,
and a reader that lost the engine continues after the last line that it read. The manager is told about the end of a
publication, whatever its reason.

(swarmkit: agent/worker.go, Subscribe; moby: daemon/cluster/executor/container/controller.go, Logs)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.executor import logframes, status
from engine_api.executor.container import container_name
from engine_api.executor.watch import ContainerWatch
from swarm import api, defaults
from swarm.agent.events import LogsEnded, PublishLogs
from swarm.errors import SwarmError

log = structlog.get_logger(__name__)


class LogSink(Protocol):
    """An open LogBroker/PublishLogs call. Both methods raise SwarmError when the call is broken."""

    async def send(self, message: api.PublishLogsMessage) -> None:
        """Send one message; return when there is room for the next one."""
        ...

    async def close(self) -> None:
        """End our side of the call and wait for the answer."""
        ...


OpenSink = Callable[[str], Awaitable[LogSink]]


class LogPublisher:
    """All publications of this node. open_sink: opens the call for a subscription ID; raises SwarmError."""

    def __init__(
        self,
        engine: EngineClient,
        watch: ContainerWatch,
        open_sink: OpenSink,
        emit: Callable[[LogsEnded], None],
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._open_sink = open_sink
        self._emit = emit
        self._publications: dict[str, _Publication] = {}
        self._jobs: set[asyncio.Task[None]] = set()

    def publish(self, effect: PublishLogs) -> None:
        """Start a publication, or add tasks to one."""
        publication = self._publications.get(effect.subscription.id)
        if publication is None:
            publication = self._begin(effect.subscription)
        publication.add(effect.tasks)

    def _begin(self, subscription: api.SubscriptionMessage) -> _Publication:
        publication = _Publication(self._engine, self._watch, subscription)
        job = asyncio.create_task(publication.run(self._open_sink))
        publication.job = job
        self._publications[subscription.id] = publication
        self._jobs.add(job)
        job.add_done_callback(lambda job: self._ended(subscription.id, publication, job))
        return publication

    def stop(self, subscription_id: str) -> None:
        """End a publication, if there is one. The same subscription may be published again at once."""
        publication = self._publications.pop(subscription_id, None)
        if publication is not None and publication.job is not None:
            publication.job.cancel()

    async def close(self) -> None:
        """End all publications."""
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def _ended(self, subscription_id: str, publication: _Publication, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        if self._publications.get(subscription_id) is publication:
            del self._publications[subscription_id]
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("logs.publication_failed", subscription=subscription_id, exc_info=error)
        if subscription_id not in self._publications:
            self._emit(LogsEnded(subscription_id))


class _Publication:
    """One subscription being served."""

    def __init__(self, engine: EngineClient, watch: ContainerWatch, subscription: api.SubscriptionMessage) -> None:
        self.job: asyncio.Task[None] | None = None
        self._engine = engine
        self._watch = watch
        self._id = subscription.id
        self._options = subscription.options
        self._known: set[str] = set()
        self._added: asyncio.Queue[api.Task] = asyncio.Queue()
        self._sending = asyncio.Lock()

    def add(self, tasks: tuple[api.Task, ...]) -> None:
        """Publish the logs of these tasks too."""
        for task in tasks:
            if task.id not in self._known:
                self._known.add(task.id)
                self._added.put_nowait(task)

    async def run(self, open_sink: OpenSink) -> None:
        """Run until all logs are sent; with follow, until cancelled or the sink breaks."""
        try:
            sink = await open_sink(self._id)
        except SwarmError as error:
            log.info("logs.refused", subscription=self._id, error=str(error))
            return
        try:
            async with asyncio.TaskGroup() as readers:
                while self._options.follow or not self._added.empty():
                    readers.create_task(self._read(await self._added.get(), sink))
        except* SwarmError as errors:
            log.info("logs.broken", subscription=self._id, error=str(errors.exceptions[0]))
        finally:
            await self._finish(sink)

    async def _finish(self, sink: LogSink) -> None:
        with contextlib.suppress(SwarmError, TimeoutError):
            async with asyncio.timeout(defaults.LOG_CLOSE_TIMEOUT_S):
                await sink.send(api.PublishLogsMessage(subscription_id=self._id, close=True))
                await sink.close()

    async def _read(self, task: api.Task, sink: LogSink) -> None:
        """Publish the log of one task. Raises only what the sink raises."""
        options = api.LogSubscriptionOptions()
        options.CopyFrom(self._options)
        limit = RateLimit(defaults.LOG_BYTES_PER_S)
        with self._watch.subscribe(task.id) as changes:
            while True:
                try:
                    if options.follow:
                        await self._readable(task, changes.clear, changes.wait)
                    await self._copy(task, options, sink, limit)
                    return
                except EngineError as error:
                    log.info("logs.unreadable", task=task.id, error=error.message)
                    return
                except EngineUnavailable as error:
                    log.info("logs.engine_away", task=task.id, error=str(error))
                    if not options.follow:
                        return
                changes.clear()
                await changes.wait(defaults.EXECUTOR_RECONNECT_MAX_S)

    async def _readable(self, task: api.Task, clear: Callable[[], None], wait: Callable[[], Awaitable[None]]) -> None:
        """Wait until the container is started: before that it has no log to follow."""
        while True:
            clear()
            try:
                container = await self._engine.inspect_container(container_name(task))
                if not status.is_created(container):
                    return
            except EngineError as error:
                if error.status != 404:
                    raise
            await wait()

    async def _copy(self, task: api.Task, options: api.LogSubscriptionOptions, sink: LogSink, limit: RateLimit) -> None:
        name = container_name(task)
        tty = bool((await self._engine.inspect_container(name))["Config"]["Tty"])
        context = api.LogContext(service_id=task.service_id, node_id=task.node_id, task_id=task.id)
        parser = logframes.LogParser(context, tty)
        async with self._engine.logs(name, logframes.query(options)) as chunks:
            batch = _Batch(self._id)
            async for chunk in chunks:
                for message in parser.feed(chunk):
                    batch.add(message)
                    if batch.size >= defaults.LOG_BATCH_BYTES_MAX:
                        await self._send(batch, options, sink, limit)
                await self._send(batch, options, sink, limit)
            for message in parser.finish():
                batch.add(message)
            await self._send(batch, options, sink, limit)

    async def _send(self, batch: _Batch, options: api.LogSubscriptionOptions, sink: LogSink, limit: RateLimit) -> None:
        """Send a batch, and remember the position in case the reader must start again."""
        size, message = batch.take()
        if not message.messages:
            return
        await limit.take(size)
        async with self._sending:
            await sink.send(message)
        last = message.messages[-1].timestamp
        if last.seconds:
            options.since.FromNanoseconds(last.ToNanoseconds() + 1)
            options.tail = 0


class _Batch:
    """Messages to be sent together."""

    def __init__(self, subscription_id: str) -> None:
        self._id = subscription_id
        self._message = api.PublishLogsMessage(subscription_id=subscription_id)
        self.size = 0

    def add(self, message: api.LogMessage) -> None:
        self._message.messages.append(message)
        self.size += message.ByteSize()

    def take(self) -> tuple[int, api.PublishLogsMessage]:
        """Return the size in bytes and the message; start a new batch."""
        size, message = self.size, self._message
        self.size, self._message = 0, api.PublishLogsMessage(subscription_id=self._id)
        return size, message


class RateLimit:
    """A token bucket with a capacity of one second, full at the start."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._tokens = float(bytes_per_s)
        self._at = asyncio.get_running_loop().time()

    async def take(self, count: int) -> None:
        """Wait until ``count`` bytes may pass. They may overdraw the bucket; then the next caller waits longer."""
        clock = asyncio.get_running_loop().time
        now = clock()
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate) - count
        self._at = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate)
