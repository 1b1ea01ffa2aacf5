"""Counters of the daemon, from its start to its end, as plain numbers that collectors read.

Managers start and stop while the daemon runs, so the node owns the Counts and passes them to each manager.

(moby: daemon/metrics.go, swarmkit: manager/metrics)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Counts:
    """certificate_errors: connections of nodes whose certificate is not valid now, by whether it can still be renewed.

    renewals: attempts to renew this node's certificate, by "renewed" and "failed". external_ca: requests to external
    certificate authorities, by "answered", "refused" and "failed". unread_bytes: what readers in this process have not
    taken yet, of "streams" such as logs; it goes down as well. superseded_keys: calls with an old copy of a node's
    certificate that were refused, by the role in it.
    """

    certificate_errors: Counter[bool] = field(default_factory=Counter)
    renewals: Counter[str] = field(default_factory=Counter)
    external_ca: Counter[str] = field(default_factory=Counter)
    unread_bytes: Counter[str] = field(default_factory=Counter)
    superseded_keys: Counter[str] = field(default_factory=Counter)
