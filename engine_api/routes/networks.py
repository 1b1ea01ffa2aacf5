"""Routes of the swarm's networks. For now the one by which the CLI turns the name after --network into an ID.

Only requests with ``scope=swarm`` come here; all others are the engine's.

(moby: daemon/server/router/network/network_routes.go)
"""

from __future__ import annotations

from aiohttp import web

from engine_api.convert.network import network_resource
from engine_api.errors import ApiError, BadParameter, ObjectNotFound
from engine_api.routes import lookup
from engine_api.server.request import ApiRequest, Route, json_answer
from swarm.errors import SwarmError


async def inspect(request: ApiRequest) -> web.StreamResponse:
    """GET /networks/{id}?scope=swarm. On a node that is no manager there is no such network, as with stock engines."""
    try:
        network = await lookup.find(request.backend, lookup.NETWORK, request.id)
    except BadParameter:
        raise
    except (ApiError, SwarmError) as error:
        raise ObjectNotFound(f"network {request.id} not found") from error
    return json_answer(network_resource(network), 200)


_OF_THE_SWARM = r"(?:\A|&)scope=swarm(?:&|\Z)"

ROUTES: tuple[Route, ...] = (Route("GET", "/networks/{id}", inspect, shared=True, query=_OF_THE_SWARM),)
