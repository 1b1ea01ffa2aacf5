"""The certificate, key and roots of this node on disk and in use, and how it gets them (swarm/node/events.py).

Whatever is saved is used from then on, also for new connections of a running server.

(swarmkit: ca/config.go, ca/keyreadwriter.go, node/node.go loadSecurityConfig)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from ssl import SSLContext

from certs.errors import CertsError
from certs.files import SYSTEM, Files
from certs.keys import identity_of, new_csr, new_private_key, private_key_pem
from certs.keystore import CERTIFICATE_FILE, Absent, Kek, KeyStore, Locked, Present
from certs.root import RootCA
from certs.tls import ClientTls, Credentials, member_context
from swarm import api
from swarm.api.methods import Method, Req, Res
from swarm.errors import NodeLocked, SwarmError
from swarm.io.counts import Counts
from swarm.io.node.autolock import Autolock
from swarm.io.node.manager_process import ManagerProcess
from swarm.io.node.member_log import LOG_FILE
from swarm.io.node.world import REAL
from swarm.manager import cluster
from swarm.manager.root_rotation import trusted_roots
from swarm.node import bootstrap, events, own_certificate
from swarm.rpc import MANAGER_ROLE, Peer


class NodeIdentity:
    """See the module. autolock: of the key file. first: root, CSR and certificate of a new cluster's first manager."""

    def __init__(
        self,
        directory: Path,
        rng: Random,
        now: Callable[[], float],
        renew: Callable[[], None],
        counts: Counts,
        disk: Files = SYSTEM,
    ) -> None:
        """directory: of the node. now: seconds since the epoch. renew: called if the key was on disk in clear text."""
        self.first: tuple[RootCA, bytes, bytes] | None = None
        self._directory = directory
        self._files = disk
        self._rng = rng
        self._now = now
        self._renew = renew
        self._counts = counts
        self._root_pem = b""
        self._credentials: Credentials | None = None
        self._context: tuple[bytes, Credentials, SSLContext] | None = None
        self._keys, self.autolock = self._fresh_keys()

    def _fresh_keys(self) -> tuple[KeyStore, Autolock]:
        keys = KeyStore(self._directory / "certificates", self._files)
        return keys, Autolock(keys, self._directory / LOG_FILE, self._rng, self._renew, self._files)

    def forget(self) -> None:
        """The files are gone: the keys of one swarm must not be used in the next."""
        self._keys, self.autolock = self._fresh_keys()

    def found_id(self) -> str:
        """ID of the node whose certificate is on disk; empty when none can be read."""
        with contextlib.suppress(CertsError, OSError):
            return identity_of((self._directory / "certificates" / CERTIFICATE_FILE).read_bytes()).node_id
        return ""

    def save_root(self, root_pem: bytes) -> None:
        """Trust these roots. Raises OSError."""
        self._keys.save_root(root_pem)
        self._root_pem = root_pem

    async def make(self, effect: events.MakeIdentity) -> events.Identity:
        state, now = effect.state, self._now()
        root = await asyncio.to_thread(RootCA.create, now)
        key = new_private_key()
        csr = new_csr(key)
        expiry_s = cluster.complete_spec(effect.spec).ca_config.node_cert_expiry.ToSeconds()
        certificate = root.sign(csr, state.node_id, MANAGER_ROLE, state.cluster_id, now, expiry_s)
        self.first = root, csr, certificate
        self.save_root(root.bundle_pem)
        self._keys.save(Credentials(certificate, private_key_pem(key)), Kek(effect.unlock_key))
        return self._use(Credentials(certificate, private_key_pem(key)))

    async def request(self, effect: events.RequestIdentity) -> events.Identity:
        issued = await bootstrap.join(effect.managers, effect.token, effect.availability, self._rng, REAL)
        self.save_root(issued.root_pem)
        self._keys.save(issued.credentials, issued.kek)
        return self._use(issued.credentials)

    async def open(self, effect: events.OpenIdentity) -> events.Identity:
        unlock_key = self._keys.kek.key if effect.reuse_key else effect.unlock_key
        self._keys, self.autolock = self._fresh_keys()
        found = self._keys.load()
        await asyncio.to_thread(self.autolock.recover, isinstance(found, Locked))
        if isinstance(found, Locked):
            if not unlock_key:
                raise NodeLocked("the key of this node is encrypted")
            found = self._keys.load(unlock_key)
        if isinstance(found, Absent):
            names = ", ".join(str(self._keys.directory / name) for name in found.missing)
            raise SwarmError(f"the node's key or certificate is missing: {names}. Nothing was deleted")
        assert isinstance(found, Present)
        self._root_pem = found.root_pem
        return self._use(found.credentials)

    async def renew(self, effect: events.RenewCertificate, manager: ManagerProcess | None) -> events.Identity:
        try:
            identity = await self._replace(effect, manager)
        except BaseException:
            self._counts.renewals["failed"] += 1
            raise
        self._counts.renewals["renewed"] += 1
        return identity

    async def _replace(self, effect: events.RenewCertificate, manager: ManagerProcess | None) -> events.Identity:
        own, root_pem = self._credentials, effect.root_pem
        assert own is not None
        own_manager = _OwnManager(manager) if manager is not None else None
        issued = await own_certificate.renew(own_manager, effect.managers, root_pem, own, self._rng, REAL)
        if issued.root_pem != root_pem:
            self.save_root(issued.root_pem)
        async with self.autolock.writing:
            if identity_of(issued.credentials.certificate_pem).role == MANAGER_ROLE:
                await self.autolock.take(issued.kek)
                self._keys.save(issued.credentials)
            else:
                self.autolock.attach(None)
                self._keys.save(issued.credentials, Kek(), forget_raft_keys=True)
        self._use(issued.credentials)
        await own_certificate.confirm(own_manager, effect.managers, issued, self._rng, REAL)
        return events.Identity(issued.credentials.certificate_pem, issued.root_pem)

    def _use(self, credentials: Credentials) -> events.Identity:
        """Use these from now on, also for new connections of a running server."""
        self._credentials = credentials
        return events.Identity(credentials.certificate_pem, self._root_pem)

    def server_context(self, manager: ManagerProcess | None) -> SSLContext:
        """For the server: during a root rotation, clients may have certificates of the old or the new root."""
        assert self._credentials is not None
        found = next(manager.store.all(api.Cluster), None) if manager is not None else None
        trusted = trusted_roots(self._root_pem, found.root_ca if found is not None else api.RootCA())
        if self._context is None or self._context[:2] != (trusted, self._credentials):
            self._context = (trusted, self._credentials, member_context(self._credentials, trusted))
        return self._context[2]

    def client_tls(self) -> ClientTls:
        """For connections to managers."""
        return ClientTls("swarm-manager", self._root_pem, self._credentials)


class _OwnManager:
    """The manager of this process, for own_certificate.renew."""

    def __init__(self, manager: ManagerProcess) -> None:
        self._manager = manager

    @property
    def leads(self) -> bool:
        """See OwnManager."""
        return self._manager.leadership.leading

    async def wait_leader(self, timeout_s: float) -> None:
        """See OwnManager."""
        await self._manager.wait_leader(timeout_s)

    async def ask(self, method: Method[Req, Res], request: Req, timeout_s: float, peer: Peer) -> Res:
        """See OwnManager."""
        return await self._manager.local.unary(method, request, timeout_s, peer)
