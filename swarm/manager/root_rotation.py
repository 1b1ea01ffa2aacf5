"""The cluster's root certificate: who signs now, when it must change, and a rotation seen through to its end.

Theory of operation. The user forces a rotation or gives another root (ClusterSpec.ca_config); update_root_ca then
puts the new root, its key, and its certificate cross-signed by the old key into Cluster.root_ca.root_rotation. From
then on node certificates are signed by the new key, while everybody still trusts the old root only. RootRotation asks
node after node for a new certificate (Certificate.status ROTATE), thirty at a time every three seconds. A node has
converged when its description says that the new root issued its certificate. When all have, the new root takes the
place of the old one and both join tokens change, as they name the root.

    no rotation --update_root_ca--> rotating --all nodes converged or removed--> no rotation
                                     └--another desired root: starts over; the old root again: abandoned

(swarmkit: ca/reconciler.go, manager/controlapi/ca_rotation.go)
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from certs.errors import CertsError, InvalidRoot
from certs.keys import new_private_key, normalize_pem
from certs.root import Issuer, RootCA, desired_root
from certs.tokens import new_join_token
from swarm import api, defaults
from swarm.errors import Code, Internal, InvalidArgument, SwarmError
from swarm.store.store import View
from swarm.store.tx import Tx

log = structlog.get_logger()

KeyMaker = Callable[[], ec.EllipticCurvePrivateKey]

_ON_THE_WAY = (api.IssuanceStatus.RENEW, api.IssuanceStatus.PENDING, api.IssuanceStatus.ROTATE)


def as_swarm_error(error: CertsError) -> SwarmError:
    """The same cause as callers of the cluster's services see it."""
    return SwarmError(error.message, Code(error.code))


def authority_of(root_ca: api.RootCA, deterministic: bool = False) -> RootCA:
    """Who signs node certificates now; without a key in the store it cannot sign. Raises CertsError."""
    if not root_ca.HasField("root_rotation"):
        return RootCA(root_ca.ca_cert, root_ca.ca_key, deterministic=deterministic)
    rotation = root_ca.root_rotation
    return RootCA(root_ca.ca_cert, rotation.ca_key, rotation.cross_signed_ca_cert, deterministic)


def issuer_of(root_ca: api.RootCA) -> Issuer:
    """Whom node certificates should name as their issuer: the new root during a rotation. Raises CertsError."""
    wanted = root_ca.root_rotation.ca_cert if root_ca.HasField("root_rotation") else root_ca.ca_cert
    return RootCA(wanted, None).issuer


def trusted_roots(known_pem: bytes, root_ca: api.RootCA) -> bytes:
    """Every root that a peer's certificate may lead to now: the one that this node knows, the cluster's, the next."""
    roots = (known_pem, root_ca.ca_cert, root_ca.root_rotation.ca_cert)
    return b"\n".join(dict.fromkeys(pem.strip() for pem in roots if pem)) + b"\n"


def issued_by(node: api.Node, issuer: Issuer) -> bool:
    """Whether a node says that ``issuer`` signed its certificate."""
    info = node.description.tls_info
    return (info.cert_issuer_subject, info.cert_issuer_public_key) == (issuer.subject_der, issuer.public_key_der)


def rotate_join_tokens(cluster: api.Cluster, tx: Tx, worker: bool = True, manager: bool = True) -> None:
    """New secrets for the join tokens of a cluster that is being edited."""
    tokens, bundle = cluster.root_ca.join_tokens, cluster.root_ca.ca_cert
    if worker:
        tokens.worker = new_join_token(bundle, tx.rng, cluster.fips)
    if manager:
        tokens.manager = new_join_token(bundle, tx.rng, cluster.fips)


# --- what the user wants -------------------------------------------------------------------------------------------


def update_root_ca(
    cluster: api.Cluster, now: float, new_key: KeyMaker = new_private_key, deterministic: bool = False
) -> None:
    """Bring root_ca of a cluster that is being edited in line with its spec.ca_config, starting a rotation if needed.

    Raises InvalidArgument with the texts that users know; the cluster is unchanged then.
    """
    try:
        _update_root_ca(cluster, now, new_key, deterministic)
    except CertsError as error:
        raise InvalidArgument(error.message) from error


def _update_root_ca(cluster: api.Cluster, now: float, new_key: KeyMaker, deterministic: bool) -> None:
    config, root_ca = cluster.spec.ca_config, cluster.root_ca
    wanted_cert, wanted_key = normalize_pem(config.signing_ca_cert), config.signing_ca_key
    if wanted_key and not wanted_cert:
        raise InvalidArgument("if a signing CA key is provided, the signing CA cert must also be provided")
    current_cert = normalize_pem(root_ca.ca_cert)
    adds_the_key = wanted_cert == current_cert and bool(wanted_key)
    if not root_ca.ca_key and not adds_the_key:
        raise _no_external("current")
    if not wanted_cert:
        if config.force_rotate != root_ca.last_forced_rotation:
            root = RootCA.create(now, new_key(), deterministic)
            _start_rotation(root_ca, root, config.force_rotate)
        elif root_ca.HasField("root_rotation") and not root_ca.root_rotation.ca_key:
            raise _no_external("next")
        return
    if adds_the_key and not root_ca.ca_key:
        root = RootCA(wanted_cert, wanted_key)
    else:
        root = desired_root(wanted_cert, wanted_key, now, deterministic)
    if not wanted_key:
        raise _no_external("desired")
    if wanted_cert == current_cert:
        root_ca.ca_key = wanted_key
        root_ca.ClearField("root_rotation")
        root_ca.last_forced_rotation = config.force_rotate
        return
    if wanted_key == root_ca.ca_key:
        raise InvalidRoot("Cannot update to a cert with an identical key")
    rotation = root_ca.root_rotation
    if root_ca.HasField("root_rotation") and normalize_pem(rotation.ca_cert) == wanted_cert:
        rotation.ca_key = wanted_key
        root_ca.last_forced_rotation = config.force_rotate
        return
    _start_rotation(root_ca, root, config.force_rotate)


def _no_external(which: str) -> InvalidRoot:
    return InvalidRoot(
        f"there must be at least one valid, reachable external CA corresponding to the {which} CA certificate"
    )


def _start_rotation(root_ca: api.RootCA, root: RootCA, forced: int) -> None:
    """Towards ``root``, from the root that is trusted now, whatever rotation was under way."""
    try:
        crossed = RootCA(root_ca.ca_cert, root_ca.ca_key).cross_sign(root.bundle_pem)
    except CertsError as error:
        raise Internal("unable to generate a cross-signed certificate for root rotation") from error
    rotation = api.RootRotation(
        ca_cert=root.bundle_pem, ca_key=root.key_pem or b"", cross_signed_ca_cert=normalize_pem(crossed)
    )
    root_ca.root_rotation.CopyFrom(rotation)
    root_ca.last_forced_rotation = forced


# --- seeing it through ---------------------------------------------------------------------------------------------


class RootRotation:
    """The part of the certificate stage that asks nodes to renew and ends the rotation; has the shape of a Stage."""

    def __init__(self, cluster_id: str) -> None:
        self._cluster_id = cluster_id
        self._target: Issuer | None = None
        self._unconverged: dict[str, None] = {}
        self._dirty: dict[str, None] = {}
        self._batch_due_s: float | None = None
        self._next_batch_s = 0.0

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
        """When the next nodes may be asked; None when there are none to ask."""
        return self._batch_due_s

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
        else:
            self._finish(tx)

    def _look(self, tx: Tx, target: Issuer) -> None:
        """Who has not converged yet: all nodes are looked at for a new target, then only those that changed."""
        if target != self._target:
            self._target, self._next_batch_s = target, tx.now
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
