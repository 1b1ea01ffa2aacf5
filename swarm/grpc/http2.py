"""gRPC's part of HTTP/2 without I/O, for both roles: bytes in, events out.

Theory of operation. ``receive`` takes what the network brought and returns events; what is to be sent, answers of the
protocol included, collects in the Flow that a Connection is. What a peer may make us keep or do is bounded: unread data
by windows, headers by size and number of frames, streams by number, resets and frames without use (PING, SETTINGS,
empty DATA, frames of streams that are over) by a rate per second. A peer that breaks the rules of one stream gets
RST_STREAM (event StreamClosed), of the connection GOAWAY (event Terminated).

(RFC 9113; grpc: doc/PROTOCOL-HTTP2.md)
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.grpc import frames as h2
from swarm.grpc.flow import Flow, Limits, Stream
from swarm.grpc.frames import ConnectionFault, ErrorCode, Field, StreamFault


@dataclass(slots=True)
class HeadersReceived:
    """Headers of a request (server), or of a response, or trailers (client: those come with end)."""

    stream: int
    fields: tuple[Field, ...]
    end: bool


@dataclass(slots=True)
class DataReceived:
    """Bytes of a message. They stay on the stream's account until ``consumed``."""

    stream: int
    data: bytes
    end: bool


@dataclass(slots=True)
class StreamClosed:
    """The stream is over before its time: reset by the peer, or by us because of what the peer did."""

    stream: int
    code: ErrorCode
    text: str
    remote: bool


@dataclass(slots=True)
class GoAwayReceived:
    """The peer takes no new streams; those above last_stream were not looked at."""

    last_stream: int
    code: ErrorCode
    text: str


@dataclass(slots=True)
class PongReceived:
    """The answer to a PING."""

    payload: bytes


@dataclass(slots=True)
class Terminated:
    """The peer broke the rules of the connection: send what is in the output (a GOAWAY), then close."""

    code: ErrorCode
    text: str


Event = HeadersReceived | DataReceived | StreamClosed | GoAwayReceived | PongReceived | Terminated


class Rate:
    """Counts per second."""

    __slots__ = ("_count", "_maximum", "_since")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._count = 0
        self._since = 0.0

    def exceeded_by(self, now: float) -> bool:
        """Count one more; whether it is one too many."""
        if now - self._since >= 1.0:
            self._since, self._count = now, 0
        self._count += 1
        return self._count > self._maximum


class Connection(Flow):
    """One HTTP/2 connection of either role."""

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(client=client, limits=limits)
        self._input = bytearray()
        self._decoder = h2.HeaderDecoder(limits.header_list_bytes_max)
        self.frames = 0
        self._preface_expected = not client
        self._settings_seen = False
        self._headers: tuple[int, int, list[bytes]] | None = None  # stream, flags, fragments: CONTINUATION must follow
        self._unannounced = 0
        self._control_frames = Rate(limits.control_frames_per_s_max)
        self._resets = Rate(limits.resets_per_s_max)

    @property
    def greeted(self) -> bool:
        """The peer's first SETTINGS has come."""
        return self._settings_seen

    @property
    def awaiting_frames(self) -> bool:
        """The peer is in the middle of a preface, a header block or a frame."""
        return not self._settings_seen or self._headers is not None or bool(self._input)

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the network; ``now`` is any clock in seconds that does not go back."""
        events: list[Event] = []
        if self.terminated:
            return events
        self._input += data
        try:
            self._parse(events, now)
        except ConnectionFault as fault:
            self.terminate(fault.code, fault.text)
            self._input.clear()
            events.append(Terminated(fault.code, fault.text))
        return events

    def _parse(self, events: list[Event], now: float) -> None:
        buffer = self._input
        position = 0
        if self._preface_expected:
            start = bytes(buffer[: len(h2.PREFACE)])
            if not h2.PREFACE.startswith(start):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
            if len(start) < len(h2.PREFACE):
                return
            self._preface_expected = False
            position = len(h2.PREFACE)
        while len(buffer) - position >= h2.FRAME_HEADER_BYTES:
            size = buffer[position] << 16 | buffer[position + 1] << 8 | buffer[position + 2]
            if size > h2.DEFAULT_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes")
            end = position + h2.FRAME_HEADER_BYTES + size
            if len(buffer) < end:
                break
            stream_id = int.from_bytes(buffer[position + 5 : position + 9], "big") & h2.STREAM_ID_MAX
            payload = bytes(buffer[position + h2.FRAME_HEADER_BYTES : end])
            kind, flags = buffer[position + 3], buffer[position + 4]
            position = end
            self.frames += 1
            try:
                self._frame(kind, flags, stream_id, payload, events, now)
            except StreamFault as fault:
                self._stream_fault(fault, events, now)
        del buffer[:position]

    def _stream_fault(self, fault: StreamFault, events: list[Event], now: float) -> None:
        self._count_control(now)
        stream = self.streams.get(fault.stream)
        self._write(h2.rst_stream_frame(fault.stream, fault.code))
        if stream is not None:
            self._drop(stream)
            events.append(StreamClosed(fault.stream, fault.code, fault.text, remote=False))

    def _count_control(self, now: float) -> None:
        if self._control_frames.exceeded_by(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without use")

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        if self._headers is not None and (kind != h2.CONTINUATION or stream_id != self._headers[0]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
        if not self._settings_seen and (kind != h2.SETTINGS or flags & h2.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if (stream_id == 0) != (kind in _CONNECTION_FRAMES) and kind != h2.WINDOW_UPDATE and kind <= h2.CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frame of type {kind} on stream {stream_id}")
        if kind == h2.DATA:
            self._data(flags, stream_id, payload, events, now)
        elif kind == h2.HEADERS:
            self._header_fragment(flags, stream_id, payload, events, now)
        elif kind == h2.CONTINUATION:
            self._continuation(flags, payload, events, now)
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

    # --- frames ---

    def _known(self, stream_id: int) -> bool:
        """Whether this stream has ever been opened."""
        if self.client:
            return bool(stream_id & 1) and stream_id < self._next_stream
        return bool(stream_id & 1) and stream_id <= self.last_remote_stream

    def _data(self, flags: int, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._unannounced += size
        if self._unannounced * 2 >= self.limits.connection_window_bytes:
            self._write(h2.window_update_frame(0, self._unannounced))
            self._receive_window += self._unannounced
            self._unannounced = 0
        end = bool(flags & h2.END_STREAM)
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self._known(stream_id) and stream_id <= self._accept_up_to:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {stream_id}, which was never opened")
            self._count_control(now)
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the end")
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window")
        data = h2.without_padding(flags, payload)
        if not data and not end:
            self._count_control(now)
        if end:
            self._end_remote(stream)
        elif len(data) != size:
            self.consumed(stream, size - len(data))  # padding
        events.append(DataReceived(stream_id, data, end))

    def _header_fragment(self, flags: int, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        payload = h2.without_padding(flags, payload)
        if flags & h2.HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            payload = payload[5:]
        if flags & h2.END_HEADERS:
            self._header_block(stream_id, bool(flags & h2.END_STREAM), payload, events, now)
        else:
            self._headers = (stream_id, flags, [payload])

    def _continuation(self, flags: int, payload: bytes, events: list[Event], now: float) -> None:
        if self._headers is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        stream_id, first_flags, fragments = self._headers
        fragments.append(payload)
        if len(fragments) > self.limits.header_frames_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block in too many frames")
        if sum(map(len, fragments)) > self.limits.header_list_bytes_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too long")
        if flags & h2.END_HEADERS:
            self._headers = None
            self._header_block(stream_id, bool(first_flags & h2.END_STREAM), b"".join(fragments), events, now)

    def _header_block(self, stream_id: int, end: bool, block: bytes, events: list[Event], now: float) -> None:
        fields = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._known(stream_id) or (not self.client and stream_id > self._accept_up_to):
                self._count_control(now)  # on its way while we gave the stream up, or after our GOAWAY
                return
            self._accept(stream_id, end)
            events.append(HeadersReceived(stream_id, fields, end))
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end")
        if end:
            self._end_remote(stream)
        elif not self.client:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        events.append(HeadersReceived(stream_id, fields, end) if self.client else DataReceived(stream_id, b"", end))

    def _accept(self, stream_id: int, end: bool) -> None:
        if self.client or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"peer opened stream {stream_id}")
        self.last_remote_stream = stream_id
        if len(self.streams) >= self.limits.streams_max:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        stream = Stream(stream_id, self._peer_window, self.limits.stream_window_bytes)
        stream.remote_ended = end
        self.streams[stream_id] = stream

    def _window_update(self, stream_id: int, payload: bytes, now: float) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        if self._window_updates_expected > 0:
            self._window_updates_expected -= 1
        else:
            self._count_control(now)
        increment = h2.uint32(payload) & h2.WINDOW_MAX
        if stream_id == 0:
            self._send_window += increment
            if not increment or self._send_window > h2.WINDOW_MAX:
                raise ConnectionFault(_window_error(increment), "bad WINDOW_UPDATE")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self._known(stream_id) and stream_id <= self._accept_up_to:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}")
            return
        stream.send_window += increment
        if not increment or stream.send_window > h2.WINDOW_MAX:
            raise StreamFault(stream_id, _window_error(increment), "bad WINDOW_UPDATE")
        if stream.outbox:
            self._sendable[stream_id] = stream

    def _rst_stream(self, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self._known(stream_id) and stream_id <= self._accept_up_to:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}")
            self._count_control(now)
            return
        if not self.client and self._resets.exceeded_by(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams opened and reset")
        self._drop(stream)
        code = ErrorCode.of(h2.uint32(payload))
        events.append(StreamClosed(stream_id, code, code.name, remote=True))

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & h2.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        values = h2.parse_settings(payload)
        if not self._settings_seen:
            self.peer_streams_max = h2.STREAM_ID_MAX  # no limit unless one is given
        self._settings_seen = True
        window = values.get(h2.INITIAL_WINDOW_SIZE, self._peer_window)
        if window > h2.WINDOW_MAX:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
        frame_bytes_max = values.get(h2.MAX_FRAME_SIZE, h2.DEFAULT_FRAME_BYTES)
        if not h2.DEFAULT_FRAME_BYTES <= frame_bytes_max < 1 << 24 or values.get(h2.ENABLE_PUSH, 0) > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad SETTINGS value")
        # Frames longer than the default would only let one stream keep the others waiting: the size is not used.
        difference, self._peer_window = window - self._peer_window, window
        if difference:
            for stream in self.streams.values():
                stream.send_window += difference
                if stream.send_window > h2.WINDOW_MAX:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window overflow by SETTINGS")
                if stream.outbox:
                    self._sendable[stream.id] = stream
        self.peer_streams_max = values.get(h2.MAX_CONCURRENT_STREAMS, self.peer_streams_max)
        self._write(h2.frame(h2.SETTINGS, h2.ACK, 0))

    def _ping(self, flags: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        if flags & h2.ACK:
            events.append(PongReceived(payload))
        else:
            self._write(h2.frame(h2.PING, h2.ACK, 0, payload))

    def _goaway(self, payload: bytes, events: list[Event], now: float) -> None:
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY too short")
        self._count_control(now)
        self.peer_closing = True
        last_stream = h2.uint32(payload) & h2.STREAM_ID_MAX
        code = ErrorCode.of(h2.uint32(payload, 4))
        events.append(GoAwayReceived(last_stream, code, payload[8:264].decode("utf-8", "replace")))
        if self.client:
            for stream in [stream for stream in self.streams.values() if stream.id > last_stream]:
                self._drop(stream)
                events.append(
                    StreamClosed(stream.id, ErrorCode.REFUSED_STREAM, "the server is going away", remote=True)
                )


_CONNECTION_FRAMES = (h2.SETTINGS, h2.PING, h2.GOAWAY)


def _window_error(increment: int) -> ErrorCode:
    return ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
