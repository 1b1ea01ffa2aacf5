"""Protobuf messages made of a fuzzer's bytes: fields are set one by one, with words that mean something here."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz.feed import Feed

DEPTH_MAX = 9
_SIGNED = {FieldDescriptor.CPPTYPE_INT32: 32, FieldDescriptor.CPPTYPE_INT64: 64}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}


class Words:
    """What strings, byte strings and numbers are taken from, beside the feed's own bytes."""

    def __init__(self, texts: Sequence[str], blobs: Sequence[bytes], numbers: Sequence[int]) -> None:
        self.texts, self.blobs, self.numbers = texts, blobs, numbers


def change(feed: Feed, message: Message, words: Words, depth: int = 0) -> None:
    """Set, clear or extend a few fields, and fields of fields."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields  # the stubs name two classes for one
    for _ in range(feed.byte() % 5 if fields else 0):
        field = feed.choice(fields)
        how = feed.byte()
        if how == 255:
            message.ClearField(field.name)
        elif field.is_repeated:
            _extend(feed, message, field, words, depth, how)
        elif field.message_type is not None:
            if depth < DEPTH_MAX:
                inner = getattr(message, field.name)
                inner.SetInParent()
                change(feed, inner, words, depth + 1)
        else:
            setattr(message, field.name, _scalar(feed, field, words))


def parsed(feed: Feed, kind: type[Message]) -> Message | None:
    """Any bytes parsed as a message; None when they are not one."""
    try:
        return kind.FromString(feed.some())
    except DecodeError:
        return None


def _extend(feed: Feed, message: Message, field: Any, words: Words, depth: int, how: int) -> None:
    values: Any = getattr(message, field.name)
    if _is_map(field.message_type):
        key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        key = _scalar(feed, key_field, words)
        if value_field.message_type is None:
            values[key] = _scalar(feed, value_field, words)
        elif depth < DEPTH_MAX:
            change(feed, values[key], words, depth + 1)
    elif how >= 250 and len(values):
        del values[how % len(values)]
    elif field.message_type is None:
        values.append(_scalar(feed, field, words))
    elif depth < DEPTH_MAX:
        change(feed, values[how % len(values)] if how >= 200 and len(values) else values.add(), words, depth + 1)


def _is_map(kind: Descriptor | None) -> bool:
    return kind is not None and kind.GetOptions().map_entry


def _scalar(feed: Feed, field: Any, words: Words) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        how = feed.byte()
        if field.type == FieldDescriptor.TYPE_BYTES:
            return words.blobs[how % len(words.blobs)] if how < 200 else feed.some()
        if how < 200:
            return words.texts[how % len(words.texts)]
        text = feed.some().decode("utf-8", "replace")
        return text * feed.byte() if how == 255 else text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return feed.flag()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        how = feed.byte()
        values = field.enum_type.values
        return values[how % len(values)].number if how < 240 or field.enum_type.is_closed else feed.number(31)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return struct.unpack("<f", feed.take(4).ljust(4, b"\0"))[0]
    if kind in _UNSIGNED:
        how = feed.byte()
        bits = _UNSIGNED[kind]
        return words.numbers[how % len(words.numbers)] % (1 << bits) if how < 128 else feed.number(bits)
    bits = _SIGNED[kind]
    value = feed.number(bits)
    return value - (1 << bits) if value >> (bits - 1) else value
