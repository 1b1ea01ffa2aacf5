"""What the data path costs: ``python -m integration.bench_net``, as root. Namespaces stand for hosts and containers.

Medians; ratios are between measurements of one run.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from overlay.balance import balance_of
from overlay.io.mesh import Mesh
from overlay.io.packet_rules import PacketRules
from overlay.model import Endpoint, LocalNode, Network, NetworkState, Node, Port, Readiness, Service, Subnet
from overlay.plan import overlay_of
from tests.overlay.hosts import Host, Lan, Place, Server, connect, say

MTU = 1450
ROUNDS = 7
PINGS = 3_000
VIP = "10.64.255.200"


def network(name: str = "net", vni: int = 4097, pool: str = "10.64.0.0/16", ingress: bool = False) -> Network:
    """One network."""
    made = IPv4Network(pool)
    return Network(name, name, (Subnet(made, made[1], vni),), ingress=ingress)


def state_of(lan: Lan, net: Network, services: int, backends: int, far: int = 0) -> NetworkState:
    """A network with services of so many backends each on the first host, and endpoints on the second."""
    pool = net.subnets[0].pool
    nodes = {f"n{h.number}": Node(f"n{h.number}", f"h{h.number}", h.address, pool[h.number + 1]) for h in lan.hosts}
    endpoints, made = {}, {}
    number = 10
    for service in range(services):
        made[f"s{service}"] = Service(f"s{service}", f"s{service}", pool[30_000 + service])
        for _ in range(backends):
            endpoints[f"t{number}"] = Endpoint(f"t{number}", "n1", pool[number], Readiness.READY, f"s{service}")
            number += 1
    for _ in range(far):
        endpoints[f"t{number}"] = Endpoint(f"t{number}", "n2", pool[number], Readiness.READY)
        number += 1
    return NetworkState(net, nodes, made, endpoints)


def local(host: Host) -> LocalNode:
    """What a host is told of itself."""
    return LocalNode(f"n{host.number}", host.address)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def without(state: NetworkState, endpoint_id: str) -> NetworkState:
    """The same without one endpoint."""
    return replace(state, endpoints={key: one for key, one in state.endpoints.items() if key != endpoint_id})


def rules(lan: Lan, services: int, backends: int) -> None:
    """Programming of virtual addresses, and one change."""
    host, packet_rules = lan.hosts[0], PacketRules()
    state = state_of(lan, network(), services, backends)
    host.kernel.reconcile(replace(overlay_of(state, local(host), MTU), addresses=frozenset()))
    namespace = host.kernel.namespace("net")
    balances = [balance_of(one, local(host), MTU) for one in (state, without(state, "t10"))]
    full = seconds(lambda: packet_rules.reconcile("net", namespace, balances[0]))
    turns = [
        seconds(partial(packet_rules.reconcile, "net", namespace, balances[(turn + 1) % 2])) for turn in range(ROUNDS)
    ]
    compute = statistics.median(seconds(lambda: balance_of(state, local(host), MTU)) for _ in range(ROUNDS))
    print(
        f"{services:,} services x {backends:,} backends: all {full:.2f} s, one backend comes or goes "
        f"{statistics.median(turns) * 1e3:.1f} ms (besides {compute * 1e3:.1f} ms to compute)"
    )
    packet_rules.close()
    host.kernel.remove("net")


def links(lan: Lan) -> None:
    """Many networks, many peers, and the interface of one container."""
    host = lan.hosts[0]
    states = [state_of(lan, network(f"net{n}", 5000 + n), 1, 10, far=40) for n in range(50)]

    def build() -> None:
        for state in states:
            host.kernel.reconcile(overlay_of(state, local(host), MTU))
            for number in range(10):
                host.kernel.join(state.network.id, f"{state.network.id[3:]:0>4}{number:06}", "02:42:0a:40:00:0b")

    print(f"50 networks x 10 endpoints x 40 peers: {seconds(build):.2f} s")
    join = [
        seconds(partial(host.kernel.join, "net0", f"{n:010}", "02:42:0a:40:00:0b"))
        for n in range(900_000, 900_000 + ROUNDS)
    ]
    print(f"join: {statistics.median(join) * 1e3:.2f} ms")
    for state in states:
        host.kernel.remove(state.network.id)
    crowded = state_of(lan, network(), 1, 1, far=20_000)
    print(f"20,000 peers: {seconds(lambda: host.kernel.reconcile(overlay_of(crowded, local(host), MTU))):.2f} s")
    one_less = overlay_of(without(crowded, "t11"), local(host), MTU)
    print(f"one peer of 20,000 goes: {seconds(lambda: host.kernel.reconcile(one_less)) * 1e3:.0f} ms")
    host.kernel.remove("net")


def round_trip_us(place: Place, address: str, port: int) -> float:
    """The median of many round trips over one connection."""
    with connect(place, address, port) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS // 3):  # until caches and the processor's clock have settled
            say(link)
        times = []
        for _ in range(PINGS):
            begin = time.perf_counter()
            say(link)
            times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def paths(lan: Lan) -> None:
    """Round trips: plain, by the overlay, by a virtual address, and through the mesh of another node."""
    one, two = lan.hosts
    front, ingress = state_of(lan, network(), 0, 0), state_of(lan, network("ingress", 4096, "10.0.0.0/24", True), 0, 0)
    backend = Endpoint("b", "n2", IPv4Address("10.64.0.22"), Readiness.READY, "s")
    front = replace(front, services={"s": Service("s", "s", IPv4Address(VIP))}, endpoints={"b": backend})
    port = Service("s", "s", IPv4Address("10.0.0.200"), ports=(Port("tcp", 8080, 80),))
    published = Endpoint("w", "n2", IPv4Address("10.0.0.22"), Readiness.READY, "s")
    ingress = replace(ingress, services={"s": port}, endpoints={"w": published})
    held: list[PacketRules | Mesh] = []
    for host in lan.hosts:
        for state in (front, ingress):
            packet_rules = PacketRules()
            held.append(packet_rules)
            host.kernel.reconcile(overlay_of(state, local(host), MTU))
            namespace = host.kernel.namespace(state.network.id)
            packet_rules.reconcile(state.network.id, namespace, balance_of(state, local(host), MTU))
        mesh = Mesh(host.place.fd)
        held.append(mesh)
        mesh.reconcile(host.kernel.namespace("ingress"), [("tcp", 8080)])
    client = lan.container(one, "net", "10.64.0.11/16")
    server = lan.container(two, "net", "10.64.0.22/16")
    web = lan.container(two, "ingress", "10.0.0.22/24", "10.0.0.1")
    outside = lan.client(100)
    servers = [Server(server, "b", 80), Server(web, "w", 80), Server(two.place, "plain", 81)]
    # each endpoint's first packet needs its node to know the client
    known = Endpoint("c", "n1", IPv4Address("10.64.0.11"), Readiness.READY)
    two.kernel.reconcile(overlay_of(replace(front, endpoints={"b": backend, "c": known}), local(two), MTU))
    plain = round_trip_us(one.place, str(two.address), 81)
    direct = round_trip_us(client, "10.64.0.22", 80)
    virtual = round_trip_us(client, VIP, 80)
    right = round_trip_us(outside, str(two.address), 8080)
    other = round_trip_us(outside, str(one.address), 8080)
    print(
        f"round trip: plain {plain:.0f} us; overlay {direct / plain:.2f} times that; virtual address "
        f"{virtual / direct:.2f} times the overlay; mesh on the right node {right / plain:.2f} "
        f"times plain, through another {other / plain:.2f}"
    )
    for made in servers:
        made.close()
    for part in held:
        if isinstance(part, Mesh):
            part.reconcile(None, [])
        part.close()


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        lan = Lan(Path(directory), hosts=2)
        try:
            paths(lan)
            links(lan)
            for services, backends in ((1, 1_000), (500, 10), (5_000, 2)):
                rules(lan, services, backends)
        finally:
            lan.close()


if __name__ == "__main__":
    main()
