"""Logs of tasks, as streams through managers that may not lead: nothing of a stream is lost, unless its reader is told.

Every task has the same few lines, each with its number. The node of a task publishes them through whichever manager its
agent is connected to, a reader subscribes to them through any other one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from swarm import api
from swarm.agent.agent import AgentEvent
from swarm.agent.events import LogsEnded, PublishLogs
from swarm.api.timestamps import nanoseconds, stamp
from swarm.rpc import LOCAL, Call, StreamData, StreamEnd
from tests.sim.kernel import Future, Kernel, Script
from tests.sim.keys import EPOCH
from tests.sim.network import Answer, Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarm.io.node.agent_process import LocalLink
    from tests.sim.process import Process
    from tests.sim.world import World

LINES = 8
READ_LIMIT_S = 20.0
RATE = 2.0
_STREAMS = itertools.count(1 << 42)


class Publisher:
    """What an agent's node does with PublishLogs."""

    def __init__(self, process: Process, put: Callable[[AgentEvent], None]) -> None:
        self._process = process
        self._put = put
        self._rng = process.random("logs")
        self._stopped: dict[str, None] = {}

    def publish(self, link: Connection | LocalLink | None, effect: PublishLogs) -> None:
        """Send the lines of the tasks that are asked for, whether the agent has them or not."""
        if link is not None:
            self._process.run(self._publish(link, effect.subscription))

    def stop(self, subscription_id: str) -> None:
        """The reader is gone."""
        self._stopped[subscription_id] = None

    def _publish(self, link: Connection | LocalLink, subscription: api.SubscriptionMessage) -> Script:
        stream, ended = next(_STREAMS), Future()

        def listen(answer: Answer) -> None:
            if not isinstance(answer, StreamData):
                ended.resolve()

        link.open(Call(stream, "LogBroker/PublishLogs", None), listen)
        for message in self._messages(subscription):
            if ended.done or subscription.id in self._stopped:
                break
            link.send(StreamData(stream, message))
            if self._rng.random() < 0.5:
                yield self._process.kernel.sleep(self._rng.expovariate(1 / 0.005))
        link.send(StreamData(stream, api.PublishLogsMessage(subscription_id=subscription.id, close=True)))
        link.send(StreamEnd(stream))
        yield ended
        self._put(LogsEnded(subscription.id))

    def _messages(self, subscription: api.SubscriptionMessage) -> Iterator[api.PublishLogsMessage]:
        options = subscription.options
        since_ns = nanoseconds(options.since) if options.HasField("since") else 0
        message = api.PublishLogsMessage(subscription_id=subscription.id)
        for task_id in subscription.selector.task_ids:
            for number in range(1, LINES + 1):
                line = api.LogMessage(data=b"%d" % number)
                line.context.node_id, line.context.task_id = self._process.node_id, task_id
                stamp(line.timestamp, EPOCH + number)
                if nanoseconds(line.timestamp) < since_ns:
                    continue
                message.messages.append(line)
                if self._rng.random() < 0.6:
                    yield message
                    message = api.PublishLogsMessage(subscription_id=subscription.id)
        if message.messages:
            yield message


class Readers:
    """Clients that read logs while ``world.faulty``. complete: how many got everything."""

    def __init__(self, world: World) -> None:
        self.complete = 0
        self._world = world
        self._kernel: Kernel = world.kernel
        self._rng = Random(f"{world.kernel.seed}/readers")

    def start(self) -> None:
        """From now on."""
        self._kernel.at(self._rng.expovariate(RATE), self._act)

    def _act(self) -> None:
        if self._world.faulty:
            self._read()
            self.start()

    def _read(self) -> None:
        """The logs of one task, as this manager knows it, through this manager."""
        managing = [node for node in self._world.managing() if node.manager is not None and node.manager.driver]
        if not managing:
            return
        manager = self._rng.choice(managing).manager
        assert manager is not None
        tasks = [task for task in manager.store.all(api.Task) if task.status.state == api.RUNNING]
        if not tasks:
            return
        task_id = self._rng.choice(tasks).id
        request = api.SubscribeLogsRequest(selector=api.LogSelector(task_ids=[task_id]))
        request.options.SetInParent()
        reading = _Reading(self, task_id)
        stream = manager.local.open("Logs/SubscribeLogs", request, LOCAL, reading.hear)
        self._kernel.at(READ_LIMIT_S, lambda: manager.local.cancel(stream))


class _Reading:
    def __init__(self, readers: Readers, task_id: str) -> None:
        self._readers = readers
        self._task_id = task_id
        self._seen = 0

    def hear(self, answer: Answer) -> None:
        """An answer to SubscribeLogs. Lines may come twice, after a connection broke, but none may be missing."""
        if isinstance(answer, StreamData):
            assert isinstance(answer.message, api.SubscribeLogsMessage)
            for line in answer.message.messages:
                number = int(line.data)
                assert number <= self._seen + 1, f"logs of {self._task_id}: line {number} comes after {self._seen}"
                self._seen = max(self._seen, number)
        elif isinstance(answer, StreamEnd) and answer.error is None:
            # a task that the leader does not know has no lines
            assert self._seen in (0, LINES), f"logs of {self._task_id} end after line {self._seen} as if complete"
            self._readers.complete += self._seen == LINES
