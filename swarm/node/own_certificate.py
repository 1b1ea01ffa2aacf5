"""A node's own certificate: how long it lasts, what it tells others, where the next one comes from, and its troubles.

A manager whose certificate expired cannot be reached, as nobody believes its server any more, not even itself. If it
leads, which a single manager does, it renews its certificate without a connection, through its own manager.

(swarmkit: ca/config.go RenewTLSConfigNow, node/node.go)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Protocol

from certs.errors import CertsError, StoredKeyDamaged
from certs.keys import identity_of, load_certificates
from certs.keystore import CERTIFICATE_FILE, ROOT_FILE
from certs.root import Issuer, verify_chain
from certs.tls import ClientTls, Credentials
from certs.validity import EXPIRED, SUPERSEDED, own_certificate_error
from swarm import api, defaults
from swarm.api.methods import Method, Req, Res
from swarm.grpc.peer import peer_of
from swarm.node import bootstrap
from swarm.node.bootstrap import Issued, World
from swarm.node.events import Identity
from swarm.rpc import Peer


class OwnManager(Protocol):
    """The manager of this very node, as far as its certificate needs it."""

    @property
    def leads(self) -> bool:
        """Whether it leads."""
        ...

    async def wait_leader(self, timeout_s: float) -> None:
        """Until it leads. Raises TimeoutError."""
        ...

    async def ask(self, method: Method[Req, Res], request: Req, timeout_s: float, peer: Peer) -> Res:
        """A unary call in the name of ``peer``. Raises SwarmError."""
        ...


def validity(certificate_pem: bytes) -> tuple[float, float]:
    """From when to when a certificate is valid, in seconds since the epoch."""
    leaf = load_certificates(certificate_pem)[0]
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


def tls_info(root_pem: bytes, certificate_pem: bytes) -> api.NodeTLSInfo:
    """What managers are told of a node's trust and of who issued its certificate, valid or not. Raises CertsError."""
    issuer = Issuer.of(verify_chain(load_certificates(certificate_pem), load_certificates(root_pem), now=None))
    return api.NodeTLSInfo(
        trust_root=root_pem, cert_issuer_subject=issuer.subject_der, cert_issuer_public_key=issuer.public_key_der
    )


def check(identity: Identity) -> None:
    """Whether the certificate that was read is what its root signed, valid or not: a flipped bit may change its role.

    Raises StoredKeyDamaged.
    """
    try:
        tls_info(identity.root_pem, identity.certificate_pem)
    except CertsError as error:
        raise StoredKeyDamaged(
            f"{CERTIFICATE_FILE} does not fit {ROOT_FILE}: {error}. One of them is damaged, and nothing was changed. "
            'Restore them from a backup, or run "docker swarm leave --force" here, remove this node on a manager, and '
            "join again"
        ) from error


def trouble(error: str, certificate_pem: bytes, now: float) -> str:
    """What a user should know of a failure: that a certificate or a clock is behind it; empty: neither is."""
    if EXPIRED in error or SUPERSEDED in error:
        return error
    own = own_certificate_error(certificate_pem, now)
    return f"{own}; managers say: {error}" if own else ""


async def renew(
    manager: OwnManager | None,
    managers: Sequence[tuple[str, str]],
    root_pem: bytes,
    credentials: Credentials,
    rng: Random,
    world: World,
) -> Issued:
    """See bootstrap.renew; managers: (node ID, "ip:port") of all that are known; manager: this node's own, if it runs.

    Raises TimeoutError, too.
    """
    own_id = identity_of(credentials.certificate_pem).node_id
    if manager is None or not own_certificate_error(credentials.certificate_pem, world.now()):
        return await bootstrap.renew([addr for _, addr in managers], root_pem, credentials, rng, world)
    others = [addr for node_id, addr in managers if node_id != own_id]
    if not others:
        await manager.wait_leader(defaults.NO_LEADER_WAIT_S)
    if manager.leads:
        inside = replace(world, dial=_Inside(manager, credentials).dial)
        return await bootstrap.renew(("this process",), root_pem, credentials, rng, inside)
    return await bootstrap.renew(others, root_pem, credentials, rng, world)


async def confirm(
    manager: OwnManager | None,
    managers: Sequence[tuple[str, str]],
    issued: Issued,
    rng: Random,
    world: World,
) -> None:
    """See bootstrap.confirm; the others as in renew."""
    addresses: Sequence[str] = [addr for _, addr in managers]
    if manager is not None and manager.leads:
        addresses, world = ("this process",), replace(world, dial=_Inside(manager, issued.credentials).dial)
    await bootstrap.confirm(addresses, issued.root_pem, issued.credentials, rng, world)


class _Inside:
    """A way to the manager of this process that needs no certificates."""

    def __init__(self, manager: OwnManager, credentials: Credentials) -> None:
        self._manager = manager
        self._peer = peer_of(credentials.certificate_pem, local=True)

    async def dial(self, address: str, tls: ClientTls, timeout_s: float) -> _Inside:
        """As swarm.io.grpc.client.connect."""
        return self

    async def unary(self, method: Method[Req, Res], request: Req, timeout_s: float | None = None) -> Res:
        """As swarm.io.grpc.client.ClientConnection.unary."""
        return await self._manager.ask(method, request, timeout_s or defaults.CERTIFICATE_CALL_TIMEOUT_S, self._peer)

    def close(self) -> None:
        """There is no connection."""
