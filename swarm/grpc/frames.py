"""Frames and header blocks of HTTP/2 as bytes, and the two kinds of faults that a peer can make.

Headers are encoded without state (static table and literals only), so a block can be made once and sent at any time.
They are decoded with the peer's dynamic table, by the hpack package. Peers send the same blocks again and again: a
block that did not change the table means the same until the table changes, so such blocks are cached.

(RFC 9113, RFC 7541)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

from hpack import Decoder, HPACKError, OversizedHeaderListError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
WINDOW_MAX = 2**31 - 1
STREAM_ID_MAX = 2**31 - 1
DEFAULT_WINDOW_BYTES = 65_535
DEFAULT_FRAME_BYTES = 16_384

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

Field = tuple[bytes, bytes]


class ErrorCode(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13

    @classmethod
    def of(cls, number: int) -> ErrorCode:
        """The code for a number from the wire; unknown ones count as INTERNAL_ERROR."""
        return cls(number) if 0 <= number <= 13 else cls.INTERNAL_ERROR


class ConnectionFault(Exception):
    """The peer broke the rules in a way that ends the connection (GOAWAY)."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StreamFault(Exception):
    """The peer broke the rules in a way that ends one stream (RST_STREAM)."""

    def __init__(self, stream: int, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.stream = stream
        self.code = code
        self.text = text


_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_UINT32 = struct.Struct(">I")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def settings_frame(values: dict[int, int]) -> bytes:
    """SETTINGS with these values."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def window_update_frame(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _UINT32.pack(increment))


def rst_stream_frame(stream: int, code: ErrorCode) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream, _UINT32.pack(code))


def goaway_frame(last_stream: int, code: ErrorCode, text: str) -> bytes:
    """GOAWAY with a text for the other side's log."""
    return frame(GOAWAY, 0, 0, _UINT32.pack(last_stream) + _UINT32.pack(code) + text.encode())


def header_frames(stream: int, block: bytes, end: bool, frame_bytes_max: int) -> bytes:
    """HEADERS, and CONTINUATION where the block is longer than a frame."""
    flags = END_STREAM if end else 0
    if len(block) <= frame_bytes_max:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    parts = [block[start : start + frame_bytes_max] for start in range(0, len(block), frame_bytes_max)]
    frames = [frame(HEADERS, flags, stream, parts[0])]
    frames += [frame(CONTINUATION, 0, stream, part) for part in parts[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream, parts[-1]))
    return b"".join(frames)


def uint32(payload: bytes, offset: int = 0) -> int:
    """A 32-bit number."""
    value: int = _UINT32.unpack_from(payload, offset)[0]
    return value


def parse_settings(payload: bytes) -> dict[int, int]:
    """Values by number; the last of repeated ones counts."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
    return dict(_SETTING.iter_unpack(payload))


def without_padding(flags: int, payload: bytes) -> bytes:
    """The payload of DATA or HEADERS without padding."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


# --- header blocks ---

STATUS_200 = b"\x88"
METHOD_POST = b"\x83"
SCHEME_HTTP = b"\x86"
SCHEME_HTTPS = b"\x87"


def _length(number: int) -> bytes:
    if number < 127:
        return bytes((number,))
    number -= 127
    encoded = bytearray((127,))
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def literal(name: str, value: str | bytes) -> bytes:
    """A header field that does not enter the dynamic table."""
    encoded_name = name.encode("ascii")
    encoded_value = value if isinstance(value, bytes) else value.encode()
    return b"\x00" + _length(len(encoded_name)) + encoded_name + _length(len(encoded_value)) + encoded_value


_CACHED_BLOCKS_MAX = 64
_CACHED_BLOCK_BYTES_MAX = 1_024
_FIELD_OVERHEAD_BYTES = 32  # RFC 7541 4.1
_TABLE_SIZE_UPDATE = 0x20  # in the top three bits of a representation


def _fields_bytes(fields: Iterable[Field]) -> int:
    return sum(len(name) + len(value) + _FIELD_OVERHEAD_BYTES for name, value in fields)


class HeaderDecoder:
    """Header blocks of one connection, in the order in which they came."""

    def __init__(self, header_list_bytes_max: int) -> None:
        self._decoder = Decoder(header_list_bytes_max)
        self._list_bytes_max = header_list_bytes_max
        self._known: dict[bytes, tuple[Field, ...]] = {}

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """Names and values. Raises ConnectionFault: the table is unusable then, and with it the connection."""
        fields = self._known.get(block)
        if fields is not None:
            return fields
        entries = self._decoder.header_table.dynamic_entries
        count, newest = len(entries), entries[0] if entries else None
        fields = self._decode(block)
        resized = block[:1] and block[0] & 0xE0 == _TABLE_SIZE_UPDATE
        if resized or len(entries) != count or (entries and entries[0] is not newest):
            self._known.clear()  # also after a new size alone: more fields may enter the table now
        elif len(block) <= _CACHED_BLOCK_BYTES_MAX and len(self._known) < _CACHED_BLOCKS_MAX:
            self._known[block] = fields
        return fields

    def held_bytes(self) -> int:
        """Bytes of the dynamic table, and of the cached blocks with their fields."""
        return _fields_bytes(self._decoder.header_table.dynamic_entries) + sum(
            len(block) + _fields_bytes(fields) for block, fields in self._known.items()
        )

    def check(self) -> None:
        """Assert what must always hold."""
        assert _fields_bytes(self._decoder.header_table.dynamic_entries) <= self._decoder.header_table.maxsize
        assert self._decoder.header_table.maxsize <= self._decoder.max_allowed_table_size
        assert len(self._known) <= _CACHED_BLOCKS_MAX
        assert all(len(block) <= _CACHED_BLOCK_BYTES_MAX for block in self._known)

    def _decode(self, block: bytes) -> tuple[Field, ...]:
        """Leading fields that are only references are looked up here: hpack takes ten times as long."""
        fields: list[Field] = []
        size = position = 0
        lookup = self._decoder.header_table.get_by_index
        try:
            for reference in block:
                if not 0x80 < reference < 0xFF:
                    break
                found = lookup(reference & 0x7F)
                fields.append(found)
                position += 1
                size += len(found[0]) + len(found[1]) + _FIELD_OVERHEAD_BYTES
                if size > self._list_bytes_max:
                    raise OversizedHeaderListError("too many references")
            if position < len(block):
                if position and block[position] & 0xE0 == _TABLE_SIZE_UPDATE:
                    raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "table size update inside a header block")
                for name, value in self._decoder.decode(block[position:], raw=True):
                    fields.append((name, value))
                    size += len(name) + len(value) + _FIELD_OVERHEAD_BYTES
        except OversizedHeaderListError:
            size = self._list_bytes_max + 1
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "malformed header block") from error
        if size > self._list_bytes_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"header list of more than {self._list_bytes_max} bytes")
        return tuple(fields)
