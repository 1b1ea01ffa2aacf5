"""The target of a request: which forms are passed on at all, and the path that Go's server finds in it.

The engine is written in Go. What is judged here must be what Go will route, or a request could say one thing to us and
another to the engine. Go's parser knows more forms than RFC 9112 3.2 has: ``http:/swarm`` and ``x:/swarm`` are the path
/swarm for it. So only the forms of the RFC are accepted, and of those only spellings about which there is no doubt:

    /path?query                   the usual one
    scheme://authority/path?...   as to a proxy; the authority must not be empty
    *                             the whole server

A CONNECT for an authority is refused; neither we nor the engine are a proxy. So is ``#``, which no target may have: Go
takes it for a part of the path, aiohttp for the end of it.

(Go: net/url parse, getScheme, unescape; net/http readRequest; gorilla/mux cleanPath, which moby's server uses)
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~!$&'()*+,;=:@%\[\]-]+(?=[/?]|\Z)")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SEPARATOR = re.compile(rb"[&;]")  # Go up to 1.16 separates at semicolons too
_PATH_SAFE = "/:@!$&'()*+,;=~"  # what a path may contain as it is


class BadTarget(ValueError):
    """The target is not one that we pass on; the text is for the user."""


def parse_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """The path, percent-decoded, and the query as it was sent. Raises BadTarget."""
    if b"#" in target:
        raise BadTarget("the target of a request must not contain '#'")
    if target == b"*" and method != b"CONNECT":
        return target, b""
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.match(target)
        if absolute is None or method == b"CONNECT":
            raise BadTarget("the target of a request must be a path, or a URL with a host")
        target = target[absolute.end() :]
    path, _, query = target.partition(b"?")
    if b"%" not in path:
        return path, query
    if _BAD_ESCAPE.search(path):
        raise BadTarget("the path of a request has an invalid percent-escape")
    return unquote_to_bytes(path), query


def clean_path(path: bytes) -> bytes:
    """Where moby's router redirects to, instead of routing, if it differs from the path: without // and dots."""
    if path.startswith(b"/") and b"//" not in path and b"/." not in path:
        return path
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    cleaned = b"/" + b"/".join(parts)
    return cleaned + b"/" if parts and path.endswith(b"/") else cleaned


def decoded_query(query: bytes) -> bytes:
    """A query in one spelling, for comparing: decoded, with ``&`` between the parameters and nowhere else."""
    if b"%" not in query and b"+" not in query and b";" not in query:
        return query
    parts = (unquote_to_bytes(part.replace(b"+", b" ")) for part in _SEPARATOR.split(query))
    return b"&".join(part.replace(b"&", b"%26") for part in parts)


def canonical_target(path: bytes, query: bytes) -> bytes:
    """A target in origin form that every parser reads as this path and query."""
    if path == b"*":
        return path
    text = quote_from_bytes(path, safe=_PATH_SAFE).encode() or b"/"
    return text + b"?" + query if query else text
