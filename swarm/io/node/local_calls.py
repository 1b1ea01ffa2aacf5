"""Calls that this process makes to its own manager: futures and queues around the machine's words.

What waits for the reader of a stream is counted in bytes. Logs are held back at their source long before it is too much
(see backpressure.py); a reader for whom too much waits all the same gets what waits, and then an error that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from google.protobuf.message import Message

from swarm import defaults
from swarm.api.methods import Method, Req, Res
from swarm.errors import DeadlineExceeded, ResourceExhausted, SwarmError, Unavailable
from swarm.io.patience import PatientTimer
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamData, StreamEnd

Answer = Reply | StreamData | StreamEnd
Word = Call | StreamData | StreamEnd


class LocalCalls:
    """Calls without a network. put: the manager's inbox; streams: numbers shared with the manager's RPC server.

    taken: called with the number of a stream when its reader has taken a message.
    """

    def __init__(
        self,
        put: Callable[[Word], None],
        streams: Iterator[int],
        taken: Callable[[int], None] = lambda stream: None,
    ) -> None:
        self._put = put
        self._streams = streams
        self._taken = taken
        self._listeners: dict[int, Callable[[Answer], None]] = {}
        self._waiting: dict[int, int] = {}  # bytes for each reader
        self._paused: dict[int, asyncio.Future[None]] = {}
        self.waiting_bytes_of_all = 0
        """Bytes that wait for all readers of streams."""

    def deliver(self, answer: Answer) -> bool:
        """Hand an answer of the manager to the caller; False when the stream is not one of these calls."""
        listener = self._listeners.get(answer.stream)
        if listener is None:
            return False
        if not isinstance(answer, StreamData):
            del self._listeners[answer.stream]
            self.resume(answer.stream)
        listener(answer)
        return True

    def open(
        self,
        method: str,
        request: Message | None,
        peer: Peer,
        listener: Callable[[Answer], None],
        since: float | None = None,
    ) -> int:
        """Begin a call; ``listener`` gets every answer. Returns its stream, for send() and cancel()."""
        stream = next(self._streams)
        self._listeners[stream] = listener
        self._put(Call(stream, method, request, peer, since))
        return stream

    def send(self, word: StreamData | StreamEnd) -> None:
        """More data of a client stream, or its half-close."""
        if word.stream in self._listeners:
            self._put(word)

    def cancel(self, stream: int) -> None:
        """Give up a call; no answer comes any more."""
        self.resume(stream)
        if self._listeners.pop(stream, None) is not None:
            self._put(StreamEnd(stream, Unavailable("the caller went away")))

    # --- flow control ----------------------------------------------------------------------------------------------

    def waiting_bytes(self, stream: int) -> int:
        """What the reader of a stream has not taken yet; 0 for any other call."""
        return self._waiting.get(stream, 0)

    @property
    def fair_share_bytes(self) -> int:
        """How much may wait for one reader now."""
        return min(defaults.LOCAL_STREAM_BYTES_MAX, defaults.LOCAL_STREAMS_BYTES_MAX // max(1, len(self._waiting)))

    def _fits(self, stream: int, size: int) -> bool:
        waiting = self._waiting[stream]
        if self.waiting_bytes_of_all + size > 2 * defaults.LOCAL_STREAMS_BYTES_MAX:
            return False
        return not waiting or waiting + size <= self.fair_share_bytes

    def _count(self, stream: int, size: int) -> None:
        self._waiting[stream] += size
        self.waiting_bytes_of_all += size

    def pause(self, stream: int) -> None:
        """The sender of this client stream has to wait in writable()."""
        if stream in self._listeners and stream not in self._paused:
            self._paused[stream] = asyncio.get_running_loop().create_future()

    def resume(self, stream: int) -> None:
        """Go on after pause."""
        paused = self._paused.pop(stream, None)
        if paused is not None and not paused.done():
            paused.set_result(None)

    async def writable(self, stream: int) -> None:
        """Until more may be sent on a client stream, or the call is over."""
        while (paused := self._paused.get(stream)) is not None:
            await asyncio.shield(paused)

    # --- for coroutines --------------------------------------------------------------------------------------------

    async def unary(
        self, method: Method[Req, Res], request: Req, timeout_s: float, peer: Peer = LOCAL, since: float | None = None
    ) -> Res:
        """One request, one answer. Raises SwarmError: the manager's, or DeadlineExceeded."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def listen(answer: Answer) -> None:
            if future.done():
                return
            if isinstance(answer, Reply):
                future.set_result(answer.message)
            elif isinstance(answer, StreamEnd):
                future.set_exception(answer.error or SwarmError("the call ended without an answer"))

        stream = self.open(method.name, request, peer, listen, since)
        late = StreamEnd(stream, DeadlineExceeded("context deadline exceeded"))
        timer = PatientTimer(timeout_s, listen, late)
        try:
            return method.checked_response(await future)
        finally:
            timer.cancel()
            self.cancel(stream)

    async def stream(self, method: Method[Req, Res], request: Req, peer: Peer = LOCAL) -> AsyncIterator[Res]:
        """A server stream. Raises SwarmError at its end when the manager says so; closing it cancels the call."""
        queue: asyncio.Queue[tuple[Answer, int]] = asyncio.Queue()

        def listen(answer: Answer) -> None:
            size = 0
            if isinstance(answer, StreamData):
                size = answer.message.ByteSize() + defaults.LOCAL_MESSAGE_OVERHEAD_BYTES
                if not self._fits(stream, size):
                    mib = self._waiting[stream] >> 20
                    self.cancel(stream)
                    answer = StreamEnd(stream, ResourceExhausted(f"the reader is too slow: {mib} MiB wait for it"))
                    size = 0
            self._count(stream, size)
            queue.put_nowait((answer, size))

        stream = self.open(method.name, request, peer, listen)
        self._waiting[stream] = 0
        try:
            while True:
                answer, size = await queue.get()
                self._count(stream, -size)
                if isinstance(answer, StreamData):
                    self._taken(stream)
                    yield method.checked_response(answer.message)
                elif isinstance(answer, StreamEnd) and answer.error is not None:
                    raise answer.error
                else:
                    return
        finally:
            self.cancel(stream)
            self.waiting_bytes_of_all -= self._waiting.pop(stream)

    def fail_all(self, error: SwarmError) -> None:
        """The manager stops: every open call ends with this error."""
        for stream in list(self._listeners):
            self.deliver(StreamEnd(stream, error))
