"""What the leader knows of each follower, and how much it sends to it.

A follower is *probed*, one message at a time, until it confirms where its log matches the leader's. Then entries are
*replicated* as a stream with a window of unanswered messages. A follower whose log ends before the leader's begins
waits for a *snapshot*. (etcd/raft: tracker/progress.go, tracker/inflights.go)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum


class Mode(Enum):
    """How entries go to a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower. match: the highest index it is known to have on disk; next: the first index to send."""

    def __init__(self, next_index: int, inflight_max: int, active: bool = False) -> None:
        self.mode = Mode.PROBE
        self.match = 0
        self.next = next_index
        self.active = active
        self.paused = False
        self.pending_snapshot = 0
        self.snapshot_asked_at: float | None = None
        self.sent_commit = 0
        self.inflight_max = inflight_max
        self._inflight: deque[int] = deque()

    @property
    def inflight(self) -> int:
        """How many messages with entries are unanswered."""
        return len(self._inflight)

    @property
    def full(self) -> bool:
        """Whether the window of unanswered messages is used up."""
        return len(self._inflight) >= self.inflight_max

    @property
    def blocked(self) -> bool:
        """Whether nothing may be sent until the follower answers."""
        return self.paused or self.mode is Mode.SNAPSHOT

    def _reset(self, mode: Mode) -> None:
        self.mode = mode
        self.paused = False
        self.pending_snapshot = 0
        self.snapshot_asked_at = None
        self._inflight.clear()

    def probe(self) -> None:
        """Find out where the logs match; after a snapshot, begin at its end."""
        pending = self.pending_snapshot if self.mode is Mode.SNAPSHOT else 0
        self._reset(Mode.PROBE)
        self.next = max(self.match, pending) + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def replicate(self) -> None:
        """The logs match up to ``match``: stream from there."""
        self._reset(Mode.REPLICATE)
        self.next = self.match + 1

    def await_snapshot(self, index: int) -> None:
        """A snapshot up to index was sent: nothing else until the follower has it or sending failed."""
        self._reset(Mode.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def sent(self, count: int, commit: int) -> None:
        """A MsgApp with that many entries and that commit index left."""
        self.sent_commit = commit
        if not count:
            return
        if self.mode is Mode.REPLICATE:
            self.next += count
            self._inflight.append(self.next - 1)
            self.paused = self.full
        else:
            self.paused = True

    def confirmed(self, index: int) -> bool:
        """The follower has everything up to index; returns whether that is news."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    def free(self, index: int) -> None:
        """Messages up to index are answered."""
        while self._inflight and self._inflight[0] <= index:
            self._inflight.popleft()

    def rejected(self, index: int, hint: int) -> bool:
        """The follower lacks the entry at index, but may match at hint; False: an old answer."""
        if self.mode is Mode.REPLICATE:
            if index <= self.match:
                return False
            self.probe()
            return True
        if self.next - 1 != index:
            return False
        self.next = max(min(index, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    def check(self) -> None:
        """Assert what must always hold."""
        assert 0 <= self.match < self.next
        assert len(self._inflight) <= self.inflight_max
        assert self.mode is Mode.REPLICATE or not self._inflight
        assert (self.mode is Mode.SNAPSHOT) == (self.pending_snapshot > 0)
        assert list(self._inflight) == sorted(self._inflight)

    def __repr__(self) -> str:
        words = [f"{self.mode.value} match={self.match} next={self.next}"]
        if self.paused:
            words.append("paused")
        if self.pending_snapshot:
            words.append(f"snapshot={self.pending_snapshot}")
        if self._inflight:
            words.append(f"inflight={len(self._inflight)}")
        if not self.active:
            words.append("inactive")
        return " ".join(words)


def quorum(voters: int) -> int:
    """How many of that many voters are a majority."""
    return voters // 2 + 1


def agreed_index(matches: Iterable[int]) -> int:
    """The highest index that a majority of voters has; 0 without voters."""
    ordered = sorted(matches, reverse=True)
    return ordered[quorum(len(ordered)) - 1] if ordered else 0
