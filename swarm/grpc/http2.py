"""gRPC's part of HTTP/2 without I/O, for both roles: bytes in, events out.

``receive`` takes what the network brought and returns events; what is to be sent, answers of the protocol included,
collects in the output. A Connection knows which frame means what; its parts are: bytes to frames and header blocks
(reading.py), streams (streams.py), windows that we give (flow.py), and windows that we get, with the output
(sending.py).

What a peer may make us keep or do is bounded: unread data by windows, headers by size and number of frames, streams by
number, resets and frames without use (PING, SETTINGS, empty DATA, frames of closed streams) by a rate per second. A
peer that breaks the rules of one stream gets RST_STREAM (event StreamClosed), of the connection GOAWAY (event
Terminated).

(RFC 9113; grpc: doc/PROTOCOL-HTTP2.md)
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.grpc import frames as h2
from swarm.grpc.flow import Limits, Stream
from swarm.grpc.frames import ConnectionFault, ErrorCode, Field, StreamFault
from swarm.grpc.reading import FrameReader, HeaderReader, Headers
from swarm.grpc.streams import Streams


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


_CONNECTION_FRAMES = (h2.SETTINGS, h2.PING, h2.GOAWAY)


class Connection:
    """One HTTP/2 connection of either role. Public attributes are for reading, except ``blocked``."""

    def __init__(self, *, client: bool, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.terminated = False
        """The peer broke the rules: nothing is received any more."""
        self.peer_closing = False
        """GOAWAY came."""
        self.greeted = False
        """The peer's first SETTINGS came."""
        self._table = Streams(client=client, limits=limits)
        self.streams = self._table.open
        self._sender = self._table.sender
        self._windows = self._table.windows
        self._frames = FrameReader(expects_preface=not client)
        self._headers = HeaderReader(limits)
        self._control_frames = Rate(limits.control_frames_per_s_max)
        self._resets = Rate(limits.resets_per_s_max)
        self._greet()

    def _greet(self) -> None:
        settings = {h2.INITIAL_WINDOW_SIZE: self.limits.stream_window_bytes}
        if self.client:
            self._sender.write(h2.PREFACE)
            settings[h2.ENABLE_PUSH] = 0
        else:
            settings[h2.MAX_CONCURRENT_STREAMS] = self.limits.streams_max
        settings[h2.MAX_HEADER_LIST_SIZE] = self.limits.header_list_bytes_max
        self._sender.write(h2.settings_frame(settings))
        self._windows.announce()

    # --- looking in ---

    @property
    def frames(self) -> int:
        """How many frames came."""
        return self._frames.count

    @property
    def awaiting_frames(self) -> bool:
        """The peer is in the middle of a preface, a header block or a frame."""
        return not self.greeted or self._headers.unfinished is not None or bool(self._frames.buffer)

    @property
    def exhausted(self) -> bool:
        """No stream can be opened any more on this connection."""
        return self.terminated or self.peer_closing or self._table.exhausted

    @property
    def blocked(self) -> bool:
        """Set while the transport takes no more: DATA stays in the outboxes."""
        return self._sender.blocked

    @blocked.setter
    def blocked(self, blocked: bool) -> None:
        self._sender.blocked = blocked

    @property
    def buffered(self) -> int:
        """Bytes in all outboxes."""
        return self._sender.buffered

    @property
    def data_bytes_sent(self) -> int:
        """Of what had to wait in an outbox."""
        return self._sender.data_bytes_sent

    def held_bytes(self) -> int:
        """All bytes that the peer can make this connection keep; counted when asked.

        Those are: an incomplete frame, an incomplete header block, the header table and the cached header blocks,
        frames that ``take_output`` has not returned, and the outboxes. Not counted: messages that were handed out as
        DataReceived, which are the application's, and the fixed cost of a stream, whose number is limited.
        """
        received = len(self._frames.buffer) + self._headers.held_bytes()
        return received + self._sender.output_bytes + self._sender.buffered

    def check(self) -> None:
        """Assert what must always hold; tests call it."""
        self._frames.check()
        self._headers.check()
        self._table.check()
        self._sender.check(self.streams, terminated=self.terminated)

    # --- frames ---

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the network; ``now`` is any clock in seconds that does not go back."""
        events: list[Event] = []
        if self.terminated:
            return events
        try:
            for kind, flags, stream_id, payload in self._frames.feed(data):
                try:
                    self._frame(kind, flags, stream_id, payload, events, now)
                except StreamFault as fault:
                    self._stream_fault(fault, events, now)
        except ConnectionFault as fault:
            self.terminate(fault.code, fault.text)
            self._frames.buffer.clear()
            events.append(Terminated(fault.code, fault.text))
        return events

    def _stream_fault(self, fault: StreamFault, events: list[Event], now: float) -> None:
        self._count_control(now)
        stream = self.streams.get(fault.stream)
        self._sender.write(h2.rst_stream_frame(fault.stream, fault.code))
        if stream is not None:
            self._table.drop(stream)
            events.append(StreamClosed(fault.stream, fault.code, fault.text, remote=False))

    def _count_control(self, now: float) -> None:
        if self._control_frames.exceeded_by(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without use")

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        unfinished = self._headers.unfinished
        if unfinished is not None and (kind != h2.CONTINUATION or stream_id != unfinished):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
        if not self.greeted and (kind != h2.SETTINGS or flags & h2.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS must come first")
        if (stream_id == 0) != (kind in _CONNECTION_FRAMES) and kind != h2.WINDOW_UPDATE and kind <= h2.CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frame of type {kind} on stream {stream_id}")
        if kind == h2.DATA:
            self._data(flags, stream_id, payload, events, now)
        elif kind == h2.HEADERS:
            self._on_headers(self._headers.headers(flags, stream_id, payload), events, now)
        elif kind == h2.CONTINUATION:
            self._on_headers(self._headers.continuation(flags, payload), events, now)
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
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._table.is_idle(stream_id):
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
            self._table.end_remote(stream)
        elif len(data) != size:
            self._windows.consumed(stream, size - len(data))  # padding
        events.append(DataReceived(stream_id, data, end))

    def _on_headers(self, headers: Headers | None, events: list[Event], now: float) -> None:
        if headers is None:
            return
        stream_id, end, fields = headers
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self._table.is_idle(stream_id):
                self._count_control(now)  # on its way while we gave the stream up, or after our GOAWAY
                return
            self._table.accept(stream_id, end)
            events.append(HeadersReceived(stream_id, fields, end))
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end")
        if end:
            self._table.end_remote(stream)
        elif not self.client:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        events.append(HeadersReceived(stream_id, fields, end) if self.client else DataReceived(stream_id, b"", end))

    def _window_update(self, stream_id: int, payload: bytes, now: float) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        if not self._sender.expects_update():
            self._count_control(now)
        increment = h2.uint32(payload) & h2.WINDOW_MAX
        if stream_id == 0:
            self._sender.open_window(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._sender.open_stream_window(stream, increment)
        elif self._table.is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}")

    def _rst_stream(self, stream_id: int, payload: bytes, events: list[Event], now: float) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._table.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}")
            self._count_control(now)
            return
        if not self.client and self._resets.exceeded_by(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams opened and reset")
        self._table.drop(stream)
        code = ErrorCode.of(h2.uint32(payload))
        events.append(StreamClosed(stream_id, code, code.name, remote=True))

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & h2.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        values = h2.parse_settings(payload)
        if not self.greeted:
            self._table.peer_max = h2.STREAM_ID_MAX  # no limit unless one is given
        self.greeted = True
        window = values.get(h2.INITIAL_WINDOW_SIZE, self._sender.initial_window)
        if window > h2.WINDOW_MAX:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
        frame_bytes_max = values.get(h2.MAX_FRAME_SIZE, h2.DEFAULT_FRAME_BYTES)
        if not h2.DEFAULT_FRAME_BYTES <= frame_bytes_max < 1 << 24 or values.get(h2.ENABLE_PUSH, 0) > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad SETTINGS value")
        # Frames longer than the default would only let one stream keep the others waiting: the size is not used.
        self._sender.set_initial_window(window, self.streams.values())
        self._table.peer_max = values.get(h2.MAX_CONCURRENT_STREAMS, self._table.peer_max)
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
        if self.client:
            for stream in [stream for stream in self.streams.values() if stream.id > last_stream]:
                self._table.drop(stream)
                events.append(
                    StreamClosed(stream.id, ErrorCode.REFUSED_STREAM, "the server is going away", remote=True)
                )

    # --- what the application does ---

    def take_output(self) -> bytes:
        """Bytes to send now, and with them as much waiting data as windows and ``blocked`` allow, a chunk at a time."""
        return self._sender.take(pump=not self.terminated)

    def can_open(self) -> bool:
        """Whether the peer takes one more stream now."""
        return len(self.streams) < self._table.peer_max and not self.exhausted

    def open(self, block: bytes) -> Stream:
        """Client: begin a stream with these headers; the caller asked can_open before."""
        stream = self._table.begin()
        self.send_headers(stream, block)
        return stream

    def send_headers(self, stream: Stream, block: bytes) -> None:
        """Server: the response's headers."""
        self._sender.write(h2.header_frames(stream.id, block, False, h2.DEFAULT_FRAME_BYTES))

    def send(self, stream: Stream, data: bytes, trailers: bytes | None = None) -> None:
        """Send data, and with ``trailers`` end our direction: a header block, or b"" for none (clients)."""
        self._sender.send(stream, data, trailers)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give up a stream and what waits in it; no event follows."""
        if self.streams.get(stream.id) is stream:
            self._table.reset(stream, code)

    def discard(self, stream: Stream) -> None:
        """Drop what waits in the outbox; meant for a stream that is then ended with an error."""
        self._sender.discard(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """The application took ``size`` bytes that came as DataReceived: the peer may send as many again."""
        self._windows.consumed(stream, size)

    def want(self, stream: Stream, size: int) -> None:
        """``size`` more bytes are needed for the message at hand: see that the window lets them pass, now or soon."""
        self._windows.want(stream, size)

    def ping(self, payload: bytes) -> None:
        """Send a PING of 8 bytes; PongReceived follows."""
        self._sender.write(h2.frame(h2.PING, 0, 0, payload))

    # --- ending ---

    def announce_end(self) -> None:
        """Server: ask the client to open no more streams; those on their way are still served."""
        self._sender.write(h2.goaway_frame(h2.STREAM_ID_MAX, ErrorCode.NO_ERROR, "graceful stop"))

    def refuse_new(self) -> None:
        """Server: from here on new streams are ignored, and the client is told which were served."""
        self._table.accept_no_more()
        self._sender.write(h2.goaway_frame(self._table.last_remote, ErrorCode.NO_ERROR, "graceful stop"))

    def terminate(self, code: ErrorCode, text: str) -> None:
        """End the connection because of what the peer did; nothing is received any more."""
        if not self.terminated:
            self.terminated = True
            self._sender.write(h2.goaway_frame(self._table.last_remote, code, text))
