"""The loop that drives machines: events in order, deadlines kept, and no turn before something is due."""

from __future__ import annotations

import asyncio

from swarm.io.process import EVENTS_PER_TURN_MAX, Clock, Inbox, drive


class Alarm:
    """A machine for the loop under test: it wants to be woken a few times, and keeps its turns."""

    def __init__(self, times: int, period_s: float) -> None:
        self._left = times
        self._period_s = period_s
        self._due: float | None = None
        self.turns: list[str | None] = []
        self.early: list[float] = []

    def handle(self, event: str | None, now: float) -> list[str]:
        """Every turn sets the next alarm."""
        self.turns.append(event)
        if event is None and self._due is not None and now < self._due:
            self.early.append(self._due - now)
        self._left -= 1
        self._due = now + self._period_s if self._left > 0 else None
        return ["done"] if self._left == 0 else []

    def deadline(self) -> float | None:
        """When the next alarm is due."""
        return self._due


class CountingInbox(Inbox[str]):
    """Counts how often the loop went to sleep."""

    waits = 0

    async def wait(self, timeout_s: float | None) -> None:
        self.waits += 1
        await super().wait(timeout_s)


async def _drive(machine: Alarm, inbox: Inbox[str]) -> None:
    done = asyncio.Event()
    task = asyncio.create_task(drive(machine, inbox, lambda effect: done.set(), Clock()))
    await done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_machine_is_woken_once_for_each_deadline() -> None:
    machine, inbox = Alarm(times=6, period_s=0.0123), CountingInbox()
    await _drive(machine, inbox)
    assert machine.turns == [None] * 6
    assert machine.early == []
    assert inbox.waits == 6  # the last one has no end


async def test_a_machine_starts_before_it_hears_anybody_and_events_come_in_order_before_what_is_due() -> None:
    machine, inbox = Alarm(times=5, period_s=60.0), CountingInbox()
    for event in ("a", "b", "c", "d"):
        inbox.put(event)
    await _drive(machine, inbox)
    assert machine.turns == [None, "a", "b", "c", "d"]


async def test_a_machine_that_always_has_events_is_woken_all_the_same() -> None:
    machine, inbox = Alarm(times=3 * EVENTS_PER_TURN_MAX, period_s=0.0), CountingInbox()
    for _ in range(3 * EVENTS_PER_TURN_MAX):
        inbox.put("more")
    await _drive(machine, inbox)
    assert machine.turns.count(None) >= 3
    assert machine.turns.count("more") > 2 * EVENTS_PER_TURN_MAX
    assert inbox.waits == 0
