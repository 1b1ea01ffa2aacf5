"""Network addresses as text."""

from __future__ import annotations

from typing import Any

import pytest

from swarm.address import at_host, host_of, ip_of, is_unspecified, join_host_port, parse_host_port, split_host_port


@pytest.mark.parametrize(
    ("addr", "found"),
    [
        ("10.0.0.1:5", ("10.0.0.1", "5")),
        ("[fd::1]:5", ("fd::1", "5")),
        ("eth0", None),
        ("fd::1", None),
        (":5", ("", "5")),
        ("10.0.0.1:", ("10.0.0.1", "")),
        ("[fd::1]", None),
        ("[fd::1", None),
    ],
)
def test_host_and_port_are_split_as_go_does(addr: str, found: Any) -> None:
    assert split_host_port(addr) == found


@pytest.mark.parametrize("host", ["10.0.0.1", "fd::1", "m1", ""])
def test_what_is_joined_comes_apart_again(host: str) -> None:
    addr = join_host_port(host, 2377)
    assert split_host_port(addr) == (host, "2377")
    assert parse_host_port(addr) == (host, 2377)
    assert host_of(addr) == host


@pytest.mark.parametrize("addr", ["", "2377", "10.0.0.1", "m1:", "m1:x", "m1:-1", "m1: 5", "m1:65536", "m1:\u0665"])
def test_an_address_without_a_usable_port_is_no_socket_address(addr: str) -> None:
    with pytest.raises(ValueError, match="is not an address with a port"):
        parse_host_port(addr)


def test_an_address_moves_to_another_host_with_its_port() -> None:
    assert at_host("fd::1", "0.0.0.0:2377") == "[fd::1]:2377"
    assert at_host("10.0.0.2", "[fd::1]:99") == "10.0.0.2:99"


def test_a_mapped_address_is_the_ipv4_address_that_it_stands_for() -> None:
    assert str(ip_of("::ffff:10.0.0.1")) == "10.0.0.1"
    assert str(ip_of("fd::1")) == "fd::1"
    assert ip_of("m1") is None


def test_nothing_and_the_zero_addresses_stand_for_all_addresses() -> None:
    assert all(is_unspecified(host) for host in ("", "0.0.0.0", "::"))
    assert not any(is_unspecified(host) for host in ("10.0.0.1", "::1", "m1"))
