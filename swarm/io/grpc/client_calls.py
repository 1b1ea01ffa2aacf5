"""The calls of one client connection: HTTP/2 on one side, answers to listeners on the other.

(grpc-go: internal/transport/http2_client.go)
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from google.protobuf.message import DecodeError, Message

from certs.validity import clock_difference
from swarm import defaults
from swarm.api.methods import AnyMethod
from swarm.errors import Code, DeadlineExceeded, ResourceExhausted, SwarmError, Unavailable
from swarm.grpc import events, http2, wire
from swarm.grpc.flow import Limits, Stream
from swarm.grpc.frames import ErrorCode
from swarm.grpc.wire import MessageReader, Metadata, WireError
from swarm.io.patience import PatientTimer
from swarm.rpc import Reply, StreamData, StreamEnd

Answer = Reply | StreamData | StreamEnd
Listener = Callable[[Answer], None]

KEEPALIVE_PING = b"alive?\0\0"
_DRAINED_BYTES = 256 << 10
_REFUSALS_MAX = 6
_REFUSED_DELAY_S = 0.005


class ClientCall:
    """One call; ``over`` once its listener has its last answer, or was told to expect none."""

    __slots__ = (
        "block",
        "consume_at_once",
        "ended",
        "h2",
        "listener",
        "message",
        "method",
        "number",
        "over",
        "reader",
        "refusals",
        "request",
        "responded",
        "timer",
        "unconsumed",
        "waiting",
    )

    def __init__(
        self, number: int, method: AnyMethod, listener: Listener, block: bytes, message_bytes_max: int
    ) -> None:
        self.number = number
        self.method = method
        self.listener = listener
        self.block = block
        self.reader = MessageReader(message_bytes_max)
        self.h2: Stream | None = None
        self.waiting = bytearray()  # until there is a stream
        self.ended = False  # our direction
        self.request: bytes | None = None  # kept to repeat a refused call, until the server has begun to answer
        self.refusals = 0
        self.responded = False
        self.message: Message | None = None
        self.timer: PatientTimer | None = None
        self.consume_at_once = True
        self.unconsumed: deque[int] = deque()
        self.over = False

    @property
    def buffered(self) -> int:
        """Bytes that the peer has not taken yet."""
        return len(self.waiting) if self.h2 is None else len(self.h2.outbox)


class ClientProtocol(asyncio.Protocol):
    """The application protocol of a client connection."""

    def __init__(self, authority: str, *, secure: bool, limits: Limits, now: Callable[[], float] = time.time) -> None:
        self._loop = asyncio.get_running_loop()
        self._authority = authority
        self._secure = secure
        self._limits = limits
        self._now = now
        self.transport: asyncio.Transport | None = None
        self._h2 = http2.Connection(client=True, limits=limits)
        self._calls: dict[int, ClientCall] = {}
        self._queue: deque[ClientCall] = deque()
        self._blocks: dict[tuple[str, float | None], bytes] = {}
        self._drained: list[tuple[ClientCall, asyncio.Future[None]]] = []
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._receiving = False
        self._flush_scheduled = False
        self._goaway = ""
        self._keepalive: PatientTimer | None = None
        self._received_at = self._pinged_at = self._loop.time()
        self._ping_unanswered = False
        self.peer_clock_s: float | None = None
        self.closed: asyncio.Future[SwarmError] = self._loop.create_future()

    # --- the transport's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected and verified."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it
        self.transport.set_write_buffer_limits(high=defaults.RPC_OUTPUT_CHUNK_BYTES)
        self._received_at = self._loop.time()
        self._keepalive = PatientTimer(defaults.RPC_KEEPALIVE_S, self._keep_alive)
        self._flush()

    async def ready(self) -> None:
        """Wait for the server's SETTINGS. Raises Unavailable."""
        await self._ready

    def set_silence_limit(self, silence_s: float) -> None:
        """Close the connection when the peer's host does not acknowledge data for ``silence_s`` seconds (0: never)."""
        opened = self.transport.get_extra_info("socket") if self.transport is not None else None
        if silence_s and opened is not None:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))

    def data_received(self, data: bytes) -> None:
        """Bytes of HTTP/2."""
        self._received_at = self._loop.time()
        self._ping_unanswered = False
        self._receiving = True
        for event in self._h2.receive(data, self._received_at):
            if type(event) is events.DataReceived:
                self._data(event)
            elif type(event) is events.HeadersReceived:
                self._headers(event)
            elif type(event) is events.StreamClosed:
                self._stream_closed(event)
            elif type(event) is events.GoAwayReceived:
                self._goaway = f", received prior goaway: code: {event.code.name}, debug data: {event.text!r}"
            elif type(event) is events.Terminated:
                self._flush()
                self.close(
                    Unavailable(f"connection error: desc = {_quoted(f'the server broke the protocol: {event.text}')}")
                )
        self._receiving = False
        if not self._ready.done() and self._h2.greeted:
            self._ready.set_result(None)
        self._start_waiting()
        if self._h2.peer_closing and not self._calls and not self._queue:
            self.close(Unavailable(f"the connection is draining{self._goaway}"))
        self._flush()

    def eof_received(self) -> bool:
        """The server has gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, and the calls with it."""
        reason = getattr(exc, "reason", None) or (str(exc) if exc else "EOF")
        self.close(Unavailable(f'connection error: desc = "error reading from server: {reason}"{self._goaway}'))

    def pause_writing(self) -> None:
        """The network, or the server, is slow."""
        self._h2.blocked = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._h2.blocked = False
        self._flush()

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.transport is None or self.closed.done():
            return
        while data := self._h2.take_output():
            self.transport.write(data)
        if self._drained:
            self._wake_drained()

    def _changed(self) -> None:
        if not self._receiving and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    # --- life ---

    @property
    def draining(self) -> bool:
        """No new calls are possible."""
        return self._h2.exhausted or self.closed.done()

    def close(self, error: SwarmError) -> None:
        """End the connection; all calls fail with this error."""
        if self.closed.done():
            return
        self.closed.set_result(error)
        if self._keepalive is not None:
            self._keepalive.cancel()
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # mark it as seen: it is fine if nobody waits; those who wait still get it
        for call in [*self._calls.values(), *self._queue]:
            self._answer(call, StreamEnd(call.number, error))
        self._calls.clear()
        self._queue.clear()
        self._wake_drained()
        if self.transport is not None:
            self.transport.close()

    def _keep_alive(self) -> None:
        """PING a peer that is silent while calls are open; stock servers refuse many PINGs without other traffic."""
        now = self._loop.time()
        silent_s = now - self._received_at
        if self._ping_unanswered and now - self._pinged_at >= defaults.RPC_KEEPALIVE_TIMEOUT_S:
            self.close(Unavailable('connection error: desc = "keepalive ping failed to receive ACK within timeout"'))
            return
        if silent_s >= defaults.RPC_KEEPALIVE_S and self._calls and not self._ping_unanswered:
            polite = self._received_at > self._pinged_at or now - self._pinged_at >= defaults.RPC_KEEPALIVE_QUIET_S
            if polite:
                self._pinged_at = now
                self._ping_unanswered = True
                self._h2.ping(KEEPALIVE_PING)
                self._flush()
        delay_s = defaults.RPC_KEEPALIVE_TIMEOUT_S if self._ping_unanswered else defaults.RPC_KEEPALIVE_S
        self._keepalive = PatientTimer(delay_s, self._keep_alive)

    # --- calls ---

    def call(
        self,
        number: int,
        method: AnyMethod,
        request: Message | None,
        listener: Listener,
        timeout_s: float | None,
        metadata: Metadata,
        *,
        consume_at_once: bool = True,
    ) -> ClientCall:
        """Begin a call; the listener is never called from inside. Raises InvalidArgument for bad metadata."""
        call = ClientCall(
            number, method, listener, self._request_block(method, timeout_s, metadata), self._limits.message_bytes_max
        )
        call.consume_at_once = consume_at_once
        if self.closed.done():
            self._fail_soon(call, self.closed.result())
        elif self._h2.exhausted:
            self._fail_soon(call, Unavailable(f"the connection is draining{self._goaway}"))
        else:
            if request is not None:
                call.request = wire.frame_message(request.SerializeToString())
                call.waiting += call.request
                call.ended = True
            if timeout_s is not None:
                call.timer = PatientTimer(timeout_s, self._expire, call)
            self._queue.append(call)
            self._start_waiting()
            self._changed()
        return call

    def _request_block(self, method: AnyMethod, timeout_s: float | None, metadata: Metadata) -> bytes:
        if metadata:
            return wire.request_block(
                method.path, self._authority, secure=self._secure, timeout_s=timeout_s, metadata=metadata
            )
        block = self._blocks.get((method.path, timeout_s))
        if block is None:
            block = wire.request_block(method.path, self._authority, secure=self._secure, timeout_s=timeout_s)
            if len(self._blocks) < 256:
                self._blocks[method.path, timeout_s] = block
        return block

    def _fail_soon(self, call: ClientCall, error: SwarmError) -> None:
        self._loop.call_soon(self._answer, call, StreamEnd(call.number, error))

    def _start_waiting(self) -> None:
        """Open what waits for a free stream."""
        while self._queue and self._h2.can_open():
            call = self._queue.popleft()
            call.h2 = self._h2.open(call.block)
            self._calls[call.h2.id] = call
            if call.waiting or call.ended:
                self._h2.send(call.h2, bytes(call.waiting), b"" if call.ended else None)
                call.waiting.clear()
        if self._queue and self._h2.exhausted:
            for call in self._queue:
                self._fail_soon(call, Unavailable(f"the connection is draining{self._goaway}"))
            self._queue.clear()

    def send(self, call: ClientCall, message: Message) -> None:
        """One more message of a client stream."""
        if call.over or call.ended:
            return
        data = wire.frame_message(message.SerializeToString())
        if call.buffered + len(data) > defaults.RPC_CLIENT_BUFFER_BYTES_MAX:
            self._fail(call, ResourceExhausted("the peer does not take the stream fast enough"))
        elif call.h2 is None:
            call.waiting += data
        else:
            self._h2.send(call.h2, data)
            self._changed()

    def half_close(self, call: ClientCall) -> None:
        """No more messages follow."""
        if call.over or call.ended:
            return
        call.ended = True
        if call.h2 is not None:
            self._h2.send(call.h2, b"", b"")
            self._changed()

    def cancel(self, call: ClientCall) -> None:
        """Give up a call; the listener hears nothing more. Does nothing for a call that is over."""
        if not call.over:
            self._release(call)

    async def drained(self, call: ClientCall) -> None:
        """Until little of the call waits to be sent, or it is over."""
        while not call.over and call.buffered > _DRAINED_BYTES:
            future: asyncio.Future[None] = self._loop.create_future()
            self._drained.append((call, future))
            await future

    def _wake_drained(self) -> None:
        waiting, self._drained = self._drained, []
        for call, future in waiting:
            if call.over or call.buffered <= _DRAINED_BYTES:
                if not future.done():
                    future.set_result(None)
            else:
                self._drained.append((call, future))

    def consume_next(self, call: ClientCall) -> None:
        """The oldest message delivered with consume_at_once=False was taken."""
        size = call.unconsumed.popleft()
        if call.h2 is not None:
            self._h2.consumed(call.h2, size)
            self._changed()

    # --- answers ---

    def _answer(self, call: ClientCall, answer: Answer) -> None:
        if call.over:
            return
        if not isinstance(answer, StreamData):
            call.over = True
            if call.timer is not None:
                call.timer.cancel()
        call.listener(answer)

    def _release(self, call: ClientCall) -> None:
        """Forget a call, and reset its stream where the server still works on it."""
        call.over = True
        if call.timer is not None:
            call.timer.cancel()
        if call.h2 is None:
            if call in self._queue:
                self._queue.remove(call)
        elif self._calls.pop(call.h2.id, None) is not None:
            self._h2.reset(call.h2, ErrorCode.CANCEL)
            self._start_waiting()
            self._changed()
        if self._drained:
            self._wake_drained()

    def _fail(self, call: ClientCall, error: SwarmError) -> None:
        if not call.over:
            self._release(call)
            call.listener(StreamEnd(call.number, error))

    def _expire(self, call: ClientCall) -> None:
        self._fail(call, DeadlineExceeded("context deadline exceeded"))

    def _headers(self, event: events.HeadersReceived) -> None:
        call = self._calls.get(event.stream)
        if call is None:
            return
        try:
            trailers_only = event.end and wire.first(event.fields, b"grpc-status") is not None
            if not call.responded and not trailers_only:
                wire.check_response(event.fields)
            elif not event.end:
                raise WireError("the server sent headers twice")
            call.responded = True
            call.request = None
        except WireError as error:
            self._fail(call, error)
            return
        clock_s = wire.peer_clock(event.fields)
        self.peer_clock_s = self.peer_clock_s if clock_s is None else clock_s
        if event.end:
            self._complete(call, self._with_clocks(wire.outcome(event.fields), clock_s))

    def _with_clocks(self, error: SwarmError | None, clock_s: float | None) -> SwarmError | None:
        """Add the difference of the clocks to a refusal, since it may be the reason."""
        if error is None or clock_s is None or error.code != Code.PERMISSION_DENIED:
            return error
        difference = clock_difference(self._now(), clock_s, "the manager")
        return SwarmError(f"{error.message}; {difference}", error.code) if difference else error

    def _data(self, event: events.DataReceived) -> None:
        call = self._calls.get(event.stream)
        if call is None or call.h2 is None:
            return
        try:
            if not call.responded:
                raise WireError("the server sent data before headers")
            messages = call.reader.feed(event.data)
            if call.reader.missing:
                self._h2.want(call.h2, call.reader.missing)
            for data in messages:
                self._message(call, call.h2, data)
        except WireError as error:
            self._fail(call, error)
            return
        except DecodeError:
            self._fail(call, WireError("grpc: failed to unmarshal the received message"))
            return
        if event.end:
            self._complete(call, WireError("server closed the stream without sending trailers"))

    def _message(self, call: ClientCall, stream: Stream, data: bytes) -> None:
        message: Message = call.method.response.FromString(data)
        size = wire.PREFIX_BYTES + len(data)
        if call.method.server_streaming:
            if call.consume_at_once:
                self._h2.consumed(stream, size)
            else:
                call.unconsumed.append(size)
            self._answer(call, StreamData(call.number, message))
        elif call.message is not None:
            raise WireError("the server sent more than one answer")
        else:
            self._h2.consumed(stream, size)
            call.message = message

    def _complete(self, call: ClientCall, error: SwarmError | None) -> None:
        assert call.h2 is not None
        self._calls.pop(call.h2.id, None)
        if error is None and call.reader.partial:
            error = WireError("the answer ended in the middle of a message")
        if error is None and call.message is not None:
            self._answer(call, Reply(call.number, call.message))
            return
        method = call.method
        if error is None and not method.client_streaming and not method.server_streaming:
            error = WireError("the server ended the call with OK and without an answer")
        self._answer(call, StreamEnd(call.number, error))
        if self._drained:
            self._wake_drained()

    def _stream_closed(self, event: events.StreamClosed) -> None:
        call = self._calls.pop(event.stream, None)
        if call is None:
            return
        if event.code == ErrorCode.REFUSED_STREAM and call.request is not None and call.refusals < _REFUSALS_MAX:
            # REFUSED_STREAM: the server did not process the request. It has too many streams for the moment.
            call.refusals += 1
            call.h2 = None
            call.waiting += call.request
            self._loop.call_later(_REFUSED_DELAY_S * 2**call.refusals, self._retry, call)
        else:
            self._answer(call, StreamEnd(call.number, wire.reset_error(event.code, event.text)))
            if self._drained:
                self._wake_drained()

    def _retry(self, call: ClientCall) -> None:
        if call.over:
            return
        if self.closed.done():
            self._answer(call, StreamEnd(call.number, self.closed.result()))
            return
        self._queue.append(call)
        self._start_waiting()
        self._flush()


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'
