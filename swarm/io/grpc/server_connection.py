"""One client's connection to our gRPC server: its HTTP/2 state, its peer, and its open calls.

A call lives in ``ServerConnection.calls`` from its headers until its status is handed to HTTP/2. Whatever ends it goes
through ``finish`` (a status is sent) or ``_abandon`` (the stream is gone). Either way the handler gets one StreamEnd
for an end that it did not cause itself, provided that it was given the call.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, cast

from google.protobuf.message import DecodeError, Message

from certs.errors import InvalidCertificate
from certs.validity import Validity, validity_of
from swarm import defaults
from swarm.address import join_host_port
from swarm.api import rpc
from swarm.api.methods import BY_PATH, AnyMethod
from swarm.errors import Code, DeadlineExceeded, ResourceExhausted, SwarmError, Unimplemented
from swarm.grpc import events, http2, wire
from swarm.grpc.admission import TrackedConnection
from swarm.grpc.flow import Limits, Stream
from swarm.grpc.frames import ErrorCode
from swarm.grpc.peer import peer_of
from swarm.grpc.rate import Rate
from swarm.grpc.wire import HttpError, MessageReader, WireError
from swarm.io.patience import PatientTimer
from swarm.rpc import MANAGER_ROLE, Call, Peer, StreamData, StreamEnd

DRAIN_PING = b"draining"
RENEWAL_WINDOW_MAX_S = defaults.EXPIRED_RENEWAL_WINDOW_MAX_S
KEEPALIVE_PING = b"alive?\0\0"
_TIMER_MAX_S = 30 * 24 * 3600.0

ANONYMOUS_LIMITS = Limits(
    streams_max=defaults.RPC_STREAMS_ANONYMOUS_MAX, message_bytes_max=defaults.RPC_MESSAGE_ANONYMOUS_BYTES_MAX
)
WORKER_LIMITS = Limits(streams_max=defaults.RPC_STREAMS_WORKER_MAX)
MANAGER_LIMITS = Limits(
    streams_max=defaults.RPC_STREAMS_MANAGER_MAX,
    stream_window_bytes=defaults.RPC_MANAGER_STREAM_WINDOW_BYTES,
    resets_per_s_max=defaults.RPC_RESETS_MANAGER_PER_S_MAX,
    control_frames_per_s_max=defaults.RPC_RESETS_MANAGER_PER_S_MAX,
)


class ServerCall:
    """One call. ``stream`` is its number in the events of swarm/rpc.py, ``h2`` its HTTP/2 stream."""

    __slots__ = (
        "answered",
        "connection",
        "end_told",
        "h2",
        "half_closed",
        "method",
        "opened_at",
        "paused",
        "peer",
        "reader",
        "ready",
        "started",
        "stream",
        "taking",
        "timeout_s",
        "timer",
        "unfinished_bytes",
    )

    def __init__(
        self, connection: ServerConnection, h2: Stream, stream: int, method: AnyMethod, peer: Peer, now: float
    ) -> None:
        self.connection = connection
        self.h2 = h2
        h2.patient = method.name == rpc.SUBSCRIBE_LOGS.name and connection.limits is MANAGER_LIMITS
        self.stream = stream
        self.method = method
        self.peer = peer
        self.opened_at = now
        self.reader = MessageReader(connection.limits.message_bytes_max)
        self.timeout_s: float | None = None
        self.timer: PatientTimer | None = None
        self.started = False  # the handler knows of it
        self.answered = False  # the response's headers are sent
        self.half_closed = False
        self.end_told = not method.client_streaming  # other requests end with their one message
        self.paused = False
        self.ready: deque[bytes] = deque()  # messages that are complete, and go to the handler next
        self.taking = False  # they are being delivered
        self.unfinished_bytes = 0  # of its request, that wait for the rest or for resume


class Owner(Protocol):
    """What a connection needs of its server."""

    def next_stream(self) -> int:
        """A number for a new call."""
        ...

    def authorize(self, method: AnyMethod, direct: Peer, metadata: Mapping[str, tuple[str, ...]]) -> Peer:
        """The caller, or PermissionDenied."""
        ...

    def opened(self, call: ServerCall) -> None:
        """A call has begun; its request may be incomplete."""
        ...

    def emit(self, event: Call | StreamData | StreamEnd) -> None:
        """Give an event to the handler."""
        ...

    def started(self, call: ServerCall) -> None:
        """The call is about to be given to the handler."""
        ...

    def ended(self, call: ServerCall) -> None:
        """The call is over."""
        ...

    def established(self, connection: ServerConnection) -> bool:
        """A connection is ready; False refuses it."""
        ...

    def lost(self, connection: ServerConnection) -> None:
        """A connection is gone."""
        ...

    def misbehaved(self, connection: ServerConnection, reason: str, code: str) -> None:
        """A connection is about to be ended because of what its client did."""
        ...

    def may_call(self, connection: ServerConnection, now: float) -> bool:
        """Whether there may be one more call now."""
        ...

    def hold(self, connection: ServerConnection, difference: int) -> bool:
        """Count bytes of incomplete requests that are kept (or, if negative, dropped); False: too many."""
        ...

    def flush_soon(self, connection: ServerConnection) -> None:
        """Call connection.flush() in this turn of the loop."""
        ...


class ServerConnection(asyncio.Protocol):
    """The application protocol on top of TLS."""

    def __init__(self, owner: Owner, tracked: TrackedConnection) -> None:
        self._owner = owner
        self.tracked = tracked
        self._loop = asyncio.get_running_loop()
        self._receiving = False
        self._timed: list[ServerCall] = []
        self.transport: asyncio.Transport | None = None
        self.h2: http2.Connection | None = None
        self.limits = ANONYMOUS_LIMITS
        self.peer = Peer()
        self.calls: dict[int, ServerCall] = {}
        self.drain_begun = False
        self.draining = False
        self.received_at = self._loop.time()
        self.active_at = self.received_at
        self.pinged_at: float | None = None
        self.dirty = False
        self._refusals = Rate(defaults.RPC_REFUSALS_PER_S_MAX)

    # --- the transport's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done: identify the peer, and send our SETTINGS."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it
        self.transport.set_write_buffer_limits(high=defaults.RPC_OUTPUT_CHUNK_BYTES)
        address = format_address(transport.get_extra_info("peername"))
        self.peer = Peer(addr=address)
        chain = transport.get_extra_info("peer_chain_der")
        if chain is None:
            self.limits = MANAGER_LIMITS  # no TLS: the socket's access control decides who connects
        elif chain:
            context = transport.get_extra_info("sslcontext")
            self.peer = _certified(chain, address, validity_of(chain, context, time.time(), RENEWAL_WINDOW_MAX_S))
            if self.peer.certified:
                self.limits = MANAGER_LIMITS if self.peer.role == MANAGER_ROLE else WORKER_LIMITS
        if self.limits is MANAGER_LIMITS:
            self._refusals = Rate(self.limits.control_frames_per_s_max)
        if not self._owner.established(self):
            self.transport.abort()
            return
        self.h2 = http2.Connection(client=False, limits=self.limits)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Bytes of HTTP/2."""
        if self.h2 is None:
            return
        now = self.received_at = self._loop.time()
        self.pinged_at = None
        self._receiving = True
        for event in self.h2.receive(data, now):
            if type(event) is events.DataReceived:
                self._data(event)
            elif type(event) is events.HeadersReceived:
                self._request(event, now)
            elif type(event) is events.StreamClosed:
                self._stream_closed(event)
            elif type(event) is events.PongReceived:
                self._pong(event.payload)
            elif type(event) is events.Terminated:
                self._owner.misbehaved(self, event.text, event.code.name)
        self._receiving = False
        if self._timed:
            self._set_timers()
        self.flush()

    def eof_received(self) -> bool:
        """The client will send nothing more; HTTP/2 has no use for half a connection."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, and its calls with it."""
        if isinstance(exc, ConnectionAbortedError) and self.h2 is not None:  # by our TLS: see certs/stream.py
            self._owner.misbehaved(self, str(exc), "TLS")
        self.h2 = None
        for call in list(self.calls.values()):
            self._abandon(call, SwarmError("the connection to the client was lost", Code.CANCELED))
        self._owner.lost(self)

    def pause_writing(self) -> None:
        """The client, or the network, is slow."""
        if self.h2 is not None:
            self.h2.blocked = True

    def resume_writing(self) -> None:
        """Go on sending."""
        if self.h2 is not None:
            self.h2.blocked = False
            self.flush()

    def flush(self) -> None:
        """Hand to the transport whatever may be sent now."""
        self.dirty = False
        if self.h2 is None or self.transport is None:
            return
        while data := self.h2.take_output():
            self.transport.write(data)
        if self.h2.terminated:
            self.transport.close()
        elif self.h2.blocked and self.transport.get_write_buffer_size() > _UNREAD_BYTES_MAX:
            self._owner.misbehaved(self, "the client does not read its answers", ErrorCode.ENHANCE_YOUR_CALM.name)
            self.transport.abort()
        elif self.draining and not self.h2.streams:
            self.transport.close()

    # --- requests ---

    def _request(self, event: events.HeadersReceived, now: float) -> None:
        assert self.h2 is not None
        stream = self.h2.streams.get(event.stream)
        if stream is None or self.h2.terminated:
            return
        self.active_at = now
        if not self._owner.may_call(self, now):
            self.refuse("too many calls without a certificate from this address")
            return
        try:
            request = wire.parse_request(event.fields)
            method = BY_PATH.get(request.path)
            if method is None:
                raise _unknown_method(request.path)
            peer = self._owner.authorize(method, self.peer, request.metadata)
        except (HttpError, SwarmError) as error:
            self._refuse_call(stream, error, now)
            return
        call = ServerCall(self, stream, self._owner.next_stream(), method, peer, now)
        self.calls[stream.id] = call
        self._owner.opened(call)
        if request.timeout_s is not None:
            call.timeout_s = min(request.timeout_s, _TIMER_MAX_S)
            self._timed.append(call)
        if method.client_streaming:
            self._emit(call, Call(call.stream, method.name, None, peer))
        if event.end:
            self._half_closed(call)

    def _refuse_call(self, stream: Stream, error: HttpError | SwarmError, now: float) -> None:
        assert self.h2 is not None
        if isinstance(error, HttpError):
            self.h2.send(stream, b"", wire.http_error_block(error.status))
        else:
            self.h2.send(stream, b"", self._response_block() + wire.status_block(error))
        if self._refusals.exceeded_by(now):
            self.refuse("too many calls that are not allowed")

    def _data(self, event: events.DataReceived) -> None:
        call = self.calls.get(event.stream)
        if call is None or self.h2 is None:
            return
        self._take(call, event.data)
        if event.end and self.calls.get(event.stream) is call:
            self._half_closed(call)

    def _take(self, call: ServerCall, data: bytes) -> None:
        """More of a request, and what waits of it: messages are delivered until the call is paused, or over."""
        call.taking = True
        try:
            self._deliver(call, data)
        except WireError as error:
            self.finish(call, error)
        finally:
            call.taking = False
        reader = call.reader
        if self.h2 is None or self.calls.get(call.h2.id) is not call:
            return
        more = reader.unfinished_bytes + sum(map(len, call.ready)) - call.unfinished_bytes
        if more:
            call.unfinished_bytes += more
            if not self._owner.hold(self, more):
                self.finish(call, ResourceExhausted("too much of this client's requests is incomplete"))
                return
        if reader.missing and not call.paused:
            self.h2.want(call.h2, reader.missing)

    def _deliver(self, call: ServerCall, data: bytes) -> None:
        while True:
            while call.ready and not call.paused:
                self._message(call, call.ready.popleft())
            messages = call.reader.feed(data, 0 if call.paused else _MESSAGES_AT_ONCE)
            data = b""
            if not messages:
                return
            if not call.method.client_streaming and (call.started or len(messages) > 1):
                raise WireError(f"{call.method.path} takes one request message")
            call.ready.extend(messages)

    def _message(self, call: ServerCall, data: bytes) -> None:
        if self.h2 is None or self.calls.get(call.h2.id) is not call:
            return
        self.h2.consumed(call.h2, wire.PREFIX_BYTES + len(data))
        try:
            message: Message = call.method.request.FromString(data)
        except DecodeError:
            self.finish(call, WireError("grpc: failed to unmarshal the received message"))
            return
        if call.method.client_streaming:
            self._emit(call, StreamData(call.stream, message))
        else:
            self._emit(call, Call(call.stream, call.method.name, message, call.peer))

    def _half_closed(self, call: ServerCall) -> None:
        call.half_closed = True
        if call.paused:
            return
        if call.reader.partial:
            self.finish(call, WireError("the request ended in the middle of a message"))
        elif not call.end_told:
            call.end_told = True
            self._emit(call, StreamEnd(call.stream))
        elif not call.started:
            self.finish(call, WireError(f"{call.method.path} takes one request message"))

    def pause(self, call: ServerCall) -> None:
        """No more StreamData of this call until resume."""
        call.paused = True

    def resume(self, call: ServerCall) -> None:
        """Deliver what waited, and go on."""
        call.paused = False
        if call.taking:
            return  # the handler paused and resumed while it was given a message: the next one follows anyway
        self._take(call, b"")
        if call.half_closed and self.calls.get(call.h2.id) is call:
            self._half_closed(call)
        self._owner.flush_soon(self)

    def _emit(self, call: ServerCall, event: Call | StreamData | StreamEnd) -> None:
        if not call.started:
            call.started = True
            self._owner.started(call)
        self._owner.emit(event)

    # --- ends ---

    def _set_timers(self) -> None:
        """Only calls that were not answered at once need a timer."""
        for call in self._timed:
            if self.calls.get(call.h2.id) is call and call.timeout_s is not None:
                call.timer = PatientTimer(call.timeout_s, self.expire, call)
        self._timed.clear()

    def expire(self, call: ServerCall) -> None:
        """The call's deadline passed."""
        if self.calls.get(call.h2.id) is call:
            self.finish(call, DeadlineExceeded("context deadline exceeded"))

    def finish(self, call: ServerCall, error: SwarmError) -> None:
        """End a call for a reason that is not the handler's."""
        if self.calls.get(call.h2.id) is not call:
            return
        self.end(call, error)
        if call.started:
            self._owner.emit(StreamEnd(call.stream, error))

    def _stream_closed(self, event: events.StreamClosed) -> None:
        call = self.calls.get(event.stream)
        if call is not None:
            self._abandon(call, wire.reset_error(event.code, event.text))

    def _abandon(self, call: ServerCall, error: SwarmError) -> None:
        self._forget(call)
        if call.started:
            self._owner.emit(StreamEnd(call.stream, error))

    def _forget(self, call: ServerCall) -> None:
        del self.calls[call.h2.id]
        if call.unfinished_bytes:
            self._owner.hold(self, -call.unfinished_bytes)
            call.unfinished_bytes = 0
        if call.timer is not None:
            call.timer.cancel()
        self._owner.ended(call)

    # --- answers ---

    def send_message(self, call: ServerCall, message: Message, last: bool) -> None:
        """An answer; ``last`` ends the call with OK after it. Ends it otherwise when the client is too slow to read."""
        if self.h2 is None:
            return
        full = len(call.h2.outbox) >= defaults.RPC_STREAM_BUFFER_BYTES_MAX
        if full or self.h2.buffered >= defaults.RPC_CONNECTION_BUFFER_BYTES_MAX:
            self.h2.discard(call.h2)
            self.finish(call, ResourceExhausted("the client does not read its answers fast enough"))
            return
        if not call.answered:
            call.answered = True
            self.h2.send_headers(call.h2, self._response_block())
        data = wire.frame_message(message.SerializeToString())
        self.h2.send(call.h2, data, wire.OK_BLOCK if last else None)
        if last:
            self._forget(call)
        self._changed()

    def end(self, call: ServerCall, error: SwarmError | None) -> None:
        """The status of a call, after what was sent of it."""
        if self.h2 is not None:
            block = wire.status_block(error)
            self.h2.send(call.h2, b"", block if call.answered else self._response_block() + block)
        self._forget(call)
        self._changed()

    def _response_block(self) -> bytes:
        """The headers of an answer, with our time for peers without a valid certificate: their clocks may be wrong."""
        if self.peer.certified:
            return wire.RESPONSE_BLOCK
        return wire.RESPONSE_BLOCK + wire.clock_block(time.time())

    def _changed(self) -> None:
        if not self._receiving and not self.dirty:
            self.dirty = True
            self._owner.flush_soon(self)

    # --- life of the connection ---

    def drain(self) -> None:
        """Begin a graceful end: GOAWAY, and a PING whose answer tells that the client has read it."""
        if self.h2 is not None and not self.drain_begun:
            self.drain_begun = True
            self.h2.announce_end()
            self.h2.ping(DRAIN_PING)
            self.flush()

    def _pong(self, payload: bytes) -> None:
        if payload == DRAIN_PING and self.h2 is not None:
            self.h2.refuse_new()
            self.draining = True

    def stop(self, error: SwarmError) -> None:
        """End what is still open with this error, then the connection."""
        if self.h2 is None or self.transport is None:
            return
        for call in list(self.calls.values()):
            self.finish(call, error)
        self.flush()
        self.transport.close()

    def refuse(self, reason: str) -> None:
        """End the connection because the client does not keep up with the protocol."""
        if self.h2 is not None:
            self._owner.misbehaved(self, reason, ErrorCode.ENHANCE_YOUR_CALM.name)
            self.h2.terminate(ErrorCode.ENHANCE_YOUR_CALM, reason)
            self.flush()


_MESSAGES_AT_ONCE = defaults.RPC_STREAM_MESSAGES_AT_ONCE
_UNREAD_BYTES_MAX = defaults.RPC_CONTROL_BUFFER_BYTES_MAX + 2 * defaults.RPC_OUTPUT_CHUNK_BYTES


def _certified(chain_der: list[bytes], address: str, validity: Validity) -> Peer:
    try:
        return peer_of(chain_der[0], address, validity=validity)
    except InvalidCertificate:
        return Peer(addr=address)  # signed by our CA, but not for a node: the client stays anonymous


def format_address(peername: Any) -> str:
    """ "ip:port" as Go prints it, "" for what is no IP socket."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return ""
    host, port = str(peername[0]), peername[1]
    if host.startswith("::ffff:") and "." in host:
        host = host.removeprefix("::ffff:")
    return join_host_port(host, port)


_PATH = re.compile(r"/([A-Za-z0-9_.]+)/([A-Za-z0-9_]+)")
_SERVICES = frozenset(path.split("/")[1] for path in BY_PATH)


def _unknown_method(path: str) -> SwarmError:
    match = _PATH.fullmatch(path[:256])
    if match is None:
        return Unimplemented("malformed method name")
    if match[1] not in _SERVICES:
        return Unimplemented(f"unknown service {match[1]}")
    return Unimplemented(f"unknown method {match[2]} for service {match[1]}")
