"""Who may lead on, and for how long: a leader that hears no majority steps down, and one that is heard is not replaced.

Judged from outside, by the member's own clock: what reached it when, and what it did then. A leader decides by counting
copies of entries of its own term only.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm.api import raftpb
from swarm.raft import events
from swarm.raft.election import TRANSFER
from swarm.raft.progress import quorum
from swarm.raft.raft import Raft

_FROM_LEADER = (raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap)


class Lease:
    """One run of one member. Clocks are seconds since the epoch as the member sees them."""

    def __init__(self, clock: float) -> None:
        self._due: float | None = None  # when it wanted to be called at the latest
        self._committed = 0
        self._since = clock  # its patience begins here at the earliest
        self._heard: dict[int, float] = {}
        self._leader_heard_at = clock - 1e9
        self._before = (0, events.NO_ONE, events.Role.FOLLOWER)

    def before(self, raft: Raft, event: events.Event | None, clock: float) -> None:
        """The member is about to handle this."""
        late = self._due is not None and clock - self._due > raft.config.tick_s
        if late or isinstance(event, events.Configure):
            self._since = clock  # it was stalled: it may look into its sockets first
        self._committed = raft.log.committed
        self._before = (raft.term, raft.leader, raft.role)
        if isinstance(event, events.Received):
            self._heard[events.sender(event.message)] = clock

    def after(self, raft: Raft, event: events.Event | None, effects: Sequence[events.Effect], clock: float) -> None:
        """The member has handled it."""
        term, leader, role = self._before
        self._due = raft.deadline()
        if raft.role is events.Role.LEADER:
            committed = raft.log.committed
            own = committed == self._committed or role is not events.Role.LEADER
            assert own or raft.log.term_at(committed) == raft.term, "a leader counts copies of an older term's entry"
            if role is not events.Role.LEADER or any(isinstance(e, events.MembershipChanged) for e in effects):
                self._since = clock
            self._judge_leader(raft, clock)
        if isinstance(event, events.Gone) and event.raft_id == leader:
            self._leader_heard_at = clock - 1e9
        if isinstance(event, events.Received):
            message = event.message
            if message.type in _FROM_LEADER and message.term == raft.term and raft.leader == events.sender(message):
                self._leader_heard_at = clock
            asked = message.type == raftpb.MsgVote and message.context != TRANSFER
            follows = role is events.Role.FOLLOWER and leader != events.NO_ONE
            if asked and follows and raft.term > term:
                silence_s = clock - self._leader_heard_at
                assert silence_s >= raft.config.election_s, f"a campaign was heeded {silence_s:.2f} s after the leader"

    def _judge_leader(self, raft: Raft, clock: float) -> None:
        config, voters = raft.config, raft.membership.voters
        patience_s = 2 * config.election_s + 3 * config.tick_s
        if raft.config.raft_id not in voters or clock - self._since <= patience_s:
            return
        heard = sum(1 for v in voters if v == config.raft_id or clock - self._heard.get(v, 0.0) <= patience_s)
        assert heard >= quorum(len(voters)), f"a leader that hears {heard} of {len(voters)} leads on"
