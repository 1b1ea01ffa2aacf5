"""Overlay networks between hosts made of namespaces: real packets, real netlink, no engine. Needs root."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from overlay import plan
from overlay.io import namespaces
from overlay.io.kernel import Kernel
from overlay.model import Endpoint, LocalNode, Network, NetworkState, Node, Readiness, Service, Subnet
from overlay.plan import Overlay, overlay_of
from tests.overlay.hosts import Host, Lan, Server, ask

NET = "netaaaaaaaaaaaaaaaaaaaaaa1"
MTU = 1450


def network(vni: int = 4097, network_id: str = NET) -> Network:
    return Network(network_id, "front", (Subnet(IPv4Network("10.0.1.0/24"), IPv4Address("10.0.1.1"), vni),))


def state(lan: Lan, *endpoints: tuple[int, str], services: tuple[Service, ...] = ()) -> NetworkState:
    """The network as managers tell it. endpoints: (number of the host, last octet)."""
    made = [
        Endpoint(f"t{octet}", f"n{number}", IPv4Address(f"10.0.1.{octet}"), Readiness.READY)
        for number, octet in endpoints
    ]
    return NetworkState(
        network(),
        {f"n{host.number}": Node(f"n{host.number}", f"h{host.number}", host.address) for host in lan.hosts},
        {one.id: one for one in services},
        {one.id: one for one in made},
    )


def on(host: Host, known: NetworkState) -> Overlay:
    return overlay_of(known, LocalNode(f"n{host.number}", host.address), MTU)


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    made = Lan(tmp_path, hosts=2)
    yield made
    made.close()
    assert not [path for path in tmp_path.rglob("*") if namespaces.is_bound(path)]


def test_containers_on_two_hosts_reach_each_other_by_address(lan: Lan) -> None:
    known = state(lan, (1, "11"), (2, "12"))
    for host in lan.hosts:
        host.kernel.reconcile(on(host, known))
    first = lan.container(lan.hosts[0], NET, "10.0.1.11/24")
    second = lan.container(lan.hosts[1], NET, "10.0.1.12/24")
    servers = [Server(first, "first", 80), Server(second, "second", 80)]
    assert ask(first, "10.0.1.12", 80) == "second 10.0.1.11"
    assert ask(second, "10.0.1.11", 80) == "first 10.0.1.12"
    for server in servers:
        server.close()


def test_what_is_right_already_is_not_touched(lan: Lan) -> None:
    host = lan.hosts[0]
    overlay = on(host, state(lan, (1, "11"), (2, "12"), services=(Service("s", "web", IPv4Address("10.0.1.200")),)))
    host.kernel.reconcile(overlay)
    assert host.kernel.differences(overlay) == []
    fewer = on(host, state(lan, (2, "13")))
    assert host.kernel.differences(fewer)
    host.kernel.reconcile(fewer)
    assert host.kernel.differences(fewer) == []


def test_an_endpoint_that_moves_to_another_node_is_found_there(lan: Lan) -> None:
    host = lan.hosts[0]
    before = state(lan, (2, "12"))
    host.kernel.reconcile(on(host, before))
    moved = replace(before, nodes={**before.nodes, "n2": replace(before.nodes["n2"], address=IPv4Address("10.99.0.9"))})
    host.kernel.reconcile(on(host, moved))
    assert host.kernel.differences(on(host, moved)) == []


def test_a_new_process_finds_the_networks_and_changes_nothing(lan: Lan, tmp_path: Path) -> None:
    host = lan.hosts[0]
    overlay = on(host, state(lan, (2, "12")))
    host.kernel.reconcile(overlay)
    lan.container(host, NET, "10.0.1.11/24")
    again = Kernel(tmp_path / "netns1", host.place.fd)
    assert again.networks() == [NET]
    assert again.differences(overlay) == []
    assert len(again.endpoints(NET)) == 1
    again.close()


def test_stopping_after_any_operation_and_beginning_again_ends_right(lan: Lan, tmp_path: Path) -> None:
    host = lan.hosts[0]
    overlay = on(host, state(lan, (1, "11"), (2, "12"), (2, "13")))
    count = len(plan.plan(overlay, plan.Actual()))
    for stop in range(count):
        partial = Kernel(tmp_path / "netns1", host.place.fd)
        partial.perform(overlay, plan.plan(overlay, plan.Actual())[:stop])
        partial.close()
        host.kernel.reconcile(overlay)
        assert host.kernel.differences(overlay) == [], stop
        host.kernel.remove(NET)
        assert host.kernel.networks() == []


def test_a_namespace_that_somebody_emptied_is_filled_again(lan: Lan) -> None:
    host = lan.hosts[0]
    overlay = on(host, state(lan, (1, "11"), (2, "12")))
    host.kernel.reconcile(overlay)
    host.kernel.remove(NET)
    assert host.kernel.differences(overlay) == [f"the namespace of network {NET} is missing"]
    host.kernel.reconcile(overlay)
    assert host.kernel.differences(overlay) == []


def test_the_file_of_a_namespace_from_before_a_reboot_is_no_obstacle(lan: Lan, tmp_path: Path) -> None:
    (tmp_path / "netns1" / NET).touch()
    overlay = on(lan.hosts[0], state(lan))
    lan.hosts[0].kernel.reconcile(overlay)
    assert lan.hosts[0].kernel.differences(overlay) == []


def test_joining_twice_gives_one_interface_and_leaving_twice_is_no_error(lan: Lan) -> None:
    host = lan.hosts[0]
    host.kernel.reconcile(on(host, state(lan)))
    for _ in range(2):
        assert host.kernel.join(NET, "abcdefghij-rest", "02:42:0a:00:01:0b") == "ovabcdefghij"
    assert host.kernel.endpoints(NET) == {"abcdefghij"}
    for _ in range(2):
        host.kernel.leave(NET, "abcdefghij-rest")
    assert host.kernel.endpoints(NET) == set()


def test_a_large_packet_passes_whole_and_a_larger_one_is_refused_at_once(lan: Lan) -> None:
    known = state(lan, (1, "11"), (2, "12"))
    for host in lan.hosts:
        host.kernel.reconcile(on(host, known))
    first = lan.container(lan.hosts[0], NET, "10.0.1.11/24")
    second = lan.container(lan.hosts[1], NET, "10.0.1.12/24")

    def receiver() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(5)
        made.bind(("0.0.0.0", 9))
        return made

    def sender() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never fragment
        made.connect(("10.0.1.12", 9))
        return made

    with second.run(receiver) as to, first.run(sender) as by:
        by.send(b"x" * (MTU - 28))
        assert len(to.recv(4096)) == MTU - 28
        with pytest.raises(OSError, match="Message too long"):
            by.send(b"x" * (MTU - 27))


def test_the_mtu_of_the_underlay_is_that_of_the_device_with_the_nodes_address(lan: Lan) -> None:
    assert lan.hosts[0].kernel.underlay_mtu(lan.hosts[0].address) == 1500
    assert lan.hosts[0].kernel.underlay_mtu(IPv4Address("192.0.2.1")) == 1500
