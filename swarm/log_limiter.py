"""Limits repeated log lines: each key is logged once per period, so that an attacker cannot make the log grow."""

from __future__ import annotations

from collections.abc import Hashable

PERIOD_S = 60.0
KEYS_MAX = 1024


class LogLimiter:
    """Counts events by key. Keys beyond KEYS_MAX within a period share one count."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._known: dict[Hashable, tuple[float, int]] = {}  # when it was last logged, and how often it happened since

    def times(self, key: Hashable, now: float) -> int:
        """How often this happened since it was last logged. 0: it was logged within the period, so do not log it."""
        if key not in self._known and len(self._known) >= KEYS_MAX:
            self._forget(now)
            if len(self._known) >= KEYS_MAX:
                key = None
        said, count = self._known.get(key, (now - self._period_s, 0))
        if now - said < self._period_s:
            self._known[key] = (said, count + 1)
            return 0
        self._known[key] = (now, 0)
        return count + 1

    def _forget(self, now: float) -> None:
        self._known = {key: entry for key, entry in self._known.items() if now - entry[0] < self._period_s}
