"""Service logs: turns an API client's request into subscriptions at nodes, and forwards what they publish.

Theory of operation. SubscribeLogs names services, tasks and nodes; the store says which nodes those concern. Each of
these nodes that listens gets a SubscriptionMessage, opens PublishLogs and sends lines. They are forwarded at once and
not stored here. A reader that does not take its lines holds back the nodes that publish them (reader_of, for
swarm/io/node/backpressure.py). Without follow, the reader's stream ends when every node has closed its publication; a
warning names the nodes that could not publish. With follow, the stream ends when the reader leaves; more nodes are
added when tasks of the selected services reach them.

A node that lost its connection is asked again when it listens again: under a new subscription ID (agents ignore an ID
that they know), and only for lines after the last one. Lines that were already forwarded are dropped by their time.

(swarmkit: manager/logbroker/broker.go, subscription.go)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from swarm import api, defaults
from swarm.api import rpc
from swarm.api.timestamps import is_valid, nanoseconds
from swarm.errors import Aborted, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, SwarmError
from swarm.ids import new_id
from swarm.manager.service import Effect, Event
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store

_K = TypeVar("_K", str, tuple[str, str])
_STOPPED = "log broker is stopped"
_LOG_SECONDS_MAX = (1 << 33) - 1  # so that nanoseconds fit into 64 bits


@dataclass(slots=True)
class _Subscription:
    """One reader. wire: the nodes that were asked, with the subscription ID that each knows."""

    stream: int
    selector: api.LogSelector
    options: api.LogSubscriptionOptions
    nodes: dict[str, None] = field(default_factory=dict)
    wire: dict[str, str] = field(default_factory=dict)
    done: dict[str, None] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    unscheduled: dict[str, None] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    last_line_ns: dict[str, dict[str, int]] = field(default_factory=dict)  # node, task
    drop_until_ns: dict[str, dict[str, int]] = field(default_factory=dict)

    def finished(self) -> bool:
        """Whether nothing more will come."""
        return not self.options.follow and all(node_id in self.done for node_id in self.nodes)

    def error(self) -> SwarmError | None:
        """The warning for the reader about missing logs."""
        reasons = [*self.errors, *(f"task {task_id} has not been scheduled" for task_id in self.unscheduled)]
        if not reasons:
            return None
        text = "warning: incomplete log stream. some logs could not be retrieved for the following reasons: "
        return SwarmError(text + ", ".join(reasons))


@dataclass(slots=True)
class _Publication:
    """An open PublishLogs stream; wire_id is empty until its first message."""

    node_id: str
    wire_id: str = ""


class LogBroker:
    """A Service of the leader (swarm/manager/service.py). It buffers nothing; the transport handles slow readers."""

    methods = frozenset({rpc.SUBSCRIBE_LOGS.name, rpc.LISTEN_SUBSCRIPTIONS.name, rpc.PUBLISH_LOGS.name})

    def __init__(self, store: Store, now: float, rng: Random, own_node_id: str = "") -> None:
        self._store = store
        self._now = now
        self._rng = rng
        self._own_node_id = own_node_id
        self._subscriptions: dict[int, _Subscription] = {}
        self._readers: dict[str, int] = {}  # subscription ID on the wire to the reader's stream
        self._asked: dict[str, dict[int, None]] = {}  # node to readers
        self._following: dict[tuple[str, str], dict[int, None]] = {}  # ("service" or "task", ID) to readers
        self._listeners: dict[int, str] = {}
        self._listeners_of: dict[str, dict[int, None]] = {}
        self._publications: dict[int, _Publication] = {}
        self._stopped = False
        self._calls: dict[str, Callable[[Call], list[Effect]]] = {
            rpc.SUBSCRIBE_LOGS.name: self._subscribe,
            rpc.LISTEN_SUBSCRIPTIONS.name: self._listen,
            rpc.PUBLISH_LOGS.name: self._publish,
        }

    # --- Service ---------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        try:
            if isinstance(event, Call):
                if self._stopped:
                    raise Aborted(_STOPPED)
                return self._calls[event.method](event)
            if isinstance(event, StreamData):
                return self._lines(event)
            return self._ended(event)
        except SwarmError as error:
            return [StreamEnd(event.stream, error), *self._publication_failed(event.stream, error)]

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        effects: list[Effect] = []
        if not self._following:
            return effects
        for change in changes:
            task = change.after
            if not isinstance(task, api.Task):
                continue
            of_task = self._following.get(("task", task.id), {})
            for stream in {**of_task, **self._following.get(("service", task.service_id), {})}:
                effects += self._select(stream, task)
        return effects

    def wake(self, now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        effects: list[Effect] = []
        for stream, subscription in list(self._subscriptions.items()):
            for node_id in [i for i, by in subscription.lost.items() if by <= now]:
                effects += self._node_done(stream, node_id, f"node {node_id} disconnected unexpectedly")
        return effects

    def deadline(self) -> float | None:
        """See swarm.manager.service.Service."""
        return min((by for s in self._subscriptions.values() for by in s.lost.values()), default=None)

    def stalled(self, missed_s: float, now: float) -> None:
        """See swarm.manager.service.Service."""
        for subscription in self._subscriptions.values():
            for node_id in subscription.lost:
                subscription.lost[node_id] += missed_s

    def stop(self) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._stopped = True
        streams = [*self._subscriptions, *self._listeners, *self._publications]
        self._subscriptions.clear()
        self._readers.clear()
        self._asked.clear()
        self._following.clear()
        self._publications.clear()
        self._listeners.clear()
        self._listeners_of.clear()
        return [StreamEnd(stream, Aborted(_STOPPED)) for stream in streams]

    def reader_of(self, publication: int) -> int | None:
        """The stream of the reader that a publication is for; None while its node has not said so."""
        found = self._publications.get(publication)
        return None if found is None else self._readers.get(found.wire_id)

    # --- readers ---------------------------------------------------------------------------------------------------

    def _subscribe(self, call: Call) -> list[Effect]:
        request = rpc.SUBSCRIBE_LOGS.checked_request(call.request)
        if not request.HasField("selector"):
            raise InvalidArgument("log selector must be provided")
        selector = request.selector
        if not (selector.service_ids or selector.task_ids or selector.node_ids):
            raise InvalidArgument("log selector must not be empty")
        if len(self._subscriptions) >= defaults.LOG_SUBSCRIPTIONS_MAX:
            raise ResourceExhausted("too many log subscriptions")
        subscription = _Subscription(call.stream, selector, request.options)
        self._subscriptions[call.stream] = subscription
        effects: list[Effect] = []
        for node_id in selector.node_ids:
            effects += self._add_node(subscription, node_id)
        for task in self._selected(subscription):
            effects += self._select(call.stream, task)
        if subscription.options.follow:
            for key in _follow_keys(selector):
                self._following.setdefault(key, {})[call.stream] = None
        return effects + self._finish_if_done(call.stream)

    def _selected(self, subscription: _Subscription) -> Iterable[api.Task]:
        """The existing tasks. Without follow, a service's task counts only if it ever ran: others have no logs."""
        for task_id in subscription.selector.task_ids:
            task = self._store.get(api.Task, task_id)
            if task is not None:
                yield task
        for service_id in subscription.selector.service_ids:
            for task in self._store.find(api.Task, "service", service_id):
                if subscription.options.follow or task.status.state >= api.RUNNING:
                    yield task

    def _select(self, stream: int, task: api.Task) -> list[Effect]:
        """The reader wants this task: ask its node, unless that was done already."""
        subscription = self._subscriptions[stream]
        if not task.node_id:
            subscription.unscheduled[task.id] = None
            return []
        subscription.unscheduled.pop(task.id, None)
        return self._add_node(subscription, task.node_id)

    def _add_node(self, subscription: _Subscription, node_id: str) -> list[Effect]:
        if node_id in subscription.nodes:
            return []
        subscription.nodes[node_id] = None
        self._asked.setdefault(node_id, {})[subscription.stream] = None
        if node_id in self._listeners_of:
            return self._ask(subscription, node_id)
        subscription.errors.append(f"node {node_id} is not available")
        subscription.done[node_id] = None
        return []

    def _ask(self, subscription: _Subscription, node_id: str) -> list[Effect]:
        """Send a node its subscription; if it had one before, as its continuation."""
        effects: list[Effect] = []
        message = api.SubscriptionMessage(selector=subscription.selector, options=subscription.options)
        before = subscription.wire.get(node_id)
        if before is not None:
            self._readers.pop(before, None)
            close = api.SubscriptionMessage(id=before, selector=subscription.selector, close=True)
            effects += self._tell(node_id, close)
        lines = subscription.last_line_ns.get(node_id)
        if lines:
            subscription.drop_until_ns[node_id] = dict(lines)
            message.options.tail = 0
            message.options.since.FromNanoseconds(min(lines.values()))
        message.id = new_id(self._rng)
        subscription.wire[node_id] = message.id
        subscription.done.pop(node_id, None)
        self._readers[message.id] = subscription.stream
        return effects + self._tell(node_id, message)

    def _tell(self, node_id: str, message: api.SubscriptionMessage) -> list[Effect]:
        """Send a message to the newest listening stream of a node."""
        streams = self._listeners_of.get(node_id)
        return [StreamData(next(reversed(streams)), message)] if streams else []

    def _finish_if_done(self, stream: int) -> list[Effect]:
        subscription = self._subscriptions[stream]
        if not subscription.finished():
            return []
        return [*self._forget(stream), StreamEnd(stream, subscription.error())]

    def _forget(self, stream: int) -> list[Effect]:
        """The reader is done or gone: close what its nodes still have open."""
        subscription = self._subscriptions.pop(stream)
        effects: list[Effect] = []
        for node_id in subscription.nodes:
            _discard(self._asked, node_id, stream)
            if node_id not in subscription.done and (wire_id := subscription.wire.get(node_id)) is not None:
                close = api.SubscriptionMessage(id=wire_id, selector=subscription.selector, close=True)
                effects += self._tell(node_id, close)
        for wire_id in subscription.wire.values():
            self._readers.pop(wire_id, None)
        for key in _follow_keys(subscription.selector):
            _discard(self._following, key, stream)
        wires = dict.fromkeys(subscription.wire.values())
        for publication in [i for i, p in self._publications.items() if p.wire_id in wires]:
            del self._publications[publication]
            effects.append(Reply(publication, api.PublishLogsResponse()))
        return effects

    # --- nodes -----------------------------------------------------------------------------------------------------

    def _node_id(self, call: Call) -> str:
        node_id = call.peer.node_id or (self._own_node_id if call.peer.local else "")
        if not node_id:
            raise PermissionDenied("no client certificates in request")
        return node_id

    def _listen(self, call: Call) -> list[Effect]:
        node_id = self._node_id(call)
        self._listeners[call.stream] = node_id
        streams = self._listeners_of.setdefault(node_id, {})
        streams[call.stream] = None
        effects: list[Effect] = []
        if len(streams) > defaults.LOG_LISTENERS_PER_NODE_MAX:
            oldest = next(iter(streams))
            del streams[oldest], self._listeners[oldest]
            effects.append(StreamEnd(oldest, Aborted("the node listens on another stream")))
        for stream in list(self._asked.get(node_id, ())):
            subscription = self._subscriptions[stream]
            subscription.lost.pop(node_id, None)
            if subscription.options.follow or node_id not in subscription.done:
                effects += self._ask(subscription, node_id)
        return effects

    def _publish(self, call: Call) -> list[Effect]:
        self._publications[call.stream] = _Publication(self._node_id(call))
        return []

    def _lines(self, event: StreamData) -> list[Effect]:
        publication, message = self._publications.get(event.stream), event.message
        if publication is None or not isinstance(message, api.PublishLogsMessage):
            return []
        node_id = publication.node_id
        if not message.subscription_id:
            raise InvalidArgument("missing subscription ID")
        if publication.wire_id and publication.wire_id != message.subscription_id:
            raise InvalidArgument("different subscription IDs in the same session")
        stream = self._readers.get(message.subscription_id)
        if stream is None or self._subscriptions[stream].wire.get(node_id) != message.subscription_id:
            raise NotFound("unknown subscription ID")
        publication.wire_id = message.subscription_id
        if message.close:
            del self._publications[event.stream]
            return [Reply(event.stream, api.PublishLogsResponse()), *self._node_done(stream, node_id, "")]
        for line in message.messages:
            if line.context.node_id != node_id:
                raise PermissionDenied(f"invalid NodeID: expected={node_id};received={line.context.node_id}")
            task = self._store.get(api.Task, line.context.task_id)
            if task is not None and task.node_id != node_id:
                raise PermissionDenied(f"task {task.id} does not run on node {node_id}")
            if not is_valid(line.timestamp, _LOG_SECONDS_MAX):
                raise InvalidArgument("the timestamp of a log line is not valid")
        lines = [line for line in message.messages if self._is_new(self._subscriptions[stream], line)]
        return [StreamData(stream, api.SubscribeLogsMessage(messages=lines))] if lines else []

    def _is_new(self, subscription: _Subscription, line: api.LogMessage) -> bool:
        """Whether the reader does not have this line yet. Records its time."""
        node_id, task_id = line.context.node_id, line.context.task_id
        at_ns = nanoseconds(line.timestamp)
        if at_ns <= subscription.drop_until_ns.get(node_id, {}).get(task_id, -1):
            return False
        if self._store.get(api.Task, task_id) is not None:
            lines = subscription.last_line_ns.setdefault(node_id, {})
            lines[task_id] = max(at_ns, lines.get(task_id, 0))
        return True

    def _node_done(self, stream: int, node_id: str, error: str) -> list[Effect]:
        """This node sends nothing more to this reader."""
        subscription = self._subscriptions[stream]
        subscription.lost.pop(node_id, None)
        if error:
            subscription.errors.append(error)
        subscription.done[node_id] = None
        return self._finish_if_done(stream)

    def _node_lost(self, stream: int, node_id: str) -> None:
        """The node may come back and continue. Without follow, the reader waits only LOG_RECONNECT_WAIT_S for it."""
        subscription = self._subscriptions[stream]
        if not subscription.options.follow and node_id not in subscription.done:
            subscription.lost.setdefault(node_id, self._now + defaults.LOG_RECONNECT_WAIT_S)

    def _ended(self, event: StreamEnd) -> list[Effect]:
        if event.stream in self._subscriptions:
            return self._forget(event.stream)
        if event.stream in self._publications:
            return self._publication_ended(event)
        node_id = self._listeners.pop(event.stream, None)
        if node_id is not None:
            _discard(self._listeners_of, node_id, event.stream)
            if node_id not in self._listeners_of:
                for stream in list(self._asked.get(node_id, ())):
                    self._node_lost(stream, node_id)
        return []

    def _publication_failed(self, publication_stream: int, error: SwarmError) -> list[Effect]:
        """End a publication because the node sent something invalid or forbidden."""
        publication = self._publications.pop(publication_stream, None)
        stream = self._readers.get(publication.wire_id) if publication is not None else None
        return (
            self._node_done(stream, publication.node_id, error.rpc_text) if publication and stream is not None else []
        )

    def _publication_ended(self, event: StreamEnd) -> list[Effect]:
        publication = self._publications.pop(event.stream)
        stream = self._readers.get(publication.wire_id)
        if stream is not None and self._subscriptions[stream].wire.get(publication.node_id) != publication.wire_id:
            stream = None  # the node was asked again meanwhile
        if event.error is not None:
            if stream is not None:
                self._node_lost(stream, publication.node_id)
            return []
        effects: list[Effect] = [Reply(event.stream, api.PublishLogsResponse())]
        if stream is not None:
            effects += self._node_done(stream, publication.node_id, "")
        return effects


def _follow_keys(selector: api.LogSelector) -> list[tuple[str, str]]:
    return [*(("task", i) for i in selector.task_ids), *(("service", i) for i in selector.service_ids)]


def _discard(table: dict[_K, dict[int, None]], key: _K, stream: int) -> None:
    """Remove a stream from a row of a table, and the row when it was its last stream."""
    if key in table:
        table[key].pop(stream, None)
        if not table[key]:
            del table[key]
