"""Cuts what a TLS peer sends into records, and counts those that bring no data.

A key update, an alert or an empty record costs a server as much as a call does and may have to be answered, while
thousands of them fit into one packet, also from a stranger. So OpenSSL gets one record at a time, and a connection only
a few that bring nothing.

(RFC 8446, 5.1; go: crypto/tls maxUselessRecords)
"""

from __future__ import annotations

RECORD_BYTES_MAX = 16_384
USELESS_RECORDS_MAX = 32  # within the time below; the last message of a handshake is one
USELESS_RECORDS_PERIOD_S = 60.0

_HEADER_BYTES = 5
_TYPES = (20, 21, 22, 23)
_WIRE_BYTES_MAX = RECORD_BYTES_MAX + 2048 + _HEADER_BYTES


class Records:
    """One direction of a connection."""

    def __init__(self) -> None:
        self._input = bytearray()
        self._useless = 0
        self._since = 0.0

    def feed(self, data: bytes) -> None:
        """More from the network."""
        self._input += data

    def clear(self) -> None:
        """Forget what is left."""
        self._input.clear()

    def next(self) -> bytes:
        """One whole record, empty when none is complete; of what is no TLS all there is, for OpenSSL to explain."""
        available = self._input
        size = len(available)
        if size and available[0] in _TYPES:
            if size < _HEADER_BYTES:
                return b""
            announced = _HEADER_BYTES + int.from_bytes(available[3:_HEADER_BYTES], "big")
            if announced <= _WIRE_BYTES_MAX:
                if size < announced:
                    return b""
                size = announced
        record = bytes(memoryview(available)[:size])
        del available[:size]
        return record

    def useless(self, now: float) -> bool:
        """The last record brought no data; whether there were too many of the kind. now: any clock in seconds."""
        if now - self._since >= USELESS_RECORDS_PERIOD_S:
            self._useless, self._since = 0, now
        self._useless += 1
        return self._useless > USELESS_RECORDS_MAX
