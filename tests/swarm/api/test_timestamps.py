"""Times between protobuf and cores."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from swarm import api
from swarm.api.timestamps import is_valid, nanoseconds, seconds, set_seconds, stamp


@given(st.floats(0, 4e9))
def test_a_stamp_is_the_moment_itself_to_the_nanosecond(now: float) -> None:
    at = Timestamp()
    stamp(at, now)
    assert at.seconds == int(now)
    assert 0 <= at.nanos < 1_000_000_000
    assert abs(seconds(at) - now) <= max(1e-9, now * 2**-52)


@given(st.lists(st.floats(1e9, 2e9), min_size=2, max_size=2))
def test_stamps_are_in_the_order_of_their_moments(moments: list[float]) -> None:
    stamps = [Timestamp(), Timestamp()]
    for at, now in zip(stamps, sorted(moments), strict=True):
        stamp(at, now)
    assert nanoseconds(stamps[0]) <= nanoseconds(stamps[1])


def test_what_is_set_to_zero_is_there() -> None:
    task = api.Task()
    stamp(task.status.timestamp, 0.0)
    set_seconds(task.spec.restart.delay, 0.0)
    assert task.status.HasField("timestamp")
    assert task.spec.restart.HasField("delay")


def test_durations_are_set_and_read_in_seconds() -> None:
    length = Duration()
    assert seconds(length) == 0.0
    set_seconds(length, 2.5)
    assert (length.seconds, length.nanos, seconds(length), nanoseconds(length)) == (2, 500_000_000, 2.5, 2_500_000_000)


def test_a_timestamp_from_outside_is_from_1970_to_9999() -> None:
    assert is_valid(Timestamp())
    assert is_valid(Timestamp(seconds=253_402_300_799, nanos=999_999_999))
    assert not is_valid(Timestamp(seconds=253_402_300_800))
    assert not is_valid(Timestamp(seconds=-1))
    assert not is_valid(Timestamp(nanos=-1))
    assert not is_valid(Timestamp(nanos=1_000_000_000))
    assert not is_valid(Timestamp(seconds=6), seconds_max=5)
