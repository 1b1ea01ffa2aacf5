"""The election timer: when this member stands for election, and how long it protects the leader that it hears.

A follower that hears no leader for a random time between one and two election timeouts stands for election. For one
election timeout after it heard a leader, the leader holds a lease: the member ignores candidates. A timer that fires
late means that this process was stalled, not that the leader is gone: the member then gets a grace of one tick, once,
to read what waits in its sockets. (etcd/raft: raft.go tickElection, resetRandomizedElectionTimeout, inLease)
"""

from __future__ import annotations

from swarm.raft.events import NO_ONE, Role
from swarm.raft.member import Member


class ElectionTimer:
    """``due``: when the member stands for election, in seconds since the epoch."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._heard_at = member.now - member.config.election_s
        self._grace_taken = False
        self.restart()

    def restart(self) -> None:
        """Wait anew, for a random time of one to two election timeouts."""
        member = self._member
        self.due = member.now + member.config.election_s * (1 + member.rng.random())

    def expire(self) -> None:
        """An election is due now."""
        self.due = self._member.now

    def leader_heard(self) -> None:
        """A message of the leader came: its lease begins anew, and so does the wait."""
        self._heard_at = self._member.now
        self._grace_taken = False
        self.restart()

    def leader_gone(self, raft_id: int) -> None:
        """The leader's process has ended: its lease is void, and an election is due at once.

        All followers learn of it at nearly the same moment, so each waits for a tick of its own: two candidates at the
        same time would both lose, and wait for an election timeout.
        """
        member = self._member
        self._heard_at = member.now - member.config.election_s
        before = sum(voter < member.config.raft_id and voter != raft_id for voter in member.membership.voters)
        self.due = min(self.due, member.now + member.config.tick_s * (before + member.rng.random() / 2))

    @property
    def in_lease(self) -> bool:
        """Whether this member must not help to replace the leader, which it heard just now or is itself."""
        member = self._member
        if not member.config.check_quorum or member.leader == NO_ONE:
            return False
        return member.role is Role.LEADER or member.now - self._heard_at < member.config.election_s

    def hears_leader(self, now: float) -> bool:
        """Whether this member leads, or has heard its leader within an election timeout."""
        member = self._member
        if member.leader == NO_ONE:
            return False
        return member.role is Role.LEADER or now - self._heard_at < member.config.election_s

    # --- stalls ---

    def take_grace(self) -> bool:
        """The process was stalled: put the election off by a tick; False if the grace is used up."""
        if self._grace_taken:
            return False
        self._grace_taken = True
        self.due = max(self.due, self._member.now + self._member.config.tick_s)
        return True

    def renew_grace(self) -> None:
        """The process keeps time again."""
        self._grace_taken = False
