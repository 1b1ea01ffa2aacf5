"""Which requests are ours: derived once from the routes that the application registers, asked for every request head.

A route owns the first segment of its path: everything under /services, /swarm and so on is ours, known or not, so that
no request for the swarm can reach the swarm mode of the engine beside us. A route that is marked as shared owns no more
than its own method, path and query; what else begins with that segment is the engine's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Protocol

from engine_api.front.http1 import Head

IsLocal = Callable[[Head], bool]
_VERSION = rb"/*(?:v[0-9.]+/)?"
_PARAMETER = re.compile(r"\{\w+\}")


class Registered(Protocol):
    """What counts of a route. path: "/networks/{id}"; query: a pattern that is searched in the raw query."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def shared(self) -> bool: ...
    @property
    def query(self) -> str: ...


def local_requests(routes: Iterable[Registered]) -> IsLocal:
    """The function that tells from a request's head whether it goes to the application of these routes."""
    roots: set[str] = set()
    shared: dict[bytes, list[tuple[re.Pattern[bytes], re.Pattern[bytes]]]] = {}
    for route in routes:
        if route.shared:
            patterns = (re.compile(route.query.encode()), re.compile(_VERSION + _path(route.path)))
            shared.setdefault(route.method.encode(), []).append(patterns)
        else:
            roots.add(route.path.split("/")[1])
    under_roots = re.compile(_VERSION + b"(?:%s)(?:/.*)?" % _alternatives(roots), re.DOTALL)

    def is_local(head: Head) -> bool:
        path, query = head.path_and_query
        if under_roots.fullmatch(path):
            return True
        for query_pattern, path_pattern in shared.get(head.method, ()):
            if query_pattern.search(query) and path_pattern.fullmatch(path):
                return True
        return False

    return is_local


def _alternatives(roots: set[str]) -> bytes:
    return "|".join(map(re.escape, sorted(roots))).encode() if roots else rb"(?!)"


def _path(template: str) -> bytes:
    """A pattern for "/networks/{id}" without its first slash."""
    fixed = _PARAMETER.split(template.removeprefix("/"))
    return "[^/]+".join(map(re.escape, fixed)).encode()
