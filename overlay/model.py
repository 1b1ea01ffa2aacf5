"""What a node knows of the networks it takes part in. Everything else of this package follows from it.

The managers tell it (swarm/agent/discovery.py), and it is replaced as a whole: a ``NetworkState`` is never changed in
place. What the kernel, the resolver and the routing mesh should be is computed from it and from the endpoints that are
on this node.

(libnetwork: agent.go EndpointRecord, drivers/overlay/overlay.proto PeerRecord)
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network


class Readiness(enum.Enum):
    """What an endpoint may be used for. In every state it is reached by its own address."""

    STARTING = "starting"
    """Its container does not run yet, or is not healthy yet: no name leads to it, and no virtual address."""

    READY = "ready"
    """Names and virtual addresses lead to it."""

    DRAINING = "draining"
    """It is about to stop: connections go on, new ones go to others."""


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet of a network, with the VXLAN network identifier (VNI, 24 bits) that carries it."""

    pool: IPv4Network
    gateway: IPv4Address
    vni: int


@dataclass(frozen=True, slots=True)
class Network:
    """One overlay network. underlay_mtu: of the network that carries it; 0: as this host's device has it."""

    id: str
    name: str
    subnets: tuple[Subnet, ...]
    underlay_mtu: int = 0
    ingress: bool = False
    internal: bool = False
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A node as one network sees it.

    address: of its data path (VXLAN). load_balancer: its own address in this network, which stands for the node itself.
    suspected: the managers have not heard of it for a while; its endpoints are the last choice, but are kept. stock: it
    runs Docker's own swarm mode, so it can not return replies by our ways.
    """

    id: str
    hostname: str
    address: IPv4Address
    load_balancer: IPv4Address | None = None
    suspected: bool = False
    stock: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One container (or soon a container) in one network.

    id: of the task, with "/1" and so on behind it if the task has several addresses in this network. service_id: empty
    for a container that no service made. name: of the container, "web.1.<task id>". aliases: more names for this
    container alone.
    """

    id: str
    node_id: str
    address: IPv4Address
    readiness: Readiness
    service_id: str = ""
    name: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def mac(self) -> str:
        """Its hardware address. It follows from the address, as libnetwork's does (netutils.GenerateMACFromIP)."""
        return mac_of(self.address)


@dataclass(frozen=True, slots=True)
class Port:
    """One port published through the routing mesh. protocol: "tcp", "udp" or "sctp"."""

    protocol: str
    published: int
    target: int


@dataclass(frozen=True, slots=True)
class Service:
    """A service in one network.

    virtual_ip: None for endpoint mode "dnsrr". aliases: more names for the whole service. ports: only in the ingress
    network. sticky: a client keeps its backend while the backends stay the same. local_first: the mesh prefers backends
    on the node that was asked.
    """

    id: str
    name: str
    virtual_ip: IPv4Address | None = None
    aliases: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    sticky: bool = False
    local_first: bool = False


@dataclass(frozen=True, slots=True)
class NetworkState:
    """One network with all that a node needs of it. The maps are keyed by ID and are never changed in place."""

    network: Network
    nodes: Mapping[str, Node] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalNode:
    """This node: its ID, the address of its data path, and the cluster's UDP port for VXLAN."""

    id: str
    address: IPv4Address
    vxlan_port: int = 4789


def mac_of(address: IPv4Address) -> str:
    """02:42 and the four octets of the address."""
    return ":".join(f"{octet:02x}" for octet in (0x02, 0x42, *address.packed))
