"""POST /networks/create: what the managers get to see, and what is refused before, in the order of stock engines.

(moby: daemon/network.go createNetwork; libnetwork: controller.go NewNetwork)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_api.backend import LocalNodeState
from engine_api.convert.ipam import ipam_error, is_cidr, prefix_error
from engine_api.convert.network import carried, network_spec
from engine_api.convert.network_filters import PREDEFINED
from engine_api.errors import ApiError, BadParameter, Conflict, Forbidden, ObjectNotFound
from engine_api.routes.network_lookup import ask
from engine_api.server.dialect import parse_version
from engine_api.server.request import ApiRequest
from swarm import api
from swarm.api import rpc
from swarm.errors import SwarmError
from swarm.manager.networks import DEFAULT_DRIVER, NODE_LOCAL_DRIVERS

Json = dict[str, Any]

_NO_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
WORKER = "Cannot create a multi-host network from a worker node. Please create the network from a manager node."
_LOCAL_DRIVERS = (*NODE_LOCAL_DRIVERS, "null")
_ENGINE_DRIVER = "bridge"


def is_for_swarm(wanted: Mapping[str, Any]) -> bool:
    """Whether a request is about a network of the swarm; the members have Go's names in lower case."""
    if wanted.get("configonly") is True:
        return False
    return wanted.get("driver") == DEFAULT_DRIVER or wanted.get("scope") == "swarm" or wanted.get("ingress") is True


async def create_in_swarm(request: ApiRequest, parsed: Json) -> Json:
    """Make a network of the swarm. Raises ApiError, SwarmError."""
    await _check_name(request, parsed)
    _check_subnets(request, parsed)
    if not parsed.get("Name", "").strip():
        if request.dialect.strict_body:
            raise BadParameter("invalid name: name is empty")
        raise ApiError(f"invalid name: {parsed.get('Name', '')}")
    _check_config_from(parsed)
    await _check_driver(request, parsed)
    if _is_worker(request):
        raise Forbidden(WORKER)
    request.backend.require_manager()
    made = await request.call(rpc.CREATE_NETWORK, api.CreateNetworkRequest(spec=network_spec(parsed)))
    return {"Id": made.network.id, "Warning": ""}


def _is_worker(request: ApiRequest) -> bool:
    local = request.backend.local()
    return local.state is LocalNodeState.ACTIVE and not local.control_available


async def _check_name(request: ApiRequest, parsed: Json) -> None:
    name: str = parsed.get("Name", "")
    await refuse_taken(request, name)
    if name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if request.dialect.strict_body and parsed.get("Driver") == DEFAULT_DRIVER and _is_worker(request):
        raise Forbidden(_NO_MANAGER)
    if any(not carried(network) for network in await _local_named(request, name)):
        raise _taken(name)


async def refuse_taken(request: ApiRequest, name: str) -> None:
    """Refuse the name of a network of the swarm. Those who cannot ask the managers learn it later, or never."""
    if not name:
        return
    try:
        wanted = api.ListNetworksRequest(filters=api.ListNetworksRequest.Filters(names=[name]))
        answer = await request.call(rpc.LIST_NETWORKS, wanted)
    except (ApiError, SwarmError):
        return
    if answer.networks:
        raise _taken(name)


def _taken(name: str) -> Conflict:
    return Conflict(f"network with name {name} already exists")


async def _local_named(request: ApiRequest, name: str) -> list[Json]:
    return [network for network in await ask(request, "/networks", {}) if network["Name"] == name]


def _check_subnets(request: ApiRequest, parsed: Json) -> None:
    """In the three ways of the generations of engines."""
    configs = parsed.get("IPAM", {}).get("Config", ())
    engine = parse_version(request.api.api_version())
    for subnet in (config.get("Subnet", "") for config in configs):
        if engine >= (1, 52) and (wrong := prefix_error(subnet)):
            raise BadParameter(f"invalid JSON: {wrong}")
        if engine < (1, 44) and not is_cidr(subnet):
            raise ApiError(f"Invalid subnet {subnet} : invalid CIDR address: {subnet}")
    if engine >= (1, 44) and (wrong := ipam_error(configs, bool(parsed.get("EnableIPv6")))):
        raise BadParameter(wrong)


def _check_config_from(parsed: Json) -> None:
    """A network with the configuration of another one has none of its own."""
    if not parsed.get("ConfigFrom", {}).get("Network"):
        return
    ipam = parsed.get("IPAM", {})
    own = ipam.get("Driver", "") not in ("", "default") or ipam.get("Options") or ipam.get("Config")
    if own or parsed.get("EnableIPv6") or parsed.get("Labels"):
        raise Forbidden(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    if parsed.get("Options"):
        raise Forbidden("network driver options are not supported if the network depends on a configuration network")


async def _check_driver(request: ApiRequest, parsed: Json) -> None:
    driver = parsed.get("Driver") or _ENGINE_DRIVER
    if driver != DEFAULT_DRIVER and driver not in _LOCAL_DRIVERS and not await _is_plugin(request, driver):
        raise ObjectNotFound(f'plugin "{driver}" not found')
    if parsed.get("Scope") == "local" and driver == DEFAULT_DRIVER:
        raise Forbidden(f"cannot downgrade network scope for {driver} networks")
    if parsed.get("Ingress") and driver != DEFAULT_DRIVER:
        raise Forbidden("Ingress network can only be global scope network")


async def _is_plugin(request: ApiRequest, driver: str) -> bool:
    info = await ask(request, "/info", {})
    plugins = info.get("Plugins") if isinstance(info, dict) else None
    return driver in ((plugins or {}).get("Network") or ())
