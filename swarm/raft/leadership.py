"""One leadership: what a leader may append and commit, its clocks, the hand-over, and its own removal, for one term.

Made when an election is won and dropped when the leadership ends; nothing in it outlives the term. It begins with an
empty entry, and proposals are taken once that is applied. An entry is streamed to the followers while the leader's own
disk writes it (replication.py); it is committed once a majority, the leader counted by what is on its disk, has it, and
if it is of this term. Reads are confirmed by heartbeats (reads.py).
(Raft paper, 5.3 and 5.4.2; etcd/raft: raft.go becomeLeader, stepLeader, maybeCommit)
"""

from __future__ import annotations

from collections.abc import Callable

from swarm.api import raftpb
from swarm.raft.events import NO_ONE, Config, Reason
from swarm.raft.log import Log
from swarm.raft.membership import Membership
from swarm.raft.reads import ReadIndex
from swarm.raft.replication import Replication, SendNow

_REMOVAL_CONTEXT = b"farewell!"
"""Carried by heartbeats whose commit index covers the leader's own removal. A read round's number is a byte shorter."""


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
        self._log = log
        self._membership = membership
        self._send = send
        self.replication = Replication(config, log, membership, send, snapshot_for, now)
        self.reads = ReadIndex(config.raft_id, membership, self._broadcast_heartbeat)
        self.first_index = log.last_index + 1
        """Index of the empty entry with which the term begins."""
        self.uncommitted_bytes = 0
        self.transferee = NO_ONE
        self._pending_change_index = self.first_index
        self._transfer_due = 0.0
        self._heartbeat_due = now + config.heartbeat_s
        self._quorum_due = now + config.election_s
        self._removal_index = 0
        self._removal_acks: set[int] = set()

    # --- the log ---

    @property
    def ready(self) -> bool:
        """Whether everything up to the first entry of this term is applied: only then are decisions sound."""
        return self._log.applied >= self.first_index

    def refusal(self, entry: raftpb.Entry, change: raftpb.ConfChange | None) -> Reason | None:
        """Why this entry must not be appended now; None: it may be."""
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
            if self._pending_change_index > self._log.applied:
                return Reason.CHANGE_PENDING
            if change.type == raftpb.ConfChangeRemoveNode and change.node_id == self.config.raft_id:
                return Reason.REMOVES_LEADER
            if not self._membership.allows(change):
                return Reason.BAD_CHANGE
        return None

    def append(self, entry: raftpb.Entry) -> None:
        """Give the entry its term and index, append it, and stream it to those who keep up."""
        entry.Term, entry.Index = self.term, self._log.last_index + 1
        self._log.append((entry,))
        self.uncommitted_bytes += len(entry.Data)
        if entry.Type == raftpb.EntryConfChange:
            self._pending_change_index = entry.Index
        self.replication.broadcast_append()

    def maybe_commit(self) -> bool:
        """Advance the commit index as far as a majority allows, counting copies of this term's entries only."""
        index = self.replication.agreed_index()
        return self._log.term_at(index) == self.term and self._log.commit_to(index)

    def applied(self, entries: list[raftpb.Entry]) -> None:
        """These were handed to the state machine: tell the followers."""
        self.uncommitted_bytes = max(0, self.uncommitted_bytes - sum(len(entry.Data) for entry in entries))
        self.replication.applied()

    # --- messages ---

    def on_append_response(self, raft_id: int, message: raftpb.Message) -> None:
        """A follower confirmed entries or rejected them."""
        news = self.replication.on_append_response(raft_id, message)
        if news and raft_id == self.transferee and self.replication.progress[raft_id].match == self._log.last_index:
            self._send(raftpb.MsgTimeoutNow, raft_id)

    def on_heartbeat_response(self, raft_id: int, message: raftpb.Message) -> None:
        """A follower heard us: send what it lacks, and count it for what the heartbeat carried."""
        lags = self.replication.on_heartbeat_response(raft_id)
        if not lags and raft_id == self.transferee:
            self._send(raftpb.MsgTimeoutNow, raft_id)  # the first one may have been lost
        if self._removal_index and message.context == _REMOVAL_CONTEXT:
            self._removal_acks.add(raft_id)
        else:
            self.reads.acknowledge(raft_id, message.context)

    def _broadcast_heartbeat(self) -> None:
        context, removal_index = self.reads.context, self._removal_index
        self.replication.broadcast_heartbeat(
            lambda commit: _REMOVAL_CONTEXT if 0 < removal_index <= commit else context
        )

    # --- time ---

    def wake(self, now: float) -> bool:
        """Do what is due; returns False if no majority was heard for an election timeout (check_quorum)."""
        if self.transferee and now >= self._transfer_due:
            self.transferee = NO_ONE
        if now >= self._quorum_due:
            self._quorum_due = now + self.config.election_s
            active = self.replication.take_active()
            if self.config.check_quorum and active < self._membership.quorum:
                return False
        if now >= self._heartbeat_due:
            self._heartbeat_due = now + self.config.heartbeat_s
            self._broadcast_heartbeat()
        if now >= self.replication.announce_due:
            self.replication.announce_all()
        return True

    def deadline(self) -> float:
        """When wake must be called, in seconds since the epoch. A leader without followers owes no heartbeats."""
        due = self._quorum_due
        if self.replication.progress:
            due = min(self._heartbeat_due, due, self.replication.announce_due)
        return min(due, self._transfer_due) if self.transferee else due

    def give_grace(self, until: float) -> None:
        """The process was stalled: do not step down before this time."""
        self._quorum_due = max(self._quorum_due, until)

    def configure(self, config: Config, now: float) -> None:
        """Use new settings; the clocks start anew."""
        self.config = config
        self._heartbeat_due = min(self._heartbeat_due, now + config.heartbeat_s)
        self._quorum_due = now + config.election_s
        self.replication.configure(config)

    # --- membership and transfer ---

    def membership_changed(self) -> None:
        """The voters are others now."""
        self.replication.membership_changed()
        if self.transferee not in self.replication.progress:
            self.transferee = NO_ONE
        self.reads.membership_changed()

    def transfer(self, to: int, now: float) -> None:
        """Begin to hand over: no proposals until the new leader shows up or an election timeout has passed.

        to NO_ONE: to the follower that is furthest.
        """
        followers = self.replication.progress
        if to == NO_ONE:
            candidates = [(-p.match, raft_id) for raft_id, p in followers.items() if p.active]
            to = min(candidates)[1] if candidates else NO_ONE
        progress = followers.get(to)
        if progress is None or to == self.transferee:
            return
        self.transferee, self._transfer_due = to, now + self.config.election_s
        if progress.match == self._log.last_index:
            self._send(raftpb.MsgTimeoutNow, to)
        else:
            self.replication.send_append(to, progress)

    # --- reads ---

    def read(self, tag: int) -> None:
        """Confirm leadership for this read, of all that is committed now and was before this term."""
        self.reads.add(max(self._log.committed, self.first_index), tag)

    # --- the leader's own removal ---

    def begin_removal(self) -> None:
        """The last applied entry removed this member: find out when a majority of the others knows."""
        self._removal_index = self._log.applied
        self._broadcast_heartbeat()

    @property
    def removal_known(self) -> bool:
        """Whether the group certainly can go on without this member, which was removed."""
        known = sum(1 for voter in self._membership.voters if voter in self._removal_acks)
        return self._removal_index > 0 and known >= self._membership.quorum

    def check(self) -> None:
        """Assert what must always hold."""
        self.replication.check()
        self.reads.check()
        assert self.uncommitted_bytes >= 0
        assert self.transferee == NO_ONE or self.transferee in self.replication.progress
