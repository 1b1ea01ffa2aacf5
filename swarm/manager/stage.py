"""The interface of a leader's stages: each notes what changed and acts on it in the next pass."""

from __future__ import annotations

from typing import Protocol

from swarm.store.store import View
from swarm.store.tx import Tx

DUE_NOW = 0.0


class Stage(Protocol):
    """A component of a leader. It lives as long as one leadership, and derives all its state from the store.

    The leader calls rebuild once. Then, in every pass, it calls note for each object that was touched since the stage
    last ran (by client writes, other stages or earlier passes), and then run. Notes may be needless or repeated; a
    stage reads the objects as they are in ``tx``. Work that did not fit into the pass (``not tx.room()``) stays marked,
    and deadline() returns DUE_NOW until it is done.
    """

    def rebuild(self, view: View, now: float) -> None:
        """Called on election: treat every object as changed."""
        ...

    def note(self, kind: str, object_id: str) -> None:
        """This object was created, changed or removed. Must be cheap and decide nothing."""
        ...

    def run(self, tx: Tx) -> None:
        """Stage writes until nothing is marked or the transaction is full. Must be idempotent."""
        ...

    def deadline(self) -> float | None:
        """When run must be called even if nothing changed, in seconds since the epoch; None: never."""
        ...
