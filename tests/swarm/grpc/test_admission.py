"""Who gets in while strangers crowd at the door from many addresses."""

from __future__ import annotations

import pytest

from swarm import defaults
from swarm.grpc.admission import Admission, Guest
from swarm.rpc import WORKER_ROLE, Peer


class Door:
    """An Admission, its guests and its clock."""

    def __init__(self, *members: str) -> None:
        self.asked = 0
        self.members = members
        self.now = 1000.0
        self.gone: list[Guest] = []
        self.admission = Admission(self._hosts)

    def _hosts(self) -> tuple[str, ...]:
        self.asked += 1
        return self.members

    def enter(self, host: str) -> Guest | None:
        """A connection from there, or None when it is turned away."""
        guest = Guest(lambda: self.gone.append(guest))
        return None if self.admission.enter(guest, host, self.now) else guest

    def member(self, host: str, node_id: str = "n1") -> Guest | None:
        """A node from there, all the way in."""
        guest = self.enter(host)
        if guest is None or self.admission.identify(guest, Peer(node_id, WORKER_ROLE, "c1", f"{host}:4000"), self.now):
            return None
        return guest

    def crowd(self, count: int, network: int = 1) -> list[Guest]:
        """So many strangers, each from another address; those who got in."""
        hosts = (f"10.{network}.{number >> 8}.{number & 255}" for number in range(count))
        return [guest for host in hosts if (guest := self.enter(host)) is not None]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RPC_STRANGERS_PER_S_MAX", 40)
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_MAX", 100)
    monkeypatch.setattr(defaults, "RPC_UNFINISHED_STRANGERS_BYTES_MAX", 1000)
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CALLS_PER_S_MAX", 50)


def test_strangers_from_many_addresses_shake_hands_only_so_often_in_a_second() -> None:
    door = Door()
    assert len(door.crowd(500)) == 40
    door.now += 1
    assert len(door.crowd(500, network=2)) == 40


def test_half_of_a_second_is_kept_for_addresses_that_have_not_come_yet() -> None:
    door = Door()
    for host in ("10.1.0.1", "10.1.0.2"):
        for _ in range(100):
            door.enter(host)
    assert door.enter("10.1.0.1") is None
    assert door.member("10.1.0.3") is not None


def test_nodes_get_in_where_one_was_let_in_before_however_many_strangers_come() -> None:
    door = Door()
    first = door.member("192.0.2.1")
    assert first is not None
    door.admission.leave(first)
    door.crowd(500)
    assert door.enter("192.0.2.99") is None
    guests = [door.member("192.0.2.1") for _ in range(defaults.RPC_CONNECTIONS_PER_NODE_MAX)]
    assert None not in guests


def test_nodes_get_in_where_the_store_says_that_they_are_also_after_a_restart() -> None:
    door = Door("192.0.2.7", "2001:db8::7", "")
    door.crowd(500)
    assert door.member("192.0.2.7") is not None
    assert door.member("2001:db8::8", "n2") is not None  # the network of 64 bits counts
    assert door.enter("192.0.2.8") is None


def test_the_store_is_asked_only_in_a_crowd_and_once_in_a_while() -> None:
    door = Door("192.0.2.7")
    door.crowd(10)
    assert door.asked == 0
    door.crowd(500)
    assert door.asked == 1
    door.now += defaults.RPC_HOMES_REFRESH_S
    door.members = ("192.0.2.8",)
    door.crowd(500)
    assert door.asked == 2
    assert door.member("192.0.2.8") is not None


def test_who_comes_from_a_nodes_address_does_not_lose_his_place_to_a_crowd() -> None:
    door = Door()
    assert door.member("192.0.2.1") is not None
    waiting = door.enter("192.0.2.1")
    for second in range(10):
        door.crowd(500, network=second)
        door.now += 1
    assert len(door.gone) == 10 * 40 - 100
    assert door.admission.connections == 102
    assert waiting not in door.gone
    assert waiting is not None
    assert door.admission.identify(waiting, Peer("n2", WORKER_ROLE, "c1", "192.0.2.1:4001"), door.now) == ""


def test_a_stolen_certificate_makes_one_address_known_and_no_more() -> None:
    door = Door()
    for number in range(10):
        guest = door.member(f"192.0.2.{number}")
        assert guest is not None
        door.admission.leave(guest)
    door.crowd(500)
    entered = [door.enter(f"192.0.2.{number}") is not None for number in range(10)]
    assert entered == [False] * 9 + [True]


def test_the_address_of_a_node_that_is_gone_is_forgotten_and_that_of_one_that_is_there_is_not() -> None:
    door = Door()
    gone = door.member("192.0.2.1", "n1")
    assert gone is not None
    assert door.member("192.0.2.2", "n2") is not None
    door.admission.leave(gone)
    door.admission.sweep(door.now)
    door.now += defaults.RPC_HOME_S + 1
    door.admission.sweep(door.now)
    door.crowd(500)
    assert door.enter("192.0.2.1") is None
    assert door.enter("192.0.2.2") is not None


def test_incomplete_requests_of_many_addresses_are_limited_and_the_oldest_go() -> None:
    door = Door()
    assert door.member("192.0.2.1") is not None
    neighbour = door.enter("192.0.2.1")
    guests = door.crowd(30)
    assert neighbour is not None
    assert door.admission.hold(neighbour, 900)
    for guest in guests:
        assert door.admission.hold(guest, 100)
    assert door.gone == guests[:20]
    for guest in guests[20:]:
        door.admission.hold(guest, -100)
    assert all(door.admission.hold(guest, 100) for guest in guests[20:])
    assert door.gone == guests[:20]
    for guest in guests[20:]:
        door.admission.leave(guest)
    late = door.crowd(9, network=2)
    assert all(door.admission.hold(guest, 100) for guest in late)
    assert len(door.gone) == 20


def test_calls_of_many_addresses_are_limited_and_those_from_where_nodes_live_are_not() -> None:
    door = Door()
    assert door.member("192.0.2.1") is not None
    neighbour = door.enter("192.0.2.1")
    guests = door.crowd(20)
    allowed = [door.admission.may_call(guest, door.now) for _ in range(10) for guest in guests]
    assert allowed == [True] * 50 + [False] * 150
    assert neighbour is not None
    assert door.admission.may_call(neighbour, door.now)
    assert door.admission.may_call(guests[0], door.now + 1)
