"""POST /networks/prune: networks that nobody uses, the swarm's and the engine's.

The engine is asked first, because it checks the filters; nothing has been removed when it refuses them.

(moby: daemon/prune.go NetworksPrune)
"""

from __future__ import annotations

import json
import time

from aiohttp import web

from engine_api.convert.gojson import JsonError
from engine_api.convert.moments import moment
from engine_api.convert.network_filters import has_labels
from engine_api.errors import ApiError, BadParameter
from engine_api.routes.network_lookup import ask, seen_by, swarm_networks
from engine_api.server.decode import filter_values
from engine_api.server.request import ApiRequest, json_answer
from overlay.plugin import ID_OPTION
from swarm import api
from swarm.api import rpc
from swarm.api.timestamps import seconds
from swarm.errors import SwarmError
from swarm.manager.networks import is_ingress, is_predefined

Filters = dict[str, list[str]]


async def prune(request: ApiRequest) -> web.StreamResponse:
    """POST /networks/prune."""
    try:
        filters = filter_values(request.query("filters"))
    except JsonError as error:
        await ask(request, "/networks", {"filters": request.query("filters")})  # the engine says what is wrong
        raise BadParameter(str(error)) from None
    by_engine = await _prune_engine(request, filters)
    by_swarm = await _prune_swarm(request, filters)
    return json_answer({"NetworksDeleted": [*by_swarm, *by_engine] or None})


async def _prune_engine(request: ApiRequest, filters: Filters) -> list[str]:
    """Names of the engine's own networks that went. Its carriers go when the swarm's networks go, or nobody sees it."""
    forward = request.api.hooks.forward
    if forward is None:
        return []
    carriers = {carrier["Name"] for carrier in (await seen_by(request)).carriers.values()}
    if not filters.get("label!"):
        filters = {**filters, "label!": [ID_OPTION]}
    answer = await forward("/networks/prune", request, b"", {"filters": json.dumps(filters)})
    deleted = json.loads(answer.body).get("NetworksDeleted") if isinstance(answer.body, bytes) else None
    return [name for name in deleted or () if name not in carriers]


async def _prune_swarm(request: ApiRequest, filters: Filters) -> list[str]:
    """Names of the swarm's networks that went; what is in use stays, as all that the managers refuse for any reason."""
    gone: list[str] = []
    networks = await swarm_networks(request)
    for network_id in sorted(networks):
        network = networks[network_id]
        if is_ingress(network) or is_predefined(network) or not _chosen(network, filters):
            continue
        try:
            await request.call(rpc.REMOVE_NETWORK, api.RemoveNetworkRequest(network_id=network_id))
        except (ApiError, SwarmError):
            continue
        gone.append(network.spec.annotations.name)
    return gone


def _chosen(network: api.Network, filters: Filters) -> bool:
    labels = network.spec.annotations.labels
    if filters.get("label") and not has_labels(labels, filters["label"]):
        return False
    if filters.get("label!") and has_labels(labels, filters["label!"]):
        return False
    if not filters.get("until"):
        return True
    until = moment(filters["until"][0], time.time())
    return until is not None and seconds(network.meta.created_at) <= until
