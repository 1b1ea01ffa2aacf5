"""Both roles of the protocol against each other, with the network's bytes cut anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.grpc import frames as h2
from swarm.grpc.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PongReceived,
    StreamClosed,
)
from swarm.grpc.flow import Limits
from swarm.grpc.frames import ErrorCode, HeaderDecoder
from swarm.grpc.http2 import Connection

SMALL = Limits(stream_window_bytes=1000, connection_window_bytes=70_000, grant_bytes_max=5000)
BLOCK = h2.METHOD_POST + h2.literal(":path", "/x")


class Pair:
    """A client and a server, joined by hand."""

    def __init__(self, limits: Limits = SMALL, client_limits: Limits | None = None) -> None:
        self.client = Connection(client=True, limits=client_limits or limits)
        self.server = Connection(client=False, limits=limits)
        self.events: list[Event] = []
        self.exchange()

    def exchange(self, cuts: tuple[int, ...] = ()) -> list[Event]:
        """Carry bytes until both are silent; returns what the server, then the client saw."""
        seen: list[Event] = []
        turn = 0
        while True:
            outputs = [(self.server, self.client.take_output()), (self.client, self.server.take_output())]
            if not any(data for _, data in outputs):
                return seen
            for receiver, data in outputs:
                position = 0
                while position < len(data):
                    size = cuts[turn % len(cuts)] if cuts else len(data)
                    seen += receiver.receive(data[position : position + size], 0.0)
                    position, turn = position + size, turn + 1


def received(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, DataReceived))


@given(st.binary(max_size=900), st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_a_call_survives_any_cutting(payload: bytes, cuts: list[int]) -> None:
    pair = Pair()
    stream = pair.client.open(BLOCK)
    pair.client.send(stream, payload, b"")
    events = pair.exchange(tuple(cuts))
    assert isinstance(events[0], HeadersReceived)
    assert received(events) == payload
    assert pair.server.streams[stream.id].remote_ended
    pair.server.send_headers(pair.server.streams[stream.id], h2.STATUS_200)
    pair.server.send(pair.server.streams[stream.id], payload, h2.literal("grpc-status", "0"))
    events = pair.exchange(tuple(cuts))
    assert received(events) == payload
    assert isinstance(events[-1], HeadersReceived)
    assert events[-1].end
    assert not pair.client.streams
    assert not pair.server.streams


def test_no_more_is_sent_than_the_application_takes() -> None:
    pair = Pair()
    stream = pair.client.open(BLOCK)
    pair.client.send(stream, b"x" * 3500)
    assert len(received(pair.exchange())) == 1000
    assert pair.client.buffered == 2500
    got = 1000
    while pair.client.buffered:
        pair.server.consumed(pair.server.streams[stream.id], 1000)
        arrived = len(received(pair.exchange()))
        assert 0 < arrived <= 1000
        got += arrived
    assert got == 3500


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 120_000), min_size=1, max_size=12), st.lists(st.integers(1, 5000), min_size=1, max_size=5)
)
def test_many_streams_share_the_connections_window(sizes: list[int], cuts: list[int]) -> None:
    pair = Pair(replace(SMALL, stream_window_bytes=20_000))
    streams = [pair.client.open(BLOCK) for _ in sizes]
    for stream, size in zip(streams, sizes, strict=True):
        pair.client.send(stream, b"x" * size, b"")
    got: dict[int, int] = {}
    for _ in range(1000):
        events = pair.exchange(tuple(cuts))
        for event in events:
            if isinstance(event, DataReceived):
                got[event.stream] = got.get(event.stream, 0) + len(event.data)
                pair.server.consumed(pair.server.streams[event.stream], len(event.data))
        if not events and not pair.client.buffered:
            break
    assert [got[stream.id] for stream in streams] == sizes


def test_streams_take_turns() -> None:
    limits = replace(SMALL, stream_window_bytes=1 << 20)
    pair = Pair(limits)
    long, short = pair.client.open(BLOCK), pair.client.open(BLOCK)
    pair.client.send(long, b"l" * 300_000, b"")
    pair.client.send(short, b"s" * 20_000, b"")
    order = [e.stream for e in pair.server.receive(pair.client.take_output(), 0.0) if isinstance(e, DataReceived)]
    assert order[:4] == [long.id, short.id, long.id, short.id]


def test_a_message_longer_than_the_window_gets_credit_and_the_window_recovers() -> None:
    pair = Pair()
    stream = pair.client.open(BLOCK)
    pair.client.send(stream, b"m" * 4000)
    got = len(received(pair.exchange()))
    server_stream = pair.server.streams[stream.id]
    pair.server.want(server_stream, 4000 - got)
    got += len(received(pair.exchange()))
    assert got == 4000
    pair.server.consumed(server_stream, 4000)
    pair.client.send(stream, b"n" * 3000)
    assert len(received(pair.exchange())) == 1000  # the ordinary window again


def test_long_messages_wait_for_each_other_instead_of_blocking() -> None:
    pair = Pair()
    streams = [pair.client.open(BLOCK) for _ in range(4)]
    missing = {stream.id: 4000 for stream in streams}
    for stream in streams:
        pair.client.send(stream, b"m" * 4000, b"")
    wanted = set()
    for _ in range(20):
        for event in pair.exchange():
            if isinstance(event, DataReceived):
                missing[event.stream] -= len(event.data)
        for stream_id, size in missing.items():
            stream = pair.server.streams[stream_id]
            if size == 0:
                pair.server.consumed(stream, 4000)
                missing[stream_id] = -1
            elif size > 0 and stream_id not in wanted:
                wanted.add(stream_id)
                pair.server.want(stream, size)
        assert sum(stream.granted for stream in pair.server.streams.values()) <= SMALL.grant_bytes_max
    assert set(missing.values()) == {-1}


def test_credit_of_a_stream_that_dies_goes_to_the_next() -> None:
    pair = Pair()
    first, second = pair.client.open(BLOCK), pair.client.open(BLOCK)
    for stream in (first, second):
        pair.client.send(stream, b"m" * 4000, b"")
    pair.exchange()
    for stream in (first, second):
        pair.server.want(pair.server.streams[stream.id], 3000)
    assert pair.server.streams[second.id].granted == 0
    pair.client.reset(first, ErrorCode.CANCEL)
    events = pair.exchange()
    assert any(isinstance(event, StreamClosed) and event.code == ErrorCode.CANCEL for event in events)
    assert pair.server.streams[second.id].granted == 3000


def test_while_the_transport_is_blocked_only_control_frames_leave() -> None:
    pair = Pair()
    stream = pair.client.open(BLOCK)
    pair.exchange()
    pair.client.blocked = True
    pair.client.send(stream, b"data")
    pair.client.ping(b"12345678")
    assert pair.client.take_output() == h2.frame(h2.PING, 0, 0, b"12345678")
    pair.client.blocked = False
    assert received(pair.exchange()) == b"data"


def test_a_ping_is_answered() -> None:
    pair = Pair()
    pair.client.ping(b"12345678")
    assert pair.exchange() == [PongReceived(b"12345678")]


def test_the_server_may_answer_before_the_request_is_complete() -> None:
    pair = Pair()
    stream = pair.client.open(BLOCK)
    pair.client.send(stream, b"x")
    pair.exchange()
    pair.server.send(pair.server.streams[stream.id], b"", h2.STATUS_200 + h2.literal("grpc-status", "7"))
    assert isinstance(pair.exchange()[0], HeadersReceived)
    assert not pair.client.streams
    assert not pair.server.streams
    pair.client.send(stream, b"late")
    assert pair.client.take_output() == b""


def test_a_client_sees_how_many_streams_it_may_open() -> None:
    pair = Pair(replace(SMALL, streams_max=2))
    pair.client.open(BLOCK)
    assert pair.client.can_open()
    pair.client.open(BLOCK)
    assert not pair.client.can_open()


def test_a_graceful_end_tells_which_streams_were_served() -> None:
    pair = Pair()
    first = pair.client.open(BLOCK)
    pair.exchange()
    pair.server.announce_end()
    late = pair.client.open(BLOCK)  # on its way when GOAWAY was sent
    events = pair.exchange()
    assert GoAwayReceived(h2.STREAM_ID_MAX, ErrorCode.NO_ERROR, "graceful stop") in events
    assert late.id in pair.server.streams
    assert not pair.client.can_open()
    pair.server.refuse_new()
    assert not any(isinstance(event, StreamClosed) for event in pair.exchange())
    assert set(pair.client.streams) == {first.id, late.id}


def test_a_stream_that_the_server_did_not_look_at_fails_at_the_client() -> None:
    pair = Pair()
    pair.server.refuse_new()
    stream = pair.client.open(BLOCK)
    pair.client.send(stream, b"x" * 100, b"")
    events = pair.exchange()
    assert StreamClosed(stream.id, ErrorCode.REFUSED_STREAM, "the server is going away", remote=True) in events
    assert not pair.server.streams


def test_a_smaller_window_announced_late_is_kept() -> None:
    pair = Pair()
    stream = pair.client.open(BLOCK)
    pair.exchange()
    pair.client.receive(h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 10}), 0.0)
    pair.client.send(stream, b"x" * 50)
    assert len(received(pair.exchange())) == 10


names = st.sampled_from([":path", "te", "grpc-timeout", "x-custom", "content-type", "forwarded_cert"])
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
blocks = st.lists(st.tuples(names, values, st.booleans()), max_size=8)


@settings(max_examples=200)
@given(st.lists(st.tuples(blocks, st.sampled_from([None, None, None, 0, 64, 200, 4096])), max_size=12), st.booleans())
def test_header_blocks_mean_what_any_encoder_meant(
    sequence: list[tuple[list[tuple[str, str, bool]], int | None]], huffman: bool
) -> None:
    encoder, decoder = Encoder(), HeaderDecoder(64 << 10)
    for fields, table_size in [*sequence, *sequence]:  # twice: the second time many blocks are only references
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode(fields, huffman=huffman)
        assert decoder.decode(block) == tuple((name.encode(), value.encode()) for name, value, _ in fields)


def test_a_field_that_was_too_large_for_the_table_enters_it_once_it_fits() -> None:
    decoder = HeaderDecoder(1000)
    insert, reference = b"\x40\x01a\x01b", b"\xbe"
    assert decoder.decode(b"\x20") == ()
    assert decoder.decode(insert) == ((b"a", b"b"),)
    assert decoder.decode(b"\x3f\xe1\x1f") == ()  # back to 4096 bytes
    assert decoder.decode(insert) == ((b"a", b"b"),)
    assert decoder.decode(reference) == ((b"a", b"b"),)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_no_header_block_raises_anything_but_a_fault(data: list[bytes]) -> None:
    decoder = HeaderDecoder(1000)
    codes = []
    for block in data:
        try:
            decoder.decode(block)
        except h2.ConnectionFault as fault:
            codes.append(fault.code)
            break
    assert set(codes) <= {ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM}


def test_a_long_header_block_travels_in_several_frames() -> None:
    pair = Pair(replace(SMALL, header_list_bytes_max=64 << 10))
    value = "v" * 40_000
    pair.client.open(BLOCK + h2.literal("long", value))
    (event,) = pair.exchange()
    assert isinstance(event, HeadersReceived)
    assert event.fields[-1] == (b"long", value.encode())


@pytest.mark.parametrize("client", [True, False])
@settings(max_examples=200)
@given(data=st.binary(max_size=400), now=st.floats(0, 10))
def test_random_bytes_after_the_greeting_never_raise(client: bool, data: bytes, now: float) -> None:
    connection = Connection(client=client, limits=SMALL)
    greeting = h2.settings_frame({}) if client else h2.PREFACE + h2.settings_frame({})
    connection.receive(greeting, 0.0)
    connection.receive(data, now)
    connection.take_output()


kinds = st.integers(0, 11)
frames = st.builds(
    h2.frame,
    kinds,
    st.integers(0, 255).map(lambda flags: flags & 0x2D),
    st.sampled_from([0, 1, 2, 3, 5, 7]),
    st.one_of(st.binary(max_size=12), st.just(BLOCK), st.just(b"\0\0\0\1"), st.just(b"\0\0\0\0\0\0\0\0")),
)


@pytest.mark.parametrize("client", [True, False])
@settings(max_examples=300)
@given(sequence=st.lists(frames, max_size=25))
def test_well_formed_frames_in_any_order_keep_the_books_right(client: bool, sequence: list[bytes]) -> None:
    connection = Connection(client=client, limits=SMALL)
    connection.receive(h2.settings_frame({}) if client else h2.PREFACE + h2.settings_frame({}), 0.0)
    if client:
        for _ in range(3):
            connection.send(connection.open(BLOCK), b"x" * 2000)
    for frame in sequence:
        for event in connection.receive(frame, 0.0):
            if isinstance(event, HeadersReceived) and not client and event.stream in connection.streams:
                connection.send(connection.streams[event.stream], b"y" * 500, h2.literal("grpc-status", "0"))
        connection.take_output()
        assert connection.buffered == sum(len(stream.outbox) for stream in connection.streams.values())
        assert all(stream.receive_window >= 0 for stream in connection.streams.values())
        assert len(connection.streams) <= SMALL.streams_max
