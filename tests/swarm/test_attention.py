"""What a machine has not seen pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm import defaults
from swarm.attention import Attention


def test_a_machine_that_is_woken_in_time_has_missed_nothing() -> None:
    attention = Attention()
    assert attention.missed_s(100.0) == 0.0
    attention.due = 105.0
    assert attention.missed_s(103.0) == 0.0
    assert attention.missed_s(105.0 + defaults.STALL_S) == 0.0


def test_what_is_later_than_it_was_meant_to_be_is_missed() -> None:
    attention = Attention()
    attention.missed_s(100.0)
    attention.due = 105.0
    assert attention.missed_s(125.0) == 20.0


def test_a_machine_that_waits_for_nobody_misses_nothing() -> None:
    attention = Attention()
    attention.missed_s(100.0)
    assert attention.missed_s(10_000.0) == 0.0


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 100.0)), max_size=30))
def test_the_time_that_counts_never_exceeds_what_was_planned_and_a_stall(steps: list[tuple[float, float]]) -> None:
    """steps: for how long the machine means to sleep, and how much later it wakes."""
    attention, now, counted, planned = Attention(), 1000.0, 0.0, 0.0
    attention.missed_s(now)
    for sleep_s, late_s in steps:
        attention.due = now + sleep_s
        now += sleep_s + late_s
        counted += sleep_s + late_s - attention.missed_s(now)
        planned += sleep_s + defaults.STALL_S
    assert counted <= planned + 1e-6
