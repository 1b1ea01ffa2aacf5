"""Messages that parse and make no sense: every field of any type, filled with unexpected values."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_INTS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_TEXTS = ("", "x", "\0", "..", "/", "-1", "0x", "%s%n", "\u202e", "\U0001f9a0", "a" * 5000, "{{.}}", "[::]:0", "::/0")
_FLOATS = (0.0, -1.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
_DEPTH_MAX = 6


def fill(message: Message, rng: Random, ids: tuple[str, ...], depth: int = 0) -> Message:
    """Give about half of all fields a value. ids: texts that mean something, put in now and then."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields  # the stubs name two classes for one
    for field in fields:
        if rng.random() < 0.4 or (field.message_type is not None and depth >= _DEPTH_MAX):
            continue
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry:
            _fill_map(message, field, rng, ids, depth)
        elif field.is_repeated:
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                if field.message_type is not None:
                    fill(getattr(message, field.name).add(), rng, ids, depth + 1)
                else:
                    getattr(message, field.name).append(_value(field, rng, ids))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            fill(inner, rng, ids, depth + 1)
        else:
            setattr(message, field.name, _value(field, rng, ids))
    return message


def _fill_map(message: Message, field: Any, rng: Random, ids: tuple[str, ...], depth: int) -> None:
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    entries = getattr(message, field.name)
    for _ in range(rng.choice((0, 1, 2))):
        if value.message_type is not None:
            fill(entries[_value(key, rng, ids)], rng, ids, depth + 1)
        else:
            entries[_value(key, rng, ids)] = _value(value, rng, ids)


def _value(field: Any, rng: Random, ids: tuple[str, ...]) -> object:
    if field.type in _INTS:
        low, high = _INTS[field.type]
        return rng.choice((low, high, 0, 1, max(low, -1), rng.randint(low, high)))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice((*(value.number for value in field.enum_type.values), 9999, 2**31 - 1, -1))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return rng.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\xff\xfe", rng.randbytes(40), b"-----BEGIN CERTIFICATE-----\n"))
    return rng.choice((*_TEXTS, *ids))
