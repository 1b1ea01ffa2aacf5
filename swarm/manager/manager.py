"""The manager: consensus, store, and while it leads everything that decides, as one machine.

Calls come in (from peers or from this process), effects go out; between them there are only function calls:

    Call -> service.handle -> Write -> leader.next_pass -> raft Propose -> Persist -> Persisted -> Committed
         -> store.apply -> Reply to the callers, committed(changes) to every service -> StreamData to the agents

Reads of the control API wait for a read barrier of the log, so that no deposed leader answers from an old store.

(swarmkit: manager/manager.go, manager/state/raft/raft.go)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import structlog
from google.protobuf.message import DecodeError, Message

from swarm import api, defaults
from swarm.api import raftpb
from swarm.errors import Internal, NoLeader, NotFound, ResourceExhausted, SwarmError, Unavailable, Unimplemented
from swarm.manager.leader import Leader
from swarm.manager.service import Effect, Service, Write
from swarm.manager.stage import Stage
from swarm.raft import words
from swarm.raft.raft import Raft
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store, View
from swarm.store.tx import Tx

log = structlog.get_logger()

ReadFunction = Callable[[View, Message], Message]
WriteFunction = Callable[[Tx, Message], Message]


@dataclass(frozen=True, slots=True)
class Changed:
    """Effect: an entry was applied; for watchers in this process (/events)."""

    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Leadership:
    """Effect: who leads now. leading: this manager does, and its leader is up. leader: raft ID, 0 for nobody."""

    leading: bool
    leader: int
    term: int


ManagerEffect = (
    Reply | StreamData | StreamEnd | Changed | Leadership | words.Persist | words.Send | words.Restore | words.Removed
)
ManagerEvent = (
    Call | StreamData | StreamEnd | words.Persisted | words.Received | words.Unreachable | words.SnapshotSent | Write
)


@dataclass(frozen=True)
class Parts:
    """What a manager is made of besides consensus; factories run once per leadership.

    stages: in the order of a pass. services: all gRPC services of a leader. reads, writes: the control API by method.
    """

    stages: Callable[[Store, Random, float], Sequence[tuple[str, Stage]]]
    services: Callable[[Store, Random, float], Sequence[Service]]
    reads: Mapping[str, ReadFunction]
    writes: Mapping[str, WriteFunction]


class Manager:
    """One member of the group. store: as restored from the snapshot that ``raft`` was started with."""

    def __init__(self, raft: Raft, store: Store, parts: Parts, rng: Random, strict: bool = False) -> None:
        self.raft = raft
        self.store = store
        self.members: dict[int, api.RaftMember] = {}
        self.leader: Leader | None = None
        self._parts = parts
        self._rng = rng
        self._strict = strict
        self._services: list[Service] = []
        self._routes: dict[str, Service] = {}
        self._streams: dict[int, Service] = {}
        self._reads: dict[int, Call] = {}
        self._waiting: deque[tuple[float, Call]] = deque()
        self._tag = 0
        self._proposed = 0
        self._since_snapshot = 0
        self._out: list[ManagerEffect] = []

    # --- machine ---------------------------------------------------------------------------------------------------

    def handle(self, event: ManagerEvent | None, now: float) -> list[ManagerEffect]:
        """See Machine.handle."""
        match event:
            case Call():
                self._call(event, now)
            case StreamData(stream=stream) | StreamEnd(stream=stream):
                self._more(stream, event, now)
            case Write():
                self._submit(event)
            case None:
                self._raft(None, now)
                for service in self._services:
                    due = service.deadline()
                    if due is not None and due <= now:
                        self._effects(service, service.wake(now))
                self._expire(now)
            case _:
                self._raft(event, now)
        self._pass(now)
        out, self._out = self._out, []
        return out

    def deadline(self) -> float | None:
        """See Machine.deadline."""
        candidates = [self.raft.deadline()]
        if self.leader is not None:
            candidates.append(self.leader.deadline())
            candidates.extend(service.deadline() for service in self._services)
        if self._waiting:
            candidates.append(self._waiting[0][0])
        return min((due for due in candidates if due is not None), default=None)

    @property
    def leading(self) -> bool:
        """Whether this manager leads and its leader is at work."""
        return self.leader is not None

    def reachable(self, raft_id: int) -> bool:
        """Whether a member answered lately, as far as this manager can know."""
        return raft_id == self.raft.config.raft_id

    # --- calls -----------------------------------------------------------------------------------------------------

    def _call(self, call: Call, now: float) -> None:
        if call.method == "Health/Check":
            self._health(call)
        elif call.method == "Raft/ProcessRaftMessage":
            assert isinstance(call.request, api.ProcessRaftMessageRequest)
            self._raft(words.Received(call.request.message), now)
            self._out.append(Reply(call.stream, api.ProcessRaftMessageResponse()))
        elif self.leader is None:
            self._wait(call, now)
        else:
            self._lead_call(call, now)

    def _lead_call(self, call: Call, now: float) -> None:
        method = call.method
        if (service := self._routes.get(method)) is not None:
            self._streams[call.stream] = service
            self._effects(service, service.handle(call, now))
        elif (write := self._parts.writes.get(method)) is not None and call.request is not None:
            request = call.request
            self._submit(Write(lambda tx: write(tx, request), call.stream))
        elif method in self._parts.reads:
            self._tag += 1
            self._reads[self._tag] = call
            self._raft(words.ReadBarrier(self._tag), now)
        else:
            self._out.append(StreamEnd(call.stream, Unimplemented(f"{method} is not available in this version")))

    def _health(self, call: Call) -> None:
        assert isinstance(call.request, api.HealthCheckRequest)
        if call.request.service not in ("", "Raft", "ControlAPI"):
            self._out.append(StreamEnd(call.stream, NotFound("unknown service")))
        else:
            serving = api.HealthCheckResponse.SERVING
            self._out.append(Reply(call.stream, api.HealthCheckResponse(status=serving)))

    def _wait(self, call: Call, now: float) -> None:
        """There is no leader yet: keep the call for as long as an election may take."""
        if len(self._waiting) >= defaults.INBOX_CALLS_MAX:
            self._out.append(StreamEnd(call.stream, ResourceExhausted("too many calls wait for a leader")))
        else:
            self._waiting.append((now + defaults.NO_LEADER_WAIT_S, call))

    def _expire(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, call = self._waiting.popleft()
            self._out.append(StreamEnd(call.stream, NoLeader()))

    def _more(self, stream: int, event: StreamData | StreamEnd, now: float) -> None:
        service = self._streams.get(stream)
        if service is not None:
            if isinstance(event, StreamEnd) and event.error is not None:
                self._streams.pop(stream, None)
            self._effects(service, service.handle(event, now))
            return
        if isinstance(event, StreamEnd):
            self._waiting = deque(item for item in self._waiting if item[1].stream != stream)
            self._reads = {tag: call for tag, call in self._reads.items() if call.stream != stream}

    def _effects(self, service: Service, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Write():
                    self._submit(effect)
                case Reply(stream=stream) | StreamEnd(stream=stream):
                    self._streams.pop(stream, None)
                    self._out.append(effect)
                case StreamData():
                    self._out.append(effect)

    def _submit(self, write: Write) -> None:
        if self.leader is None:
            if write.stream is not None:
                self._out.append(StreamEnd(write.stream, NoLeader()))
            return
        self._answer(self.leader.submit(write))

    def _answer(self, effects: Sequence[Effect]) -> None:
        """Effects of finished writes, which may contain further writes of services."""
        for effect in effects:
            if isinstance(effect, Write):
                self._submit(effect)
            elif isinstance(effect, StreamData):
                self._out.append(effect)
            else:
                self._streams.pop(effect.stream, None)
                self._out.append(effect)

    def _read(self, tag: int) -> None:
        call = self._reads.pop(tag, None)
        if call is None or call.request is None:
            return
        try:
            self._out.append(Reply(call.stream, self._parts.reads[call.method](self.store, call.request)))
        except SwarmError as error:
            self._out.append(StreamEnd(call.stream, error))
        except Exception:
            if self._strict:
                raise
            log.exception("read.failed", method=call.method)
            message = "the manager could not carry out this request; its log says why"
            self._out.append(StreamEnd(call.stream, Internal(message)))

    # --- consensus -------------------------------------------------------------------------------------------------

    def _pass(self, now: float) -> None:
        if self.leader is None:
            return
        data, effects = self.leader.next_pass(now)
        self._answer(effects)
        if data is not None:
            self._tag += 1
            self._proposed = self._tag
            self._raft(words.Propose(self._tag, data), now)

    def _raft(self, event: words.Event | None, now: float) -> None:
        for effect in self.raft.handle(event, now):
            match effect:
                case words.Persist() | words.Send() | words.Removed():
                    self._out.append(effect)
                case words.Committed(entries=entries):
                    for entry in entries:
                        self._apply(entry, now)
                    self._maybe_snapshot(now)
                case words.Restore(snapshot=snapshot):
                    self.restore(snapshot)
                    self._out.append(effect)
                case words.ReadReady(tag=tag):
                    self._read(tag)
                case words.BecameLeader(term=term):
                    self._lead(term, now)
                case words.BecameFollower(term=term, leader=leader):
                    self._depose(leader, term)
                case words.NeedSnapshot():
                    self._snapshot(now)
                case words.Refused(tag=tag, reason=reason):
                    self._refused(tag, reason)

    def _apply(self, entry: raftpb.Entry, now: float) -> None:
        self._since_snapshot += 1
        if entry.Type == raftpb.EntryConfChange:
            self._apply_membership(raftpb.ConfChange.FromString(entry.Data))
            self.store.index = entry.Index
        elif entry.Data:
            self._apply_actions(entry, now)
        else:
            self.store.index = entry.Index

    def _apply_actions(self, entry: raftpb.Entry, now: float) -> None:
        try:
            request = api.InternalRaftRequest.FromString(entry.Data)
            changes = self.store.apply(request.action, entry.Index)
        except (SwarmError, DecodeError) as error:
            # as SwarmKit's followers do: an entry that breaks a rule of the store is skipped, loudly
            log.error("raft.entry_skipped", index=entry.Index, error=str(error))
            if self._strict:
                raise
            changes = []
        if self.leader is None:
            self._out.append(Changed(changes))
            return
        self._answer(self.leader.committed())
        self._out.append(Changed(changes))
        for service in self._services:
            self._effects(service, service.committed(changes, now))

    def _apply_membership(self, change: raftpb.ConfChange) -> None:
        if change.type == raftpb.ConfChangeRemoveNode:
            self.members.pop(change.node_id, None)
        else:
            member = api.RaftMember.FromString(change.context)
            self.members[change.node_id] = member

    def _refused(self, tag: int, reason: words.Reason) -> None:
        """The log took neither this read nor this pass; nothing was changed."""
        log.warning("raft.refused", reason=reason.value)
        call = self._reads.pop(tag, None)
        if call is not None:
            self._out.append(StreamEnd(call.stream, Unavailable(f"raft: {reason.value}")))
        elif self.leader is not None and tag == self._proposed:
            self._answer(self.leader.refused(Unavailable(f"raft: {reason.value}")))

    def _lead(self, term: int, now: float) -> None:
        """This member leads and its store is complete: the leader can start."""
        stages = self._parts.stages(self.store, self._rng, now)
        self.leader = Leader(self.store, stages, self._rng, now, self._strict)
        self._services = list(self._parts.services(self.store, self._rng, now))
        self._routes = {method: service for service in self._services for method in service.methods}
        self._out.append(Leadership(True, self.raft.config.raft_id, term))
        waiting, self._waiting = self._waiting, deque()
        for _, call in waiting:
            self._lead_call(call, now)

    def _depose(self, leader: int, term: int) -> None:
        if self.leader is not None:
            for service in self._services:
                for effect in service.stop():
                    if not isinstance(effect, Write):
                        self._out.append(effect)
            old, self.leader = self.leader, None
            self._answer(old.stop())
            for call in self._reads.values():
                self._out.append(StreamEnd(call.stream, NoLeader()))
            self._reads.clear()
            self._services, self._routes = [], {}
            self._streams.clear()
        self._out.append(Leadership(False, leader, term))

    # --- snapshots -------------------------------------------------------------------------------------------------

    def restore(self, snapshot: raftpb.Snapshot) -> None:
        """Replace store and membership by a snapshot's."""
        content = api.Snapshot.FromString(snapshot.data)
        self.store.restore(content.store, snapshot.metadata.index)
        self.members = {member.raft_id: member for member in content.membership.members}
        self._since_snapshot = 0

    def _maybe_snapshot(self, now: float) -> None:
        interval, _ = self._snapshot_settings()
        if self._since_snapshot >= interval:
            self._snapshot(now)

    def _snapshot(self, now: float) -> None:
        """Save the store as of the last applied entry, so that the log before it may go."""
        _, keep = self._snapshot_settings()
        self._since_snapshot = 0
        content = api.Snapshot(version=api.Snapshot.V0, store=self.store.save())
        content.membership.members.extend(self.members[raft_id] for raft_id in sorted(self.members))
        snapshot = raftpb.Snapshot(data=content.SerializeToString())
        snapshot.metadata.index = self.store.index
        self._raft(words.SnapshotTaken(snapshot, keep), now)

    def _snapshot_settings(self) -> tuple[int, int]:
        cluster = next(self.store.all(api.Cluster), None)
        raft = cluster.spec.raft if cluster is not None else api.RaftConfig()
        interval = raft.snapshot_interval or defaults.RAFT_SNAPSHOT_INTERVAL_ENTRIES
        keep = raft.log_entries_for_slow_followers or defaults.RAFT_ENTRIES_FOR_SLOW_FOLLOWERS
        return interval, keep
