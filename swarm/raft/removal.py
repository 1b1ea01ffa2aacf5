"""How a member that was removed leaves: not before the others can do without its vote.

A member that applied its own removal takes no more decisions, but it still votes and answers. If it leads, it stays
until a majority of the remaining voters confirmed that they know of the removal. If it learnt of the removal from a
leader, the others know already, and it leaves at once. If it finds the removal in its own log after a restart, it
cannot know what the others know, and waits for many election timeouts. (swarmkit: manager/state/raft/raft.go, where a
removed member is refused by the others)
"""

from __future__ import annotations

from swarm.raft.election import Election
from swarm.raft.events import NO_ONE, Removed
from swarm.raft.member import Member

_WAIT_ELECTIONS = 30


class Removal:
    """``due``: when a member that waits leaves at the latest, in seconds since the epoch; None: it does not wait."""

    def __init__(self, member: Member, election: Election) -> None:
        self._member = member
        self._election = election
        self._restarted_at = member.log.committed
        self._led = False
        self.due: float | None = None

    def begin(self) -> None:
        """The entry that removes this member was applied. Removed follows, now or later."""
        member = self._member
        member.removed = True
        if member.leadership:
            member.leadership.begin_removal()
            self._led = True
        elif member.log.applied <= self._restarted_at:
            self._wait()
        else:  # the leader told us, and it never forgets what it told
            member.emit(Removed())

    def cancel(self) -> None:
        """This member was added, perhaps again: by force_new_cluster, or by the snapshot that replaced its log."""
        self._member.removed = self._led = False
        self.due = None

    def wake(self) -> None:
        """Emit Removed if enough others know that they can do without this member, or if it waited long enough."""
        member = self._member
        leadership = member.leadership
        if leadership and leadership.removal_known:
            self._election.become_follower(member.term, NO_ONE)
            self.due = member.now
        elif leadership is None and self._led and self.due is None:
            self._wait()
        if self.due is not None and member.now >= self.due:
            self.due = None
            self._led = False
            member.emit(Removed())

    def _wait(self) -> None:
        self.due = self._member.now + _WAIT_ELECTIONS * self._member.config.election_s
