"""Records: sealed and plain, and what happens to those who lack the key or changed a byte."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.raft.records import AesGcmSealer, RecordCorrupt, RecordLocked, checksum, decode, encode

KEY, OTHER = b"k" * 32, b"o" * 32


def sealer(**keys: bytes) -> AesGcmSealer:
    versions = {int(name[1:]): key for name, key in keys.items()}
    return AesGcmSealer(versions, max(versions), Random(1))


@given(plain=st.binary(max_size=200), context=st.binary(max_size=20))
def test_records_come_back_as_they_were(plain: bytes, context: bytes) -> None:
    assert decode(encode(plain, context, None), context, None) == plain
    assert decode(encode(plain, context, None), context, sealer(v1=KEY)) == plain
    assert decode(encode(plain, context, sealer(v1=KEY)), context, sealer(v1=KEY, v2=OTHER)) == plain


@given(plain=st.binary(max_size=50), position=st.integers(0, 80), flip=st.integers(1, 255))
def test_a_changed_byte_of_a_sealed_record_is_found(plain: bytes, position: int, flip: int) -> None:
    record = bytearray(encode(plain, b"here", sealer(v1=KEY)))
    position %= len(record)
    record[position] ^= flip
    if position == 0 and record[0] == 0:
        return  # now it is a plain record: the checksum's business
    with pytest.raises((RecordCorrupt, RecordLocked)):
        decode(bytes(record), b"here", sealer(v1=KEY))


def test_a_sealed_record_needs_its_key_and_its_place() -> None:
    record = encode(b"secret", b"here", sealer(v1=KEY))
    assert b"secret" not in record
    with pytest.raises(RecordLocked, match="no data key"):
        decode(record, b"here", None)
    with pytest.raises(RecordLocked, match="version 1"):
        decode(record, b"here", sealer(v2=KEY))
    with pytest.raises(RecordCorrupt):
        decode(record, b"here", sealer(v1=OTHER))
    with pytest.raises(RecordCorrupt):
        decode(record, b"there", sealer(v1=KEY))


def test_records_of_no_known_kind_are_corrupt() -> None:
    for record in (b"", b"\x07abc"):
        with pytest.raises(RecordCorrupt):
            decode(record, b"", None)


def test_the_same_bytes_are_sealed_differently_each_time() -> None:
    one = sealer(v1=KEY)
    assert one.seal(b"same", b"") != one.seal(b"same", b"")


def test_bad_keys_are_refused_without_showing_them() -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        AesGcmSealer({1: b"too short"}, 1, Random(1))
    assert "too short" not in str(caught.value)
    with pytest.raises(ValueError, match="current version"):
        AesGcmSealer({1: KEY}, 2, Random(1))


def test_the_checksum_covers_the_place() -> None:
    assert checksum(b"record", b"here") != checksum(b"record", b"there")
    assert checksum(b"record", b"here") != checksum(b"recorD", b"here")
