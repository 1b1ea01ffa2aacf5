"""A second HTTP/1 parser: it finds requests in a stream as Go's server does, which is the engine's, and is as lax.

Written from the behaviour of net/http and textproto, not from our parser: lines end with LF, a CR before it is
dropped; header lines may be folded; equal lengths count once; Transfer-Encoding wins over Content-Length; sizes of
chunks may have blanks and extensions behind them.

And a second reader of targets: ``url_path`` is what net/url makes of one, ``route`` what moby's router does with that
path (gorilla/mux, with its defaults, in all releases from 20.10 on): it redirects paths that are not clean, and matches
the others as a whole, decoded, with or without one version before them. Where releases of Go differ, the laxer counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):")
_PORT = re.compile(rb"(?::[0-9]*)?")
_HOST_CHARS = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:\[\]<>\"%\x80-\xff-]*")
_USER_CHARS = re.compile(rb"[A-Za-z0-9._:~!$&'()*+,;=%@-]*")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_ESCAPED = re.compile(rb"%[0-9A-Fa-f]{2}")
_VERSIONED = re.compile(rb"/v[0-9.]+(/.*)", re.DOTALL)
_SWARM_ROOTS = {b"swarm", b"services", b"nodes", b"tasks", b"secrets", b"configs"}


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


@dataclass(frozen=True)
class Routed:
    """What moby's router does. path: what it matches, or redirects to. of_swarm: its swarm router may get it."""

    path: bytes
    redirected: bool = False
    of_swarm: bool = False


def url_path(method: bytes, target: bytes) -> bytes:
    """URL.Path of a request. Raises Refused."""
    if method == b"CONNECT" and not target.startswith(b"/"):
        target = b"http://" + target
    if not target or any(byte < 0x20 or byte == 0x7F for byte in target):
        raise Refused("control character, or empty")
    if target == b"*":
        return target
    scheme = _SCHEME.match(target)
    if target.startswith(b":"):
        raise Refused("missing scheme")
    rest = (target[scheme.end() :] if scheme else target).partition(b"?")[0]
    if not rest.startswith(b"/"):
        if scheme:
            return b""  # opaque
        raise Refused("invalid URI for request")
    if scheme and rest.startswith(b"//"):
        authority, slash, path = rest[2:].partition(b"/")
        _check_authority(authority)
        rest = slash + path
    return _unescape(rest)


def _check_authority(authority: bytes) -> None:
    user, at, host = authority.rpartition(b"@")
    if at and not _USER_CHARS.fullmatch(user):
        raise Refused("userinfo")
    _unescape(user)
    name, bracket, port = host.rpartition(b"]")
    if host.startswith(b"["):
        if not bracket or not _PORT.fullmatch(port):
            raise Refused("bracket or port")
    elif b":" in host and not _PORT.fullmatch(host[host.rindex(b":") :]):
        raise Refused("port")
    if not _HOST_CHARS.fullmatch(host):
        raise Refused(f"character in host {name!r}")
    if any(byte < 0x80 for byte in _unescape(b"".join(_ESCAPED.findall(host.replace(b"%25", b""))))):
        raise Refused("escaped ASCII in host")
    _unescape(host)


def _unescape(text: bytes) -> bytes:
    def byte(found: re.Match[bytes]) -> bytes:
        if found[1] is None:
            raise Refused("invalid escape")
        return bytes((int(found[1], 16),))

    return _ESCAPE.sub(byte, text)


def route(method: bytes, target: bytes) -> Routed:
    """What becomes of a request at the engine. Raises Refused."""
    path = url_path(method, target)
    clean: list[bytes] = []
    for part in path.split(b"/"):
        match part:
            case b"" | b".":
                pass
            case b"..":
                clean = clean[:-1]
            case _:
                clean.append(part)
    cleaned = b"/" + b"/".join(clean) + (b"/" if clean and path.endswith(b"/") else b"")
    versioned = _VERSIONED.fullmatch(path)
    roots = {each.split(b"/")[1] for each in (path, versioned[1] if versioned else path) if each.startswith(b"/")}
    return Routed(cleaned, cleaned != path, cleaned == path and not roots.isdisjoint(_SWARM_ROOTS))


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
