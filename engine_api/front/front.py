"""One client connection: swarm paths go to aiohttp, everything else is spliced to the engine byte for byte.

One Front per client connection. It finds where requests and responses begin and end, nothing more, so that attach,
exec, BuildKit's upgrades, early answers and pipelining are the engine's own. Per request one back end is chosen:

    IDLE --head--> BUSY --response and request complete--> IDLE
      │              └--101, or a response without length--> TUNNEL (bytes both ways, half-closes passed on)
      └--refused, or answered before the request was complete--> LINGER (what still comes is dropped) --> closed
                                                       TUNNEL --the engine closes--> LINGER

A client's half-close is passed on to the engine, which decides what it means, as it does without us.

Unfinished heads, and unfinished bodies of requests to us, are limited in time and, for all clients together, in memory.
Traffic to and from the engine may take as long as it likes. What clients leave unread is limited too (crowd.py). Above
API_CONNECTIONS_MAX connections, a new connection replaces the one that has been idle the longest.

(moby: api/server; the reasons for not proxying in aiohttp are in docs/adr/0006)
"""

from __future__ import annotations

import asyncio
import json
import socket
from enum import Enum
from http import HTTPStatus
from typing import cast

from engine_api.front.backends import WRITE_BUFFER_BYTES, Backend, Backends, Local, Upstream
from engine_api.front.crowd import make_room
from engine_api.front.http1 import HEAD_BYTES_MAX, BadMessage, Body, Head, parse_request, parse_response
from engine_api.front.policy import Policy, Refused
from swarm import defaults
from swarm.io.patience import PatientTimer

TCP_KEEPALIVE_S = 15


class State(Enum):
    """The state of a client connection."""

    IDLE = "idle"
    BUSY = "busy"
    TUNNEL = "tunnel"
    LINGER = "linger"


class Front(asyncio.Protocol):
    """One client connection. policy: its listener's. open_fronts: all connections of the daemon, this one included."""

    transport: asyncio.Transport

    def __init__(self, backends: Backends, open_fronts: set[Front], policy: Policy) -> None:
        self._backends = backends
        self._policy = policy
        self._open_fronts = open_fronts
        self._state = State.IDLE
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that are known to hold no end of a head
        self._request: Body | None = None
        self._request_head: Head | None = None
        self._response: Body | None = None
        self._response_head = b""
        self._current: Backend | None = None
        self._local: Local | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._pauses: set[object] = set()
        self._client_slow = False
        self._close_after = False
        self._client_eof = False
        self._backend_eof = False
        self._timer: PatientTimer | None = None
        self._reading_head = False  # what the timer is for
        self._held_bytes = 0
        self.idle_since = 0.0
        self.patient = False  # see crowd.Client
        self.closed = asyncio.Event()

    # --- the client's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        _keep_alive(self.transport.get_extra_info("socket"))
        self._open_fronts.add(self)
        loop = asyncio.get_running_loop()
        self.idle_since = loop.time()
        if len(self._open_fronts) > defaults.API_CONNECTIONS_MAX and not make_room(self._open_fronts, self):
            self._fail(503, "too many connections to the API")
        else:
            self._timer = PatientTimer(self._backends.silence_s, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self._state is State.TUNNEL:
            assert self._current is not None
            self._current.send(data)
        elif self._state is State.BUSY and not self._buffer:
            self._more_body(data)
        elif self._state is not State.LINGER:
            self._buffer += data
            self._pump()

    def eof_received(self) -> bool:
        self._client_eof = True
        if self._state is State.BUSY:
            streaming = self._response is not None and self._response.chunked
            if self._current is self._local and (self._request_open() or streaming):
                return False  # half a request, or a stream of ours that its reader leaves
            self._pass_eof()
            return True
        if self._state is State.TUNNEL:
            assert self._current is not None
            self._current.send_eof()
            return not self._backend_eof
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_fronts.discard(self)
        self._backends.unread.fast(self)
        self.closed.set()
        self._stop_timer()
        self._hold(0)
        for backend in (self._local, self._upstream):
            if backend is not None:
                backend.stop()
        self._local = self._upstream = self._current = None

    def pause_writing(self) -> None:
        self._client_slow = True
        self._backends.unread.slow(self)
        if self._current is not None:
            self._current.hold()

    def resume_writing(self) -> None:
        self._client_slow = False
        self._backends.unread.fast(self)
        if self._current is not None:
            self._current.unhold()
        else:
            self._pump()

    def close_when_idle(self) -> None:
        """The daemon stops: finish the request in progress and accept no other. Tunnels are closed at once."""
        self._close_after = True
        if self._state is not State.BUSY:
            self.transport.close()

    # --- limits ----------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether the connection can end without loss, because no request has begun."""
        return self._state is State.IDLE and not self._buffer and not self.transport.is_closing()

    def _hold(self, held_bytes: int) -> None:
        """Set how much of our memory this client uses. Raises BadMessage when all clients together use too much."""
        load = self._backends.load
        more = held_bytes - self._held_bytes
        load.unfinished_bytes += more
        self._held_bytes = held_bytes
        if more > 0 and load.unfinished_bytes > defaults.API_UNFINISHED_BYTES_MAX:
            raise BadMessage("too many large requests at the same time", 503)

    def _body_late(self) -> None:
        if self._response is None and not self._response_head:
            self._fail(408, "the body of the request did not arrive in time")

    # --- requests --------------------------------------------------------------------------------------------------

    def _request_open(self) -> bool:
        """Whether a part of the current request has not arrived yet."""
        return self._request is not None and not self._request.done

    def _more_body(self, data: bytes) -> None:
        assert self._request is not None
        assert self._current is not None
        try:
            position = 0 if self._request.done else self._request.feed(data)
            if self._held_bytes:  # a request to us
                self._hold(self._held_bytes + position)
        except BadMessage as error:
            self._fail(error.status, str(error))
            return
        if position:
            self._current.send(data if position == len(data) else data[:position])
        if position < len(data):
            self._buffer += data[position:]
            self._limit_buffer()
        if self._request.done:
            self._stop_timer()
        if self._request.done and self._response is not None and self._response.done:
            self._finish()

    def _limit_buffer(self) -> None:
        """Stop reading from a client that sends requests faster than it reads answers."""
        full = self._state is not State.TUNNEL and len(self._buffer) > HEAD_BYTES_MAX
        if full and (self._state is State.BUSY or self._client_slow):
            self.pause(self)
        else:
            self.resume(self)

    def _pump(self) -> None:
        """Start requests from the buffer until one is in progress."""
        try:
            while self._state is State.IDLE and not self._client_slow and not self.transport.is_closing():
                if not self._begin():
                    break
        except (BadMessage, Refused) as error:
            self._fail(error.status, str(error))
            return
        if self._state is State.IDLE and self._client_eof and not self._client_slow:
            self.transport.close()
        self._limit_buffer()

    def _begin(self) -> bool:
        """Take one request from the buffer; False when its head is not complete."""
        while self._buffer[:2] == b"\r\n":
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        self._searched = len(self._buffer) if end < 0 else 0
        if max(end, self._searched) > HEAD_BYTES_MAX:
            raise BadMessage("request head is larger than 1 MiB", 431)
        if end < 0:
            if self._buffer and not self._reading_head:
                self._stop_timer()
                late = (408, "the head of the request did not arrive in time")
                self._timer = PatientTimer(self._backends.head_read_s, self._fail, *late)
                self._reading_head = True
            self._hold(len(self._buffer))
            return False
        self._stop_timer()
        head = parse_request(bytes(self._buffer[: end + 4]))
        self._request_head = head
        self._close_after = self._close_after or head.close
        self._request = Body(head.length, head.chunked)
        self._response, self._response_head = None, b""
        self.patient = False
        self._state = State.BUSY
        self._policy.check(head)
        position = self._request.feed(self._buffer, end + 4)
        data = bytes(self._buffer[:position])
        del self._buffer[:position]
        answer = self._backends.quick_answer(head)
        if answer is not None:
            self.transport.write(answer)
            self._end_request()
            return True
        backend = self._current = self._choose(head)
        ours = backend is self._local
        if ours:
            data = head.canonical_line + data[len(head.first_line) :]  # the application routes the path that was judged
        self._hold(len(data) if ours else 0)
        if ours and not self._request.done:
            self._timer = PatientTimer(self._backends.body_read_s, self._body_late)
        backend.send(data)
        if self._client_eof:
            self._pass_eof()
        return True

    def _choose(self, head: Head) -> Backend:
        if self._backends.is_local(head):
            head.check_host()
            if self._local is None or self._local.is_closing():
                self._local = Local(self, self._backends.server)
            return self._local
        if self._upstream is None or self._upstream.is_closing():
            self._upstream = Upstream(self, self._backends.buffer)
            self._connecting = asyncio.ensure_future(self._connect(self._upstream))
        return self._upstream

    async def _connect(self, upstream: Upstream) -> None:
        try:
            await self._backends.connect(upstream)
        except OSError as error:
            if upstream is not self._current:
                return
            name, reason = self._backends.engine_name, error.strerror or str(error) or "timed out"
            self._fail(503, f"Cannot connect to the Docker Engine at {name}. Is it running? ({reason})")

    def _pass_eof(self) -> None:
        """Tell the back end that the client has sent everything, once that is so.

        A client that asked for another protocol is not done with its half-close: that one belongs to the tunnel.
        """
        assert self._request_head is not None
        if self._current is not None and not self._buffer and not self._request_head.upgrade:
            self._current.send_eof()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reading_head = False

    def _fail(self, status: int, message: str) -> None:
        """Answer instead of a back end, then close."""
        if self.transport.is_closing() or self._state is State.LINGER:
            return
        if self._state is State.BUSY and (self._response is not None or self._response_head):
            self._linger()  # another answer has begun
            return
        head = self._request_head if self._state is State.BUSY else None
        self.transport.write(_refusal(status, message, to_head=head is not None and head.method == b"HEAD"))
        self._linger()

    def _linger(self) -> None:
        """Close, but read on for a while: if unread data were left, the kernel would drop the answer."""
        self._state, self._current = State.LINGER, None
        self._stop_timer()
        self._buffer.clear()
        self._hold(0)
        for backend in (self._local, self._upstream):
            if backend is not None:
                backend.stop()
        self._local = self._upstream = None
        self._pauses = {self} if self._pauses else self._pauses
        self.resume(self)
        if self._client_eof or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._timer = PatientTimer(self._backends.linger_s, self.transport.close)

    # --- responses -------------------------------------------------------------------------------------------------

    def from_backend(self, backend: Backend, data: bytes) -> None:
        """See FrontSide."""
        if backend is not self._current:
            return
        self.transport.write(data)
        if self._state is not State.BUSY:
            return
        try:
            self._track(data)
        except BadMessage:
            # the engine's answer has gone out as it is, but its end cannot be found
            self.transport.close()

    def _track(self, data: bytes) -> None:
        """Follow a response that has been passed on, to find its end."""
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
                if len(self._response_head) > HEAD_BYTES_MAX:
                    raise BadMessage("response head is larger than 1 MiB")
                return
            head, data = parse_response(self._response_head[: end + 4]), self._response_head[end + 4 :]
            position, self._response_head = 0, b""
            if not self._response_begins(head):
                return
        if self._response is not None and self._response.done and not self._request_open():
            self._finish()

    def _response_begins(self, head: Head) -> bool:
        """The head of a response has passed; False when its end need not be found."""
        assert self._request_head is not None
        status = head.status
        self._close_after = self._close_after or head.close
        self.patient = head.chunked or self._current is self._upstream
        if status == 101:
            self._tunnel()
            return False
        if status < 200:
            return True
        if self._request_head.method == b"HEAD" or status in (204, 304):
            self._response = Body(0, chunked=False)
        elif head.chunked or head.length is not None:
            self._response = Body(head.length, head.chunked)
        else:
            self._tunnel()  # ends with the connection: the old hijack without Upgrade
            return False
        if self._client_eof and head.chunked and self._current is self._local:
            self.transport.close()  # a stream of ours, and its reader has gone
            return False
        return True

    def _tunnel(self) -> None:
        assert self._current is not None
        self._state = State.TUNNEL
        self._stop_timer()
        self._hold(0)
        self.resume(self)
        if self._buffer:
            self._current.send(bytes(self._buffer))
            self._buffer.clear()
        if self._client_eof:
            self._current.send_eof()

    def _finish(self) -> None:
        self._end_request()
        self._pump()

    def _end_request(self) -> None:
        if self._client_slow and self._current is not None:
            self._current.unhold()  # it has nothing left to send
        self._state, self._current, self._request = State.IDLE, None, None
        self._stop_timer()
        self._hold(0)
        self.idle_since = asyncio.get_running_loop().time()
        if self._close_after:
            self.transport.close()

    def backend_eof(self, backend: Backend) -> bool:
        """See FrontSide."""
        if backend is not self._current or self._state is not State.TUNNEL:
            return False
        self._backend_eof = True
        if self._client_eof or not self.transport.can_write_eof():
            self.transport.close()
            return False
        self.transport.write_eof()
        return True

    def backend_lost(self, backend: Backend) -> None:
        """See FrontSide. In the middle of an answer, the client must notice that it is incomplete."""
        self.resume(backend)
        if backend is self._local:
            self._local = None
        if backend is self._upstream:
            self._upstream = None
        if backend is not self._current:
            return
        if self._state is State.BUSY and self._response is None and not self._response_head:
            self._fail(502, f"the Docker Engine at {self._backends.engine_name} closed the connection")
        elif self._state is State.TUNNEL or (self._response is not None and self._response.done):
            self._linger()
        else:
            self.transport.close()

    # --- flow control ----------------------------------------------------------------------------------------------

    def pause(self, reason: object) -> None:
        """See FrontSide."""
        if not self._pauses and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: object) -> None:
        """See FrontSide."""
        if reason not in self._pauses:
            return
        self._pauses.discard(reason)
        if not self._pauses and not self.transport.is_closing():
            self.transport.resume_reading()


def _refusal(status: int, message: str, to_head: bool) -> bytes:
    """An answer of the front's own. to_head: to a HEAD request, whose answer has no body; the CLI shows the reason."""
    body, reason = json.dumps({"message": message}).encode() + b"\n", HTTPStatus(status).phrase
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    if to_head:
        body, reason = b"", " ".join(message.split())
    return f"HTTP/1.1 {status} {reason}\r\n{headers}".encode() + body


def _keep_alive(connection: socket.socket | None) -> None:
    """Detect TCP clients that disappeared without closing, as Go's listeners do."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, TCP_KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, TCP_KEEPALIVE_S)
