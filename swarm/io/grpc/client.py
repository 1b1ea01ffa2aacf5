"""gRPC calls to another manager: our end of a connection to its port 2377.

connect() dials, verifies the chain the peer presented (certs/tls.py says why not OpenSSL), and waits for the peer's
first SETTINGS, because with TLS 1.3 a server refuses our certificate only after our handshake is done. Calls are made
as futures and iterators (unary, stream, client_stream) or, for machines, as the events of swarm/rpc.py (open, send).
When the connection is lost all open calls fail with Unavailable, and ``closed`` is set; nothing reconnects by itself.

(grpc-go: clientconn.go, internal/transport/http2_client.go)
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import overload

from google.protobuf.message import Message

from certs.errors import CertsError
from certs.keys import CA_ROLE
from certs.stream import open_tls
from certs.tls import ClientTls, OutsideValidity, client_context, verify_chain, verify_node
from certs.validity import clock_difference
from swarm import api, defaults
from swarm.address import parse_host_port
from swarm.api import rpc
from swarm.api.methods import METHODS, AnyMethod, Method, Req, Res
from swarm.errors import SwarmError, Unavailable
from swarm.grpc.flow import Limits
from swarm.grpc.wire import Metadata
from swarm.io.grpc.client_calls import Answer, ClientCall, ClientProtocol
from swarm.rpc import Call, StreamData, StreamEnd

_VERIFIED_LIMITS = Limits(
    message_bytes_max=defaults.RPC_RESPONSE_BYTES_MAX,
    stream_window_bytes=defaults.RPC_MANAGER_STREAM_WINDOW_BYTES,
    grant_bytes_max=defaults.RPC_RESPONSE_BYTES_MAX,
)
_UNVERIFIED_LIMITS = Limits()


async def connect(
    addr: str,
    tls: ClientTls | None,
    timeout_s: float = defaults.RPC_DIAL_TIMEOUT_S,
    limits: Limits | None = None,
    silence_s: float = 0.0,
    now: Callable[[], float] = time.time,
) -> ClientConnection:
    """Connect to "ip:port"; tls None: without TLS. Raises Unavailable with the texts that Go's peers print.

    silence_s: the connection is lost when the peer's host acknowledges nothing for this long, so that a new one is
    dialled soon after a network failure (TCP_USER_TIMEOUT; a slow host still acknowledges). 0: the system's default.
    now: this node's clock.
    """
    loop = asyncio.get_running_loop()
    verified = tls is None or tls.roots_pem is not None
    authority = addr if tls is None else tls.server_name
    protocol = ClientProtocol(
        authority,
        secure=tls is not None,
        limits=limits or (_VERIFIED_LIMITS if verified else _UNVERIFIED_LIMITS),
        now=now,
    )
    try:
        host, port = parse_host_port(addr)
        async with asyncio.timeout(timeout_s):
            if tls is None:
                await loop.create_connection(lambda: protocol, host, port)
            else:
                await open_tls(
                    lambda: protocol,
                    host,
                    port,
                    client_context(tls),
                    server_name=tls.server_name,
                    verify=_verifier(tls, now),
                    handshake_timeout_s=timeout_s,
                )
            await protocol.ready()
            protocol.set_silence_limit(silence_s)
    except BaseException as error:
        protocol.close(Unavailable("the connection is closing"))
        if isinstance(error, OutsideValidity):
            error = OutsideValidity(error.message + await _clocks(addr, now))
        if isinstance(error, OSError | CertsError | ValueError):  # TimeoutError and ssl.SSLError are OSErrors
            raise _dial_error(addr, error) from error
        raise
    return ClientConnection(protocol)


def _verifier(tls: ClientTls, now: Callable[[], float]) -> Callable[[list[bytes]], None] | None:
    roots_pem = tls.roots_pem
    if roots_pem is None:
        return None

    def verify(chain_der: list[bytes]) -> None:
        verify_chain(chain_der, roots_pem, tls.server_name, now())
        if tls.node_id:
            verify_node(chain_der, tls.node_id)

    return verify


async def _clocks(addr: str, now: Callable[[], float]) -> str:
    """A text about the clock of a manager whose certificate is not valid by ours. That clock is not authenticated."""
    try:
        connection = await connect(addr, ClientTls(CA_ROLE, roots_pem=None), defaults.CLOCK_ASK_TIMEOUT_S)
        try:
            request = api.GetRootCACertificateRequest()
            await connection.unary(rpc.GET_ROOT_CA_CERTIFICATE, request, defaults.CLOCK_ASK_TIMEOUT_S)
        finally:
            connection.close()
    except SwarmError:
        return ""
    told_s = connection.peer_clock_s
    difference = clock_difference(now(), told_s, addr) if told_s is not None else ""
    return f"; {difference}" if difference else ""


def _dial_error(addr: str, error: Exception) -> Unavailable:
    if isinstance(error, CertsError):
        text = f"authentication handshake failed: {error}"
    elif isinstance(error, TimeoutError) and not error.errno:
        text = f"Error while dialing dial tcp {addr}: i/o timeout"
    elif getattr(error, "library", None):  # ssl.SSLError
        text = f"authentication handshake failed: {getattr(error, 'reason', None) or error}"
    elif isinstance(error, OSError) and error.errno:
        text = f"Error while dialing dial tcp {addr}: connect: {os.strerror(error.errno).lower()}"
    elif isinstance(error, ConnectionResetError):
        text = f"authentication handshake failed: {error}"
    else:
        text = f"Error while dialing dial tcp {addr}: {error}"
    return Unavailable(f'connection error: desc = "transport: {text}"')


class ClientConnection:
    """One connection. All methods are for the loop in which it was made."""

    def __init__(self, protocol: ClientProtocol) -> None:
        self._protocol = protocol
        self._numbered: dict[int, ClientCall] = {}

    @property
    def closed(self) -> asyncio.Future[SwarmError]:
        """Done when the connection is gone: the error with which its open calls failed."""
        return self._protocol.closed

    @property
    def peer_clock_s(self) -> float | None:
        """The peer's clock in its last answer, epoch seconds; only peers without a valid certificate get it."""
        return self._protocol.peer_clock_s

    @property
    def peer_chain_der(self) -> list[bytes]:
        """The certificates that the peer showed, its own first; empty without TLS."""
        transport = self._protocol.transport
        return [] if transport is None else transport.get_extra_info("peer_chain_der") or []

    @property
    def draining(self) -> bool:
        """The peer takes no new calls here; those that are open go on."""
        return self._protocol.draining

    def close(self) -> None:
        """Close the connection; open calls fail with Unavailable."""
        self._protocol.close(Unavailable("the connection is closing"))

    # --- for machines ---

    def open(
        self,
        call: Call,
        listener: Callable[[Answer], None],
        timeout_s: float | None = None,
        metadata: Metadata = (),
        *,
        consume_at_once: bool = True,
    ) -> None:
        """Begin a call. ``listener`` gets its answers under call.stream, never from inside this method.

        A unary or client-stream call ends with one Reply or StreamEnd, a server stream with StreamEnd (None: OK). A
        client stream that ends with OK but no message, as stock managers do, gives StreamEnd(None). Without
        consume_at_once the peer is held back until consume_next() was called for each message.
        """
        number = call.stream

        def listen(answer: Answer) -> None:
            if not isinstance(answer, StreamData):
                self._numbered.pop(number, None)
            listener(answer)

        self._numbered[number] = self._protocol.call(
            number,
            METHODS[call.method],
            call.request,
            listen,
            timeout_s,
            metadata,
            consume_at_once=consume_at_once,
        )

    def send(self, event: StreamData | StreamEnd) -> None:
        """More of a client stream, its half-close (StreamEnd without error), or the end of any call (with one)."""
        call = self._numbered.get(event.stream)
        if call is None:
            return
        if isinstance(event, StreamData):
            self._protocol.send(call, event.message)
        elif event.error is None:
            self._protocol.half_close(call)
        else:
            del self._numbered[event.stream]
            self._protocol.cancel(call)

    def consume_next(self, stream: int) -> None:
        """The oldest message of a call that was opened without consume_at_once was taken."""
        call = self._numbered.get(stream)
        if call is not None and call.unconsumed:
            self._protocol.consume_next(call)

    def buffered(self, stream: int) -> int:
        """Bytes of a call that the peer has not taken yet."""
        call = self._numbered.get(stream)
        return 0 if call is None else call.buffered

    # --- for coroutines ---

    @overload
    async def unary(
        self, method: Method[Req, Res], request: Req, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Res: ...

    @overload
    async def unary(
        self, method: str, request: Message, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Message: ...

    async def unary(
        self, method: AnyMethod | str, request: Message, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Message:
        """One request, one answer. Raises SwarmError: the peer's, DeadlineExceeded, Unavailable."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        method = METHODS[method] if isinstance(method, str) else method
        call = self._protocol.call(0, method, request, _set(answer), timeout_s, metadata)
        message = await self._outcome(call, answer)
        assert message is not None
        return message

    async def _outcome(self, call: ClientCall, answer: asyncio.Future[Answer]) -> Message | None:
        try:
            result = await answer
        finally:
            self._protocol.cancel(call)
        if isinstance(result, StreamEnd):
            if result.error is not None:
                raise result.error
            return None
        return result.message

    def stream(
        self, method: Method[Req, Res], request: Req, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[Res, None]:
        """Messages of a server stream; ends when the server ends it with OK, raises SwarmError otherwise.

        The peer is held back while they are not taken. Closing the iterator (aclose) gives up the call.
        """
        return self._stream(method, request, timeout_s, metadata)

    async def _stream(
        self, method: Method[Req, Res], request: Req, timeout_s: float | None, metadata: Metadata
    ) -> AsyncGenerator[Res, None]:
        answers: asyncio.Queue[Answer] = asyncio.Queue()
        call = self._protocol.call(0, method, request, answers.put_nowait, timeout_s, metadata, consume_at_once=False)
        try:
            while True:
                answer = await answers.get()
                if isinstance(answer, StreamEnd):
                    if answer.error is not None:
                        raise answer.error
                    return
                self._protocol.consume_next(call)
                yield method.checked_response(answer.message)
        finally:
            self._protocol.cancel(call)

    @overload
    async def client_stream(
        self,
        method: Method[Req, Res],
        requests: AsyncIterator[Req],
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Res | None: ...

    @overload
    async def client_stream(
        self, method: str, requests: AsyncIterator[Message], timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Message | None: ...

    async def client_stream(
        self,
        method: AnyMethod | str,
        requests: AsyncIterator[Message],
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Message | None:
        """Send a stream, return the answer; None when the server ends with OK and no message.

        Requests are asked for only as fast as the peer takes them, and no more once the peer has answered. Raises
        SwarmError, and what ``requests`` raises (the call is given up then).
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        method = METHODS[method] if isinstance(method, str) else method
        call = self._protocol.call(0, method, None, _set(answer), timeout_s, metadata)
        try:
            async for request in _until(requests, answer):
                self._protocol.send(call, request)
                await self._protocol.drained(call)
            self._protocol.half_close(call)
        except BaseException:
            self._protocol.cancel(call)
            raise
        return await self._outcome(call, answer)


def _set(future: asyncio.Future[Answer]) -> Callable[[Answer], None]:
    def listen(answer: Answer) -> None:
        if not future.done():
            future.set_result(answer)

    return listen


async def _until(items: AsyncIterator[Message], stop: asyncio.Future[Answer]) -> AsyncGenerator[Message, None]:
    """The items, until they end or ``stop`` is done, also while the next one is awaited."""
    while not stop.done():
        step = asyncio.ensure_future(anext(items, None))
        try:
            await asyncio.wait((step, stop), return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                return
            item = step.result()
        finally:
            if not step.done():
                step.cancel()
                await asyncio.wait((step,))
        if item is None:
            return
        yield item
