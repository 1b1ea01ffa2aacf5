"""Drives the Raft core of a manager: what commits goes into the store, snapshots are taken, its timing is set.

(swarmkit: manager/state/raft/raft.go)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from swarm import api, defaults
from swarm.api import encoding, raftpb
from swarm.errors import SwarmError
from swarm.manager.events import DisconnectRemovedNodes, ManagerEffect
from swarm.manager.group.members import RaftGroup
from swarm.manager.group.tick import RoundTrips
from swarm.raft import events
from swarm.raft.membership import parse_change
from swarm.raft.raft import Raft
from swarm.store.store import Change, Store

log = structlog.get_logger()


class Above(Protocol):
    """Who acts on what the group decides."""

    def applied(self, changes: Sequence[Change], now: float) -> None:
        """An entry was applied to the store."""
        ...

    def membership_applied(self, change: raftpb.ConfChange | None, index: int, now: float) -> None:
        """A change of the group was applied; None: it could not be read."""
        ...

    def read_ready(self, tag: int, now: float) -> None:
        """A read barrier was reached."""
        ...

    def accepted(self, tag: int, index: int) -> None:
        """What was proposed is entry ``index`` now."""
        ...

    def refused(self, tag: int, reason: events.Reason, now: float) -> None:
        """The log took neither this read nor this proposal; nothing was changed."""
        ...

    def leads(self, term: int, now: float) -> None:
        """This member leads, and its store is complete."""
        ...

    def follows(self, term: int, leader: int, now: float) -> None:
        """Another member leads; 0: nobody is known to."""
        ...


class Consensus:
    """See the module. now: seconds since the epoch.

    strict: an entry that breaks a rule of the store ends the machine, as tests want it. out: gets the core's effects.
    """

    def __init__(
        self,
        raft: Raft,
        store: Store,
        group: RaftGroup,
        above: Above,
        out: list[ManagerEffect],
        mixed_leadership: bool,
        strict: bool,
    ) -> None:
        """mixed_leadership: this member may lead stock managers."""
        self.round_trips = RoundTrips()
        self.entries_applied = 0
        """Since the start."""
        self._raft = raft
        self._store = store
        self._group = group
        self._above = above
        self._out = out
        self.mixed_leadership = mixed_leadership
        self._strict = strict

    def step(self, event: events.Event | None, now: float) -> None:
        """An event for the core, or None: its deadline may be due."""
        above, reconfigure = self._above, False
        for effect in self._raft.handle(event, now):
            match effect:
                case events.Persist() | events.Send() | events.Removed():
                    self._out.append(effect)
                case events.MembershipChanged():
                    self._out.append(effect)
                    reconfigure = True
                case events.Committed(entries=entries):
                    for entry in entries:
                        self._apply(entry, now)
                    self._snapshot_in_turn(now)
                case events.Restore(snapshot=snapshot):
                    self.restore(snapshot)
                    self._out += [effect, DisconnectRemovedNodes()]
                case events.ReadReady(tag=tag):
                    above.read_ready(tag, now)
                case events.BecameLeader(term=term):
                    above.leads(term, now)
                case events.BecameFollower(term=term, leader=leader):
                    above.follows(term, leader, now)
                case events.Accepted(tag=tag, index=index):
                    above.accepted(tag, index)
                case events.NeedSnapshot():
                    self._snapshot(now)
                case events.Refused(tag=tag, reason=reason):
                    above.refused(tag, reason, now)
        if reconfigure:  # once: a log that is read tells of many changes
            self.configure(now)

    # --- the log ---------------------------------------------------------------------------------------------------

    def _apply(self, entry: raftpb.Entry, now: float) -> None:
        self.entries_applied += 1
        if entry.Type == raftpb.EntryConfChange:
            self._store.index = entry.Index
            self._apply_membership(parse_change(entry), entry.Index, now)
        elif entry.Data:
            self._above.applied(self._apply_actions(entry), now)
        else:
            self._store.index = entry.Index

    def _apply_actions(self, entry: raftpb.Entry) -> list[Change]:
        try:
            request = api.InternalRaftRequest.FromString(entry.Data)
            return self._store.apply(request.action, entry.Index)
        except (SwarmError, DecodeError) as error:
            # as SwarmKit's followers do: an entry that breaks a rule of the store is skipped, loudly
            log.error("raft.entry_skipped", index=entry.Index, error=str(error))
            if self._strict:
                raise
            return []

    def _apply_membership(self, change: raftpb.ConfChange | None, index: int, now: float) -> None:
        if change is None:
            log.error("raft.entry_skipped", index=index, error="a change of the group that cannot be read")
        elif self._group.apply(change):
            self._snapshot(now, keep=0)  # newcomers must not read of our removal, even for a moment: they would tell us
        self._above.membership_applied(change, index, now)

    # --- snapshots -------------------------------------------------------------------------------------------------

    def restore(self, snapshot: raftpb.Snapshot) -> None:
        """Replace store and membership by a snapshot's."""
        content = api.Snapshot.FromString(snapshot.data)
        self._store.restore(content.store, snapshot.metadata.index)
        self._group.restore(content.membership)

    def _snapshot_in_turn(self, now: float) -> None:
        """Every so many entries, each member in its turn: while one writes, the disks of the others decide."""
        (interval, _), last = self._snapshot_settings(), self._raft.snapshot
        after = self._group.turn(interval)
        if (self._store.index - after) // interval > ((last.metadata.index if last else 0) - after) // interval:
            self._snapshot(now)

    def _snapshot(self, now: float, keep: int | None = None) -> None:
        """Save the store as of the last applied entry, so that the log before it may go."""
        keep = self._snapshot_settings()[1] if keep is None else keep
        content = api.Snapshot(version=api.Snapshot.V0, membership=self._group.save())
        data = content.SerializeToString() + encoding.embedded(api.Snapshot, "store", self._store.encode())
        snapshot = raftpb.Snapshot(data=data)
        snapshot.metadata.index = self._store.index
        self.step(events.SnapshotTaken(snapshot, keep), now)

    def _snapshot_settings(self) -> tuple[int, int]:
        raft = self._settings()
        interval = raft.snapshot_interval or defaults.RAFT_SNAPSHOT_INTERVAL_ENTRIES
        keep = raft.log_entries_for_slow_followers or defaults.RAFT_ENTRIES_FOR_SLOW_FOLLOWERS
        return interval, keep

    def _settings(self) -> api.RaftConfig:
        cluster = next(self._store.all(api.Cluster), None)
        return cluster.spec.raft if cluster is not None else api.RaftConfig()

    # --- time ------------------------------------------------------------------------------------------------------

    def configure(self, now: float) -> None:
        """A group of ours alone ticks fast and asks before it votes; with a stock member it keeps SwarmKit's time."""
        fast, raft, ticks = self._group.only_ours(), self._raft, self._settings()
        heartbeat_ticks = ticks.heartbeat_tick or defaults.RAFT_HEARTBEAT_TICKS
        wanted = replace(
            raft.config,
            tick_s=self.round_trips.tick_s(self._group.others(), raft.leader) if fast else defaults.RAFT_TICK_S,
            pre_vote=fast,
            campaigns=self.may_lead,
            commit_lag_entries=defaults.RAFT_COMMIT_LAG_ENTRIES,
            announce_s=defaults.RAFT_ANNOUNCE_S if fast else 0.0,
            heartbeat_ticks=heartbeat_ticks,
            election_ticks=max(ticks.election_tick or defaults.RAFT_ELECTION_TICKS, heartbeat_ticks + 1),
        )
        if wanted != raft.config:
            log.info("raft.timing", election_s=wanted.election_s, pre_vote=wanted.pre_vote)
            self.step(events.Configure(wanted), now)

    @property
    def may_lead(self) -> bool:
        """Whether this member may lead the others, as far as it knows them."""
        return self.mixed_leadership or not self._group.stock()
