"""Who may call what: the one place where certificates, forwarded identities and removed nodes are judged.

A caller is known by the certificate of its connection. A follower passes calls on to the leader and says in metadata
for whom, with empty values for somebody without a certificate; that counts only when the follower itself is a manager
of this cluster that was not removed. Methods that need no certificate still get a judged identity: one that does
not hold (another cluster, a removed node, a false forwarder) is dropped, and the caller is a stranger.

Unlike stock managers, which look only at the forwarder, a forwarded node that was removed is refused as well. A manager
that was demoted has a worker's rights with the leader, whatever its certificate goes on saying. And a node whose
certificate expired a short while ago may renew it, and nothing else (certs/validity.py).

(swarmkit: ca/auth.go, ca/forward.go; protobuf/plugin/authenticatedwrapper, raftproxy)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from swarm.api import rpc
from swarm.api.methods import AnyMethod
from swarm.errors import PermissionDenied, ResourceExhausted, Unavailable
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Peer

Metadata = Mapping[str, tuple[str, ...]]

_FORWARDED = "forwarded_cert"
_NODE_ID = "forwarded_cert_cn"
_ROLE = "forwarded_cert_ou"
_ORG = "forwarded_cert_org"
_ADDRESS = "remote_addr"
_REDIRECT = "redirect"


def is_forwarded(metadata: Metadata) -> bool:
    """Whether the caller says that it passes on somebody else's call."""
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
    )


def _stronger(roles: tuple[str, ...]) -> str:
    return MANAGER_ROLE if MANAGER_ROLE in roles else next(iter(roles), "")


def forwarding_metadata(peer: Peer) -> tuple[tuple[str, str], ...]:
    """What a follower adds when it passes a call of ``peer`` on to the leader.

    The keys are there even when empty: without them the call would count as the follower's own. Raises
    ResourceExhausted for a call that was passed on before.
    """
    if peer.forwarder:
        raise ResourceExhausted(f"more than one redirect to leader from: [{peer.addr}]")
    roles = ((_ROLE, peer.role),) if peer.role else ()
    return (
        (_REDIRECT, peer.addr),
        (_FORWARDED, "true"),
        (_NODE_ID, peer.node_id),
        (_ORG, peer.org),
        *roles,
        (_ADDRESS, peer.addr),
    )


def authorize(
    method: AnyMethod,
    direct: Peer,
    forwarded: Peer | None,
    cluster_id: str,
    is_blacklisted: Callable[[str], bool],
    is_demoted: Callable[[str], bool],
) -> Peer:
    """The peer for whom the call is made. Raises PermissionDenied with SwarmKit's texts, Unavailable.

    direct is the connection's peer, forwarded what its metadata says, if it says so. is_blacklisted tells whether the
    certificates of a node ID are void because the node was removed, is_demoted whether it is known to be a worker now.
    """
    direct = _in_office(method, direct, is_demoted, forwards=forwarded is not None)
    forwarded = None if forwarded is None else _in_office(method, forwarded, is_demoted)
    if direct.lapse:
        return _lapsed(method, direct, forwarded, cluster_id, is_blacklisted)
    if method.insecure:
        return _known_or_stranger(direct, forwarded, cluster_id, is_blacklisted)
    expected = _listed(method.roles)
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


def _in_office(method: AnyMethod, peer: Peer, is_demoted: Callable[[str], bool], *, forwards: bool = False) -> Peer:
    """The peer with the role that it has now. Raises Unavailable when it wants more than that.

    That is no offence: it may not have heard yet, and its callers are to ask another manager. Raft decides for itself
    whose messages count, as it tells those who were removed.
    """
    if peer.role != MANAGER_ROLE or _is_rafts(method) or not is_demoted(peer.node_id):
        return peer
    if forwards or _is_managers(method):
        raise NoManager(peer.node_id)
    return replace(peer, role=WORKER_ROLE)


def overstays(method: AnyMethod, peer: Peer, is_demoted: Callable[[str], bool]) -> NoManager | None:
    """Why a call that was let in must end: it is open only because a node was a manager that is none any more."""
    if _is_rafts(method):
        return None
    if peer.forwarder and is_demoted(peer.forwarder):
        return NoManager(peer.forwarder)
    return NoManager(peer.node_id) if _is_managers(method) and is_demoted(peer.node_id) else None


class NoManager(Unavailable):
    """A node wants what only managers may, and was demoted."""

    def __init__(self, node_id: str) -> None:
        super().__init__(f"node {node_id} was demoted: it is no manager any more")


def _is_rafts(method: AnyMethod) -> bool:
    return method.name.startswith("Raft/")


def _is_managers(method: AnyMethod) -> bool:
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


def _lapsed(
    method: AnyMethod, direct: Peer, forwarded: Peer | None, cluster_id: str, is_blacklisted: Callable[[str], bool]
) -> Peer:
    """Who comes with a certificate that has expired may at most get another one; it speaks for nobody else."""
    if method.insecure and method not in _RENEWAL:
        return Peer(addr=direct.addr)
    if not direct.renewable or method not in _RENEWAL or forwarded is not None:
        raise PermissionDenied(f"Permission denied: {direct.lapse}")
    if is_blacklisted(direct.node_id):
        raise _removed(direct.node_id)
    return _known_or_stranger(direct, None, cluster_id, is_blacklisted)


def _removed(node_id: str) -> PermissionDenied:
    return PermissionDenied(f"Permission denied: node {node_id} was removed from swarm")


def _listed(roles: frozenset[str]) -> str:
    return f"[{' '.join(sorted(roles, reverse=True))}]"  # swarm-worker before swarm-manager, as stock peers have it


def _known_or_stranger(
    direct: Peer, forwarded: Peer | None, cluster_id: str, is_blacklisted: Callable[[str], bool]
) -> Peer:
    if forwarded is not None and _refusal(direct, _FORWARDER_ROLES, cluster_id, is_blacklisted) is not None:
        return Peer(addr=direct.addr)  # who lies about others is not believed about itself
    peer = direct if forwarded is None else forwarded
    known = peer.node_id and peer.role and peer.org == cluster_id and not is_blacklisted(peer.node_id)
    return peer if known else replace(peer, node_id="", role="", org="")


@dataclass(frozen=True)
class ClusterAuthorizer:
    """The rules of one cluster, as RpcServer asks for them; see authorize."""

    cluster_id: str
    is_blacklisted: Callable[[str], bool]
    is_demoted: Callable[[str], bool] = lambda node_id: False

    def __call__(self, method: AnyMethod, direct: Peer, metadata: Metadata) -> Peer:
        """Who the caller is. Raises PermissionDenied, Unavailable."""
        forwarded = forwarded_peer(metadata, direct) if is_forwarded(metadata) else None
        return authorize(method, direct, forwarded, self.cluster_id, self.is_blacklisted, self.is_demoted)
