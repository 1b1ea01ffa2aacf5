"""Just enough of HTTP/1.1 to know where messages begin and end: heads are parsed, bodies only counted.

Strict where laxness allows request smuggling (RFC 9112 6.3): conflicting lengths, folded lines and unknown transfer
codings are refused. Bodies pass through byte for byte, chunk framing included.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES_MAX = 1 << 20  # Go's http.DefaultMaxHeaderBytes; X-Registry-Config can be large
CHUNK_LINE_BYTES_MAX = 64 << 10


class BadMessage(ValueError):
    """The peer does not speak HTTP/1.1 as it should; the text is for a person."""


@dataclass(frozen=True, slots=True)
class Head:
    """What matters of a head. length: Content-Length or None. upgrade: asks to change protocols."""

    first_line: bytes
    length: int | None
    chunked: bool
    upgrade: bool
    close: bool

    @property
    def method(self) -> bytes:
        """Of a request."""
        return self.first_line.split(b" ", 1)[0]

    @property
    def target(self) -> bytes:
        """Of a request: path and query, or empty."""
        parts = self.first_line.split(b" ")
        return parts[1] if len(parts) == 3 else b""

    @property
    def status(self) -> int:
        """Of a response. Raises BadMessage."""
        parts = self.first_line.split(b" ", 2)
        if len(parts) < 2 or not parts[1].isdigit():
            raise BadMessage("malformed status line")
        return int(parts[1])


def parse_head(data: bytes) -> Head:
    """A head including its empty line. Raises BadMessage."""
    lines = data[:-4].split(b"\r\n")
    length: int | None = None
    chunked = upgrade = close = False
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t"):
            raise BadMessage("folded header line")
        name, separator, value = line.partition(b":")
        if not separator or not name or name != name.strip():
            raise BadMessage("malformed header line")
        match name.lower():
            case b"content-length":
                value = value.strip()
                if not value.isdigit() or (length is not None and length != int(value)):
                    raise BadMessage("bad Content-Length")
                length = int(value)
            case b"transfer-encoding":
                if value.strip().lower() != b"chunked" or chunked:
                    raise BadMessage("unsupported transfer encoding")
                chunked = True
            case b"connection":
                options = {option.strip() for option in value.lower().split(b",")}
                close = close or b"close" in options
                upgrade = upgrade or b"upgrade" in options
    if chunked and length is not None:
        raise BadMessage("both Content-Length and Transfer-Encoding")
    close = close or lines[0].endswith(b"HTTP/1.0")
    return Head(lines[0], length, chunked, upgrade, close)


class Body:
    """Counts a message body. feed() tells how many bytes of the data still belong to it."""

    __slots__ = ("_line", "_part", "_rest", "chunked", "done")

    def __init__(self, length: int | None, chunked: bool) -> None:
        self.chunked = chunked
        self._rest = 0 if chunked else (length or 0)
        self.done = not chunked and self._rest == 0
        self._line = b""
        self._part = "size"

    def feed(self, data: bytes | bytearray, start: int = 0) -> int:
        """Position in ``data`` after what belongs to this body. Raises BadMessage."""
        if not self.chunked:
            taken = min(self._rest, len(data) - start)
            self._rest -= taken
            self.done = self._rest == 0
            return start + taken
        position = start
        while position < len(data) and not self.done:
            if self._part == "data":
                taken = min(self._rest, len(data) - position)
                self._rest -= taken
                position += taken
                if self._rest == 0:
                    self._part = "size"
                continue
            end = data.find(b"\n", position)
            if end < 0:
                self._line += bytes(data[position:])
                position = len(data)
            else:
                line = (self._line + bytes(data[position:end])).rstrip(b"\r")
                self._line = b""
                position = end + 1
                self._take_line(line)
            if len(self._line) > CHUNK_LINE_BYTES_MAX:
                raise BadMessage("chunk line too long")
        return position

    def _take_line(self, line: bytes) -> None:
        if self._part == "trailer":
            self.done = not line
            return
        size = line.split(b";", 1)[0].strip()
        try:
            self._rest = int(size, 16) if size.isalnum() else -1
        except ValueError:
            self._rest = -1
        if self._rest < 0:
            raise BadMessage("malformed chunk size")
        if self._rest == 0:
            self._part = "trailer"
        else:
            self._rest += 2  # the line end after the data
            self._part = "data"
