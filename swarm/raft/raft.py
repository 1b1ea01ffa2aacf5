"""One member of the group as a machine: its events and timers, what it writes and what it hands out.

Theory of operation: member.py decides; here events reach it, and after each one everything is brought forward that it
made possible. What a message states is on disk before it leaves (outbox.py); what is committed is handed out when it
is on disk here, and a membership change only when the commit index that covers it is on disk too, so that a restart
never falls back behind a membership that was in use. A leader appends an empty entry first; when that is applied, it
knows all that was ever committed, and BecameLeader is emitted. A member that is removed stays until the others can do
without its vote: a leader until a majority confirmed to know of it, one that finds its removal at a restart for many
election timeouts (it votes, and does nothing else). A deadline that is handled more than a tick late means
that this process was stalled, not that the leader is gone: one more tick is given, once, to read what waits in the
sockets. (etcd/raft: raft.go, rawnode.go; swarmkit: manager/state/raft/raft.go)
"""

from __future__ import annotations

from swarm.api import raftpb
from swarm.raft.events import (
    NO_ONE,
    Accepted,
    BecameFollower,
    BecameLeader,
    Campaign,
    Committed,
    Config,
    Configure,
    Effect,
    Event,
    Gone,
    LogConflict,
    MembershipChanged,
    Persisted,
    Propose,
    ProposeMembership,
    ReadBarrier,
    ReadReady,
    Reason,
    Received,
    Refused,
    Removed,
    Restore,
    Role,
    SnapshotSent,
    SnapshotTaken,
    TransferLeadership,
    Unreachable,
)
from swarm.raft.member import TRANSFER, Member
from swarm.raft.membership import Membership, parse_change

_FAREWELL_ELECTIONS = 30


class Raft(Member):
    """The consensus core of one manager (a Machine: handle and deadline)."""

    # --- the machine ---

    def handle(self, event: Event | None, now: float) -> list[Effect]:
        """Take one event; None: the deadline passed. Raises LogLost or LogConflict if this disk cannot be trusted."""
        late = now - self._promised > self.config.tick_s
        self._now = max(now, self._now)
        effects: list[Effect] = []
        self._outbox.effects = effects
        if self._leadership:
            self._leadership.now = self._now
        if not self._started:
            self._start()
        if event is not None:
            self._take(event)
        self._wake(late)
        self._settle()
        self._promised = self.deadline() or self._now
        return effects

    def deadline(self) -> float | None:
        """When to call handle(None) at the latest, in seconds since the epoch; None: nothing is due."""
        if not self._started:
            return self._now
        if self._leadership:
            return self._leadership.deadline()
        return self._election_due if self._may_campaign else self._farewell_due

    def _start(self) -> None:
        self._started = True
        self._promised = self._now
        self._emit(BecameFollower(self.term, NO_ONE))
        if self.membership.voters:
            self._emit(MembershipChanged(self.membership.conf_state))
        self._campaign_if_alone()

    def _take(self, event: Event) -> None:
        leadership = self._leadership
        match event:
            case Received(message):
                self._receive(message)
            case Persisted(token):
                self._persisted(token)
            case Propose(tag, data):
                self._propose(tag, raftpb.Entry(Type=raftpb.EntryNormal, Data=data), None)
            case ProposeMembership(tag, change):
                entry = raftpb.Entry(Type=raftpb.EntryConfChange, Data=change.SerializeToString())
                self._propose(tag, entry, change)
            case ReadBarrier(tag):
                if leadership:
                    leadership.read(tag)
                else:
                    self._emit(Refused(tag, Reason.NOT_LEADER))
            case TransferLeadership(to):
                if leadership:
                    leadership.transfer(to, self._now)
            case Unreachable(raft_id):
                if leadership:
                    leadership.on_unreachable(raft_id)
            case Gone(raft_id):
                self._forget_leader(raft_id)
            case SnapshotSent(raft_id, ok):
                if leadership:
                    leadership.on_snapshot_sent(raft_id, ok)
            case SnapshotTaken(snapshot, keep_entries):
                self._snapshot_taken(snapshot, keep_entries)
            case Campaign(force):
                self._campaign(TRANSFER if force else b"")
            case Configure(config):
                self._configure(config)

    def _wake(self, late: bool) -> None:
        now, leadership = self._now, self._leadership
        if late and not self._spared:
            self._spared = True
            soon = now + self.config.tick_s
            self._election_due = max(self._election_due, soon)
            if leadership:
                leadership.quorum_due = max(leadership.quorum_due, soon)
        if leadership:
            self._spared = self._spared and late
            if not leadership.wake(now):
                self._become_follower(self.term, NO_ONE)
        elif self._may_campaign and now >= self._election_due:
            if self.config.campaigns or self._is_ahead or self.membership.alone(self.config.raft_id):
                self._campaign(b"")
            else:
                self._become_follower(self.term, NO_ONE)
                self._knock()

    def _settle(self) -> None:
        """Bring everything forward that this event made possible, then begin a write for what is not on disk."""
        leadership = self._leadership
        if leadership:
            leadership.maybe_commit()
        while self._apply():
            leadership = self._leadership
            if leadership:
                leadership.maybe_commit()
        if self._removed:
            self._maybe_part()
        self._outbox.flush()
        self._answer_reads()

    def _configure(self, config: Config) -> None:
        assert config.raft_id == self.config.raft_id
        slower = config.election_s != self.config.election_s
        self.config = config
        self._outbox.commit_lag = config.commit_lag_entries
        if self._leadership:
            self._leadership.configure(config)
        elif slower:
            self._election_due = self._new_election_due()

    # --- applying ---

    def _apply(self) -> bool:
        """Hand out what is committed, up to the first membership change; False: nothing was.

        It need not be on this member's disk: a majority has it on theirs (Ongaro, dissertation, 10.2.1).
        """
        log = self.log
        if self._outbox.restoring or log.applied >= log.committed:
            return False
        entries = []
        change = None
        for entry in log.between(log.applied + 1, log.committed):
            if entry.Type == raftpb.EntryConfChange:
                if entry.Index > self._outbox.durable_commit:
                    self._outbox.want_commit(entry.Index)
                    break
                change = parse_change(entry)
            entries.append(entry)
            if change:
                break
        if not entries:
            return False
        log.applied = entries[-1].Index
        self._emit(Committed(tuple(entries)))
        if self._leadership:
            self._leadership.applied(entries)
        if change:
            self._apply_change(change)
        if self._leadership and self._leadership.ready and not self._removed:
            self._announce_leader()
        return True

    def _apply_change(self, change: raftpb.ConfChange) -> None:
        if self.membership.apply(change):
            self._emit(MembershipChanged(self.membership.conf_state))
            if self._leadership:
                self._leadership.membership_changed()
        if change.type == raftpb.ConfChangeRemoveNode and change.node_id == self.config.raft_id:
            self._leave()
        elif change.type == raftpb.ConfChangeAddNode and change.node_id == self.config.raft_id:
            self._stay()
        self._campaign_if_alone()

    def _leave(self) -> None:
        """This member is no voter any more; Removed follows when the others certainly can do without it."""
        self._removed = True
        if self._leadership:
            self._leadership.begin_farewell()
            self._led_at_removal = True
        elif self.log.applied <= self._restarted_at:
            self._farewell_due = self._now + _FAREWELL_ELECTIONS * self.config.election_s
        else:  # the leader told us, and it forgets nothing that it tells
            self._emit(Removed())

    def _stay(self) -> None:
        """Taken in, or taken back after a removal: by force_new_cluster, or by the snapshot that replaced the log."""
        self._removed = self._led_at_removal = False
        self._farewell_due = None

    def _maybe_part(self) -> None:
        """Emit Removed when enough others know that they can do without us, or after waiting long enough."""
        leadership = self._leadership
        if leadership and leadership.farewell_done:
            self._become_follower(self.term, NO_ONE)
            self._farewell_due = self._now
        elif leadership is None and self._led_at_removal and self._farewell_due is None:
            self._farewell_due = self._now + _FAREWELL_ELECTIONS * self.config.election_s
        if self._farewell_due is not None and self._now >= self._farewell_due:
            self._farewell_due = None
            self._led_at_removal = False
            self._emit(Removed())

    def _campaign_if_alone(self) -> None:
        """Nobody else could object: do not wait."""
        if self.membership.alone(self.config.raft_id) and self.role is Role.FOLLOWER and self.leader == NO_ONE:
            self._election_due = self._now
            if self._may_campaign:
                self._campaign(b"")

    def _announce_leader(self) -> None:
        if self._announced is not None:
            self._announced = None
            self._emit(BecameLeader(self.term))

    def _answer_reads(self) -> None:
        leadership = self._leadership
        if leadership and leadership.confirmed_reads:
            reads, leadership.confirmed_reads = leadership.confirmed_reads, []
            for index, tag in reads:
                if index <= self.log.applied:
                    self._emit(ReadReady(tag, index))
                else:
                    leadership.confirmed_reads.append((index, tag))

    # --- writing ---

    def _persisted(self, token: int) -> None:
        restored, to_self = self._outbox.written(token)
        if restored is not None:
            self.log.applied = restored.metadata.index
            self.membership = Membership(restored.metadata.conf_state)
            if self.config.raft_id in self.membership.voters:
                self._stay()
            self._emit(Restore(restored))
            self._emit(MembershipChanged(self.membership.conf_state))
        for message in to_self:
            self._step(message)

    def _propose(self, tag: int, entry: raftpb.Entry, change: raftpb.ConfChange | None) -> None:
        leadership = self._leadership
        reason = leadership.refusal(entry, change) if leadership and not self._removed else Reason.NOT_LEADER
        if reason or not leadership:
            self._emit(Refused(tag, reason or Reason.NOT_LEADER))
            return
        self._append(leadership, entry)
        self._emit(Accepted(tag, entry.Index, entry.Term))

    def _snapshot_taken(self, snapshot: raftpb.Snapshot, keep_entries: int) -> None:
        index = snapshot.metadata.index
        if index > self.log.applied:
            raise LogConflict(f"raft: a snapshot of entry {index} was taken, but only {self.log.applied} is applied")
        term = self.log.term_at(index)
        if term is None or (self.snapshot and index <= self.snapshot.metadata.index):
            return  # taken before a newer one arrived
        own = raftpb.Snapshot()
        own.CopyFrom(snapshot)
        own.metadata.term = term
        if not own.metadata.conf_state.voters:
            own.metadata.conf_state.CopyFrom(self.membership.conf_state)
        self.snapshot = own
        keep_from = max(index - keep_entries, self.log.first_index - 1)
        self.log.compact(keep_from)
        self._outbox.snapshot_is(own, keep_from, restores=False)
        if self._leadership:
            self._leadership.snapshot_taken()
