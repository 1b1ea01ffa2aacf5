"""Disk before network: writes, one at a time, and the messages that wait for them.

The core changes its term, vote and log in memory at once. flush() turns all changes since the last write began into
one Persist, unless a write is still under way: everything that happens during a write shares the next one (group
commit). A message about state that is not on disk yet waits for the write that covers it, so that what it promises is
true even after a crash. A leader's appends and heartbeats promise nothing about its own disk; they leave at once, in
parallel with the write. Writes are numbered; the number is the token of the Persist.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swarm.api import raftpb
from swarm.raft.events import Effect, Persist, Send
from swarm.raft.log import Log


class Needs(Enum):
    """What must be on disk before a message leaves, because the message states it."""

    NOTHING = 0
    VOTE = 1
    """Term and vote."""
    ALL = 2
    """Term, vote and the log as it is now."""


@dataclass(slots=True)
class _Write:
    token: int
    state: tuple[int, int, int]
    last_index: int
    snapshot: raftpb.Snapshot | None
    changes_vote: bool
    restores: bool


class Outbox:
    """The effects of the current event, and the messages and the write that wait."""

    def __init__(self, raft_id: int, log: Log, durable: tuple[int, int, int] | None) -> None:
        """durable: term, vote and commit index on disk; None: nothing is on disk, and the log's entries are not."""
        self.effects: list[Effect] = []
        self._raft_id = raft_id
        self._log = log
        self._on_disk = durable or (0, 0, 0)
        self._writing: _Write | None = None
        self._token = 0
        self._held: list[tuple[int, raftpb.Message]] = []
        self._state = self._on_disk[:2]
        self._snapshot: raftpb.Snapshot | None = None
        self._snapshot_restores = False
        self._compact_to = 0
        self._commit_wanted = 0
        self.commit_lag = 0
        """By how many entries the commit index on disk may be behind; see Config."""
        if durable is None:
            log.submitted = log.stable = 0

    # --- what changed ---

    def vote_is(self, term: int, vote: int) -> None:
        """The term and the vote are these now."""
        self._state = (term, vote)

    def snapshot_is(self, snapshot: raftpb.Snapshot, compact_to: int, restores: bool) -> None:
        """A snapshot to write: our own (log kept after compact_to), or one that replaces the log."""
        self._snapshot, self._compact_to = snapshot, compact_to
        self._snapshot_restores = self._snapshot_restores or restores

    def want_commit(self, index: int) -> None:
        """This commit index must be on disk before the entry at it is applied."""
        self._commit_wanted = max(self._commit_wanted, index)

    @property
    def durable_commit(self) -> int:
        """The commit index that a restart would see."""
        return self._on_disk[2]

    @property
    def restoring(self) -> bool:
        """Whether a leader's snapshot is not on disk yet."""
        return self._snapshot_restores or (self._writing is not None and self._writing.restores)

    # --- messages ---

    def send(self, message: raftpb.Message, needs: Needs) -> None:
        """Send the message as soon as what it needs is on disk."""
        token = self._token_for(needs)
        if token:
            self._held.append((token, message))
        else:
            self.effects.append(Send(message))

    def _token_for(self, needs: Needs) -> int:
        """The write to wait for; 0: none."""
        if needs is Needs.NOTHING:
            return 0
        writing = self._writing
        vote = writing.state[:2] if writing else self._on_disk[:2]
        if self._state != vote or (needs is Needs.ALL and self._log_is_dirty):
            return self._token + 1
        if writing and (needs is Needs.ALL or writing.changes_vote):
            return writing.token
        return 0

    @property
    def _log_is_dirty(self) -> bool:
        return self._log.submitted < self._log.last_index or self._snapshot is not None

    # --- writes ---

    def flush(self) -> None:
        """Begin the next write, if there is something to write and none is under way."""
        if self._writing:
            return
        term, vote = self._state
        state_is_dirty = self._state != self._on_disk[:2] or self._commit_wanted > self._on_disk[2]
        if not (state_is_dirty or self._log_is_dirty):
            return
        state = (term, vote, self._commit_to_write(state_is_dirty))
        entries = self._log.unsubmitted()
        self._token += 1
        self._writing = _Write(
            self._token,
            state,
            self._log.last_index,
            self._snapshot,
            changes_vote=self._state != self._on_disk[:2],
            restores=self._snapshot_restores,
        )
        hard_state = raftpb.HardState(term=term, vote=vote, commit=state[2])
        replaces = self._snapshot_restores
        persist = Persist(
            self._token,
            hard_state if state != self._on_disk else None,
            entries,
            self._snapshot,
            0 if replaces else self._compact_to,
            replaces,
        )
        self._log.submitted = self._log.last_index
        self._snapshot, self._compact_to, self._snapshot_restores = None, 0, False
        self.effects.append(persist)

    def _commit_to_write(self, state_is_dirty: bool) -> int:
        on_disk, committed = self._on_disk[2], self._log.committed
        may_lag = not state_is_dirty and self._snapshot is None and committed - on_disk <= self.commit_lag
        return on_disk if may_lag else committed

    def log_was_cut(self) -> None:
        """Entries may have been replaced: the write under way covers only what is left of its entries."""
        if self._writing:
            self._writing.last_index = min(self._writing.last_index, self._log.submitted)

    def written(self, token: int) -> tuple[raftpb.Snapshot | None, list[raftpb.Message]]:
        """The write is done. Returns the leader's snapshot that it contained, if any, and the messages to ourselves."""
        writing = self._writing
        if writing is None or writing.token != token:
            return None, []
        self._writing = None
        self._on_disk = writing.state
        self._log.stable = max(self._log.stable, writing.last_index)
        released = [message for needed, message in self._held if needed <= token]
        self._held = [(needed, message) for needed, message in self._held if needed > token]
        to_self = []
        for message in released:
            if message.term < self._state[0]:
                continue  # of an older term by now: everybody would ignore it
            if message.to == self._raft_id:
                to_self.append(message)
            else:
                self.effects.append(Send(message))
        return (writing.snapshot if writing.restores else None), to_self

    def check(self) -> None:
        """Assert what must always hold."""
        tokens = [token for token, _ in self._held]
        assert all(token <= self._token + 1 for token in tokens)
        assert self._on_disk[2] <= self._log.committed
        assert self._writing or not tokens
