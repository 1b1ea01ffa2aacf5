"""Serves the metrics of this process in Prometheus' format on an address of their own (--metrics-addr, as in dockerd).

(moby: daemon/command/metrics.go)
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from engine_api.config import host_and_port


async def serve_metrics(addr: str) -> web.AppRunner:
    """Answer GET /metrics on "ADDRESS:PORT" until the runner is cleaned up. Raises OSError."""
    app = web.Application()
    app.router.add_get("/metrics", _metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = host_and_port(addr)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
