"""Plain containers on networks of the swarm: the engine is given the network before it is asked to use it.

The rest is the engine's work: when the container starts, it asks our address driver for an address, and that one asks
the managers (engine_api/executor/attachments.py). So restarts need nothing of this. A container that is made on such a
network gets its name server; one that is only connected later resolves names if it has a server of another network.

(moby: daemon/container_operations.go findAndAttachNetwork; daemon/cluster/networks.go AttachNetwork)
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from engine_api.backend import LocalNodeState
from engine_api.convert.gojson import JsonError, first_value_of
from engine_api.convert.network import carried
from engine_api.errors import ApiError, BadParameter, ObjectNotFound
from engine_api.routes.network_lookup import Networks, ask, seen_by
from engine_api.server.request import ApiRequest, Route
from swarm import defaults
from swarm.errors import SwarmError

Json = dict[str, Any]

_NAME_SERVERS_MAX = 3  # the engine asks no more
_OF_THE_ENGINE = ("", "default", "bridge", "host", "none", "nat")


async def create(request: ApiRequest) -> web.StreamResponse:
    """POST /containers/create: the engine's, which may need a network of the swarm for it."""
    body = await request.http.read()
    forward = request.api.hooks.forward
    if forward is None:
        raise ObjectNotFound("page not found")
    if request.backend.local().state is LocalNodeState.ACTIVE:
        large = len(body) > defaults.API_BODY_INLINE_BYTES_MAX
        parsed = await asyncio.to_thread(_parsed, body) if large else _parsed(body)
        terms = _networks_of(parsed)
        names = await engine_names(request, terms) if terms else {}
        servers = await _name_servers(request, list(dict.fromkeys(names.values())))
        if servers:
            body = _prepared(parsed, names, servers)
    return await forward("/containers/create", request, body)


async def engine_names(request: ApiRequest, terms: list[str]) -> dict[str, str]:
    """What the engine shall be asked for: networks of the swarm by the name of the engine's, which is made if need be.

    Raises ApiError.
    """
    seen = await seen_by(request)
    return {term: await _engine_name(request, seen, term) for term in terms}


async def _engine_name(request: ApiRequest, seen: Networks, term: str) -> str:
    try:
        found = seen.find(term)
    except BadParameter:
        return term  # the engine says so, too
    except ObjectNotFound:
        if request.backend.local().control_available:
            return term
        return await _attached(request, term)  # a worker cannot look: the managers know whether there is one
    if not found.of_swarm:
        return term
    network = seen.swarm.get(found.id)
    if network is not None and not network.spec.attachable:
        raise ApiError(_refused(term, f"network {term} not manually attachable", "PermissionDenied"))
    return found.name if found.local_id else await _attached(request, found.id)


async def _attached(request: ApiRequest, target: str) -> str:
    attach = request.api.hooks.attach
    if attach is None:
        return target
    try:
        return await attach(target)
    except SwarmError as error:
        if not request.backend.local().control_available and error.message.endswith("not found"):
            return target  # the engine says that there is no such network
        raise ApiError(_refused(target, error.message, error.code.label)) from error


def _refused(term: str, text: str, code: str) -> str:
    return f"Could not attach to network {term}: rpc error: code = {code} desc = {text}"


def _parsed(body: bytes) -> Json:
    """The request; empty if it is none, which is the engine's to say. Raises BadParameter if it is too much."""
    try:
        parsed, _ = first_value_of(body)
    except EOFError:
        return {}
    except JsonError as error:
        if error.excessive:
            raise BadParameter(str(error)) from None
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _member(parsed: Any, name: str) -> tuple[str, Any]:
    """A member of an object whose name Go would take for this one: its name as written, and its value."""
    if isinstance(parsed, dict):
        for key, value in parsed.items():
            if key.lower() == name.lower():
                return key, value
    return name, None


def _networks_of(parsed: Json) -> list[str]:
    """The networks that a container asks for, without those that every engine has."""
    mode = _member(_member(parsed, "HostConfig")[1], "NetworkMode")[1]
    endpoints = _member(_member(parsed, "NetworkingConfig")[1], "EndpointsConfig")[1]
    terms = [mode] if isinstance(mode, str) else []
    terms += list(endpoints) if isinstance(endpoints, dict) else []
    wanted = dict.fromkeys(term for term in terms if term not in _OF_THE_ENGINE and not term.startswith("container:"))
    return list(wanted)


async def _name_servers(request: ApiRequest, names: list[str]) -> list[str]:
    """The name servers of those networks that are the swarm's: their gateways."""
    servers = []
    for network in await ask(request, "/networks", {}) if names else []:
        if network["Name"] in names and carried(network):
            servers += [config["Gateway"] for config in network["IPAM"]["Config"][:1]]
    return servers


def _prepared(parsed: Json, names: dict[str, str], servers: list[str]) -> bytes:
    """The request with the engine's names for its networks, and with our name servers before the user's."""
    host_key, host = _member(parsed, "HostConfig")
    host = host if isinstance(host, dict) else {}
    mode_key, mode = _member(host, "NetworkMode")
    dns_key, dns = _member(host, "Dns")
    given = dns if isinstance(dns, list) else []
    host = {**host, dns_key: [*servers, *given][:_NAME_SERVERS_MAX]}
    if isinstance(mode, str):
        host[mode_key] = names.get(mode, mode)
    parsed = {**parsed, host_key: host}
    config_key, config = _member(parsed, "NetworkingConfig")
    endpoints_key, endpoints = _member(config, "EndpointsConfig")
    if isinstance(endpoints, dict):
        renamed = {names.get(term, term): settings for term, settings in endpoints.items()}
        parsed = {**parsed, config_key: {**config, endpoints_key: renamed}}
    return json.dumps(parsed).encode()


ROUTES: tuple[Route, ...] = (Route("POST", "/containers/create", create, shared=True),)
