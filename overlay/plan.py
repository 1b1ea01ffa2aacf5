"""What the kernel should hold for one network, and how to get there from what it holds.

One network has one namespace on a node, with one bridge, and a VXLAN in it for each subnet. ``overlay_of`` says what
should be there, ``plan`` gives the operations that are missing. Each operation stands for itself: whoever stops
after any of them and plans again ends in the same state.

(libnetwork: drivers/overlay/ov_network.go, peerdb.go)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface

from overlay.model import LocalNode, NetworkState, Subnet, mac_of

BRIDGE = "br0"
PORT_PREFIX, CONTAINER_PREFIX = "v", "ov"


@dataclass(frozen=True, slots=True)
class Peer:
    """An endpoint on another node, or that node's load balancer: frames to ``mac`` go to the node."""

    address: IPv4Address
    mac: str
    node: IPv4Address


@dataclass(frozen=True, slots=True)
class Overlay:
    """What one network's namespace should hold. addresses: of the bridge."""

    network_id: str
    subnets: tuple[Subnet, ...]
    mtu: int
    bridge_mac: str
    vxlan_port: int
    addresses: frozenset[IPv4Interface]
    peers: frozenset[Peer]


@dataclass(frozen=True, slots=True)
class Bridge:
    """The bridge that is there."""

    mac: str
    mtu: int
    up: bool
    filters: bool


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN that is there. joined: it is a port of the bridge."""

    vni: int
    port: int
    mtu: int
    up: bool
    joined: bool


@dataclass(frozen=True, slots=True)
class Actual:
    """What a namespace holds. neighbours, forwarding: of each VXLAN by its VNI; nobody else's."""

    bridge: Bridge | None = None
    vxlans: Mapping[int, Vxlan] = field(default_factory=dict)
    addresses: frozenset[IPv4Interface] = frozenset()
    neighbours: Mapping[int, Mapping[IPv4Address, str]] = field(default_factory=dict)
    forwarding: Mapping[int, Mapping[str, IPv4Address]] = field(default_factory=dict)


# --- operations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MakeBridge:
    """A new bridge, up."""

    mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class SetBridge:
    """The bridge that is there gets these, and is set up."""

    mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class RemoveVxlan:
    """A VXLAN goes, with its entries."""

    vni: int


@dataclass(frozen=True, slots=True)
class MakeVxlan:
    """A new VXLAN; it is neither up nor in the bridge yet."""

    vni: int
    port: int
    mtu: int


@dataclass(frozen=True, slots=True)
class JoinVxlan:
    """The VXLAN becomes a port of the bridge, with this MTU, and is set up."""

    vni: int
    mtu: int


@dataclass(frozen=True, slots=True)
class SetAddress:
    """The bridge gets an address."""

    address: IPv4Interface


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """The bridge loses an address."""

    address: IPv4Interface


@dataclass(frozen=True, slots=True)
class SetForwarding:
    """Frames to a hardware address go to this node, whatever was said before."""

    vni: int
    mac: str
    node: IPv4Address


@dataclass(frozen=True, slots=True)
class RemoveForwarding:
    """Frames to a hardware address go nowhere. node: where they went."""

    vni: int
    mac: str
    node: IPv4Address


@dataclass(frozen=True, slots=True)
class SetNeighbour:
    """An address has this hardware address, whatever was said before."""

    vni: int
    address: IPv4Address
    mac: str


@dataclass(frozen=True, slots=True)
class RemoveNeighbour:
    """An address has no hardware address any more."""

    vni: int
    address: IPv4Address


Operation = (
    MakeBridge
    | SetBridge
    | RemoveVxlan
    | MakeVxlan
    | JoinVxlan
    | SetAddress
    | RemoveAddress
    | SetForwarding
    | RemoveForwarding
    | SetNeighbour
    | RemoveNeighbour
)


# --- what should be ------------------------------------------------------------------------------------------------


def overlay_of(state: NetworkState, local: LocalNode, mtu: int) -> Overlay:
    """What this node's namespace of a network should hold. mtu: of the overlay, in bytes.

    The bridge of the ingress network has the hardware address of the node's own load balancer: replies to clients are
    steered to the node that they came by (overlay/rules.py).
    """
    network = state.network
    own = state.nodes.get(local.id)
    balancer = own.load_balancer if own else None
    gateway = network.subnets[0].gateway
    addresses = {IPv4Interface((subnet.gateway, subnet.pool.prefixlen)) for subnet in network.subnets}
    addresses |= {IPv4Interface((one.virtual_ip, 32)) for one in state.services.values() if one.virtual_ip}
    if balancer is not None:
        addresses.add(IPv4Interface((balancer, 32)))
    return Overlay(
        network_id=network.id,
        subnets=network.subnets,
        mtu=mtu,
        bridge_mac=mac_of(balancer if network.ingress and balancer is not None else gateway),
        vxlan_port=local.vxlan_port,
        addresses=frozenset(addresses),
        peers=frozenset(_peers(state, local)),
    )


def _peers(state: NetworkState, local: LocalNode) -> Iterator[Peer]:
    for endpoint in state.endpoints.values():
        node = state.nodes.get(endpoint.node_id)
        if node is not None and node.id != local.id:
            yield Peer(endpoint.address, endpoint.mac, node.address)
    for node in state.nodes.values():
        if node.load_balancer is not None and node.id != local.id:
            yield Peer(node.load_balancer, mac_of(node.load_balancer), node.address)


# --- how to get there ----------------------------------------------------------------------------------------------


def plan(desired: Overlay, actual: Actual) -> tuple[Operation, ...]:
    """The operations that are missing. What is added comes before what is taken away."""
    return (
        *_bridge(desired, actual),
        *_vxlans(desired, actual),
        *(SetAddress(one) for one in sorted(desired.addresses - actual.addresses)),
        *_entries(desired, actual),
        *(RemoveAddress(one) for one in sorted(actual.addresses - desired.addresses)),
    )


def _bridge(desired: Overlay, actual: Actual) -> Iterator[Operation]:
    if actual.bridge is None:
        yield MakeBridge(desired.bridge_mac, desired.mtu)
    elif actual.bridge != Bridge(desired.bridge_mac, desired.mtu, up=True, filters=True):
        yield SetBridge(desired.bridge_mac, desired.mtu)


def _vxlans(desired: Overlay, actual: Actual) -> Iterator[Operation]:
    wanted = {subnet.vni for subnet in desired.subnets}
    for vni, vxlan in actual.vxlans.items():
        if vni not in wanted or vxlan.port != desired.vxlan_port:
            yield RemoveVxlan(vni)
    for subnet in desired.subnets:
        present = actual.vxlans.get(subnet.vni)
        if present is None or present.port != desired.vxlan_port:
            yield MakeVxlan(subnet.vni, desired.vxlan_port, desired.mtu)
            yield JoinVxlan(subnet.vni, desired.mtu)
        elif present != Vxlan(subnet.vni, desired.vxlan_port, desired.mtu, up=True, joined=True):
            yield JoinVxlan(subnet.vni, desired.mtu)


def _entries(desired: Overlay, actual: Actual) -> Iterator[Operation]:
    """Neighbours and forwarding entries of the VXLANs that stay. A VXLAN that is made anew has none."""
    kept = {vni for vni, vxlan in actual.vxlans.items() if vxlan.port == desired.vxlan_port}
    peers = _by_vni(desired)
    removals: list[Operation] = []
    for subnet in desired.subnets:
        vni = subnet.vni
        forwarding = {peer.mac: peer.node for peer in peers[vni]}
        neighbours = {peer.address: peer.mac for peer in peers[vni]}
        old_forwarding = actual.forwarding.get(vni, {}) if vni in kept else {}
        old_neighbours = actual.neighbours.get(vni, {}) if vni in kept else {}
        for mac, node in forwarding.items():
            if old_forwarding.get(mac) != node:
                yield SetForwarding(vni, mac, node)
        for address, mac in neighbours.items():
            if old_neighbours.get(address) != mac:
                yield SetNeighbour(vni, address, mac)
        removals += [RemoveNeighbour(vni, one) for one in old_neighbours if one not in neighbours]
        removals += [RemoveForwarding(vni, mac, node) for mac, node in old_forwarding.items() if mac not in forwarding]
    yield from removals


def _by_vni(desired: Overlay) -> dict[int, list[Peer]]:
    """The peers of each subnet, in the order of their addresses. One outside of all subnets is nobody's."""
    found: dict[int, list[Peer]] = {subnet.vni: [] for subnet in desired.subnets}
    for peer in sorted(desired.peers, key=lambda one: (int(one.address), int(one.node))):
        for subnet in desired.subnets:
            if peer.address in subnet.pool:
                found[subnet.vni].append(peer)
                break
    return found
