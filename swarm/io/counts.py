"""What the daemon counts from its start to its end, as plain numbers; whoever shows them reads them here.

Managers come and go while it runs, so the Counts are made by the node and handed to each of them.

(moby: daemon/metrics.go, swarmkit: manager/metrics)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Counts:
    """certificate_errors: connections of nodes whose certificate is not valid now, by whether it can still be renewed.

    renewals: attempts to renew this node's certificate, by "renewed" and "failed". external_ca: requests to external
    certificate authorities, by "answered", "refused" and "failed".
    """

    certificate_errors: Counter[bool] = field(default_factory=Counter)
    renewals: Counter[str] = field(default_factory=Counter)
    external_ca: Counter[str] = field(default_factory=Counter)
