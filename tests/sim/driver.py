"""The loop around one machine: events in, effects out, in order, by this process's clock.

(swarm/io/process.py drive)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from swarm.machine import Machine
from tests.sim.kernel import Kernel

E = TypeVar("E")
X = TypeVar("X")

WAKES_AT_ONCE_MAX = 60


class Clocked(Protocol):
    """The process around a machine."""

    name: str
    kernel: Kernel
    stalled_until: float
    alive: bool

    def clock(self) -> float:
        """Its idea of the time, in seconds since the epoch."""
        ...

    def world_delay(self, clock: float) -> float:
        """How long until its clock shows this."""
        ...


class Driver(Generic[E, X]):
    """One machine of one process. wakes: how often a deadline was due, for those who look for busy loops."""

    def __init__(
        self,
        process: Clocked,
        name: str,
        machine: Machine[E, X],
        perform: Callable[[X], None],
        after: Callable[[], None],
    ) -> None:
        """after: called after each step, when its effects are performed."""
        self.machine = machine
        self.closed = False
        self.wakes = 0
        self._process = process
        self._kernel = process.kernel
        self._name = f"{process.name} {name}"
        self._perform = perform
        self._after = after
        self._inbox: deque[E] = deque()
        self._scheduled = False
        self._alarm = 0
        self._alarm_at = float("inf")
        self._started = False
        self._turn_at = -1.0
        self._turns = 0
        self._stall_seen = 0.0

    def start(self) -> None:
        """First step."""
        self._soon()

    def put(self, event: E) -> None:
        """An event; it is taken in its turn, not from inside."""
        if not self.closed:
            self._inbox.append(event)
            self._soon()

    def close(self) -> None:
        """No more steps."""
        self.closed = True
        self._inbox.clear()

    def rearm(self) -> None:
        """The clock jumped."""
        self._alarm_at = float("inf")
        self._soon()

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._kernel.at(max(0.0, self._process.stalled_until - self._kernel.now), self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        if self.closed or not self._process.alive:
            return
        if self._kernel.now < self._process.stalled_until:
            self._soon()
            return
        self._resume()
        while not self.closed:
            event = self._inbox.popleft() if self._inbox and self._started else None
            if event is None and self._started:
                deadline = self.machine.deadline()
                if deadline is None or deadline > self._process.clock():
                    self._arm(deadline)
                    return
                self._count_wake(deadline)
            self._started = True
            self._step(event)

    def _resume(self) -> None:
        """After a stall timers come first: what others sent meanwhile still waits in the sockets."""
        if self._stall_seen == self._process.stalled_until:
            return
        self._stall_seen = self._process.stalled_until
        deadline = self.machine.deadline()
        if self._started and deadline is not None and deadline <= self._process.clock():
            self._step(None)

    def _step(self, event: E | None) -> None:
        if event is not None:
            self._kernel.mark(self._name, type(event).__name__)
        for effect in self.machine.handle(event, self._process.clock()):
            if self.closed or not self._process.alive:
                return
            self._perform(effect)
        self._after()

    def _count_wake(self, deadline: float) -> None:
        self.wakes += 1
        if self._turn_at != self._kernel.now:
            self._turn_at, self._turns = self._kernel.now, 0
        self._turns += 1
        assert self._turns < WAKES_AT_ONCE_MAX, f"{self._name} spins: deadline {deadline}, now {self._process.clock()}"

    def _arm(self, deadline: float | None) -> None:
        if deadline is None:
            return
        at = self._kernel.now + max(0.0, self._process.world_delay(deadline)) + 1e-6
        if at >= self._alarm_at and self._alarm_at > self._kernel.now:
            return  # an earlier alarm rings first, and looks again
        self._alarm += 1
        alarm = self._alarm
        self._alarm_at = at
        self._kernel.at(at - self._kernel.now, lambda: self._ring(alarm))

    def _ring(self, alarm: int) -> None:
        if alarm == self._alarm and not self.closed:
            self._alarm_at = float("inf")
            self._soon()
