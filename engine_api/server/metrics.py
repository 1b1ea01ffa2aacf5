"""Serves the metrics of this process in Prometheus' format on an address of their own (--metrics-addr, as in dockerd).

Nothing is registered where it is counted: collectors read plain numbers at each request. A part with more metrics, such
as a manager's status, gets its own collector, registered in registry_of().

(moby: daemon/command/metrics.go, daemon/metrics.go)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine_api.config import host_and_port
from swarm.io.counts import Counts


class NodeCollector(Collector):
    """Exports a node's Counts. started_s: when counting began, in seconds since the epoch."""

    def __init__(self, counts: Counts, started_s: float) -> None:
        self._counts = counts
        self._started_s = started_s

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        counts = self._counts
        yield self._family(
            "sideswarm_lapsed_certificates",
            "Connections of nodes whose certificate had expired or was not valid yet, by whether it could still be "
            "renewed.",
            "renewable",
            {str(renewable).lower(): count for renewable, count in counts.certificate_errors.items()},
        )
        yield self._family(
            "sideswarm_certificate_renewals",
            "This node's attempts to renew its certificate.",
            "outcome",
            counts.renewals,
        )
        yield self._family(
            "sideswarm_external_ca_requests",
            "Questions to external certificate authorities.",
            "outcome",
            counts.external_ca,
        )
        yield self._family(
            "sideswarm_superseded_certificates",
            "Refused calls with an old copy of a node's certificate, by the role in it.",
            "role",
            counts.superseded_keys,
        )

        unread = GaugeMetricFamily(
            "sideswarm_unread_bytes", "What readers in this process have not taken yet.", labels=["of"]
        )
        unread.add_metric(["streams"], counts.unread_bytes["streams"])
        yield unread

    def _family(self, name: str, text: str, label: str, counted: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=[label])
        for value, count in counted.items():
            family.add_metric([value], count, created=self._started_s)
        return family


def registry_of(counts: Counts, started_s: float) -> CollectorRegistry:
    """All metrics of this daemon; see NodeCollector."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(NodeCollector(counts, started_s))
    return registry


async def serve_metrics(addr: str, registry: CollectorRegistry) -> web.AppRunner:
    """Answer GET /metrics on "ADDRESS:PORT" until the runner is cleaned up. Raises OSError."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", show)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = host_and_port(addr)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
