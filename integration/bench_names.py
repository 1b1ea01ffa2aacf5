"""What names cost: ``python -m integration.bench_names``. Medians; the loop of the daemon pays for all of it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

from overlay.dns_answers import respond
from overlay.model import Endpoint, NetworkState, Readiness, Service
from overlay.names import Names
from tests.overlay.book import network, task
from tests.overlay.dns_messages import question

SERVICES = 10_000
QUERIES = 20_000
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


def copying(state: NetworkState) -> float:
    """Milliseconds of what the caller does to make a changed state."""
    return median_ms(lambda _: dict(state.services))


def ask_often(wire: bytes, names: Names, source: random.Random, _: int) -> None:
    """The same query again and again."""
    for _ in range(QUERIES):
        respond(wire, "net", CLIENT, names, source, tcp=False)


if __name__ == "__main__":
    main()
