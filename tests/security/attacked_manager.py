"""A real manager under attack: its machine and services behind real TLS on loopback, and clients that obey no rules.

AttackedManager is one ManagerProcess that leads a cluster with a few nodes, tasks and secrets. Intruder is a client
that writes whatever bytes it is told to, and understands the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from google.protobuf.message import Message
from hpack import Decoder

from certs.keys import new_csr, new_private_key, private_key_pem
from certs.root import RootCA
from certs.tls import ClientTls, Credentials, client_context, member_context
from swarm import api
from swarm.address import parse_host_port
from swarm.api import rpc
from swarm.api.methods import METHODS, AnyMethod
from swarm.grpc import frames as h2
from swarm.grpc import wire
from swarm.grpc.frames import ErrorCode
from swarm.io.grpc import client
from swarm.io.grpc.server import RpcServer
from swarm.io.node.manager_process import ManagerProcess
from swarm.io.node.member_log import ManagerSettings
from swarm.io.process import Clock
from swarm.manager import cluster
from swarm.manager.cluster import NewCluster
from swarm.store.tx import Tx

CLUSTER = "9xq3w6h2b5c1k8m4n7p0r2t5v"
MANAGER, OTHER_MANAGER = "manager1", "manager2"
WORKER, OTHER_WORKER, REMOVED = "worker1", "worker2", "removed1"
MANAGER_ROLE, WORKER_ROLE = "swarm-manager", "swarm-worker"
DAY_S = 24 * 3600.0
WAIT_S = 10.0
SECRET_VALUES = {"mine": b"for worker1 only", "other": b"for worker2 only"}


class Pki:
    """A root, and certificates of it with every mistake that is of use to an attacker."""

    def __init__(self) -> None:
        self.root = RootCA.create(time.time() - 30 * DAY_S)
        self._made: dict[tuple[str, str, str, float], Credentials] = {}

    def issue(self, node_id: str, role: str, org: str = CLUSTER, made_at: float = 0.0) -> Credentials:
        """A node certificate of two hours, from ``made_at`` (seconds since the epoch, 0: now) on."""
        key = (node_id, role, org, made_at)
        if key not in self._made:
            private = new_private_key()
            signed = self.root.sign(new_csr(private), node_id, role, org, made_at or time.time(), 7200.0)
            self._made[key] = Credentials(signed, private_key_pem(private))
        return self._made[key]


@dataclass
class Outcome:
    """What an intruder was sent: responses per stream, resets, GOAWAY, and whether the connection was closed."""

    status: dict[int, tuple[int, str]] = field(default_factory=dict)
    http: dict[int, str] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)
    resets: dict[int, ErrorCode] = field(default_factory=dict)
    goaway: tuple[ErrorCode, str] | None = None
    pongs: list[bytes] = field(default_factory=list)
    settings: dict[int, int] = field(default_factory=dict)
    closed: bool = False


class Intruder(asyncio.Protocol):
    """A client of frames. ``outcome`` collects what it was answered."""

    def __init__(self) -> None:
        self.outcome = Outcome()
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._decoder = Decoder()
        self._changed = asyncio.Event()

    # --- transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= h2.FRAME_HEADER_BYTES:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < h2.FRAME_HEADER_BYTES + size:
                break
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            payload = bytes(self._buffer[9 : 9 + size])
            del self._buffer[: 9 + size]
            self._frame(kind, flags, stream, payload)
        self._changed.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.outcome.closed = True
        self._changed.set()

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        outcome = self.outcome
        if kind == h2.HEADERS:
            fields = dict(self._decoder.decode(payload, raw=True))
            if b":status" in fields and fields[b":status"] != b"200":
                outcome.http[stream] = fields[b":status"].decode()
            if b"grpc-status" in fields:
                text = wire.percent_decode(fields.get(b"grpc-message", b""))
                outcome.status[stream] = (int(fields[b"grpc-status"]), text)
        elif kind == h2.DATA:
            outcome.data[stream] = outcome.data.get(stream, b"") + payload
        elif kind == h2.RST_STREAM:
            outcome.resets[stream] = ErrorCode(h2.uint32(payload))
        elif kind == h2.GOAWAY:
            outcome.goaway = (ErrorCode(h2.uint32(payload, 4)), payload[8:].decode())
        elif kind == h2.PING and flags & h2.ACK:
            outcome.pongs.append(payload)
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            outcome.settings = h2.parse_settings(payload)

    # --- what it does ---

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self.transport is not None
        self.transport.write(data)

    def request(
        self,
        stream: int,
        method: AnyMethod | str,
        body: bytes = b"",
        metadata: Mapping[str, str] | tuple[tuple[str, str], ...] = (),
        *,
        end: bool = True,
    ) -> None:
        """A call with this message as it is (no framing of it is checked)."""
        pairs = tuple(metadata.items()) if isinstance(metadata, Mapping) else metadata
        self.write(h2.header_frames(stream, headers(method, pairs), False, h2.DEFAULT_FRAME_BYTES))
        self.write(data_frames(stream, body, end=end))

    async def until(self, condition: Callable[[Outcome], object]) -> Outcome:
        """Wait for something in the outcome."""
        async with asyncio.timeout(WAIT_S):
            while not condition(self.outcome):
                self._changed.clear()
                await self._changed.wait()
        return self.outcome

    async def answer(self, stream: int = 1) -> tuple[int, str]:
        """The gRPC status of a call."""
        outcome = await self.until(lambda seen: stream in seen.status or seen.closed)
        assert stream in outcome.status, outcome
        return outcome.status[stream]

    async def end(self) -> Outcome:
        """Wait until the server has closed the connection."""
        return await self.until(lambda seen: seen.closed)

    async def alive(self) -> None:
        """Make sure that everything written so far was taken, and that the connection is there still."""
        mark = len(self.outcome.pongs)
        self.write(h2.frame(h2.PING, 0, 0, b"%08d" % mark))
        outcome = await self.until(lambda seen: len(seen.pongs) > mark or seen.closed)
        assert not outcome.closed, outcome

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def headers(method: AnyMethod | str, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The header block of a call."""
    path = METHODS[method].path if isinstance(method, str) else method.path
    block = wire.request_block(path, MANAGER_ROLE, secure=True)
    return block + b"".join(h2.literal(name, value) for name, value in metadata)


def framed(message: Message | bytes) -> bytes:
    """A message as gRPC sends it."""
    return wire.frame_message(message if isinstance(message, bytes) else message.SerializeToString())


def data_frames(stream: int, body: bytes, *, end: bool = True, size: int = h2.DEFAULT_FRAME_BYTES) -> bytes:
    """DATA frames of at most ``size`` bytes."""
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    frames = [h2.frame(h2.DATA, 0, stream, part) for part in parts[:-1]]
    return b"".join([*frames, h2.frame(h2.DATA, h2.END_STREAM if end else 0, stream, parts[-1])])


class AttackedManager:
    """Drives the ManagerProcess that is attacked; has what it takes to be one of its nodes."""

    def __init__(self, directory: Path) -> None:
        self.pki = Pki()
        self.key = new_private_key()
        self.csr = new_csr(self.key)
        own = self.pki.root.sign(self.csr, MANAGER, MANAGER_ROLE, CLUSTER, time.time(), 7200.0)
        self.own = Credentials(own, private_key_pem(self.key))
        self.context = member_context(self.own, self.pki.root.bundle_pem)
        self.process = ManagerProcess(
            directory,
            ManagerSettings(MANAGER, CLUSTER, "127.0.0.1:2377", "127.0.0.1", 0),
            lambda: self.context,
            lambda: self.client_tls(self.own),
            Clock(),
            Random(7),
        )
        self.intruders: list[Intruder] = []
        self.connections: list[client.ClientConnection] = []
        self.kept: list[object] = []  # streams that must stay open

    async def start(self) -> None:
        """Found the cluster and fill it."""
        await self.process.start(create=True)
        await self.process.wait_leader(WAIT_S)
        root, own = self.pki.root, self.own.certificate_pem
        await self.write(
            lambda tx: cluster.bootstrap(tx, CLUSTER, MANAGER, api.ClusterSpec(), root, self.csr, own, NewCluster())
        )
        await self.write(self._fill)

    def _fill(self, tx: Tx) -> None:
        for node_id, role in ((OTHER_MANAGER, api.MANAGER), (WORKER, api.WORKER), (OTHER_WORKER, api.WORKER)):
            node = api.Node(id=node_id, role=role)
            node.spec.desired_role = role
            node.spec.membership = api.NodeSpec.ACCEPTED
            node.certificate.role = role
            node.certificate.cn = node_id
            node.certificate.status.state = api.IssuanceStatus.ISSUED
            tx.create(node)
        for name, node_id in (("mine", WORKER), ("other", OTHER_WORKER)):
            secret = api.Secret(id=f"secret-{name}")
            secret.spec.annotations.name = name
            secret.spec.data = SECRET_VALUES[name]
            tx.create(secret)
            task = api.Task(id=f"task-{name}", node_id=node_id, desired_state=api.RUNNING)
            task.annotations.name = f"task-{name}"
            task.status.state = api.ASSIGNED
            task.spec.container.image = "busybox"
            task.spec.container.secrets.add(secret_id=secret.id, secret_name=name)
            tx.create(task)
        tx.edit(api.Cluster, CLUSTER).blacklisted_certificates[REMOVED].SetInParent()

    async def stop(self) -> None:
        await self.leave_alone()
        await self.process.close()

    async def leave_alone(self) -> None:
        """End all connections of the test."""
        for intruder in self.intruders:
            intruder.close()
        for connection in self.connections:
            connection.close()
        for item in self.kept:
            if isinstance(item, asyncio.Future):
                await asyncio.wait([item], timeout=WAIT_S)
                item.exception()
        self.kept.clear()
        self.intruders.clear()
        self.connections.clear()
        await settled(lambda: self.server.connection_count == 0)

    async def write(self, change: Callable[[Tx], object]) -> None:
        """Change the store through the log."""

        def run(tx: Tx) -> None:
            change(tx)

        await self.process.write(run, WAIT_S)

    @property
    def server(self) -> RpcServer:
        return self.process._server

    @property
    def address(self) -> tuple[str, int]:
        return parse_host_port(self.server.addresses[0])

    @property
    def cluster(self) -> api.Cluster:
        found = self.process.store.get(api.Cluster, CLUSTER)
        assert found is not None
        return found

    def client_tls(self, credentials: Credentials | None) -> ClientTls:
        return ClientTls(MANAGER_ROLE, self.pki.root.bundle_pem, credentials)

    def worker(self, node_id: str = WORKER) -> Credentials:
        return self.pki.issue(node_id, WORKER_ROLE)

    def manager(self, node_id: str = OTHER_MANAGER) -> Credentials:
        return self.pki.issue(node_id, MANAGER_ROLE)

    @contextlib.asynccontextmanager
    async def served_meanwhile(self) -> AsyncIterator[None]:
        """A worker goes on making calls while something happens; all of them must be answered."""
        connection = await self.connect(self.worker(OTHER_WORKER))
        beat = api.HeartbeatRequest(session_id=await session_of(connection))
        stop = asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                await connection.unary(rpc.HEARTBEAT, beat, timeout_s=WAIT_S)
                await asyncio.sleep(0.001)
            await connection.unary(rpc.HEARTBEAT, beat, timeout_s=WAIT_S)

        worker = asyncio.create_task(work())
        try:
            yield
        finally:
            stop.set()
            await worker
        newcomer = await self.connect(self.worker(OTHER_WORKER))  # members are let in as well
        await newcomer.unary(rpc.GET_ROOT_CA_CERTIFICATE, api.GetRootCACertificateRequest(), timeout_s=WAIT_S)
        assert not self.process.failed.done()

    def sweep(self, later_s: float) -> None:
        """As if so much time had passed since what happened before; the sweep itself runs."""
        self.server.sweep(asyncio.get_running_loop().time() + later_s)

    async def connect(self, credentials: Credentials | None = None) -> client.ClientConnection:
        """A client that obeys the rules."""
        connection = await client.connect(self.server.addresses[0], self.client_tls(credentials))
        self.connections.append(connection)
        return connection

    async def intrude(
        self,
        credentials: Credentials | None = None,
        *,
        greeting: bytes = h2.PREFACE + h2.settings_frame({}),
        context: ssl.SSLContext | None = None,
        source: str = "127.0.0.1",
    ) -> Intruder:
        """A client that obeys none. source: the address from which it comes, in 127.0.0.0/8."""
        context = context or client_context(self.client_tls(credentials))
        loop = asyncio.get_running_loop()
        host, port = self.address
        _, intruder = await loop.create_connection(
            Intruder, host, port, ssl=context, server_hostname=MANAGER_ROLE, local_addr=(source, 0)
        )
        self.intruders.append(intruder)
        intruder.write(greeting)
        return intruder


async def settled(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is so that no event tells of."""
    for _ in range(int(WAIT_S * 1000)):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


async def session_of(connection: client.ClientConnection) -> str:
    """Register with the dispatcher, and stay registered while the connection is open."""
    stream = connection.stream(rpc.SESSION, api.SessionRequest())
    message = await anext(stream)
    assert isinstance(message, api.SessionMessage)
    _kept.append(stream)
    return message.session_id


_kept: list[object] = []
