"""The front door: swarm paths go to aiohttp, everything else is spliced to the engine byte for byte.

One Front per client connection. It finds where requests and responses begin and end, nothing more, so that attach,
exec, BuildKit's upgrades, early answers and pipelining are the engine's own. Per request one back end is chosen:

    IDLE --head--> BUSY --response and request complete--> IDLE
                     └--101, or a response without length--> TUNNEL (bytes both ways, half-closes passed on)

(moby: api/server; the reasons for not proxying in aiohttp are in docs/adr/0006)
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, cast

from aiohttp import web

from engine_api.server.http1 import HEAD_BYTES_MAX, BadMessage, Body, Head, parse_head

LOCAL_PATH = re.compile(
    rb"^/*(?:v[0-9.]+/)?(?:swarm|services|tasks|nodes|secrets|configs|_ping|info|version|events)(?:[/?]|$)"
)
WRITE_BUFFER_BYTES = 1 << 20
READ_BUFFER_BYTES = 1 << 18
HEAD_READ_S = 60.0


class State(Enum):
    """Where a client connection is."""

    IDLE = "idle"
    BUSY = "busy"
    TUNNEL = "tunnel"


@dataclass(frozen=True)
class Backends:
    """Where requests go. server: aiohttp's; connect: opens a connection to the engine with the given protocol.

    quick_answer: a whole response for requests that need no back end (/_ping), else None.
    """

    server: Callable[[], Any]
    connect: Callable[[Upstream], Any]
    engine_name: str
    quick_answer: Callable[[Head], bytes | None] = lambda head: None


def is_local(head: Head) -> bool:
    """Whether a request is for us: the swarm's paths, and those where we add to the engine's answer."""
    return LOCAL_PATH.match(head.target) is not None


class Backend(Protocol):
    """One side that answers: aiohttp's request handler, or a connection to the engine."""

    def send(self, data: bytes) -> None:
        """Bytes of the request or of the tunnel."""
        ...

    def send_eof(self) -> None:
        """The client will send no more."""
        ...

    def stop(self) -> None:
        """The client has gone."""
        ...

    def hold(self) -> None:
        """The client reads too slowly: send no more."""
        ...

    def unhold(self) -> None:
        """Go on."""
        ...

    def is_closing(self) -> bool:
        """Whether this back end can take no further request."""
        ...


class Local(asyncio.Transport):
    """aiohttp's request handler; this object is the transport that it sees."""

    def __init__(self, front: Front, server: Callable[[], Any]) -> None:
        super().__init__()
        self._front = front
        self._closing = False
        self._handler = server()
        self._handler.connection_made(self)

    def send(self, data: bytes) -> None:
        self._handler.data_received(data)

    def send_eof(self) -> None:
        self._handler.eof_received()

    def stop(self) -> None:
        if not self._closing:
            self._closing = True
            self._handler.connection_lost(None)

    def hold(self) -> None:
        self._handler.pause_writing()

    def unhold(self) -> None:
        self._handler.resume_writing()

    # --- the transport's side ---

    def write(self, data: Any) -> None:
        self._front.from_backend(self, bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self._front.from_backend(self, b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._closed)

    def abort(self) -> None:
        self.close()

    def _closed(self) -> None:
        self._handler.connection_lost(None)
        self._front.backend_lost(self)

    def is_closing(self) -> bool:
        return self._closing or self._front.transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._front.transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._front.pause(self)

    def resume_reading(self) -> None:
        self._front.resume(self)

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self._front.transport.get_write_buffer_size()


class Upstream(asyncio.BufferedProtocol):
    """A connection to the engine; what is sent before it is open waits."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._buffer = bytearray(READ_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._closing = False
        self._eof_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if self._closing:
            self._transport.abort()
            return
        if self._waiting:
            self._transport.write(b"".join(self._waiting))
            self._waiting = []
        if self._eof_waiting:
            self._transport.write_eof()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._front.from_backend(self, bytes(self._view[:nbytes]))

    def eof_received(self) -> bool:
        return self._front.backend_eof(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._front.backend_lost(self)

    def pause_writing(self) -> None:
        self._front.pause(self)

    def resume_writing(self) -> None:
        self._front.resume(self)

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
        else:
            self._waiting.append(data)

    def send_eof(self) -> None:
        if self._transport is None:
            self._eof_waiting = True
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def stop(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def hold(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def unhold(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def is_closing(self) -> bool:
        return self._closing or (self._transport is not None and self._transport.is_closing())


class Front(asyncio.Protocol):
    """One client connection."""

    transport: asyncio.Transport

    def __init__(self, backends: Backends, open_fronts: set[Front]) -> None:
        self._backends = backends
        self._open_fronts = open_fronts
        self._state = State.IDLE
        self._buffer = bytearray()
        self._request: Body | None = None
        self._request_head: Head | None = None
        self._response: Body | None = None
        self._response_head = b""
        self._current: Backend | None = None
        self._local: Local | None = None
        self._upstream: Upstream | None = None
        self._pauses: set[object] = set()
        self._close_after = False
        self._client_eof = False
        self._backend_eof = False
        self._head_timer: asyncio.TimerHandle | None = None
        self.closed = asyncio.Event()

    # --- the client's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._open_fronts.add(self)

    def data_received(self, data: bytes) -> None:
        if self._state is State.TUNNEL:
            assert self._current is not None
            self._current.send(data)
        elif self._state is State.BUSY and not self._buffer:
            self._more_body(data)
        else:
            self._buffer += data
            self._pump()
            self._limit_buffer()

    def eof_received(self) -> bool:
        self._client_eof = True
        if self._state is State.TUNNEL:
            assert self._current is not None
            self._current.send_eof()
            return not self._backend_eof
        # a client that will speak another protocol may half-close before the answer comes; any other has gone, as
        # Go's server sees it
        return self._state is State.BUSY and self._request_head is not None and self._request_head.upgrade

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_fronts.discard(self)
        self.closed.set()
        self._cancel_head_timer()
        for backend in (self._local, self._upstream):
            if backend is not None:
                backend.stop()
        self._local = self._upstream = self._current = None

    def pause_writing(self) -> None:
        if self._current is not None:
            self._current.hold()

    def resume_writing(self) -> None:
        if self._current is not None:
            self._current.unhold()

    def close_when_idle(self) -> None:
        """The daemon stops: finish the request in progress, take no other. Tunnels are closed at once."""
        self._close_after = True
        if self._state is not State.BUSY:
            self.transport.close()

    # --- requests --------------------------------------------------------------------------------------------------

    def _more_body(self, data: bytes) -> None:
        assert self._request is not None
        assert self._current is not None
        try:
            position = 0 if self._request.done else self._request.feed(data)
        except BadMessage as error:
            self._fail(400, str(error))
            return
        if position:
            self._current.send(data if position == len(data) else data[:position])
        if position < len(data):
            self._buffer += data[position:]
            self._limit_buffer()
        if self._request.done and self._response is not None and self._response.done:
            self._finish()

    def _limit_buffer(self) -> None:
        if self._state is State.BUSY and len(self._buffer) > HEAD_BYTES_MAX:
            self.pause(self)

    def _pump(self) -> None:
        if self._state is not State.IDLE or not self._buffer:
            return
        try:
            self._begin()
        except BadMessage as error:
            self._fail(400, str(error))

    def _begin(self) -> None:
        while self._buffer[:2] == b"\r\n":
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise BadMessage("request head is larger than 1 MiB")
            if self._head_timer is None and self._buffer:
                loop = asyncio.get_running_loop()
                self._head_timer = loop.call_later(HEAD_READ_S, self._fail, 408, "the request head did not arrive")
            return
        self._cancel_head_timer()
        head = parse_head(bytes(self._buffer[: end + 4]))
        if len(head.first_line.split(b" ")) != 3:
            raise BadMessage("malformed request line")
        self._request_head = head
        self._close_after = self._close_after or head.close
        self._request = Body(head.length, head.chunked)
        self._response, self._response_head = None, b""
        position = self._request.feed(self._buffer, end + 4)
        data = bytes(self._buffer[:position])
        del self._buffer[:position]
        answer = self._backends.quick_answer(head)
        if answer is not None:
            self.transport.write(answer)
            self._finish()
            return
        self._current = self._choose(head)
        self._state = State.BUSY
        self._current.send(data)

    def _choose(self, head: Head) -> Backend:
        if is_local(head):
            if self._local is None or self._local.is_closing():
                self._local = Local(self, self._backends.server)
            return self._local
        if self._upstream is None or self._upstream.is_closing():
            self._upstream = Upstream(self)
            task = asyncio.ensure_future(self._connect(self._upstream))
            self._connecting = task
        return self._upstream

    async def _connect(self, upstream: Upstream) -> None:
        try:
            await self._backends.connect(upstream)
        except OSError as error:
            if upstream is not self._current:
                return
            name, reason = self._backends.engine_name, error.strerror or str(error)
            self._fail(503, f"Cannot connect to the Docker Engine at {name}. Is it running? ({reason})")

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _fail(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        reason = {400: "Bad Request", 408: "Request Timeout", 502: "Bad Gateway"}.get(status, "Service Unavailable")
        body = json.dumps({"message": message}).encode() + b"\n"
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.transport.close()

    # --- responses -------------------------------------------------------------------------------------------------

    def from_backend(self, backend: Backend, data: bytes) -> None:
        """Bytes of a response or of the tunnel."""
        if backend is not self._current:
            return
        self.transport.write(data)
        if self._state is not State.BUSY:
            return
        try:
            self._track(data)
        except BadMessage:
            # the engine's answer has gone out as it is; what follows cannot be told apart any more
            self.transport.close()

    def _track(self, data: bytes) -> None:
        assert self._request is not None
        assert self._request_head is not None
        position = 0
        while position < len(data):
            if self._response is not None:
                position = self._response.feed(data, position)
                if self._response.done:
                    break
                continue
            self._response_head += data[position:]
            end = self._response_head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = parse_head(self._response_head[: end + 4]), self._response_head[end + 4 :]
            position, self._response_head = 0, b""
            status = head.status
            self._close_after = self._close_after or head.close
            if status == 101:
                self._tunnel()
                return
            if 100 <= status < 200:
                continue
            if self._request_head.method == b"HEAD" or status in (204, 304):
                self._response = Body(0, chunked=False)
            elif head.chunked or head.length is not None:
                self._response = Body(head.length, head.chunked)
            else:
                self._tunnel()  # ends with the connection: the old hijack without Upgrade
                return
        if self._response is not None and self._response.done and self._request.done:
            self._finish()

    def _tunnel(self) -> None:
        assert self._current is not None
        self._state = State.TUNNEL
        self.resume(self)
        if self._buffer:
            self._current.send(bytes(self._buffer))
            self._buffer.clear()
        if self._client_eof:
            self._current.send_eof()

    def _finish(self) -> None:
        self._state, self._current = State.IDLE, None
        self.resume(self)
        if self._close_after or (self._client_eof and not self._buffer):
            self.transport.close()
        elif self._buffer:
            self._pump()

    def backend_eof(self, backend: Backend) -> bool:
        """The engine half-closed; True keeps its connection open for what the client still sends."""
        if backend is not self._current or self._state is not State.TUNNEL:
            return False
        self._backend_eof = True
        if self._client_eof or not self.transport.can_write_eof():
            self.transport.close()
            return False
        self.transport.write_eof()
        return True

    def backend_lost(self, backend: Backend) -> None:
        """A back end closed; in the middle of an answer the client must see that."""
        if backend is self._local:
            self._local = None
        if backend is self._upstream:
            self._upstream = None
        if backend is not self._current:
            return
        if self._state is State.BUSY and self._response is None and not self._response_head:
            self._fail(502, f"the Docker Engine at {self._backends.engine_name} closed the connection")
        self.transport.close()

    # --- flow control ----------------------------------------------------------------------------------------------

    def pause(self, reason: object) -> None:
        """Read no more from the client while any reason stands."""
        if not self._pauses and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: object) -> None:
        """Withdraw a reason."""
        if reason not in self._pauses:
            return
        self._pauses.discard(reason)
        if not self._pauses and not self.transport.is_closing():
            self.transport.resume_reading()


def engine_connector(engine: str) -> Callable[[Upstream], Any]:
    """A function that connects a protocol to DOCKER_HOST ``engine`` (unix:// or tcp://). Raises OSError."""
    scheme, _, rest = engine.partition("://")

    async def connect(upstream: Upstream) -> None:
        loop = asyncio.get_running_loop()
        if scheme == "unix":
            await loop.create_unix_connection(lambda: upstream, rest)
        else:
            host, _, port = rest.rpartition(":")
            await loop.create_connection(lambda: upstream, host, int(port))

    return connect


async def make_runner(app: web.Application) -> web.AppRunner:
    """aiohttp's side of the front: ``runner.server`` is what Backends.server calls."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    return runner
