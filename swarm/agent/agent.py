"""The agent of a node: its session with a manager, through which it receives assignments and reports statuses.

Theory of operation. The agent is always in one of four states: waiting (until ``_next_at``), dialling, registering (it
called Session and waits for the first message) or in session. In session, four streams and calls run side by side:
Session, Heartbeat, Assignments and ListenSubscriptions. If one of them fails, the session ends and the manager is
remembered as a bad choice. The agent tries another manager, with the last session ID, after a random delay; the upper
bound of that delay doubles up to 8 s. A new node description re-opens the session at once. Tasks (worker.py) run
independently of all this. Each new session reports all their statuses (reporter.py) again.

(swarmkit: agent/agent.go, agent/session.go)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.agent.discovery import Discovery
from swarm.agent.events import (
    CancelStep,
    Connect,
    Connected,
    ConnectionLost,
    Described,
    Disconnect,
    EngineBack,
    EngineGone,
    Execute,
    Executed,
    Journal,
    Leave,
    Left,
    LocalManager,
    LogsEnded,
    Networks,
    Observed,
    PublishLogs,
    SessionState,
    SessionUpdate,
    StopLogs,
    Sweep,
)
from swarm.agent.reporter import Reporter
from swarm.agent.worker import Worker, selects
from swarm.api import extensions, rpc
from swarm.api.equality import same_description
from swarm.api.methods import AnyMethod, Method, Req
from swarm.api.timestamps import seconds
from swarm.attention import Attention
from swarm.errors import Aborted, Code, DeadlineExceeded, SwarmError, Unavailable
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import copy_of

AgentEvent = (
    Connected
    | ConnectionLost
    | Reply
    | StreamData
    | StreamEnd
    | Described
    | LocalManager
    | Executed
    | Observed
    | LogsEnded
    | EngineGone
    | EngineBack
    | Leave
)
AgentEffect = (
    Connect
    | Disconnect
    | Call
    | StreamData
    | StreamEnd
    | Execute
    | CancelStep
    | Journal
    | Networks
    | PublishLogs
    | StopLogs
    | Sweep
    | SessionUpdate
    | SessionState
    | Left
)

_OPTIONAL = (rpc.LISTEN_SUBSCRIPTIONS, rpc.WATCH_NETWORKS)  # old managers, and all of stock, do not know them
_STATUSES = (rpc.UPDATE_TASK_STATUS, rpc.UPDATE_VOLUME_STATUS)


class Remotes(Protocol):
    """The part of swarm.node.remotes.Remotes that the agent uses. A manager is (node ID, address)."""

    def observe(self, manager: tuple[str, str], weight: int) -> None:
        """Record an experience with a manager: good (positive weight) or bad (negative)."""
        ...

    def observe_if_known(self, manager: tuple[str, str], weight: int) -> None:
        """The same, but only if the manager is known."""
        ...

    def keep_only(self, managers: Iterable[tuple[str, str]]) -> None:
        """Forget all others."""
        ...

    def choose(self, rng: Random, exclude: Iterable[str] = ()) -> tuple[str, str] | None:
        """A manager to try. exclude: node IDs."""
        ...

    def managers(self) -> list[tuple[str, str]]:
        """All known managers."""
        ...


@dataclass(slots=True)
class _Link:
    """One connection, from dialling to its end."""

    number: int
    manager: tuple[str, str] | None
    description: api.NodeDescription
    open_by: float | None
    registered: bool = False
    streams: dict[int, AnyMethod] = field(default_factory=dict)
    first_message_by: float | None = None
    heartbeat_at: float | None = None
    call_by: dict[int, float] = field(default_factory=dict)
    farewell: int = 0
    reference: str = ""

    @property
    def limits(self) -> list[float]:
        """By when the manager has to answer, in seconds since the epoch."""
        return [by for by in (self.open_by, self.first_message_by, *self.call_by.values()) if by is not None]

    def check(self, now: float) -> None:
        """Raises DeadlineExceeded when the manager has not answered in time."""
        if self.open_by is not None and now >= self.open_by:
            raise DeadlineExceeded("the manager could not be reached in time")
        if self.first_message_by is not None and now >= self.first_message_by:
            raise DeadlineExceeded("session initiation timed out")
        for stream, by in self.call_by.items():
            if now >= by:
                raise DeadlineExceeded(f"the manager did not answer {self.streams[stream].name} in time")

    def stalled(self, missed_s: float, now: float) -> None:
        """This process stood still: the manager's answers may wait in its sockets (swarm/attention.py)."""

        least = now + defaults.STALL_GRACE_S
        self.open_by = self.open_by and max(self.open_by + missed_s, least)
        self.first_message_by = self.first_message_by and max(self.first_message_by + missed_s, least)
        self.call_by = {stream: max(by + missed_s, least) for stream, by in self.call_by.items()}


class Agent:
    """Machine of a node that takes part in a cluster (swarm/machine.py).

    journal: the records that an earlier agent on this node wrote. session_id: that of the last session, if known.
    """

    def __init__(
        self,
        node_id: str,
        remotes: Remotes,
        rng: Random,
        now: float,
        journal: Mapping[str, bytes],
        session_id: str = "",
    ) -> None:
        self._node_id = node_id
        self._remotes = remotes
        self._rng = rng
        self._session_id = session_id
        self._worker = Worker(rng, journal)
        self._discovery = Discovery(journal, now)
        self._reporter = Reporter(self._worker.status)
        self._description: api.NodeDescription | None = None
        self._local_manager = False
        self._link: _Link | None = None
        self._connections = 0
        self._streams = 0
        self._backoff_s = 0.0
        self._not_reached: dict[str, None] = {}
        self._next_at: float | None = now
        self._told: SessionUpdate | None = None
        self._subscriptions: dict[str, api.SubscriptionMessage] = {}
        self._leaving = self._left = self._swept = False
        self._attention = Attention()
        self._unable = ""
        self._handlers: dict[type, Callable[[Any, float], list[AgentEffect]]] = {
            Connected: self._connected,
            ConnectionLost: self._connection_lost,
            Reply: self._reply,
            StreamData: self._stream_data,
            StreamEnd: self._stream_end,
            Described: self._described,
            LocalManager: self._local,
            Executed: self._executed,
            Observed: self._observed,
            LogsEnded: self._logs_ended,
            EngineGone: self._engine_gone,
            EngineBack: self._engine_back,
            Leave: self._leave,
        }

    @property
    def session_id(self) -> str:
        """ID of the current or last session; empty before the first one."""
        return self._session_id

    @property
    def registered(self) -> bool:
        """Whether a session is established."""
        return self._link is not None and self._link.registered

    def handle(self, event: AgentEvent | None, now: float) -> list[AgentEffect]:
        """See swarm.machine.Machine."""
        effects: list[AgentEffect] = []
        if (missed_s := self._attention.missed_s(now)) and self._link is not None:
            self._link.stalled(missed_s, now)
        try:
            if event is not None:
                effects += self._handlers[type(event)](event, now)
            effects += self._timers(now)
        except SwarmError as error:
            effects += self._fail(error, now)
        effects += self._work(now)
        self._attention.due = self.deadline()
        return effects

    def deadline(self) -> float | None:
        """See swarm.machine.Machine."""
        times = [self._worker.deadline(), self._discovery.deadline()]
        link = self._link
        if link is None:
            times.append(self._next_at if self._may_connect else None)
        else:
            times += [link.heartbeat_at, *link.limits]
            if link.registered:
                times.append(self._reporter.deadline())
        return min((t for t in times if t is not None), default=None)

    @property
    def _may_connect(self) -> bool:
        return self._description is not None and not self._unable

    # --- the connection --------------------------------------------------------------------------------------------

    def _timers(self, now: float) -> list[AgentEffect]:
        link = self._link
        if link is None:
            due = self._next_at is not None and now >= self._next_at and self._may_connect
            return self._connect(now) if due else []
        link.check(now)
        effects: list[AgentEffect] = []
        if link.heartbeat_at is not None and now >= link.heartbeat_at:
            link.heartbeat_at = None
            request = api.HeartbeatRequest(session_id=self._session_id)
            effects.append(self._call(link, rpc.HEARTBEAT, request, now + defaults.RPC_DIAL_TIMEOUT_S))
        if link.registered and (call := self._reporter.take(self._session_id, now)) is not None:
            effects.append(self._call(link, *call, now + defaults.STATUS_CALL_TIMEOUT_S))
        return effects

    def _connect(self, now: float) -> list[AgentEffect]:
        assert self._description is not None
        manager = None if self._local_manager else self._remotes.choose(self._rng, self._not_reached)
        self._next_at = None
        if manager is None and not self._local_manager:
            raise Unavailable("no remote hosts provided")
        self._connections += 1
        self._link = _Link(self._connections, manager, self._description, now + defaults.RPC_DIAL_TIMEOUT_S)
        node_id, addr = manager if manager is not None else (self._node_id, "")
        return [Connect(addr, node_id, self._connections)]

    def _connected(self, event: Connected, now: float) -> list[AgentEffect]:
        link = self._link
        if link is None or event.connection != link.number or link.open_by is None:
            return []
        link.open_by = None
        link.first_message_by = now + defaults.SESSION_FIRST_MESSAGE_S
        request = api.SessionRequest(description=link.description, session_id=self._session_id)
        return [self._call(link, rpc.SESSION, request)]

    def _connection_lost(self, event: ConnectionLost, now: float) -> list[AgentEffect]:
        if self._link is None or event.connection != self._link.number:
            return []
        raise Unavailable(event.error)

    def _fail(self, error: SwarmError, now: float) -> list[AgentEffect]:
        """End the session or the attempt, and plan the next one.

        After an unreachable manager there is no back-off while another one has not been tried since the last pause:
        the only reachable manager may be the last of many. (SwarmKit pauses after each, agent/agent.go.)
        """
        if self._link is not None and self._link.manager is not None:
            self._remotes.observe_if_known(self._link.manager, -defaults.MANAGER_WEIGHT)
            if self._link.open_by is not None:
                self._not_reached[self._link.manager[0]] = None
            else:
                self._not_reached.clear()
        effects = self._disconnect()
        pause_s = defaults.SESSION_BACKOFF_BASE_S
        if not self._not_reached or all(node_id in self._not_reached for node_id, _ in self._remotes.managers()):
            self._not_reached.clear()
            self._backoff_s = min(pause_s + 2 * self._backoff_s, defaults.SESSION_BACKOFF_MAX_S)
            pause_s = self._backoff_s
        self._next_at = now + self._rng.uniform(0.0, pause_s)
        return [*effects, SessionState(self._session_id, error.message or error.code.label, int(error.code))]

    def _disconnect(self) -> list[AgentEffect]:
        effects: list[AgentEffect] = [StopLogs(i) for i in self._subscriptions]
        self._subscriptions.clear()
        if self._link is not None:
            self._link = None
            effects.append(Disconnect())
        return effects

    def _call(self, link: _Link, method: Method[Req, Any], request: Req, by: float | None = None) -> Call:
        self._streams += 1
        link.streams[self._streams] = method
        if by is not None:
            link.call_by[self._streams] = by
        return Call(self._streams, method.name, request)

    # --- the session -----------------------------------------------------------------------------------------------

    def _role(self, stream: int) -> tuple[_Link, AnyMethod] | None:
        """The current connection and the method of one of its streams; None for a stream of an earlier connection."""
        if self._link is None or stream not in self._link.streams:
            return None
        return self._link, self._link.streams[stream]

    def _reply(self, event: Reply, now: float) -> list[AgentEffect]:
        found = self._role(event.stream)
        if found is None:
            return []
        link, method = found
        del link.streams[event.stream]
        link.call_by.pop(event.stream, None)
        if method is rpc.HEARTBEAT:
            if link.farewell:
                if event.stream == link.farewell:
                    raise Unavailable(self._unable)
                return []
            period_s = seconds(rpc.HEARTBEAT.checked_response(event.message).period)
            link.heartbeat_at = now + max(period_s, defaults.HEARTBEAT_PERIOD_MIN_S)
        elif method in _STATUSES:
            self._reporter.acknowledged(now)
        return []

    def _stream_end(self, event: StreamEnd, now: float) -> list[AgentEffect]:
        found = self._role(event.stream)
        if found is None:
            return []
        link, method = found
        del link.streams[event.stream]
        link.call_by.pop(event.stream, None)
        error = event.error or Aborted(f"the manager ended {method.name}")
        if method in _OPTIONAL and error.code == Code.UNIMPLEMENTED:
            return []
        if method in _STATUSES and self._reporter.refused(error, now):
            return []
        raise error

    def _stream_data(self, event: StreamData, now: float) -> list[AgentEffect]:
        found = self._role(event.stream)
        if found is None:
            return []
        link, _ = found
        message = event.message
        if isinstance(message, api.SessionMessage):
            return self._session_message(link, message, now)
        if isinstance(message, api.AssignmentsMessage):
            return self._assignments(link, event.stream, message)
        if isinstance(message, api.SubscriptionMessage):
            return self._subscription(message)
        if isinstance(message, api.WatchNetworksResponse):
            return [*self._discovery.data(message, now)]
        return []

    def _session_message(self, link: _Link, message: api.SessionMessage, now: float) -> list[AgentEffect]:
        effects: list[AgentEffect] = []
        if not link.registered:
            link.registered, link.first_message_by = True, None
            link.heartbeat_at = now
            self._backoff_s = 0.0
            self._session_id = message.session_id
            self._reporter.restart(self._worker.assigned(), now)
            self._discovery.begin()
            effects.append(SessionState(self._session_id))
            effects += [self._call(link, *opened) for opened in _streams(self._session_id)]
        managers = tuple((m.peer.node_id, m.peer.addr) for m in message.managers if m.peer.addr)
        for weighted in message.managers:
            if weighted.peer.addr:
                self._remotes.observe((weighted.peer.node_id, weighted.peer.addr), weighted.weight)
        if managers:
            self._remotes.keep_only(managers)
        node = copy_of(message.node)
        node.ClearField("status")
        node.ClearField("meta")
        keys = tuple(message.network_bootstrap_keys)
        told = SessionUpdate("", node, managers, message.RootCA, keys)
        if told != self._told:
            self._told = told
            effects.append(SessionUpdate(self._session_id, message.node, managers, message.RootCA, keys))
        if self._description is not None and not same_description(self._description, link.description):
            effects += self._reopen(now)
        return effects

    def _assignments(self, link: _Link, stream: int, message: api.AssignmentsMessage) -> list[AgentEffect]:
        if self._leaving:
            return []
        if message.type != api.AssignmentsMessage.COMPLETE and message.applies_to != link.reference:
            del link.streams[stream]
            link.reference = ""
            again = self._call(link, rpc.ASSIGNMENTS, api.AssignmentsRequest(session_id=self._session_id))
            return [StreamEnd(stream, Aborted("an assignments message is missing")), again]
        link.reference = message.results_in
        self._worker.apply(message)
        if self._swept:
            return []
        self._swept = True
        return [Sweep(self._worker.known())]

    # --- the node --------------------------------------------------------------------------------------------------

    def _described(self, event: Described, now: float) -> list[AgentEffect]:
        self._description = copy_of(event.description)
        if not self.registered or self._link is None or same_description(self._description, self._link.description):
            return []
        return self._reopen(now)

    def _reopen(self, now: float) -> list[AgentEffect]:
        """Open a new session with the old ID at once: that tells the managers what changed about this node."""
        effects = self._disconnect()
        self._next_at = now
        return effects

    def _local(self, event: LocalManager, now: float) -> list[AgentEffect]:
        self._local_manager = event.running
        return []

    def _engine_gone(self, event: EngineGone, now: float) -> list[AgentEffect]:
        """Leave the session. When the engine has certainly ended, say so in a last heartbeat."""
        self._unable = event.error
        link = self._link
        if link is None:
            return []
        if not (event.certain and link.registered):
            raise Unavailable(event.error)
        link.heartbeat_at = None
        request = extensions.with_extension(api.HeartbeatRequest(session_id=self._session_id), extensions.ENGINE_GONE)
        call = self._call(link, rpc.HEARTBEAT, request, now + defaults.FAREWELL_TIMEOUT_S)
        link.farewell = call.stream
        return [call]

    def _engine_back(self, event: EngineBack, now: float) -> list[AgentEffect]:
        self._unable = ""
        self._backoff_s = 0.0
        if self._link is None:
            self._next_at = now
        elif self._link.farewell:
            raise Unavailable("the engine is back")
        return []

    def _leave(self, event: Leave, now: float) -> list[AgentEffect]:
        self._leaving = True
        self._worker.leave()
        return []

    # --- tasks -----------------------------------------------------------------------------------------------------

    def _executed(self, event: Executed, now: float) -> list[AgentEffect]:
        self._worker.executed(event, now)
        return []

    def _observed(self, event: Observed, now: float) -> list[AgentEffect]:
        self._worker.observed(event, now)
        return []

    def _work(self, now: float) -> list[AgentEffect]:
        """The effects that the tasks need, and the statuses that they report."""
        effects: list[AgentEffect] = [*self._discovery.work(now), *self._worker.settle(now)]
        started = self._worker.take_started()
        for subscription in self._subscriptions.values():
            tasks = tuple(task for task in started if selects(subscription.selector, task))
            if tasks and subscription.options.follow:
                effects.append(PublishLogs(subscription, tasks))
        self._reporter.add(self._worker.take_changed(), now)
        self._reporter.add_volumes(self._worker.take_unpublished_volumes(), now)
        if self._leaving and not self._left and self._worker.empty:
            self._left = True
            effects.append(Left())
        return effects

    # --- logs ------------------------------------------------------------------------------------------------------

    def _subscription(self, message: api.SubscriptionMessage) -> list[AgentEffect]:
        if message.close:
            known = self._subscriptions.pop(message.id, None)
            return [StopLogs(message.id)] if known is not None else []
        if message.id in self._subscriptions:
            return []
        self._subscriptions[message.id] = message
        return [PublishLogs(message, self._worker.selected(message.selector))]

    def _logs_ended(self, event: LogsEnded, now: float) -> list[AgentEffect]:
        self._subscriptions.pop(event.subscription_id, None)
        return []


def _streams(session_id: str) -> tuple[tuple[Method[Any, Any], Message], ...]:
    """What is opened when a session is established."""
    return (
        (rpc.ASSIGNMENTS, api.AssignmentsRequest(session_id=session_id)),
        (rpc.LISTEN_SUBSCRIPTIONS, api.ListenSubscriptionsRequest()),
        (rpc.WATCH_NETWORKS, api.WatchNetworksRequest()),
    )
