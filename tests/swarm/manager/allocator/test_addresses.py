"""swarm.manager.allocator.addresses: an address has one holder, and is free when that holder lets it go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import api
from swarm.manager.allocator.addresses import AddressTable, address_in
from swarm.manager.allocator.subnets import NotAllocated


def _network(subnet: str = "10.0.1.0/29", range_: str = "", more: str = "") -> api.Network:
    network = api.Network(id="net")
    network.spec.annotations.name = "front"
    for text in (subnet, *filter(None, (more,))):
        network.ipam.configs.add(subnet=text, range=range_ if text == subnet else "")
    return network


def test_addresses_follow_one_another_and_come_back_late() -> None:
    table, network = AddressTable(), _network()
    assert table.choose(network) == "10.0.1.1/29"
    table.hold(("network", "net"), [("net", "10.0.1.1")])
    for task, address in (("a", "10.0.1.2/29"), ("b", "10.0.1.3/29")):
        assert table.choose(network) == address
        table.hold(("task", task), [("net", address)])
    assert table.hold(("task", "a"), []) == ["net"]
    assert table.choose(network) == "10.0.1.4/29"
    for task, address in (("c", "10.0.1.4/29"), ("d", "10.0.1.5/29"), ("e", "10.0.1.6/29")):
        table.hold(("task", task), [("net", address)])
    assert table.choose(network) == "10.0.1.2/29"


def test_a_full_network_says_who_holds_its_addresses() -> None:
    table = AddressTable()
    for number in range(1, 7):
        kind = "service" if number == 2 else "task"
        table.hold((kind, str(number)), [("net", f"10.0.1.{number}/29")])
    with pytest.raises(NotAllocated) as refusal:
        table.choose(_network())
    assert str(refusal.value) == (
        "could not find an available IP: network front (10.0.1.0/29) has no free address; 5 tasks, 1 services, 0 nodes "
        "hold them; remove some, or create a network with a larger subnet"
    )
    assert refusal.value.network_id == "net"
    assert table.choose(_network(more="10.0.2.0/29")) == "10.0.2.1/29"


def test_addresses_come_from_the_range_and_those_asked_for_from_the_whole_subnet() -> None:
    table, network = AddressTable(), _network("10.0.1.0/24", "10.0.1.128/31")
    assert [table.choose(network), table.choose(network, besides=[address_in("10.0.1.128") or 0])] == [
        "10.0.1.128/24",
        "10.0.1.129/24",
    ]
    assert table.choose(network, "10.0.1.7") == "10.0.1.7/24"
    table.hold(("task", "a"), [("net", "10.0.1.7/24")])
    for requested, reason in (
        ("10.0.1.7/24", "Address already in use"),
        ("10.0.1.0", "Address already in use"),
        ("10.0.2.7", "is in no subnet of network front"),
        ("web", "could not parse address string web"),
    ):
        with pytest.raises(NotAllocated, match=reason):
            table.choose(network, requested)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.lists(st.integers(0, 7), max_size=3)), max_size=20))
def test_a_table_holds_what_the_last_word_of_each_holder_says(words: list[tuple[str, list[int]]]) -> None:
    table = AddressTable()
    last: dict[str, list[int]] = {}
    for holder, numbers in words:
        before = {number for held in last.values() for number in held}
        last[holder] = numbers
        after = {number for held in last.values() for number in held}
        freed = table.hold(("task", holder), [("net", f"10.0.1.{number}/29") for number in numbers])
        assert bool(freed) == bool(before - after)
    fresh = AddressTable()
    for holder, numbers in last.items():
        fresh.hold(("task", holder), [("net", f"10.0.1.{number}/29") for number in numbers])
    assert fresh.state() == table.state()
    held = {number for numbers in last.values() for number in numbers}
    assert table.in_use("net") == len(held)
    assert [address for _, address, _ in table.shared()] == [
        f"10.0.1.{number}" for number in sorted(held) if sum(number in numbers for numbers in last.values()) > 1
    ]
    free = [number for number in range(1, 7) if number not in held]
    if free:
        chosen = address_in(table.choose(_network()))
        assert chosen is not None
        assert chosen - (167772416) in free
