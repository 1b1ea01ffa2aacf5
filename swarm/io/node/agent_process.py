"""Everything around one Agent machine: connections to managers, the journal, and the executor beside it.

(swarmkit: agent/agent.go, agent/session.go)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog
from google.protobuf.message import Message

from swarm import api, defaults
from swarm.agent import events
from swarm.agent.agent import Agent, AgentEffect, AgentEvent
from swarm.agent.connection import ManagerConnection
from swarm.api import rpc
from swarm.api.methods import Method, Req, Res
from swarm.errors import SwarmError, Unavailable
from swarm.io.disk.raft_disk import TaskJournal
from swarm.io.grpc import client
from swarm.io.node.local_calls import LocalCalls
from swarm.io.process import Clock, Inbox, drive
from swarm.rpc import Call, Peer, Reply, StreamData, StreamEnd

log = structlog.get_logger()

TaskEffect = events.Execute | events.CancelStep | events.PublishLogs | events.StopLogs | events.Sweep | events.Networks


class TaskRunner(Protocol):
    """What the agent needs of an executor (engine_api.executor.executor)."""

    def perform(self, effect: TaskEffect) -> None:
        """Begin one effect; its outcome comes back as an event."""
        ...


class Link(Protocol):
    """An open connection to a manager, remote or in this process."""

    def open(self, call: Call, listener: Callable[[Reply | StreamData | StreamEnd], None]) -> None:
        """Begin a call of the agent; answers carry the agent's stream number."""
        ...

    def send(self, event: StreamData | StreamEnd) -> None:
        """One more message of a client stream, or its end."""
        ...

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """A unary call beside those of the agent. Raises SwarmError."""
        ...

    async def client_stream(self, method: Method[Req, Res], messages: AsyncIterator[Req]) -> Res | None:
        """Send a whole stream (logs)."""
        ...

    def close(self) -> None:
        """Close it, with all calls that are open on it."""
        ...


class LocalLink:
    """To the manager in this process."""

    def __init__(self, calls: LocalCalls, peer: Peer) -> None:
        self._calls = calls
        self._peer = peer
        self._streams: dict[int, int] = {}

    def open(self, call: Call, listener: Callable[[Reply | StreamData | StreamEnd], None]) -> None:
        """See Link.open."""

        def relay(answer: Reply | StreamData | StreamEnd) -> None:
            match answer:
                case Reply(message=message):
                    self._streams.pop(call.stream, None)
                    listener(Reply(call.stream, message))
                case StreamData(message=message):
                    listener(StreamData(call.stream, message))
                case StreamEnd(error=error):
                    self._streams.pop(call.stream, None)
                    listener(StreamEnd(call.stream, error))

        self._streams[call.stream] = self._calls.open(call.method, call.request, self._peer, relay)

    def send(self, event: StreamData | StreamEnd) -> None:
        """See Link.send."""
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        if isinstance(event, StreamData):
            self._calls.send(StreamData(stream, event.message))
        else:
            self._calls.send(StreamEnd(stream, event.error))

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """See Link.call."""
        return await self._calls.unary(method, request, defaults.CALL_DEADLINE_S, self._peer)

    async def client_stream(self, method: Method[Req, Res], messages: AsyncIterator[Req]) -> Res | None:
        """See Link.client_stream."""
        future: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()

        def listen(answer: Reply | StreamData | StreamEnd) -> None:
            if future.done():
                return
            if isinstance(answer, Reply):
                future.set_result(answer.message)
            elif isinstance(answer, StreamEnd):
                future.set_exception(answer.error) if answer.error else future.set_result(None)

        stream = self._calls.open(method.name, None, self._peer, listen)
        try:
            async for message in messages:
                if future.done():
                    break
                self._calls.send(StreamData(stream, message))
                await self._calls.writable(stream)
            self._calls.send(StreamEnd(stream))
            answer = await future
            return None if answer is None else method.checked_response(answer)
        finally:
            self._calls.cancel(stream)

    def close(self) -> None:
        """See Link.close."""
        for stream in self._streams.values():
            self._calls.cancel(stream)
        self._streams.clear()


class LogSink:
    """One publication of logs; send() waits for room, so that a slow manager slows the reader down."""

    def __init__(self, link: Link) -> None:
        self._queue: asyncio.Queue[api.PublishLogsMessage | None] = asyncio.Queue(defaults.LOG_SINK_MESSAGES_MAX)
        self._call = asyncio.create_task(link.client_stream(rpc.PUBLISH_LOGS, self._messages()))

    async def _messages(self) -> AsyncIterator[api.PublishLogsMessage]:
        while (message := await self._queue.get()) is not None:
            yield message

    async def send(self, message: api.PublishLogsMessage) -> None:
        """Send one message. Raises SwarmError when the call has ended."""
        await self._put(message)

    async def _put(self, message: api.PublishLogsMessage | None) -> None:
        putting = asyncio.ensure_future(self._queue.put(message))
        await asyncio.wait({putting, self._call}, return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            await self._call
            raise Unavailable("the manager ended the publication of logs")

    async def close(self) -> None:
        """No more messages: wait for the manager's answer. Raises SwarmError."""
        await self._put(None)
        await self._call


@dataclass
class AgentHooks:
    """What the agent needs of the rest of the node, and its reports to it.

    connect: opens a connection (an empty address: this node's own manager); raises SwarmError or OSError.
    """

    connect: Callable[[events.Connect], Awaitable[Link]]
    on_session: Callable[[events.SessionState], None]
    on_update: Callable[[events.SessionUpdate], None]
    on_left: Callable[[], None]


class AgentProcess:
    """One agent. put() feeds it events; close() ends it, containers go on.

    An agent that fails is replaced by a new one from its journal, as after a restart of the daemon. The new agent gets
    the last facts about the node again. If new agents fail as well, the pauses become longer, and the error is shown.
    """

    def __init__(
        self, make: Callable[[float, Mapping[str, bytes]], Agent], journal: TaskJournal, hooks: AgentHooks, clock: Clock
    ) -> None:
        """make: an agent, given the present and what the journal holds."""
        self._make = make
        self._journal = journal
        self._facts: dict[str, AgentEvent] = {}
        self._hooks = hooks
        self._clock = clock
        self._inbox: Inbox[AgentEvent] = Inbox()
        self._connection: ManagerConnection[Link] = ManagerConnection(self._inbox.put)
        self._dialing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.runner: TaskRunner | None = None

    def put(self, event: AgentEvent) -> None:
        """An event for the agent, from the executor or the node."""
        match event:
            case events.Described() | events.LocalManager() | events.Leave():
                self._facts[type(event).__name__] = event
            case events.EngineGone() | events.EngineBack():
                self._facts["engine"] = event
        self._inbox.put(event)

    async def start(self) -> None:
        """Begin; ``runner`` must be set. Raises DiskError, DiskCorrupt."""
        self._task = asyncio.create_task(self._run(await self._new_agent()), name="agent")

    async def _new_agent(self) -> Agent:
        journal = await asyncio.to_thread(self._journal.load)
        return self._make(self._clock.now(), journal)

    async def _run(self, agent: Agent | None) -> None:
        failures = 0
        while True:
            began = self._clock.now()
            try:
                agent = agent or await self._again()
                await drive(agent, self._inbox, self._perform, self._clock)
            except Exception as error:
                failures = 1 if self._clock.now() - began > defaults.ROLE_START_PAUSE_MAX_S else min(failures + 1, 20)
                pause_s = min(defaults.ROLE_START_PAUSE_MAX_S, defaults.ROLE_START_PAUSE_S * 2**failures)
                log.exception("agent.failed", retry_s=pause_s)
                self._drop_link()
                text = f"the agent of this node failed, its log says why: {type(error).__name__}"
                self._hooks.on_session(events.SessionState(error=text))
            agent = None
            await asyncio.sleep(pause_s)

    async def _again(self) -> Agent:
        """A new agent. It gets the last facts about the node again; other events were for the agent before it."""
        agent = await self._new_agent()
        while self._inbox.pop() is not None:
            pass
        for fact in self._facts.values():
            self._inbox.put(fact)
        return agent

    async def close(self) -> None:
        """End the agent and its connection."""
        self._drop_link()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def open_log_sink(self, subscription_id: str) -> LogSink:
        """An open LogBroker/PublishLogs call over the present connection. Raises SwarmError."""
        if self._connection.link is None:
            raise Unavailable("no connection to a manager")
        return LogSink(self._connection.link)

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """One RPC over the present connection. Raises SwarmError."""
        if self._connection.link is None:
            raise Unavailable("no connection to a manager")
        return await self._connection.link.call(method, request)

    # --- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, effect: AgentEffect) -> None:
        match effect:
            case (
                events.Execute()
                | events.CancelStep()
                | events.PublishLogs()
                | events.StopLogs()
                | events.Sweep()
                | events.Networks()
            ):
                assert self.runner is not None
                self.runner.perform(effect)
            case Call():
                self._connection.call(effect)
            case StreamData() | StreamEnd():
                self._connection.send(effect)
            case events.Connect():
                self._drop_link()
                self._connection.begin(effect)
                self._dialing = asyncio.create_task(self._dial(effect), name="agent-dial")
            case events.Disconnect():
                self._drop_link()
            case events.Journal(puts=puts, drops=drops):
                self._journal.submit(puts, drops)
            case events.SessionUpdate():
                self._hooks.on_update(effect)
            case events.SessionState():
                self._hooks.on_session(effect)
            case events.Left():
                self._hooks.on_left()

    async def _dial(self, effect: events.Connect) -> None:
        try:
            async with asyncio.timeout(defaults.RPC_DIAL_TIMEOUT_S):
                link = await self._hooks.connect(effect)
        except (SwarmError, OSError, TimeoutError) as error:
            self._connection.failed(effect, str(error) or type(error).__name__)
        else:
            self._connection.connected(effect, link)

    def connection_lost(self, link: Link, error: str) -> None:
        """A link broke by itself."""
        self._connection.lost(link, error)

    def _drop_link(self) -> None:
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
        self._connection.drop()


class RemoteLink:
    """To a manager elsewhere, over TLS."""

    def __init__(self, connection: client.ClientConnection) -> None:
        self._connection = connection

    def open(self, call: Call, listener: Callable[[Reply | StreamData | StreamEnd], None]) -> None:
        """See Link.open."""
        self._connection.open(call, listener)

    def send(self, event: StreamData | StreamEnd) -> None:
        """See Link.send."""
        self._connection.send(event)

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """See Link.call."""
        return await self._connection.unary(method, request, defaults.CALL_DEADLINE_S)

    async def client_stream(self, method: Method[Req, Res], messages: AsyncIterator[Req]) -> Res | None:
        """See Link.client_stream."""
        return await self._connection.client_stream(method, messages)

    def close(self) -> None:
        """See Link.close."""
        self._connection.close()
