"""The tick of a group of ours follows the round trips to the members that matter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import defaults
from swarm.manager.events import PeerAnswered, PeerKnown
from swarm.manager.group.tick import RoundTrips
from tests.swarm.manager.group.test_changes import Lab

NOBODY = 0


def tick_s(ways: dict[int, float], leader: int = NOBODY) -> float:
    """Of a member whose ways to the others are known."""
    pace = RoundTrips()
    for raft_id, way_s in ways.items():
        pace.measured(raft_id, way_s)
    return pace.tick_s(ways, leader)


def test_members_side_by_side_tick_as_fast_as_it_goes() -> None:
    assert tick_s({2: 0.001, 3: 0.08}) == defaults.RAFT_FAST_TICK_S


def test_a_group_over_long_ways_ticks_no_faster_than_a_round_trip() -> None:
    assert tick_s({2: 0.25, 3: 0.32}) == pytest.approx(0.3)


def test_one_member_far_away_slows_down_nobody_else() -> None:
    assert tick_s({2: 0.001, 3: 0.7}) == defaults.RAFT_FAST_TICK_S
    assert tick_s({2: 0.001, 3: 0.001, 4: 0.6, 5: 0.7}) == defaults.RAFT_FAST_TICK_S


def test_the_way_to_the_leader_always_counts() -> None:
    assert tick_s({2: 0.001, 3: 0.7}, leader=3) == pytest.approx(0.7)


def test_a_single_late_answer_is_no_distance() -> None:
    pace = RoundTrips()
    for way_s in (0.01, 0.01, 0.9, 0.01):
        pace.measured(2, way_s)
    assert pace.tick_s([2], 2) == defaults.RAFT_FAST_TICK_S


def test_who_left_the_group_is_forgotten() -> None:
    pace = RoundTrips()
    pace.measured(2, 0.9)
    assert pace.tick_s([2], 2) == pytest.approx(0.9)
    assert pace.tick_s([3], 3) == defaults.RAFT_FAST_TICK_S


def test_the_tick_shrinks_only_when_half_of_it_would_do() -> None:
    pace = RoundTrips()
    for way_s, wanted in ((0.55, 0.6), (0.35, 0.6), (0.25, 0.3)):
        for _ in range(defaults.RAFT_ROUND_TRIP_SAMPLES):
            pace.measured(2, way_s)
        assert pace.tick_s([2], 2) == pytest.approx(wanted)


@given(st.lists(st.floats(0, 1e6), max_size=9), st.integers(0, 9))
def test_no_measurement_takes_the_tick_out_of_its_bounds(ways: list[float], leader: int) -> None:
    found = tick_s(dict(enumerate(ways, 1)), leader)
    assert defaults.RAFT_FAST_TICK_S <= found <= defaults.RAFT_TICK_S


def test_a_manager_takes_the_time_of_its_group() -> None:
    lab = Lab()
    raft_id = lab.joined()
    lab.tell(PeerKnown(raft_id, True))
    assert lab.manager.raft.config.tick_s == defaults.RAFT_FAST_TICK_S
    lab.tell(PeerAnswered(raft_id, 0.44))
    assert lab.manager.raft.config.tick_s == pytest.approx(0.5)
    lab.tell(PeerKnown(raft_id, False))
    assert lab.manager.raft.config.tick_s == defaults.RAFT_TICK_S
