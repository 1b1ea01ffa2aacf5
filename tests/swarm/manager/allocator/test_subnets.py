"""swarm.manager.allocator.subnets: what is free follows from what is held."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import api
from swarm.manager.allocator.subnets import NotAllocated, Pools, SubnetTable, VniTable, pools_of, vnis_of

_SMALL = Pools((IPv4Network("10.0.0.0/28"), IPv4Network("10.9.0.0/29")), 30)


def test_subnets_are_cut_from_the_pools_in_order_until_none_is_left() -> None:
    table, found = SubnetTable(), []
    for number in range(6):
        subnet = table.free(_SMALL)
        found.append(str(subnet))
        table.hold(f"n{number}", (subnet,))
    assert found == ["10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/30", "10.0.0.12/30", "10.9.0.0/30", "10.9.0.4/30"]
    with pytest.raises(NotAllocated, match=r"every /30 in 10\.0\.0\.0/28, 10\.9\.0\.0/29 is in use, by 6 networks"):
        table.free(_SMALL)
    table.hold("n2", ())
    assert str(table.free(_SMALL)) == "10.0.0.8/30"


def test_a_large_subnet_of_a_user_is_passed_over() -> None:
    table = SubnetTable()
    table.hold("mine", (IPv4Network("10.0.0.0/9"),))
    assert str(table.free(pools_of(None))) == "10.128.0.0/24"
    assert [network_id for _, network_id in table.overlaps(IPv4Network("10.1.2.0/24"))] == ["mine"]
    assert not list(table.overlaps(IPv4Network("10.128.0.0/9")))


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 63), st.integers(26, 32), st.booleans()), max_size=30)
)
def test_what_is_free_never_overlaps_with_what_is_held(steps: list[tuple[str, int, int, bool]]) -> None:
    table, held = SubnetTable(), {}
    for name, start, length, holds in steps:
        subnets = (IPv4Network((167772160 + start, length), strict=False),) if holds else ()
        table.hold(name, subnets)
        held[name] = subnets
    everything = [subnet for subnets in held.values() for subnet in subnets]
    pools = Pools((IPv4Network("10.0.0.0/26"),), 29)
    free = [one for one in pools.subnets[0].subnets(new_prefix=29) if not any(one.overlaps(two) for two in everything)]
    if free:
        assert table.free(pools) == free[0]
    else:
        with pytest.raises(NotAllocated):
            table.free(pools)
    for subnet in pools.subnets[0].subnets(new_prefix=29):
        assert sorted(name for _, name in table.overlaps(subnet)) == sorted(
            name for name, subnets in held.items() for one in subnets if one.overlaps(subnet)
        )


def test_the_pools_are_those_that_the_cluster_was_created_with() -> None:
    cluster = api.Cluster(defaultAddressPool=["172.30.0.0/16", "172.31.0.0/16"], subnetSize=26)
    assert pools_of(cluster) == Pools((IPv4Network("172.30.0.0/16"), IPv4Network("172.31.0.0/16")), 26)
    assert pools_of(api.Cluster()) == Pools((IPv4Network("10.0.0.0/8"),), 24)


def test_vnis_begin_at_4096_and_come_back_late() -> None:
    table = VniTable()
    assert table.choose((), 2) == (4096, 4097)
    table.hold("a", (4096, 4097))
    table.hold("a", ())
    assert table.choose((), 1) == (4098,)
    table.hold("last", ((1 << 24) - 1,))
    assert table.choose((), 1) == (4096,)


def test_a_vni_that_a_user_wants_is_given_once() -> None:
    table = VniTable()
    assert table.choose((77,), 2) == (77, 4096)
    table.hold("a", (77, 4096))
    with pytest.raises(NotAllocated, match="VXLAN ID 77 is already in use"):
        table.choose((77,), 1)
    with pytest.raises(NotAllocated, match="VXLAN ID 5 is already in use"):
        table.choose((5, 5), 2)


@pytest.mark.parametrize("text", ["x", "-1", "1,", "16777216", "٣"])
def test_an_option_that_is_no_list_of_vnis_is_refused(text: str) -> None:
    with pytest.raises(NotAllocated, match="is no VXLAN ID"):
        vnis_of({"com.docker.network.driver.overlay.vxlanid_list": text})
