"""Reading requests: bodies, filters, booleans and numbers of the query, with the texts of stock engines.

(moby: daemon/server/httputils, daemon/internal/filters)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from engine_api.convert.gojson import JsonError, first_value_of, quote, whole_value
from engine_api.convert.table import Table
from engine_api.errors import BadParameter
from engine_api.server.dialect import Dialect
from swarm import defaults

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))
_FALSE_WORDS = frozenset(("", "0", "no", "false", "none"))
_UINT64_MAX = (1 << 64) - 1


async def read_json(
    http: web.Request,
    table: Table,
    dialect: Dialect,
    root: str | None = None,
    bytes_max: int = defaults.API_BODY_BYTES_MAX,
) -> dict[str, Any]:
    """The body as a dict of the table's keys. Raises BadParameter, web.HTTPRequestEntityTooLarge."""
    body = await http.read()
    if len(body) > bytes_max:
        raise web.HTTPRequestEntityTooLarge(bytes_max, len(body))
    check_content_type(http, dialect, bool(body))
    if len(body) <= defaults.API_BODY_INLINE_BYTES_MAX:
        return parse_body(body, table, dialect, root)
    return await asyncio.to_thread(parse_body, body, table, dialect, root)


def parse_body(body: bytes, table: Table, dialect: Dialect, root: str | None = None) -> dict[str, Any]:
    """A body that was read, as a dict of the table's keys. Raises BadParameter."""
    if not body and dialect.empty_body is None:
        return {}
    try:
        value, rest = first_value_of(body)
        if rest and dialect.strict_body:
            raise BadParameter("unexpected content after JSON")
        return table.parse(value, root)
    except EOFError:
        raise BadParameter(dialect.empty_body or f"{dialect.json_prefix}got EOF while reading request body") from None
    except JsonError as error:
        raise BadParameter(f"{dialect.json_prefix}{error}") from None


def check_content_type(http: web.Request, dialect: Dialect, has_body: bool) -> None:
    """Newer engines read only what says that it is JSON. Raises BadParameter."""
    header = http.headers.get("Content-Type", "")
    if not dialect.strict_body or not (header or has_body):
        return
    media_type = header.partition(";")[0].strip().lower()
    if not media_type:
        raise BadParameter(f"malformed Content-Type header ({header}): mime: no media type")
    if media_type != "application/json":
        raise BadParameter(f"unsupported Content-Type header ({header}): must be 'application/json'")


def loose_bool(value: str) -> bool:
    """True unless the value is empty, 0, no, false or none, in any case."""
    return value.strip().lower() not in _FALSE_WORDS


def parse_bool(value: str) -> bool | None:
    """Go's ParseBool; None when it would refuse."""
    return True if value in _TRUE else False if value in _FALSE else None


def strict_bool(name: str, value: str, reason: bool = True) -> bool:
    """A boolean of the query, empty meaning false. Raises BadParameter, ``reason`` adding ParseBool's text."""
    found = parse_bool(value) if value else False
    if found is None:
        detail = f": strconv.ParseBool: parsing {quote(value)}: invalid syntax" if reason else ""
        raise BadParameter(f"invalid value for {name}: {value}{detail}")
    return found


def parse_uint64(value: str) -> int:
    """Go's ParseUint. Raises ValueError with its text."""
    if not re.fullmatch("[0-9]+", value):
        raise ValueError(f"strconv.ParseUint: parsing {quote(value)}: invalid syntax")
    number = int(value[:64])
    if number > _UINT64_MAX or len(value.lstrip("0")) > 20:
        raise ValueError(f"strconv.ParseUint: parsing {quote(value)}: value out of range")
    return number


def object_version(word: str, value: str, reason: bool = True) -> int:
    """The ``version`` of an update. word: kind of object, for the text. Raises BadParameter."""
    try:
        return parse_uint64(value)
    except ValueError as error:
        raise BadParameter(
            f"invalid {word} version '{value}': {error}" if reason else f"invalid {word} version"
        ) from None


class Filters:
    """The ``filters`` of a list request: key to values, each value once."""

    def __init__(self, values: dict[str, list[str]]) -> None:
        self._values = values

    def get(self, key: str) -> list[str]:
        """The values of a key, in the order they were given; empty when it is absent."""
        return self._values.get(key, [])

    def labels(self, key: str) -> dict[str, str]:
        """``k=v`` values as a map; a value without ``=`` has an empty one."""
        return {name: value for name, _, value in (entry.partition("=") for entry in self.get(key))}


def parse_filters(text: str, accepted: Iterable[str], dialect: Dialect) -> Filters:
    """Filters in either shape: ``{"label": {"a=b": true}}`` or ``{"label": ["a=b"]}``. Raises BadParameter."""
    try:
        values = filter_values(text)
    except JsonError as error:
        raise BadParameter(dialect.filter_syntax_text or str(error)) from None
    known = frozenset(accepted)
    for key in values:
        if key not in known:
            raise BadParameter(f"{dialect.filter_word} filter '{key}'")
    return Filters(values)


def filter_values(text: str) -> dict[str, list[str]]:
    """Key to values of filters in either shape, with any keys. Raises JsonError."""
    raw = whole_value(text) if text else {}
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise JsonError(f"json: cannot unmarshal {_word(raw)} into Go value of type map[string]map[string]bool")
    out: dict[str, list[str]] = {}
    for key, values in raw.items():
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            out[key] = list(dict.fromkeys(values))
        elif isinstance(values, dict) and all(isinstance(on, bool) for on in values.values()):
            out[key] = list(values)
        elif values is None:
            out[key] = []
        else:
            raise JsonError(f"json: cannot unmarshal {_word(values)} into Go value of type map[string]bool")
    return out


def _word(value: Any) -> str:
    names = {str: "string", list: "array", dict: "object", bool: "bool"}
    return names.get(type(value), "number")
