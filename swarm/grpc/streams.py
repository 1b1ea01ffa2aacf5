"""The streams of an HTTP/2 connection: who opened which, and how they end. (RFC 9113, section 5.1)

Only clients open streams, with increasing odd numbers. A stream is open until both sides have ended their half, or one
side has reset it. In gRPC the rest of a request is useless once the answer is complete: both roles then reset
the stream with NO_ERROR.
"""

from __future__ import annotations

from swarm.grpc import frames as h2
from swarm.grpc.flow import Limits, ReceiveWindows, Stream
from swarm.grpc.frames import ConnectionFault, ErrorCode, StreamFault
from swarm.grpc.sending import Sender

_PEER_STREAMS = 100
"""How many streams a client may open before the server's SETTINGS arrive."""


class Streams:
    """The open streams, by number."""

    def __init__(self, *, client: bool, limits: Limits) -> None:
        self._client = client
        self._limits = limits
        self.sender = Sender(self._end_local)
        self.windows = ReceiveWindows(limits, self.sender.write)
        self.open: dict[int, Stream] = {}
        self.peer_max = _PEER_STREAMS if client else 0
        """How many concurrent streams the peer accepts."""
        self.last_remote = 0
        """The newest stream that the peer opened."""
        self._next = 1
        self._accept_up_to = h2.STREAM_ID_MAX

    # --- opening ---

    @property
    def exhausted(self) -> bool:
        """Whether all numbers are used up."""
        return self._next > h2.STREAM_ID_MAX

    def begin(self) -> Stream:
        """Client: a new stream."""
        stream = Stream(self._next, self.sender.initial_window, self._limits.stream_window_bytes)
        self._next += 2
        self.open[stream.id] = stream
        return stream

    def accept(self, stream_id: int, end: bool) -> None:
        """Server: the peer opens this stream, and with ``end`` ends its half. Raises ConnectionFault or StreamFault."""
        if self._client or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"peer opened stream {stream_id}")
        self.last_remote = stream_id
        if len(self.open) >= self._limits.streams_max:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        stream = Stream(stream_id, self.sender.initial_window, self._limits.stream_window_bytes)
        stream.remote_ended = end
        self.open[stream_id] = stream

    def accept_no_more(self) -> None:
        """Server: new streams are ignored from here on."""
        self._accept_up_to = self.last_remote

    def is_idle(self, stream_id: int) -> bool:
        """Whether this stream was never opened, and would be accepted.

        False for a closed one: the peer's frames may have been on their way while we gave the stream up.
        """
        if stream_id > self._accept_up_to:
            return False
        return not stream_id & 1 or (stream_id >= self._next if self._client else stream_id > self.last_remote)

    # --- ending ---

    def _end_local(self, stream: Stream) -> None:
        stream.local_ended = True
        if stream.remote_ended:
            self.drop(stream)
        elif not self._client:
            # The answer is complete, the request was not: the client may stop sending it.
            self.reset(stream, ErrorCode.NO_ERROR)

    def end_remote(self, stream: Stream) -> None:
        """The peer ended its half."""
        stream.remote_ended = True
        self.windows.ended(stream)
        if stream.local_ended:
            self.drop(stream)
        elif self._client:
            self.reset(stream, ErrorCode.NO_ERROR)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Send RST_STREAM, and drop the stream."""
        self.sender.write(h2.rst_stream_frame(stream.id, code))
        self.drop(stream)

    def drop(self, stream: Stream) -> None:
        """Forget a stream and what waits in it."""
        self.open.pop(stream.id, None)
        self.sender.discard(stream)
        stream.local_ended = stream.remote_ended = True
        self.windows.dropped(stream)

    def check(self) -> None:
        """Assert what must always hold."""
        assert self._client or len(self.open) <= self._limits.streams_max
        assert all(stream.id == stream_id for stream_id, stream in self.open.items())
        self.windows.check(self.open)
