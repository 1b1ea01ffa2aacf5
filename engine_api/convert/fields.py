"""The kinds of rows that tables are made of: numbers, texts, labels, times, enumerations, nested messages.

As in Go, a plain value of zero means unset and is not written; only pointers carry an explicit zero. A row is shown by
its own rule: omitted when it is empty (the default), always, or only when the submessage is there (pointers).
engine_api/convert/table.py says how tables work; only engine_api/convert makes tables.

(moby: daemon/cluster/convert/*.go, api/types/swarm/*.go)
"""

from __future__ import annotations

import re
import struct
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from engine_api.convert.gojson import quote
from engine_api.convert.gotypes import (
    BOOL,
    BYTES,
    FLOAT32,
    INTS,
    MAP,
    STRING,
    STRINGS,
    GoType,
    Where,
    list_type,
    mismatch,
    string_type,
)
from engine_api.convert.table import OMIT, Fill, Row, Show, Table, drop, never
from engine_api.errors import BadParameter
from swarm.api.timestamps import NANOSECONDS_PER_S, SECONDS_MAX, nanoseconds

ZERO_TIME = "0001-01-01T00:00:00Z"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MIN = -62_135_596_800  # the beginning of the year 1
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


def split(path: str) -> tuple[Callable[[Any], Any], str]:
    """Getter of the message that holds the last name of a dotted path, and that name."""
    head, _, leaf = path.rpartition(".")
    return (attrgetter(head) if head else lambda message: message), leaf


def _plain(key: str, path: str, go: GoType, always: bool, show: Callable[[Any], Any] | None = None) -> Row:
    """A field without presence: shown by ``show`` (default: as it is), omitted when zero unless ``always``."""
    get = attrgetter(path)
    parent, leaf = split(path)

    def fill(message: Any, value: Any) -> None:
        if value:
            setattr(parent(message), leaf, value)

    if show is None:
        return Row(key, go, get if always else lambda message: get(message) or OMIT, fill)
    if always:
        return Row(key, go, lambda message: show(get(message)), fill)
    return Row(key, go, lambda message: show(value) if (value := get(message)) else OMIT, fill)


# --- rows: one function per sort of field -----------------------------------------------------------------------------


def text(key: str, path: str, *, always: bool = False) -> Row:
    """A string."""
    return _plain(key, path, STRING, always)


def flag(key: str, path: str, *, always: bool = False) -> Row:
    """A boolean."""
    return _plain(key, path, BOOL, always)


def number(key: str, path: str, go: str = "int64", *, always: bool = False, pointer: bool = False) -> Row:
    """An integer of Go type ``go``. pointer: always shown, and an explicit zero is written."""
    row = _plain(key, path, INTS[go], always or pointer)
    if not pointer:
        return row
    parent, leaf = split(path)
    return Row(key, row.type, row.show, lambda message, value: setattr(parent(message), leaf, value))


def narrow(key: str, path: str, *, unsigned: bool = False, always: bool = False) -> Row:
    """A Go int that the protocol keeps in 32 bits; too large values wrap, as Go's conversion does."""
    parent, leaf = split(path)
    base = _plain(key, path, INTS["int"], always)

    def fill(message: Any, value: int) -> None:
        low = value & 0xFFFFFFFF
        setattr(parent(message), leaf, low if unsigned or low < 1 << 31 else low - (1 << 32))

    return Row(key, base.type, base.show, fill)


def ratio(key: str, path: str, *, always: bool = False) -> Row:
    """A float32, shown with as few digits as identify it."""
    return _plain(key, path, FLOAT32, always, shortest_float32)


def shortest_float32(value: float) -> int | float:
    """The shortest decimal that reads back as the same float32; whole numbers without a point."""
    if value == int(value):
        return int(value)
    packed = struct.pack("<f", value)
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == packed:
            return short
    return value


def data(key: str, path: str) -> Row:
    """Bytes as base64."""
    return _plain(key, path, BYTES, False, lambda value: b64encode(value).decode())


def pem(key: str, path: str, *, always: bool = False) -> Row:
    """Bytes in the protocol that are a string in JSON."""
    row = _plain(key, path, STRING, always, lambda value: value.decode("utf-8", "replace"))
    return Row(key, row.type, row.show, lambda message, value: row.fill(message, value.encode()))


def strings(key: str, path: str, *, null: bool = False) -> Row:
    """A list of strings; empty: omitted, or null."""
    get = attrgetter(path)
    parent, leaf = split(path)
    empty = None if null else OMIT

    def fill(message: Any, value: list[str]) -> None:
        getattr(parent(message), leaf).extend(value)

    return Row(key, STRINGS, lambda message: list(get(message)) or empty, fill)


def labels(key: str, path: str, *, always: bool = False) -> Row:
    """A map of strings, keys sorted; empty: omitted, or {}. A non-empty one replaces what is there."""
    get = attrgetter(path)

    def show(message: Any) -> Any:
        value = get(message)
        if value:
            return dict(sorted(value.items()))
        return {} if always else OMIT

    def fill(message: Any, value: dict[str, str]) -> None:
        if value:
            target = get(message)
            target.clear()
            target.update(value)

    return Row(key, MAP, show, fill)


def duration(key: str, path: str, *, pointer: bool = False) -> Row:
    """A Duration in nanoseconds; pointer: shown when set, even to zero; else omitted when zero."""
    get = attrgetter(path)
    parent, leaf = split(path)

    def show(message: Any) -> Any:
        holder = parent(message)
        return nanoseconds(getattr(holder, leaf)) if holder.HasField(leaf) else OMIT

    def fill(message: Any, value: int) -> None:
        if value or pointer:
            target = get(message)
            target.SetInParent()
            target.FromNanoseconds(value)

    return Row(key, INTS["time.Duration"], show if pointer else lambda message: nanoseconds(get(message)) or OMIT, fill)


def rfc3339(value: Any) -> str:
    """A protobuf Timestamp, UTC, trailing zeros of the fraction dropped; an unset one is 1970, as in stock engines.

    A time outside the years 1 to 9999 becomes Go's zero time; a stock leader stores whatever a node reports.
    """
    if not (_SECONDS_MIN <= value.seconds <= SECONDS_MAX and 0 <= value.nanos < NANOSECONDS_PER_S):
        return ZERO_TIME
    text = (_EPOCH + timedelta(seconds=value.seconds)).isoformat()[:19]
    if value.nanos:
        return f"{text}.{value.nanos:09d}".rstrip("0") + "Z"
    return text + "Z"


def _parse_time(value: Any, where: Where) -> tuple[int, int]:
    """(seconds since the epoch, nanoseconds)."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise mismatch(value, "time.Time", where)
    try:
        moment = datetime.fromisoformat(match[1] + "+00:00")
    except ValueError:
        raise mismatch(value, "time.Time", where) from None
    return int((moment - _EPOCH).total_seconds()), int((match[2] or "0").ljust(9, "0"))


def time(key: str, path: str, *, pointer: bool = False) -> Row:
    """A Timestamp; pointer: omitted when it is not set or zero."""
    get = attrgetter(path)

    def show(message: Any) -> Any:
        value = get(message)
        return OMIT if pointer and not value.seconds else rfc3339(value)

    def fill(message: Any, value: tuple[int, int]) -> None:
        target = get(message)
        target.seconds, target.nanos = value

    return Row(key, GoType("time.Time", _parse_time), show, fill)


def enum(
    key: str,
    path: str,
    words: Mapping[str, int],
    *,
    go: str = "string",
    refuse: str | None = None,
    quoted: bool = True,
    exact: bool = False,
    required: bool = False,
    unset: int | None = None,
    unknown: str | None = None,
) -> Row:
    """An enumeration.

    words: from shown word to number; an empty word means the first one, and so does an unknown word without ``refuse``.
    refuse: error text before the refused word, which is quoted unless ``quoted`` is false; exact: case matters;
    required: the empty word is refused too. unset: a number that is left out when shown; unknown: the word for a
    number that has none.
    """
    get = attrgetter(path)
    parent, leaf = split(path)
    shown = {number: word for word, number in words.items()}
    default = next(iter(words.values()))

    def show(message: Any) -> Any:
        value = get(message)
        return OMIT if value == unset else shown.get(value, unknown or str(value))

    def fill(message: Any, value: str) -> None:
        found = words.get(value if exact else value.lower())
        if found is None and refuse is not None and (value or required):
            raise BadParameter(f"{refuse}{quote(value) if quoted else value}")
        setattr(parent(message), leaf, default if found is None else found)

    return Row(key, string_type(go), show, fill)


def wrapped(key: str, path: str, go: GoType) -> Row:
    """A pointer to a scalar that the protocol keeps in a wrapper message (BoolValue, Int64Value)."""
    parent, leaf = split(path)

    def show(message: Any) -> Any:
        holder = parent(message)
        return getattr(holder, leaf).value if holder.HasField(leaf) else OMIT

    def fill(message: Any, value: Any) -> None:
        target = getattr(parent(message), leaf)
        target.SetInParent()
        target.value = value

    return Row(key, go, show, fill)


def nested(key: str, path: str, table: Table, *, always: bool = False, missing: Any = OMIT) -> Row:
    """A submessage. By default it is a pointer: shown when set, else as ``missing``; {} sets it.

    always: it is a Go struct, which is shown even when it is not set, and which {} does not set.
    """
    parent, leaf = split(path)

    def show(message: Any) -> Any:
        holder = parent(message)
        return table.show(getattr(holder, leaf)) if always or holder.HasField(leaf) else missing

    def fill(message: Any, value: dict[str, Any]) -> None:
        target = getattr(parent(message), leaf)
        if value or (not always and missing != {}):
            target.SetInParent()
        table.fill(target, value)

    return Row(key, table.type, show, fill)


def many(key: str, path: str, table: Table, *, pointer: bool = False, keep: Callable[[Any], bool] | None = None) -> Row:
    """A list of submessages, omitted when empty; elements that ``keep`` refuses are neither shown nor filled in."""
    get = attrgetter(path)
    show_one = table.show

    def show(message: Any) -> Any:
        return [show_one(item) for item in get(message) if keep is None or keep(item)] or OMIT

    def fill(message: Any, value: list[dict[str, Any]]) -> None:
        items = get(message)
        for element in value:
            item = items.add()
            table.fill(item, element)
            if keep is not None and not keep(item):
                del items[-1]

    return Row(key, list_type(table.type, pointer), show, fill)


def custom(key: str, go: GoType, show: Show, fill: Fill) -> Row:
    """An irregular field: both directions are given as functions."""
    return Row(key, go, show, fill)


def ignored(key: str, go: GoType) -> Row:
    """Checked for its type, then dropped; never shown."""
    return Row(key, go, never, drop)


META = (
    custom(
        "Version",
        Table("swarm.Version", [number("Index", "index", "uint64")]).type,
        lambda message: {"Index": index} if (index := message.meta.version.index) else {},
        lambda message, value: setattr(message.meta.version, "index", value.get("Index", 0)),
    ),
    time("CreatedAt", "meta.created_at"),
    time("UpdatedAt", "meta.updated_at"),
)
"""Version and times, as every object has them."""

DRIVER = Table("swarm.Driver", [text("Name", "name"), labels("Options", "options")])


def named(path: str) -> tuple[Row, ...]:
    """Name and labels, which JSON has at the outer level; labels are never null."""
    return text("Name", f"{path}.name"), labels("Labels", f"{path}.labels", always=True)
