"""The state of one member: term, vote, role, leader, log and voters, and the messages and effects that it emits.

This is the state of figure 2 in the Raft paper, without the rules that change it. Those are: when to stand for
election (timer.py), elections (election.py), messages (step.py), applying (applying.py) and removal (removal.py).
(etcd/raft: raft.go, type raft)
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from swarm.api import raftpb
from swarm.raft.events import NO_ONE, BecameFollower, BecameLeader, Config, Effect, LogConflict, NeedSnapshot, Role
from swarm.raft.leadership import Leadership
from swarm.raft.log import Log
from swarm.raft.membership import Membership, parse_change
from swarm.raft.outbox import Needs, Outbox


class Member:
    """What a member knows and is. Its parts change ``role``, ``term``, ``vote`` and ``leader`` through the methods."""

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
        """The state as it is on disk, see Raft. Raises LogConflict if its parts do not fit together."""
        self.config = config
        self.rng = rng
        self.now = now
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
        self.outbox = Outbox(config.raft_id, self.log, (self.term, self.vote, commit) if hard_state else None)
        self.outbox.vote_is(self.term, self.vote)
        self.outbox.commit_lag = config.commit_lag_entries
        self.role = Role.FOLLOWER
        self.leader = NO_ONE
        self.leadership: Leadership | None = None
        """Exists exactly while role is LEADER."""
        self.removed = False
        """Whether the removal of this member is applied: it is no longer a voter, and only waits to leave."""
        self._announced: tuple[int, int] | None = (self.term, NO_ONE)

    def _replay_membership(self, after: int, until: int) -> None:
        for entry in self.log.between(after + 1, until):
            change = parse_change(entry)
            if change:
                self.membership.apply(change)

    @property
    def alone(self) -> bool:
        """Whether this member is the only voter."""
        return self.membership.alone(self.config.raft_id)

    # --- term, vote and leader ---

    def set_term(self, term: int) -> None:
        """Enter this term; the vote of an older one is void."""
        if term != self.term:
            self.term, self.vote = term, NO_ONE
            self.outbox.vote_is(term, NO_ONE)

    def vote_for(self, raft_id: int) -> None:
        """Vote in the current term."""
        self.vote = raft_id
        self.outbox.vote_is(self.term, raft_id)

    def follow(self, leader: int) -> None:
        """Remember who leads, and emit BecameFollower if that is news."""
        self.leader = leader
        if self._announced != (self.term, leader):
            self._announced = (self.term, leader)
            self.emit(BecameFollower(self.term, leader))

    def announce_leadership(self) -> None:
        """Emit BecameLeader, once in each leadership."""
        if self._announced is not None:
            self._announced = None
            self.emit(BecameLeader(self.term))

    # --- effects and messages ---

    def emit(self, effect: Effect) -> None:
        """Add to the effects of the event that is being handled."""
        self.outbox.effects.append(effect)

    def send(self, kind: raftpb.MessageType, to: int, needs: Needs, /, **fields: Any) -> None:
        """Send a message of the current term, unless ``fields`` names another, as soon as what it needs is on disk."""
        fields.setdefault("term", self.term)
        fields["from"] = self.config.raft_id
        self.outbox.send(raftpb.Message(type=kind, to=to, **fields), needs)

    def send_now(self, kind: raftpb.MessageType, to: int, /, **fields: Any) -> None:
        """Send a leader's message, which promises nothing about its own disk."""
        self.send(kind, to, Needs.NOTHING, **fields)

    def snapshot_for(self, raft_id: int) -> raftpb.Snapshot | None:
        """The last snapshot if it has today's voters; otherwise None, and NeedSnapshot is emitted."""
        snapshot = self.snapshot
        if snapshot and tuple(sorted(snapshot.metadata.conf_state.voters)) == self.membership.voters:
            return snapshot
        self.emit(NeedSnapshot(raft_id))
        return None

    def check(self) -> None:
        """Assert what must always hold."""
        self.log.check()
        self.outbox.check()
        assert (self.role is Role.LEADER) == (self.leadership is not None)
        assert self.role is not Role.LEADER or self.leader == self.config.raft_id
        if self.leadership:
            self.leadership.check()
            assert self.leadership.term == self.term
            assert self.vote == self.config.raft_id
