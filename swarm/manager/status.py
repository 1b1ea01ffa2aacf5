"""What others may know of a manager: the process around it, the control API, metrics.

A value: it does not change after it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarm.manager.calls import Counts, Place


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the Raft group. addr: "ip:port" as the log has it; found_at: where it is found as far as is known.

    reachable: whether the last message to it was delivered. ours: whether it is a manager of ours; None: not known yet.
    """

    raft_id: int
    node_id: str
    addr: str
    found_at: str
    reachable: bool
    leads: bool
    ours: bool | None


@dataclass(frozen=True, slots=True)
class Status:
    """One manager at one moment.

    leading: it leads, and its leader is at work. leader: raft ID, 0 for nobody. calls: how many open calls are where.
    Indexes are those of the log. elections_won, passes, entries_applied and ``counts`` count from its start.
    """

    raft_id: int
    members: tuple[Member, ...]
    leading: bool
    leader: int
    term: int
    calls: Mapping[Place, int]
    counts: Counts
    store_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    elections_won: int
    passes: int
    entries_applied: int

    @property
    def others(self) -> tuple[Member, ...]:
        """The members besides this one, by raft ID."""
        return tuple(member for member in self.members if member.raft_id != self.raft_id)

    @property
    def undetermined(self) -> bool:
        """Whether it is not known of some member what it is."""
        return any(member.ours is None for member in self.others)
