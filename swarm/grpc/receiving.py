"""What each frame of the peer means: bytes in, events out, and the protocol's own answers into the output.

What a peer may make us keep or do is bounded: unread data by windows, headers by size and number of frames, streams by
number, resets and frames without use (PING, SETTINGS, empty DATA, frames of closed streams) by a rate per second. A
peer that breaks the rules of one stream gets RST_STREAM (event StreamClosed), of the connection GOAWAY (event
Terminated). (RFC 9113, sections 5 and 6)
"""

from __future__ import annotations

from swarm.grpc import frames as h2
from swarm.grpc.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PongReceived,
    StreamClosed,
    Terminated,
)
from swarm.grpc.flow import Limits
from swarm.grpc.frames import ConnectionFault, ErrorCode, StreamFault
from swarm.grpc.rate import Rate
from swarm.grpc.reading import FrameReader, HeaderReader, Headers
from swarm.grpc.streams import Streams

_CONNECTION_FRAMES = (h2.SETTINGS, h2.PING, h2.GOAWAY)


class Receiver:
    """Takes the peer's frames for one connection."""

    def __init__(self, *, client: bool, limits: Limits, streams: Streams) -> None:
        self._client = client
        self._streams = streams
        self._sender = streams.sender
        self._windows = streams.windows
        self.frames = FrameReader(expects_preface=not client)
        self.headers = HeaderReader(limits)
        self._control_frames = Rate(limits.control_frames_per_s_max)
        self._resets = Rate(limits.resets_per_s_max)
        self.terminated = False
        """The peer broke the rules: nothing more is received."""
        self.peer_closing = False
        """GOAWAY came."""
        self.greeted = False
        """The peer's first SETTINGS came."""

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the network; ``now`` is any clock in seconds that does not go back."""
        events: list[Event] = []
        if self.terminated:
            return events
        try:
            for kind, flags, stream_id, payload in self.frames.feed(data):
                try:
                    self._frame(kind, flags, stream_id, payload, events, now)
                except StreamFault as fault:
                    self._stream_fault(fault, events, now)
        except ConnectionFault as fault:
            self.terminate(fault.code, fault.text)
            self.frames.buffer.clear()
            events.append(Terminated(fault.code, fault.text))
        return events

    def _stream_fault(self, fault: StreamFault, events: list[Event], now: float) -> None:
        self._count_control(now)
        stream = self._streams.open.get(fault.stream)
        self._sender.write(h2.rst_stream_frame(fault.stream, fault.code))
        if stream is not None:
            self._streams.drop(stream)
            events.append(StreamClosed(fault.stream, fault.code, fault.text, remote=False))

    def _count_control(self, now: float) -> None:
        if self._control_frames.exceeded_by(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without use")

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        unfinished = self.headers.unfinished
        if unfinished is not None and (kind != h2.CONTINUATION or stream_id != unfinished):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
        if not self.greeted and (kind != h2.SETTINGS or flags & h2.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if (stream_id == 0) != (kind in _CONNECTION_FRAMES) and kind != h2.WINDOW_UPDATE and kind <= h2.CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frame of type {kind} on stream {stream_id}")
        if kind == h2.DATA:
            self._data(flags, stream_id, payload, events, now)
        elif kind == h2.HEADERS:
            self._on_headers(self.headers.headers(flags, stream_id, payload), events, now)
        elif kind == h2.CONTINUATION:
            self._on_headers(self.headers.continuation(flags, payload), events, now)
        elif kind == h2.WINDOW_UPDATE:
            self._window_update(stream_id, payload, now)
        elif kind == h2.RST_STREAM:
            self._rst_stream(stream_id, payload, events, now)
        elif kind == h2.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE is not allowed")
        elif kind == h2.GOAWAY:
            self._goaway(payload, events, now)
        else:
            self._count_control(now)
            if kind == h2.SETTINGS:
                self._settings(flags, payload)
            elif kind == h2.PING:
                self._ping(flags, payload, events)

    def _data(self, flags: int, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        size = len(payload)
        self._windows.received(size)
        stream = self._streams.open.get(stream_id)
        if stream is None:
            if self._streams.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which was never opened")
            self._count_control(now)
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the end")
        self._windows.received_on(stream, size)
        end = bool(flags & h2.END_STREAM)
        data = h2.without_padding(flags, payload)
        if not data and not end:
            self._count_control(now)
        if end:
            self._streams.end_remote(stream)
        elif len(data) != size:
            self._windows.consumed(stream, size - len(data))  # padding
        events.append(DataReceived(stream_id, data, end))

    def _on_headers(self, headers: Headers | None, events: list[Event], now: float) -> None:
        if headers is None:
            return
        stream_id, end, fields = headers
        stream = self._streams.open.get(stream_id)
        if stream is None:
            if not self._streams.is_idle(stream_id):
                self._count_control(now)  # on its way while we gave the stream up, or after our GOAWAY
                return
            self._streams.accept(stream_id, end)
            events.append(HeadersReceived(stream_id, fields, end))
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end")
        if end:
            self._streams.end_remote(stream)
        elif not self._client:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        events.append(HeadersReceived(stream_id, fields, end) if self._client else DataReceived(stream_id, b"", end))

    def _window_update(self, stream_id: int, payload: bytes, now: float) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        if not self._sender.expects_update():
            self._count_control(now)
        increment = h2.uint32(payload) & h2.WINDOW_MAX
        if stream_id == 0:
            self._sender.open_window(increment)
            return
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            self._sender.open_stream_window(stream, increment)
        elif self._streams.is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}")

    def _rst_stream(self, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        stream = self._streams.open.get(stream_id)
        if stream is None:
            if self._streams.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}")
            self._count_control(now)
            return
        if not self._client and self._resets.exceeded_by(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams opened and reset")
        self._streams.drop(stream)
        code = ErrorCode.of(h2.uint32(payload))
        events.append(StreamClosed(stream_id, code, code.name, remote=True))

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & h2.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        values = h2.parse_settings(payload)
        if not self.greeted:
            self._streams.peer_max = h2.STREAM_ID_MAX  # no limit unless one is given
        self.greeted = True
        window = values.get(h2.INITIAL_WINDOW_SIZE, self._sender.initial_window)
        if window > h2.WINDOW_MAX:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
        frame_bytes_max = values.get(h2.MAX_FRAME_SIZE, h2.DEFAULT_FRAME_BYTES)
        if not h2.DEFAULT_FRAME_BYTES <= frame_bytes_max < 1 << 24 or values.get(h2.ENABLE_PUSH, 0) > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad SETTINGS value")
        # Frames longer than the default would only let one stream keep the others waiting: the size is not used.
        self._sender.set_initial_window(window, self._streams.open.values())
        self._streams.peer_max = values.get(h2.MAX_CONCURRENT_STREAMS, self._streams.peer_max)
        self._sender.write(h2.frame(h2.SETTINGS, h2.ACK, 0))

    def _ping(self, flags: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        if flags & h2.ACK:
            events.append(PongReceived(payload))
        else:
            self._sender.write(h2.frame(h2.PING, h2.ACK, 0, payload))

    def _goaway(self, payload: bytes, events: list[Event], now: float) -> None:
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY too short")
        self._count_control(now)
        self.peer_closing = True
        last_stream = h2.uint32(payload) & h2.STREAM_ID_MAX
        code = ErrorCode.of(h2.uint32(payload, 4))
        events.append(GoAwayReceived(last_stream, code, payload[8:264].decode("utf-8", "replace")))
        if self._client:
            for stream in [stream for stream in self._streams.open.values() if stream.id > last_stream]:
                self._streams.drop(stream)
                events.append(
                    StreamClosed(stream.id, ErrorCode.REFUSED_STREAM, "the server is going away", remote=True)
                )

    def terminate(self, code: ErrorCode, text: str) -> None:
        """End the connection because of what the peer did; nothing more is received."""
        if not self.terminated:
            self.terminated = True
            self._sender.write(h2.goaway_frame(self._streams.last_remote, code, text))

    def held_bytes(self) -> int:
        """An incomplete frame, an incomplete header block, the header table and the cached header blocks."""
        return len(self.frames.buffer) + self.headers.held_bytes()

    def check(self) -> None:
        """Assert what must always hold."""
        self.frames.check()
        self.headers.check()
