"""Networks of the swarm as the Engine API's network resources, and what clients send to make one.

The engine beside us carries a network of the swarm with a network of its own, the carrier, which has our mark among its
options. Clients see the swarm's network in its place.

(moby: daemon/cluster/convert/network.go, daemon/network.go buildNetworkResource)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_api.convert.fields import ignored, rfc3339
from engine_api.convert.gotypes import BOOL, MAP, STRING, list_type
from engine_api.convert.table import Table
from overlay.errors import OverlayError
from overlay.model import Endpoint, Network, NetworkState
from overlay.plugin import ID_OPTION, NETWORK_OPTION, network_of
from swarm import api
from swarm.manager.allocator.subnets import VNI_OPTION
from swarm.manager.networks import DEFAULT_DRIVER, is_ingress

Json = dict[str, Any]

# --- what clients send -----------------------------------------------------------------------------------------------

_IPAM_CONFIG = Table(
    "network.IPAMConfig",
    [
        ignored("Subnet", STRING),
        ignored("IPRange", STRING),
        ignored("Gateway", STRING),
        ignored("AuxiliaryAddresses", MAP),
    ],
)
_IPAM = Table(
    "network.IPAM",
    [ignored("Driver", STRING), ignored("Options", MAP), ignored("Config", list_type(_IPAM_CONFIG.type))],
)
NETWORK_CREATE = Table(
    "types.NetworkCreateRequest",
    [
        ignored("CheckDuplicate", BOOL),
        ignored("Driver", STRING),
        ignored("Scope", STRING),
        ignored("EnableIPv4", BOOL),
        ignored("EnableIPv6", BOOL),
        ignored("IPAM", _IPAM.type),
        ignored("Internal", BOOL),
        ignored("Attachable", BOOL),
        ignored("Ingress", BOOL),
        ignored("ConfigOnly", BOOL),
        ignored("ConfigFrom", Table("network.ConfigReference", [ignored("Network", STRING)]).type),
        ignored("Options", MAP),
        ignored("Labels", MAP),
        ignored("Name", STRING),
    ],
)
"""Parses the body of POST /networks/create; see network_spec."""


def network_spec(parsed: Mapping[str, Any]) -> api.NetworkSpec:
    """The spec for a parsed request. Unlike stock, auxiliary addresses are kept: the allocator gives them to nobody."""
    spec = api.NetworkSpec(
        ipv6_enabled=parsed.get("EnableIPv6", False),
        internal=parsed.get("Internal", False),
        attachable=parsed.get("Attachable", False),
        ingress=parsed.get("Ingress", False),
    )
    spec.annotations.name = parsed.get("Name", "")
    spec.annotations.labels.update(parsed.get("Labels", {}))
    spec.driver_config.name = parsed.get("Driver", "")
    spec.driver_config.options.update(parsed.get("Options", {}))
    if "IPAM" in parsed:
        ipam = parsed["IPAM"]
        spec.ipam.driver.name = ipam.get("Driver", "") or "default"
        spec.ipam.driver.options.update(ipam.get("Options", {}))
        for config in ipam.get("Config", ()):
            spec.ipam.configs.add(
                subnet=config.get("Subnet", ""),
                range=config.get("IPRange", ""),
                gateway=config.get("Gateway", ""),
                reserved=config.get("AuxiliaryAddresses", {}),
            )
    if "ConfigFrom" in parsed:
        spec.network = parsed["ConfigFrom"].get("Network", "")
    return spec


# --- what clients see ------------------------------------------------------------------------------------------------


def network_resource(network: api.Network) -> Json:
    """A network of the swarm, without what only a node that uses it knows."""
    spec = network.spec
    ipam = network.ipam
    return {
        "Name": spec.annotations.name,
        "Id": network.id,
        "Created": rfc3339(network.meta.created_at),
        "Scope": "swarm",
        "Driver": network.driver_state.name,
        "EnableIPv6": spec.ipv6_enabled,
        "IPAM": {
            "Driver": ipam.driver.name,
            "Options": dict(sorted(ipam.driver.options.items())) or None,
            "Config": [_subnet(config) for config in ipam.configs] if network.HasField("ipam") else None,
        },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": is_ingress(network),
        "ConfigFrom": {"Network": spec.network},
        "ConfigOnly": False,
        "Containers": None,
        "Options": dict(sorted(network.driver_state.options.items())) or None,
        "Labels": dict(sorted(spec.annotations.labels.items())) or None,
    }


def _subnet(config: api.IPAMConfig) -> Json:
    shown = {
        "Subnet": config.subnet,
        "IPRange": config.range,
        "Gateway": config.gateway,
        "AuxiliaryAddresses": dict(sorted(config.reserved.items())),
    }
    return {key: value for key, value in shown.items() if value}


# --- carriers --------------------------------------------------------------------------------------------------------


def carried(local: Json) -> str:
    """The ID of the swarm's network that this network of the engine carries; empty: it is the engine's own."""
    options = local.get("Options") or {}
    return str(options[ID_OPTION]) if ID_OPTION in options and NETWORK_OPTION in options else ""


def carried_resource(carrier: Json, network: Json | None) -> Json:
    """The swarm's network as a node sees it that takes part in it: its own containers are listed.

    carrier: the engine's network. network: as the managers know it; None: this node cannot ask them.
    """
    shown = dict(network) if network is not None else _without_managers(carrier)
    shown["Created"] = carrier.get("Created", shown["Created"])
    shown["Labels"] = shown["Labels"] or {}
    shown["Containers"] = dict(carrier.get("Containers") or {})
    return shown


def _without_managers(carrier: Json) -> Json:
    """What the carrier itself says of the network. Labels, options and whether it is attachable are not in it."""
    network = _network_of(carrier)
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": carrier.get("Created", ""),
        "Scope": "swarm",
        "Driver": DEFAULT_DRIVER,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": [{"Subnet": str(subnet.pool), "Gateway": str(subnet.gateway)} for subnet in network.subnets],
        },
        "Internal": network.internal,
        "Attachable": False,
        "Ingress": network.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {VNI_OPTION: ",".join(str(subnet.vni) for subnet in network.subnets)},
        "Labels": {},
    }


def _network_of(carrier: Json) -> Network:
    """The network by the carrier's options; a user may have written some that we do not understand."""
    try:
        return network_of(carrier["Options"])
    except OverlayError:
        return Network(carried(carrier), str(carrier["Name"]), ())


# --- what only a node that takes part knows --------------------------------------------------------------------------


def peers(state: NetworkState) -> list[Json]:
    """The nodes that take part in a network: a short name of each (stock: of its gossip) and its data address."""
    return [{"Name": node.id[:12], "IP": str(node.address)} for _, node in sorted(state.nodes.items())]


def services(state: NetworkState, no_address: str) -> Json:
    """The member "Services" of ``verbose=true``: name to address, ports and tasks with the hosts they run on.

    no_address: how a service without a virtual address is shown. LocalLBIndex, a number of IPVS, is always 0.
    """
    out: Json = {}
    for service in sorted(state.services.values(), key=lambda service: service.name):
        members = [endpoint for _, endpoint in sorted(state.endpoints.items()) if endpoint.service_id == service.id]
        out[service.name] = {
            "VIP": str(service.virtual_ip) if service.virtual_ip is not None else no_address,
            "Ports": [f"Target: {port.target}, Publish: {port.published}" for port in service.ports],
            "LocalLBIndex": 0,
            "Tasks": [_task(endpoint, state) for endpoint in members],
        }
    return out


def _task(endpoint: Endpoint, state: NetworkState) -> Json:
    node = state.nodes.get(endpoint.node_id)
    return {
        "Name": endpoint.name,
        "EndpointID": endpoint.id,
        "EndpointIP": str(endpoint.address),
        "Info": {"Host IP": str(node.address) if node is not None else ""},
    }


def in_generation(resource: Json, engine: tuple[int, ...], *, listed: bool = False) -> Json:
    """The resource as engines of this API version show it (keys and their order).

    engine: the highest API version that is served. listed: as an element of GET /networks.
    """
    if engine < (1, 48):
        return resource
    shown: Json = {}
    for key, value in resource.items():
        if key == "EnableIPv6":
            shown["EnableIPv4"] = True
        if engine < (1, 52) or key not in ("Containers", "Peers", "Services", "Status"):
            shown[key] = value
    if engine >= (1, 52) and not listed:
        if "Peers" in resource:
            shown["Peers"] = resource["Peers"]
        shown["Containers"] = resource["Containers"] or {}
        for key in ("Services", "Status"):
            if key in resource:
                shown[key] = resource[key]
    return shown
