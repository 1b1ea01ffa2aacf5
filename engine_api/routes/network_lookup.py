"""The networks that a node can see: the swarm's, if it can ask the managers, and the engine's with its carriers.

A carrier is the engine's own network that carries one of the swarm; clients see the swarm's in its place, by its ID.

(moby: daemon/server/router/network/network_routes.go getNetwork, findUniqueNetwork)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from engine_api.convert.network import carried, carried_resource, network_resource, peers, services
from engine_api.errors import ApiError, BadParameter, ObjectNotFound
from engine_api.server.request import ApiRequest
from swarm import api
from swarm.api import rpc
from swarm.errors import SwarmError
from swarm.manager.networks import is_predefined

Json = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A network as clients see it. local_id: of the engine's network, its own or a carrier's; empty: there is none."""

    resource: Json
    local_id: str = ""

    @property
    def of_swarm(self) -> bool:
        """Whether it is the swarm's, or else the engine's own."""
        return bool(self.resource["Scope"] == "swarm")

    @property
    def id(self) -> str:
        """The ID that clients know."""
        return str(self.resource["Id"])

    @property
    def name(self) -> str:
        """The name that clients know."""
        return str(self.resource["Name"])


@dataclass(frozen=True)
class Networks:
    """What one request can see. Names in the swarm are unique; the engine's need not be.

    swarm: by ID, with the predefined ones; empty when the managers cannot be asked. local: the engine's own, by ID.
    carriers: the engine's that carry one of the swarm, by the ID of the swarm's.
    """

    swarm: Mapping[str, api.Network]
    local: Mapping[str, Json]
    carriers: Mapping[str, Json]

    def visible(self) -> list[Found]:
        """Every network once: the managers' (without the predefined ones), those only carried here, the engine's."""
        known = [Found(network_resource(n), self._carrier_id(n.id)) for n in self._listed()]
        only_here = [
            Found(carried_resource(carrier, None), carrier["Id"])
            for network_id, carrier in sorted(self.carriers.items())
            if network_id not in self.swarm
        ]
        return [*known, *only_here, *(Found(resource, resource["Id"]) for resource in self.local.values())]

    def _listed(self) -> Iterable[api.Network]:
        return (network for _, network in sorted(self.swarm.items()) if not is_predefined(network))

    def _carrier_id(self, network_id: str) -> str:
        return str(self.carriers[network_id]["Id"]) if network_id in self.carriers else ""

    def find(self, term: str, scope: str = "") -> Found:
        """By full ID (the swarm's, the engine's, or that of a carrier), name, or beginning of the ID.

        scope: only networks of this scope. Raises ObjectNotFound, BadParameter when there are several.
        """
        seen = [found for found in self.visible() if scope in ("", found.resource["Scope"])]
        for found in seen:
            if term in (found.id, found.local_id):
                return found
        named = [found for found in seen if found.name == term]
        begin = [found for found in seen if found.id.startswith(term) or found.local_id.startswith(term)]
        predefined = self._predefined(term, scope)
        for matches, how in ((named, "name"), (predefined, "ID prefix"), (begin, "ID prefix")):
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise BadParameter(f"{len(matches)} matches found based on {how}: network {term} is ambiguous")
        raise ObjectNotFound(f"network {term} not found")

    def _predefined(self, term: str, scope: str) -> list[Found]:
        """The swarm's object for the engine's own bridge or host, which is shown only to those who mean it."""
        if scope not in ("", "swarm"):
            return []
        known = [network for network in self.swarm.values() if is_predefined(network)]
        exact = [n for n in known if n.id == term or (scope == "swarm" and n.spec.annotations.name == term)]
        meant = exact or [n for n in known if scope == "swarm" and n.id.startswith(term)]
        return [Found(network_resource(network)) for network in meant]

    async def detailed(self, request: ApiRequest, found: Found, verbose: bool) -> Json:
        """The network with its containers on this node, if it has any here."""
        if not found.local_id:
            return found.resource
        query = {"verbose": "true"} if verbose else {}
        local: Json = await ask(request, f"/networks/{quote(found.local_id, safe='')}", query)
        if not found.of_swarm:
            return local
        shown = carried_resource(local, found.resource)
        state = request.api.hooks.network_state(found.id)
        if state is not None:
            shown["Peers"] = peers(state)
        if state is not None and verbose:
            shown["Services"] = services(state, "" if request.dialect.strict_body else "<nil>")
        return shown


async def seen_by(request: ApiRequest) -> Networks:
    """What this request can see. Raises ApiError when the engine cannot be asked."""
    local: dict[str, Json] = {}
    carriers: dict[str, Json] = {}
    for network in await ask(request, "/networks", {}):
        network_id = carried(network)
        if network["Scope"] == "swarm":
            continue  # of a swarm that the engine itself is in: that is never reached through us
        if network_id:
            carriers[network_id] = network
        else:
            local[network["Id"]] = network
    return Networks(await swarm_networks(request), local, carriers)


async def swarm_networks(request: ApiRequest) -> dict[str, api.Network]:
    """The managers' networks by ID, with the predefined ones; empty when they cannot be asked, as in stock engines."""
    try:
        answer = await request.call(rpc.LIST_NETWORKS, api.ListNetworksRequest())
    except (ApiError, SwarmError):
        return {}
    return {network.id: network for network in answer.networks}


async def ask(request: ApiRequest, path: str, query: Mapping[str, str]) -> Any:
    """The engine's answer to a GET. Raises ApiError."""
    hook = request.api.hooks.ask
    return await hook(path, request, query) if hook is not None else []
