"""What happens to certificates, counted since the daemon started, for /metrics.

(moby: daemon/metrics.go, swarmkit: manager/metrics)
"""

from __future__ import annotations

from prometheus_client import Counter

LAPSED = Counter(
    "sideswarm_lapsed_certificates",
    "Connections of nodes whose certificate had expired or was not valid yet, by whether it could still be renewed.",
    ["renewable"],
)
RENEWALS = Counter("sideswarm_certificate_renewals", "This node's attempts to renew its certificate.", ["outcome"])
EXTERNAL_CA = Counter("sideswarm_external_ca_requests", "Questions to external certificate authorities.", ["outcome"])
