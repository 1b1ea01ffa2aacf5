"""Virtual addresses and the routing mesh between hosts made of namespaces: real packets, no engine. Needs root."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from overlay.balance import balance_of
from overlay.io.mesh import Mesh
from overlay.io.packet_rules import PacketRules, run_nft
from overlay.model import Endpoint, LocalNode, Network, NetworkState, Node, Port, Readiness, Service, Subnet
from overlay.plan import overlay_of
from tests.overlay.hosts import Host, Lan, Place, Server, ask, connect, say

FRONT, INGRESS = "front", "ingress"
VIP = "10.0.1.200"
MTU = 1450
UDP = socket.SOCK_DGRAM


class Cluster:
    """Two hosts with the network "front" and the ingress network, kept right by production's own parts."""

    def __init__(self, lan: Lan) -> None:
        self.lan = lan
        self._rules = {host.number: PacketRules() for host in lan.hosts}
        self.meshes = {host.number: Mesh(host.place.fd) for host in lan.hosts}
        self._made: list[Server] = []
        self.states = {
            name: NetworkState(
                Network(name, name, (Subnet(IPv4Network(pool), IPv4Address(gateway), vni),), ingress=name == INGRESS),
                {f"n{host.number}": _node(host, pool) for host in lan.hosts},
            )
            for name, pool, gateway, vni in (
                (FRONT, "10.0.1.0/24", "10.0.1.1", 4097),
                (INGRESS, "10.0.0.0/24", "10.0.0.1", 4096),
            )
        }

    def local(self, host: Host) -> LocalNode:
        """What the managers tell a host of itself."""
        return LocalNode(f"n{host.number}", host.address)

    def rules(self, host: Host) -> PacketRules:
        """The packet rules of a host."""
        return self._rules[host.number]

    def service(self, network: str, service: Service) -> None:
        """A service comes or changes."""
        state = self.states[network]
        self.states[network] = replace(state, services={**state.services, service.id: service})

    def endpoint(self, network: str, host: Host, octet: int, readiness: Readiness = Readiness.READY) -> Endpoint:
        """An endpoint of the service "s" comes or changes."""
        state = self.states[network]
        address = state.network.subnets[0].pool[octet]
        made = Endpoint(f"t{octet}", f"n{host.number}", address, readiness, "s")
        self.states[network] = replace(state, endpoints={**state.endpoints, made.id: made})
        return made

    def gone(self, network: str, octet: int) -> None:
        """An endpoint goes."""
        state = self.states[network]
        left = {key: one for key, one in state.endpoints.items() if key != f"t{octet}"}
        self.states[network] = replace(state, endpoints=left)

    def reconcile(self) -> None:
        """Every host becomes what it should be."""
        for host in self.lan.hosts:
            for name, state in self.states.items():
                host.kernel.reconcile(overlay_of(state, self.local(host), MTU))
                namespace = host.kernel.namespace(name)
                self.rules(host).reconcile(name, namespace, balance_of(state, self.local(host), MTU))
                if name == INGRESS:
                    services = state.services.values()
                    ports = [(port.protocol, port.published) for service in services for port in service.ports]
                    self.meshes[host.number].reconcile(namespace, ports)

    def container(self, network: str, host: Host, octet: int) -> Place:
        """A container of a host."""
        subnet = self.states[network].network.subnets[0]
        gateway = str(subnet.gateway) if network == INGRESS else ""
        return self.lan.container(host, network, f"{subnet.pool[octet]}/{subnet.pool.prefixlen}", gateway)

    def serve(self, place: Place, name: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        """An echo server."""
        self._made.append(Server(place, name, port, kind))

    def close(self) -> None:
        """Take all of it away."""
        for server in self._made:
            server.close()
        for host in self.lan.hosts:
            self.meshes[host.number].reconcile(None, [])
            self.meshes[host.number].close()
            self.rules(host).close()


def _node(host: Host, pool: str) -> Node:
    balancer = IPv4Network(pool)[host.number + 1]
    return Node(f"n{host.number}", f"h{host.number}", host.address, balancer)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    lan = Lan(tmp_path, hosts=2)
    made = Cluster(lan)
    yield made
    made.close()
    lan.close()


@pytest.fixture
def web(cluster: Cluster) -> dict[str, Place]:
    """A client and a backend on the first host, a second backend on the other."""
    one, two = cluster.lan.hosts
    cluster.service(FRONT, Service("s", "web", IPv4Address(VIP)))
    cluster.endpoint(FRONT, one, 21)
    cluster.endpoint(FRONT, two, 22)
    cluster.reconcile()
    places = {name: cluster.container(FRONT, host, octet) for name, host, octet in (
        ("client", one, 11), ("b1", one, 21), ("b2", two, 22))}  # fmt: skip
    client = Endpoint("c", "n1", IPv4Address("10.0.1.11"), Readiness.READY)
    state = cluster.states[FRONT]
    cluster.states[FRONT] = replace(state, endpoints={**state.endpoints, "c": client})
    cluster.reconcile()
    for name in ("b1", "b2"):
        cluster.serve(places[name], name, 80)
        cluster.serve(places[name], name, 53, UDP)
    return places


def answers(question: Callable[[], str], count: int = 40) -> set[str]:
    return {question() for _ in range(count)}


def test_a_virtual_address_leads_to_all_backends_and_they_see_the_client(
    cluster: Cluster, web: dict[str, Place]
) -> None:
    assert answers(lambda: ask(web["client"], VIP, 80)) == {"b1 10.0.1.11", "b2 10.0.1.11"}
    assert answers(lambda: ask(web["client"], VIP, 53, UDP)) == {"b1 10.0.1.11", "b2 10.0.1.11"}


def test_a_backend_reaches_itself_by_its_virtual_address(cluster: Cluster, web: dict[str, Place]) -> None:
    assert answers(lambda: ask(web["b1"], VIP, 80)) == {"b1 10.0.1.1", "b2 10.0.1.21"}


def test_a_backend_that_drains_keeps_its_connections_and_gets_no_new_ones(
    cluster: Cluster, web: dict[str, Place]
) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connect(web["client"], VIP, 80)) for _ in range(12)]
        before = [say(link) for link in held]
        assert len(set(before)) == 2
        cluster.endpoint(FRONT, cluster.lan.hosts[0], 21, Readiness.DRAINING)
        cluster.reconcile()
        assert answers(lambda: ask(web["client"], VIP, 80)) == {"b2 10.0.1.11"}
        assert [say(link) for link in held] == before


def test_a_udp_flow_to_a_backend_that_went_is_led_to_another(cluster: Cluster, web: dict[str, Place]) -> None:
    with ExitStack() as stack:
        flows = [stack.enter_context(connect(web["client"], VIP, 53, UDP)) for _ in range(12)]
        assert {say(flow) for flow in flows} == {"b1 10.0.1.11", "b2 10.0.1.11"}
        cluster.gone(FRONT, 22)
        cluster.reconcile()
        assert {say(flow) for flow in flows} == {"b1 10.0.1.11"}


def test_a_virtual_address_without_backends_refuses_at_once_and_serves_again(
    cluster: Cluster, web: dict[str, Place]
) -> None:
    for octet in (21, 22):
        cluster.gone(FRONT, octet)
    cluster.reconcile()
    assert ask(web["client"], VIP, 80) == "ConnectionRefusedError"
    cluster.endpoint(FRONT, cluster.lan.hosts[1], 22)
    cluster.reconcile()
    assert ask(web["client"], VIP, 80) == "b2 10.0.1.11"


def test_a_suspected_node_is_the_last_choice(cluster: Cluster, web: dict[str, Place]) -> None:
    state = cluster.states[FRONT]
    doubtful = replace(state, nodes={**state.nodes, "n2": replace(state.nodes["n2"], suspected=True)})
    cluster.states[FRONT] = doubtful
    cluster.reconcile()
    assert answers(lambda: ask(web["client"], VIP, 80)) == {"b1 10.0.1.11"}
    cluster.gone(FRONT, 21)
    cluster.reconcile()
    assert answers(lambda: ask(web["client"], VIP, 80)) == {"b2 10.0.1.11"}


def test_a_client_of_a_sticky_service_keeps_its_backend(cluster: Cluster, web: dict[str, Place]) -> None:
    cluster.service(FRONT, Service("s", "web", IPv4Address(VIP), sticky=True))
    cluster.reconcile()
    assert len(answers(lambda: ask(web["client"], VIP, 80))) == 1


def test_flushed_rules_are_noticed_and_written_again(cluster: Cluster, web: dict[str, Place]) -> None:
    host = cluster.lan.hosts[0]
    assert cluster.rules(host).check(FRONT)
    run_nft(host.kernel.namespace(FRONT), "flush ruleset\n")
    assert not cluster.rules(host).check(FRONT)
    cluster.reconcile()
    assert cluster.rules(host).check(FRONT)
    assert answers(lambda: ask(web["client"], VIP, 80)) == {"b1 10.0.1.11", "b2 10.0.1.11"}


# --- the routing mesh ----------------------------------------------------------------------------------------------


@pytest.fixture
def mesh(cluster: Cluster) -> Place:
    """A service with a backend on each host that publishes port 80 of its containers' port 8000; a client outside."""
    ports = (Port("tcp", 80, 8000), Port("udp", 53, 5300))
    cluster.service(INGRESS, Service("s", "web", IPv4Address("10.0.0.200"), ports=ports))
    for host, octet in zip(cluster.lan.hosts, (11, 12), strict=True):
        cluster.endpoint(INGRESS, host, octet)
    cluster.reconcile()
    for host, octet in zip(cluster.lan.hosts, (11, 12), strict=True):
        place = cluster.container(INGRESS, host, octet)
        cluster.serve(place, f"w{host.number}", 8000)
        cluster.serve(place, f"w{host.number}", 5300, UDP)
    return cluster.lan.client(100)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, UDP])
def test_every_node_serves_a_published_port_and_backends_see_the_client(
    cluster: Cluster, mesh: Place, kind: socket.SocketKind
) -> None:
    port = 53 if kind == UDP else 80
    for host in cluster.lan.hosts:
        seen = Counter(ask(mesh, str(host.address), port, kind) for _ in range(40))
        assert set(seen) == {"w1 10.99.0.100", "w2 10.99.0.100"}


def test_processes_of_a_node_reach_published_ports_of_any_node(cluster: Cluster, mesh: Place) -> None:
    one, two = cluster.lan.hosts
    assert answers(lambda: ask(one.place, str(two.address), 80)) == {"w1 10.99.0.1", "w2 10.99.0.1"}
    assert answers(lambda: ask(one.place, str(one.address), 80)) == {"w1 10.99.0.1", "w2 10.99.0.1"}
    assert answers(lambda: ask(one.place, "127.0.0.1", 80)) == {"w1 169.254.253.1", "w2 169.254.253.1"}


def test_a_service_that_prefers_local_backends_uses_others_only_without_them(cluster: Cluster, mesh: Place) -> None:
    one, two = cluster.lan.hosts
    service = cluster.states[INGRESS].services["s"]
    cluster.service(INGRESS, replace(service, local_first=True))
    cluster.reconcile()
    assert answers(lambda: ask(mesh, str(one.address), 80)) == {"w1 10.99.0.100"}
    assert answers(lambda: ask(mesh, str(two.address), 80)) == {"w2 10.99.0.100"}
    cluster.gone(INGRESS, 11)
    cluster.reconcile()
    assert answers(lambda: ask(mesh, str(one.address), 80)) == {"w2 10.99.0.100"}


def test_the_port_of_a_service_that_went_is_closed_and_others_stay_open(cluster: Cluster, mesh: Place) -> None:
    service = cluster.states[INGRESS].services["s"]
    cluster.service(INGRESS, replace(service, ports=(Port("tcp", 81, 8000),)))
    cluster.reconcile()
    for host in cluster.lan.hosts:
        assert ask(mesh, str(host.address), 80) == "ConnectionRefusedError"
        assert answers(partial(ask, mesh, str(host.address), 81)) == {"w1 10.99.0.100", "w2 10.99.0.100"}


def test_containers_of_the_ingress_network_reach_the_world_outside(cluster: Cluster, mesh: Place) -> None:
    cluster.serve(mesh, "world", 7)
    inside = cluster.container(INGRESS, cluster.lan.hosts[0], 31)
    assert ask(inside, "10.99.0.100", 7) == "world 10.99.0.1"


def test_the_mesh_of_a_host_whose_rules_were_flushed_is_written_again(cluster: Cluster, mesh: Place) -> None:
    one = cluster.lan.hosts[0]
    assert cluster.meshes[1].check()
    run_nft(one.place.fd, "flush ruleset\n")
    assert not cluster.meshes[1].check()
    cluster.reconcile()
    assert cluster.meshes[1].check()
    assert answers(lambda: ask(mesh, str(one.address), 80)) == {"w1 10.99.0.100", "w2 10.99.0.100"}
