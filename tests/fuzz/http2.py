"""Fuzz target: any bytes into an HTTP/2 connection of either role, cut anywhere, with an application that answers.

Checked: nothing but a Terminated event comes of a broken peer; the same bytes mean the same however they are cut; the
number of streams, what is kept for them and what is sent for what came stay within the limits; header blocks mean what
the hpack package alone makes of them.
"""

from __future__ import annotations

from hpack import Decoder, Encoder, HPACKError

from swarm.grpc import frames as h2
from swarm.grpc.events import DataReceived, Event, HeadersReceived, StreamClosed, Terminated
from swarm.grpc.flow import Limits, Stream
from swarm.grpc.frames import ConnectionFault, ErrorCode, HeaderDecoder
from swarm.grpc.http2 import Connection
from swarm.grpc.wire import PREFIX_BYTES, MessageReader, WireError
from tests.fuzz.feed import Feed

LIMITS = Limits(
    streams_max=4,
    message_bytes_max=8_000,
    stream_window_bytes=1_000,
    connection_window_bytes=70_000,
    grant_bytes_max=10_000,
    header_list_bytes_max=512,
    header_frames_max=4,
    control_frames_per_s_max=40,
    resets_per_s_max=10,
)
GREETING_BYTES = 200  # what is sent before anything came
FAREWELL_BYTES = 200  # GOAWAY with its text
EVENT_BYTES_MAX = 40  # RST_STREAM or an acknowledgement, and two WINDOW_UPDATEs
HELD_BYTES_MAX = 2 * 16_400 + 512 + 4_096 + 64 * (1_024 + 512)  # a frame, a header block, the table, cached blocks
KINDS = (h2.DATA, h2.HEADERS, h2.WINDOW_UPDATE, h2.RST_STREAM, h2.SETTINGS, h2.PING, h2.GOAWAY, h2.CONTINUATION)
SETTINGS = h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 65_535})
SERVER_SETTINGS = h2.settings_frame({h2.MAX_CONCURRENT_STREAMS: 3})
REQUEST = h2.METHOD_POST + h2.SCHEME_HTTP + h2.literal(":path", "/x") + h2.literal("content-type", "application/grpc")
ANSWER = h2.STATUS_200 + h2.literal("content-type", "application/grpc")


class Application:
    """What ServerConnection and ClientProtocol do with events, reduced: messages are read and counted."""

    def __init__(self, connection: Connection, feed: Feed) -> None:
        self.connection = connection
        self.feed = feed
        self.readers: dict[int, MessageReader] = {}
        self.kept: dict[int, int] = {}

    def take(self, event: Event) -> None:
        connection = self.connection
        if isinstance(event, StreamClosed):
            self.readers.pop(event.stream, None)
        elif isinstance(event, HeadersReceived | DataReceived):
            stream = connection.streams.get(event.stream)
            if stream is None:  # the same bytes ended it
                self.readers.pop(event.stream, None)
                return
            if isinstance(event, HeadersReceived):
                self.readers.setdefault(event.stream, MessageReader(LIMITS.message_bytes_max))
            else:
                self._data(stream, event.data)

    def _data(self, stream: Stream, data: bytes) -> None:
        reader = self.readers.get(stream.id)
        if reader is None:
            return
        try:
            messages = reader.feed(data)
        except WireError:
            self.connection.reset(stream, ErrorCode.CANCEL)
            del self.readers[stream.id]
            return
        for message in messages:
            self.connection.consumed(stream, PREFIX_BYTES + len(message))
        if not messages and reader.missing:
            self.connection.want(stream, reader.missing)

    def act(self) -> int:
        """Do something of our own; returns how many bytes that may send."""
        connection, feed = self.connection, self.feed
        action = feed.below(6)
        streams = list(connection.streams.values())
        if action == 0:
            connection.blocked = not connection.blocked
        elif action == 1 and connection.client and connection.can_open():
            stream = connection.open(REQUEST)
            self.readers[stream.id] = MessageReader(LIMITS.message_bytes_max)
            return 200
        elif action == 2 and streams:
            size = feed.below(4_000)
            trailers = feed.choice((None, b"", h2.literal("grpc-status", "0")))
            stream = feed.choice(streams)
            connection.send(stream, b"x" * size, trailers if not connection.client else trailers and b"")
            return 2 * size + 200
        elif action == 3 and streams and not connection.client:
            connection.send_headers(feed.choice(streams), ANSWER)
            return 200
        elif action == 4 and streams:
            connection.reset(feed.choice(streams), ErrorCode.CANCEL)
            return 40
        elif action == 5:
            connection.ping(b"01234567")
            return 40
        return 0


def check(connection: Connection) -> None:
    """What must always hold, however the peer behaves."""
    connection.check()
    limits = connection.limits
    streams = connection.streams.values()
    longest = limits.message_bytes_max + PREFIX_BYTES
    assert sum(stream.granted for stream in streams) <= max(limits.grant_bytes_max, longest)
    assert all(stream.receive_window <= limits.stream_window_bytes + longest for stream in streams)


def frames(feed: Feed) -> bytes:
    """A few frames, mostly well-formed."""
    out: list[bytes] = []
    while feed and len(out) < 60:
        kind = feed.byte()
        kind = KINDS[kind % len(KINDS)] if kind < 248 else kind & 15
        flags = feed.byte()
        stream = feed.choice((0, 1, 3, 5, 7, 9, 2, 2**31 - 1))
        if kind in (h2.WINDOW_UPDATE, h2.RST_STREAM):
            payload = feed.number(32).to_bytes(4, "big")
        elif kind == h2.PING:
            payload = b"pingpong"
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            payload = h2.settings_frame({feed.below(8): feed.number(32)})[9:]
        elif kind == h2.DATA and feed.flag():
            payload = b"\0" + feed.below(9_000).to_bytes(4, "big") + b"m" * (4 * feed.byte())
        elif kind == h2.HEADERS and feed.flag():
            flags, payload = flags & h2.END_STREAM | h2.END_HEADERS, REQUEST
        else:
            payload = feed.some()
        out.append(h2.frame(kind, flags, stream, payload))
        if flags == 0xFF:
            out.append(out[-1] * feed.byte())
    return b"".join(out)


def one(data: bytes) -> None:
    """The whole of one input."""
    feed = Feed(data)
    kind = feed.byte()
    if kind & 3 == 3:
        headers(feed)
        return
    client = bool(kind & 4)
    start = b"" if client else h2.PREFACE
    if kind & 3 == 0:
        stream = feed.rest() if kind & 8 else start + SETTINGS + feed.rest()
        same_however_cut(client, stream, Feed(data[:16]))
    else:
        own, peer = Feed(feed.some()), Feed(feed.rest())
        talk(client, start + SETTINGS + frames(peer), own)


def same_however_cut(client: bool, data: bytes, feed: Feed) -> None:
    """Events and output do not depend on where the network cut."""
    outcomes = []
    for pieces in ([(0, len(data))], feed.cuts(len(data))):
        connection = Connection(client=client, limits=LIMITS)
        if client:
            connection.receive(SERVER_SETTINGS, 0.0)
            for _ in range(3):
                connection.open(REQUEST)
        sent = len(connection.take_output())
        events: list[Event] = []
        output = b""
        for start, stop in pieces:
            events += connection.receive(data[start:stop], 1.0)
            output += connection.take_output()
            assert connection.held_bytes() - connection.buffered <= HELD_BYTES_MAX
            check(connection)
        assert len(output) <= FAREWELL_BYTES + EVENT_BYTES_MAX / h2.FRAME_HEADER_BYTES * len(data)
        assert sent <= GREETING_BYTES * (4 if client else 1)
        assert connection.terminated == bool(events and isinstance(events[-1], Terminated))
        assert sum(isinstance(event, Terminated) for event in events) <= 1
        outcomes.append((events, output))
    assert outcomes[0] == outcomes[1]


def talk(client: bool, data: bytes, feed: Feed) -> None:
    """Frames come while the application works; ends as all connections do: everything is given back."""
    connection = Connection(client=client, limits=LIMITS)
    application = Application(connection, feed)
    allowed = GREETING_BYTES + FAREWELL_BYTES
    sent, now = len(connection.take_output()), 1.0
    position = 0
    while position < len(data) and not connection.terminated:
        size = 1 + feed.below(1 << 12) if feed else len(data)
        for event in connection.receive(data[position : position + size], now):
            application.take(event)
        position += size
        check(connection)
        allowed += application.act() if feed else 0
        check(connection)
        sent += len(connection.take_output())
        assert connection.held_bytes() - connection.buffered <= HELD_BYTES_MAX
        now += feed.byte() / 100
    assert sent <= allowed + EVENT_BYTES_MAX / h2.FRAME_HEADER_BYTES * len(data)
    for stream in list(connection.streams.values()):
        connection.reset(stream, ErrorCode.CANCEL)
        check(connection)
    assert not connection.buffered


def headers(feed: Feed) -> None:
    """Blocks one after the other: our decoder with its short cuts beside hpack alone."""
    ours, plain = HeaderDecoder(LIMITS.header_list_bytes_max), Decoder(LIMITS.header_list_bytes_max)
    blocks: list[bytes] = []
    while feed and len(blocks) < 20:
        again = feed.byte()
        blocks.append(blocks[again % len(blocks)] if blocks and again < 64 else feed.some())
        got: object
        expected: object
        try:
            got = ours.decode(blocks[-1])
        except ConnectionFault as fault:
            got = fault.code
        try:
            expected = tuple((bytes(name), bytes(value)) for name, value in plain.decode(blocks[-1], raw=True))
        except (HPACKError, IndexError, ValueError):
            expected = None
        if isinstance(got, ErrorCode):
            assert expected is None, (blocks, expected)
            return
        assert got == expected, blocks


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    encoder = Encoder()
    blocks = [
        encoder.encode([(":method", "POST"), (":path", "/a"), ("x", "y")]),
        encoder.encode([(":method", "POST"), (":path", "/a"), ("x", "z" * 40)]),
        REQUEST,
        b"\x3f\xe1\x1f",
        b"\x82\x3e",
    ]
    whole = h2.header_frames(1, REQUEST, False, 16_384) + h2.frame(h2.DATA, h2.END_STREAM, 1, b"\0\0\0\0\1a")
    answer = h2.header_frames(1, ANSWER, False, 16_384) + h2.header_frames(1, h2.literal("grpc-status", "0"), True, 99)
    split = h2.frame(h2.HEADERS, 0, 1, REQUEST[:9]) + h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, REQUEST[9:])
    opens = b"".join(bytes((1, 4, number, 1)) for number in (1, 2, 3))
    begins = b"".join(bytes((0, 0, number)) + b"\x01" + (8_000).to_bytes(2, "big") + b"\x40" for number in (1, 2, 3))
    goes_on = b"".join(bytes((0, 0, number, 0, 1, 1)) for number in (1, 2, 3))
    return [
        b"\x01\x04\x0f\xff\x05\x00" + opens + begins + goes_on * 2,
        b"\x00" + whole,
        b"\x00" + split + h2.rst_stream_frame(1, ErrorCode.CANCEL) + h2.frame(h2.PING, 0, 0, b"12345678"),
        b"\x04" + answer,
        b"\x04" + h2.goaway_frame(1, ErrorCode.NO_ERROR, "bye"),
        b"\x08" + h2.PREFACE + SETTINGS + whole,
        b"\x01\x08\x00\x10\x02\x00\x05\x00\x10\x01" + bytes((1, 4, 1, 1, 0, 0, 1, 1, 200, 9, 40)) * 3,
        b"\x05\x08\x00\x10\x01\x00\x05\x00\x10\x01" + bytes((1, 4, 1, 1, 0, 0, 1, 1, 200, 9, 40)) * 3,
        b"\x03" + b"".join(b"\xff" + bytes((len(block),)) + block for block in blocks) + b"\x00\x01",
    ]
