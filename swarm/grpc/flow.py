"""Flow control of an HTTP/2 connection: the windows of a stream, and the credit that we give the peer.

Each stream has a receive window that ``consumed`` refills as the application takes messages. A message that is longer
than the window needs ``want``, which hands out extra credit from a budget per connection, first come first served, so
that two messages cannot block each other half-way. The connection's own window is refilled as data
comes. (RFC 9113, section 5.2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarm import defaults
from swarm.grpc import frames as h2
from swarm.grpc.frames import ConnectionFault, ErrorCode, StreamFault


@dataclass(frozen=True)
class Limits:
    """What one connection may cost. Bytes, and counts per second where the name says so."""

    streams_max: int = defaults.RPC_STREAMS_WORKER_MAX
    message_bytes_max: int = defaults.RPC_MESSAGE_BYTES_MAX
    stream_window_bytes: int = defaults.RPC_STREAM_WINDOW_BYTES
    connection_window_bytes: int = defaults.RPC_CONNECTION_WINDOW_BYTES
    grant_bytes_max: int = defaults.RPC_GRANT_BYTES_MAX
    header_list_bytes_max: int = defaults.RPC_HEADER_LIST_BYTES_MAX
    header_frames_max: int = defaults.RPC_HEADER_FRAMES_MAX
    control_frames_per_s_max: int = defaults.RPC_CONTROL_FRAMES_PER_S_MAX
    resets_per_s_max: int = defaults.RPC_RESETS_PER_S_MAX


class Stream:
    """Windows and unsent bytes of one stream."""

    __slots__ = (
        "granted",
        "id",
        "local_ended",
        "outbox",
        "patient",
        "receive_window",
        "remote_ended",
        "send_window",
        "trailers",
        "unannounced",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.send_window = send_window
        self.receive_window = receive_window
        self.granted = 0  # of receive_window: extra credit for one long message
        self.unannounced = 0  # consumed, and not yet given back to the peer
        self.outbox = bytearray()
        self.patient = False  # what waits in the outbox may wait for as long as the peer likes
        self.trailers: bytes | None = None  # follow the outbox; b"": END_STREAM on the last DATA
        self.local_ended = False
        self.remote_ended = False


class ReceiveWindows:
    """How much the peer may send: on the connection, and on each stream."""

    def __init__(self, limits: Limits, write: Callable[[bytes], None]) -> None:
        """write: takes the WINDOW_UPDATE frames."""
        self._limits = limits
        self._write = write
        self.connection = max(limits.connection_window_bytes, h2.DEFAULT_WINDOW_BYTES)
        """The connection's window as it is now."""
        self._unannounced = 0
        self._granted = 0
        self._wanting: dict[Stream, int] = {}  # how much more each needs; each once, however often it asks

    def announce(self) -> None:
        """At the start: raise the connection's window from the protocol's default to ours."""
        if self.connection > h2.DEFAULT_WINDOW_BYTES:
            self._write(h2.window_update_frame(0, self.connection - h2.DEFAULT_WINDOW_BYTES))

    # --- the connection ---

    def received(self, size: int) -> None:
        """DATA of this size came, on whatever stream. Raises ConnectionFault if the window did not allow it."""
        self.connection -= size
        if self.connection < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._unannounced += size
        if self._unannounced * 2 >= self._limits.connection_window_bytes:
            self._write(h2.window_update_frame(0, self._unannounced))
            self.connection += self._unannounced
            self._unannounced = 0

    # --- streams ---

    def received_on(self, stream: Stream, size: int) -> None:
        """DATA of this size came on this stream. Raises StreamFault if the window did not allow it."""
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise StreamFault(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window")

    def consumed(self, stream: Stream, size: int) -> None:
        """The application took that many bytes: the peer may send as many again."""
        extra = min(size, stream.granted)
        if extra:
            stream.granted -= extra
            size -= extra
            self._release(extra)
        if stream.remote_ended:
            return
        stream.unannounced += size
        if stream.unannounced * 2 >= self._limits.stream_window_bytes:
            self._write(h2.window_update_frame(stream.id, stream.unannounced))
            stream.receive_window += stream.unannounced
            stream.unannounced = 0

    def want(self, stream: Stream, size: int) -> None:
        """The current message needs ``size`` more bytes: extend the window if need be, now or when credit is free."""
        extra = size - stream.receive_window - stream.unannounced
        if extra <= 0 or stream.remote_ended:
            return
        if self._wanting or (self._granted and self._granted + extra > self._limits.grant_bytes_max):
            self._wanting[stream] = extra
        else:
            self._grant(stream, extra)

    def ended(self, stream: Stream) -> None:
        """The peer sends nothing more on this stream."""
        self._wanting.pop(stream, None)

    def dropped(self, stream: Stream) -> None:
        """The stream is over: what was granted to it goes to those who wait."""
        self._wanting.pop(stream, None)
        self._release(stream.granted)
        stream.granted = 0

    def _grant(self, stream: Stream, extra: int) -> None:
        self._granted += extra
        stream.granted += extra
        stream.receive_window += extra + stream.unannounced
        self._write(h2.window_update_frame(stream.id, extra + stream.unannounced))
        stream.unannounced = 0

    def _release(self, extra: int) -> None:
        self._granted -= extra
        while self._wanting and extra:
            stream, size = next(iter(self._wanting.items()))
            if self._granted and self._granted + size > self._limits.grant_bytes_max:
                return
            del self._wanting[stream]
            self._grant(stream, size)

    # --- looking in ---

    @property
    def waiting(self) -> list[int]:
        """The streams that wait for extra credit, in their order."""
        return [stream.id for stream in self._wanting]

    def check(self, streams: dict[int, Stream]) -> None:
        """Assert what must always hold; streams: those that are open."""
        assert self.connection <= max(self._limits.connection_window_bytes, h2.DEFAULT_WINDOW_BYTES)
        assert self._granted == sum(stream.granted for stream in streams.values())
        assert all(streams.get(stream.id) is stream for stream in self._wanting)
