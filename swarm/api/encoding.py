"""Encodes large messages in chunks: the concatenated encodings of the parts are the encoding of the whole.

Copying a whole store into one message and encoding that would take twice as long.

(protobuf.dev/programming-guides/encoding: "Last One Wins", length-delimited records)
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

OBJECTS_PER_CHUNK = 512
_LENGTH_DELIMITED = 2


def repeated(holder: type[Message], field: str, objects: Sequence[Message]) -> bytes:
    """The encoding of a ``holder`` that has only these objects, in one of its repeated fields."""
    starts = range(0, len(objects), OBJECTS_PER_CHUNK)
    return b"".join(holder(**{field: objects[i : i + OBJECTS_PER_CHUNK]}).SerializeToString() for i in starts)


def embedded(holder: type[Message], field: str, encoded: bytes) -> bytes:
    """The encoding of a ``holder`` that has only this encoded message, in one of its fields."""
    tag = holder.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED
    return varint(tag) + varint(len(encoded)) + encoded


def varint(number: int) -> bytes:
    """A non-negative number, seven bits per byte, lowest bits first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
