"""The certificate and roots of one simulated node, and how it gets them, by production's own dialogues.

Drives swarm/node/bootstrap.py, swarm/node/own_certificate.py and, through lock.py, swarm/node/autolock.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from certs.errors import CertsError
from certs.keys import identity_of, private_key_pem
from certs.keystore import Kek, KeyStore, Locked, Present
from certs.tls import ClientTls, Credentials
from certs.validity import Validity, own_certificate_error
from swarm.api.methods import Method, Req, Res
from swarm.errors import NodeLocked, SwarmError
from swarm.grpc.peer import peer_of
from swarm.manager import cluster
from swarm.node import bootstrap, events, own_certificate
from swarm.rpc import MANAGER_ROLE, Peer
from tests.sim.keys import root
from tests.sim.lock import KeyLock
from tests.sim.network import Connection

if TYPE_CHECKING:
    from tests.sim.process import Process


class SimIdentity:
    """See swarm.io.node.identity.NodeIdentity. first: CSR and certificate of a new cluster's first manager."""

    def __init__(self, process: Process) -> None:
        self.first: tuple[bytes, bytes] | None = None
        self._process = process
        self._root_pem = b""
        self._credentials: Credentials | None = None
        self.keys, self.lock = self._fresh_keys()

    def _fresh_keys(self) -> tuple[KeyStore, KeyLock]:
        keys = self._process.disk.key_store()
        return keys, KeyLock(self._process, keys)

    def forget(self) -> None:
        """The files are gone: the keys of one swarm must not be used in the next."""
        self.lock.driver.close()
        self.keys, self.lock = self._fresh_keys()

    def found_id(self) -> str:
        """See NodeIdentity."""
        try:
            return identity_of(self._process.disk.certificate_pem).node_id
        except CertsError:
            return ""

    def save_root(self, root_pem: bytes) -> None:
        """Trust these roots. Raises OSError."""
        self.keys.save_root(root_pem)
        self._root_pem = root_pem

    def _use(self, credentials: Credentials) -> events.Identity:
        self._credentials = credentials
        identity = self._process.identity = self._shown(credentials.certificate_pem)
        self._process.world.holders.got(identity.node_id, identity.key)
        return events.Identity(credentials.certificate_pem, self._root_pem)

    def _shown(self, certificate_pem: bytes) -> Peer:
        """What a server sees of it; it may be renewed however long ago it expired."""
        error = own_certificate_error(certificate_pem, self._process.clock())
        validity = Validity(error, renewable=bool(error))
        return peer_of(certificate_pem, f"{self._process.host}:40000", validity=validity)

    async def request(self, effect: events.RequestIdentity) -> events.Identity:
        """By join token."""
        rng, world = self._process.random("certificate"), self._world()
        issued = await bootstrap.join(effect.managers, effect.token, effect.availability, rng, world)
        self.save_root(issued.root_pem)
        self.keys.save(issued.credentials, issued.kek)
        self.lock.found()
        return self._use(issued.credentials)

    def open(self, effect: events.OpenIdentity) -> events.Identity:
        unlock_key = self.keys.kek.key if effect.reuse_key else effect.unlock_key
        self.forget()
        found = self.keys.load()
        self.lock.recover(isinstance(found, Locked))
        if isinstance(found, Locked):
            if not unlock_key:
                raise NodeLocked("the key of this node is encrypted")
            found = self.keys.load(unlock_key)
        if not isinstance(found, Present):
            raise SwarmError("the node's key or certificate is missing. Nothing was deleted")
        self._root_pem = found.root_pem
        self.lock.found()
        return self._use(found.credentials)

    def make(self, effect: events.MakeIdentity) -> events.Identity:
        authority, state, new = root(), effect.state, self._process.world.requests.new()
        expiry_s = cluster.complete_spec(effect.spec).ca_config.node_cert_expiry.ToSeconds()
        certificate = authority.sign(
            new.csr, state.node_id, MANAGER_ROLE, state.cluster_id, self._process.clock(), expiry_s
        )
        self.first = new.csr, certificate
        credentials = Credentials(certificate, private_key_pem(new.key))
        self.save_root(authority.bundle_pem)
        self.keys.save(credentials, Kek(effect.unlock_key))
        self.lock.found()
        return self._use(credentials)

    async def renew(self, effect: events.RenewCertificate) -> events.Identity:
        manager = _OwnManager(self._process) if self._process.manager is not None else None
        own, rng = self._credentials, self._process.random("certificate")
        assert own is not None
        issued = await own_certificate.renew(manager, effect.managers, effect.root_pem, own, rng, self._world())
        if issued.root_pem != effect.root_pem:
            self.save_root(issued.root_pem)
        manager_now = identity_of(issued.credentials.certificate_pem).role == MANAGER_ROLE
        await self.lock.save(issued.credentials, issued.kek, manager_now)
        self._use(issued.credentials)
        self._process.kernel.say(self._process.name, "renewed", self._process.identity.role)
        await own_certificate.confirm(manager, effect.managers, issued, rng, self._world())
        return events.Identity(issued.credentials.certificate_pem, issued.root_pem)

    def _world(self) -> bootstrap.World:
        async def sleep(delay_s: float) -> None:
            await self._process.kernel.sleep(delay_s)

        return bootstrap.World(self._dial, sleep, self._process.clock, self._process.world.requests.new)

    async def _dial(self, addr: str, tls: ClientTls, timeout_s: float) -> bootstrap.Connection:
        """With the certificate that is shown there, which need not be the one in use."""
        shown = Peer(addr=f"{self._process.host}:40000")
        if tls.credentials is not None:
            shown = self._shown(tls.credentials.certificate_pem)
        connection: Connection = await self._process.world.network.dial(
            Guise(self._process, shown), addr, timeout_s, tls.node_id
        )
        return cast(bootstrap.Connection, connection)


class Guise:
    """A process that connects with another certificate than the one in use, or with none (tests.sim.network.Caller)."""

    def __init__(self, process: Process, identity: Peer) -> None:
        self.host = process.host
        self.identity = identity
        self.connections = process.connections
        self._process = process

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.alive


class _OwnManager:
    """See swarm.node.own_certificate.OwnManager."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def leads(self) -> bool:
        """Whether it leads."""
        return self._process.leads

    async def wait_leader(self, timeout_s: float) -> None:
        """Until it leads. Raises TimeoutError."""
        await self._process.wait_leader(timeout_s)

    async def ask(self, method: Method[Req, Res], request: Req, timeout_s: float, peer: Peer) -> Res:
        """A unary call."""
        assert self._process.manager is not None
        answer: Res = await self._process.run(self._process.manager.call(method.name, request, timeout_s, peer))
        return answer
