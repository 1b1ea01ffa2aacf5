"""/metrics on an address of its own."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from engine_api.config import ConfigError, host_and_port, load
from engine_api.server.metrics import registry_of, serve_metrics
from swarm.io.counts import Counts


async def shown(registry: CollectorRegistry) -> list[str]:
    runner = await serve_metrics("127.0.0.1:0", registry)
    try:
        _, port = runner.addresses[0]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain")
            return (await response.text()).splitlines()
    finally:
        await runner.cleanup()


async def test_what_is_counted_is_shown_whenever_somebody_asks() -> None:
    counts = Counts()
    registry = registry_of(counts, 1000.0)
    for times in (1.0, 2.0):
        counts.renewals["renewed"] += 1
        counts.certificate_errors[True] += 1
        counts.external_ca["refused"] += 1
        counts.superseded_keys["swarm-worker"] += 1
        lines = await shown(registry)
        assert f'sideswarm_superseded_certificates_total{{role="swarm-worker"}} {times}' in lines
        assert f'sideswarm_certificate_renewals_total{{outcome="renewed"}} {times}' in lines
        assert f'sideswarm_lapsed_certificates_total{{renewable="true"}} {times}' in lines
        assert f'sideswarm_external_ca_requests_total{{outcome="refused"}} {times}' in lines
        assert 'sideswarm_certificate_renewals_created{outcome="renewed"} 1000.0' in lines


async def test_what_was_never_counted_is_described_all_the_same() -> None:
    lines = await shown(registry_of(Counts(), 1000.0))
    for name in ("lapsed_certificates", "certificate_renewals", "external_ca_requests"):
        assert f"# TYPE sideswarm_{name}_total counter" in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    assert any(line.startswith("python_info{") for line in lines)


async def test_two_daemons_in_one_process_count_for_themselves() -> None:
    one, other = Counts(), Counts()
    one.renewals["failed"] += 1
    assert 'sideswarm_certificate_renewals_total{outcome="failed"} 1.0' in await shown(registry_of(one, 0.0))
    assert not any("outcome=" in line for line in await shown(registry_of(other, 0.0)))


async def test_an_address_that_is_taken_is_an_error_and_leaves_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="address already in use"):
            await serve_metrics(f"127.0.0.1:{taken.getsockname()[1]}", CollectorRegistry())


def test_the_address_is_checked_at_the_start() -> None:
    assert load(["--metrics-addr", "127.0.0.1:9323"], {}).metrics_addr == "127.0.0.1:9323"
    assert load([], {}).metrics_addr == ""
    assert host_and_port(":9323") == ("127.0.0.1", 9323)
    assert host_and_port("[::1]:9323") == ("::1", 9323)
    for wrong in ("9323", "host:", "host:port", "host:70000"):
        with pytest.raises(ConfigError, match="--metrics-addr must be ADDRESS:PORT"):
            load(["--metrics-addr", wrong], {})
