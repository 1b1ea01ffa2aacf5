"""The two back ends that answer a client of the front: aiohttp's request handler in this process, and the engine.

Both have the same interface (Backend): bytes of the request in, bytes of the response out, flow control both ways.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine_api.front.crowd import Unread
from engine_api.front.http1 import HEAD_BYTES_MAX, Head
from engine_api.front.paths import IsLocal
from swarm import defaults
from swarm.address import parse_host_port

WRITE_BUFFER_BYTES = 1 << 18  # with one read more, what waits for a client that does not read a stream
READ_BUFFER_BYTES = 1 << 18
WAITING_BYTES_MAX = 1 << 20
HEADERS_MAX = 1 << 14


class FrontSide(Protocol):
    """What a back end sees of its client connection."""

    transport: asyncio.Transport

    def from_backend(self, backend: Backend, data: bytes) -> None:
        """Bytes of a response or of the tunnel."""
        ...

    def backend_eof(self, backend: Backend) -> bool:
        """The engine half-closed its side; True keeps the connection open for data that the client still sends."""
        ...

    def backend_lost(self, backend: Backend) -> None:
        """A back end closed."""
        ...

    def pause(self, reason: object) -> None:
        """Stop reading from the client until every reason is withdrawn."""
        ...

    def resume(self, reason: object) -> None:
        """Withdraw a reason."""
        ...


class Backend(Protocol):
    """What answers requests: the application or the engine."""

    def send(self, data: bytes) -> None:
        """Bytes of the request or of the tunnel."""
        ...

    def send_eof(self) -> None:
        """The client has half-closed its side."""
        ...

    def stop(self) -> None:
        """The client has disconnected."""
        ...

    def hold(self) -> None:
        """The client reads too slowly: pause."""
        ...

    def unhold(self) -> None:
        """Continue after hold()."""
        ...

    def is_closing(self) -> bool:
        """Whether this back end accepts no further request."""
        ...


class Local(asyncio.Transport):
    """aiohttp's request handler; this object is the transport that it sees."""

    def __init__(self, front: FrontSide, server: Callable[[], Any]) -> None:
        super().__init__()
        self._front = front
        self._closing = False
        self._held = False
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
        if not self._held:
            self._held = True
            self._handler.pause_writing()

    def unhold(self) -> None:
        if self._held:
            self._held = False
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
    """A connection to the engine; data that is sent before it is open waits.

    buffer: where reads go. All connections share it, because each read is copied out before the next one begins.
    """

    def __init__(self, front: FrontSide, buffer: bytearray) -> None:
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._buffer = buffer
        self._closing = False
        self._eof_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if self._closing:
            self._transport.abort()
            return
        waiting, self._waiting = self._waiting, []
        self._front.resume(self)  # before the write, which may find it too much again
        if waiting:
            self._transport.write(b"".join(waiting))
        if self._eof_waiting:
            self._transport.write_eof()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._front.from_backend(self, bytes(memoryview(self._buffer)[:nbytes]))

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
            if not self._transport.is_closing():
                self._transport.write(data)
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._front.pause(self)

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


@dataclass
class Load:
    """How much of our memory all clients together use."""

    unfinished_bytes: int = 0


@dataclass(frozen=True)
class Backends:
    """Where requests go.

    server: makes aiohttp's handler of one connection. is_local: whether a request goes there. connect: opens a
    connection to the engine with the given protocol. engine_name: the engine's address in texts for users.
    quick_answer: a whole response for requests that need no back end (/_ping), else None.
    silence_s, head_read_s, body_read_s: how long a client may take to begin, to send the head of a request, and to send
    the body of a request to us. linger_s: how long a refused client is still read from, so that it gets the answer.
    """

    server: Callable[[], Any]
    is_local: IsLocal
    connect: Callable[[Upstream], Awaitable[None]]
    engine_name: str
    quick_answer: Callable[[Head], bytes | None] = lambda head: None
    silence_s: float = defaults.API_SILENCE_S
    head_read_s: float = defaults.API_HEAD_READ_S
    body_read_s: float = defaults.API_BODY_READ_S
    linger_s: float = defaults.API_LINGER_S
    load: Load = field(default_factory=Load)
    unread: Unread = field(default_factory=Unread)
    buffer: bytearray = field(default_factory=lambda: bytearray(READ_BUFFER_BYTES))


def engine_connector(engine: str, timeout_s: float) -> Callable[[Upstream], Awaitable[None]]:
    """A function that connects a protocol to DOCKER_HOST ``engine`` (unix:// or tcp://). Raises OSError."""
    scheme, _, rest = engine.partition("://")

    async def connect(upstream: Upstream) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            if scheme == "unix":
                await loop.create_unix_connection(lambda: upstream, rest)
            else:
                host, port = parse_host_port(rest.rstrip("/"))
                await loop.create_connection(lambda: upstream, host, port)

    return connect


def _is_our_fault(record: logging.LogRecord) -> bool:
    """What clients sent wrong is answered to them, and not worth a traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def make_runner(app: web.Application) -> web.AppRunner:
    """aiohttp's side of the front: ``runner.server`` is what Backends.server calls. Heads may be as large as Go's."""
    logger = logging.getLogger(__name__)
    logger.addFilter(_is_our_fault)
    runner = web.AppRunner(
        app,
        logger=logger,
        handler_cancellation=True,
        access_log=None,
        max_line_size=HEAD_BYTES_MAX,
        max_field_size=HEAD_BYTES_MAX,
        max_headers=HEADERS_MAX,
    )
    await runner.setup()
    return runner
