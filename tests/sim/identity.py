"""The certificate and roots of one simulated node, and how it gets them, by production's own dialogues.

Drives swarm/node/bootstrap.py, swarm/node/own_certificate.py and, through lock.py, swarm/node/autolock.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from certs.keys import identity_of
from certs.keystore import Kek
from certs.tls import ClientTls, Credentials
from certs.validity import Validity, own_certificate_error
from swarm.api.methods import Method, Req, Res
from swarm.grpc.peer import peer_of
from swarm.manager import cluster
from swarm.node import bootstrap, events, own_certificate
from swarm.rpc import MANAGER_ROLE, Peer
from tests.sim.disk import KeyFile
from tests.sim.keys import root
from tests.sim.lock import KeyLock
from tests.sim.network import Connection

if TYPE_CHECKING:
    from tests.sim.process import Process


class SimIdentity:
    """See swarm.io.node.identity.NodeIdentity. first: CSR and certificate of a new cluster's first manager."""

    def __init__(self, process: Process) -> None:
        self.first: tuple[bytes, bytes] | None = None
        self.lock = KeyLock(process)
        self._process = process

    def save_root(self, root_pem: bytes) -> None:
        self._process.disk.root_pem = root_pem

    def _use(self, certificate_pem: bytes) -> events.Identity:
        identity = self._process.identity = self._shown(certificate_pem)
        self._process.world.holders.got(identity.node_id, identity.key)
        return events.Identity(certificate_pem, self._process.disk.root_pem)

    def _shown(self, certificate_pem: bytes) -> Peer:
        """What a server sees of it; it may be renewed however long ago it expired."""
        error = own_certificate_error(certificate_pem, self._process.clock())
        validity = Validity(error, renewable=bool(error))
        return peer_of(certificate_pem, f"{self._process.host}:40000", validity=validity)

    async def request(self, effect: events.RequestIdentity) -> events.Identity:
        """By join token."""
        rng, world = self._process.random("certificate"), self._world()
        issued = await bootstrap.join(effect.managers, effect.token, effect.availability, rng, world)
        self._process.disk.root_pem = issued.root_pem
        self._process.disk.key_file = KeyFile(issued.credentials.certificate_pem, issued.kek)
        self.lock.found(self._process.disk.key_file)
        return self._use(self._process.disk.certificate_pem)

    def open(self, effect: events.OpenIdentity) -> events.Identity:
        known = self.lock.machine.kek
        unlock_key = known.key if effect.reuse_key and known is not None else effect.unlock_key
        self.forget()
        self._process.disk.recover()
        key_file = self._process.disk.load(unlock_key)
        self.lock.found(key_file)
        return self._use(key_file.certificate_pem)

    def forget(self) -> None:
        self.lock.driver.close()
        self.lock = KeyLock(self._process)

    def make(self, effect: events.MakeIdentity) -> events.Identity:
        authority, state, csr = root(), effect.state, self._process.world.requests.new().csr
        expiry_s = cluster.complete_spec(effect.spec).ca_config.node_cert_expiry.ToSeconds()
        certificate = authority.sign(
            csr, state.node_id, MANAGER_ROLE, state.cluster_id, self._process.clock(), expiry_s
        )
        self.first = csr, certificate
        self._process.disk.root_pem = authority.bundle_pem
        self._process.disk.key_file = KeyFile(certificate, Kek(effect.unlock_key))
        self.lock.found(self._process.disk.key_file)
        return self._use(certificate)

    async def renew(self, effect: events.RenewCertificate) -> events.Identity:
        manager = _OwnManager(self._process) if self._process.manager is not None else None
        own, rng = Credentials(self._process.disk.certificate_pem, b""), self._process.random("certificate")
        world = self._world()
        issued = await own_certificate.renew(manager, effect.managers, effect.root_pem, own, rng, world)
        if issued.root_pem != effect.root_pem:
            self._process.disk.root_pem = issued.root_pem
        manager_now = identity_of(issued.credentials.certificate_pem).role == MANAGER_ROLE
        await self.lock.save(issued.credentials, issued.kek, manager_now)
        self._use(self._process.disk.certificate_pem)
        self._process.kernel.say(self._process.name, "renewed", self._process.identity.role)
        await own_certificate.confirm(manager, effect.managers, issued, rng, world)
        return events.Identity(self._process.disk.certificate_pem, issued.root_pem)

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
