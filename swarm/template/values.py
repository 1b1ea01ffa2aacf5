"""Values of templates: strings, numbers, bools, string maps (dict), records, and None for nil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swarm import gotext


@dataclass(frozen=True, slots=True)
class Record:
    """A Go struct: the name of its type, for errors, and its fields in order."""

    type_name: str
    fields: Mapping[str, Any]


def type_name(value: Any) -> str:
    """The name of a value's type as Go prints it."""
    if isinstance(value, Record):
        return value.type_name
    if isinstance(value, bool):
        return "bool"
    if value is None:
        return "<nil>"
    return {str: "string", int: "int", float: "float64", dict: "map[string]string"}[type(value)]


def is_true(value: Any) -> bool:
    """Whether Go takes a value for true: it is not nil, zero or empty. Records are always true."""
    return isinstance(value, Record) or bool(value)


def encoded(text: str) -> bytes:
    """The bytes that Go has; a payload that is not UTF-8 keeps its odd bytes."""
    return text.encode("utf-8", "surrogateescape")


def entries(value: Any) -> int:
    """How many entries of maps one has to visit to show a value."""
    if isinstance(value, Record):
        return sum(map(entries, value.fields.values()))
    return len(value) if isinstance(value, dict) else 0


def shown(value: Any) -> str:
    """``%v`` of a value."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return gotext.number(value)
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{value[key]}" for key in sorted(value)) + "]"
    assert isinstance(value, Record)
    return "{" + " ".join(shown(field) for field in value.fields.values()) + "}"
