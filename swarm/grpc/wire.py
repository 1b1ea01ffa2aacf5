"""gRPC on top of HTTP/2, as bytes: message framing, status, deadlines, metadata, and their limits.

(grpc: doc/PROTOCOL-HTTP2.md, doc/http-grpc-status-mapping.md)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm import defaults
from swarm.errors import Code, InvalidArgument, SwarmError
from swarm.grpc import frames as h2
from swarm.grpc.frames import ErrorCode, Field

PREFIX_BYTES = 5
CONTENT_TYPE = "application/grpc"
Metadata = Sequence[tuple[str, str]]


class WireError(SwarmError):
    """The peer violates gRPC's protocol or a limit; the call ends with this status."""

    code = Code.INTERNAL


# --- messages ---


def frame_message(message: bytes) -> bytes:
    """A message with its prefix: not compressed, and its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class MessageReader:
    """Cuts the bytes of one direction of a call into messages."""

    __slots__ = ("_buffer", "_bytes_max", "_need")

    def __init__(self, message_bytes_max: int) -> None:
        self._bytes_max = message_bytes_max
        self._buffer = bytearray()
        self._need = 0  # bytes of the current message with its prefix; 0: the prefix is not complete

    @property
    def missing(self) -> int:
        """Bytes of the current message that have not come yet; 0 if none has begun."""
        return self._need - len(self._buffer) if self._need else 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not complete: the direction must not end here."""
        return bool(self._buffer)

    @property
    def unfinished_bytes(self) -> int:
        """Bytes that are kept of an incomplete message."""
        return len(self._buffer)

    def feed(self, data: bytes, messages_max: int = 1 << 31) -> list[bytes]:
        """The messages that are complete now, at most ``messages_max``; the rest is kept. Raises WireError."""
        if not self._buffer and len(data) >= PREFIX_BYTES and messages_max and len(data) == self._size(data):
            return [data[PREFIX_BYTES:]]
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        position = 0
        while len(buffer) - position >= PREFIX_BYTES and len(messages) < messages_max:
            self._need = self._size(buffer[position : position + PREFIX_BYTES])
            if len(buffer) - position < self._need:
                break
            messages.append(bytes(memoryview(buffer)[position + PREFIX_BYTES : position + self._need]))
            position += self._need
            self._need = 0
        del buffer[:position]
        return messages

    def _size(self, prefix: bytes | bytearray) -> int:
        if prefix[0]:
            raise WireError("grpc: compressed flag set with identity or empty encoding")
        size = int.from_bytes(prefix[1:PREFIX_BYTES], "big")
        if size > self._bytes_max:
            raise WireError(
                f"grpc: received message larger than max ({size} vs. {self._bytes_max})", Code.RESOURCE_EXHAUSTED
            )
        return PREFIX_BYTES + size


# --- deadlines ---

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def parse_timeout(value: bytes) -> float:
    """Seconds of a grpc-timeout. Raises WireError."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise WireError(f"malformed grpc-timeout: {value[:20].decode('ascii', 'replace')!r}")
    return int(match[1]) * _UNIT_S[match[2]]


def format_timeout(timeout_s: float) -> str:
    """A grpc-timeout of at most 8 digits, rounded up to its unit."""
    for unit, factor in (("m", 1e3), ("S", 1.0), ("M", 1 / 60), ("H", 1 / 3600)):
        amount = max(0, -int(-timeout_s * factor // 1))
        if amount < 10**8:
            return f"{amount}{unit}"
    return "99999999H"


# --- status ---

_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}
_ESCAPED = re.compile(rb"%([0-9a-fA-F]{2})")


def percent_encode(text: str) -> bytes:
    """A grpc-message."""
    data = text.encode("utf-8", "surrogatepass")
    if _PLAIN.issuperset(data):
        return data
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in data)


def percent_decode(value: bytes) -> str:
    """The text of a grpc-message; malformed escapes stay as they are."""
    return _ESCAPED.sub(lambda match: bytes((int(match[1], 16),)), value).decode("utf-8", "replace")


RESPONSE_BLOCK = h2.STATUS_200 + h2.literal("content-type", CONTENT_TYPE)
OK_BLOCK = h2.literal("grpc-status", "0")
_CLOCK = b"sideswarm-clock"


def clock_block(now: float) -> bytes:
    """A header with our time, in seconds since the epoch, so that peers notice when clocks differ."""
    return h2.literal(_CLOCK.decode(), f"{now:.0f}")


def peer_clock(fields: Iterable[Field]) -> float | None:
    """The sender's time in a response, if present."""
    value = first(fields, _CLOCK)
    return float(value) if value is not None and re.fullmatch(rb"[0-9]{1,12}", value) else None


def status_block(error: SwarmError | None) -> bytes:
    """The trailers for this outcome; None: OK."""
    if error is None:
        return OK_BLOCK
    text = error.message.encode("utf-8", "replace")[: defaults.RPC_STATUS_TEXT_BYTES_MAX].decode("utf-8", "ignore")
    return h2.literal("grpc-status", str(int(error.code))) + h2.literal("grpc-message", percent_encode(text))


def http_error_block(status: int) -> bytes:
    """The headers of a response to a request that is not gRPC."""
    return h2.literal(":status", str(status))


_HTTP_CODES = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}

_RESET_CODES = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


def reset_error(code: ErrorCode, text: str = "") -> SwarmError:
    """The error of a call whose stream was reset."""
    detail = f" ({text})" if text and text != code.name else ""
    return SwarmError(
        f"stream terminated by RST_STREAM with error code: {code.name}{detail}", _RESET_CODES.get(code, Code.INTERNAL)
    )


def first(fields: Iterable[Field], wanted: bytes) -> bytes | None:
    """The first value of a field."""
    for name, value in fields:
        if name == wanted:
            return value
    return None


def check_response(fields: Sequence[Field]) -> None:
    """Check that a server's headers are those of a gRPC response. Raises WireError."""
    status = first(fields, b":status")
    if status != b"200":
        number = int(status) if status is not None and re.fullmatch(rb"[1-9][0-9]{2}", status) else 0
        raise WireError(
            f"unexpected HTTP status code received from server: {number}", _HTTP_CODES.get(number, Code.UNKNOWN)
        )
    content_type = first(fields, b"content-type") or b""
    if not is_grpc(content_type):
        raise WireError(
            f"unexpected content-type received from server: {content_type[:80].decode('ascii', 'replace')!r}",
            Code.UNKNOWN,
        )


def outcome(fields: Sequence[Field]) -> SwarmError | None:
    """The status in trailers: None for OK."""
    number = first(fields, b"grpc-status")
    if number is None:
        return WireError("server closed the stream without sending trailers")
    if number == b"0":
        return None
    code = Code(int(number)) if re.fullmatch(rb"[0-9]|1[0-6]", number) else Code.UNKNOWN
    return SwarmError(percent_decode(first(fields, b"grpc-message") or b""), code)


# --- requests ---


def is_grpc(content_type: bytes) -> bool:
    """Whether this is gRPC's content type, with protobuf or unspecified messages."""
    return content_type in (b"application/grpc", b"application/grpc+proto") or content_type.startswith(
        (b"application/grpc;", b"application/grpc+proto;")
    )


_USER_AGENT = h2.literal("user-agent", "grpc-python-sideswarm")
_TE = h2.literal("te", "trailers")
_NAME = re.compile(r"[0-9a-z_.-]+")
_RESERVED = ("grpc-", ":")


def request_block(
    path: str, authority: str, *, secure: bool, timeout_s: float | None = None, metadata: Metadata = ()
) -> bytes:
    """Headers of a call. Raises InvalidArgument for metadata that cannot be sent."""
    fields = [
        h2.METHOD_POST,
        h2.SCHEME_HTTPS if secure else h2.SCHEME_HTTP,
        h2.literal(":path", path),
        h2.literal(":authority", authority),
        h2.literal("content-type", CONTENT_TYPE),
        _USER_AGENT,
        _TE,
    ]
    if timeout_s is not None:
        fields.append(h2.literal("grpc-timeout", format_timeout(timeout_s)))
    for name, value in metadata:
        if not _NAME.fullmatch(name) or name.startswith(_RESERVED):
            raise InvalidArgument(f"metadata name {name!r} is not allowed")
        data = value.encode("utf-8", "surrogatepass")
        if not data.isascii() or not data.decode().isprintable():
            raise InvalidArgument(f"metadata value of {name} is not printable ASCII")
        fields.append(h2.literal(name, data))
    return b"".join(fields)


@dataclass(frozen=True, slots=True)
class Request:
    """The headers of a call, checked. ``metadata`` has every value of every custom name."""

    path: str
    timeout_s: float | None
    metadata: Mapping[str, tuple[str, ...]]


class HttpError(Exception):
    """Not a gRPC request: answer with this HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


_PLUMBING = frozenset((b"te", b"content-type", b"user-agent", b"grpc-accept-encoding", b"accept-encoding"))


def parse_request(fields: Sequence[Field]) -> Request:
    """Read a call's headers. Raises WireError for bad gRPC, HttpError for something else."""
    path = method = None
    content_type = b""
    timeout_s: float | None = None
    metadata: dict[str, tuple[str, ...]] = {}
    for name, value in fields:
        if name == b":path":
            path = value
        elif name == b":method":
            method = value
        elif name == b"content-type":
            content_type = value
        elif name == b"grpc-timeout":
            timeout_s = parse_timeout(value)
        elif name == b"grpc-encoding" and value != b"identity":
            raise WireError(
                f'grpc: Decompressor is not installed for grpc-encoding "{value[:20].decode("ascii", "replace")}"',
                Code.UNIMPLEMENTED,
            )
        elif name not in _PLUMBING and not name.startswith((b":", b"grpc-")):
            key = name.decode("ascii", "replace")
            metadata[key] = (*metadata.get(key, ()), value.decode("utf-8", "replace"))
    if method != b"POST":
        raise HttpError(405)
    if not is_grpc(content_type):
        raise HttpError(415)
    return Request((path or b"").decode("ascii", "replace"), timeout_s, metadata)
