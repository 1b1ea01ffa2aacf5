"""Splits the bytes from a TLS peer into records, and counts the records without data.

A key update, an alert or an empty record costs the server as much as a call does, and may need an answer. Anybody can
send thousands of them in one packet, even before authentication. So OpenSSL gets one record at a time, and a connection
may send only a few records without data.

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
        """Add bytes from the network."""
        self._input += data

    def clear(self) -> None:
        """Drop the bytes that are left."""
        self._input.clear()

    def next(self) -> bytes:
        """One whole record; empty when none is complete. If the bytes are not TLS: all of them, so OpenSSL says why."""
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
        """Count a record without data; True when there were too many. now: any clock in seconds."""
        if now - self._since >= USELESS_RECORDS_PERIOD_S:
            self._useless, self._since = 0, now
        self._useless += 1
        return self._useless > USELESS_RECORDS_MAX
