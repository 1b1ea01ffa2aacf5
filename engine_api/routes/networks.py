"""Routes of networks: the swarm's and the engine's, which clients see as one list.

What is only about the engine's own networks goes on to it.

(moby: daemon/server/router/network/network_routes.go)
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any
from urllib.parse import quote

from aiohttp import web

from engine_api.backend import LocalNodeState
from engine_api.convert.gojson import JsonError, first_value_of, whole_characters
from engine_api.convert.network import NETWORK_CREATE, in_generation
from engine_api.convert.network_filters import ACCEPTED, NetworkFilter
from engine_api.errors import BadParameter, ObjectNotFound
from engine_api.routes.attaching import engine_names
from engine_api.routes.network_create import create_in_swarm, is_for_swarm, refuse_taken
from engine_api.routes.network_lookup import Found, ask, seen_by
from engine_api.routes.network_prune import prune
from engine_api.server import decode
from engine_api.server.dialect import Dialect, parse_version
from engine_api.server.request import ApiRequest, Forward, Route, empty_answer, json_answer
from swarm import api, defaults
from swarm.api import rpc

Json = dict[str, Any]


async def list_networks(request: ApiRequest) -> web.StreamResponse:
    """GET /networks: the swarm's first, then the engine's. The engine says what is wrong with filters."""
    raw = request.query("filters")
    passed = {row["Id"] for row in await ask(request, "/networks", {"filters": raw})} if raw else None
    given = request.filters(*ACCEPTED)
    wanted = NetworkFilter({key: given.get(key) for key in ACCEPTED})
    engine = parse_version(request.api.api_version())
    seen = (await seen_by(request)).visible()
    rows = []
    for found in seen:
        if found.of_swarm:
            if wanted.wants(found.resource):
                rows.append(in_generation(found.resource, engine, listed=True))
        elif passed is None or found.local_id in passed:
            rows.append(found.resource)
    return json_answer(rows)


async def inspect(request: ApiRequest) -> web.StreamResponse:
    """GET /networks/{id}."""
    verbose = request.strict_flag("verbose")
    networks = await seen_by(request)
    found = networks.find(request.id, request.query("scope"))
    shown = await networks.detailed(request, found, verbose)
    return json_answer(in_generation(shown, parse_version(request.api.api_version())) if found.of_swarm else shown)


async def create(request: ApiRequest) -> web.StreamResponse:
    """POST /networks/create: the engine's, unless the network would be the swarm's."""
    body = await request.http.read()
    inactive = request.backend.local().state is LocalNodeState.INACTIVE
    judge = partial(_judge, body, request.dialect)
    large = len(body) > defaults.API_BODY_INLINE_BYTES_MAX
    name, wanted = await asyncio.to_thread(judge) if large else judge()
    if wanted is None or inactive:
        await refuse_taken(request, name)
        return await _engine(request)("/networks/create", request, body)
    decode.check_content_type(request.http, request.dialect, bool(body))
    return json_answer(await create_in_swarm(request, wanted), 201)


def _judge(body: bytes, dialect: Dialect) -> tuple[str, Json | None]:
    """The name of the wanted network, and the parsed request if it is about the swarm. Raises BadParameter."""
    members = _members(body)
    name = members.get("name")
    wanted = decode.parse_body(body, NETWORK_CREATE, dialect) if is_for_swarm(members) else None
    return name if isinstance(name, str) else "", wanted


def _members(body: bytes) -> Json:
    """The members of a request with their names in lower case, because Go ignores the case; empty if there are none.

    Raises BadParameter when nobody can tell: the engine might read a body that is too much for us.
    """
    try:
        parsed, _ = first_value_of(body)
    except EOFError:
        return {}
    except JsonError as error:
        if error.excessive:
            raise BadParameter(str(error)) from None
        return {}
    if not isinstance(parsed, dict):
        return {}
    members = {name.lower(): value for name, value in parsed.items()}
    return {name: whole_characters(value) if isinstance(value, str) else value for name, value in members.items()}


async def remove(request: ApiRequest) -> web.StreamResponse:
    """DELETE /networks/{id}."""
    found = (await seen_by(request)).find(request.id)
    if not found.of_swarm:
        return await _engine(request)(f"/networks/{quote(found.local_id, safe='')}", request, b"")
    request.backend.require_manager()
    await request.call(rpc.REMOVE_NETWORK, api.RemoveNetworkRequest(network_id=found.id))
    return empty_answer(204)


async def connect(request: ApiRequest) -> web.StreamResponse:
    """POST /networks/{id}/connect: the engine's; one of the swarm is made in the engine before, if need be."""
    body = await request.http.read()
    term = request.id
    if request.backend.local().state is LocalNodeState.ACTIVE:
        container = _members(body).get("container")
        found = await _found(request)
        if found is None or found.of_swarm:
            await ask(request, f"/containers/{quote(str(container or ''), safe='')}/json", {})
            term = (await engine_names(request, [term]))[term]
    return await _engine(request)(_path(term, "connect"), request, body)


async def disconnect(request: ApiRequest) -> web.StreamResponse:
    """POST /networks/{id}/disconnect: the engine's, which knows a network of the swarm by its carrier."""
    body = await request.http.read()
    found = await _found(request)
    term = found.local_id if found is not None and found.of_swarm and found.local_id else request.id
    return await _engine(request)(_path(term, "disconnect"), request, body)


async def _found(request: ApiRequest) -> Found | None:
    """The network of the path; None: the engine answers for it."""
    try:
        return (await seen_by(request)).find(request.id)
    except (ObjectNotFound, BadParameter):
        return None


def _path(network: str, verb: str) -> str:
    return f"/networks/{quote(network, safe='')}/{verb}"


def _engine(request: ApiRequest) -> Forward:
    forward = request.api.hooks.forward
    if forward is None:
        raise ObjectNotFound("page not found")
    return forward


ROUTES: tuple[Route, ...] = (
    Route("GET", "/networks", list_networks, shared=True),
    Route("GET", "/networks/{id}", inspect, shared=True),
    Route("DELETE", "/networks/{id}", remove, shared=True),
    Route("POST", "/networks/create", create, shared=True),
    Route("POST", "/networks/prune", prune, shared=True),
    Route("POST", "/networks/{id}/connect", connect, shared=True),
    Route("POST", "/networks/{id}/disconnect", disconnect, shared=True),
)
