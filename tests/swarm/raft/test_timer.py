"""When a member stands for election, and how long it protects its leader."""

from __future__ import annotations

from random import Random

import pytest

from swarm.api import raftpb
from swarm.raft.events import NO_ONE, Config
from swarm.raft.member import Member
from swarm.raft.timer import ElectionTimer

CONFIG = Config(2, tick_s=0.1, election_ticks=10)


def follower(seed: int = 1) -> tuple[Member, ElectionTimer]:
    """Member 2 of 1, 2 and 3, at time 100."""
    snapshot = raftpb.Snapshot(
        metadata=raftpb.SnapshotMetadata(index=1, term=1, conf_state=raftpb.ConfState(voters=(1, 2, 3)))
    )
    member = Member(CONFIG, Random(seed), raftpb.HardState(term=1, commit=1), snapshot, (), 1, 100.0)
    return member, ElectionTimer(member)


@pytest.mark.parametrize("seed", range(20))
def test_the_wait_is_one_to_two_election_timeouts(seed: int) -> None:
    member, timer = follower(seed)
    assert 101.0 <= timer.due < 102.0
    member.now = 105.0
    timer.restart()
    assert 106.0 <= timer.due < 107.0


def test_a_leader_that_is_heard_has_a_lease_of_an_election_timeout() -> None:
    member, timer = follower()
    assert not timer.in_lease
    member.leader = 1
    timer.leader_heard()
    member.now = 100.9
    assert timer.in_lease
    member.now = 101.1
    assert not timer.in_lease
    timer.leader_heard()
    member.leader = NO_ONE
    assert not timer.in_lease


def test_when_the_leader_is_gone_its_lease_is_void_and_each_voter_has_a_tick_of_its_own() -> None:
    member, timer = follower()
    member.leader = 1
    timer.leader_heard()
    timer.leader_gone(1)
    assert not timer.in_lease
    assert 100.0 <= timer.due < 100.05  # nobody but the leader is before it
    timer.restart()
    timer.leader_gone(3)
    assert 100.1 <= timer.due < 100.15  # member 1 is before it


def test_a_process_that_was_stalled_gets_one_tick_of_grace_until_it_hears_its_leader() -> None:
    member, timer = follower()
    member.now = 110.0
    assert timer.take_grace()
    assert timer.due == pytest.approx(110.1)
    member.now = 120.0
    assert not timer.take_grace()
    assert timer.due == pytest.approx(110.1)
    timer.leader_heard()
    member.now = 130.0
    assert timer.take_grace()
    assert timer.due == pytest.approx(130.1)
