"""Which public keys a node's rights hang on, and what a caller with one of them may have.

Theory of operation. A node makes a new key for every certificate, so the key tells its certificates apart. On record
are the key that the node was last seen to use (NodeAuthority.key) and those that certificates were issued for since
(NodeAuthority.issued):

    issued K1 -> [K1]        seen K1 -> K1        issued K2 -> K1, [K2]        seen K2 -> K2
                                                  seen K1   -> K1, [K2]: K2 may have been lost in a crash

A node that crashes after its next certificate was issued, and before it is on its disk, still has the older key; that
one counts until the newer is seen. Then it is *superseded*: whoever comes with it has an old copy of the node's disk.
A key counts as seen when the node opens a session, joins the Raft group, asks for a certificate, or says that it has
one (swarm/node/bootstrap.py confirm). Then the key is on its disk.

The store may be older than the node: it was restored, or the rest of the cluster was lost. A key that is not on record
is *newer* if its certificate begins after all that this store knows of. It counts, and supersedes all of them.

A stock manager that leads drops NodeAuthority. Then the certificate on record, which the node got last, is all that is
known. A stock follower does not tell the key of a caller: it is *unknown*, and the caller has what stock gives it.

All but the logging is pure functions of a node and a caller (docs/adr/0027-rights-follow-the-key-on-record.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

import structlog

from certs.errors import CertsError
from certs.keys import MANAGER_ROLE, key_fingerprint, load_leaf
from certs.validity import SUPERSEDED
from swarm import api, defaults
from swarm.api.timestamps import seconds, stamp
from swarm.errors import PermissionDenied, SwarmError
from swarm.log_limiter import LogLimiter
from swarm.manager.service import Write
from swarm.rpc import Peer
from swarm.store.store import View
from swarm.store.tx import Tx

log = structlog.get_logger()


class Standing(Enum):
    """How a caller's key relates to those on record."""

    ON_RECORD = "on record"
    NEWER = "newer than the record"
    UNKNOWN = "unknown"
    SUPERSEDED = "superseded"


class Superseded(PermissionDenied):
    """A caller has an older key than its node."""

    def __init__(self, node_id: str) -> None:
        super().__init__(
            f"Permission denied: {SUPERSEDED}: node {node_id} has used a newer one since, so this is an old copy "
            "of its files. If no newer copy is left, the node must leave the swarm and join again"
        )


@dataclass(frozen=True, slots=True)
class _Record:
    """keys: oldest first; the first one was seen in use, or nothing is known of that. begins: see certified_from."""

    keys: tuple[bytes, ...]
    begins: float


def _record_of(node: api.Node) -> _Record:
    authority = node.authority
    keys = (authority.key, *authority.issued) if authority.key else tuple(authority.issued)
    if keys:
        return _Record(keys, seconds(authority.certified_from))
    try:
        leaf = load_leaf(node.certificate.certificate)
    except CertsError:
        return _Record((), 0.0)
    return _Record((key_fingerprint(leaf),), leaf.not_valid_before_utc.timestamp())


def standing(node: api.Node, peer: Peer) -> Standing:
    """How the key of ``peer``, which is this node by its certificate, relates to the keys on record.

    This process itself needs no key. A lapsed certificate is never newer.
    """
    if peer.local:
        return Standing.ON_RECORD
    record = _record_of(node)
    if not peer.key or not record.keys:
        return Standing.UNKNOWN
    if peer.key in record.keys:
        return Standing.ON_RECORD
    newer = peer.not_before > record.begins and not peer.certificate_error
    return Standing.NEWER if newer else Standing.SUPERSEDED


def is_superseded(view: View, peer: Peer) -> bool:
    """Whether this is an old copy of a node's certificate, as far as this store tells."""
    node = view.get(api.Node, peer.node_id) if peer.node_id else None
    return node is not None and standing(node, peer) is Standing.SUPERSEDED


def check(node: api.Node, peer: Peer) -> None:
    """Raises Superseded if the caller's key is. A lapsed certificate must be on record, too."""
    found = standing(node, peer)
    if found is Standing.SUPERSEDED:
        raise Superseded(node.id)
    if peer.certificate_error and found is not Standing.ON_RECORD:
        raise PermissionDenied(
            f"Permission denied: {peer.certificate_error}; the managers do not know its key, so it cannot be renewed: "
            "the node must leave the swarm and join again"
        )


def note_use(view: View, peer: Peer) -> Write | None:
    """What is to be written when a node calls that has its certificate on disk. Raises Superseded."""
    node = view.get(api.Node, peer.node_id) if peer.node_id else None
    if node is None:
        return None
    check(node, peer)
    if not is_news(node, peer):
        return None

    def run(tx: Tx) -> None:
        if tx.get(api.Node, peer.node_id) is not None:
            seen(tx.edit(api.Node, peer.node_id), peer)

    return Write(run)


class KeyGuard:
    """Checks callers, and logs those that are refused: each node once a minute. refused: superseded ones, by role."""

    def __init__(self, refused: Counter[str] | None = None) -> None:
        self._refused = Counter() if refused is None else refused
        self._log_limiter = LogLimiter()

    def node(self, view: View, node_id: str, peer: Peer, now: float) -> api.Node:
        """The node of a caller who passes ``check``. Raises SwarmError, also when it does not exist."""
        node = view.get(api.Node, node_id)
        if node is None:
            raise SwarmError("node not found")
        self.check(node, peer, now)
        return node

    def check(self, node: api.Node, peer: Peer, now: float) -> None:
        """See check. now: seconds since the epoch."""
        try:
            check(node, peer)
        except PermissionDenied as error:
            if isinstance(error, Superseded):
                self._refused[peer.role] += 1
            times = self._log_limiter.times(node.id, now)
            if times:
                log.warning("certificate.key_refused", node=node.id, peer=peer.host, times=times, error=str(error))
            raise


def role_for(node: api.Node, peer: Peer) -> api.NodeRole:
    """The role of the certificate that a caller gets who passes ``check``.

    It is the node's role, except that a worker's certificate is not the way to a manager's if it lapsed, or if its key
    is not on record. Such a node gets a worker's first. With that it asks again, because it learns from its session
    that it should be a manager.
    """
    if node.role != api.MANAGER or peer.role == MANAGER_ROLE or peer.local:
        return node.role
    sure = standing(node, peer) is Standing.ON_RECORD and not peer.certificate_error
    return api.MANAGER if sure or not peer.key else api.WORKER


def is_news(node: api.Node, peer: Peer) -> bool:
    """Whether ``seen`` would change the node."""
    found = standing(node, peer)
    counts = found is not Standing.SUPERSEDED and (found is Standing.ON_RECORD or not peer.certificate_error)
    return bool(peer.key) and counts and node.authority.key != peer.key


def seen(node: api.Node, peer: Peer) -> None:
    """The node uses this key: older ones are superseded. node: being edited. A superseded or unknown key: nothing."""
    if not is_news(node, peer):
        return
    record, authority = _record_of(node), node.authority
    after = record.keys[record.keys.index(peer.key) + 1 :] if peer.key in record.keys else ()
    authority.key = peer.key
    authority.issued[:] = after
    _begins(authority, max(record.begins, peer.not_before))


def remember(node: api.Node) -> None:
    """Note the keys on record before Node.certificate is replaced, if only that tells of them. node: being edited."""
    record = _record_of(node)
    if record.keys and not (node.authority.key or node.authority.issued):
        node.authority.issued[:] = record.keys
        _begins(node.authority, record.begins)


def issued(node: api.Node, certificate_pem: bytes) -> None:
    """The node gets this certificate. node: being edited. Raises InvalidCertificate.

    Of the keys that were never seen in use only the last ones are kept.
    """
    leaf, authority = load_leaf(certificate_pem), node.authority
    key = key_fingerprint(leaf)
    kept = [it for it in authority.issued if it != key]
    if key != authority.key:
        kept.append(key)
    authority.issued[:] = kept[-defaults.NODE_KEYS_ISSUED_MAX :]
    _begins(authority, max(seconds(authority.certified_from), leaf.not_valid_before_utc.timestamp()))


def _begins(authority: api.NodeAuthority, at: float) -> None:
    stamp(authority.certified_from, at)
