"""Who may call what: certificates, forwarded identities, removed and demoted nodes are judged here and nowhere else.

The certificate of a connection identifies the caller. A follower forwards calls to the leader and names the caller in
metadata, with empty values if the caller has no certificate. The leader believes this only if the follower itself is a
manager of this cluster that was not removed. Methods that need no certificate still get the identity of the caller; if
it is not valid (another cluster, a removed node, a false forwarder), it is dropped, and the caller is anonymous.

Stock managers look only at the forwarder; here a forwarded node that was removed is refused as well. Who is no manager
(any more) has a worker's rights, whatever its certificate still says (swarm/manager/standing.py). A node whose
certificate expired a short time ago may renew it, and do nothing else (certs/validity.py).

A call that was allowed on arrival is judged again where it is served: it may have waited, and this manager may have
become the leader meanwhile, which knows more.

(swarmkit: ca/auth.go, ca/forward.go; protobuf/plugin/authenticatedwrapper, raftproxy)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from certs.validity import EXPIRED
from swarm.api import rpc
from swarm.api.methods import AnyMethod
from swarm.errors import PermissionDenied, ResourceExhausted, SwarmError, Unavailable
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Peer

Metadata = Mapping[str, tuple[str, ...]]

_FORWARDED = "forwarded_cert"
_NODE_ID = "forwarded_cert_cn"
_ROLE = "forwarded_cert_ou"
_ORG = "forwarded_cert_org"
_ADDRESS = "remote_addr"
_KEY = "sideswarm_cert_key"
_NOT_BEFORE = "sideswarm_cert_not_before"
_LAPSED = "sideswarm_cert_lapsed"
_SECONDS_DIGITS_MAX = 12
_REDIRECT = "redirect"


def is_forwarded(metadata: Metadata) -> bool:
    """Whether the caller says that it forwards somebody else's call."""
    return metadata.get(_FORWARDED) == ("true",)


def forwarded_peer(metadata: Metadata, forwarder: Peer) -> Peer:
    """The caller that the forwarder names; believe it only after authorize."""

    def first(name: str) -> str:
        return metadata.get(name, ("",))[0]

    return Peer(
        node_id=first(_NODE_ID),
        role=_stronger(metadata.get(_ROLE, ())),
        org=first(_ORG),
        addr=first(_ADDRESS),
        forwarder=forwarder.node_id,
        key=_bytes_of(first(_KEY)),
        not_before=_seconds_of(first(_NOT_BEFORE)),
        certificate_error=f"{EXPIRED}: it can only be renewed" if _LAPSED in metadata else "",
        renewable=_LAPSED in metadata,
    )


def _bytes_of(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _seconds_of(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() and len(text) <= _SECONDS_DIGITS_MAX else 0.0


def _stronger(roles: tuple[str, ...]) -> str:
    return MANAGER_ROLE if MANAGER_ROLE in roles else next(iter(roles), "")


def forwarding_metadata(peer: Peer) -> tuple[tuple[str, str], ...]:
    """The metadata that a follower adds when it forwards a call of ``peer`` to the leader.

    The keys are there even when empty: without them the call would count as the follower's own. Raises
    ResourceExhausted for a call that was forwarded already.
    """
    if peer.forwarder:
        raise ResourceExhausted(f"more than one redirect to leader from: [{peer.addr}]")
    roles = ((_ROLE, peer.role),) if peer.role else ()
    lapsed = ((_LAPSED, "true"),) if peer.certificate_error else ()
    return (
        (_REDIRECT, peer.addr),
        (_FORWARDED, "true"),
        (_NODE_ID, peer.node_id),
        (_ORG, peer.org),
        *roles,
        (_ADDRESS, peer.addr),
        (_KEY, peer.key.hex()),
        (_NOT_BEFORE, f"{int(peer.not_before)}"),
        *lapsed,
    )


def authorize(
    method: AnyMethod,
    direct: Peer,
    forwarded: Peer | None,
    cluster_id: str,
    is_blacklisted: Callable[[str], bool],
    why_no_manager: Callable[[Peer], str],
) -> Peer:
    """The peer for whom the call is made. Raises PermissionDenied with SwarmKit's texts, Unavailable.

    direct: the peer of the connection. forwarded: the caller that the metadata names, if any. is_blacklisted: whether
    the certificates of this node ID are void because the node was removed. why_no_manager: why the owner of a manager
    certificate is no manager now; empty when it is one.
    """

    def why(peer: Peer) -> str:
        """Nothing about the nodes that are refused anyway, each with its own text."""
        return "" if peer.org != cluster_id or is_blacklisted(peer.node_id) else why_no_manager(peer)

    direct = _with_role_now(method, direct, why, forwards=forwarded is not None)
    forwarded = None if forwarded is None else _with_role_now(method, forwarded, why)
    if direct.certificate_error:
        return _renewing(method, direct, forwarded, cluster_id, is_blacklisted)
    if method.insecure:
        return _known_or_anonymous(direct, forwarded, cluster_id, is_blacklisted)
    expected = _listed(method.roles)
    if forwarded is not None and forwarded.certificate_error:
        raise PermissionDenied(f"Permission denied: {forwarded.certificate_error}")
    if forwarded is None:
        refusal = _refusal(direct, method.roles, cluster_id, is_blacklisted)
        if refusal is not None:
            raise PermissionDenied(f"Permission denied: unauthorized peer role: {refusal.rpc_text}")
        return direct
    refusal = _refusal(direct, _FORWARDER_ROLES, cluster_id, is_blacklisted)
    if refusal is not None:
        raise PermissionDenied(f"Permission denied: unauthorized forwarder role: {refusal.rpc_text}")
    if not (forwarded.role and forwarded.node_id and forwarded.org):
        raise PermissionDenied("Permission denied: missing information in forwarded request")
    if forwarded.role not in method.roles:
        raise PermissionDenied(f"Permission denied: unauthorized forwarded role, expecting: {expected}")
    if forwarded.org != cluster_id:
        raise PermissionDenied(f"Permission denied: organization mismatch, expecting: {cluster_id}")
    if is_blacklisted(forwarded.node_id):
        raise _removed(forwarded.node_id)
    return forwarded


_FORWARDER_ROLES = frozenset((MANAGER_ROLE,))


def authorize_again(
    method: AnyMethod,
    peer: Peer,
    is_blacklisted: Callable[[str], bool],
    why_no_manager: Callable[[Peer], str],
) -> Peer:
    """The caller of a call that was allowed on arrival, with the role that it has now; for others see authorize.

    Raises PermissionDenied, Unavailable: it would not be allowed now.
    """
    if peer.local:
        return peer
    if peer.forwarder and is_blacklisted(peer.forwarder):
        if method.insecure:
            return Peer(addr=peer.addr)
        raise PermissionDenied(f"Permission denied: unauthorized forwarder role: {_removed(peer.forwarder).rpc_text}")
    if peer.forwarder and (reason := why_no_manager(Peer(peer.forwarder, MANAGER_ROLE))):
        raise NoManager(reason)
    if peer.node_id and is_blacklisted(peer.node_id):
        if method.insecure:
            return Peer(addr=peer.addr, forwarder=peer.forwarder)
        raise _removed(peer.node_id)
    return _with_role_now(method, peer, why_no_manager)


def _with_role_now(
    method: AnyMethod, peer: Peer, why_no_manager: Callable[[Peer], str], *, forwards: bool = False
) -> Peer:
    """The peer with the role that it has now. Raises Unavailable if the method needs more than that.

    Not PermissionDenied: the node may not know of its demotion yet, and its clients should ask another manager.
    Raft's messages are exempt: the group judges them (manager/group/senders.py), and answers removed members.
    """
    if peer.role != MANAGER_ROLE or _is_raft_method(method) or not (reason := why_no_manager(peer)):
        return peer
    if forwards or _is_manager_method(method):
        raise NoManager(reason)
    return replace(peer, role=WORKER_ROLE)


def overstays(
    method: AnyMethod,
    peer: Peer,
    is_blacklisted: Callable[[str], bool],
    why_no_manager: Callable[[Peer], str],
) -> SwarmError | None:
    """The error that ends an open call, if it would not be allowed now."""
    try:
        authorize_again(method, peer, is_blacklisted, why_no_manager)
    except SwarmError as error:
        return error
    return None


class NoManager(Unavailable):
    """A node that is no manager (any more) asks for what only managers may do."""


def _is_raft_method(method: AnyMethod) -> bool:
    return method.name.startswith("Raft/")


def _is_manager_method(method: AnyMethod) -> bool:
    return not method.insecure and WORKER_ROLE not in method.roles


def _refusal(
    peer: Peer, roles: frozenset[str], cluster_id: str, is_blacklisted: Callable[[str], bool]
) -> PermissionDenied | None:
    if not peer.node_id:
        return PermissionDenied("no client certificates in request")
    if peer.role not in roles:
        return PermissionDenied(f"Permission denied: remote certificate not part of OUs: {_listed(roles)}")
    if is_blacklisted(peer.node_id):
        return _removed(peer.node_id)
    if peer.org != cluster_id:
        return PermissionDenied(f"Permission denied: remote certificate not part of organization: {cluster_id}")
    return None


_RENEWAL = (rpc.ISSUE_NODE_CERTIFICATE, rpc.NODE_CERTIFICATE_STATUS)


def _renewing(
    method: AnyMethod, direct: Peer, forwarded: Peer | None, cluster_id: str, is_blacklisted: Callable[[str], bool]
) -> Peer:
    """The peer with an expired certificate: it may renew it, if it is renewable, and forward nothing."""
    if method.insecure and method not in _RENEWAL:
        return Peer(addr=direct.addr)
    if not direct.renewable or method not in _RENEWAL or forwarded is not None:
        raise PermissionDenied(f"Permission denied: {direct.certificate_error}")
    if is_blacklisted(direct.node_id):
        raise _removed(direct.node_id)
    return _known_or_anonymous(direct, None, cluster_id, is_blacklisted)


def _removed(node_id: str) -> PermissionDenied:
    return PermissionDenied(f"Permission denied: node {node_id} was removed from swarm")


def _listed(roles: frozenset[str]) -> str:
    return f"[{' '.join(sorted(roles, reverse=True))}]"  # swarm-worker before swarm-manager, as stock peers have it


def _known_or_anonymous(
    direct: Peer, forwarded: Peer | None, cluster_id: str, is_blacklisted: Callable[[str], bool]
) -> Peer:
    if forwarded is not None and _refusal(direct, _FORWARDER_ROLES, cluster_id, is_blacklisted) is not None:
        return Peer(addr=direct.addr)  # the identity of a false forwarder is dropped as well
    peer = direct if forwarded is None else forwarded
    known = peer.node_id and peer.role and peer.org == cluster_id and not is_blacklisted(peer.node_id)
    return peer if known else replace(peer, node_id="", role="", org="")


@dataclass(frozen=True)
class ClusterAuthorizer:
    """The rules of one cluster, as RpcServer asks for them; see authorize."""

    cluster_id: str
    is_blacklisted: Callable[[str], bool]
    why_no_manager: Callable[[Peer], str] = lambda peer: ""

    def __call__(self, method: AnyMethod, direct: Peer, metadata: Metadata) -> Peer:
        """Who the caller is. Raises PermissionDenied, Unavailable."""
        forwarded = forwarded_peer(metadata, direct) if is_forwarded(metadata) else None
        return authorize(method, direct, forwarded, self.cluster_id, self.is_blacklisted, self.why_no_manager)
