"""Moments as users write them in filters: a time, a number of seconds since the epoch, or how long ago.

(moby: api/types/time/timestamp.go GetTimestamp; go: time.ParseDuration)
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(rf"([-+]?)((?:{_PART.pattern})+)")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")


def moment(text: str, now: float) -> float | None:
    """Seconds since the epoch; None: it is no moment. A time without a zone is taken as UTC."""
    written = _WHOLE.fullmatch(text)
    if written is not None:
        ago = sum(float(amount) * _UNITS_S[unit] for amount, unit in _PART.findall(written[2]))
        return now + ago if written[1] == "-" else now - ago
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
