"""Limits that count per second."""

from __future__ import annotations


class Rate:
    """How often something may happen in a second."""

    __slots__ = ("_count", "_maximum", "_since")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._count = 0
        self._since = 0.0

    def exceeded_by(self, now: float) -> bool:
        """Count one more; True: the limit is exceeded."""
        if now - self._since >= 1.0:
            self._since, self._count = now, 0
        self._count += 1
        return self._count > self._maximum
