"""The gRPC server of port 2377: it turns requests into the events of swarm/rpc.py.

A call is looked up in METHODS, authorised, and handed to ``handler`` as a Call when its request is complete (at once
for client streams). Answers come back through ``send`` at any time, in the same loop. Later the handler gets StreamData
for messages, StreamEnd(None) when a client stream is complete, and StreamEnd(error) when a call ends before its answer:
it was cancelled, its deadline passed, its connection was lost, or its answers were not read. No answer is expected
then, and answers to closed streams are dropped.

Anybody may connect, so everything is limited: connections and unfinished requests (admission.py), time for the
handshake and for a request, streams, memory (see receiving.py), and idle time. One sweep every few seconds serves all
limits of time, so that a call costs a timer only when it is not answered at once. What a peer does wrong is logged once
a minute per address, with how often it happened.

(swarmkit: manager/manager.go; grpc-go: server.go, internal/transport/http2_server.go)
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import structlog

from certs.stream import serve_tls
from swarm import defaults
from swarm.api.methods import AnyMethod
from swarm.attention import Attention
from swarm.errors import DeadlineExceeded, Internal, PermissionDenied, SwarmError, Unavailable
from swarm.grpc.admission import Admission, TrackedConnection
from swarm.grpc.http2 import Connection
from swarm.io.grpc.certificate_reports import CertificateErrorReports
from swarm.io.grpc.open_connections import OpenConnections
from swarm.io.grpc.server_connection import KEEPALIVE_PING, ServerCall, ServerConnection, format_address
from swarm.io.patience import PatientTimer
from swarm.log_limiter import LogLimiter
from swarm.rpc import Call, Peer, Reply, StreamData, StreamEnd

log = structlog.get_logger()

Handler = Callable[[Call | StreamData | StreamEnd], None]
Authorizer = Callable[[AnyMethod, Peer, Mapping[str, tuple[str, ...]]], Peer]


class RpcServer:
    """The gRPC server. Everything runs in the loop in which listen() was awaited."""

    def __init__(
        self,
        handler: Handler,
        tls_context: Callable[[], ssl.SSLContext] | None,
        authorizer: Authorizer,
        next_stream: Iterator[int],
        registered_hosts: Callable[[], Iterable[str]] = tuple,
        certificate_errors: Counter[bool] | None = None,
    ) -> None:
        """handler takes events and must not block; authorizer is usually a ClusterAuthorizer.

        tls_context is called for each connection. None: no TLS, for sockets with their own access control and tests.
        registered_hosts: IP addresses of nodes, which a flood of anonymous connections does not keep out.
        certificate_errors: see CertificateErrorReports.
        """
        self._handler = handler
        self._tls_context = tls_context
        self._authorizer = authorizer
        self._streams = next_stream
        self._servers: list[asyncio.Server] = []  # uvloop closes a server that nobody refers to
        self._open = OpenConnections()
        self._connections = self._open.ready
        self._admission = Admission(registered_hosts)
        self._log_limiter = LogLimiter()
        self._calls: dict[int, ServerCall] = {}
        self._incomplete: dict[int, ServerCall] = {}
        self._dirty: list[ServerConnection] = []
        self._certificate_errors = CertificateErrorReports(
            Counter() if certificate_errors is None else certificate_errors
        )
        self._stalled: dict[ServerConnection, tuple[int, float]] = {}
        self._unread: dict[ServerConnection, tuple[int, float]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._attention = Attention()
        self._closed = False

    # --- life ---

    async def listen(self, host: str, port: int) -> None:
        """Accept connections; port 0 takes a free one (see addresses). Raises OSError."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(self._accept, host, port, backlog=1024))
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(defaults.RPC_SWEEP_PERIOD_S, self._sweep_and_rearm)

    @property
    def connection_count(self) -> int:
        """TCP connections, including those in their TLS handshake."""
        return self._admission.connections

    @property
    def addresses(self) -> list[str]:
        """What it listens on, "ip:port"."""
        return [format_address(socket.getsockname()) for server in self._servers for socket in server.sockets]

    async def close(self, grace_s: float = defaults.RPC_STOP_GRACE_S) -> None:
        """Accept nothing more; give open calls ``grace_s`` seconds, then end them with Unavailable."""
        self._closed = True
        for server in self._servers:
            server.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for tracked in list(self._open.handshaking):
            tracked.abort()
        for connection in list(self._connections):
            connection.drain()
        await self._open.wait_empty(grace_s)
        for connection in list(self._connections):
            connection.stop(Unavailable("the server is stopping"))
        await self._open.wait_empty(_LAST_BYTES_S)
        for connection in list(self._connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._open.wait_empty(_LAST_BYTES_S)

    # --- answers ---

    def send(self, answer: Reply | StreamData | StreamEnd) -> None:
        """Answer a call: Reply (unary, client stream), StreamData and StreamEnd (server stream, or an error)."""
        call = self._calls.get(answer.stream)
        if call is None:
            return
        if isinstance(answer, StreamEnd):
            call.connection.end(call, answer.error)
        else:
            call.connection.send_message(call, answer.message, isinstance(answer, Reply))

    def buffered(self, stream: int) -> int:
        """Bytes of answers that wait for a slow client, 0 for a call that is gone."""
        call = self._calls.get(stream)
        return 0 if call is None else len(call.h2.outbox)

    def pause(self, stream: int) -> None:
        """Take no more messages of a client stream: its client is held back once a window is full."""
        if (call := self._calls.get(stream)) is not None:
            call.connection.pause(call)

    def resume(self, stream: int) -> None:
        """Go on after pause."""
        if (call := self._calls.get(stream)) is not None:
            call.connection.resume(call)

    # --- connections ---

    def _accept(self) -> asyncio.BaseProtocol:
        if self._tls_context is None:
            return ServerConnection(self, TrackedConnection(lambda: None))
        tracked = TrackedConnection(lambda: stream.abort())
        stream = serve_tls(
            lambda: ServerConnection(self, tracked),
            self._tls_context,
            handshake_timeout_s=defaults.RPC_HANDSHAKE_TIMEOUT_S,
            admit=lambda peername: self._admit(tracked, peername),
            on_failed=lambda peername, error: self._handshake_failed(tracked, peername, error),
            start_timer=PatientTimer,
        )()
        return stream

    def _admit(self, tracked: TrackedConnection, peername: Any) -> bool:
        """Count a connection that begins its handshake, or refuse it."""
        if self._closed:
            return False
        reason = self._admission.accept(tracked, _host(peername), asyncio.get_running_loop().time())
        if reason:
            self._warn("rpc.not_admitted", peername, reason=reason)
        else:
            self._open.handshaking[tracked] = None
        return not reason

    def _warn(self, event: str, peername: Any, **details: object) -> None:
        """Log what a peer did, if it was not logged a short time ago."""
        times = self._log_limiter.times((event, _host(peername)), asyncio.get_running_loop().time())
        if times:
            log.warning(event, peer=format_address(peername), **details, times=times)

    def _handshake_failed(self, tracked: TrackedConnection, peername: Any, error: Exception) -> None:
        displaced = tracked.address is None
        self._open.shaken(tracked)
        self._admission.release(tracked)
        reason = getattr(error, "reason", None) or str(error)
        self._warn("rpc.handshake_failed", peername, error="displaced by a newer connection" if displaced else reason)

    def established(self, connection: ServerConnection) -> bool:
        """See Owner."""
        assert connection.transport is not None
        peername = connection.transport.get_extra_info("peername")
        tracked, trusted = connection.tracked, self._tls_context is None
        if trusted:
            tracked.abort = connection.transport.abort
            if not self._admit(tracked, peername):
                return False
        self._open.shaken(tracked)
        now = asyncio.get_running_loop().time()
        reason = self._admission.identify(tracked, connection.peer, now, trusted)
        if self._closed:
            reason = "the server is stopping"
        if reason:
            self._admission.release(tracked)
            self._warn("rpc.not_admitted", peername, node=connection.peer.node_id, reason=reason)
            return False
        self._connections[connection] = None
        if connection.peer.certificate_error:
            self._certificate_errors.report(connection.peer, now)
        return True

    def lost(self, connection: ServerConnection) -> None:
        """See Owner."""
        self._open.drop(connection)
        self._stalled.pop(connection, None)
        self._unread.pop(connection, None)
        self._admission.release(connection.tracked)

    def misbehaved(self, connection: ServerConnection, reason: str, code: str) -> None:
        """See Owner."""
        assert connection.transport is not None
        peername = connection.transport.get_extra_info("peername")
        self._warn("rpc.connection_refused", peername, node=connection.peer.node_id, code=code, reason=reason)

    def may_call(self, connection: ServerConnection, now: float) -> bool:
        """See Owner."""
        return self._admission.may_call(connection.tracked, now)

    def hold(self, connection: ServerConnection, difference: int) -> bool:
        """See Owner."""
        return self._admission.hold(connection.tracked, difference)

    def drop_nodes(self, is_removed: Callable[[str], bool]) -> None:
        """End the connections of nodes that were removed from the cluster, with their calls."""
        for connection in list(self._connections):
            node_id = connection.peer.node_id
            if node_id and is_removed(node_id):
                log.info("rpc.node_dropped", node=node_id, peer=connection.peer.addr)
                connection.stop(PermissionDenied(f"Permission denied: node {node_id} was removed from swarm"))

    def end_calls(self, why: Callable[[AnyMethod, Peer], SwarmError | None]) -> None:
        """End the open calls for which ``why`` returns an error, with that error."""
        for call in [*self._incomplete.values(), *self._calls.values()]:
            if (error := why(call.method, call.peer)) is not None:
                call.connection.finish(call, error)

    # --- calls ---

    def next_stream(self) -> int:
        """See Owner."""
        return next(self._streams)

    def authorize(self, method: AnyMethod, direct: Peer, metadata: Mapping[str, tuple[str, ...]]) -> Peer:
        """See Owner."""
        return self._authorizer(method, direct, metadata)

    def opened(self, call: ServerCall) -> None:
        """See Owner."""
        self._incomplete[call.stream] = call

    def started(self, call: ServerCall) -> None:
        """See Owner."""
        self._incomplete.pop(call.stream, None)
        self._calls[call.stream] = call

    def ended(self, call: ServerCall) -> None:
        """See Owner."""
        self._incomplete.pop(call.stream, None)
        self._calls.pop(call.stream, None)

    def emit(self, event: Call | StreamData | StreamEnd) -> None:
        """See Owner. A handler that raises is a bug; it costs the call, not the server."""
        try:
            self._handler(event)
        except Exception:
            log.exception("rpc.handler_failed", stream=event.stream)
            self.send(StreamEnd(event.stream, Internal("internal error")))

    def flush_soon(self, connection: ServerConnection) -> None:
        """See Owner. All answers of one turn of the loop leave together."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty.append(connection)

    def _flush(self) -> None:
        connections, self._dirty = self._dirty, []
        for connection in connections:
            connection.flush()

    # --- limits of time ---

    def _sweep_and_rearm(self) -> None:
        loop, now = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        if missed_s := self._attention.missed_s(now):  # what peers sent meanwhile is not read yet
            spare(self._connections, self._incomplete.values(), (self._stalled, self._unread), missed_s)
        else:
            self.sweep(now)
        self._attention.due = now + defaults.RPC_SWEEP_PERIOD_S
        self._sweep_timer = loop.call_later(defaults.RPC_SWEEP_PERIOD_S, self._sweep_and_rearm)

    def sweep(self, now: float) -> None:
        """Apply all limits of time; ``now`` is the loop's clock. Runs by itself every RPC_SWEEP_PERIOD_S."""
        for call in list(self._incomplete.values()):
            if now - call.opened_at > defaults.RPC_REQUEST_TIMEOUT_S:
                call.connection.finish(call, DeadlineExceeded("the request did not come in time"))
        for connection in list(self._connections):
            self._sweep_connection(connection, now)
        self._admission.sweep(now)

    def _sweep_connection(self, connection: ServerConnection, now: float) -> None:
        h2 = connection.h2
        if h2 is None:
            return
        if _stands_still(self._stalled, connection, h2.frames, h2.awaiting_frames, now, _FRAME_TIMEOUT_S):
            connection.refuse("frame or preface not completed in time")
        elif _stands_still(self._unread, connection, h2.data_bytes_sent, _must_read(connection), now, _READ_TIMEOUT_S):
            connection.refuse("the client does not read its answers")
        else:
            self._sweep_idle(connection, h2, now)

    def _sweep_idle(self, connection: ServerConnection, h2: Connection, now: float) -> None:
        assert connection.transport is not None
        idle_s = defaults.RPC_IDLE_S if connection.peer.certified else defaults.RPC_IDLE_ANONYMOUS_S
        if h2.streams:
            connection.active_at = now
        elif now - connection.active_at > idle_s + defaults.RPC_KEEPALIVE_TIMEOUT_S:
            connection.transport.close()  # it was asked to close, and did not
            return
        elif now - connection.active_at > idle_s:
            connection.drain()
        if connection.pinged_at is not None:
            if now - connection.pinged_at > defaults.RPC_KEEPALIVE_TIMEOUT_S:
                log.info("rpc.connection_silent", peer=connection.peer.addr)
                connection.transport.abort()
        elif now - connection.received_at > defaults.RPC_KEEPALIVE_S:
            connection.pinged_at = now
            h2.ping(KEEPALIVE_PING)
            connection.flush()


def _must_read(connection: ServerConnection) -> bool:
    """Whether answers wait that the client has to read soon.

    A manager may leave logs where they are for as long as their reader does: no more than RPC_STREAM_BUFFER_BYTES_MAX.
    """
    h2 = connection.h2
    if h2 is None or not h2.buffered:
        return False
    return h2.blocked or h2.buffered > sum(len(stream.outbox) for stream in h2.streams.values() if stream.patient)


_Progress = dict[ServerConnection, tuple[int, float]]


def spare(
    connections: Iterable[ServerConnection],
    incomplete: Iterable[ServerCall],
    progress: Iterable[_Progress],
    missed_s: float,
) -> None:
    """This process stood still for so long (swarm/attention.py): no peer was idle or silent then."""
    for connection in connections:
        connection.active_at += missed_s
        connection.received_at += missed_s
        connection.pinged_at = None if connection.pinged_at is None else connection.pinged_at + missed_s
    for call in incomplete:
        call.opened_at += missed_s
    for since in progress:
        for connection, (count, at) in since.items():
            since[connection] = count, at + missed_s


def _stands_still(
    since: _Progress,
    connection: ServerConnection,
    progress: int,
    expected: bool,
    now: float,
    timeout_s: float,
) -> bool:
    """Whether expected progress did not come for ``timeout_s``. since: the last progress of each, and its time."""
    if not expected:
        since.pop(connection, None)
        return False
    before, at = since.get(connection, (-1, now))
    if before != progress:
        since[connection] = (progress, now)
        return False
    return now - at > timeout_s


_FRAME_TIMEOUT_S = defaults.RPC_HANDSHAKE_TIMEOUT_S
_READ_TIMEOUT_S = defaults.RPC_READ_TIMEOUT_S
_LAST_BYTES_S = 1.0


def _host(peername: Any) -> str:
    return str(peername[0]) if isinstance(peername, tuple) and peername else ""
