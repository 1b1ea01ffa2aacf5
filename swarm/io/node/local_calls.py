"""Calls that this process makes to its own manager: futures and queues around the machine's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from google.protobuf.message import Message

from swarm.api.methods import Method, Req, Res
from swarm.errors import DeadlineExceeded, ResourceExhausted, SwarmError, Unavailable
from swarm.io.patience import PatientTimer
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamData, StreamEnd

STREAM_MESSAGES_MAX = 100_000

Answer = Reply | StreamData | StreamEnd
Word = Call | StreamData | StreamEnd


class LocalCalls:
    """Calls without a network. put: the manager's inbox; streams: numbers shared with the manager's RPC server."""

    def __init__(self, put: Callable[[Word], None], streams: Iterator[int]) -> None:
        self._put = put
        self._streams = streams
        self._listeners: dict[int, Callable[[Answer], None]] = {}

    def deliver(self, answer: Answer) -> bool:
        """Hand an answer of the manager to the caller; False when the stream is not one of these calls."""
        listener = self._listeners.get(answer.stream)
        if listener is None:
            return False
        if not isinstance(answer, StreamData):
            del self._listeners[answer.stream]
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
        if self._listeners.pop(stream, None) is not None:
            self._put(StreamEnd(stream, Unavailable("the caller went away")))

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
        queue: asyncio.Queue[Answer] = asyncio.Queue(STREAM_MESSAGES_MAX)
        overrun = False

        def listen(answer: Answer) -> None:
            nonlocal overrun
            try:
                queue.put_nowait(answer)
            except asyncio.QueueFull:
                overrun = True

        stream = self.open(method.name, request, peer, listen)
        try:
            while not overrun:
                answer = await queue.get()
                if isinstance(answer, StreamData):
                    yield method.checked_response(answer.message)
                elif isinstance(answer, StreamEnd) and answer.error is not None:
                    raise answer.error
                else:
                    return
            raise ResourceExhausted("the reader of this stream is too slow")
        finally:
            self.cancel(stream)

    def fail_all(self, error: SwarmError) -> None:
        """The manager stops: every open call ends with this error."""
        for stream in list(self._listeners):
            self.deliver(StreamEnd(stream, error))
