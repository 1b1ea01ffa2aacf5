"""Elections: how a member becomes candidate, leader and follower.

A candidate raises the term, votes for itself and asks for votes; a majority makes it leader. With pre_vote it first
asks, without raising the term, whether it would win. A vote goes to the first candidate of a term whose log is at least
as long as the voter's. (Raft paper, section 5.2; etcd/raft: raft.go campaign, becomeX, poll)
"""

from __future__ import annotations

from swarm.api import raftpb
from swarm.raft.events import NO_ONE, Reason, Refused, Role, sender
from swarm.raft.leadership import Leadership
from swarm.raft.member import Member
from swarm.raft.outbox import Needs
from swarm.raft.timer import ElectionTimer

TRANSFER = b"CampaignTransfer"
"""Context of the vote requests of a candidate that its leader, or an operator, told to stand: leases do not apply."""


class Election:
    """The transitions between roles, and the votes of the election that is under way."""

    def __init__(self, member: Member, timer: ElectionTimer) -> None:
        self._member = member
        self._timer = timer
        self._votes: dict[int, bool] = {}
        self._log_is_ahead = False

    # --- candidate ---

    @property
    def may_campaign(self) -> bool:
        """Whether this member could lead: a voter that knows which voters there are."""
        member = self._member
        if member.role is Role.LEADER or member.removed or member.config.raft_id not in member.membership.voters:
            return False
        log = member.log
        if member.outbox.restoring or log.applied == log.committed:
            return not member.outbox.restoring
        unapplied = log.between(log.applied + 1, log.committed)
        return all(entry.Type != raftpb.EntryConfChange for entry in unapplied)

    def wake(self) -> None:
        """Stand for election if the timer has expired. For followers and candidates only."""
        member = self._member
        if self.may_campaign and member.now >= self._timer.due:
            if member.config.campaigns or self._log_is_ahead or member.alone:
                self.campaign(b"")
            else:
                self.become_follower(member.term, NO_ONE)
                self._show_presence()

    def campaign(self, context: bytes) -> None:
        """Ask for votes, or with pre_vote first whether the others would give them."""
        member = self._member
        if not self.may_campaign:
            self._timer.restart()
        elif member.config.pre_vote and context != TRANSFER and not member.alone:
            member.role = Role.PRE_CANDIDATE
            self._ask_for_votes(raftpb.MsgPreVote, member.term + 1, context)
        else:
            self._become_candidate(context)

    def campaign_if_alone(self) -> None:
        """The only voter need not wait: nobody could object."""
        member = self._member
        if member.alone and member.role is Role.FOLLOWER and member.leader == NO_ONE:
            self._timer.expire()
            if self.may_campaign:
                self.campaign(b"")

    def _become_candidate(self, context: bytes) -> None:
        member = self._member
        member.set_term(member.term + 1)
        member.vote_for(member.config.raft_id)
        member.role = Role.CANDIDATE
        self._ask_for_votes(raftpb.MsgVote, member.term, context)

    def _ask_for_votes(self, kind: raftpb.MessageType, term: int, context: bytes) -> None:
        member = self._member
        self._timer.restart()
        self._votes = {}
        member.follow(NO_ONE)
        own, log = member.config.raft_id, member.log
        for voter in member.membership.voters:
            if voter != own:
                fields = {"index": log.last_index, "logTerm": log.last_term, "context": context}
                member.send(kind, voter, Needs.ALL, term=term, **fields)
        if kind == raftpb.MsgPreVote:
            self._votes[own] = True
        else:  # the own vote counts when it is on disk
            member.send(raftpb.MsgVoteResp, own, Needs.ALL)

    def count_vote(self, message: raftpb.Message) -> None:
        """Take an answer to this candidate's question: it may win the election or lose it."""
        member = self._member
        expected = raftpb.MsgVoteResp if member.role is Role.CANDIDATE else raftpb.MsgPreVoteResp
        if message.type != expected:
            return
        if message.type == raftpb.MsgPreVoteResp and not message.reject and message.term != member.term + 1:
            return  # an answer to an older question
        self._votes.setdefault(sender(message), not message.reject)
        voters, quorum = member.membership.voters, member.membership.quorum
        votes = [self._votes[voter] for voter in voters if voter in self._votes]
        if sum(votes) >= quorum:
            if member.role is Role.CANDIDATE:
                self._become_leader()
            else:
                self._become_candidate(b"")
        elif len(voters) - votes.count(False) < quorum:
            self.become_follower(member.term, NO_ONE)

    # --- voter ---

    def answer_vote(self, message: raftpb.Message) -> None:
        """Give or refuse a vote, or say in a pre-vote whether it would be given."""
        member, candidate = self._member, sender(message)
        is_question = message.type == raftpb.MsgPreVote
        free = member.vote == candidate or (member.vote == NO_ONE and member.leader == NO_ONE)
        free = free or (is_question and message.term > member.term)
        up_to_date = member.log.is_up_to_date(message.index, message.logTerm)
        self._log_is_ahead = self._log_is_ahead or not up_to_date
        grant = free and up_to_date
        if grant and not is_question:
            member.vote_for(candidate)
            self._timer.restart()
        kind = raftpb.MsgPreVoteResp if is_question else raftpb.MsgVoteResp
        member.send(kind, candidate, Needs.ALL, term=message.term if grant else member.term, reject=not grant)

    # --- follower ---

    def become_follower(self, term: int, leader: int) -> None:
        """Follow this leader, or NO_ONE, in this term. A leadership ends: its open reads are refused."""
        member = self._member
        member.set_term(term)
        if member.leadership:
            for tag in member.leadership.reads.open():
                member.emit(Refused(tag, Reason.NOT_LEADER))
            member.leadership = None
        member.role = Role.FOLLOWER
        self._timer.restart()
        member.follow(leader)

    def leader_heard(self, leader: int) -> None:
        """A message of this term's leader came: follow it, and wait anew."""
        member = self._member
        if member.role is not Role.FOLLOWER:
            self.become_follower(member.term, leader)
        member.follow(leader)
        self._log_is_ahead = False
        self._timer.leader_heard()

    def leader_gone(self, raft_id: int) -> None:
        """The process of this member has ended. If it led, replace it at once.

        Only with pre-votes: if the report is wrong, the others, who still hear the leader, refuse.
        """
        member = self._member
        if member.role is Role.FOLLOWER and member.leader == raft_id and member.config.pre_vote:
            self._timer.leader_gone(raft_id)

    def _show_presence(self) -> None:
        """Answer a heartbeat that nobody sent: a leader learns from it that this member runs, and where it calls from.

        Candidates are heard anyway. To those who do not lead the message means nothing.
        """
        member = self._member
        for voter in member.membership.voters:
            if voter != member.config.raft_id:
                member.send(raftpb.MsgHeartbeatResp, voter, Needs.VOTE)

    # --- leader ---

    def _become_leader(self) -> None:
        """Lead this term, beginning with an empty entry."""
        member = self._member
        member.role, member.leader = Role.LEADER, member.config.raft_id
        self._timer.renew_grace()
        member.leadership = Leadership(
            member.config, member.term, member.log, member.membership, member.send_now, member.snapshot_for, member.now
        )
        member.leadership.append(raftpb.Entry(Type=raftpb.EntryNormal))
