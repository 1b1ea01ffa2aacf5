"""Tables: one per message, used in both directions between Engine API JSON and protobuf.

A table is a list of rows; a row is one JSON field: its key, its Go type, how it is shown and how it is filled in.
Reading goes in two steps, because stock engines do other work in between and their users know the order of errors:

  parse   JSON value -> dict with the table's own keys, every value of its Go type. Keys match without case, null means
          unset, unknown keys are ignored, and a wrong type raises JsonError with the text of Go's decoder.
  fill    that dict -> message. What cannot be expressed raises BadParameter with the stock text.
  show    message -> dict, keys in the order of the Go structs.

The kinds of rows are in engine_api/convert/fields.py.

(moby: daemon/cluster/convert/*.go, api/types/swarm/*.go)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine_api.convert.gotypes import GoType, Where, mismatch

Show = Callable[[Any], Any]
Fill = Callable[[Any, Any], None]


class _Omit:
    """What a row shows when its key is left out."""


OMIT = _Omit()


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON field. ``show`` returns OMIT to leave the key out."""

    key: str
    type: GoType
    show: Show
    fill: Fill


class Table:
    """Rows of one message. ``name``: the Go type ("swarm.ServiceSpec").

    begin: called before filling with the parsed dict, returns the one to use; the place for checks across fields.
    """

    def __init__(
        self, name: str, rows: Sequence[Row], begin: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> None:
        self.name = name
        self.struct = name.rpartition(".")[2]
        self.rows = tuple(rows)
        self.type = GoType(name, self._parse)
        self._begin = begin
        self._exact = {row.key: row for row in rows}
        self._folded = {row.key.lower(): row for row in rows}
        self._shows = [(row.key, row.show) for row in rows if row.show is not never]

    def parse(self, value: Any, root: str | None = None) -> dict[str, Any]:
        """A request's JSON value; ``root`` replaces the name of the outermost struct. Raises JsonError."""
        return {} if value is None else self._parse(value, Where(), root)

    def _parse(self, value: Any, where: Where, root: str | None = None) -> dict[str, Any]:
        if type(value) is not dict:
            raise mismatch(value, self.name, where)
        prefix = f"{where.path}." if where.path else ""
        out: dict[str, Any] = {}
        for key, item in value.items():
            row = self._exact.get(key) or self._folded.get(key.lower())
            if row is not None and item is not None:
                out[row.key] = row.type.parse(item, Where(root or self.struct, prefix + row.key))
        return out

    def fill(self, message: Any, parsed: Mapping[str, Any]) -> None:
        """Write parsed fields into a message. Raises BadParameter; the message may then be half written."""
        values = self._begin(dict(parsed)) if self._begin else parsed
        for row in self.rows:
            if row.key in values:
                row.fill(message, values[row.key])

    def show(self, message: Any) -> dict[str, Any]:
        """The JSON object of a message."""
        out = {}
        for key, show in self._shows:
            value = show(message)
            if value is not OMIT:
                out[key] = value
        return out


def never(_: Any) -> Any:
    """How a row is shown that clients never see."""
    return OMIT


def drop(message: Any, value: Any) -> None:
    """How a row is filled in whose value is accepted and not kept."""
