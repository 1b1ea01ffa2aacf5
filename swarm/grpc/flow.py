"""The sending half of an HTTP/2 connection without I/O: streams, windows both ways, and bytes to be sent.

Data waits in its stream's outbox while a window, or the transport (``blocked``), is closed; streams with something to
send take turns, a frame each. The receiving windows are here too, because giving credit back means sending: each stream
has a window that ``consumed`` refills as the application takes messages, and a message longer than it needs ``want``,
which hands out extra credit from a budget per connection, first come first served, so that two messages cannot
block each other half-way. The connection's own window only smooths.

(RFC 9113, section 5.2)
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm import defaults
from swarm.grpc import frames as h2
from swarm.grpc.frames import ErrorCode


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
        self.trailers: bytes | None = None  # follow the outbox; b"": END_STREAM on the last DATA
        self.local_ended = False
        self.remote_ended = False


class Flow:
    """Streams and what is sent on them. Public attributes are for reading, except ``blocked``."""

    def __init__(self, *, client: bool, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.terminated = False
        self.blocked = False
        """Set while the transport takes no more: DATA stays in the outboxes."""
        self.buffered = 0
        """Bytes in all outboxes."""
        self.data_bytes_sent = 0
        """Of what had to wait in an outbox."""
        self.peer_streams_max = 100 if client else 0
        self.last_remote_stream = 0
        self.peer_closing = False
        self._next_stream = 1
        self._accept_up_to = h2.STREAM_ID_MAX
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._send_window = h2.DEFAULT_WINDOW_BYTES
        self._receive_window = max(limits.connection_window_bytes, h2.DEFAULT_WINDOW_BYTES)
        self._peer_window = h2.DEFAULT_WINDOW_BYTES
        self._sendable: dict[int, Stream] = {}
        self._granted = 0
        self._wanting: dict[int, int] = {}  # stream to how much more it needs; each once, however often it asks
        self._window_updates_expected = 100
        self._start()

    def _start(self) -> None:
        settings = {h2.INITIAL_WINDOW_SIZE: self.limits.stream_window_bytes}
        if self.client:
            self._write(h2.PREFACE)
            settings[h2.ENABLE_PUSH] = 0
        else:
            settings[h2.MAX_CONCURRENT_STREAMS] = self.limits.streams_max
        settings[h2.MAX_HEADER_LIST_SIZE] = self.limits.header_list_bytes_max
        self._write(h2.settings_frame(settings))
        if self._receive_window > h2.DEFAULT_WINDOW_BYTES:
            self._write(h2.window_update_frame(0, self._receive_window - h2.DEFAULT_WINDOW_BYTES))

    # --- output ---

    def _write(self, data: bytes) -> None:
        self._output.append(data)
        self._output_bytes += len(data)

    def take_output(self) -> bytes:
        """Bytes to send now, and with them as much waiting data as windows and ``blocked`` allow, a chunk at a time."""
        if self._sendable and not self.blocked and not self.terminated:
            self._pump()
        if not self._output:
            return b""
        data = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output = []
        self._output_bytes = 0
        return data

    def _pump(self) -> None:
        """One frame of each stream in turn, until something is full."""
        while self._sendable and self._send_window > 0 and self._output_bytes < defaults.RPC_OUTPUT_CHUNK_BYTES:
            stream = self._sendable.pop(next(iter(self._sendable)))
            self._send_frame(stream)
            if stream.outbox and stream.send_window > 0:
                self._sendable[stream.id] = stream  # to the end of the queue; without a window until WINDOW_UPDATE

    def _send_frame(self, stream: Stream) -> None:
        size = min(len(stream.outbox), stream.send_window, self._send_window, h2.DEFAULT_FRAME_BYTES)
        if size > 0:
            payload = bytes(memoryview(stream.outbox)[:size])
            del stream.outbox[:size]
            stream.send_window -= size
            self._send_window -= size
            self.buffered -= size
            self.data_bytes_sent += size
            self._window_updates_expected += 4
            ends = stream.trailers == b"" and not stream.outbox
            self._write(h2.frame(h2.DATA, h2.END_STREAM if ends else 0, stream.id, payload))
            if ends:
                self._end_local(stream)
                return
        if not stream.outbox and stream.trailers is not None:
            self._send_end(stream, stream.trailers)

    def _send_end(self, stream: Stream, trailers: bytes) -> None:
        if trailers:
            self._write(h2.header_frames(stream.id, trailers, True, h2.DEFAULT_FRAME_BYTES))
        else:
            self._write(h2.frame(h2.DATA, h2.END_STREAM, stream.id))
        self._end_local(stream)

    # --- what the application does ---

    def can_open(self) -> bool:
        """Whether the peer takes one more stream now."""
        return len(self.streams) < self.peer_streams_max and not self.exhausted

    @property
    def exhausted(self) -> bool:
        """No stream can be opened any more on this connection."""
        return self.terminated or self.peer_closing or self._next_stream > h2.STREAM_ID_MAX

    def open(self, block: bytes) -> Stream:
        """Client: begin a stream with these headers; the caller asked can_open before."""
        stream = Stream(self._next_stream, self._peer_window, self.limits.stream_window_bytes)
        self._next_stream += 2
        self.streams[stream.id] = stream
        self._write(h2.header_frames(stream.id, block, False, h2.DEFAULT_FRAME_BYTES))
        return stream

    def send_headers(self, stream: Stream, block: bytes) -> None:
        """Server: the response's headers."""
        self._write(h2.header_frames(stream.id, block, False, h2.DEFAULT_FRAME_BYTES))

    def send(self, stream: Stream, data: bytes, trailers: bytes | None = None) -> None:
        """Send data, and with ``trailers`` end our direction: a header block, or b"" for none (clients)."""
        if stream.local_ended or stream.trailers is not None:
            return
        size = len(data)
        if (
            size
            and not stream.outbox
            and not self.blocked
            and size <= h2.DEFAULT_FRAME_BYTES
            and size <= stream.send_window
            and size <= self._send_window
            and self._output_bytes < defaults.RPC_OUTPUT_CHUNK_BYTES
        ):
            stream.send_window -= size
            self._send_window -= size
            self._window_updates_expected += 4
            self._write(h2.frame(h2.DATA, h2.END_STREAM if trailers == b"" else 0, stream.id, data))
            if trailers:
                self._send_end(stream, trailers)
            elif trailers is not None:
                self._end_local(stream)
            return
        stream.outbox += data
        stream.trailers = trailers
        self.buffered += size
        if stream.outbox:
            self._sendable[stream.id] = stream
        elif trailers is not None:
            self._send_end(stream, trailers)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give up a stream and what waits in it; no event follows."""
        if self.streams.get(stream.id) is stream:
            self._write(h2.rst_stream_frame(stream.id, code))
            self._drop(stream)

    def discard(self, stream: Stream) -> None:
        """Drop what waits in the outbox; meant for a stream that is then ended with an error."""
        self.buffered -= len(stream.outbox)
        stream.outbox.clear()
        self._sendable.pop(stream.id, None)

    def _end_local(self, stream: Stream) -> None:
        stream.local_ended = True
        if stream.remote_ended:
            self._drop(stream)
        elif not self.client:
            # The answer is complete, the request was not: the client may stop sending it.
            self._write(h2.rst_stream_frame(stream.id, ErrorCode.NO_ERROR))
            self._drop(stream)

    def _end_remote(self, stream: Stream) -> None:
        stream.remote_ended = True
        self._wanting.pop(stream.id, None)
        if stream.local_ended:
            self._drop(stream)
        elif self.client:
            self._write(h2.rst_stream_frame(stream.id, ErrorCode.NO_ERROR))
            self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self.discard(stream)
        self._wanting.pop(stream.id, None)
        stream.local_ended = stream.remote_ended = True
        self._release(stream.granted)
        stream.granted = 0

    def consumed(self, stream: Stream, size: int) -> None:
        """The application took ``size`` bytes that came as DataReceived: the peer may send as many again."""
        extra = min(size, stream.granted)
        if extra:
            stream.granted -= extra
            size -= extra
            self._release(extra)
        if stream.remote_ended:
            return
        stream.unannounced += size
        if stream.unannounced * 2 >= self.limits.stream_window_bytes:
            self._write(h2.window_update_frame(stream.id, stream.unannounced))
            stream.receive_window += stream.unannounced
            stream.unannounced = 0

    def want(self, stream: Stream, size: int) -> None:
        """``size`` more bytes are needed for the message at hand: see that the window lets them pass, now or soon."""
        extra = size - stream.receive_window - stream.unannounced
        if extra <= 0 or stream.remote_ended:
            return
        if self._wanting or (self._granted and self._granted + extra > self.limits.grant_bytes_max):
            self._wanting[stream.id] = extra
        else:
            self._grant(stream, extra)

    def _grant(self, stream: Stream, extra: int) -> None:
        self._granted += extra
        stream.granted += extra
        stream.receive_window += extra + stream.unannounced
        self._write(h2.window_update_frame(stream.id, extra + stream.unannounced))
        stream.unannounced = 0

    def _release(self, extra: int) -> None:
        self._granted -= extra
        while self._wanting and extra:
            stream_id, size = next(iter(self._wanting.items()))
            if self._granted and self._granted + size > self.limits.grant_bytes_max:
                return
            del self._wanting[stream_id]
            self._grant(self.streams[stream_id], size)

    def ping(self, payload: bytes) -> None:
        """Send a PING of 8 bytes; PongReceived follows."""
        self._write(h2.frame(h2.PING, 0, 0, payload))

    def announce_end(self) -> None:
        """Server: ask the client to open no more streams; those on their way are still served."""
        self._write(h2.goaway_frame(h2.STREAM_ID_MAX, ErrorCode.NO_ERROR, "graceful stop"))

    def refuse_new(self) -> None:
        """Server: from here on new streams are ignored, and the client is told which were served."""
        self._accept_up_to = self.last_remote_stream
        self._write(h2.goaway_frame(self.last_remote_stream, ErrorCode.NO_ERROR, "graceful stop"))

    def terminate(self, code: ErrorCode, text: str) -> None:
        """End the connection because of what the peer did; nothing is received any more."""
        if not self.terminated:
            self.terminated = True
            self._write(h2.goaway_frame(self.last_remote_stream, code, text))
