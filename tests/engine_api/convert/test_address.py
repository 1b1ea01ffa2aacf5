"""Addresses of init and join: texts, defaults, and which address is advertised."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from engine_api.convert.address import (
    Endpoints,
    Interface,
    check_address_pool,
    check_data_path_port,
    check_listen_addr,
    check_remote_addrs,
    resolve_init,
    resolve_join,
    with_port,
)
from engine_api.errors import ApiError


def _interface(name: str, *addresses: str, **flags: bool) -> Interface:
    return Interface(name, tuple(ip_address(address) for address in addresses), **flags)


LOOPBACK = _interface("lo", "127.0.0.1", "::1", loopback=True)
ETH0 = _interface("eth0", "10.99.0.1", "fe80::1", device=True)


def _init(
    listen: str = "0.0.0.0:2377",
    advertise: str = "",
    data_path: str = "",
    interfaces: tuple[Interface, ...] = (LOOPBACK, ETH0),
    managed: tuple[str, ...] = (),
    default: str = "",
) -> Endpoints:
    return resolve_init(listen, advertise, data_path, interfaces, lambda: managed, default)


def test_a_missing_port_is_2377() -> None:
    assert with_port("10.0.0.1") == "10.0.0.1:2377"
    assert with_port("tcp://10.0.0.1:99") == "10.0.0.1:99"
    assert with_port("[fd::1]") == "[fd::1]:2377"
    assert with_port("10.0.0.1:") == "10.0.0.1:2377"
    assert check_remote_addrs(["m1"]) == ("m1:2377",)


def test_empty_addresses_are_refused() -> None:
    with pytest.raises(ApiError, match='invalid ListenAddr "": invalid empty address'):
        check_listen_addr("")
    with pytest.raises(ApiError, match="at least 1 RemoteAddr is required to join"):
        check_remote_addrs([])


def test_the_only_address_of_the_only_nic_is_advertised() -> None:
    found = _init()
    assert (found.advertise_host, found.advertise_port, found.local_addr) == ("10.99.0.1", "2377", "10.99.0.1")
    assert _init(listen="eth0:99").listen_host == "10.99.0.1"


def test_the_default_advertise_address_comes_before_the_guess() -> None:
    other = _interface("eth1", "10.98.0.1", device=True)
    assert _init(interfaces=(ETH0, other), default="eth1").advertise_host == "10.98.0.1"


def test_ipv4_wins_over_ipv6_on_one_interface() -> None:
    both = _interface("eth0", "2001:db8::1", "10.1.0.1", device=True)
    assert _init(interfaces=(both,)).advertise_host == "10.1.0.1"
    assert _init(advertise="eth0", interfaces=(both,)).advertise_host == "10.1.0.1"


def test_without_nics_other_interfaces_count_unless_the_engine_manages_their_subnet() -> None:
    veth = _interface("veth0", "10.5.0.2")
    bridge = _interface("docker0", "172.17.0.1")
    assert _init(interfaces=(LOOPBACK, bridge, veth), managed=("172.17.0.0/16",)).advertise_host == "10.5.0.2"
    with pytest.raises(ApiError, match=r"multiple addresses on different interfaces \(172.17.0.1 on docker0"):
        _init(interfaces=(bridge, veth))


def test_without_any_address_the_user_must_say_one() -> None:
    with pytest.raises(ApiError, match="could not find the system's IP address"):
        _init(interfaces=(LOOPBACK, _interface("eth0", "10.0.0.1", up=False, device=True)))


def test_an_address_of_another_machine_is_advertised_but_never_local() -> None:
    assert _init(advertise="192.0.2.1").local_addr == "10.99.0.1"
    with pytest.raises(ApiError, match="must specify a listening address"):
        _init(advertise="192.0.2.1", interfaces=(LOOPBACK,))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"listen": "nosuch0:2377"}, "listen address must be an IP address or network interface"),
        ({"advertise": "0.0.0.0"}, "advertise address must be a non-zero IP address or network interface"),
        ({"data_path": "10.0.0.1:5"}, "data path address must be a non-zero IP address or network interface"),
        ({"default": "nosuch0"}, "default advertise address must be a non-zero IP address"),
        ({"advertise": "lo"}, None),
    ],
)
def test_what_is_neither_an_interface_nor_an_address_is_refused(fields: dict[str, str], text: str | None) -> None:
    if text is None:
        assert _init(**fields).advertise_host == "127.0.0.1"  # type: ignore[arg-type]
    else:
        with pytest.raises(ApiError, match=text) as caught:
            _init(**fields)  # type: ignore[arg-type]
        assert caught.value.status == 400


def test_join_drops_an_advertise_address_that_does_not_resolve() -> None:
    found = resolve_join("0.0.0.0:2377", "nosuch0", "", (ETH0,))
    assert (found.advertise_host, found.local_addr) == ("", "")
    assert resolve_join("0.0.0.0:2377", "eth0:7", "", (ETH0,)).advertise_port == "7"


def test_pools_and_ports_outside_their_range_are_refused() -> None:
    check_address_pool(None, 99)
    check_address_pool(["10.20.0.0/16", " 10.20.1.0/24"], 25)
    for pool, size in ((["10.20.0.0/16"], 30), (["10.20.0.0/16"], 8), (["10.20.0.0"], 24), (["nope/8"], 24)):
        with pytest.raises(ApiError) as caught:
            check_address_pool(pool, size)
        assert caught.value.status == 500
    assert check_data_path_port(0) == 4789
    with pytest.raises(ApiError):
        check_data_path_port(1023)
