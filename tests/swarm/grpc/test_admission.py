"""Which connections are accepted during a flood from many addresses."""

from __future__ import annotations

import pytest

from swarm import defaults
from swarm.grpc.admission import Admission, TrackedConnection
from swarm.rpc import WORKER_ROLE, Peer


class Server:
    """An Admission, the connections that it displaced, and its clock."""

    def __init__(self, *members: str) -> None:
        self.asked = 0
        self.members = members
        self.now = 1000.0
        self.displaced: list[TrackedConnection] = []
        self.admission = Admission(self._hosts)

    def _hosts(self) -> tuple[str, ...]:
        self.asked += 1
        return self.members

    def connect(self, host: str) -> TrackedConnection | None:
        """A connection from this address, or None when it is refused."""
        connection = TrackedConnection(lambda: self.displaced.append(connection))
        return None if self.admission.accept(connection, host, self.now) else connection

    def connect_node(self, host: str, node_id: str = "n1") -> TrackedConnection | None:
        """A connection from this address that a node's certificate identified, or None."""
        connection = self.connect(host)
        if connection is None or self.admission.identify(
            connection, Peer(node_id, WORKER_ROLE, "c1", f"{host}:4000"), self.now
        ):
            return None
        return connection

    def flood(self, count: int, network: int = 1) -> list[TrackedConnection]:
        """Anonymous connections, each from another address; those that were accepted."""
        hosts = (f"10.{network}.{number >> 8}.{number & 255}" for number in range(count))
        return [connection for host in hosts if (connection := self.connect(host)) is not None]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_PER_S_MAX", 40)
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_MAX", 100)
    monkeypatch.setattr(defaults, "RPC_UNFINISHED_UNKNOWN_ADDRESSES_BYTES_MAX", 1000)
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CALLS_PER_S_MAX", 50)


def test_new_connections_from_many_addresses_are_limited_per_second() -> None:
    server = Server()
    assert len(server.flood(500)) == 40
    server.now += 1
    assert len(server.flood(500, network=2)) == 40


def test_half_of_the_new_connections_are_reserved_for_addresses_that_opened_no_other_in_this_second() -> None:
    server = Server()
    for host in ("10.1.0.1", "10.1.0.2"):
        for _ in range(100):
            server.connect(host)
    assert server.connect("10.1.0.1") is None
    assert server.connect_node("10.1.0.3") is not None


def test_nodes_are_accepted_from_an_address_where_one_was_admitted_before_during_any_flood() -> None:
    server = Server()
    first = server.connect_node("192.0.2.1")
    assert first is not None
    server.admission.release(first)
    server.flood(500)
    assert server.connect("192.0.2.99") is None
    connections = [server.connect_node("192.0.2.1") for _ in range(defaults.RPC_CONNECTIONS_PER_NODE_MAX)]
    assert None not in connections


def test_nodes_are_accepted_from_their_addresses_in_the_store_even_after_a_restart() -> None:
    server = Server("192.0.2.7", "2001:db8::7", "")
    server.flood(500)
    assert server.connect_node("192.0.2.7") is not None
    assert server.connect_node("2001:db8::8", "n2") is not None  # the network of 64 bits counts
    assert server.connect("192.0.2.8") is None


def test_the_store_is_read_only_during_a_flood_and_once_per_period() -> None:
    server = Server("192.0.2.7")
    server.flood(10)
    assert server.asked == 0
    server.flood(500)
    assert server.asked == 1
    server.now += defaults.RPC_KNOWN_ADDRESSES_REFRESH_S
    server.members = ("192.0.2.8",)
    server.flood(500)
    assert server.asked == 2
    assert server.connect_node("192.0.2.8") is not None


def test_a_flood_does_not_displace_anonymous_connections_from_a_nodes_address() -> None:
    server = Server()
    assert server.connect_node("192.0.2.1") is not None
    waiting = server.connect("192.0.2.1")
    for second in range(10):
        server.flood(500, network=second)
        server.now += 1
    assert len(server.displaced) == 10 * 40 - 100
    assert server.admission.connections == 102
    assert waiting not in server.displaced
    assert waiting is not None
    assert server.admission.identify(waiting, Peer("n2", WORKER_ROLE, "c1", "192.0.2.1:4001"), server.now) == ""


def test_a_stolen_certificate_makes_one_address_known_and_no_more() -> None:
    server = Server()
    for number in range(10):
        connection = server.connect_node(f"192.0.2.{number}")
        assert connection is not None
        server.admission.release(connection)
    server.flood(500)
    accepted = [server.connect(f"192.0.2.{number}") is not None for number in range(10)]
    assert accepted == [False] * 9 + [True]


def test_the_address_of_a_node_that_left_is_forgotten_and_that_of_a_connected_one_is_not() -> None:
    server = Server()
    gone = server.connect_node("192.0.2.1", "n1")
    assert gone is not None
    assert server.connect_node("192.0.2.2", "n2") is not None
    server.admission.release(gone)
    server.admission.sweep(server.now)
    server.now += defaults.RPC_KNOWN_ADDRESS_TTL_S + 1
    server.admission.sweep(server.now)
    server.flood(500)
    assert server.connect("192.0.2.1") is None
    assert server.connect("192.0.2.2") is not None


def test_incomplete_requests_of_many_addresses_are_limited_and_the_oldest_are_closed() -> None:
    server = Server()
    assert server.connect_node("192.0.2.1") is not None
    neighbour = server.connect("192.0.2.1")
    connections = server.flood(30)
    assert neighbour is not None
    assert server.admission.hold(neighbour, 900)
    for connection in connections:
        assert server.admission.hold(connection, 100)
    assert server.displaced == connections[:20]
    for connection in connections[20:]:
        server.admission.hold(connection, -100)
    assert all(server.admission.hold(connection, 100) for connection in connections[20:])
    assert server.displaced == connections[:20]
    for connection in connections[20:]:
        server.admission.release(connection)
    late = server.flood(9, network=2)
    assert all(server.admission.hold(connection, 100) for connection in late)
    assert len(server.displaced) == 20


def test_calls_of_many_addresses_are_limited_and_those_from_known_addresses_are_not() -> None:
    server = Server()
    assert server.connect_node("192.0.2.1") is not None
    neighbour = server.connect("192.0.2.1")
    connections = server.flood(20)
    allowed = [server.admission.may_call(connection, server.now) for _ in range(10) for connection in connections]
    assert allowed == [True] * 50 + [False] * 150
    assert neighbour is not None
    assert server.admission.may_call(neighbour, server.now)
    assert server.admission.may_call(connections[0], server.now + 1)
