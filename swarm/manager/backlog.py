"""What a stage still has to do: objects marked for a look, and moments at which to look again.

Both are only hints. A stage decides from the objects as they are in the transaction, so a mark too many costs time and
a mark that repeats costs nothing.
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
    """Moments by key; setting a key again replaces its moment. Seconds since the epoch."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, key: str, at: float) -> None:
        """The key is due at ``at``."""
        if self._at.get(key) != at:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))

    def cancel(self, key: str) -> None:
        """The key is not due any more; unknown keys are fine."""
        self._at.pop(key, None)

    def get(self, key: str) -> float | None:
        """When the key is due."""
        return self._at.get(key)

    def due(self, now: float) -> list[str]:
        """Keys whose moment has come, earliest first; they are forgotten."""
        out = []
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._at.get(key) == at:
                del self._at[key]
                out.append(key)
        return out

    def deadline(self) -> float | None:
        """The earliest moment."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


class Backlog:
    """Marked objects, first come first served, each handled in a savepoint of its own.

    An object whose handling raises is put aside with growing pauses, so that one poisonous object stops nobody else.
    """

    def __init__(self, stage: str, strict: bool = False) -> None:
        """stage: its name, for the log. strict: such an exception is raised, because it should end a test."""
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
        """Look at this object in the next run."""
        self._marked[key] = None

    def forget(self, key: str) -> None:
        """Nothing to look at any more."""
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
        """Handle what is marked (at most ``limit`` objects) while there is room.

        ``handle`` answers whether it is through with the object; if not, the object is marked again, behind the others.
        staged: the keys are IDs of this kind; those already touched in this transaction are handled without room, too.
        fits: the same for other keys: answers whether the object is to be handled without room.
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
        """DUE_NOW while something is marked, else when the first of those put aside is tried again."""
        return DUE_NOW if self._marked else self._parked.deadline()


def earliest(*moments: float | None) -> float | None:
    """The first of the moments that are set."""
    return min((moment for moment in moments if moment is not None), default=None)
