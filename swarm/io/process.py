"""The one loop that drives every machine, and the clock that machines are given.

(DESIGN: machines and one driver, docs/adr/0001)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from swarm.machine import Machine

E = TypeVar("E")
X = TypeVar("X")

EVENTS_PER_TURN_MAX = 256
TIMER_SLACK_S = (
    0.001  # event loops count in milliseconds: without it a timer comes early and the machine is not due yet
)


class Clock:
    """Seconds since the epoch that never decrease: the wall clock at the start plus the monotonic clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """The present, as machines are given it."""
        return self._offset + time.monotonic()


class Inbox(Generic[E]):
    """Events for one machine. put() may be called at any time from the loop's thread; one coroutine waits at a time."""

    def __init__(self) -> None:
        self._events: deque[E] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: E) -> None:
        """Append an event."""
        self._events.append(event)
        if self._waiter is not None:
            _wake(self._waiter)

    def __len__(self) -> int:
        return len(self._events)

    def pop(self) -> E | None:
        """The oldest event, or None."""
        return self._events.popleft() if self._events else None

    async def wait(self, timeout_s: float | None) -> None:
        """Return when there is an event, or after ``timeout_s``; None: no time limit."""
        if self._events:
            return
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def drive(
    machine: Machine[E, X], inbox: Inbox[E], perform: Callable[[X], None], clock: Clock, started: bool = False
) -> None:
    """Run a machine for ever: events in, effects out, in order. Ends only by cancellation or a bug.

    The first step has no event: the machine acts on what its disk says before it gets any event. At least every
    EVENTS_PER_TURN_MAX events, the loop yields to other tasks and checks the machine's deadline, so that a busy machine
    starves neither sockets nor its own timers.
    """
    turns = 0
    deadline: float | None = None
    asked = False  # whether ``deadline`` is current: it changes only when the machine handles an event
    while True:
        event = inbox.pop() if started else None
        now = clock.now()
        if started and (event is None or turns == 0):  # a busy machine checks its deadline once per turn
            if not asked:
                deadline, asked = machine.deadline(), True
            due = deadline is not None and deadline <= now
            if event is None and not due:
                turns = 0
                await inbox.wait(None if deadline is None else deadline - now + TIMER_SLACK_S)
                continue
            if event is not None and due:
                _perform_all(machine.handle(None, now), perform)
        started = True
        _perform_all(machine.handle(event, now), perform)
        asked = False
        turns += 1
        if turns >= EVENTS_PER_TURN_MAX:
            turns = 0
            await asyncio.sleep(0)


def _perform_all(effects: Iterable[X], perform: Callable[[X], None]) -> None:
    for effect in effects:
        perform(effect)


async def within(timeout_s: float, changed: asyncio.Event, condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds, and check it after each change. False: it did not within ``timeout_s``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not condition():
                changed.clear()
                await changed.wait()
    return condition()
