"""TLS records, cut out of what the network brings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.records import USELESS_RECORDS_MAX, USELESS_RECORDS_PERIOD_S, Records


def record(kind: int, body: bytes) -> bytes:
    return bytes((kind, 3, 3)) + len(body).to_bytes(2, "big") + body


def drained(records: Records) -> list[bytes]:
    found = []
    while piece := records.next():
        found.append(piece)
    return found


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=50))
def test_records_come_out_whole_however_the_network_cuts_them(bodies: list[bytes], cuts: list[int]) -> None:
    sent = [record(23, body) for body in bodies]
    stream, records, found = b"".join(sent), Records(), []
    position = 0
    while position < len(stream):
        for cut in cuts:
            records.feed(stream[position : position + cut])
            found += drained(records)
            position += cut
    assert found == sent


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1", b"\x80\x2e\x01", b"\x16\x03\x01\xff\xffx"])
def test_bytes_that_are_not_a_record_are_passed_on_unchanged(data: bytes) -> None:
    records = Records()
    records.feed(data)
    assert drained(records) == [data]


def test_a_few_records_without_data_are_fine_at_any_time_and_many_at_once_are_not() -> None:
    records = Records()
    for minute in range(3):
        now = minute * USELESS_RECORDS_PERIOD_S + 1000.0
        assert not any(records.useless(now) for _ in range(USELESS_RECORDS_MAX))
    assert records.useless(now)
