"""A second HTTP/1 parser: it finds requests in a stream as Go's server does, which is the engine's, and is as lax.

Written from the behaviour of net/http and textproto, not from our parser: lines end with LF, a CR before it is
dropped; header lines may be folded; equal lengths count once; Transfer-Encoding wins over Content-Length; sizes of
chunks may have blanks and extensions behind them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")


class Refused(Exception):
    """Go answers 400 and closes."""


class _Incomplete(Exception):
    """More bytes are needed."""


@dataclass(frozen=True)
class Request:
    """One request and the bytes it ends before."""

    method: bytes
    target: bytes
    end: int


class _Lines:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def next(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise _Incomplete
        line, self.at = self.data[self.at : end], end + 1
        return line[:-1] if line.endswith(b"\r") else line


def read(data: bytes, start: int = 0) -> Request | None:
    """The request that begins there; None when it is not complete. Raises Refused."""
    try:
        return _read(_Lines(data, start))
    except _Incomplete:
        return None


def _read(lines: _Lines) -> Request:
    parts = lines.next().split(b" ", 2)
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _VERSION.fullmatch(parts[2]):
        raise Refused("request line")
    fields = _fields(lines)
    new = parts[2] >= b"HTTP/1.1"
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    lengths = [value for name, value in fields if name == b"content-length"]
    if codings and new:
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise Refused("transfer coding")
        _skip_chunks(lines)
    elif lengths:
        if len(set(lengths)) > 1 or not lengths[0].isdigit():
            raise Refused("length")
        lines.at += int(lengths[0])
        if lines.at > len(lines.data):
            raise _Incomplete
    return Request(parts[0], parts[1], lines.at)


def _fields(lines: _Lines) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    while line := lines.next():
        if line[:1] in (b" ", b"\t"):
            if not fields:
                raise Refused("folded first line")
            name, value = fields.pop()
            fields.append((name, value + b" " + line.strip(b" \t")))
            continue
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise Refused("header line")
        fields.append((name.lower(), value.strip(b" \t")))
    return fields


def _skip_chunks(lines: _Lines) -> None:
    while True:
        size = lines.next().partition(b";")[0].rstrip(b" \t")
        if not _HEX.fullmatch(size):
            raise Refused("chunk size")
        if not int(size, 16):
            break
        lines.at += int(size, 16)
        if lines.at > len(lines.data):
            raise _Incomplete
        if lines.next():
            raise Refused("chunk end")
    _fields(lines)
