"""/metrics on an address of its own."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from engine_api.config import ConfigError, host_and_port, load
from engine_api.server.metrics import serve_metrics
from swarm.io import counters


async def test_what_is_counted_is_shown() -> None:
    counters.RENEWALS.labels(outcome="renewed").inc()
    runner = await serve_metrics("127.0.0.1:0")
    try:
        _, port = runner.addresses[0]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain")
            text = await response.text()
        assert 'sideswarm_certificate_renewals_total{outcome="renewed"}' in text
        assert "sideswarm_lapsed_certificates" in text
        assert "sideswarm_external_ca_requests" in text
    finally:
        await runner.cleanup()


async def test_an_address_that_is_taken_is_an_error_and_leaves_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="address already in use"):
            await serve_metrics(f"127.0.0.1:{taken.getsockname()[1]}")


def test_the_address_is_checked_at_the_start() -> None:
    assert load(["--metrics-addr", "127.0.0.1:9323"], {}).metrics_addr == "127.0.0.1:9323"
    assert load([], {}).metrics_addr == ""
    assert host_and_port(":9323") == ("127.0.0.1", 9323)
    assert host_and_port("[::1]:9323") == ("::1", 9323)
    for wrong in ("9323", "host:", "host:port", "host:70000"):
        with pytest.raises(ConfigError, match="--metrics-addr must be ADDRESS:PORT"):
            load(["--metrics-addr", wrong], {})
