"""Timers that a stall does not make ring at once. The loop's clock is the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarm import defaults
from swarm.io.patience import PatientTimer
from tests.swarm.io.skipping import Skipping


@pytest.fixture
def loop() -> Iterator[Skipping]:
    loop = Skipping()
    yield loop
    loop.close()


def test_a_timer_that_is_due_after_a_stall_waits_until_what_came_meanwhile_is_read(loop: Skipping) -> None:
    rung: list[str] = []

    async def start() -> None:
        PatientTimer(5.0, rung.append, "late")

    loop.run_until_complete(start())
    loop.skipped_s += 20.0
    loop.turns()
    assert rung == []
    loop.skipped_s += defaults.STALL_GRACE_S + 0.5
    loop.turns()
    assert rung == ["late"]


def test_a_timer_that_is_cancelled_by_what_is_read_never_rings(loop: Skipping) -> None:
    rung: list[str] = []

    async def start() -> PatientTimer:
        return PatientTimer(5.0, rung.append, "late")

    timer = loop.run_until_complete(start())
    loop.skipped_s += 20.0
    loop.turns()
    timer.cancel()
    loop.skipped_s += 60.0
    loop.turns()
    assert rung == []


def test_without_a_stall_it_rings_when_it_is_due(loop: Skipping) -> None:
    rung: list[str] = []

    async def start() -> None:
        PatientTimer(5.0, rung.append, "due")

    loop.run_until_complete(start())
    loop.skipped_s += 4.0
    loop.turns()
    assert rung == []
    loop.skipped_s += 1.5
    loop.turns()
    assert rung == ["due"]


def test_a_process_that_stalls_again_and_again_is_not_waited_for(loop: Skipping) -> None:
    rung: list[str] = []

    async def start() -> None:
        PatientTimer(5.0, rung.append, "late")

    loop.run_until_complete(start())
    for _ in range(2):
        loop.skipped_s += 20.0
        loop.turns()
    assert rung == ["late"]
