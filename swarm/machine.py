"""The one shape of every core: events and time in, effects out."""

from __future__ import annotations

from typing import Protocol, TypeVar

E = TypeVar("E", contravariant=True)
X = TypeVar("X")


class Machine(Protocol[E, X]):
    """A pure state machine: no I/O, no clock, no chance of its own.

    ``now`` is seconds since the epoch and never decreases. ``None`` as event means "your deadline passed".
    """

    def handle(self, event: E | None, now: float) -> list[X]:
        """Take one event; return what the world must do, in order."""
        ...

    def deadline(self) -> float | None:
        """When to call handle(None) at the latest, in seconds since the epoch; None: not at all."""
        ...
