"""What a member does with a message: by its term, then by its kind and the member's role.

A newer term makes a follower of every member; a message of an older term is ignored, or answered to show its sender
that its term is over. (etcd/raft: raft.go Step, stepLeader, stepCandidate, stepFollower)
"""

from __future__ import annotations

from swarm.api import raftpb
from swarm.raft.election import TRANSFER, Election
from swarm.raft.events import NO_ONE, LogConflict, Role, is_plausible, sender
from swarm.raft.following import take_append, take_heartbeat, take_snapshot
from swarm.raft.member import Member
from swarm.raft.outbox import Needs
from swarm.raft.timer import ElectionTimer

_FROM_LEADER = (raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap)
_VOTES = (raftpb.MsgVote, raftpb.MsgPreVote)
_KINDS = (
    *_FROM_LEADER,
    *_VOTES,
    raftpb.MsgAppResp,
    raftpb.MsgHeartbeatResp,
    raftpb.MsgVoteResp,
    raftpb.MsgPreVoteResp,
    raftpb.MsgTransferLeader,
    raftpb.MsgTimeoutNow,
)


class Stepper:
    """Takes messages for one member."""

    def __init__(self, member: Member, election: Election, timer: ElectionTimer) -> None:
        self._member = member
        self._election = election
        self._timer = timer

    def receive(self, message: raftpb.Message) -> None:
        """Take a peer's message, unless it cannot be meant for this member or its numbers cannot be true."""
        own = self._member.config.raft_id
        ours = message.type in _KINDS and message.to == own and sender(message) not in (own, NO_ONE)
        if ours and message.term and is_plausible(message, self._member.term):
            self.step(message)

    def step(self, message: raftpb.Message) -> None:
        """Take a message of a peer, or this member's vote for itself. Raises LogLost or LogConflict."""
        member = self._member
        if message.term > member.term and not self._take_newer_term(message):
            return
        if message.term < member.term:
            self._answer_older_term(message)
            return
        if message.type in _VOTES:
            self._election.answer_vote(message)
        elif message.type in _FROM_LEADER:
            self._hear_leader(message)
        elif member.role is Role.LEADER:
            self._step_leader(message)
        elif member.role is not Role.FOLLOWER:
            self._election.count_vote(message)
        elif message.type == raftpb.MsgTimeoutNow:
            self._election.campaign(TRANSFER)

    # --- terms ---

    def _take_newer_term(self, message: raftpb.Message) -> bool:
        """Follow the newer term; False: the message is to be ignored."""
        if message.type in _VOTES and message.context != TRANSFER and self._timer.in_lease:
            return False
        if message.type == raftpb.MsgPreVote:
            return True  # only a question
        if message.type == raftpb.MsgPreVoteResp and not message.reject:
            if self._member.role is Role.PRE_CANDIDATE:
                self._election.count_vote(message)
            return False
        leader = sender(message) if message.type in _FROM_LEADER else NO_ONE
        self._election.become_follower(message.term, leader)
        return True

    def _answer_older_term(self, message: raftpb.Message) -> None:
        """Show a leader that was cut off, or a candidate, that its term is over."""
        to = sender(message)
        if message.type in (raftpb.MsgApp, raftpb.MsgHeartbeat):
            self._member.send(raftpb.MsgAppResp, to, Needs.VOTE)
        elif message.type == raftpb.MsgPreVote:
            self._member.send(raftpb.MsgPreVoteResp, to, Needs.VOTE, reject=True)

    # --- roles ---

    def _hear_leader(self, message: raftpb.Message) -> None:
        member, leader = self._member, sender(message)
        if member.role is Role.LEADER:
            raise LogConflict(f"raft: two leaders in term {member.term}: {leader:x} and this member")
        self._election.leader_heard(leader)
        if message.type == raftpb.MsgApp:
            answer = take_append(member.log, message)
            member.outbox.log_was_cut()
            if answer:
                member.send(raftpb.MsgAppResp, leader, Needs.ALL, **answer)
        elif message.type == raftpb.MsgHeartbeat:
            take_heartbeat(member.log, message)
            member.send(raftpb.MsgHeartbeatResp, leader, Needs.VOTE, context=message.context)
        else:
            snapshot = take_snapshot(member.log, message, member.config.raft_id)
            if snapshot:
                member.snapshot = snapshot
                member.outbox.snapshot_is(snapshot, snapshot.metadata.index, restores=True)
                member.outbox.log_was_cut()
            member.send(raftpb.MsgAppResp, leader, Needs.ALL, index=member.log.committed)

    def _step_leader(self, message: raftpb.Message) -> None:
        leadership, peer = self._member.leadership, sender(message)
        if leadership is None or peer not in leadership.replication.progress:
            return
        if message.type == raftpb.MsgAppResp:
            leadership.on_append_response(peer, message)
        elif message.type == raftpb.MsgHeartbeatResp:
            leadership.on_heartbeat_response(peer, message)
        elif message.type == raftpb.MsgTransferLeader:
            leadership.transfer(peer, self._member.now)
