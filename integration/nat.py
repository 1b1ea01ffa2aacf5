"""Address translation in front of a host of the lab: where its calls come from is not where it is to be found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from integration.lab import Host, Lab


@contextmanager
def nat(lab: Lab, behind: Host, other: Host) -> Iterator[None]:
    """The calls of a host come from a gateway, whose port 2377 leads to another host; its own is out of reach."""
    gateway, subnet = behind.ip.rpartition(".")[0] + ".78", behind.ip.rpartition(".")[0] + ".0/24"
    rules = (
        "add table inet lab; add chain inet lab in { type filter hook input priority -300; };"
        "add rule inet lab in iif != lo tcp dport 2377 reject with tcp reset;"
        "add chain inet lab pre { type nat hook prerouting priority -100; };"
        f"add rule inet lab pre ip daddr {gateway} tcp dport 2377 dnat ip to {other.ip}:2377;"
        "add chain inet lab post { type nat hook postrouting priority 100; };"
        f"add rule inet lab post ct status dnat ip daddr {other.ip} snat ip to {behind.ip}"
    )
    calls_from = ("ip", "route", "change", subnet, "dev", "eth0", "src")
    for command in (
        ("ip", "addr", "add", f"{gateway}/24", "dev", "eth0"),
        (*calls_from, gateway),
        ("iptables", "-I", "DOCKER-USER", "-j", "ACCEPT"),
        ("nft", rules),
    ):
        done = behind.inside(*command)
        assert not done.returncode, done.stderr
    try:
        yield
    finally:
        behind.inside("iptables", "-D", "DOCKER-USER", "-j", "ACCEPT")
        behind.inside(*calls_from, behind.ip)
        behind.inside("ip", "addr", "del", f"{gateway}/24", "dev", "eth0")
        lab.heal()
