"""The interface of a leader's components: each notes what changed and acts on it in the next pass."""

from __future__ import annotations

from typing import Protocol

from swarm.store.store import View
from swarm.store.tx import Tx

DUE_NOW = 0.0


class Stage(Protocol):
    """A component of a leader. It lives as long as one leadership; everything it knows follows from the store.

    The leader calls rebuild once. In every pass it then calls note for each object that was touched since the stage
    last ran (by client writes, by other stages, by earlier passes), and then run. Notes may be spurious and may repeat;
    a stage looks at the objects as they are in ``tx``. Work that did not fit into the pass (``not tx.room()``) stays
    marked, and deadline() returns DUE_NOW until it is done.
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
