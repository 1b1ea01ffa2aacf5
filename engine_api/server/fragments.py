"""A cache of objects as JSON, by version: a list of thousands of tasks is then joined from bytes, not converted.

An object never changes without a new version (the index of the log entry that wrote it), so ID and version together
identify its text for ever. Only objects as they are stored may be given here, not objects with defaults filled in.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine_api.convert.table import Table
from swarm import defaults

_ENCODER = msgspec.json.Encoder()


class Fragments:
    """A cache with a limit in bytes; the oldest entries are dropped first."""

    def __init__(self, bytes_max: int = defaults.API_FRAGMENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: dict[str, tuple[int, Table, bytes]] = {}

    def of(self, table: Table, obj: Any) -> bytes:
        """The JSON object of a stored object. Secrets have no data in it (their table shows none)."""
        object_id, version = obj.id, obj.meta.version.index
        found = self._kept.get(object_id)
        if found is not None and found[0] == version and found[1] is table:
            return found[2]
        text = _ENCODER.encode(table.show(obj))
        if version and object_id:
            self._keep(object_id, version, table, text)
        return text

    def _keep(self, object_id: str, version: int, table: Table, text: bytes) -> None:
        self._drop(object_id)
        self._kept[object_id] = (version, table, text)
        self._bytes += len(text)
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))

    def _drop(self, object_id: str) -> None:
        old = self._kept.pop(object_id, None)
        if old is not None:
            self._bytes -= len(old[2])

    @property
    def bytes_kept(self) -> int:
        """The size of the cache, in bytes."""
        return self._bytes
