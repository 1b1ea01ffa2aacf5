"""The cluster's root certificate: who signs now, when the root must change, and how a rotation is completed.

Theory of operation. The user forces a rotation or provides another root (ClusterSpec.ca_config). update_root_ca then
puts the new root, its key, and its certificate cross-signed by the old key into Cluster.root_ca.root_rotation. From
then on the new key signs node certificates, while all nodes still trust only the old root. RootRotation tells the nodes
to renew their certificates (Certificate.status ROTATE), thirty at a time every three seconds. A node has converged when
its description says that the new root issued its certificate. When all have converged, the new root replaces the old
one, and both join tokens change, because they name the root. A node that is down keeps the rotation open until it comes
back or is removed; the log and `docker info` name such nodes.

    no rotation --update_root_ca--> rotating --all nodes converged or removed--> no rotation
                                     └--another desired root: starts over; the old root again: abandoned

(swarmkit: ca/reconciler.go, manager/controlapi/ca_rotation.go)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from certs import cfssl
from certs.errors import CertsError, ExternalUnusable, InvalidRoot
from certs.keys import new_private_key, normalize_pem
from certs.root import Issuer, RootCA, desired_root
from certs.tokens import new_join_token
from swarm import api, defaults
from swarm.api.enums import enum_name
from swarm.errors import Code, Internal, InvalidArgument, SwarmError
from swarm.manager.external_ca import Answers, Sign, urls_for
from swarm.store.store import View
from swarm.store.tx import Tx

log = structlog.get_logger()

KeyMaker = Callable[[], ec.EllipticCurvePrivateKey]

_NODES_SHOWN_MAX = 10
_ON_THE_WAY = (api.IssuanceStatus.RENEW, api.IssuanceStatus.PENDING, api.IssuanceStatus.ROTATE)


def as_swarm_error(error: CertsError) -> SwarmError:
    """The error that callers of the cluster's services see for this cause."""
    return SwarmError(error.message, Code(error.code))


def authority_of(root_ca: api.RootCA, deterministic: bool = False) -> RootCA:
    """The authority for node certificates now. Without a key in the store it cannot sign. Raises CertsError."""
    if not root_ca.HasField("root_rotation"):
        return RootCA(root_ca.ca_cert, root_ca.ca_key, deterministic=deterministic)
    rotation = root_ca.root_rotation
    return RootCA(root_ca.ca_cert, rotation.ca_key, rotation.cross_signed_ca_cert, deterministic)


def issuer_of(root_ca: api.RootCA) -> Issuer:
    """The issuer that node certificates should have: the new root during a rotation. Raises CertsError."""
    wanted = root_ca.root_rotation.ca_cert if root_ca.HasField("root_rotation") else root_ca.ca_cert
    return RootCA(wanted, None).issuer


def trusted_roots(known_pem: bytes, root_ca: api.RootCA) -> bytes:
    """All roots that a peer's certificate may lead to now: the one that this node knows, the cluster's and the next."""
    roots = (known_pem, root_ca.ca_cert, root_ca.root_rotation.ca_cert)
    return b"\n".join(dict.fromkeys(pem.strip() for pem in roots if pem)) + b"\n"


def issued_by(node: api.Node, issuer: Issuer) -> bool:
    """Whether a node says that ``issuer`` signed its certificate."""
    info = node.description.tls_info
    return (info.cert_issuer_subject, info.cert_issuer_public_key) == (issuer.subject_der, issuer.public_key_der)


def waited_for(root_ca: api.RootCA, nodes: Iterable[api.Node]) -> list[api.Node]:
    """The nodes without a certificate from the new root of the rotation. Raises CertsError."""
    target = issuer_of(root_ca)
    return [node for node in nodes if not issued_by(node, target)]


def rotate_join_tokens(cluster: api.Cluster, tx: Tx, worker: bool = True, manager: bool = True) -> None:
    """New secrets for the join tokens of a cluster that is being edited."""
    tokens, bundle = cluster.root_ca.join_tokens, cluster.root_ca.ca_cert
    if worker:
        tokens.worker = new_join_token(bundle, tx.rng, cluster.fips)
    if manager:
        tokens.manager = new_join_token(bundle, tx.rng, cluster.fips)


# --- what the user wants -------------------------------------------------------------------------------------------


def update_root_ca(
    cluster: api.Cluster,
    now: float,
    new_key: KeyMaker = new_private_key,
    deterministic: bool = False,
    answers: Answers | None = None,
) -> None:
    """Make root_ca of a cluster that is being edited match its spec.ca_config; start a rotation if needed.

    answers: the known answers of external authorities. Raises InvalidArgument or Internal with SwarmKit's texts, and
    Unanswered when an authority must be asked first; the cluster is unchanged then.
    """
    try:
        _RootUpdate(cluster, now, new_key, deterministic, answers or Answers()).run()
    except CertsError as error:
        raise InvalidArgument(error.message) from error


class _RootUpdate:
    """The root that the user wants, compared with the current one."""

    def __init__(
        self, cluster: api.Cluster, now: float, new_key: KeyMaker, deterministic: bool, answers: Answers
    ) -> None:
        self._config, self._root_ca = cluster.spec.ca_config, cluster.root_ca
        self._now, self._new_key, self._deterministic = now, new_key, deterministic
        self._answers = answers
        self._cert, self._key = normalize_pem(self._config.signing_ca_cert), self._config.signing_ca_key
        self._current_cert = normalize_pem(self._root_ca.ca_cert)

    def run(self) -> None:
        """See update_root_ca; the checks come in SwarmKit's order."""
        config, root_ca = self._config, self._root_ca
        if self._key and not self._cert:
            raise InvalidArgument("if a signing CA key is provided, the signing CA cert must also be provided")
        if not root_ca.ca_key:
            if self._cert == self._current_cert and self._key:
                self._keep_root(RootCA(self._cert, self._key))
                return
            self._require_external("current", self._current_cert)
        if not self._cert:
            if config.force_rotate != root_ca.last_forced_rotation:
                self._start_rotation(self._answers.new_root(self._make_root))
            elif root_ca.HasField("root_rotation") and not root_ca.root_rotation.ca_key:
                self._require_external("next", root_ca.root_rotation.ca_cert)
            return
        root = desired_root(self._cert, self._key, self._now, self._deterministic)
        if not self._key:
            self._require_external("desired", self._cert)
        rotation = root_ca.root_rotation
        if self._cert == self._current_cert:
            self._keep_root(root)
        elif self._key and self._key == root_ca.ca_key:
            raise InvalidRoot("Cannot update to a cert with an identical key")
        elif root_ca.HasField("root_rotation") and normalize_pem(rotation.ca_cert) == self._cert:
            rotation.ca_key = self._key
            root_ca.last_forced_rotation = config.force_rotate
        else:
            self._start_rotation(root)

    def _make_root(self) -> RootCA:
        return RootCA.create(self._now, self._new_key(), self._deterministic)

    def _keep_root(self, root: RootCA) -> None:
        """Keep the currently trusted root, with this key or, without a key, with external authorities."""
        self._root_ca.ca_key = root.key_pem or b""
        self._root_ca.ClearField("root_rotation")
        self._root_ca.last_forced_rotation = self._config.force_rotate

    def _require_external(self, which: str, root_pem: bytes) -> None:
        root_pem = normalize_pem(root_pem)
        urls = urls_for(self._config, root_pem, self._current_cert)
        if not self._answers.reachable(urls, root_pem):
            raise InvalidRoot(
                f"there must be at least one valid, reachable external CA corresponding to the {which} CA certificate"
            )

    def _start_rotation(self, root: RootCA) -> None:
        """Start a rotation from the currently trusted root to ``root``; it replaces any rotation in progress."""
        root_ca = self._root_ca
        if not root_ca.ca_key and not root.can_sign:
            raise InvalidRoot("rotating from one external CA to a different external CA is not supported")
        try:
            old = RootCA(root_ca.ca_cert, root_ca.ca_key)
            crossed = old.cross_sign(root.bundle_pem) if old.can_sign else self._crossed_outside(old, root)
        except CertsError as error:
            log.error("root_rotation.not_cross_signed", error=str(error))
            text = "unable to generate a cross-signed certificate for root rotation"
            raise Internal(text if root_ca.ca_key else f"{text}: {error}") from error
        rotation = api.RootRotation(
            ca_cert=root.bundle_pem, ca_key=root.key_pem or b"", cross_signed_ca_cert=normalize_pem(crossed)
        )
        root_ca.root_rotation.CopyFrom(rotation)
        root_ca.last_forced_rotation = self._config.force_rotate

    def _crossed_outside(self, old: RootCA, new: RootCA) -> bytes:
        urls = urls_for(self._config, old.bundle_pem, self._current_cert)
        outcome = self._answers.ask(Sign(urls, old.bundle_pem, f"cross {new.digest}", cfssl.cross_sign_request(new)))
        if outcome.error:
            raise ExternalUnusable(outcome.error)
        cfssl.check_cross_signed(outcome.certificate_pem, new, old)
        return outcome.certificate_pem


# --- seeing it through ---------------------------------------------------------------------------------------------


class RootRotation:
    """The part of the certificate stage that tells nodes to renew and ends the rotation; has the methods of a Stage."""

    def __init__(self, cluster_id: str) -> None:
        self._cluster_id = cluster_id
        self._target: Issuer | None = None
        self._unconverged: dict[str, None] = {}
        self._dirty: dict[str, None] = {}
        self._batch_due_s: float | None = None
        self._next_batch_s = 0.0
        self._report_s = 0.0

    def rebuild(self, view: View, now: float) -> None:
        """See Stage.rebuild."""
        self._target = None
        self._dirty.clear()
        self._batch_due_s = None
        self._next_batch_s = now

    def note(self, kind: str, object_id: str) -> None:
        """See Stage.note."""
        if kind == "node":
            self._dirty[object_id] = None

    def deadline(self) -> float | None:
        """When to tell the next nodes to renew, or to log the nodes it waits for; None without a rotation."""
        if self._target is None:
            return self._batch_due_s
        return self._report_s if self._batch_due_s is None else min(self._batch_due_s, self._report_s)

    def run(self, tx: Tx) -> None:
        """See Stage.run."""
        cluster = tx.get(api.Cluster, self._cluster_id)
        if cluster is None or not cluster.root_ca.HasField("root_rotation"):
            self._target, self._batch_due_s = None, None
            self._dirty.clear()
            return
        if not tx.room():
            self._batch_due_s = 0.0
            return
        self._look(tx, issuer_of(cluster.root_ca))
        if self._unconverged:
            self._ask(tx)
            self._report(tx)
        else:
            self._finish(tx)

    def _look(self, tx: Tx, target: Issuer) -> None:
        """Update the set of nodes that have not converged. A new target: check all nodes, later only changed ones."""
        if target != self._target:
            self._target, self._next_batch_s = target, tx.now
            self._report_s = tx.now + defaults.ROOT_ROTATION_REPORT_S
            self._unconverged = {node.id: None for node in tx.all(api.Node) if not issued_by(node, target)}
        for node_id in self._dirty:
            node = tx.get(api.Node, node_id)
            if node is None or issued_by(node, target):
                self._unconverged.pop(node_id, None)
            else:
                self._unconverged[node_id] = None
        self._dirty.clear()

    def _ask(self, tx: Tx) -> None:
        if tx.now < self._next_batch_s:
            self._batch_due_s = self._next_batch_s
            return
        asked = 0
        self._batch_due_s = None
        for node_id in self._unconverged:
            node = tx.get(api.Node, node_id)
            if node is None or node.certificate.status.state in _ON_THE_WAY:
                continue
            if asked == defaults.ROOT_ROTATION_BATCH_NODES or not tx.room():
                self._batch_due_s = tx.now + defaults.ROOT_ROTATION_PERIOD_S
                break
            tx.edit(api.Node, node_id).certificate.status.state = api.IssuanceStatus.ROTATE
            asked += 1
        if asked:
            self._next_batch_s = tx.now + defaults.ROOT_ROTATION_PERIOD_S

    def _report(self, tx: Tx) -> None:
        """Log periodically which nodes the rotation waits for."""
        if tx.now < self._report_s:
            return
        self._report_s = tx.now + defaults.ROOT_ROTATION_REPORT_S
        nodes = [node for node_id in self._unconverged if (node := tx.get(api.Node, node_id)) is not None]
        shown = [
            f"{node.description.hostname or node.id} ({enum_name(api.NodeStatus.State, node.status.state).lower()})"
            for node in nodes[:_NODES_SHOWN_MAX]
        ]
        log.warning("root_rotation.waiting", nodes=", ".join(shown), count=len(nodes))

    def _finish(self, tx: Tx) -> None:
        cluster = tx.edit(api.Cluster, self._cluster_id)
        old, rotation = cluster.root_ca, cluster.root_ca.root_rotation
        root = RootCA(rotation.ca_cert, rotation.ca_key)
        new = api.RootCA(
            ca_cert=root.bundle_pem,
            ca_key=rotation.ca_key,
            ca_cert_hash=f"sha256:{root.digest}",
            last_forced_rotation=old.last_forced_rotation,
        )
        cluster.root_ca.CopyFrom(new)
        rotate_join_tokens(cluster, tx)
        self._target, self._batch_due_s = None, None
        log.info("root_rotation.completed", cluster=cluster.id, digest=root.digest)
