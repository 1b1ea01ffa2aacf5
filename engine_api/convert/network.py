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
from overlay.model import NetworkState
from swarm import api
from swarm.manager.allocator.subnets import VNI_OPTION
from swarm.manager.networks import DEFAULT_DRIVER, is_ingress

Json = dict[str, Any]

CARRIER_MARK = "sideswarm.id"
"""Option (or label) of a carrier: the ID of the swarm's network."""
OWN_OPTIONS = "sideswarm."

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
    for holder in (local.get("Options"), local.get("Labels")):
        if isinstance(holder, dict) and holder.get(CARRIER_MARK):
            return str(holder[CARRIER_MARK])
    return ""


def carried_resource(carrier: Json, network: Json | None, state: NetworkState | None) -> Json:
    """The swarm's network as a node sees it that takes part in it: its own containers are listed.

    carrier: the engine's network. network: as the managers know it; None: this node cannot ask them. state: what this
    node was told of it, if anything.
    """
    shown = dict(network) if network is not None else _without_managers(carrier, state)
    shown["Created"] = carrier.get("Created", shown["Created"])
    shown["Labels"] = shown["Labels"] or {}
    shown["Containers"] = dict(carrier.get("Containers") or {})
    return shown


def _without_managers(carrier: Json, state: NetworkState | None) -> Json:
    options = {k: v for k, v in (carrier.get("Options") or {}).items() if not k.startswith(OWN_OPTIONS)}
    labels = {k: v for k, v in (carrier.get("Labels") or {}).items() if not k.startswith(OWN_OPTIONS)}
    ipam = {"Driver": "default", "Options": None, "Config": (carrier.get("IPAM") or {}).get("Config") or []}
    if state is not None:
        ipam["Config"] = [{"Subnet": str(s.pool), "Gateway": str(s.gateway)} for s in state.network.subnets]
        options[VNI_OPTION] = ",".join(str(subnet.vni) for subnet in state.network.subnets)
    return {
        "Name": state.network.name if state is not None else carrier["Name"],
        "Id": carried(carrier),
        "Created": carrier.get("Created", ""),
        "Scope": "swarm",
        "Driver": DEFAULT_DRIVER,
        "EnableIPv6": False,
        "IPAM": ipam,
        "Internal": state.network.internal if state is not None else bool(carrier.get("Internal")),
        "Attachable": bool(carrier.get("Attachable")),
        "Ingress": state is not None and state.network.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": options,
        "Labels": labels,
    }


# --- what only a node that takes part knows --------------------------------------------------------------------------


def peers(state: NetworkState) -> list[Json]:
    """The nodes that take part in a network: a short name of each (stock: of its gossip) and its data address."""
    return [{"Name": node.id[:12], "IP": str(node.address)} for _, node in sorted(state.nodes.items())]


def services(state: NetworkState, index: Mapping[str, int] | None = None) -> Json:
    """The member "Services" of ``verbose=true``: name to address, ports and tasks with the hosts they run on."""
    out: Json = {}
    for service in sorted(state.services.values(), key=lambda service: service.name):
        members = sorted(
            (e for e in state.endpoints.values() if e.service_id == service.id), key=lambda endpoint: endpoint.id
        )
        out[service.name] = {
            "VIP": str(service.virtual_ip) if service.virtual_ip is not None else "<nil>",
            "Ports": [f"Target: {port.target}, Publish: {port.published}" for port in service.ports],
            "LocalLBIndex": 0,
            "Tasks": [
                {
                    "Name": endpoint.name,
                    "EndpointID": endpoint.id,
                    "EndpointIP": str(endpoint.address),
                    "Info": {"Host IP": str(node.address) if (node := state.nodes.get(endpoint.node_id)) else ""},
                }
                for endpoint in members
            ],
        }
    return out


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
