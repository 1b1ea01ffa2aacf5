"""Times between protobuf and cores: Timestamp and Duration there, seconds as float here.

(protobuf: timestamp.proto, duration.proto)
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

NANOSECONDS_PER_S = 1_000_000_000
SECONDS_MAX = 253_402_300_799
"""The end of the year 9999, which is the last that a Timestamp may hold."""


def stamp(timestamp: Timestamp, now: float) -> None:
    """Set a timestamp to ``now`` (seconds since the epoch)."""
    whole = int(now)
    timestamp.seconds = whole
    timestamp.nanos = int((now - whole) * 1e9)


def seconds(value: Timestamp | Duration) -> float:
    """A timestamp in seconds since the epoch, or a duration in seconds; 0.0 when it is not set."""
    return value.seconds + value.nanos / 1e9


def set_seconds(duration: Duration, length_s: float) -> None:
    """Set a duration; zero counts as set."""
    duration.FromNanoseconds(int(length_s * 1e9))


def nanoseconds(value: Timestamp | Duration) -> int:
    """A timestamp in nanoseconds since the epoch, or a duration in nanoseconds."""
    return int(value.seconds) * NANOSECONDS_PER_S + int(value.nanos)


def is_valid(timestamp: Timestamp, seconds_max: int = SECONDS_MAX) -> bool:
    """Whether a timestamp that somebody sent is a point in time from 1970 on, up to ``seconds_max``."""
    return 0 <= timestamp.seconds <= seconds_max and 0 <= timestamp.nanos < NANOSECONDS_PER_S
