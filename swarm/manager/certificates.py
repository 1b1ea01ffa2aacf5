"""The certificate authority of a leader: the service for joining and renewing nodes, and the stage that signs.

Theory of operation. A node sends a CSR (IssueNodeCertificate). If it has a certificate of this cluster, its Node object
gets the CSR and the state RENEW. If it has a join token, a new Node object is created with the state PENDING; the only
other Node object is the one created with the cluster. CertificateStage signs both in the same pass, unless external
authorities sign for the current root (swarm/manager/external_signing.py). Meanwhile the node waits for the outcome
(NodeCertificateStatus), which is answered as soon as it is committed:

    PENDING, RENEW --signed--> ISSUED --root rotation--> ROTATE --node asks--> RENEW
           └--the CSR is unfit--> FAILED

ROTATE asks the node to renew. Its certificate is still valid, and there is no new CSR to sign yet.

(swarmkit: ca/server.go)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import structlog
from google.protobuf.message import Message

from certs.errors import CertsError, InvalidCertificate
from certs.keys import MANAGER_ROLE, WORKER_ROLE, load_csr
from certs.root import RootCA
from certs.tokens import same_token
from swarm import api, defaults
from swarm.api import rpc
from swarm.api.timestamps import seconds
from swarm.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SwarmError,
)
from swarm.log_limiter import LogLimiter
from swarm.manager import node_keys
from swarm.manager.external_ca import signing_urls
from swarm.manager.root_rotation import RootRotation, as_swarm_error, authority_of
from swarm.manager.service import Effect, Event, Write
from swarm.manager.stage import DUE_NOW
from swarm.manager.standing import newest_begins, note_certificate, note_signed
from swarm.rpc import Call, Peer, Reply, StreamEnd
from swarm.store.store import Change, View
from swarm.store.tx import Tx

log = structlog.get_logger()

_STATES_FINAL = (api.IssuanceStatus.ISSUED, api.IssuanceStatus.FAILED, api.IssuanceStatus.ROTATE)
ROLE_NAMES = {api.MANAGER: MANAGER_ROLE, api.WORKER: WORKER_ROLE}
_ID_COLLISIONS_MAX = 3
NO_MORE_MANAGERS = (
    f"the swarm already has {defaults.MANAGERS_MAX} managers, which is the maximum; join as a worker, with the command "
    'that "docker swarm join-token worker" prints on a manager'
)
NO_TOKEN = "A valid join token is necessary to join this cluster"
_UNLOCK_SUBSYSTEM = MANAGER_ROLE


def node_cert_expiry_s(spec: api.ClusterSpec) -> float:
    """The validity of new node certificates in seconds."""
    return seconds(spec.ca_config.node_cert_expiry) or defaults.NODE_CERT_EXPIRY_S


def is_blacklisted(view: View, cluster_id: str, node_id: str) -> bool:
    """Whether a node was removed from the cluster, so that its certificate is no longer accepted."""
    cluster = view.get(api.Cluster, cluster_id)
    return cluster is not None and node_id in cluster.blacklisted_certificates


# --- the service ---------------------------------------------------------------------------------------------------


class CertificateAuthority:
    """A Service: CA and NodeCA."""

    methods = frozenset(
        {
            rpc.GET_ROOT_CA_CERTIFICATE.name,
            rpc.GET_UNLOCK_KEY.name,
            rpc.ISSUE_NODE_CERTIFICATE.name,
            rpc.NODE_CERTIFICATE_STATUS.name,
        }
    )

    def __init__(
        self,
        view: View,
        cluster_id: str,
        may_grow: Callable[[], bool] = lambda: True,
        refused_keys: Counter[str] | None = None,
    ) -> None:
        """may_grow: whether the Raft group accepts another manager; if not, manager tokens are refused.

        refused_keys: see KeyGuard.
        """
        self._view = view
        self._cluster_id = cluster_id
        self._may_grow = may_grow
        self._waiting: dict[str, dict[int, None]] = {}
        self._node_of: dict[int, str] = {}
        self._log_limiter = LogLimiter()
        self._key_guard = node_keys.KeyGuard(refused_keys)

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """See Service.handle."""
        if isinstance(event, StreamEnd):
            self._forget(event.stream)
        if not isinstance(event, Call):
            return ()
        try:
            return self._answer(event, now)
        except SwarmError as error:
            return (StreamEnd(event.stream, error),)

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """Answer the waiting nodes whose certificate is now issued or refused."""
        effects: list[Effect] = []
        for change in changes:
            if change.kind != "node" or change.object_id not in self._waiting:
                continue
            node = change.after
            assert node is None or isinstance(node, api.Node)
            if node is not None and node.certificate.status.state not in _STATES_FINAL:
                continue
            for stream in list(self._waiting[change.object_id]):
                self._forget(stream)
                effects.append(Reply(stream, _status(node)) if node else StreamEnd(stream, NotFound("NotFound")))
        return effects

    def wake(self, now: float) -> Sequence[Effect]:
        """Never called: there is no deadline."""
        return ()

    def deadline(self) -> float | None:
        """See Service.deadline."""
        return None

    def stalled(self, missed_s: float, now: float) -> None:
        """See Service.stalled: it judges nobody by time."""

    def stop(self) -> Sequence[Effect]:
        """End the calls of waiting nodes: they must ask another manager."""
        streams = list(self._node_of)
        self._waiting.clear()
        self._node_of.clear()
        return [StreamEnd(stream, Aborted("CA signer is stopped")) for stream in streams]

    def _answer(self, call: Call, now: float) -> Sequence[Effect]:
        match call.request:
            case api.GetRootCACertificateRequest():
                root_ca = _cluster(self._view, self._cluster_id).root_ca
                return (Reply(call.stream, api.GetRootCACertificateResponse(certificate=root_ca.ca_cert)),)
            case api.GetUnlockKeyRequest():
                self._check_key(call.peer, now)
                return (Reply(call.stream, self._unlock_key()),)
            case api.NodeCertificateStatusRequest() as request:
                return self._certificate_status(call, request)
            case api.IssueNodeCertificateRequest() as request:
                return (self._issue(call.stream, request, call.peer, now),)
            case _:
                raise InvalidArgument("InvalidArgument")

    def _unlock_key(self) -> api.GetUnlockKeyResponse:
        cluster = _cluster(self._view, self._cluster_id)
        response = api.GetUnlockKeyResponse(version=cluster.meta.version)
        if cluster.spec.encryption_config.auto_lock_managers:
            keys = (key.key for key in cluster.unlock_keys if key.subsystem == _UNLOCK_SUBSYSTEM)
            response.unlock_key = next(keys, b"")
        return response

    def _certificate_status(self, call: Call, request: api.NodeCertificateStatusRequest) -> Sequence[Effect]:
        if not request.node_id:
            raise InvalidArgument("InvalidArgument")
        node = self._view.get(api.Node, request.node_id)
        if node is None:
            raise NotFound("NotFound")
        self._check_reader(node, call.peer)
        if node.certificate.status.state in _STATES_FINAL:
            if call.peer.node_id == node.id and node_keys.is_news(node, call.peer):
                return (_note_key(call, node.id),)
            return (Reply(call.stream, _status(node)),)
        if len(self._node_of) >= defaults.CERTIFICATE_WAITERS_MAX:
            raise ResourceExhausted("too many nodes are waiting for certificates")
        self._waiting.setdefault(node.id, {})[call.stream] = None
        self._node_of[call.stream] = node.id
        return ()

    def _check_reader(self, node: api.Node, peer: Peer) -> None:
        """Who may see a node's certificate and role: the node, managers, and a joiner, which has no certificate yet.

        A node that was seen to use its certificate is no joiner any more. Raises PermissionDenied.
        """
        reader = self._view.get(api.Node, peer.node_id) if peer.node_id else None
        known = reader is None or node_keys.standing(reader, peer) is not node_keys.Standing.SUPERSEDED
        if peer.local or not node.authority.key or (known and peer.role == MANAGER_ROLE):
            return
        if peer.node_id != node.id or not known:
            raise PermissionDenied(f"Permission denied: only node {node.id} and managers may ask for its certificate")

    def _check_key(self, peer: Peer, now: float) -> None:
        node = self._view.get(api.Node, peer.node_id) if peer.node_id else None
        if node is not None:
            self._key_guard.check(node, peer, now)

    def _forget(self, stream: int) -> None:
        node_id = self._node_of.pop(stream, None)
        if node_id is not None:
            streams = self._waiting[node_id]
            del streams[stream]
            if not streams:
                del self._waiting[node_id]

    def _issue(self, stream: int, request: api.IssueNodeCertificateRequest, peer: Peer, now: float) -> Write:
        if not request.csr:
            raise InvalidArgument("InvalidArgument")
        cluster = _cluster(self._view, self._cluster_id)
        if not _is_member(peer, cluster) and _role_of(request.token, cluster) is None:
            # the pass checks the token again; this check means that a guessed token costs no pass
            times = self._log_limiter.times(peer.host, now)
            if times:
                log.warning("certificate.token_refused", peer=peer.host, times=times)
            raise InvalidArgument(NO_TOKEN)
        if _is_member(peer, cluster):
            self._check_key(peer, now)  # the pass checks it again

        def run(tx: Tx) -> Message:
            cluster = _cluster(tx, self._cluster_id)
            if _is_member(peer, cluster):
                return _renew(tx, peer, request.csr)
            return _join(tx, cluster, request, self._may_grow())

        return Write(run, stream)


def _cluster(view: View, cluster_id: str) -> api.Cluster:
    cluster = view.get(api.Cluster, cluster_id)
    if cluster is None or not cluster.root_ca.join_tokens.manager:
        raise Aborted("CA signer is still starting")
    return cluster


def _is_member(peer: Peer, cluster: api.Cluster) -> bool:
    """Whether the caller's identity is proved: by a certificate, by its own process or by a forwarding manager."""
    if not peer.node_id or peer.node_id in cluster.blacklisted_certificates:
        return False
    if peer.forwarder and peer.forwarder in cluster.blacklisted_certificates:
        return False
    return peer.local or (peer.org == cluster.id and peer.role in (WORKER_ROLE, MANAGER_ROLE))


def _renew(tx: Tx, peer: Peer, csr: bytes) -> api.IssueNodeCertificateResponse:
    known = tx.get(api.Node, peer.node_id)
    if known is None:
        raise NotFound(f"node {peer.node_id} not found when attempting to renew certificate")
    node_keys.check(known, peer)
    _check_csr(csr)
    node = tx.edit(api.Node, peer.node_id)
    note_certificate(node)
    certificate = api.Certificate(role=node_keys.role_for(node, peer), csr=csr, cn=node.id)
    certificate.status.state = api.IssuanceStatus.RENEW
    node_keys.seen(node, peer)
    node_keys.remember(node)
    node.certificate.CopyFrom(certificate)
    return api.IssueNodeCertificateResponse(node_id=node.id, node_membership=node.spec.membership)


def _note_key(call: Call, node_id: str) -> Write:
    """A node says that it has its certificate: older keys are superseded."""

    def run(tx: Tx) -> Message:
        if tx.get(api.Node, node_id) is None:
            raise NotFound("NotFound")
        node = tx.edit(api.Node, node_id)
        node_keys.seen(node, call.peer)
        return _status(node)

    return Write(run, call.stream)


def _join(
    tx: Tx, cluster: api.Cluster, request: api.IssueNodeCertificateRequest, may_grow: bool
) -> api.IssueNodeCertificateResponse:
    role = _role_of(request.token, cluster)
    if role is None:
        raise InvalidArgument(NO_TOKEN)
    if role == api.MANAGER and not may_grow:
        raise FailedPrecondition(NO_MORE_MANAGERS)
    _check_csr(request.csr)
    if request.availability not in api.NodeSpec.Availability.values():
        raise InvalidArgument(f"unknown availability {request.availability}")
    node = api.Node(role=role, VXLANUDPPort=cluster.VXLANUDPPort)
    node.spec.desired_role = role
    node.spec.membership = api.NodeSpec.ACCEPTED
    node.spec.availability = request.availability
    node.certificate.role = role
    node.certificate.csr = request.csr
    node.certificate.status.state = api.IssuanceStatus.PENDING
    for attempt in range(_ID_COLLISIONS_MAX + 1):
        node.id = node.certificate.cn = tx.new_id()
        try:
            tx.create(node)
            break
        except AlreadyExists:
            if attempt == _ID_COLLISIONS_MAX:
                raise
    return api.IssueNodeCertificateResponse(node_id=node.id, node_membership=api.NodeSpec.ACCEPTED)


def _role_of(token: str, cluster: api.Cluster) -> api.NodeRole | None:
    """The role that a join token grants. Both tokens are always compared, so that timing reveals nothing."""
    tokens = cluster.root_ca.join_tokens
    manager, worker = same_token(tokens.manager, token), same_token(tokens.worker, token)
    return api.MANAGER if manager else api.WORKER if worker else None


def _check_csr(csr: bytes) -> None:
    if len(csr) > defaults.CSR_BYTES_MAX:
        raise InvalidArgument("certificate request is too large")
    try:
        load_csr(csr)
    except CertsError as error:
        raise as_swarm_error(error) from error


def _status(node: api.Node) -> api.NodeCertificateStatusResponse:
    return api.NodeCertificateStatusResponse(status=node.certificate.status, certificate=node.certificate)


# --- the stage -----------------------------------------------------------------------------------------------------


class CertificateStage:
    """A Stage: signs nodes' certificate requests and completes root rotations.

    deterministic: equal requests get equal certificates, for simulation.
    """

    def __init__(self, cluster_id: str, deterministic: bool = False) -> None:
        self._cluster_id = cluster_id
        self._deterministic = deterministic
        self._rotation = RootRotation(cluster_id)
        self._dirty: dict[str, None] = {}
        self._blocked = False
        self._root_ca: api.RootCA | None = None
        self._authority: RootCA | None = None

    def rebuild(self, view: View, now: float) -> None:
        """See Stage.rebuild."""
        self._dirty = {node.id: None for node in view.all(api.Node)}
        self._blocked = False
        self._rotation.rebuild(view, now)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage.note."""
        if kind == "node":
            self._dirty[object_id] = None
        elif kind == "cluster":
            self._blocked = False
        self._rotation.note(kind, object_id)

    def run(self, tx: Tx) -> None:
        """See Stage.run."""
        signed = 0
        for node_id in list(self._dirty):
            node = tx.get(api.Node, node_id)
            if node is None or not wants_signature(node):
                del self._dirty[node_id]
                continue
            if self._blocked or signed == defaults.CERTIFICATES_PER_PASS_MAX or not tx.room():
                break
            authority, expiry_s = self._signer(tx)
            if authority is None:
                self._blocked = True
                break
            self._sign(tx, node_id, authority, expiry_s)
            del self._dirty[node_id]
            signed += 1
        self._rotation.run(tx)

    def deadline(self) -> float | None:
        """DUE_NOW while there are requests and a key to sign them, else when the rotation continues."""
        return DUE_NOW if self._dirty and not self._blocked else self._rotation.deadline()

    def _signer(self, tx: Tx) -> tuple[RootCA | None, float]:
        """The signing authority and the validity in seconds. None: external authorities sign, or no key is usable."""
        cluster = tx.get(api.Cluster, self._cluster_id)
        if cluster is None or signing_urls(cluster.spec.ca_config, cluster.root_ca):
            return None, 0.0
        if cluster.root_ca != self._root_ca:
            self._root_ca = api.RootCA()
            self._root_ca.CopyFrom(cluster.root_ca)
            self._authority = self._load(self._root_ca)
        return self._authority, node_cert_expiry_s(cluster.spec)

    def _load(self, root_ca: api.RootCA) -> RootCA | None:
        try:
            authority = authority_of(root_ca, self._deterministic)
        except CertsError as error:
            log.error("certificate.authority_unusable", error=str(error))
            return None
        if not authority.can_sign:
            log.error("certificate.authority_unusable", error="no valid signer found")
            return None
        return authority

    def _sign(self, tx: Tx, node_id: str, authority: RootCA, expiry_s: float) -> None:
        node = tx.edit(api.Node, node_id)
        certificate = node.certificate
        certificate.role = role_to_sign(node)
        role = ROLE_NAMES.get(certificate.role)
        try:
            if role is None:
                raise InvalidCertificate(f"failed to parse api role: {certificate.role}")
            csr, cn, after = certificate.csr, certificate.cn, newest_begins(node)
            issued = authority.sign(csr, cn, role, self._cluster_id, tx.now, expiry_s, after)
        except CertsError as error:
            certificate.status.state = api.IssuanceStatus.FAILED
            certificate.status.err = str(error)
            log.warning("certificate.failed", node=node_id, error=str(error))
            return
        certificate.certificate = issued
        certificate.status.Clear()
        certificate.status.state = api.IssuanceStatus.ISSUED
        node_keys.issued(node, issued)
        note_signed(node)
        log.info("certificate.issued", node=node_id, role=role)


def role_to_sign(node: api.Node) -> api.NodeRole:
    """The role of the certificate that a node waits for: a node that was demoted since its request is a worker."""
    return api.WORKER if node.certificate.role == api.MANAGER and node.role == api.WORKER else node.certificate.role


def wants_signature(node: api.Node) -> bool:
    """Whether this node waits for a certificate that is not signed yet."""
    state = node.certificate.status.state
    if state == api.IssuanceStatus.RENEW:
        return True
    return state == api.IssuanceStatus.PENDING and node.spec.membership == api.NodeSpec.ACCEPTED
