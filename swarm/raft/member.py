"""What a member is and how messages change that: roles, terms, votes, elections, leases.

Theory of operation: a follower that hears no leader for a random time between one and two election timeouts
campaigns: it raises the term (after asking in a pre-vote whether that would succeed, if so configured), votes for
itself and asks for votes; a majority makes it leader. A message of a higher term makes a follower of anybody. Members
that hear their leader ignore campaigns (the lease), unless the campaign was ordered by the leader or by force.
(etcd/raft: raft.go Step, campaign, becomeX)
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from swarm.api import raftpb
from swarm.raft.events import (
    NO_ONE,
    BecameFollower,
    Config,
    Effect,
    LogConflict,
    NeedSnapshot,
    Reason,
    Refused,
    Role,
    Status,
    is_plausible,
    sender,
)
from swarm.raft.following import take_append, take_heartbeat, take_snapshot
from swarm.raft.log import Log
from swarm.raft.membership import Membership, parse_change
from swarm.raft.outbox import Needs, Outbox
from swarm.raft.replication import Leadership

TRANSFER = b"CampaignTransfer"
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


class Member:
    """State and protocol of one member; Raft adds events, applying and writing."""

    def __init__(
        self,
        config: Config,
        rng: Random,
        hard_state: raftpb.HardState | None,
        snapshot: raftpb.Snapshot | None,
        entries: Sequence[raftpb.Entry],
        applied_index: int,
        now: float,
    ) -> None:
        """Start, or start again from what is on disk; call handle(None) at once for the first effects.

        hard_state None: nothing is on disk; entries are those of bootstrap_entries() for a new group, and none for a
        member that is about to be added to one. applied_index: where the state machine stands (the snapshot's index).
        """
        self.config = config
        self._rng = rng
        self._now = now
        self._promised = now
        self._started = False
        self.snapshot = snapshot
        self.log = Log(snapshot.metadata if snapshot else None, entries)
        self.membership = Membership(snapshot.metadata.conf_state if snapshot else None)
        self.term = hard_state.term if hard_state else (entries[-1].Term if entries else 0)
        self.vote = hard_state.vote if hard_state else NO_ONE
        commit = max(hard_state.commit if hard_state else self.log.last_index, self.log.committed)
        if not self.log.committed <= applied_index <= commit <= self.log.last_index:
            raise LogConflict(
                f"raft: applied {applied_index}, committed {commit} and log {self.log.committed}.."
                f"{self.log.last_index} do not fit together"
            )
        self.log.commit_to(commit)
        self.log.applied = applied_index
        self._replay_membership(snapshot.metadata.index if snapshot else 0, applied_index)
        self._outbox = Outbox(config.raft_id, self.log, (self.term, self.vote, commit) if hard_state else None)
        self._outbox.vote_is(self.term, self.vote)
        self._outbox.commit_lag = config.commit_lag_entries
        self.role = Role.FOLLOWER
        self.leader = NO_ONE
        self._announced: tuple[int, int] | None = (self.term, NO_ONE)
        self._leadership: Leadership | None = None
        self._votes: dict[int, bool] = {}
        self._is_ahead = False
        self._heard_at = now - config.election_s
        self._spared = False
        self._removed = False
        self._restarted_at = commit
        self._led_at_removal = False
        self._farewell_due: float | None = None
        self._election_due = self._new_election_due()

    def _replay_membership(self, after: int, until: int) -> None:
        for entry in self.log.between(after + 1, until):
            change = parse_change(entry)
            if change:
                self.membership.apply(change)

    def _emit(self, effect: Effect) -> None:
        self._outbox.effects.append(effect)

    # --- roles ---

    @property
    def _may_campaign(self) -> bool:
        """Whether this member could lead: a voter that knows which members there are."""
        if self.role is Role.LEADER or self._removed or self.config.raft_id not in self.membership.voters:
            return False
        log = self.log
        if self._outbox.restoring or log.applied == log.committed:
            return not self._outbox.restoring
        unapplied = log.between(log.applied + 1, log.committed)
        return all(entry.Type != raftpb.EntryConfChange for entry in unapplied)

    def _new_election_due(self) -> float:
        return self._now + self.config.election_s * (1 + self._rng.random())

    def _become_follower(self, term: int, leader: int) -> None:
        self._set_term(term)
        if self._leadership:
            for tag in self._leadership.open_reads():
                self._emit(Refused(tag, Reason.NOT_LEADER))
            self._leadership = None
        self.role = Role.FOLLOWER
        self._election_due = self._new_election_due()
        self._follow(leader)

    def _forget_leader(self, raft_id: int) -> None:
        """The leader's process is gone: its lease is void, and an election is due at once.

        All hear of it at nearly the same moment. Each has a tick for itself: two who stand together both lose, and wait
        for an election timeout. Only with pre-votes: should it not be true, the others, who still hear the leader,
        refuse.
        """
        if self.role is Role.FOLLOWER and self.leader == raft_id and self.config.pre_vote:
            self._heard_at = self._now - self.config.election_s
            before = sum(voter < self.config.raft_id and voter != raft_id for voter in self.membership.voters)
            soon = self._now + self.config.tick_s * (before + self._rng.random() / 2)
            self._election_due = min(self._election_due, soon)

    def _set_term(self, term: int) -> None:
        if term != self.term:
            self.term, self.vote = term, NO_ONE
            self._outbox.vote_is(term, NO_ONE)

    def _vote_for(self, raft_id: int) -> None:
        self.vote = raft_id
        self._outbox.vote_is(self.term, raft_id)

    def _follow(self, leader: int) -> None:
        """Remember who leads and tell the manager when that is news."""
        self.leader = leader
        if self._announced != (self.term, leader):
            self._announced = (self.term, leader)
            self._emit(BecameFollower(self.term, leader))

    def _campaign(self, context: bytes) -> None:
        """Ask for votes, or first whether asking makes sense."""
        if not self._may_campaign:
            self._election_due = self._new_election_due()
            return
        if self.config.pre_vote and context != TRANSFER and not self.membership.alone(self.config.raft_id):
            self.role = Role.PRE_CANDIDATE
            self._ask_for_votes(raftpb.MsgPreVote, self.term + 1, context)
        else:
            self._set_term(self.term + 1)
            self._vote_for(self.config.raft_id)
            self.role = Role.CANDIDATE
            self._ask_for_votes(raftpb.MsgVote, self.term, context)

    def _ask_for_votes(self, kind: raftpb.MessageType, term: int, context: bytes) -> None:
        self._election_due = self._new_election_due()
        self._votes = {}
        self._follow(NO_ONE)
        own, log = self.config.raft_id, self.log
        for voter in self.membership.voters:
            if voter != own:
                fields = {"index": log.last_index, "logTerm": log.last_term, "context": context}
                self._send(kind, voter, Needs.ALL, term=term, **fields)
        if kind == raftpb.MsgPreVote:
            self._votes[own] = True
        else:  # the own vote counts when it is on disk
            self._send(raftpb.MsgVoteResp, own, Needs.ALL)

    def _count_vote(self, message: raftpb.Message) -> None:
        expected = raftpb.MsgVoteResp if self.role is Role.CANDIDATE else raftpb.MsgPreVoteResp
        if message.type != expected:
            return
        if message.type == raftpb.MsgPreVoteResp and not message.reject and message.term != self.term + 1:
            return  # an answer to an older question
        self._votes.setdefault(sender(message), not message.reject)
        votes = [self._votes[voter] for voter in self.membership.voters if voter in self._votes]
        if sum(votes) >= self.membership.quorum:
            if self.role is Role.CANDIDATE:
                self._become_leader()
            else:
                self._set_term(self.term + 1)
                self._vote_for(self.config.raft_id)
                self.role = Role.CANDIDATE
                self._ask_for_votes(raftpb.MsgVote, self.term, b"")
        elif len(self.membership.voters) - votes.count(False) < self.membership.quorum:
            self._become_follower(self.term, NO_ONE)

    def _become_leader(self) -> None:
        self.role, self.leader = Role.LEADER, self.config.raft_id
        self._spared = False
        send = self._send_as_leader
        self._leadership = Leadership(
            self.config, self.term, self.log, self.membership, send, self._snapshot_for, self._now
        )
        self._append(self._leadership, raftpb.Entry(Type=raftpb.EntryNormal))

    def _knock(self) -> None:
        """Tell everybody that this member is there, where it calls from, which is all that a leader needs to find it.

        Who campaigns is heard anyway. To those who do not lead this says nothing.
        """
        for voter in self.membership.voters:
            if voter != self.config.raft_id:
                self._send(raftpb.MsgHeartbeatResp, voter, Needs.VOTE)

    # --- messages ---

    def _send(self, kind: raftpb.MessageType, to: int, needs: Needs, /, **fields: Any) -> None:
        fields.setdefault("term", self.term)
        fields["from"] = self.config.raft_id
        self._outbox.send(raftpb.Message(type=kind, to=to, **fields), needs)

    def _send_as_leader(self, kind: raftpb.MessageType, to: int, /, **fields: Any) -> None:
        self._send(kind, to, Needs.NOTHING, **fields)

    def _receive(self, message: raftpb.Message) -> None:
        """Take a peer's message, unless it cannot be one for us."""
        own = self.config.raft_id
        ours = message.type in _KINDS and message.to == own and sender(message) not in (own, NO_ONE)
        if ours and message.term and is_plausible(message, self.term):
            self._step(message)

    def _step(self, message: raftpb.Message) -> None:
        if message.term > self.term and not self._take_newer_term(message):
            return
        if message.term < self.term:
            self._answer_older_term(message)
            return
        if message.type in _VOTES:
            self._answer_vote(message)
        elif message.type in _FROM_LEADER:
            self._hear_leader(message)
        elif self.role is Role.LEADER:
            self._step_leader(message)
        elif self.role is not Role.FOLLOWER:
            self._count_vote(message)
        elif message.type == raftpb.MsgTimeoutNow:
            self._campaign(TRANSFER)

    @property
    def _in_lease(self) -> bool:
        """Whether this member must not help to replace a leader that it heard just now."""
        if not self.config.check_quorum or self.leader == NO_ONE:
            return False
        return self.role is Role.LEADER or self._now - self._heard_at < self.config.election_s

    def _take_newer_term(self, message: raftpb.Message) -> bool:
        """Follow the newer term; False: the message is to be ignored."""
        if message.type in _VOTES and message.context != TRANSFER and self._in_lease:
            return False
        if message.type == raftpb.MsgPreVote:
            return True  # only a question
        if message.type == raftpb.MsgPreVoteResp and not message.reject:
            if self.role is Role.PRE_CANDIDATE:
                self._count_vote(message)
            return False
        leader = sender(message) if message.type in _FROM_LEADER else NO_ONE
        self._become_follower(message.term, leader)
        return True

    def _answer_older_term(self, message: raftpb.Message) -> None:
        """Show a leader that was cut off, or a candidate, that its term is over."""
        to = sender(message)
        if message.type in (raftpb.MsgApp, raftpb.MsgHeartbeat):
            self._send(raftpb.MsgAppResp, to, Needs.VOTE)
        elif message.type == raftpb.MsgPreVote:
            self._send(raftpb.MsgPreVoteResp, to, Needs.VOTE, reject=True)

    def _answer_vote(self, message: raftpb.Message) -> None:
        candidate = sender(message)
        is_question = message.type == raftpb.MsgPreVote
        free = self.vote == candidate or (self.vote == NO_ONE and self.leader == NO_ONE)
        free = free or (is_question and message.term > self.term)
        up_to_date = self.log.is_up_to_date(message.index, message.logTerm)
        self._is_ahead = self._is_ahead or not up_to_date
        grant = free and up_to_date
        if grant and not is_question:
            self._vote_for(candidate)
            self._election_due = self._new_election_due()
        kind = raftpb.MsgPreVoteResp if is_question else raftpb.MsgVoteResp
        self._send(kind, candidate, Needs.ALL, term=message.term if grant else self.term, reject=not grant)

    def _hear_leader(self, message: raftpb.Message) -> None:
        leader = sender(message)
        if self.role is Role.LEADER:
            raise LogConflict(f"raft: two leaders in term {self.term}: {leader:x} and this member")
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, leader)
        self._follow(leader)
        self._is_ahead = False
        self._heard_at = self._now
        self._spared = False
        self._election_due = self._new_election_due()
        if message.type == raftpb.MsgApp:
            answer = take_append(self.log, message)
            self._outbox.log_was_cut()
            if answer:
                self._send(raftpb.MsgAppResp, leader, Needs.ALL, **answer)
        elif message.type == raftpb.MsgHeartbeat:
            take_heartbeat(self.log, message)
            self._send(raftpb.MsgHeartbeatResp, leader, Needs.VOTE, context=message.context)
        else:
            snapshot = take_snapshot(self.log, message, self.config.raft_id)
            if snapshot:
                self.snapshot = snapshot
                self._outbox.snapshot_is(snapshot, snapshot.metadata.index, restores=True)
                self._outbox.log_was_cut()
            self._send(raftpb.MsgAppResp, leader, Needs.ALL, index=self.log.committed)

    def _step_leader(self, message: raftpb.Message) -> None:
        leadership, peer = self._leadership, sender(message)
        if leadership is None or peer not in leadership.progress:
            return
        if message.type == raftpb.MsgAppResp:
            leadership.on_append_response(peer, message)
        elif message.type == raftpb.MsgHeartbeatResp:
            leadership.on_heartbeat_response(peer, message)
        elif message.type == raftpb.MsgTransferLeader:
            leadership.transfer(peer, self._now)

    def _append(self, leadership: Leadership, entry: raftpb.Entry) -> None:
        entry.Term, entry.Index = self.term, self.log.last_index + 1
        leadership.append(entry)

    def _snapshot_for(self, raft_id: int) -> raftpb.Snapshot | None:
        """The last snapshot, if it knows today's members; else ask for a newer one."""
        snapshot = self.snapshot
        current = self.membership.voters
        if snapshot and tuple(sorted(snapshot.metadata.conf_state.voters)) == current:
            return snapshot
        self._emit(NeedSnapshot(raft_id))
        return None

    # --- looking in ---

    @property
    def transferring(self) -> bool:
        """Whether this member leads and is handing over: it takes no proposals."""
        return self._leadership is not None and self._leadership.transferee != NO_ONE

    def status(self) -> Status:
        """What this member knows and does, for metrics, logs and tests."""
        leadership = self._leadership
        return Status(
            self.role,
            self.term,
            self.leader,
            self.log.last_index,
            self.log.committed,
            self.log.applied,
            leadership.transferee if leadership else NO_ONE,
            {raft_id: p.match for raft_id, p in leadership.progress.items()} if leadership else {},
        )

    def check(self) -> None:
        """Assert what must always hold; tests call it after every event."""
        self.log.check()
        self._outbox.check()
        assert (self.role is Role.LEADER) == (self._leadership is not None)
        assert self.role is not Role.LEADER or self.leader == self.config.raft_id
        if self._leadership:
            self._leadership.check()
            assert self._leadership.term == self.term
            assert self.vote == self.config.raft_id
