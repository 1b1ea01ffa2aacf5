"""A node's side of getting a certificate: anonymously with a join token, later with the certificate it has.

    join    fetch the root without trusting anybody; believe it because the token names its SHA-256
            ask for a certificate with a new key's CSR, wait until the leader has signed it, check it
            managers only: fetch the unlock key, so that the new key is never on disk in the clear
    renew   the last two steps, over mutual TLS
    confirm when the new certificate is on disk: show it, so that managers know that the older one is not needed again

Managers may be stopping, electing or demoted while they are asked, so steps are repeated with another manager, except
after an answer that no repetition will change: another root than the token names, or a token that is not accepted.
Stock nodes repeat those as well and let users wait ten seconds for them.

These are coroutines without I/O of their own: they await only what their World hands them, so production runs them on
asyncio and the simulator runs the same code on its virtual clock.

(swarmkit: ca/config.go DownloadRootCA and RenewTLSConfigNow, ca/certificates.go RequestAndSaveNewCertificates)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from certs.errors import (
    CertificateExpired,
    CertsError,
    FingerprintMismatch,
    FipsRequired,
    InvalidCertificate,
    UnknownAuthority,
)
from certs.keys import (
    CA_ROLE,
    MANAGER_ROLE,
    WORKER_ROLE,
    identity_of,
    load_certificates,
    private_key_pem,
)
from certs.keystore import Kek
from certs.renewal import backoff_s
from certs.root import NODE_BACKDATE_S, RootCA
from certs.tls import ClientTls, Credentials
from certs.tokens import parse_join_token, root_digest
from certs.validity import clock_difference
from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import Method, Req, Res
from swarm.errors import Code, InvalidArgument, SwarmError, Unavailable

log = structlog.get_logger()

T = TypeVar("T")

TOKEN_NEEDED = "A valid join token is necessary to join this cluster"
_FINAL = (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
_STATES_SIGNED = (api.IssuanceStatus.ISSUED, api.IssuanceStatus.ROTATE)


class Connection(Protocol):
    """To one manager (swarm.io.grpc.client.ClientConnection)."""

    async def unary(self, method: Method[Req, Res], request: Req, timeout_s: float | None = None) -> Res:
        """One call; raises SwarmError."""
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


Dial = Callable[[str, ClientTls, float], Awaitable[Connection]]


@dataclass(frozen=True)
class Issued:
    """A certificate, the roots that it was checked against, and for managers the unlock key (empty: not locked)."""

    root_pem: bytes
    credentials: Credentials
    kek: Kek


@dataclass(frozen=True)
class NewKey:
    """A private key and the certificate request (PEM) that it signed."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    csr: bytes


@dataclass(frozen=True)
class World:
    """How to reach managers, wait, tell the time and make a key."""

    dial: Dial
    sleep: Callable[[float], Awaitable[None]]
    now: Callable[[], float]
    new_key: Callable[[], NewKey]


async def join(
    addresses: Sequence[str],
    token: str,
    availability: int,
    rng: Random,
    world: World,
    *,
    root_pem: bytes | None = None,
    fips: bool = False,
) -> Issued:
    """Become a node of the cluster that the managers at ``addresses`` ("ip:port") run, with the token's role.

    root_pem: the root if an earlier attempt fetched it; it still must be the token's. Raises CertsError or SwarmError
    with the texts that users know; without a token nobody is asked, as nobody could be believed. May wait for a leader
    for as long as that takes: limit it from outside.
    """
    if not token:
        raise InvalidArgument(TOKEN_NEEDED)
    parsed = parse_join_token(token)
    if parsed.fips and not fips:
        raise FipsRequired
    managers = _Managers(addresses, rng, world)
    if root_pem is None or root_digest(root_pem) != parsed.root_digest:
        root_pem = await managers.fetch_root(parsed.root_digest)
    return await managers.request_certificate(root_pem, token=token, availability=availability)


async def renew(
    addresses: Sequence[str], root_pem: bytes, credentials: Credentials, rng: Random, world: World
) -> Issued:
    """A new key and certificate for the node of ``credentials``; its role is the one that the node now has.

    A worker that missed the end of a root rotation comes back with the new root, see Issued.root_pem. Raises
    CertsError or SwarmError.
    """
    managers = _Managers(addresses, rng, world)
    try:
        return await managers.request_certificate(root_pem, credentials=credentials)
    except UnknownAuthority:
        if identity_of(credentials.certificate_pem).role != WORKER_ROLE:
            raise
        newer_pem = await managers.fetch_root(None)
        RootCA(newer_pem, None).verify(credentials.certificate_pem, world.now())
        log.info("certificate.root_replaced", digest=root_digest(newer_pem))
        return await managers.request_certificate(newer_pem, credentials=credentials)


async def confirm(
    addresses: Sequence[str], root_pem: bytes, credentials: Credentials, rng: Random, world: World
) -> None:
    """Show managers a certificate that is on this node's disk now: older ones are superseded by it.

    If nobody hears it, the node's next session shows it.
    """
    try:
        await _Managers(addresses, rng, world).confirm(root_pem, credentials)
    except (SwarmError, CertsError) as error:
        log.warning("certificate.not_confirmed", error=str(error))


async def fetch_root(addresses: Sequence[str], digest: str | None, rng: Random, world: World) -> bytes:
    """The root bundle of the cluster, whose SHA-256 must be ``digest`` (hexadecimal; None trusts the first answer).

    Raises FingerprintMismatch, InvalidRoot, SwarmError.
    """
    return await _Managers(addresses, rng, world).fetch_root(digest)


async def request_certificate(
    addresses: Sequence[str],
    root_pem: bytes,
    rng: Random,
    world: World,
    *,
    token: str = "",
    credentials: Credentials | None = None,
    availability: int = api.NodeSpec.ACTIVE,
) -> Issued:
    """A certificate for a new key, by join token or by ``credentials``. Raises CertsError or SwarmError."""
    managers = _Managers(addresses, rng, world)
    return await managers.request_certificate(root_pem, token=token, credentials=credentials, availability=availability)


class _Managers:
    """The managers of a cluster, one of which is asked at a time."""

    def __init__(self, addresses: Sequence[str], rng: Random, world: World) -> None:
        self._addresses = rng.sample(list(addresses), len(addresses))
        self._next = 0
        self._rng = rng
        self._world = world

    async def fetch_root(self, digest: str | None) -> bytes:
        """See the function of this name."""

        async def attempt() -> bytes:
            connection = await self._connect(ClientTls(CA_ROLE, roots_pem=None))
            try:
                request = api.GetRootCACertificateRequest()
                response = await _ask(connection, rpc.GET_ROOT_CA_CERTIFICATE, request)
            finally:
                connection.close()
            if digest is not None and root_digest(response.certificate) != digest:
                raise FingerprintMismatch(digest)
            RootCA(response.certificate, None)
            return response.certificate

        return await self._repeat("root_certificate", attempt)

    async def request_certificate(
        self,
        root_pem: bytes,
        *,
        token: str = "",
        credentials: Credentials | None = None,
        availability: int = api.NodeSpec.ACTIVE,
    ) -> Issued:
        """See the function of this name."""
        made = self._world.new_key()
        key = made.key
        request = api.IssueNodeCertificateRequest(csr=made.csr, token=token)
        request.availability = availability  # type: ignore[assignment]
        tls = ClientTls(MANAGER_ROLE if credentials else CA_ROLE, root_pem, credentials)

        async def attempt() -> bytes:
            return await self._issue(tls, request)

        certificate_pem = await self._repeat("certificate", attempt)
        self._check(root_pem, certificate_pem, key)
        issued = Credentials(certificate_pem, private_key_pem(key))
        kek = Kek()
        if identity_of(certificate_pem).role == MANAGER_ROLE:
            kek = await self._repeat("unlock_key", lambda: self._fetch_kek(root_pem, issued))
        return Issued(root_pem, issued, kek)

    async def confirm(self, root_pem: bytes, credentials: Credentials) -> None:
        """See the function of this name."""
        request = api.NodeCertificateStatusRequest(node_id=identity_of(credentials.certificate_pem).node_id)
        tls = ClientTls(MANAGER_ROLE, root_pem, credentials)

        async def attempt() -> None:
            connection = await self._connect(tls)
            try:
                await _ask(connection, rpc.NODE_CERTIFICATE_STATUS, request)
            finally:
                connection.close()

        await self._repeat("confirmation", attempt, defaults.CERTIFICATE_CONFIRMATIONS_MAX)

    # --- single steps ----------------------------------------------------------------------------------------------

    async def _issue(self, tls: ClientTls, request: api.IssueNodeCertificateRequest) -> bytes:
        """Ask for a certificate, then for its status until it answers our CSR and not an earlier one."""
        connection = await self._connect(tls)
        try:
            response = await _ask(connection, rpc.ISSUE_NODE_CERTIFICATE, request)
            status_request = api.NodeCertificateStatusRequest(node_id=response.node_id)
            failures = 0
            while True:
                try:
                    status = await _ask(connection, rpc.NODE_CERTIFICATE_STATUS, status_request)
                except SwarmError as error:
                    if error.code == Code.NOT_FOUND:
                        raise
                    if error.code != Code.DEADLINE_EXCEEDED:
                        connection.close()
                        connection = await self._connect(tls)
                else:
                    if status.certificate.csr == request.csr:
                        if status.status.state in _STATES_SIGNED:
                            return status.certificate.certificate
                        if status.status.state == api.IssuanceStatus.FAILED:
                            raise InvalidArgument(status.status.err or "the certificate request was refused")
                failures += 1
                await self._world.sleep(
                    backoff_s(
                        failures,
                        defaults.CERTIFICATE_POLL_BASE_S,
                        defaults.CERTIFICATE_POLL_FACTOR_S,
                        defaults.CERTIFICATE_POLL_MAX_S,
                        self._rng,
                    )
                )
        finally:
            connection.close()

    def _check(self, root_pem: bytes, certificate_pem: bytes, key: ec.EllipticCurvePrivateKey) -> None:
        leaf, now = load_certificates(certificate_pem)[0], self._world.now()
        try:
            RootCA(root_pem, None).verify(certificate_pem, now)
        except CertificateExpired as error:
            # it was made just now: its beginning tells what the manager took for the time
            signed_s = leaf.not_valid_before_utc.timestamp() + NODE_BACKDATE_S
            raise CertificateExpired(f"{error}; {clock_difference(now, signed_s, 'the manager')}") from error
        if leaf.public_key() != key.public_key():
            raise InvalidCertificate("tls: private key does not match public key")

    async def _fetch_kek(self, root_pem: bytes, credentials: Credentials) -> Kek:
        connection = await self._connect(ClientTls(CA_ROLE, root_pem, credentials))
        try:
            response = await _ask(connection, rpc.GET_UNLOCK_KEY, api.GetUnlockKeyRequest())
        except SwarmError as error:
            if error.code != Code.UNIMPLEMENTED:
                raise
            return Kek()
        finally:
            connection.close()
        if len(response.unlock_key) not in _KEK_BYTES:
            raise SwarmError(f"the cluster's unlock key has {len(response.unlock_key)} bytes")
        return Kek(response.unlock_key, response.version.index)

    # --- again and again -------------------------------------------------------------------------------------------

    async def _connect(self, tls: ClientTls) -> Connection:
        """To the next manager in turn."""
        if not self._addresses:
            raise Unavailable("no remote hosts provided")
        address = self._addresses[self._next % len(self._addresses)]
        self._next += 1
        return await self._world.dial(address, tls, defaults.RPC_DIAL_TIMEOUT_S)

    async def _repeat(
        self, what: str, attempt: Callable[[], Awaitable[T]], attempts_max: int = defaults.CERTIFICATE_ATTEMPTS_MAX
    ) -> T:
        for number in range(1, attempts_max + 1):
            try:
                return await attempt()
            except (SwarmError, CertsError) as error:
                final = isinstance(error, CertsError) or error.code in _FINAL
                if final or number == attempts_max:
                    raise
                log.warning("bootstrap.retry", what=what, attempt=number, error=str(error))
            await self._world.sleep(defaults.CERTIFICATE_RETRY_S)
        raise AssertionError("the last attempt returns or raises")


_KEK_BYTES = (0, 32)


async def _ask(connection: Connection, method: Method[Req, Res], request: Req) -> Res:
    return await connection.unary(method, request, timeout_s=defaults.CERTIFICATE_CALL_TIMEOUT_S)
