"""Routes of the cluster and its nodes: init, join, leave, update, unlock; nodes list, inspect, update, remove.

(moby: daemon/server/router/swarm/cluster_routes.go, daemon/cluster/{swarm,nodes}.go)
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from aiohttp import web

from engine_api.backend import InitRequest, JoinRequest, LocalNodeState
from engine_api.convert import address
from engine_api.convert.cluster import (
    AVAILABILITIES,
    CLUSTER_SPEC,
    INIT_REQUEST,
    JOIN_REQUEST,
    NODE,
    NODE_SPEC,
    SWARM,
    UNLOCK_REQUEST,
    check_cluster_name,
    default_cluster_spec,
)
from engine_api.convert.gojson import quote
from engine_api.errors import ApiError, ServiceUnavailable
from engine_api.routes import lookup
from engine_api.server.request import (
    ApiRequest,
    Route,
    by_id,
    empty_answer,
    encode,
    json_answer,
    list_of,
    version_message,
)
from swarm import api, defaults
from swarm.api import rpc
from swarm.api.extensions import NETWORK_KEYS, has_extension, with_extension

ALREADY_IN_SWARM = (
    'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
)
NOT_IN_SWARM = "This node is not part of a swarm"
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
STOCK_KEYS = (
    "The settings were updated, but the network keys were not rotated: the leader of this swarm is a stock engine, "
    "which rotates them only by itself, every twelve hours."
)

# --- the cluster ------------------------------------------------------------------------------------------------------


async def _cluster(request: ApiRequest) -> api.Cluster:
    answer = await request.call(rpc.LIST_CLUSTERS, api.ListClustersRequest())
    if not answer.clusters:
        raise ServiceUnavailable(NOT_IN_SWARM)
    return answer.clusters[0]


async def inspect_swarm(request: ApiRequest) -> web.StreamResponse:
    """GET /swarm."""
    return json_answer(SWARM.show(await _cluster(request)))


def _check_availability(parsed: dict[str, Any]) -> str:
    word: str = parsed.get("Availability", "")
    if word and word.lower() not in AVAILABILITIES:
        raise ApiError(f"invalid Availability: {quote(word)}")
    return word.lower()


def _adjust_init(parsed: dict[str, Any], request: ApiRequest) -> None:
    """Drop members that did not exist in the API version of the client."""
    if request.version < (1, 39):
        parsed.pop("DefaultAddrPool", None)
        parsed.pop("SubnetSize", None)
    if request.version < (1, 40):
        parsed.pop("DataPathPort", None)


def init_request(parsed: dict[str, Any]) -> InitRequest:
    """A checked init request with the spec merged over the defaults. Raises ApiError.

    A request without a pool gets the default pool, which is also shown; an empty list stays empty.
    """
    listen_addr = address.check_listen_addr(parsed.get("ListenAddr", ""))
    spec_values = parsed.get("Spec", {})
    check_cluster_name(spec_values)
    pool = parsed.get("DefaultAddrPool")
    subnet_size = parsed.get("SubnetSize", 0)
    address.check_address_pool(pool, subnet_size)
    spec = default_cluster_spec()
    CLUSTER_SPEC.fill(spec, spec_values)
    return InitRequest(
        listen_addr=listen_addr,
        advertise_addr=parsed.get("AdvertiseAddr", ""),
        data_path_addr=parsed.get("DataPathAddr", ""),
        data_path_port=address.check_data_path_port(parsed.get("DataPathPort", 0)),
        force_new_cluster=parsed.get("ForceNewCluster", False),
        spec=spec,
        autolock_managers=parsed.get("AutoLockManagers", False),
        availability=_check_availability(parsed),
        default_addr_pool=(defaults.DEFAULT_ADDRESS_POOL,) if pool is None else tuple(entry.strip() for entry in pool),
        subnet_size=subnet_size or defaults.SUBNET_SIZE_BITS,
    )


async def init(request: ApiRequest) -> web.StreamResponse:
    """POST /swarm/init."""
    parsed = await request.json(INIT_REQUEST, bytes_max=defaults.API_SWARM_BODY_BYTES_MAX)
    _adjust_init(parsed, request)
    local = request.backend.local()
    if local.state is not LocalNodeState.INACTIVE:
        if not parsed.get("ForceNewCluster"):
            raise ServiceUnavailable(ALREADY_IN_SWARM)
        if local.state is LocalNodeState.ACTIVE and not local.control_available:
            raise ServiceUnavailable(WORKER)
    return json_answer(await request.backend.init(init_request(parsed)))


async def join(request: ApiRequest) -> web.StreamResponse:
    """POST /swarm/join."""
    parsed = await request.json(JOIN_REQUEST, bytes_max=defaults.API_SWARM_BODY_BYTES_MAX)
    if request.backend.local().state is not LocalNodeState.INACTIVE:
        raise ServiceUnavailable(ALREADY_IN_SWARM)
    listen_addr = address.check_listen_addr(parsed.get("ListenAddr", ""))
    remote_addrs = address.check_remote_addrs(parsed.get("RemoteAddrs", []))
    await request.backend.join(
        JoinRequest(
            listen_addr=listen_addr,
            advertise_addr=parsed.get("AdvertiseAddr", ""),
            data_path_addr=parsed.get("DataPathAddr", ""),
            remote_addrs=remote_addrs,
            join_token=parsed.get("JoinToken", ""),
            availability=_check_availability(parsed),
        )
    )
    return empty_answer()


async def leave(request: ApiRequest) -> web.StreamResponse:
    """POST /swarm/leave."""
    await request.backend.leave(request.flag("force"))
    return empty_answer()


async def update_swarm(request: ApiRequest) -> web.StreamResponse:
    """POST /swarm/update: replaces the whole spec; what is absent becomes zero.

    rotateNetworkKeys is an addition of ours; stock engines ignore it.
    """
    parsed = await request.json(CLUSTER_SPEC, bytes_max=defaults.API_SWARM_BODY_BYTES_MAX)
    index = request.object_version("swarm")
    rotation = api.KeyRotation(
        worker_join_token=request.strict_flag("rotateWorkerToken", reason=False),
        manager_join_token=request.strict_flag("rotateManagerToken", reason=False),
        manager_unlock_key=request.strict_flag("rotateManagerUnlockKey", reason=False),
    )
    network_keys = request.strict_flag("rotateNetworkKeys", reason=False)
    cluster = await _cluster(request)
    check_cluster_name(parsed)
    spec = api.ClusterSpec()
    CLUSTER_SPEC.fill(spec, parsed)
    update = api.UpdateClusterRequest(
        cluster_id=cluster.id, cluster_version=version_message(index), spec=spec, rotation=rotation
    )
    answer = await request.call(rpc.UPDATE_CLUSTER, with_extension(update, NETWORK_KEYS) if network_keys else update)
    if network_keys and not has_extension(answer, NETWORK_KEYS):
        raise ServiceUnavailable(STOCK_KEYS)
    return empty_answer()


async def unlock_key(request: ApiRequest) -> web.StreamResponse:
    """GET /swarm/unlockkey."""
    answer = await request.call(rpc.GET_UNLOCK_KEY, api.GetUnlockKeyRequest())
    key = answer.unlock_key
    return json_answer({"UnlockKey": "SWMKEY-1-" + b64encode(key).decode().rstrip("=") if key else ""})


async def unlock(request: ApiRequest) -> web.StreamResponse:
    """POST /swarm/unlock."""
    parsed = await request.json(UNLOCK_REQUEST, bytes_max=defaults.API_SWARM_BODY_BYTES_MAX)
    await request.backend.unlock(parsed.get("UnlockKey", ""))
    return empty_answer()


# --- nodes ------------------------------------------------------------------------------------------------------------


def _enum_filter(name: str, given: list[str], values: dict[str, int]) -> list[int]:
    out = []
    for word in given:
        value = values.get(word.upper())
        if value is not None:
            out.append(value)
        elif word:
            raise ApiError(f"Invalid {name} filter: '{word}'")
    return out


async def list_nodes(request: ApiRequest) -> web.StreamResponse:
    """GET /nodes. No fragments: the leader adds who leads and who is reachable without writing the node."""
    given = request.filters("name", "id", "label", "role", "membership", "node.label")
    filters = api.ListNodesRequest.Filters(
        name_prefixes=given.get("name"),
        id_prefixes=given.get("id"),
        labels=given.labels("label"),
        node_labels=given.labels("node.label"),
        roles=_enum_filter("role", given.get("role"), dict(api.NodeRole.items())),  # type: ignore[arg-type]
        memberships=_enum_filter("membership", given.get("membership"), dict(api.NodeSpec.Membership.items())),  # type: ignore[arg-type]
    )
    answer = await request.call(rpc.LIST_NODES, api.ListNodesRequest(filters=filters))
    return list_of([encode(NODE.show(node)) for node in by_id(answer.nodes)])


async def inspect_node(request: ApiRequest) -> web.StreamResponse:
    """GET /nodes/{id}."""
    node = await lookup.find(request.backend, lookup.NODE, request.id)
    return json_answer(NODE.show(node))


async def update_node(request: ApiRequest) -> web.StreamResponse:
    """POST /nodes/{id}/update: replaces the whole spec."""
    parsed = await request.json(NODE_SPEC, bytes_max=defaults.API_SWARM_BODY_BYTES_MAX)
    index = request.object_version("node")
    request.backend.require_manager()
    spec = api.NodeSpec()
    NODE_SPEC.fill(spec, parsed)
    node = await lookup.find(request.backend, lookup.NODE, request.id)
    await request.call(
        rpc.UPDATE_NODE, api.UpdateNodeRequest(node_id=node.id, node_version=version_message(index), spec=spec)
    )
    return empty_answer()


async def remove_node(request: ApiRequest) -> web.StreamResponse:
    """DELETE /nodes/{id}."""
    force = request.flag("force")
    node = await lookup.find(request.backend, lookup.NODE, request.id)
    await request.call(rpc.REMOVE_NODE, api.RemoveNodeRequest(node_id=node.id, force=force))
    return empty_answer()


ROUTES: tuple[Route, ...] = (
    Route("GET", "/swarm", inspect_swarm),
    Route("POST", "/swarm/init", init),
    Route("POST", "/swarm/join", join),
    Route("POST", "/swarm/leave", leave),
    Route("POST", "/swarm/update", update_swarm),
    Route("GET", "/swarm/unlockkey", unlock_key),
    Route("POST", "/swarm/unlock", unlock),
    Route("GET", "/nodes", list_nodes),
    Route("GET", "/nodes/{id}", inspect_node),
    Route("POST", "/nodes/{id}/update", update_node),
    Route("DELETE", "/nodes/{id}", remove_node),
)
