"""One member of the simulated group: its disk, its state machine, its clock.

A disk keeps what was written before a crash; a state machine is a digest of all that was applied, so that two of them
can be compared at any index.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

from swarm.api import raftpb
from swarm.raft import events
from swarm.raft.raft import Raft
from tests.sim.raft_lease import Lease


@dataclass
class Disk:
    """What survives a crash."""

    hard_state: raftpb.HardState | None = None
    snapshot: raftpb.Snapshot | None = None
    entries: list[raftpb.Entry] = field(default_factory=list)

    def write(self, persist: events.Persist) -> None:
        """As RaftDisk does it."""
        if persist.replaces_log:
            self.entries = []
        self.entries = [entry for entry in self.entries if entry.Index > persist.compact_to]
        if persist.entries:
            first = persist.entries[0].Index
            self.entries = [entry for entry in self.entries if entry.Index < first] + list(persist.entries)
        self.snapshot = persist.snapshot or self.snapshot
        self.hard_state = persist.hard_state or self.hard_state


class StateMachine:
    """The digest of everything applied so far: equal digests mean equal histories."""

    def __init__(self, index: int = 0, digest: bytes = b"") -> None:
        self.index = index
        self.digest = digest

    def apply(self, entry: raftpb.Entry) -> None:
        assert entry.Index == self.index + 1, f"applied {entry.Index} after {self.index}"
        self.index = entry.Index
        content = b"%d %d %s %s" % (entry.Index, entry.Term, entry.Data, self.digest)
        self.digest = hashlib.blake2b(content, digest_size=16).digest()


class Member:
    """One process: its core, its state machine, its disk, its clock and its queue."""

    def __init__(self, config: events.Config, clock_rate: float) -> None:
        self.raft_id = config.raft_id
        self.config = config
        self.clock_rate = clock_rate
        self.clock_ahead_s = 0.0
        self.disk = Disk()
        self.raft: Raft | None = None
        self.machine = StateMachine()
        self.lease = Lease(0.0)
        self.run = 0
        self.writing: events.Persist | None = None
        self.stalled_until = 0.0
        self.queue: deque[events.Event] = deque()
        self.retired = False
        self.alarm = 0
        self.since_snapshot = 0
        self.was_leader_of = 0
        self.reads: dict[int, int] = {}
        self.knows_removed: dict[int, bool] = {}

    def clock(self, now: float) -> float:
        """This process's idea of the time."""
        return 1_000_000.0 + self.clock_ahead_s + now * self.clock_rate

    def world_time(self, clock: float) -> float:
        """When its clock shows this."""
        return (clock - 1_000_000.0 - self.clock_ahead_s) / self.clock_rate

    def end(self) -> None:
        """The process is gone, with everything that is not on its disk."""
        self.raft = None
        self.writing = None
        self.queue.clear()
        self.reads.clear()
        self.was_leader_of = 0
        self.run += 1


def copy_entry(entry: raftpb.Entry) -> raftpb.Entry:
    """A restart reads bytes, not yesterday's objects."""
    return raftpb.Entry.FromString(entry.SerializeToString())
