"""Which requests are ours: derived once from the routes that the application registers, asked for every request head.

A route owns the first segment of its path: everything under /services, /swarm and so on is ours, known or not, so that
no request for the swarm can reach the swarm mode of the engine beside us. A route that is marked as shared owns no more
than its own method, path and query; what else begins with that segment is the engine's. The path is the one that Go
would route (see target.py), and the one that its router would redirect to counts too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Protocol

from engine_api.front.http1 import Head
from engine_api.front.target import clean_path, decoded_query

IsLocal = Callable[[Head], bool]
_VERSION = rb"/(?:v[0-9.]+/)?"
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
    paths: dict[tuple[str, str], list[str]] = {}  # of shared routes, by method and query
    for route in routes:
        if route.shared:
            paths.setdefault((route.method, route.query), []).append(_pattern(route.path))
        else:
            roots.add(re.escape(route.path.split("/")[1]))
    under_roots = re.compile(_VERSION + _any_of(roots) + b"(?:/.*)?", re.DOTALL)
    shared: dict[bytes, list[tuple[re.Pattern[bytes] | None, re.Pattern[bytes]]]] = {}
    for (method, query), patterns in paths.items():
        in_query = re.compile(query.encode()) if query else None
        shared.setdefault(method.encode(), []).append((in_query, re.compile(_VERSION + _any_of(patterns))))

    def is_local(head: Head) -> bool:
        sent, query = head.path_and_query
        path, query = clean_path(sent), decoded_query(query)
        if under_roots.fullmatch(path):
            return True
        for in_query, of_path in shared.get(head.method, ()):
            if (in_query is None or in_query.search(query)) and of_path.fullmatch(path):
                return True
        return False

    return is_local


def _any_of(patterns: Iterable[str]) -> bytes:
    return f"(?:{'|'.join(sorted(patterns)) or '(?!)'})".encode()


def _pattern(template: str) -> str:
    """A pattern for "/networks/{id}" without its first slash."""
    return "[^/]+".join(map(re.escape, _PARAMETER.split(template.removeprefix("/"))))
