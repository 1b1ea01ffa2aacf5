"""Which nodes are registered, under which session, and until when their silence is tolerated.

Silence is counted only while this process runs. After a stall, each node gets at least the time that it needs to read
its answers or to connect anew; it gets this once, until it is heard again, so that a process which stalls again and
again still notices who is gone.

(swarmkit: manager/dispatcher/nodes.go, heartbeat/heartbeat.go, period.go)
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import takewhile
from random import Random

from swarm import defaults
from swarm.errors import InvalidArgument, NotFound, Unavailable
from swarm.ids import new_id


@dataclass(slots=True)
class Registration:
    """One node. session_id is empty for a node that has not come back since the last change of leader."""

    node_id: str
    session_id: str
    expires: float
    counted_from: float
    attempts: int = 0
    spared: bool = False


class DownNodes:
    """Nodes that are down, and when their tasks are given up. All get the same time, so the oldest comes first."""

    def __init__(self) -> None:
        self._overdue_at: dict[str, float] = {}

    def add(self, node_id: str, now: float) -> None:
        """From now on it is down."""
        self._overdue_at.pop(node_id, None)
        self._overdue_at[node_id] = now + defaults.ORPHAN_TASKS_AFTER_S

    def discard(self, node_id: str) -> None:
        """It is back, or removed."""
        self._overdue_at.pop(node_id, None)

    def take_overdue(self, now: float) -> list[str]:
        """Forget and return those that were down for too long."""
        overdue = list(takewhile(lambda node_id: self._overdue_at[node_id] <= now, self._overdue_at))
        for node_id in overdue:
            del self._overdue_at[node_id]
        return overdue

    def deadline(self) -> float | None:
        """When take_overdue has something to return."""
        return next(iter(self._overdue_at.values()), None)

    def stalled(self, missed_s: float) -> None:
        """This process stood still for so long (swarm/attention.py): they could not come back meanwhile."""
        for node_id in self._overdue_at:
            self._overdue_at[node_id] += missed_s


class Registrations:
    """All registered nodes. Every operation costs O(log n) at most, whatever the number of nodes."""

    def __init__(self, rng: Random) -> None:
        self.period_s = defaults.HEARTBEAT_PERIOD_S
        self._rng = rng
        self._nodes: dict[str, Registration] = {}
        self._queue: list[tuple[float, str]] = []
        self._queued: dict[str, float] = {}

    def add_unknown(self, node_id: str, now: float) -> None:
        """Expect a node that was registered with another leader, whose end it may have to notice first.

        It may be silent for twice the usual time, and never for less than a way to us may take.
        """
        grace_s = self._period() * defaults.HEARTBEAT_GRACE_UNKNOWN_PERIODS
        expires = now + max(grace_s, defaults.RETURN_S)
        self._nodes[node_id] = Registration(node_id, "", expires, 0.0)
        self._expire_at(node_id, expires)

    def check_rate(self, node_id: str, now: float) -> None:
        """Count an attempt to register. Raises Unavailable when there are too many."""
        known = self._nodes.get(node_id)
        if known is None:
            return
        if now - known.counted_from > defaults.REGISTRATION_WINDOW_S:
            known.attempts = 0
        known.attempts += 1
        if known.attempts > defaults.REGISTRATIONS_MAX:
            raise Unavailable(f"node {node_id} exceeded rate limit count of registrations")
        known.counted_from = now

    def register(self, node_id: str, now: float) -> str:
        """Give a node a new session, whose ID is returned; an older one becomes invalid."""
        known = self._nodes.get(node_id)
        expires = now + self._period() * defaults.HEARTBEAT_GRACE_PERIODS
        fresh = Registration(node_id, new_id(self._rng), expires, now)
        if known is not None:
            fresh.attempts, fresh.counted_from = known.attempts, known.counted_from or now
        self._nodes[node_id] = fresh
        self._expire_at(node_id, expires)
        return fresh.session_id

    def check(self, node_id: str, session_id: str) -> Registration:
        """Raises NotFound or InvalidArgument unless this is the node's present session."""
        known = self._nodes.get(node_id)
        if known is None:
            raise NotFound("node not registered")
        if not session_id or known.session_id != session_id:
            raise InvalidArgument("session invalid")
        return known

    def valid(self, node_id: str, session_id: str) -> bool:
        """Whether this is the node's present session."""
        known = self._nodes.get(node_id)
        return known is not None and bool(session_id) and known.session_id == session_id

    def heartbeat(self, node_id: str, session_id: str, now: float) -> float:
        """Note a heartbeat; returns within how many seconds the node should send the next one."""
        known = self.check(node_id, session_id)
        period_s = self._period()
        known.expires = now + period_s * defaults.HEARTBEAT_GRACE_PERIODS
        known.spared = False
        self._expire_at(node_id, known.expires)
        return period_s

    def stalled(self, missed_s: float, now: float) -> None:
        """This process stood still for ``missed_s``: nobody was silent meanwhile (swarm/attention.py)."""
        grace_s = max(self.period_s * defaults.HEARTBEAT_GRACE_PERIODS, defaults.RETURN_S)
        for known in self._nodes.values():
            known.expires += missed_s
            if not known.spared:
                known.spared = True
                known.expires = max(known.expires, now + grace_s)
        self._queued = {node_id: known.expires for node_id, known in self._nodes.items()}
        self._queue = [(expires, node_id) for node_id, expires in self._queued.items()]
        heapq.heapify(self._queue)

    def extend(self, registration: Registration, now: float) -> None:
        """Take back an expiry, because the node was heard of after all."""
        registration.expires = now + self._period() * defaults.HEARTBEAT_GRACE_PERIODS
        self._nodes[registration.node_id] = registration
        self._expire_at(registration.node_id, registration.expires)

    def drop(self, node_id: str) -> None:
        """Forget a node."""
        self._nodes.pop(node_id, None)

    def take_expired(self, now: float) -> list[Registration]:
        """Forget and return the nodes that were silent for too long."""
        expired = []
        while self._queue and self._queue[0][0] <= now:
            due, node_id = heapq.heappop(self._queue)
            if self._queued.get(node_id) != due:
                continue
            del self._queued[node_id]
            known = self._nodes.get(node_id)
            if known is None:
                continue
            if known.expires > now:
                self._expire_at(node_id, known.expires)
                continue
            del self._nodes[node_id]
            expired.append(known)
        return expired

    def deadline(self) -> float | None:
        """When take_expired may have something to return."""
        return self._queue[0][0] if self._queue else None

    def _period(self) -> float:
        jitter_s = min(defaults.HEARTBEAT_JITTER_S, self.period_s / 10)
        return self.period_s + self._rng.uniform(-jitter_s, jitter_s)

    def _expire_at(self, node_id: str, expires: float) -> None:
        """Queue a node. A heartbeat only moves ``expires``; the queue notices when the old time has come."""
        queued = self._queued.get(node_id)
        if queued is None or expires < queued:
            self._queued[node_id] = expires
            heapq.heappush(self._queue, (expires, node_id))
