"""Replication: how a leader brings its log, its commit index and its snapshot to each follower.

Entries are streamed to every follower that keeps up; one that does not is probed, or gets a snapshot (progress.py).
Followers are told a commit index only when the leader has applied up to there, so that no removed member can learn of
its removal from a leader that may still forget it. (etcd/raft: raft.go sendAppend, bcastHeartbeat, stepLeader)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from swarm.api import raftpb
from swarm.raft.events import Config
from swarm.raft.log import Log
from swarm.raft.membership import Membership
from swarm.raft.progress import Mode, Progress, agreed_index


class SendNow(Protocol):
    """How a leader sends: type, receiver, and the other fields of raftpb.Message."""

    def __call__(self, kind: raftpb.MessageType, to: int, /, **fields: Any) -> None:
        """The message leaves with this event's effects."""
        ...


class Replication:
    """The followers of one leadership, and what is sent to them."""

    def __init__(
        self,
        config: Config,
        log: Log,
        membership: Membership,
        send: SendNow,
        snapshot_for: Callable[[int], raftpb.Snapshot | None],
        now: float,
    ) -> None:
        """snapshot_for: the snapshot to send to this member, or None if a newer one must be taken first."""
        self.config = config
        self.now = now
        """The time of the event that is being handled."""
        self.progress: dict[int, Progress] = {}
        """By raft id, in its order; without the leader."""
        self.announce_due = math.inf
        """When followers must be told the commit index, unless an entry carries it earlier."""
        self._log = log
        self._membership = membership
        self._send = send
        self._snapshot_for = snapshot_for
        self._add_progress(active=False)

    # --- what followers have ---

    def agreed_index(self) -> int:
        """The highest index that a majority has on disk, the leader counted by its own."""
        own, stable, progress = self.config.raft_id, self._log.stable, self.progress
        return agreed_index([stable if voter == own else progress[voter].match for voter in self._membership.voters])

    def take_active(self) -> int:
        """How many voters, the leader included, were heard since the last call."""
        own = self.config.raft_id
        active = sum(1 for raft_id in self._membership.voters if raft_id == own or self.progress[raft_id].active)
        for progress in self.progress.values():
            progress.active = False
        return active

    # --- sending ---

    def broadcast_append(self) -> None:
        """Send new entries to the followers that keep up."""
        for raft_id, progress in self.progress.items():
            self.send_append(raft_id, progress, even_if_empty=False)

    def applied(self) -> None:
        """The leader applied more: followers are to learn of it, at once or with announce_s soon."""
        if self.config.announce_s:
            self.announce_due = min(self.announce_due, self.now + self.config.announce_s)
        else:
            self.announce_all()

    def announce_all(self) -> None:
        """Tell every follower the commit index."""
        self.announce_due = math.inf
        for raft_id, progress in self.progress.items():
            self._announce(raft_id, progress)

    def _announce(self, raft_id: int, progress: Progress) -> None:
        news = progress.sent_commit < self._log.applied and progress.sent_commit < progress.next - 1
        if news or progress.next <= self._log.last_index:
            self.send_append(raft_id, progress)

    def send_append(self, raft_id: int, progress: Progress, even_if_empty: bool = True) -> bool:
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
                self.send_append(raft_id, progress)

    def broadcast_heartbeat(self, context_for: Callable[[int], bytes]) -> None:
        """Show every follower that the leader lives; a commit index beyond what a follower has is never shown.

        context_for: what the heartbeat carries, by the commit index in it.
        """
        for raft_id, progress in self.progress.items():
            commit = min(progress.match, self._log.applied)
            self._send(raftpb.MsgHeartbeat, raft_id, commit=commit, context=context_for(commit))
            progress.sent_commit = max(progress.sent_commit, commit)

    # --- answers ---

    def on_append_response(self, raft_id: int, message: raftpb.Message) -> bool:
        """A follower has the entries up to message.index, or says where its log may meet ours.

        Returns whether it confirmed something new.
        """
        progress = self.progress[raft_id]
        progress.active = True
        if message.reject:
            hint = message.rejectHint
            if message.logTerm:
                hint, _ = self._log.conflict_hint(hint, message.logTerm)
            if progress.rejected(message.index, hint):
                self.send_append(raft_id, progress)
            return False
        if message.index > self._log.last_index:
            return False  # nobody can have what was never appended: a message of a broken peer
        news = progress.confirmed(message.index)
        if not news and not (progress.mode is Mode.PROBE and progress.match == message.index):
            return False
        if progress.mode is Mode.PROBE:
            progress.replicate()
        elif progress.mode is Mode.SNAPSHOT:
            if progress.match + 1 >= self._log.first_index:
                progress.replicate()
        else:
            progress.free(message.index)
        if not self.config.announce_s:
            self._announce(raft_id, progress)
        while self.send_append(raft_id, progress, even_if_empty=False):
            pass
        return True

    def on_heartbeat_response(self, raft_id: int) -> bool:
        """A follower heard us: wake it if it lags; returns whether it does."""
        progress = self.progress[raft_id]
        progress.active = True
        progress.paused = False
        lags = progress.match < self._log.last_index or progress.mode is Mode.PROBE
        if lags:
            self.send_append(raft_id, progress)
        return lags

    def on_snapshot_sent(self, raft_id: int, ok: bool) -> None:
        """The transport delivered a MsgSnap, or could not; appends resume after the follower's next answer."""
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

    # --- settings and voters ---

    def configure(self, config: Config) -> None:
        """Use new settings."""
        self.config = config
        for progress in self.progress.values():
            progress.inflight_max = max(config.inflight_messages_max, progress.inflight)

    def membership_changed(self) -> None:
        """Follow the voters: new ones are probed from the end of the log, removed ones (who were told) are dropped."""
        voters = self._membership.voters
        for raft_id in [raft_id for raft_id in self.progress if raft_id not in voters]:
            del self.progress[raft_id]
        self._add_progress(active=True)

    def _add_progress(self, active: bool) -> None:
        for raft_id in self._membership.voters:
            if raft_id != self.config.raft_id and raft_id not in self.progress:
                limit = self.config.inflight_messages_max
                self.progress[raft_id] = Progress(self._log.last_index + 1, limit, active)
        self.progress = dict(sorted(self.progress.items()))

    def check(self) -> None:
        """Assert what must always hold."""
        assert sorted(self.progress) == [v for v in self._membership.voters if v != self.config.raft_id]
        for progress in self.progress.values():
            progress.check()
            assert progress.match <= self._log.last_index
