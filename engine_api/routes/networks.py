"""Routes of the swarm's networks: the one by which the CLI turns a name into an ID, and what is not available yet.

There are no overlay networks yet. The engine beside us, which is in no swarm, would refuse them with a text that is
wrong on a manager; so requests that could be about them come here, and those that are not go on to the engine.

(moby: daemon/server/router/network/network_routes.go)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from aiohttp import web

from engine_api.backend import LocalNodeState
from engine_api.convert.gojson import JsonError, first_value_of
from engine_api.convert.network import network_resource
from engine_api.errors import ApiError, BadParameter, Forbidden, NotAvailableYet, ObjectNotFound
from engine_api.routes import lookup
from engine_api.server.request import ApiRequest, Route, json_answer
from swarm import api, defaults
from swarm.errors import SwarmError
from swarm.manager.networks import is_predefined

_OF_THE_SWARM = r"(?:\A|&)scope=swarm(?:&|\Z)"
WORKER = "Cannot create a multi-host network from a worker node. Please create the network from a manager node."
INSTEAD = (
    "use the network of the host (--network host; in a compose file, networks: {default: {name: host, external: "
    "true}}), or no network and published ports with mode=host"
)


async def inspect(request: ApiRequest) -> web.StreamResponse:
    """GET /networks/{id}?scope=swarm. A node that is not a manager answers "not found", as stock engines do."""
    try:
        network = await lookup.find(request.backend, lookup.NETWORK, request.id)
    except BadParameter:
        raise
    except (ApiError, SwarmError) as error:
        raise ObjectNotFound(f"network {request.id} not found") from error
    return json_answer(network_resource(network), 200)


async def create(request: ApiRequest) -> web.StreamResponse:
    """POST /networks/create: the engine's, unless the network would be the swarm's."""
    body = await request.http.read()
    large = len(body) > defaults.API_BODY_INLINE_BYTES_MAX
    name = await asyncio.to_thread(_swarm_network, body) if large else _swarm_network(body)
    local = request.backend.local()
    if name is None or local.state is LocalNodeState.INACTIVE:
        return await _engine(request)("/networks/create", request, body)
    if local.state is LocalNodeState.ACTIVE and not local.control_available:
        raise Forbidden(WORKER)
    request.backend.require_manager()
    raise NotAvailableYet(
        f"overlay networks are not available in this version of sideswarm, so the network {name} was not created; "
        f"for services, {INSTEAD}"
    )


async def connect(request: ApiRequest) -> web.StreamResponse:
    """POST /networks/{id}/connect: the engine's; a network that only the swarm knows is refused for what it is."""
    body = await request.http.read()
    try:
        return await _engine(request)(f"/networks/{quote(request.id, safe='')}/connect", request, body)
    except ApiError as error:
        if error.status == 404 and "network" in error.message and await _is_overlay(request):
            raise NotAvailableYet(
                f"the network {request.id} is an overlay network of the swarm, and these are not available in this "
                "version of sideswarm; connect the container to a network of its engine"
            ) from error
        raise


async def _is_overlay(request: ApiRequest) -> bool:
    """Whether the swarm has a network with this name or ID that the engine has not; only managers can tell."""
    try:
        network: api.Network = await lookup.find(request.backend, lookup.NETWORK, request.id)
    except (ApiError, SwarmError):
        return False
    return not is_predefined(network)


def _engine(request: ApiRequest) -> Callable[[str, ApiRequest, bytes], Awaitable[web.StreamResponse]]:
    forward = request.api.hooks.forward
    if forward is None:
        raise ObjectNotFound("page not found")
    return forward


def _swarm_network(body: bytes) -> str | None:
    """The name of the network that a create request wants from the swarm; None: the request is the engine's.

    Raises BadParameter when nobody can tell: the engine might read a body that is too much for us.
    """
    try:
        parsed, _ = first_value_of(body)
    except EOFError:
        return None
    except JsonError as error:
        if error.excessive:
            raise BadParameter(str(error)) from None
        return None
    if not isinstance(parsed, dict):
        return None
    members = {name.lower(): value for name, value in parsed.items()}  # Go ignores the case of keys
    if members.get("driver") == "overlay" or members.get("scope") == "swarm" or members.get("ingress") is True:
        return str(members.get("name", ""))
    return None


ROUTES: tuple[Route, ...] = (
    Route("GET", "/networks/{id}", inspect, shared=True, query=_OF_THE_SWARM),
    Route("POST", "/networks/create", create, shared=True),
    Route("POST", "/networks/{id}/connect", connect, shared=True),
)
