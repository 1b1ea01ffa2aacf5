"""What the maps of a network's namespace should hold: which backend gets which share of a virtual address or port.

(libnetwork: service_linux.go addLBBackend, rmLBBackend)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from overlay.model import Endpoint, LocalNode, NetworkState, Port, Readiness, Service, mac_of
from overlay.plugin import HostPort
from overlay.rules import (
    MESH,
    MESH_STICKY,
    NODE_MACS,
    NODES,
    OWN,
    REDIRECT,
    STICKY,
    STOCK,
    TIERS,
    VIRTUAL,
    Elements,
    Field,
    Maps,
    RuleSet,
    Shape,
    shapes_of,
)

_SLOTS_PER_BACKEND = 4

HostPorts = Sequence[tuple[IPv4Address, Sequence[HostPort]]]
"""Ports of this host that lead to one container each, with the container's address."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The rules of one namespace, and all that their maps hold."""

    rules: RuleSet
    maps: Maps


@dataclass(frozen=True, slots=True)
class Change:
    """What is missing in one map, and what is too much there. A key may be in both: its value is another one now."""

    family: str
    name: str
    removed: Elements
    added: Elements


def balance_of(state: NetworkState, local: LocalNode, mtu: int, host_ports: HostPorts = ()) -> Balance:
    """What this node's namespace of a network should do. mtu: of the overlay, in bytes.

    host_ports: ports of this host alone, each for one container on the ingress network.
    """
    network = state.network
    own = state.nodes.get(local.id)
    rules = RuleSet(
        pools=tuple(subnet.pool for subnet in network.subnets),
        mtu=mtu,
        ingress=network.ingress,
        load_balancer=own.load_balancer if own else None,
    )
    maps: dict[Shape, dict[tuple[Field, ...], tuple[Field, ...]]] = {shape: {} for shape in shapes_of(rules)}
    backends = _backends(state)
    for service in state.services.values():
        ready = backends.get(service.id, [])
        if service.virtual_ip is not None:
            shape = (STICKY if service.sticky else VIRTUAL)[tier_of(len(ready))]
            maps[shape].update(_slots(service.virtual_ip, [(one.address,) for one in _ordered(ready)]))
        if network.ingress:
            for port in service.ports:
                values = _published(service, port, ready, local)
                shape = (MESH_STICKY if service.sticky else MESH)[port.protocol][tier_of(len(values))]
                maps[shape].update(_slots(port.published, values))
    for endpoint in state.endpoints.values():
        if endpoint.node_id == local.id:
            maps[OWN][(endpoint.address, endpoint.address)] = (_gateway(state, endpoint.address),)
    for address, ports in host_ports:
        for one in ports:
            maps[MESH[one.protocol][1]].update(_slots(one.host_port, [(address, one.container_port)]))
    if network.ingress:
        _steering(state, local, maps)
    return Balance(rules, {(shape.family, shape.name): elements for shape, elements in maps.items()})


def tier_of(backends: int) -> int:
    """How many slots so many backends share: one for one, else so many that their shares are within a fifth."""
    if backends <= 1:
        return TIERS[0]
    return next((tier for tier in TIERS[1:] if backends * _SLOTS_PER_BACKEND <= tier), TIERS[-1])


def _slots(key: Field, values: Sequence[tuple[Field, ...]]) -> dict[tuple[Field, ...], tuple[Field, ...]]:
    """The elements that lead a key to these values, in equal shares."""
    if len(values) == 1:
        return {(key,): values[0]}
    tier, count = tier_of(len(values)), min(len(values), TIERS[-1])
    return {(key, slot): values[slot * count // tier] for slot in range(tier)} if values else {}


def _ordered(backends: Sequence[Endpoint]) -> list[Endpoint]:
    return sorted(backends, key=lambda one: int(one.address))


def changes(before: Maps, after: Maps) -> list[Change]:
    """What leads from one content of the same maps to another."""
    out = []
    for place, wanted in after.items():
        present = before.get(place, {})
        removed = {key: value for key, value in present.items() if wanted.get(key) != value}
        added = {key: value for key, value in wanted.items() if present.get(key) != value}
        if removed or added:
            out.append(Change(*place, removed, added))
    return out


def gone_backends(before: Maps, after: Maps) -> set[IPv4Address]:
    """The addresses that some map led to before, and none does now."""
    return _targets(before) - _targets(after)


def _targets(maps: Maps) -> set[IPv4Address]:
    led = [VIRTUAL, STICKY, *MESH.values(), *MESH_STICKY.values()]
    shapes = [shape for tiers in led for shape in tiers.values()]
    found = (value[0] for shape in shapes for value in maps.get((shape.family, shape.name), {}).values())
    return {address for address in found if isinstance(address, IPv4Address)}


def _backends(state: NetworkState) -> dict[str, list[Endpoint]]:
    """The endpoints that may get new connections, by service. Those of suspected nodes are the last choice."""
    ready: dict[str, list[Endpoint]] = {}
    doubtful: dict[str, list[Endpoint]] = {}
    for endpoint in state.endpoints.values():
        if endpoint.readiness is Readiness.READY and endpoint.service_id:
            node = state.nodes.get(endpoint.node_id)
            chosen = doubtful if node is not None and node.suspected else ready
            chosen.setdefault(endpoint.service_id, []).append(endpoint)
    return {**doubtful, **ready}


def _published(service: Service, port: Port, ready: Sequence[Endpoint], local: LocalNode) -> list[tuple[Field, ...]]:
    """Where one published port leads to.

    A backend here is reached at its own port. One elsewhere is reached at the published port, which its node redirects:
    that is how stock nodes do it.
    """
    here = [one for one in ready if one.node_id == local.id]
    chosen = here if service.local_first and here else ready
    return [(one.address, port.target if one.node_id == local.id else port.published) for one in _ordered(chosen)]


def _steering(
    state: NetworkState, local: LocalNode, maps: Mapping[Shape, dict[tuple[Field, ...], tuple[Field, ...]]]
) -> None:
    """How replies find the node that a client asked, and published ports the container's own."""
    stock = {node.id for node in state.nodes.values() if node.stock}
    for node in state.nodes.values():
        if node.load_balancer is not None and node.id != local.id:
            maps[NODES][(mac_of(node.load_balancer),)] = (int(node.load_balancer),)
            maps[NODE_MACS][(int(node.load_balancer),)] = (mac_of(node.load_balancer),)
    for endpoint in state.endpoints.values():
        if endpoint.node_id in stock:
            maps[STOCK][(endpoint.address,)] = ()
        service = state.services.get(endpoint.service_id)
        if service is None or endpoint.node_id != local.id:
            continue
        for port in service.ports:
            if port.published != port.target:
                maps[REDIRECT[port.protocol]][(endpoint.address, port.published)] = (endpoint.address, port.target)


def _gateway(state: NetworkState, address: IPv4Address) -> IPv4Address:
    subnets = state.network.subnets
    return next((subnet.gateway for subnet in subnets if address in subnet.pool), subnets[0].gateway)
