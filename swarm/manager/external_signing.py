"""Node certificates signed by external authorities: which nodes wait for one, and when to ask the authority again.

Theory of operation. While the spec has servers for the current signing root, the certificate stage ignores requests and
this service sends them to the servers, a few at a time. A valid answer is written to the node if its request is still
the same; a refusal fails the request. While no server can be reached, the requests stay as they are, and only one of
them is tried again, after a pause that doubles each time. So an authority that comes back gets one request, not
thousands.

    RENEW, PENDING --Ask--> asked --signed--> ISSUED
         ^                    |├----refused--> FAILED
         └--------pause-------┘

(swarmkit: ca/server.go signNodeCert)
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import structlog
from google.protobuf.message import Message

from certs import cfssl
from certs.errors import CertsError
from certs.keys import normalize_pem
from certs.root import RootCA
from swarm import api, defaults
from swarm.errors import SwarmError
from swarm.manager import node_keys
from swarm.manager.certificates import ROLE_NAMES, role_to_sign, wants_signature
from swarm.manager.external_ca import Outcome, Sign, signing_urls
from swarm.manager.root_rotation import trusted_roots
from swarm.manager.service import Ask, Effect, Event, Write
from swarm.manager.standing import note_signed
from swarm.store.store import Change, View
from swarm.store.tx import Tx

log = structlog.get_logger()


class ExternalSigning:
    """A Service without RPC methods: it acts on committed changes."""

    methods: frozenset[str] = frozenset()

    def __init__(self, view: View, cluster_id: str, rng: Random, now: float) -> None:
        self._view = view
        self._cluster_id = cluster_id
        self._rng = rng
        self._waiting = {node.id: None for node in view.all(api.Node) if wants_signature(node)}
        self._asked: dict[str, None] = {}
        self._failures = 0
        self._resume_s = now
        self._reason = ""
        self._urls: tuple[str, ...] = ()
        self._root_ca = api.RootCA()
        self._look_at_cluster(now)

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Never called with a call: this service has no RPC methods."""
        return ()

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """Note which nodes request a certificate, and ask the authorities."""
        for change in changes:
            if change.kind == "node":
                node = change.after
                if isinstance(node, api.Node) and wants_signature(node):
                    self._waiting[change.object_id] = None
                else:
                    self._waiting.pop(change.object_id, None)
            elif change.kind == "cluster" and change.object_id == self._cluster_id:
                self._look_at_cluster(now)
        return self._ask(now)

    def wake(self, now: float) -> Sequence[Effect]:
        """A pause has ended."""
        return self._ask(now)

    def deadline(self) -> float | None:
        """When the next request is due; None if there is none, or while the limit of open requests is reached."""
        idle = [node_id for node_id in self._waiting if node_id not in self._asked] if self._urls else ()
        return self._resume_s if idle and len(self._asked) < self._limit else None

    def stalled(self, missed_s: float, now: float) -> None:
        """See Service.stalled: it judges nobody by time."""

    def stop(self) -> Sequence[Effect]:
        """Forget everything; the next leader asks again."""
        return ()

    @property
    def _limit(self) -> int:
        return 1 if self._failures else defaults.EXTERNAL_CA_REQUESTS_MAX

    def _look_at_cluster(self, now: float) -> None:
        """When the servers or the root have changed, ask at once."""
        cluster = self._view.get(api.Cluster, self._cluster_id)
        root_ca = cluster.root_ca if cluster is not None else api.RootCA()
        urls = signing_urls(cluster.spec.ca_config, root_ca) if cluster is not None else ()
        if (urls, root_ca) != (self._urls, self._root_ca):
            self._failures, self._resume_s, self._reason = 0, now, ""
            self._urls, self._root_ca = urls, api.RootCA()
            self._root_ca.CopyFrom(root_ca)

    def _ask(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if not self._urls or now < self._resume_s:
            return effects
        for node_id in list(self._waiting):
            if len(self._asked) >= self._limit:
                break
            node = self._view.get(api.Node, node_id)
            if node is None or not wants_signature(node):
                del self._waiting[node_id]
            elif node_id not in self._asked:
                self._asked[node_id] = None
                effects.append(self._question(node))
        return effects

    def _question(self, node: api.Node) -> Ask:
        certificate, root_ca = node.certificate, self._root_ca
        role = ROLE_NAMES.get(role_to_sign(node), "")
        body = cfssl.node_request(certificate.csr, certificate.cn, role, self._cluster_id)
        roots = trusted_roots(b"", root_ca)
        return Ask(
            Sign(self._urls, roots, f"node {node.id}", body),
            lambda outcome, now: self._answered(node, role, root_ca, outcome, now),
        )

    def _answered(
        self, node: api.Node, role: str, root_ca: api.RootCA, outcome: Outcome, now: float
    ) -> Sequence[Effect]:
        self._waiting.pop(node.id, None)  # to the end of the line
        self._waiting[node.id] = None
        if outcome.error and not outcome.refused:
            del self._asked[node.id]
            if root_ca == self._root_ca:
                self._pause(outcome.error, now)
            return self._ask(now)
        if self._failures:
            log.info("external_ca.usable_again")
        self._failures, self._resume_s, self._reason = 0, now, ""
        chain, error = b"", outcome.error
        if not error:
            chain = normalize_pem(outcome.certificate_pem) + root_ca.root_rotation.cross_signed_ca_cert
            try:
                trust = RootCA(root_ca.ca_cert, None)
                csr, cn = node.certificate.csr, node.certificate.cn
                cfssl.check_node_certificate(chain, csr, cn, role, self._cluster_id, trust, now)
            except CertsError as problem:
                error = str(problem)
        return [self._settle(node, role, chain, error), *self._ask(now)]

    def _pause(self, reason: str, now: float) -> None:
        doubled_s = defaults.EXTERNAL_CA_RETRY_BASE_S * 2 ** min(self._failures, 20)
        pause_s = min(defaults.EXTERNAL_CA_RETRY_MAX_S, doubled_s) * self._rng.uniform(0.5, 1.0)
        self._failures += 1
        self._resume_s = now + pause_s
        if reason != self._reason:
            self._reason = reason
            log.error("external_ca.unusable", error=reason, waiting=len(self._waiting), retry_s=round(pause_s, 1))

    def _settle(self, node: api.Node, role: str, chain: bytes, error: str) -> Write:
        """Write the certificate or the refusal, if the node's request is still the one that was answered."""
        asked = node.certificate

        def run(tx: Tx) -> Message | None:
            current = tx.get(api.Node, node.id)
            cluster = tx.get(api.Cluster, self._cluster_id)
            if current is None or cluster is None or not wants_signature(current):
                return None
            if (current.certificate.csr, role_to_sign(current)) != (asked.csr, role_to_sign(node)):
                return None
            edited = tx.edit(api.Node, node.id)
            certificate = edited.certificate
            certificate.role = role_to_sign(edited)
            certificate.status.Clear()
            if error:
                certificate.status.state = api.IssuanceStatus.FAILED
                certificate.status.err = error
                log.warning("certificate.failed", node=node.id, error=error)
            else:
                certificate.certificate = chain
                certificate.status.state = api.IssuanceStatus.ISSUED
                node_keys.issued(edited, chain)
                note_signed(edited)
                log.info("certificate.issued", node=node.id, role=role, by="external CA")
            return None

        def done(_: Message | None, __: SwarmError | None) -> Sequence[Effect]:
            self._asked.pop(node.id, None)
            return ()

        return Write(run, done=done)
