"""The interface of all cores: events and time in, effects out."""

from __future__ import annotations

from typing import Protocol, TypeVar

E = TypeVar("E", contravariant=True)
X = TypeVar("X")


class Machine(Protocol[E, X]):
    """A pure state machine: no I/O, no clock, no randomness of its own.

    ``now`` is seconds since the epoch and never decreases. ``None`` as the event means "your deadline has passed".
    """

    def handle(self, event: E | None, now: float) -> list[X]:
        """Handle one event; return the effects that the driver must perform, in order."""
        ...

    def deadline(self) -> float | None:
        """The latest time to call handle(None), in seconds since the epoch; None: no need to call it."""
        ...
