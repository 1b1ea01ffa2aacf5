"""Sessions of agents: which nodes are up, what all of them must know, what they report, and what they must run.

Theory of operation. A node registers by opening Session. Once the store says that the node is ready, it gets a session
ID that all its other calls carry. From then on its heartbeats keep it alive; after three periods of silence it is DOWN,
and after a day DOWN its tasks are ORPHANED. Nodes that another leader knew are UNKNOWN until they come back, for six
periods at most. A sideswarm node whose engine has ended says so in a last heartbeat and is DOWN at once. A new session,
silence, or removal of the node ends all streams of the old session. Time for which this process stood still is no
silence of theirs (swarm/attention.py).

Committed changes are routed by node ID, so a change costs the same with one agent or five thousand: SessionMessage
goes to a node when the node's object changes, to all when managers, keys or root certificates do; tasks go to the
assignment sets of their node. Everything the dispatcher writes goes through Updates.

(swarmkit: manager/dispatcher/dispatcher.go)
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api import extensions, rpc
from swarm.api.methods import Method, Req
from swarm.api.timestamps import seconds, set_seconds
from swarm.errors import Aborted, InvalidArgument, NotFound, PermissionDenied, SwarmError
from swarm.manager.dispatcher.assignments import AssignmentSet
from swarm.manager.dispatcher.nodes import DownNodes, Registrations
from swarm.manager.dispatcher.updates import (
    NodeState,
    Orphaned,
    TaskReport,
    Updates,
    VolumeUnpublished,
    check_status,
    is_news,
)
from swarm.manager.node_keys import KeyGuard
from swarm.manager.service import Effect, Event
from swarm.manager.stage import DUE_NOW
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store

UNKNOWN_MESSAGE = 'Node moved to "unknown" state due to leadership change in cluster'
DOWN_MESSAGE = "heartbeat failure"
ENGINE_GONE_MESSAGE = "the node's engine has ended"
DOWN_FROM_UNKNOWN_MESSAGE = 'heartbeat failure for node in "unknown" state'

_SESSIONS_PER_WAKE = 200


@dataclass(slots=True)
class _Session:
    """An open Session stream; session_id is empty until the registration is committed."""

    node_id: str
    session_id: str = ""
    told_node: api.Node | None = None
    told_epoch: int = -1


@dataclass(slots=True)
class _Feed:
    """An open Assignments (or Tasks) stream."""

    node_id: str
    session_id: str
    assignments: AssignmentSet
    deprecated: bool
    next_send: float
    queued: bool = False


_S = TypeVar("_S", _Session, _Feed)


def _row(
    method: Method[Req, Any], answer: Callable[[Call, Req, str], list[Effect]]
) -> tuple[str, Callable[[Call, Any, str], list[Effect]]]:
    """One row of the method table: ``answer`` takes the call, its request (of this method's type) and the node ID."""
    return method.name, answer


class Dispatcher:
    """Service of a leader (swarm/manager/service.py).

    managers: the present members of the Raft group as (node ID, address). They are not in the store: after a change of
    membership call committed((), now).
    """

    methods = frozenset(
        method.name
        for method in (
            rpc.SESSION,
            rpc.HEARTBEAT,
            rpc.UPDATE_TASK_STATUS,
            rpc.UPDATE_VOLUME_STATUS,
            rpc.TASKS,
            rpc.ASSIGNMENTS,
        )
    )

    def __init__(
        self,
        store: Store,
        now: float,
        rng: Random,
        own_node_id: str,
        managers: Callable[[], list[tuple[str, str]]],
        refused_keys: Counter[str] | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._own_node_id = own_node_id
        self._managers = managers
        self._registrations = Registrations(rng)
        self._updates = Updates()
        self._key_guard = KeyGuard(refused_keys)
        self._down = DownNodes()
        self._sessions: dict[int, _Session] = {}
        self._feeds: dict[int, _Feed] = {}
        self._sessions_of: dict[str, dict[int, None]] = {}
        self._feeds_of: dict[str, dict[int, None]] = {}
        self._unanswered: dict[int, None] = {}
        self._untold: dict[int, None] = {}
        self._due_feeds: list[tuple[float, int]] = []
        self._shared = api.SessionMessage()
        self._shared_of: tuple[api.Cluster | None, list[tuple[str, str]]] = (None, [])
        self._shared_epoch = 0
        self._stopped = False
        self._calls = dict(
            (
                _row(rpc.SESSION, self._session),
                _row(rpc.HEARTBEAT, self._heartbeat),
                _row(rpc.UPDATE_TASK_STATUS, self._update_task_status),
                _row(rpc.UPDATE_VOLUME_STATUS, self._update_volume_status),
                _row(rpc.ASSIGNMENTS, self._assignments),
                _row(rpc.TASKS, self._assignments),
            )
        )
        self._read_cluster()
        self._expect_nodes()

    # --- Service ---------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        if isinstance(event, StreamEnd):
            self._closed(event.stream)
            return []
        if not isinstance(event, Call):
            return []
        node_id = event.peer.node_id or (self._own_node_id if event.peer.local else "")
        try:
            if self._stopped:
                raise Aborted("dispatcher is stopped")
            if not node_id:
                raise PermissionDenied("no client certificates in request")
            effects = self._calls[event.method](event, event.request, node_id)
        except SwarmError as error:
            return [StreamEnd(event.stream, error)]
        return effects + self._updates.take(now)

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        if self._stopped:
            return []
        effects: list[Effect] = []
        for change in changes:
            if change.kind == "task":
                self._task_changed(change)
            elif change.kind == "node":
                effects += self._node_changed(change)
            elif change.kind == "volume":
                self._volume_changed(change)
        if self._read_cluster():
            self._untold.update(dict.fromkeys(self._sessions))
        return effects + self._send()

    def wake(self, now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        if self._stopped:
            return []
        effects: list[Effect] = []
        for registration in self._registrations.take_expired(now):
            if self._is_registering(registration.node_id):
                self._registrations.extend(registration, now)
                continue
            message = DOWN_MESSAGE if registration.session_id else DOWN_FROM_UNKNOWN_MESSAGE
            effects += self._down_now(registration.node_id, message)
        for node_id in self._down.take_overdue(now):
            self._updates.add(Orphaned(node_id))
        return effects + self._send() + self._updates.take(now)

    def deadline(self) -> float | None:
        """See swarm.manager.service.Service."""
        if self._stopped:
            return None
        if self._untold:
            return DUE_NOW
        times = (
            self._registrations.deadline(),
            self._down.deadline(),
            self._due_feeds[0][0] if self._due_feeds else None,
            self._updates.deadline(),
        )
        return min((t for t in times if t is not None), default=None)

    def stalled(self, missed_s: float, now: float) -> None:
        """See swarm.manager.service.Service. What nodes sent meanwhile is not read yet, and some gave up."""
        self._registrations.stalled(missed_s, now)
        self._down.stalled(missed_s)

    def stop(self) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._stopped = True
        effects: list[Effect] = []
        for stream, session in self._sessions.items():
            if session.session_id:
                effects.append(StreamData(stream, self._session_message(session)))
                effects.append(StreamEnd(stream, Aborted("node must disconnect")))
        effects += [StreamEnd(stream, Aborted("dispatcher is stopped")) for stream in self._feeds]
        effects += self._updates.fail(Aborted("dispatcher is stopped"))
        self._feeds.clear()
        self._feeds_of.clear()
        self._due_feeds.clear()
        self._untold.clear()
        return effects

    # --- sessions --------------------------------------------------------------------------------------------------

    def _expect_nodes(self) -> None:
        """Begin a leadership: no node has been heard of yet, so all are unknown, or still down."""
        for node in self._store.all(api.Node):
            if node.status.state == api.NodeStatus.DOWN:
                self._down.add(node.id, self._now)
            else:
                self._registrations.add_unknown(node.id, self._now)
                self._updates.add(NodeState(node.id, api.NodeStatus.UNKNOWN, UNKNOWN_MESSAGE))

    def _session(self, call: Call, request: api.SessionRequest, node_id: str) -> list[Effect]:
        if request.description.ByteSize() > defaults.NODE_DESCRIPTION_BYTES_MAX:
            raise InvalidArgument("node description is too long")
        renewed = self._registrations.valid(node_id, request.session_id)
        if not renewed:
            self._registrations.check_rate(node_id, self._now)
        node = self._key_guard.node(self._store, node_id, call.peer, self._now)
        description = request.description if request.HasField("description") else None
        ready = NodeState(node_id, api.NodeStatus.READY, "", call.peer.host, description, (call.peer,))
        effects = self._open(self._sessions, self._sessions_of, call.stream, node_id, _Session(node_id))
        session_id = request.session_id if renewed else ""
        self._down.discard(node_id)
        if self._updates.idle and not ready.changes(node):
            return effects + self._registered(call, node_id, session_id, None)
        self._updates.add(ready)
        self._updates.answer(lambda error: self._registered(call, node_id, session_id, error))
        return effects

    def _is_registering(self, node_id: str) -> bool:
        """Whether the node has a registration under way; then it is not silent and must not become DOWN."""
        return any(not self._sessions[stream].session_id for stream in self._sessions_of.get(node_id, ()))

    def _registered(self, call: Call, node_id: str, session_id: str, error: SwarmError | None) -> list[Effect]:
        """The store says that the node is ready: answer it."""
        stream, effects = call.stream, list[Effect]()
        try:
            if error is not None or self._stopped:
                raise error or Aborted("dispatcher is stopped")
            self._key_guard.node(self._store, node_id, call.peer, self._now)
            if session_id:
                self._registrations.check(node_id, session_id)
        except SwarmError as meanwhile:
            error = meanwhile
        if error is None and not session_id:
            session_id = self._registrations.register(node_id, self._now)
            effects += self._end_streams(node_id, InvalidArgument("session invalid"))
        session = self._sessions.get(stream)
        if session is None:  # the agent hung up; its registration stays, so that its silence is noticed
            return effects
        if error is not None:
            self._closed(stream)
            return [*effects, StreamEnd(stream, error)]
        session.session_id = session_id
        return [*effects, *self._tell(stream, session)]

    def _tell(self, stream: int, session: _Session) -> list[Effect]:
        """Send a SessionMessage unless the agent already has exactly this."""
        node = self._store.get(api.Node, session.node_id)
        if not session.session_id or node is None:
            return []
        if session.told_node is node and session.told_epoch == self._shared_epoch:
            return []
        return [StreamData(stream, self._session_message(session))]

    def _session_message(self, session: _Session) -> api.SessionMessage:
        session.told_node = self._store.get(api.Node, session.node_id)
        session.told_epoch = self._shared_epoch
        message = api.SessionMessage()
        message.CopyFrom(self._shared)
        message.session_id = session.session_id
        if session.told_node is not None:
            message.node.CopyFrom(session.told_node)
        return message

    def _read_cluster(self) -> bool:
        """Note what all agents must know. Returns whether it changed."""
        cluster = next(iter(self._store.all(api.Cluster)), None)
        managers = list(self._managers()) or self._shared_of[1]  # agents forget managers that a message does not name
        if self._shared_of[0] is cluster and self._shared_of[1] == managers:
            return False
        self._shared_of = (cluster, managers)
        shared = api.SessionMessage()
        for node_id, addr in managers:
            shared.managers.add(peer=api.Peer(node_id=node_id, addr=addr), weight=defaults.MANAGER_WEIGHT)
        if cluster is not None:
            shared.network_bootstrap_keys.extend(cluster.network_bootstrap_keys)
            shared.RootCA = cluster.root_ca.ca_cert
            period_s = seconds(cluster.spec.dispatcher.heartbeat_period)
            self._registrations.period_s = period_s if period_s > 0 else defaults.HEARTBEAT_PERIOD_S
        if shared == self._shared:
            return False
        self._shared = shared
        self._shared_epoch += 1
        return True

    def _heartbeat(self, call: Call, request: api.HeartbeatRequest, node_id: str) -> list[Effect]:
        period_s = self._registrations.heartbeat(node_id, request.session_id, self._now)
        response = api.HeartbeatResponse()
        set_seconds(response.period, period_s)
        effects: list[Effect] = [Reply(call.stream, response)]
        if extensions.has_extension(request, extensions.ENGINE_GONE):
            self._registrations.drop(node_id)
            effects += self._down_now(node_id, ENGINE_GONE_MESSAGE)
        return effects

    def _down_now(self, node_id: str, message: str) -> list[Effect]:
        """The node is lost: end its session, so that its tasks are replaced on other nodes."""
        self._updates.add(NodeState(node_id, api.NodeStatus.DOWN, message))
        self._down.add(node_id, self._now)
        return self._end_streams(node_id, NotFound("node not registered"))

    # --- reports ---------------------------------------------------------------------------------------------------

    def _update_task_status(self, call: Call, request: api.UpdateTaskStatusRequest, node_id: str) -> list[Effect]:
        self._registrations.check(node_id, request.session_id)
        reports = []
        for update in request.updates:
            task = self._store.get(api.Task, update.task_id)
            if task is None or not update.HasField("status"):
                continue
            if task.node_id != node_id:
                raise PermissionDenied("cannot update a task not assigned this node")
            check_status(update.status)
            if is_news(task.status, update.status):
                reports.append(TaskReport(update.task_id, node_id, update.status, self._own_node_id))
        for report in reports:
            self._updates.add(report)
        return self._answer_after_commit(call.stream, api.UpdateTaskStatusResponse(), at_once=not reports)

    def _update_volume_status(self, call: Call, request: api.UpdateVolumeStatusRequest, node_id: str) -> list[Effect]:
        self._registrations.check(node_id, request.session_id)
        unpublished = [u.id for u in request.updates if u.unpublished and self._store.get(api.Volume, u.id) is not None]
        for volume_id in unpublished:
            self._updates.add(VolumeUnpublished(volume_id, node_id))
        return self._answer_after_commit(call.stream, api.UpdateVolumeStatusResponse(), at_once=not unpublished)

    def _answer_after_commit(self, stream: int, response: Message, at_once: bool) -> list[Effect]:
        if at_once:
            return [Reply(stream, response)]
        self._unanswered[stream] = None

        def answer(error: SwarmError | None) -> list[Effect]:
            if stream not in self._unanswered:  # the agent hung up
                return []
            del self._unanswered[stream]
            return [StreamEnd(stream, error) if error is not None else Reply(stream, response)]

        self._updates.answer(answer)
        return []

    # --- assignments -----------------------------------------------------------------------------------------------

    def _assignments(
        self, call: Call, request: api.AssignmentsRequest | api.TasksRequest, node_id: str
    ) -> list[Effect]:
        self._registrations.check(node_id, request.session_id)
        feed = _Feed(
            node_id,
            request.session_id,
            AssignmentSet(node_id, self._store),
            isinstance(request, api.TasksRequest),
            self._now + defaults.ASSIGNMENT_BATCH_S,
        )
        effects = self._open(self._feeds, self._feeds_of, call.stream, node_id, feed)
        first = feed.assignments.tasks() if feed.deprecated else feed.assignments.complete(self._store)
        return [*effects, StreamData(call.stream, first)]

    def _task_changed(self, change: Change) -> None:
        before, after = change.before, change.after
        assert before is None or isinstance(before, api.Task)
        assert after is None or isinstance(after, api.Task)
        if before is not None and (after is None or after.node_id != before.node_id):
            for stream in self._feeds_of.get(before.node_id, ()):
                self._feeds[stream].assignments.task_removed(change.object_id)
                self._queue(stream)
        if after is not None:
            for stream in self._feeds_of.get(after.node_id, ()):
                self._feeds[stream].assignments.task_changed(after)
                self._queue(stream)

    def _volume_changed(self, change: Change) -> None:
        before, after = change.before, change.after
        assert before is None or isinstance(before, api.Volume)
        assert after is None or isinstance(after, api.Volume)
        nodes = {status.node_id: None for v in (before, after) if v is not None for status in v.publish_status}
        for node_id in nodes:
            for stream in self._feeds_of.get(node_id, ()):
                if after is None:
                    self._feeds[stream].assignments.volume_removed(change.object_id)
                else:
                    self._feeds[stream].assignments.volume_changed(after)
                self._queue(stream)

    def _queue(self, stream: int) -> None:
        """Schedule the changes of a stream: now after a quiet time, else ASSIGNMENT_BATCH_S after its last message."""
        feed = self._feeds[stream]
        if not feed.queued and feed.assignments.changed:
            feed.queued = True
            heapq.heappush(self._due_feeds, (feed.next_send, stream))

    def _send(self) -> list[Effect]:
        """Everything that is due to be sent to agents; sessions in portions."""
        effects: list[Effect] = []
        for stream in list(self._untold)[:_SESSIONS_PER_WAKE]:
            del self._untold[stream]
            if stream in self._sessions:
                effects += self._tell(stream, self._sessions[stream])
        while self._due_feeds and self._due_feeds[0][0] <= self._now:
            _, stream = heapq.heappop(self._due_feeds)
            feed = self._feeds.get(stream)
            if feed is None:
                continue
            feed.queued = False
            feed.next_send = self._now + defaults.ASSIGNMENT_BATCH_S
            if feed.deprecated:
                effects.append(StreamData(stream, feed.assignments.tasks()))
            else:
                effects += [StreamData(stream, m) for m in feed.assignments.incremental(self._store)]
        return effects

    # --- streams ---------------------------------------------------------------------------------------------------

    def _node_changed(self, change: Change) -> list[Effect]:
        if change.after is not None:
            self._untold.update(dict.fromkeys(self._sessions_of.get(change.object_id, ())))
            return []
        self._registrations.drop(change.object_id)
        self._down.discard(change.object_id)
        return self._end_streams(change.object_id, Aborted("node must disconnect"))

    def _open(
        self, streams: dict[int, _S], by_node: dict[str, dict[int, None]], stream: int, node_id: str, item: _S
    ) -> list[Effect]:
        """Note a new stream; the oldest of the node ends when it has too many of the kind."""
        streams[stream] = item
        of_node = by_node.setdefault(node_id, {})
        of_node[stream] = None
        if len(of_node) <= defaults.SESSIONS_PER_NODE_MAX:
            return []
        oldest = next(iter(of_node))
        self._closed(oldest)
        return [StreamEnd(oldest, Aborted("node must disconnect"))]

    def _end_streams(self, node_id: str, error: SwarmError) -> list[Effect]:
        """End all streams of a node's session; those that wait for their registration stay."""
        sessions = [i for i in self._sessions_of.get(node_id, ()) if self._sessions[i].session_id]
        streams = [*sessions, *self._feeds_of.get(node_id, ())]
        for stream in streams:
            self._closed(stream)
        return [StreamEnd(stream, error) for stream in streams]

    def _closed(self, stream: int) -> None:
        """A stream is over: forget it."""
        self._unanswered.pop(stream, None)
        self._untold.pop(stream, None)
        session, feed = self._sessions.pop(stream, None), self._feeds.pop(stream, None)
        for item, by_node in ((session, self._sessions_of), (feed, self._feeds_of)):
            if item is not None:
                del by_node[item.node_id][stream]
                if not by_node[item.node_id]:
                    del by_node[item.node_id]
