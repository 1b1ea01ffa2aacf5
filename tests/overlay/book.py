"""Networks as the managers tell of them, in short form."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from overlay.model import Endpoint, Network, NetworkState, Node, Readiness, Service, Subnet

READY, STARTING, DRAINING = Readiness.READY, Readiness.STARTING, Readiness.DRAINING


def service(name: str, virtual_ip: str | None = None, *aliases: str, id: str = "") -> Service:
    return Service(id or f"{name}-id", name, IPv4Address(virtual_ip) if virtual_ip else None, aliases)


def task(
    id: str, address: str, of: str = "", readiness: Readiness = READY, *aliases: str, name: str = "", node: str = "n1"
) -> Endpoint:
    service_id = f"{of}-id" if of else ""
    return Endpoint(id, node, IPv4Address(address), readiness, service_id, name or f"{of or 'c'}.1.{id}", aliases)


def network(
    id: str,
    *members: Service | Endpoint,
    name: str = "",
    suspected: Iterable[str] = (),
    ingress: bool = False,
    internal: bool = False,
    pool: str = "10.0.1.0/24",
) -> NetworkState:
    net = IPv4Network(pool)
    nodes = {one: Node(one, one, IPv4Address("192.0.2.1"), None, one in set(suspected)) for one in ("n1", "n2")}
    return NetworkState(
        Network(id, name or f"{id}-net", (Subnet(net, net[1], 4097),), ingress=ingress, internal=internal),
        nodes,
        {one.id: one for one in members if isinstance(one, Service)},
        {one.id: one for one in members if isinstance(one, Endpoint)},
    )
