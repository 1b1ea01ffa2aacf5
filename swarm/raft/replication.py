"""One leadership: appends, commits, heartbeats, snapshots, confirmed reads and the hand-over, for one term.

Theory of operation: made when an election is won, dropped when leadership ends; nothing in it outlives the term. An
entry is appended to the own log and streamed to every follower that keeps up, while the own disk writes it; it is
committed once a majority, the leader counted by what is on its disk, has it, and if it is of this term. Followers are
told a commit index only when the leader has applied up to there, so that no removed member can learn of its removal
from a leader that may still forget it. A read is confirmed by one round of heartbeats that carry the round's number;
reads that arrive during a round share the next one. (etcd/raft: raft.go stepLeader, read_only.go)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from swarm.api import raftpb
from swarm.raft.events import NO_ONE, Config, Reason
from swarm.raft.log import Log
from swarm.raft.membership import Membership
from swarm.raft.progress import Mode, Progress, agreed_index

_ROUND_BYTES = 8
_FAREWELL = b"farewell!"


class SendNow(Protocol):
    """How a leader sends: type, receiver, and the other fields of raftpb.Message."""

    def __call__(self, kind: raftpb.MessageType, to: int, /, **fields: Any) -> None:
        """The message leaves with this event's effects."""
        ...


class Leadership:
    """What a member keeps only while it leads."""

    def __init__(
        self,
        config: Config,
        term: int,
        log: Log,
        membership: Membership,
        send: SendNow,
        snapshot_for: Callable[[int], raftpb.Snapshot | None],
        now: float,
    ) -> None:
        """snapshot_for: the snapshot to send to this member, or None if a newer one must be taken first."""
        self.config = config
        self.term = term
        self.now = now
        self._log = log
        self._membership = membership
        self._send = send
        self._snapshot_for = snapshot_for
        self.first_index = log.last_index + 1
        """Index of the empty entry with which the term begins."""
        self.pending_change_index = self.first_index
        self.uncommitted_bytes = 0
        self.transferee = NO_ONE
        self.transfer_due = 0.0
        self.heartbeat_due = now + config.heartbeat_s
        self.quorum_due = now + config.election_s
        self._announce_due = math.inf
        self.progress: dict[int, Progress] = {}
        self._round = 0
        self._round_acks: set[int] = set()
        self._round_reads: list[tuple[int, int]] = []
        self._waiting_reads: list[tuple[int, int]] = []
        self.confirmed_reads: list[tuple[int, int]] = []
        self._farewell_index = 0
        self._farewell_acks: set[int] = set()
        self._add_progress(active=False)

    # --- what the leader may do ---

    @property
    def ready(self) -> bool:
        """Whether everything up to the first entry of this term is applied: only then are decisions sound."""
        return self._log.applied >= self.first_index

    def refusal(self, entry: raftpb.Entry, change: raftpb.ConfChange | None) -> Reason | None:
        """Why this entry must not be appended now."""
        size = len(entry.Data)
        if self.transferee:
            return Reason.TRANSFERRING
        if not self.ready:
            return Reason.NOT_READY
        if size > self.config.entry_bytes_max:
            return Reason.TOO_LARGE
        if size and self.uncommitted_bytes and self.uncommitted_bytes + size > self.config.uncommitted_bytes_max:
            return Reason.TOO_MUCH_UNCOMMITTED
        if change is not None:
            if self.pending_change_index > self._log.applied:
                return Reason.CHANGE_PENDING
            if change.type == raftpb.ConfChangeRemoveNode and change.node_id == self.config.raft_id:
                return Reason.REMOVES_LEADER
            if not self._membership.allows(change):
                return Reason.BAD_CHANGE
        return None

    def append(self, entry: raftpb.Entry) -> None:
        """Take the entry, whose term and index are set, and stream it to those who keep up."""
        self._log.append((entry,))
        self.uncommitted_bytes += len(entry.Data)
        if entry.Type == raftpb.EntryConfChange:
            self.pending_change_index = entry.Index
        for raft_id, progress in self.progress.items():
            self._send_append(raft_id, progress, even_if_empty=False)

    def maybe_commit(self) -> bool:
        """Advance the commit index as far as a majority allows."""
        index = agreed_index(self._match(raft_id) for raft_id in self._membership.voters)
        return self._log.term_at(index) == self.term and self._log.commit_to(index)

    def _match(self, raft_id: int) -> int:
        return self._log.stable if raft_id == self.config.raft_id else self.progress[raft_id].match

    def applied(self, entries: list[raftpb.Entry]) -> None:
        """These were handed to the state machine: tell the followers, serve reads that waited for it."""
        self.uncommitted_bytes = max(0, self.uncommitted_bytes - sum(len(entry.Data) for entry in entries))
        if self.config.announce_s:
            self._announce_due = min(self._announce_due, self.now + self.config.announce_s)
        else:
            self._announce_all()

    # --- sending ---

    def _announce_all(self) -> None:
        self._announce_due = math.inf
        for raft_id, progress in self.progress.items():
            self._announce(raft_id, progress)

    def _announce(self, raft_id: int, progress: Progress) -> None:
        news = progress.sent_commit < self._log.applied and progress.sent_commit < progress.next - 1
        if news or progress.next <= self._log.last_index:
            self._send_append(raft_id, progress)

    def _send_append(self, raft_id: int, progress: Progress, even_if_empty: bool = True) -> bool:
        """Send what comes next to this follower, unless it is blocked; returns whether a message left."""
        if progress.blocked:
            return False
        log, previous = self._log, progress.next - 1
        term = log.term_at(previous)
        if term is None:
            return self._send_snapshot(raft_id, progress)
        entries = []
        if progress.mode is not Mode.REPLICATE or not progress.full:
            entries = log.batch(progress.next, self.config.message_bytes_max)
        if not entries and not even_if_empty:
            return False
        self._send(raftpb.MsgApp, raft_id, index=previous, logTerm=term, entries=entries, commit=log.applied)
        progress.sent(len(entries), log.applied)
        return True

    def _send_snapshot(self, raft_id: int, progress: Progress) -> bool:
        if not progress.active:
            return False
        asked = progress.snapshot_asked_at
        if asked is not None and self.now - asked < self.config.election_s:
            return False
        snapshot = self._snapshot_for(raft_id)
        if snapshot is None:
            progress.snapshot_asked_at = self.now
            return False
        progress.await_snapshot(snapshot.metadata.index)
        self._send(raftpb.MsgSnap, raft_id, snapshot=snapshot)
        return True

    def snapshot_taken(self) -> None:
        """A newer snapshot is there: serve those who wait for one."""
        for raft_id, progress in self.progress.items():
            if progress.snapshot_asked_at is not None:
                progress.snapshot_asked_at = None
                self._send_append(raft_id, progress)

    def broadcast_heartbeat(self) -> None:
        """Show every follower that the leader lives; a commit index beyond what a follower has is never shown."""
        context = self._round.to_bytes(_ROUND_BYTES, "big") if self._round_reads else b""
        for raft_id, progress in self.progress.items():
            commit = min(progress.match, self._log.applied)
            told = 0 < self._farewell_index <= commit
            self._send(raftpb.MsgHeartbeat, raft_id, commit=commit, context=_FAREWELL if told else context)
            progress.sent_commit = max(progress.sent_commit, commit)

    # --- answers ---

    def on_append_response(self, raft_id: int, message: raftpb.Message) -> None:
        """A follower has the entries up to message.index, or says where its log may meet ours."""
        progress = self.progress[raft_id]
        progress.active = True
        if message.reject:
            hint = message.rejectHint
            if message.logTerm:
                hint, _ = self._log.conflict_hint(hint, message.logTerm)
            if progress.rejected(message.index, hint):
                self._send_append(raft_id, progress)
            return
        if message.index > self._log.last_index:
            return  # nobody can have what was never appended: a message of a broken peer
        news = progress.confirmed(message.index)
        if not news and not (progress.mode is Mode.PROBE and progress.match == message.index):
            return
        if progress.mode is Mode.PROBE:
            progress.replicate()
        elif progress.mode is Mode.SNAPSHOT:
            if progress.match + 1 >= self._log.first_index:
                progress.replicate()
        else:
            progress.free(message.index)
        if not self.config.announce_s:
            self._announce(raft_id, progress)
        while self._send_append(raft_id, progress, even_if_empty=False):
            pass
        if raft_id == self.transferee and progress.match == self._log.last_index:
            self._send(raftpb.MsgTimeoutNow, raft_id)

    def on_heartbeat_response(self, raft_id: int, message: raftpb.Message) -> None:
        """A follower heard us: wake it if it lags, and count it for the read round it names."""
        progress = self.progress[raft_id]
        progress.active = True
        progress.paused = False
        if progress.match < self._log.last_index or progress.mode is Mode.PROBE:
            self._send_append(raft_id, progress)
        elif raft_id == self.transferee:
            self._send(raftpb.MsgTimeoutNow, raft_id)  # the first one may have been lost
        if self._farewell_index and message.context == _FAREWELL:
            self._farewell_acks.add(raft_id)
        elif self._round_reads and message.context == self._round.to_bytes(_ROUND_BYTES, "big"):
            self._round_acks.add(raft_id)
            self._finish_round()

    def on_snapshot_sent(self, raft_id: int, ok: bool) -> None:
        """Transport's word on a MsgSnap; appends resume after the follower's own answer or the next heartbeat's."""
        progress = self.progress.get(raft_id)
        if progress is None or progress.mode is not Mode.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = 0
        progress.probe()
        progress.paused = True

    def on_unreachable(self, raft_id: int) -> None:
        """A message was lost: stop streaming until the follower answers."""
        progress = self.progress.get(raft_id)
        if progress is not None and progress.mode is Mode.REPLICATE:
            progress.probe()

    # --- time ---

    def wake(self, now: float) -> bool:
        """Do what is due; returns False if no majority was heard for an election timeout (check_quorum)."""
        self.now = now
        if self.transferee and now >= self.transfer_due:
            self.transferee = NO_ONE
        if now >= self.quorum_due:
            self.quorum_due = now + self.config.election_s
            active = sum(1 for raft_id in self._membership.voters if self._is_active(raft_id))
            for progress in self.progress.values():
                progress.active = False
            if self.config.check_quorum and active < self._membership.quorum:
                return False
        if now >= self.heartbeat_due:
            self.heartbeat_due = now + self.config.heartbeat_s
            self.broadcast_heartbeat()
        if now >= self._announce_due:
            self._announce_all()
        return True

    def _is_active(self, raft_id: int) -> bool:
        return raft_id == self.config.raft_id or self.progress[raft_id].active

    def deadline(self) -> float:
        """When wake must be called, in seconds since the epoch. A leader without followers owes no heartbeats."""
        due = min(self.heartbeat_due, self.quorum_due, self._announce_due) if self.progress else self.quorum_due
        return min(due, self.transfer_due) if self.transferee else due

    def configure(self, config: Config) -> None:
        """Use new settings; the clocks start anew."""
        self.config = config
        self.heartbeat_due = min(self.heartbeat_due, self.now + config.heartbeat_s)
        self.quorum_due = self.now + config.election_s
        for progress in self.progress.values():
            progress.inflight_max = max(config.inflight_messages_max, progress.inflight)

    # --- membership ---

    def membership_changed(self) -> None:
        """Follow the voters: new ones are probed from the end of the log, gone ones (who were told) are forgotten."""
        voters = self._membership.voters
        for raft_id in [raft_id for raft_id in self.progress if raft_id not in voters]:
            del self.progress[raft_id]
        self._add_progress(active=True)
        if self.transferee not in self.progress:
            self.transferee = NO_ONE
        if self._round_reads:
            self._finish_round()

    def _add_progress(self, active: bool) -> None:
        for raft_id in self._membership.voters:
            if raft_id != self.config.raft_id and raft_id not in self.progress:
                limit = self.config.inflight_messages_max
                self.progress[raft_id] = Progress(self._log.last_index + 1, limit, active)
        self.progress = dict(sorted(self.progress.items()))

    # --- transfer ---

    def transfer(self, to: int, now: float) -> None:
        """Begin to hand over: no proposals until the new leader shows up or an election timeout has passed."""
        if to == NO_ONE:
            candidates = [(-p.match, raft_id) for raft_id, p in self.progress.items() if p.active]
            to = min(candidates)[1] if candidates else NO_ONE
        progress = self.progress.get(to)
        if progress is None or to == self.transferee:
            return
        self.transferee, self.transfer_due = to, now + self.config.election_s
        if progress.match == self._log.last_index:
            self._send(raftpb.MsgTimeoutNow, to)
        else:
            self._send_append(to, progress)

    # --- reads ---

    def read(self, tag: int) -> None:
        """Confirm leadership for this read; the answer appears in confirmed_reads as (index, tag)."""
        self._waiting_reads.append((max(self._log.committed, self.first_index), tag))
        if not self._round_reads:
            self._begin_round()

    def _begin_round(self) -> None:
        self._round_reads, self._waiting_reads = self._waiting_reads, []
        self._round += 1
        self._round_acks = {self.config.raft_id}
        if self._membership.alone(self.config.raft_id):
            self._finish_round()
        else:
            self.broadcast_heartbeat()

    def _finish_round(self) -> None:
        acks = sum(1 for raft_id in self._membership.voters if raft_id in self._round_acks)
        if acks < self._membership.quorum:
            return
        self.confirmed_reads += self._round_reads
        self._round_reads = []
        if self._waiting_reads:
            self._begin_round()

    def open_reads(self) -> list[int]:
        """Tags of all reads that are not answered."""
        return [tag for _, tag in self.confirmed_reads + self._round_reads + self._waiting_reads]

    # --- leaving ---

    def begin_farewell(self) -> None:
        """The last applied entry removed this member: stay until a majority of the others knows."""
        self._farewell_index = self._log.applied
        self.broadcast_heartbeat()

    @property
    def farewell_done(self) -> bool:
        """Whether the group certainly can go on without this member."""
        known = sum(1 for voter in self._membership.voters if voter in self._farewell_acks)
        return self._farewell_index > 0 and known >= self._membership.quorum

    def check(self) -> None:
        """Assert what must always hold."""
        assert sorted(self.progress) == [v for v in self._membership.voters if v != self.config.raft_id]
        for progress in self.progress.values():
            progress.check()
            assert progress.match <= self._log.last_index
        assert self.uncommitted_bytes >= 0
        assert self.transferee == NO_ONE or self.transferee in self.progress
        assert self._round_reads or not self._waiting_reads
