"""What a route receives and returns: the request with its API version, and answers in the form of stock engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from random import Random, SystemRandom
from typing import Any, Protocol

import msgspec
from aiohttp import web

from engine_api.backend import SwarmBackend
from engine_api.convert.table import Table
from engine_api.server import decode
from engine_api.server.dialect import ApiVersion, Dialect, dialect_of, parse_version
from engine_api.server.fragments import Fragments
from overlay.model import NetworkState
from swarm import api as swarm_api
from swarm import defaults
from swarm.api.methods import Method, Req, Res

_ENCODER = msgspec.json.Encoder()
FindLocalNetwork = Callable[[str], Awaitable[str | None]]
PinImage = Callable[[str, str], Awaitable[str]]


class Forward(Protocol):
    """See EngineHooks."""

    async def __call__(
        self, path: str, request: ApiRequest, body: bytes, query: Mapping[str, str] | None = None
    ) -> web.Response: ...


@dataclass(frozen=True)
class EngineHooks:
    """What routes need of the engine beside us; each may be absent.

    find_local_network: a network of the engine that is not the swarm's, by name or ID; its name, or None.
    pin_image: (image, X-Registry-Auth) to the image with its digest, for clients below API 1.30; raises when the
    registry cannot be asked.
    forward: (path, request, body, query in place of the request's own) to the engine's answer to this request of a
    client; raises ApiError with the engine's own status and text.
    ask: (path, request, query) to the engine's answer to a GET, in this client's version.
    network_state: what this node was told of a network of the swarm that it takes part in, by ID.
    attach: (ID or name of a network of the swarm) gives this node an address there for a plain container, and the
    engine the network; its name. Raises SwarmError.
    """

    find_local_network: FindLocalNetwork | None = None
    pin_image: PinImage | None = None
    forward: Forward | None = None
    ask: Callable[[str, ApiRequest, Mapping[str, str]], Awaitable[Any]] | None = None
    network_state: Callable[[str], NetworkState | None] = lambda network_id: None
    attach: Callable[[str], Awaitable[str]] | None = None


@dataclass
class Api:
    """What all requests share. api_version: the highest version we serve; server_header: value of ``Server``."""

    backend: SwarmBackend
    api_version: Callable[[], str]
    server_header: Callable[[], str]
    hooks: EngineHooks = field(default_factory=EngineHooks)
    rng: Random = field(default_factory=SystemRandom)
    fragments: Fragments = field(default_factory=Fragments)

    def dialect(self) -> Dialect:
        """How the engine beside us speaks."""
        return dialect_of(parse_version(self.api_version()))


@dataclass(frozen=True)
class ApiRequest:
    """One request. version: of the path, or the highest."""

    http: web.Request
    api: Api
    version: ApiVersion
    dialect: Dialect

    @property
    def backend(self) -> SwarmBackend:
        """The daemon."""
        return self.api.backend

    @property
    def id(self) -> str:
        """The ``{id}`` of the path."""
        return self.http.match_info["id"]

    def query(self, name: str) -> str:
        """A value of the query, empty when absent."""
        return self.http.query.get(name, "")

    def flag(self, name: str) -> bool:
        """A loose boolean of the query."""
        return decode.loose_bool(self.query(name))

    def strict_flag(self, name: str, reason: bool = True) -> bool:
        """A strict boolean of the query. Raises BadParameter."""
        return decode.strict_bool(name, self.query(name), reason)

    def object_version(self, word: str, reason: bool = True) -> int:
        """The ``version`` of the query. Raises BadParameter."""
        return decode.object_version(word, self.query("version"), reason)

    def filters(self, *accepted: str) -> decode.Filters:
        """The ``filters`` of the query. Raises BadParameter."""
        return decode.parse_filters(self.query("filters"), accepted, self.dialect)

    async def json(
        self, table: Table, root: str | None = None, bytes_max: int = defaults.API_BODY_BYTES_MAX
    ) -> dict[str, Any]:
        """The body. Raises BadParameter, web.HTTPRequestEntityTooLarge."""
        return await decode.read_json(self.http, table, self.dialect, root, bytes_max)

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """An RPC to the leader; raises ApiError or SwarmError."""
        return await self.backend.call(method, request)


Handler = Callable[[ApiRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """Method and path without version prefix. since: hidden below this version by engines that hide routes.

    shared: the engine has routes under the same first segment; only requests with this method and path are ours, and
    only those in whose query the regular expression ``query`` is found.
    """

    method: str
    path: str
    handler: Handler
    since: ApiVersion = ()
    shared: bool = False
    query: str = ""


def encode(value: Any) -> bytes:
    """JSON without spaces; HTML characters are not escaped."""
    return _ENCODER.encode(value)


def json_answer(value: Any, status: int = 200) -> web.Response:
    """JSON with the newline that stock engines end it with."""
    return raw_answer(encode(value), status)


def raw_answer(body: bytes, status: int = 200) -> web.Response:
    """JSON that is already encoded."""
    return web.Response(body=body + b"\n", status=status, content_type="application/json")


async def list_answer(request: ApiRequest, table: Table, objects: Sequence[Any]) -> web.Response:
    """A list of stored objects in the order of their IDs, from cached fragments where possible.

    Other tasks run between chunks: a long list must not delay the heartbeats of this process.
    """
    fragment = request.api.fragments.of
    ordered = by_id(objects)
    elements: list[bytes] = []
    for start in range(0, len(ordered), defaults.API_LIST_CHUNK_OBJECTS):
        elements += [fragment(table, obj) for obj in ordered[start : start + defaults.API_LIST_CHUNK_OBJECTS]]
        await asyncio.sleep(0)
    return list_of(elements)


def by_id(objects: Sequence[Any]) -> list[Any]:
    """Objects in ascending order of their IDs."""
    return sorted(objects, key=attrgetter("id"))


def list_of(elements: Sequence[bytes]) -> web.Response:
    """A list of elements that are already encoded."""
    return raw_answer(b"[" + b",".join(elements) + b"]")


def empty_answer(status: int = 200) -> web.Response:
    """No body."""
    return web.Response(status=status)


def version_message(index: int) -> swarm_api.Version:
    """The version that an update is based on."""
    return swarm_api.Version(index=index)
