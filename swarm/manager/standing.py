"""What a node's certificates are worth by the store: who is a manager, who was demoted or removed.

A certificate says which role its node had when it was signed. What the node may do now is in the store: its role, and
when its last demotion was (Node.authority.void_until). That moment is the beginning of the newest certificate that the
node had got until then, so it is read from the clock of whoever signs, and from no other. Manager certificates that
begin no later are void, also when the node is a manager again.

A follower may lag behind a promotion. A certificate that was signed after the one on record is the proof of that.

(In SwarmKit a manager certificate is good until it expires: ca/auth.go.)
"""

from __future__ import annotations

from certs.errors import InvalidCertificate
from certs.keys import key_fingerprint, load_certificates
from swarm import api
from swarm.api.timestamps import seconds
from swarm.rpc import Peer
from swarm.store.store import View


def is_removed(view: View, node_id: str) -> bool:
    """Whether a node was removed from the cluster, so that no certificate of it counts."""
    return any(node_id in cluster.blacklisted_certificates for cluster in view.all(api.Cluster))


def why_no_manager(view: View, peer: Peer, leading: bool) -> str:
    """Why the owner of a manager certificate is no manager now; empty: it is one, as far as this store tells.

    leading: the store is that of the leader, so it lacks nothing: the leader makes a node a manager before it signs
    the certificate. Other stores may lag.
    """
    node = view.get(api.Node, peer.node_id)
    if node is None:
        return f"node {peer.node_id} is no manager of this swarm" if leading else ""
    if is_void(node, peer):
        return _demoted(node.id)
    if node.role != api.MANAGER and (leading or not is_newer(node, peer)):
        return _demoted(node.id)
    return ""


def _demoted(node_id: str) -> str:
    return f"node {node_id} was demoted: it is no manager any more"


def is_void(node: api.Node, peer: Peer) -> bool:
    """Whether this manager certificate of the node was signed before its last demotion.

    Of a certificate that a stock manager has seen, nobody knows when it begins: it counts by its node's role.
    """
    authority = node.authority
    if not authority.HasField("void_until") or not peer.not_before:
        return False
    return peer.not_before <= seconds(authority.void_until) and peer.key != (authority.spared_key or None)


def is_newer(node: api.Node, peer: Peer) -> bool:
    """Whether this certificate was signed after the one on record; then the store lags behind the node.

    Times of certificates are whole minutes, so two may begin at once. Each has a key of its own.
    """
    if not peer.not_before:
        return True
    try:
        known = load_certificates(node.certificate.certificate)
    except InvalidCertificate:
        return True
    if not known:
        return True
    return peer.key != key_fingerprint(known[0]) and peer.not_before >= known[0].not_valid_before_utc.timestamp()


# --- what the leader writes down -----------------------------------------------------------------------------------


def note_certificate(node: api.Node) -> None:
    """Write down what outlives the certificate on record: when the node's certificates end, and when they began."""
    try:
        known = load_certificates(node.certificate.certificate)
    except InvalidCertificate:
        return
    if not known:
        return
    authority, leaf = node.authority, known[0]
    ends, begins = int(leaf.not_valid_after_utc.timestamp()), int(leaf.not_valid_before_utc.timestamp())
    if ends > authority.certified_until.seconds:
        authority.certified_until.FromSeconds(ends)
    if begins > authority.certified_from.seconds:
        authority.certified_from.FromSeconds(begins)


def note_signed(node: api.Node) -> None:
    """As note_certificate, of a certificate that was signed just now. External authorities round its beginning down."""
    note_certificate(node)
    authority = node.authority
    if node.certificate.role == api.MANAGER and authority.HasField("void_until"):
        leaf = load_certificates(node.certificate.certificate)[0]
        if leaf.not_valid_before_utc.timestamp() <= seconds(authority.void_until):
            authority.spared_key = key_fingerprint(leaf)


def note_demotion(node: api.Node) -> None:
    """The node is a worker from now on: every manager certificate that it ever got is void."""
    note_certificate(node)
    authority = node.authority
    authority.ClearField("spared_key")
    if authority.HasField("certified_from"):
        authority.void_until.CopyFrom(authority.certified_from)


def newest_begins(node: api.Node) -> float:
    """When the newest certificate begins that the node ever got, in seconds since the epoch; 0: it has none.

    The next one is to begin later, so that the order of a node's certificates can be read from their beginnings.
    """
    return seconds(_noted(node).certified_from)


def certified_until(node: api.Node) -> float:
    """When the last certificate ends that the node ever got, in seconds since the epoch; 0: that is not known."""
    return seconds(_noted(node).certified_until)


def _noted(node: api.Node) -> api.NodeAuthority:
    known = api.Node(certificate=node.certificate, authority=node.authority)
    note_certificate(known)
    return known.authority
