"""POST /networks/create: what the managers get to see, and what is refused before, in the order of stock engines.

(moby: daemon/network.go createNetwork; libnetwork: controller.go NewNetwork)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from engine_api.backend import LocalNodeState
from engine_api.convert.network import carried, network_spec
from engine_api.convert.network_filters import PREDEFINED
from engine_api.errors import ApiError, BadParameter, Conflict, Forbidden, ObjectNotFound
from engine_api.routes.network_lookup import ask
from engine_api.server.request import ApiRequest
from swarm import api
from swarm.api import rpc
from swarm.errors import SwarmError
from swarm.manager.networks import DEFAULT_DRIVER, NODE_LOCAL_DRIVERS

Json = dict[str, Any]

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
    name: str = parsed.get("Name", "")
    await refuse_taken(request, name)
    if name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if any(not carried(network) for network in await _local_named(request, name)):
        raise _taken(name)
    _check_subnets(request, parsed)
    if not name.strip():
        raise (
            ApiError(f"invalid name: {name}")
            if not request.dialect.strict_body
            else BadParameter("invalid name: name is empty")
        )
    _check_config_from(parsed)
    await _check_driver(request, parsed)
    local = request.backend.local()
    if local.state is LocalNodeState.ACTIVE and not local.control_available:
        raise Forbidden(WORKER)
    request.backend.require_manager()
    spec = network_spec(parsed)
    made = await request.call(rpc.CREATE_NETWORK, api.CreateNetworkRequest(spec=spec))
    return {"Id": made.network.id, "Warning": ""}


async def refuse_taken(request: ApiRequest, name: str) -> None:
    """Refuse the name of a network of the swarm. Those who cannot ask the managers learn it later, or never."""
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
    for config in parsed.get("IPAM", {}).get("Config", ()):
        subnet = config.get("Subnet", "")
        if not _is_cidr(subnet):
            if request.dialect.strict_body:
                raise BadParameter(f"invalid network config:\ninvalid subnet {subnet}: invalid CIDR block notation")
            raise ApiError(f"Invalid subnet {subnet} : invalid CIDR address: {subnet}")


def _is_cidr(text: str) -> bool:
    """What Go's ParseCIDR takes: an address and a number of bits, host bits may be set."""
    address, slash, bits = text.partition("/")
    if not slash or not (bits.isascii() and bits.isdecimal()) or "%" in address:
        return False
    try:
        return int(bits[:4]) <= ipaddress.ip_address(address).max_prefixlen
    except ValueError:
        return False


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
