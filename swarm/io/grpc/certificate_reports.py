"""Logs nodes that connect with a certificate that is not valid now, without flooding the log.

Such a node connects again every few seconds until it has a valid certificate, perhaps for ever.
"""

from __future__ import annotations

from collections import Counter

import structlog

from swarm import defaults
from swarm.rpc import Peer

log = structlog.get_logger()


class CertificateErrorReports:
    """Counts every connection, logs a node's first one and then one a minute."""

    def __init__(self, counted: Counter[bool]) -> None:
        """counted: by whether the certificate can be renewed."""
        self._counted = counted
        self._reported: dict[tuple[str, bool], float] = {}

    def report(self, peer: Peer, now: float) -> None:
        """``peer`` connected with a certificate that is not valid now. now: the loop's clock, in seconds."""
        self._counted[peer.renewable] += 1
        key = (peer.node_id, peer.renewable)
        if now - self._reported.get(key, -defaults.CERTIFICATE_ERROR_REPORT_S) < defaults.CERTIFICATE_ERROR_REPORT_S:
            return
        self._reported.pop(key, None)
        self._reported[key] = now
        while len(self._reported) > defaults.CERTIFICATE_ERROR_NODES_MAX:
            del self._reported[next(iter(self._reported))]
        event = "certificate.expired" if peer.renewable else "certificate.refused"
        log.warning(event, node=peer.node_id, role=peer.role, peer=peer.addr, error=peer.certificate_error)
