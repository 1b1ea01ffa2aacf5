"""The consensus core of one manager as a machine: its events, its timers, its writes and its effects.

The protocol is in the parts: the member's state (member.py), elections (election.py), messages (step.py), a leadership
(leadership.py), applying (applying.py) and removal (removal.py). Here events reach them, and after each event
everything is brought forward that it made possible. What a message states is on disk before the message leaves
(outbox.py). (etcd/raft: rawnode.go; swarmkit: manager/state/raft/raft.go)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from swarm.api import raftpb
from swarm.raft.applying import Applier
from swarm.raft.election import TRANSFER, Election
from swarm.raft.events import (
    NO_ONE,
    Accepted,
    BecameFollower,
    Campaign,
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
    Restore,
    Role,
    SnapshotSent,
    SnapshotTaken,
    Status,
    TransferLeadership,
    Unreachable,
)
from swarm.raft.member import Member
from swarm.raft.progress import Progress
from swarm.raft.removal import Removal
from swarm.raft.step import Stepper
from swarm.raft.timer import ElectionTimer


class Raft:
    """The consensus core of one manager (a Machine: handle and deadline)."""

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
        Raises LogConflict if these do not fit together.
        """
        member = self._member = Member(config, rng, hard_state, snapshot, entries, applied_index, now)
        self.log = member.log
        self.membership = member.membership
        self._outbox = member.outbox
        self._timer = ElectionTimer(member)
        self._election = Election(member, self._timer)
        self._stepper = Stepper(member, self._election, self._timer)
        self._removal = Removal(member, self._election)
        self._applier = Applier(member, self._election, self._removal)
        self._promised = now
        self._started = False

    # --- the machine ---

    def handle(self, event: Event | None, now: float) -> list[Effect]:
        """Take one event; None: the deadline passed. Raises LogLost or LogConflict if this disk cannot be trusted."""
        member = self._member
        late = now - self._promised > member.config.tick_s
        member.now = max(now, member.now)
        effects: list[Effect] = []
        self._outbox.effects = effects
        if member.leadership:
            member.leadership.replication.now = member.now
        if not self._started:
            self._start()
        if event is not None:
            self._take(event)
        self._wake(late)
        self._settle()
        self._promised = self.deadline() or member.now
        return effects

    def deadline(self) -> float | None:
        """When to call handle(None) at the latest, in seconds since the epoch; None: nothing is due."""
        member = self._member
        if not self._started:
            return member.now
        if member.leadership:
            return member.leadership.deadline()
        return self._timer.due if self._election.may_campaign else self._removal.due

    def _start(self) -> None:
        member = self._member
        self._started = True
        self._promised = member.now
        member.emit(BecameFollower(member.term, NO_ONE))
        if member.membership.voters:
            member.emit(MembershipChanged(member.membership.conf_state))
        self._election.campaign_if_alone()

    def _take(self, event: Event) -> None:
        match event:
            case Received(message):
                self._stepper.receive(message)
            case Persisted(token):
                self._persisted(token)
            case Propose(tag, data):
                self._propose(tag, raftpb.Entry(Type=raftpb.EntryNormal, Data=data), None)
            case ProposeMembership(tag, change):
                entry = raftpb.Entry(Type=raftpb.EntryConfChange, Data=change.SerializeToString())
                self._propose(tag, entry, change)
            case SnapshotTaken(snapshot, keep_entries):
                self._snapshot_taken(snapshot, keep_entries)
            case Gone(raft_id):
                self._election.leader_gone(raft_id)
            case Campaign(force):
                self._election.campaign(TRANSFER if force else b"")
            case Configure(config):
                self._configure(config)
            case _:
                self._take_as_leader(event)

    def _take_as_leader(self, event: ReadBarrier | TransferLeadership | Unreachable | SnapshotSent) -> None:
        """What concerns a leader only."""
        leadership = self._member.leadership
        if leadership is None:
            if isinstance(event, ReadBarrier):
                self._member.emit(Refused(event.tag, Reason.NOT_LEADER))
            return
        match event:
            case ReadBarrier(tag):
                leadership.read(tag)
            case TransferLeadership(to):
                leadership.transfer(to, self._member.now)
            case Unreachable(raft_id):
                leadership.replication.on_unreachable(raft_id)
            case SnapshotSent(raft_id, ok):
                leadership.replication.on_snapshot_sent(raft_id, ok)

    def _wake(self, late: bool) -> None:
        """Do what is due. late: the deadline passed more than a tick ago, so this process was stalled."""
        member, leadership = self._member, self._member.leadership
        if late and self._timer.take_grace() and leadership:
            leadership.give_grace(member.now + member.config.tick_s)
        if leadership:
            if not late:
                self._timer.renew_grace()
            if not leadership.wake(member.now):
                self._election.become_follower(member.term, NO_ONE)
        else:
            self._election.wake()

    def _settle(self) -> None:
        """Bring everything forward that this event made possible, then begin a write for what is not on disk."""
        member = self._member
        if member.leadership:
            member.leadership.maybe_commit()
        while self._applier.apply():
            if member.leadership:
                member.leadership.maybe_commit()
        if member.removed:
            self._removal.wake()
        self._outbox.flush()
        leadership = member.leadership
        if leadership and leadership.reads.confirmed:
            for index, tag in leadership.reads.take_ready(self.log.applied):
                member.emit(ReadReady(tag, index))

    def _configure(self, config: Config) -> None:
        member = self._member
        assert config.raft_id == member.config.raft_id
        other_timeout = config.election_s != member.config.election_s
        member.config = config
        self._outbox.commit_lag = config.commit_lag_entries
        if member.leadership:
            member.leadership.configure(config, member.now)
        elif other_timeout:
            self._timer.restart()

    # --- proposals and writes ---

    def _propose(self, tag: int, entry: raftpb.Entry, change: raftpb.ConfChange | None) -> None:
        member, leadership = self._member, self._member.leadership
        reason = leadership.refusal(entry, change) if leadership and not member.removed else Reason.NOT_LEADER
        if reason or not leadership:
            member.emit(Refused(tag, reason or Reason.NOT_LEADER))
            return
        leadership.append(entry)
        member.emit(Accepted(tag, entry.Index, entry.Term))

    def _persisted(self, token: int) -> None:
        member = self._member
        restored, to_self = self._outbox.written(token)
        if restored is not None:
            self.log.applied = restored.metadata.index
            self.membership.restore(restored.metadata.conf_state)
            if member.config.raft_id in self.membership.voters:
                self._removal.cancel()
            member.emit(Restore(restored))
            member.emit(MembershipChanged(self.membership.conf_state))
        for message in to_self:
            self._stepper.step(message)

    def _snapshot_taken(self, snapshot: raftpb.Snapshot, keep_entries: int) -> None:
        member, log, index = self._member, self.log, snapshot.metadata.index
        if index > log.applied:
            raise LogConflict(f"raft: a snapshot of entry {index} was taken, but only {log.applied} is applied")
        term = log.term_at(index)
        if term is None or (member.snapshot and index <= member.snapshot.metadata.index):
            return  # taken before a newer one arrived
        own = raftpb.Snapshot()
        own.CopyFrom(snapshot)
        own.metadata.term = term
        if not own.metadata.conf_state.voters:
            own.metadata.conf_state.CopyFrom(self.membership.conf_state)
        member.snapshot = own
        keep_from = max(index - keep_entries, log.first_index - 1)
        log.compact(keep_from)
        self._outbox.snapshot_is(own, keep_from, restores=False)
        if member.leadership:
            member.leadership.replication.snapshot_taken()

    # --- looking in ---

    @property
    def config(self) -> Config:
        """The settings that are in use."""
        return self._member.config

    @property
    def term(self) -> int:
        """The current term."""
        return self._member.term

    @property
    def vote(self) -> int:
        """For whom this member voted in the current term, or NO_ONE."""
        return self._member.vote

    @property
    def role(self) -> Role:
        """What this member is at the moment."""
        return self._member.role

    @property
    def leader(self) -> int:
        """Who leads in the current term, or NO_ONE if this member does not know."""
        return self._member.leader

    def hears_leader(self, now: float) -> bool:
        """Whether this member leads, or has heard its leader within an election timeout."""
        return self._timer.hears_leader(now)

    @property
    def snapshot(self) -> raftpb.Snapshot | None:
        """The last snapshot, taken here or received from a leader."""
        return self._member.snapshot

    @property
    def transferring(self) -> bool:
        """Whether this member leads and is handing over: it takes no proposals."""
        leadership = self._member.leadership
        return leadership is not None and leadership.transferee != NO_ONE

    @property
    def progress(self) -> Mapping[int, Progress]:
        """What a leader knows of each follower, by raft id; empty for others."""
        leadership = self._member.leadership
        return leadership.replication.progress if leadership else {}

    def status(self) -> Status:
        """What this member knows and does, for metrics, logs and tests."""
        member, log = self._member, self.log
        return Status(
            member.role,
            member.term,
            member.leader,
            log.last_index,
            log.committed,
            log.applied,
            member.leadership.transferee if member.leadership else NO_ONE,
            {raft_id: progress.match for raft_id, progress in self.progress.items()},
        )

    def check(self) -> None:
        """Assert what must always hold; tests call it after every event."""
        self._member.check()
