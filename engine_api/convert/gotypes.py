"""Go's types as checks of JSON values, with the texts of its decoder for values of the wrong type.

(go: encoding/json/decode.go)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine_api.convert.gojson import JsonError, Literal, base64_bytes, whole_characters


@dataclass(frozen=True, slots=True)
class Where:
    """Place of a value in a request: innermost Go struct and path from the root, for error texts."""

    struct: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class GoType:
    """A Go type: its name as Go prints it, and the check of a JSON value (never None)."""

    name: str
    parse: Callable[[Any, Where], Any]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list) else "number"


def mismatch(value: Any, name: str, where: Where, text: str | None = None) -> JsonError:
    """The error of Go's decoder for a value of the wrong type; ``text`` replaces the word for the value."""
    target = f"Go struct field {where.struct}.{where.path}" if where.struct else "Go value"
    return JsonError(f"json: cannot unmarshal {text or _word(value)} into {target} of type {name}")


def _scalar(name: str, python: type, convert: Callable[[Any], Any] = lambda value: value) -> GoType:
    def parse(value: Any, where: Where) -> Any:
        if type(value) is not python:
            raise mismatch(value, name, where)
        return convert(value)

    return GoType(name, parse)


def string_type(name: str = "string") -> GoType:
    """A string, or a named type of strings such as swarm.NodeRole."""
    return _scalar(name, str, whole_characters)


def int_type(name: str, bits: int, signed: bool) -> GoType:
    """An integer of this size, under this name."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def parse(value: Any, where: Where) -> int:
        if isinstance(value, Literal):
            raise mismatch(value, name, where, f"number {value.text}")
        if type(value) is not int:
            raise mismatch(value, name, where)
        if not low <= value <= high:
            raise mismatch(value, name, where, f"number {value}")
        return value

    return GoType(name, parse)


STRING = string_type()
BOOL = _scalar("bool", bool)
BYTES = _scalar("[]uint8", str, base64_bytes)
INTS = {
    "int": int_type("int", 64, True),
    "int32": int_type("int32", 32, True),
    "int64": int_type("int64", 64, True),
    "uint32": int_type("uint32", 32, False),
    "uint64": int_type("uint64", 64, False),
    "fs.FileMode": int_type("fs.FileMode", 32, False),
    "time.Duration": int_type("time.Duration", 64, True),
}


def _parse_float32(value: Any, where: Where) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mismatch(value, "float32", where)
    try:
        struct.pack("<f", value)
    except OverflowError:
        written = value.text if isinstance(value, Literal) else str(value)
        raise mismatch(value, "float32", where, f"number {written}") from None
    return float(value)


FLOAT32 = GoType("float32", _parse_float32)


def list_type(element: GoType, pointer: bool = False) -> GoType:
    """A slice; elements that are null become the zero value."""
    name = f"[]{'*' if pointer else ''}{element.name}"
    zero = element.parse("" if element.name == "string" else [] if element.name.startswith("[]") else {}, Where())

    def parse(value: Any, where: Where) -> list[Any]:
        if type(value) is not list:
            raise mismatch(value, name, where)
        return [zero if item is None else element.parse(item, where) for item in value]

    return GoType(name, parse)


def _parse_map(value: Any, where: Where) -> dict[str, str]:
    if type(value) is not dict:
        raise mismatch(value, "map[string]string", where)
    return {whole_characters(key): "" if item is None else STRING.parse(item, where) for key, item in value.items()}


MAP = GoType("map[string]string", _parse_map)
STRINGS = list_type(STRING)
