"""The sending half of an HTTP/2 connection without I/O: send windows, and bytes to be sent.

Data waits in its stream's outbox while a window, or the transport (``blocked``), is closed. Streams with something to
send take turns, a frame each. (RFC 9113, section 5.2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from swarm import defaults
from swarm.grpc import frames as h2
from swarm.grpc.flow import Stream
from swarm.grpc.frames import ConnectionFault, ErrorCode, StreamFault

_UPDATES_PER_FRAME = 4
_UPDATES_FREE = 100


class Sender:
    """The output of one connection, and the outboxes of its streams."""

    def __init__(self, ended: Callable[[Stream], None]) -> None:
        """ended: called when the last frame of our direction of a stream was written."""
        self._ended = ended
        self.blocked = False
        """Set while the transport takes no more: DATA stays in the outboxes."""
        self.buffered = 0
        """Bytes in all outboxes."""
        self.data_bytes_sent = 0
        """Bytes of DATA sent, of those that had to wait in an outbox."""
        self.output_bytes = 0
        """Bytes that ``take`` would return at least."""
        self.initial_window = h2.DEFAULT_WINDOW_BYTES
        """Send window of a new stream, as the peer set it."""
        self._output: list[bytes] = []
        self._window = h2.DEFAULT_WINDOW_BYTES
        self._sendable: dict[int, Stream] = {}
        self._updates_expected = _UPDATES_FREE

    def write(self, data: bytes) -> None:
        """Add frames to the output; DATA goes through ``send``."""
        self._output.append(data)
        self.output_bytes += len(data)

    def take(self, *, pump: bool) -> bytes:
        """Bytes to send now. pump: with as much waiting data as windows and ``blocked`` allow, a chunk at a time."""
        if pump and self._sendable and not self.blocked:
            self._pump()
        if not self._output:
            return b""
        data = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output = []
        self.output_bytes = 0
        return data

    def _pump(self) -> None:
        """One frame of each stream in turn, until something is full."""
        while self._sendable and self._window > 0 and self.output_bytes < defaults.RPC_OUTPUT_CHUNK_BYTES:
            stream = self._sendable.pop(next(iter(self._sendable)))
            self._send_frame(stream)
            if stream.outbox and stream.send_window > 0:
                self._sendable[stream.id] = stream  # to the end of the queue; without a window until WINDOW_UPDATE

    def _send_frame(self, stream: Stream) -> None:
        size = min(len(stream.outbox), stream.send_window, self._window, h2.DEFAULT_FRAME_BYTES)
        if size > 0:
            payload = bytes(memoryview(stream.outbox)[:size])
            del stream.outbox[:size]
            stream.send_window -= size
            self._window -= size
            self.buffered -= size
            self.data_bytes_sent += size
            self._updates_expected += _UPDATES_PER_FRAME
            ends = stream.trailers == b"" and not stream.outbox
            self.write(h2.frame(h2.DATA, h2.END_STREAM if ends else 0, stream.id, payload))
            if ends:
                self._ended(stream)
                return
        if not stream.outbox and stream.trailers is not None:
            self._send_end(stream, stream.trailers)

    def _send_end(self, stream: Stream, trailers: bytes) -> None:
        if trailers:
            self.write(h2.header_frames(stream.id, trailers, True, h2.DEFAULT_FRAME_BYTES))
        else:
            self.write(h2.frame(h2.DATA, h2.END_STREAM, stream.id))
        self._ended(stream)

    # --- streams ---

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
            and size <= self._window
            and self.output_bytes < defaults.RPC_OUTPUT_CHUNK_BYTES
        ):
            stream.send_window -= size
            self._window -= size
            self._updates_expected += _UPDATES_PER_FRAME
            self.write(h2.frame(h2.DATA, h2.END_STREAM if trailers == b"" else 0, stream.id, data))
            if trailers:
                self._send_end(stream, trailers)
            elif trailers is not None:
                self._ended(stream)
            return
        stream.outbox += data
        stream.trailers = trailers
        self.buffered += size
        if stream.outbox:
            self._sendable[stream.id] = stream
        elif trailers is not None:
            self._send_end(stream, trailers)

    def discard(self, stream: Stream) -> None:
        """Drop what waits in the outbox."""
        self.buffered -= len(stream.outbox)
        stream.outbox.clear()
        self._sendable.pop(stream.id, None)

    # --- the peer's windows ---

    def expects_update(self) -> bool:
        """Count a WINDOW_UPDATE; whether so many make sense for the data that we sent."""
        if self._updates_expected > 0:
            self._updates_expected -= 1
            return True
        return False

    def open_window(self, increment: int) -> None:
        """The peer takes more on the connection. Raises ConnectionFault."""
        self._window += increment
        if not increment or self._window > h2.WINDOW_MAX:
            raise ConnectionFault(_window_error(increment), "bad WINDOW_UPDATE")

    def open_stream_window(self, stream: Stream, increment: int) -> None:
        """The peer takes more on this stream. Raises StreamFault."""
        stream.send_window += increment
        if not increment or stream.send_window > h2.WINDOW_MAX:
            raise StreamFault(stream.id, _window_error(increment), "bad WINDOW_UPDATE")
        if stream.outbox:
            self._sendable[stream.id] = stream

    def set_initial_window(self, window: int, streams: Iterable[Stream]) -> None:
        """The peer's SETTINGS name another initial window, for open streams too. Raises ConnectionFault."""
        difference, self.initial_window = window - self.initial_window, window
        if not difference:
            return
        for stream in streams:
            stream.send_window += difference
            if stream.send_window > h2.WINDOW_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window overflow by SETTINGS")
            if stream.outbox:
                self._sendable[stream.id] = stream

    def check(self, streams: dict[int, Stream], *, terminated: bool) -> None:
        """Assert what must always hold; streams: those that are open."""
        assert self.buffered == sum(len(stream.outbox) for stream in streams.values())
        assert self.output_bytes == sum(map(len, self._output))
        assert all(stream is streams.get(stream_id) for stream_id, stream in self._sendable.items())
        if not terminated:
            assert self._window <= h2.WINDOW_MAX
            assert all(stream.send_window <= h2.WINDOW_MAX for stream in streams.values())


def _window_error(increment: int) -> ErrorCode:
    return ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
