"""What runs while this manager leads: the passes of its leader, its services, and what these ask the world outside.

It is all made anew when this manager is elected and dropped when it is deposed.

(swarmkit: manager/manager.go becomeLeader, becomeFollower)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

import structlog
from google.protobuf.message import Message

from swarm import defaults
from swarm.api import rpc
from swarm.errors import Internal, NotLeader, NotTaken, SwarmError
from swarm.manager.calls import Calls
from swarm.manager.events import AskAuthority, AuthorityAnswered, CheckFunction, ManagerEffect, Parts, WriteFunction
from swarm.manager.external_ca import Outcome
from swarm.manager.group.members import RaftGroup
from swarm.manager.judge import Judge
from swarm.manager.leader import Leader
from swarm.manager.logbroker import LogBroker
from swarm.manager.service import Ask, Effect, RemoveMember, Service, Write
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store

log = structlog.get_logger()

LOG_SAYS_WHY = "the manager could not carry out this request; its log says why"


class Leading:
    """See the module. leader: None while another member leads, or none. now: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        parts: Parts,
        group: RaftGroup,
        calls: Calls,
        judge: Judge,
        out: list[ManagerEffect],
        tags: Iterator[int],
        rng: Random,
        strict: bool,
    ) -> None:
        self.leader: Leader | None = None
        self.pass_tag = 0
        """Of the last pass that was proposed."""
        self.elections_won = 0
        self.passes = 0
        """That changed something, since the start."""
        self._store = store
        self._parts = parts
        self._group = group
        self._calls = calls
        self._judge = judge
        self._out = out
        self._tags = tags
        self._rng = rng
        self._strict = strict
        self._services: list[Service] = []
        self._routes: dict[str, Service] = {}
        self._asked: dict[int, Callable[[Outcome, float], Sequence[Effect]]] = {}
        self._settled_at: float | None = None  # after a stall: no pass before

    # --- leadership ------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """This manager was elected, and its store is complete."""
        self.elections_won += 1
        stages = self._parts.stages(self._store, self._rng, now, self._strict)
        self.leader = Leader(self._store, stages, self._rng, now, self._strict)
        self._services = list(self._parts.services(self._store, self._rng, now))
        self._routes = {method: service for service in self._services for method in service.methods}

    def stop(self, now: float) -> None:
        """This manager was deposed: services say their last, and writes end."""
        for service in self._services:
            for effect in service.stop():
                if not isinstance(effect, Write | Ask | RemoveMember):
                    self.perform((effect,), now)
        old, self.leader = self.leader, None
        self._settled_at = None
        if old is not None:
            self.perform(old.stop(), now)
        self._services, self._routes = [], {}
        self._asked.clear()

    # --- effects of services and writes ----------------------------------------------------------------------------

    def perform(self, effects: Sequence[Effect], now: float) -> None:
        """What services and finished writes want, which may be further writes."""
        for effect in effects:
            match effect:
                case Write():
                    self.submit(effect, now)
                case Ask(question=question, done=done):
                    tag = next(self._tags)
                    self._asked[tag] = done
                    self._out.append(AskAuthority(tag, question))
                case StreamData():
                    self._out.append(effect)
                case Reply() | StreamEnd():
                    self._calls.finish(effect, now)
                case RemoveMember(node_id=node_id):
                    self._group.remove(node_id)

    def submit(self, write: Write, now: float) -> None:
        """A write for the next pass, where its caller is judged again; without a leader it fails."""
        if self.leader is not None:
            if write.stream is not None:
                self._calls.shares.queued(write.stream)
                caller = self._calls.caller(write.stream)
                if caller is not None:
                    write = replace(write, run=self._judge.judged(write.run, *caller))
            self.perform(self.leader.submit(write), now)
        elif write.done is not None:
            self.perform(write.done(None, NotLeader()), now)
        elif write.stream is not None:
            self._calls.finish(StreamEnd(write.stream, NotTaken()), now)

    def submit_call(
        self, stream: int, request: Message, write: WriteFunction, check: CheckFunction | None, now: float
    ) -> None:
        """A call that writes. What its check refuses, or fails on, never gets into a pass."""
        try:
            if check is not None:
                check(request)
        except SwarmError as error:
            self._calls.finish(StreamEnd(stream, error), now)
        except Exception:
            if self._strict:
                raise
            log.exception("check.failed")
            self._calls.finish(StreamEnd(stream, Internal(LOG_SAYS_WHY)), now)
        else:
            self.submit(Write(lambda tx: write(tx, request), stream), now)

    def answered(self, event: AuthorityAnswered, now: float) -> None:
        """The world outside has answered a question."""
        done = self._asked.pop(event.tag, None)
        if done is not None:
            self.perform(done(event.outcome, now), now)

    # --- services --------------------------------------------------------------------------------------------------

    def service_of(self, method: str) -> Service | None:
        """Who answers calls of this method, if a service does."""
        return self._routes.get(method)

    def reader_of(self, publication: int) -> int | None:
        """See LogBroker."""
        broker = self._routes.get(rpc.PUBLISH_LOGS.name)
        return broker.reader_of(publication) if isinstance(broker, LogBroker) else None

    def serve(self, service: Service, event: Call | StreamData | StreamEnd, now: float) -> None:
        """A service that fails costs the call that it failed on; whatever a node sends must not stop the manager."""
        try:
            effects = service.handle(event, now)
        except Exception:
            if self._strict:
                raise
            log.exception("service.failed", service=type(service).__name__, word=type(event).__name__)
            effects = [StreamEnd(event.stream, Internal(LOG_SAYS_WHY))]
        self.perform(effects, now)

    def tell(self, changes: Sequence[Change], now: float) -> None:
        """An entry was applied to the store, or the group changed."""
        for service in self._services:
            self.perform(service.committed(changes, now), now)

    def stalled(self, missed_s: float, now: float) -> None:
        """This process stood still (swarm/attention.py): what waits in its sockets is read before the next pass."""
        for service in self._services:
            service.stalled(missed_s, now)
        if self.leader is not None and self._settled_at is None:
            self._settled_at = now + defaults.STALL_SETTLE_S

    def wake(self, now: float) -> None:
        """Let services do what is due."""
        for service in self._services:
            due = service.deadline()
            if due is not None and due <= now:
                self.perform(service.wake(now), now)

    # --- passes ----------------------------------------------------------------------------------------------------

    def next_pass(self, now: float) -> bytes | None:
        """Run a pass if one is due: the entry to propose under ``pass_tag``; see Leader.next_pass."""
        if self.leader is None or (self._settled_at is not None and now < self._settled_at):
            return None
        self._settled_at = None
        data, effects = self.leader.next_pass(now)
        self.perform(effects, now)
        if data is not None:
            self.pass_tag = next(self._tags)
            self.passes += 1
        return data

    def deadline(self, passes: bool) -> float | None:
        """When something is due. passes: whether passes may run now."""
        if self.leader is None:
            return None
        candidates = [service.deadline() for service in self._services]
        if passes and (due := self.leader.deadline()) is not None:
            candidates.append(due if self._settled_at is None else max(due, self._settled_at))
        return min((due for due in candidates if due is not None), default=None)
