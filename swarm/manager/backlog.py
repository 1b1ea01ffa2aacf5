"""The pending work of a stage: marked objects, and times at which to check an object again.

Both are only hints. A stage decides from the objects as they are in the transaction, so a needless mark costs a little
time, and a repeated mark costs nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import structlog
from google.protobuf.message import Message

from swarm import defaults
from swarm.manager.stage import DUE_NOW
from swarm.store.tx import Tx

log = structlog.get_logger()


class Timers:
    """Times by key, in seconds since the epoch; setting a key again replaces its time."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, key: str, at: float) -> None:
        """Make the key due at ``at``."""
        if self._at.get(key) != at:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))

    def cancel(self, key: str) -> None:
        """Remove the key's time; unknown keys are ignored."""
        self._at.pop(key, None)

    def get(self, key: str) -> float | None:
        """When the key is due."""
        return self._at.get(key)

    def due(self, now: float) -> list[str]:
        """Remove and return the keys that are due, earliest first."""
        out = []
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._at.get(key) == at:
                del self._at[key]
                out.append(key)
        return out

    def deadline(self) -> float | None:
        """When the first key is due; None without keys."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


class Backlog:
    """Marked objects, in the order of their marks. Each is handled in a savepoint of its own.

    An object whose handling raises is put aside and retried after growing pauses, so that one bad object does not stop
    the others.
    """

    def __init__(self, stage: str, strict: bool = False) -> None:
        """stage: its name, for the log. strict: raise such an exception, so that it fails a test."""
        self._stage = stage
        self._strict = strict
        self._marked: dict[str, None] = {}
        self._failures: dict[str, int] = {}
        self._parked = Timers()

    def __len__(self) -> int:
        return len(self._marked)

    def __contains__(self, key: str) -> bool:
        return key in self._marked

    def mark(self, key: str) -> None:
        """Handle this object in the next run."""
        self._marked[key] = None

    def forget(self, key: str) -> None:
        """Remove the mark of this object."""
        self._marked.pop(key, None)
        self._failures.pop(key, None)
        self._parked.cancel(key)

    def work(
        self,
        tx: Tx,
        handle: Callable[[Tx, str], bool],
        limit: int | None = None,
        staged: type[Message] | None = None,
        fits: Callable[[str], bool] | None = None,
    ) -> None:
        """Handle marked objects (at most ``limit``) while there is room.

        ``handle`` returns whether the object is done; if not, the object is marked again, behind the others. staged:
        the keys are IDs of this kind; an object that this transaction already touched needs no room. fits: for other
        keys, whether the object needs no room.
        """
        for key in self._parked.due(tx.now):
            self._marked[key] = None
        for key in list(self._marked)[:limit]:
            if not tx.room():
                if staged is None and fits is None:
                    return
                if not (tx.staged(staged, key) if staged is not None else fits is not None and fits(key)):
                    continue
            del self._marked[key]
            try:
                with tx.savepoint():
                    done = handle(tx, key)
            except Exception as error:
                self._park(tx, key, error)
                continue
            self._failures.pop(key, None)
            if not done:
                self._marked[key] = None

    def _park(self, tx: Tx, key: str, error: Exception) -> None:
        if self._strict:
            raise error
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause_s = min(defaults.STAGE_BACKOFF_BASE_S * 2 ** (failures - 1), defaults.STAGE_BACKOFF_MAX_S)
        self._parked.set(key, tx.now + pause_s)
        log.error("stage.object_failed", stage=self._stage, object=key, again_in_s=pause_s, exc_info=error)

    def deadline(self) -> float | None:
        """DUE_NOW while an object is marked, else when the first object that was put aside is tried again."""
        return DUE_NOW if self._marked else self._parked.deadline()


def earliest(*moments: float | None) -> float | None:
    """The earliest of the times that are not None; None if there is none."""
    return min((moment for moment in moments if moment is not None), default=None)
