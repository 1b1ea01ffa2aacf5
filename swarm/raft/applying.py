"""Handing committed entries to the state machine, and taking over the membership changes among them.

Entries are handed out when they are committed. A membership change is handed out only when the commit index that covers
it is on disk here, so that a restart never falls back behind a membership that was in use. When a leader has applied
the empty entry of its term, it knows everything that was ever committed, and BecameLeader is emitted.
(etcd/raft: raft.go appliedTo, applyConfChange)
"""

from __future__ import annotations

from swarm.api import raftpb
from swarm.raft.election import Election
from swarm.raft.events import Committed, MembershipChanged
from swarm.raft.member import Member
from swarm.raft.membership import parse_change
from swarm.raft.removal import Removal


class Applier:
    """Moves the applied index of one member."""

    def __init__(self, member: Member, election: Election, removal: Removal) -> None:
        self._member = member
        self._election = election
        self._removal = removal

    def apply(self) -> bool:
        """Hand out what is committed, up to the first membership change; False: there was nothing.

        It need not be on this member's disk: a majority has it on theirs (Ongaro, dissertation, 10.2.1).
        """
        member, log = self._member, self._member.log
        if log.applied >= log.committed or member.outbox.restoring:
            return False
        entries, change = self._next_entries()
        if not entries:
            return False
        log.applied = entries[-1].Index
        member.emit(Committed(tuple(entries)))
        if member.leadership:
            member.leadership.applied(entries)
        if change:
            self._apply_change(change)
        if member.leadership and member.leadership.ready and not member.removed:
            member.announce_leadership()
        return True

    def _next_entries(self) -> tuple[list[raftpb.Entry], raftpb.ConfChange | None]:
        """What may be handed out now, and the membership change that is the last of it."""
        log, outbox = self._member.log, self._member.outbox
        entries = []
        for entry in log.between(log.applied + 1, log.committed):
            change = None
            if entry.Type == raftpb.EntryConfChange:
                if entry.Index > outbox.durable_commit:
                    outbox.want_commit(entry.Index)
                    break
                change = parse_change(entry)
            entries.append(entry)
            if change:
                return entries, change
        return entries, None

    def _apply_change(self, change: raftpb.ConfChange) -> None:
        member = self._member
        if member.membership.apply(change):
            member.emit(MembershipChanged(member.membership.conf_state))
            if member.leadership:
                member.leadership.membership_changed()
        if change.node_id == member.config.raft_id:
            if change.type == raftpb.ConfChangeRemoveNode:
                self._removal.begin()
            elif change.type == raftpb.ConfChangeAddNode:
                self._removal.cancel()
        self._election.campaign_if_alone()
