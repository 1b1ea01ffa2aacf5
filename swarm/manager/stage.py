"""What every component of a leader is: marks what changed, then puts it right in the next pass."""

from __future__ import annotations

from typing import Protocol

from swarm.store.store import View
from swarm.store.tx import Tx

DUE_NOW = 0.0


class Stage(Protocol):
    """A leader's component. It lives as long as one leadership and keeps no truth of its own.

    The leader calls rebuild once, then for every pass: note for all that was touched since the stage last ran (by
    client writes, by other stages, by earlier passes), then run. Notes may be spurious and may repeat; a stage looks
    at the objects as they are in ``tx``. Work that did not fit into the pass (``not tx.room()``) stays marked, and
    deadline() returns DUE_NOW until it is done.
    """

    def rebuild(self, view: View, now: float) -> None:
        """On election: consider everything changed."""
        ...

    def note(self, kind: str, object_id: str) -> None:
        """This object was created, changed or removed. Cheap; decides nothing."""
        ...

    def run(self, tx: Tx) -> None:
        """Stage writes until nothing is marked or the transaction is full. Must be idempotent."""
        ...

    def deadline(self) -> float | None:
        """When run must be called though nothing changed (seconds since the epoch); None: never."""
        ...
