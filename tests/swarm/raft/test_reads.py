"""Rounds of heartbeats that confirm reads, without a leadership around them."""

from __future__ import annotations

from swarm.api import raftpb
from swarm.raft.membership import Membership
from swarm.raft.reads import ReadIndex


class Rounds:
    """The reads of member 1, and the contexts of the heartbeats that they sent."""

    def __init__(self, *voters: int) -> None:
        self.sent: list[bytes] = []
        self.membership = Membership(raftpb.ConfState(voters=voters))
        self.reads = ReadIndex(1, self.membership, lambda: self.sent.append(self.reads.context))


def test_a_read_waits_for_a_majority_of_its_own_round_and_for_its_index() -> None:
    rounds = Rounds(1, 2, 3, 4, 5)
    rounds.reads.add(7, tag=70)
    (context,) = rounds.sent
    rounds.reads.acknowledge(2, context)
    rounds.reads.acknowledge(2, context)
    rounds.reads.acknowledge(3, b"")
    assert rounds.reads.confirmed == []
    rounds.reads.acknowledge(3, context)
    assert rounds.reads.confirmed == [(7, 70)]
    assert rounds.reads.take_ready(applied=6) == []
    assert rounds.reads.take_ready(applied=7) == [(7, 70)]
    assert rounds.reads.take_ready(applied=7) == []


def test_reads_that_come_during_a_round_share_the_next_one() -> None:
    rounds = Rounds(1, 2, 3)
    rounds.reads.add(1, tag=10)
    rounds.reads.add(2, tag=20)
    rounds.reads.add(3, tag=30)
    assert len(rounds.sent) == 1
    rounds.reads.acknowledge(2, rounds.sent[0])
    assert rounds.reads.confirmed == [(1, 10)]
    assert len(rounds.sent) == 2
    rounds.reads.acknowledge(2, rounds.sent[0])  # late, of the first round
    assert rounds.reads.open() == [10, 20, 30]
    rounds.reads.acknowledge(2, rounds.sent[1])
    assert rounds.reads.confirmed == [(1, 10), (2, 20), (3, 30)]
    assert rounds.reads.context == b""
    rounds.reads.check()


def test_a_round_ends_when_so_many_voters_are_removed_that_it_has_a_majority() -> None:
    rounds = Rounds(1, 2, 3, 4)
    rounds.reads.add(1, tag=10)
    rounds.reads.acknowledge(2, rounds.sent[0])
    rounds.reads.membership_changed()
    assert rounds.reads.confirmed == []
    rounds.membership.apply(raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=4))
    rounds.reads.membership_changed()
    assert rounds.reads.confirmed == [(1, 10)]


def test_the_only_voter_confirms_its_reads_itself() -> None:
    rounds = Rounds(1)
    rounds.reads.add(1, tag=10)
    assert rounds.reads.confirmed == [(1, 10)]
    assert rounds.sent == []
