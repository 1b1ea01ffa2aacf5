"""Just enough HTTP/1.1 to find where messages begin and end: heads are parsed, bodies are only counted.

It is strict where leniency would allow request smuggling (RFC 9112 6.3): conflicting lengths, folded lines, bare line
feeds, malformed chunks and unknown transfer codings are refused. Bodies pass through byte for byte, with their chunk
framing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine_api.front.target import BadTarget, canonical_target, parse_target

HEAD_BYTES_MAX = 1 << 20  # Go's http.DefaultMaxHeaderBytes; X-Registry-Config can be large
CHUNK_LINE_BYTES_MAX = 4 << 10
CHUNK_DIGITS_MAX = 16
LENGTH_DIGITS_MAX = 18
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^ \x00-\x1f\x7f]+ HTTP/1\.[01]")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}( [^\x00\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NEVER_IN_LINE = re.compile(rb"[\x00\r\n]")
_HTTP2_PATH = re.compile(rb"(?:/v[0-9.]+)?/(?:session|grpc)")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,%d})[ \t]*(?:;.*)?" % CHUNK_DIGITS_MAX)


class BadMessage(ValueError):
    """The peer's HTTP/1.1 is invalid or too large. The text is for the user, status for the client."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """The relevant parts of a head. length: Content-Length or None. upgrade: it asks for another protocol.

    hosts: the values of its Host lines. http2: the protocol that it asks for is HTTP/2.
    """

    first_line: bytes
    length: int | None
    chunked: bool
    upgrade: bool
    close: bool
    hosts: tuple[bytes, ...] = ()
    http2: bool = False

    @property
    def method(self) -> bytes:
        """Of a request."""
        return self.first_line.split(b" ", 1)[0]

    @property
    def target(self) -> bytes:
        """Of a request: path and query as they were sent."""
        return self.first_line.split(b" ")[1]

    @property
    def status(self) -> int:
        """Of a response."""
        return int(self.first_line[9:12])

    @property
    def path_and_query(self) -> tuple[bytes, bytes]:
        """Of a request, as Go's server sees them: the path percent-decoded, the query as it was sent."""
        return parse_target(self.method, self.target)

    @property
    def canonical_line(self) -> bytes:
        """The request line with the path and query that were judged, spelt so that no parser reads another path."""
        method, target, version = self.first_line.split(b" ")
        return b" ".join((method, canonical_target(*parse_target(method, target)), version))

    def check_host(self) -> None:
        """A request to us must have a Host, as the engine requires it of the others. Raises BadMessage."""
        if not self.hosts and not self.first_line.endswith(b"HTTP/1.0"):
            raise BadMessage("missing required Host header")


def parse_request(data: bytes) -> Head:
    """The head of a request including its empty line. Raises BadMessage."""
    head = _parse(data)
    if not _REQUEST_LINE.fullmatch(head.first_line):
        raise BadMessage("malformed request line")
    try:
        path, _ = head.path_and_query
    except BadTarget as error:
        raise BadMessage(str(error)) from None
    if len(head.hosts) > 1:
        raise BadMessage("too many Host headers")
    if head.hosts and not _HOST.fullmatch(head.hosts[0]):
        raise BadMessage("malformed Host header")
    if head.upgrade and head.http2 and not _HTTP2_PATH.fullmatch(path):
        raise BadMessage("HTTP/2 is for /session and /grpc only")  # nobody looks into what follows
    return head


def parse_response(data: bytes) -> Head:
    """The head of a response including its empty line. Raises BadMessage."""
    head = _parse(data)
    if not _STATUS_LINE.fullmatch(head.first_line):
        raise BadMessage("malformed status line")
    return head


def _parse(data: bytes) -> Head:
    lines = data[:-4].split(b"\r\n")
    old = lines[0].endswith(b"HTTP/1.0") or lines[0].startswith(b"HTTP/1.0")
    length: int | None = None
    chunked = upgrade = http2 = False
    close = old
    hosts: list[bytes] = []
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t"):
            raise BadMessage("folded header line")
        if _NEVER_IN_LINE.search(line):
            raise BadMessage("control character in a header line")
        name, separator, value = line.partition(b":")
        if not separator or not _NAME.fullmatch(name):
            raise BadMessage("malformed header line")
        match name.lower():
            case b"content-length":
                length = _length(value.strip(b" \t"), length)
            case b"transfer-encoding":
                if value.strip(b" \t").lower() != b"chunked" or chunked or old:
                    raise BadMessage("unsupported transfer encoding", 501)
                chunked = True
            case b"connection":
                options = [option.strip(b" \t") for option in value.lower().split(b",")]
                close = close or b"close" in options
                upgrade = upgrade or b"upgrade" in options
            case b"host":
                hosts.append(value.strip(b" \t"))
            case b"upgrade":
                http2 = http2 or b"h2" in value.lower()
    if chunked and length is not None:
        raise BadMessage("both Content-Length and Transfer-Encoding")
    return Head(lines[0], length, chunked, upgrade, close, tuple(hosts), http2)


def _length(value: bytes, before: int | None) -> int:
    if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX or (before is not None and before != int(value)):
        raise BadMessage("bad Content-Length")
    return int(value)


class Body:
    """Finds the end of a message body: feed() returns where in the data the body ends."""

    __slots__ = ("_line", "_part", "_rest", "chunked", "done")

    def __init__(self, length: int | None, chunked: bool) -> None:
        self.chunked = chunked
        self._rest = 0 if chunked else (length or 0)
        self.done = not chunked and self._rest == 0
        self._line = b""
        self._part = "size"  # then "data" and "end" of each chunk; finally "trailer"

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
                    self._part = "end"
                continue
            end = data.find(b"\n", position)
            stop = len(data) if end < 0 else end + 1
            self._line += bytes(data[position:stop])
            position = stop
            if len(self._line) > CHUNK_LINE_BYTES_MAX:
                raise BadMessage("chunk line too long")
            if end >= 0:
                line, self._line = self._line, b""
                if not line.endswith(b"\r\n"):
                    raise BadMessage("a line of a chunked body must end with CRLF")
                self._take_line(line[:-2])
        return position

    def _take_line(self, line: bytes) -> None:
        if self._part == "trailer":
            self.done = not line
            return
        if self._part == "end":
            if line:
                raise BadMessage("a chunk is longer than its size says")
            self._part = "size"
            return
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise BadMessage("malformed chunk size")
        self._rest = int(size[1], 16)
        self._part = "data" if self._rest else "trailer"
