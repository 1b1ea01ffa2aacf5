"""What names cost: ``python -m integration.bench_names``, as root. Medians; the daemon's loop pays for all of it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

from integration.overlay_client import CLIENT_TIMEOUT_S, Bridged
from overlay.dns_answers import respond
from overlay.io.resolver import Resolver
from overlay.model import Endpoint, NetworkState, Readiness, Service
from overlay.names import Names
from tests.overlay.book import network, task
from tests.overlay.dns_messages import question

SERVICES = 10_000
QUERIES, SOCKET_QUERIES = 20_000, 2_000
ROUNDS = 7
CLIENT = IPv4Address("10.0.0.2")
BASE = int(IPv4Address("10.1.0.0"))


def large() -> NetworkState:
    """A network with 10,000 services of one task each, and one service of 100 tasks."""
    services, endpoints = {}, {}
    for number in range(SERVICES):
        name = f"service{number}"
        services[name] = Service(name, name, IPv4Address(BASE + 2 * number), (f"alias{number}",))
        address = IPv4Address(BASE + 2 * number + 1)
        endpoints[f"t{number}"] = Endpoint(f"t{number}", "n1", address, Readiness.READY, name, f"{name}.1.t{number}")
    services["rr"] = Service("rr", "rr")
    for number in range(100):
        address = IPv4Address(BASE + 2 * SERVICES + number)
        endpoints[f"rr{number}"] = Endpoint(f"rr{number}", "n1", address, Readiness.READY, "rr", f"rr.{number}.x")
    endpoints["me"] = task("me", str(CLIENT))
    return replace(network("net", name="front"), services=services, endpoints=endpoints)


def median_ms(work: Callable[[int], object]) -> float:
    """Of some runs of the work, which is given the number of the run."""
    times = []
    for number in range(ROUNDS):
        begin = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1_000


def main() -> None:
    """Measure and print."""
    state, names, source = large(), Names(), random.Random(1)
    print(f"index of {SERVICES:,} services: {median_ms(lambda _: Names().replace({'net': state})):.1f} ms")
    names.replace({"net": state})

    def change(number: int) -> None:
        changed = replace(state.services["service7"], aliases=(f"new{number}",))
        names.replace({"net": replace(state, services={**state.services, "service7": changed})})

    print(f"one service changes: {median_ms(change):.2f} ms (of it copying the map: {copying(state):.2f} ms)")
    for label, wire in (
        ("virtual address", question("service77")),
        ("with the network's name, EDNS", question("service77.front", udp_bytes=1_232)),
        ("100 tasks, 30 fit", question("rr")),
        ("not ours, to be passed on", question("example.org")),
    ):
        one_ms = median_ms(partial(ask_often, wire, names, source))
        print(f"{label}: {QUERIES / one_ms * 1_000:,.0f} answers/s")
    print(f"through the sockets, one client after its last answer: {asyncio.run(by_socket(state)):,.0f} queries/s")


async def by_socket(state: NetworkState) -> float:
    """Queries/s of a container that asks one after the other, in namespaces."""
    bridged, resolver = Bridged(f"bench{os.getpid()}", ["10.0.0.1/24"], [f"{CLIENT}/24"]), Resolver()
    try:
        resolver.know({"net": state})
        await resolver.open("net", bridged.overlay, [IPv4Address("10.0.0.1")])
        return await bridged.inside(_one_after_the_other)
    finally:
        await resolver.close()
        bridged.close()


def _one_after_the_other() -> float:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(CLIENT_TIMEOUT_S)
        sock.connect(("10.0.0.1", 53))
        begin = time.perf_counter()
        for number in range(SOCKET_QUERIES):
            sock.send(question(f"service{number}"))
            sock.recv(4_096)
        return SOCKET_QUERIES / (time.perf_counter() - begin)


def copying(state: NetworkState) -> float:
    """Milliseconds of what the caller does to make a changed state."""
    return median_ms(lambda _: dict(state.services))


def ask_often(wire: bytes, names: Names, source: random.Random, _: int) -> None:
    """The same query again and again."""
    for _ in range(QUERIES):
        respond(wire, "net", CLIENT, names, source, tcp=False)


if __name__ == "__main__":
    main()
