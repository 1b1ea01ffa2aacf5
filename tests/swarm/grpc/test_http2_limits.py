"""What a hostile peer may try, and what it gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.grpc import frames as h2
from swarm.grpc.events import DataReceived, Event, HeadersReceived, StreamClosed, Terminated
from swarm.grpc.flow import Limits
from swarm.grpc.frames import ErrorCode
from swarm.grpc.http2 import Connection

LIMITS = Limits(
    streams_max=3,
    stream_window_bytes=1000,
    connection_window_bytes=65_535,
    header_list_bytes_max=500,
    header_frames_max=4,
    control_frames_per_s_max=50,
    resets_per_s_max=10,
)
BLOCK = h2.METHOD_POST + h2.literal(":path", "/x")
GREETING = h2.PREFACE + h2.settings_frame({})


def server(limits: Limits = LIMITS) -> Connection:
    connection = Connection(client=False, limits=limits)
    assert connection.receive(GREETING, 0.0) == []
    connection.take_output()
    return connection


def opened(stream: int = 1, *, end: bool = False) -> bytes:
    return h2.header_frames(stream, BLOCK, end, h2.DEFAULT_FRAME_BYTES)


def fate(connection: Connection, data: bytes, now: float = 0.0) -> ErrorCode | None:
    """How the connection ended, and that it said so in a GOAWAY."""
    events = connection.receive(data, now)
    ends = [event for event in events if isinstance(event, Terminated)]
    if not ends:
        return None
    assert h2.frame(h2.GOAWAY, 0, 0)[3:9] in connection.take_output()
    assert connection.receive(h2.frame(h2.PING, 0, 0, b"12345678"), now) == []
    return ends[0].code


def resets(events: list[Event]) -> list[tuple[int, ErrorCode]]:
    return [(event.stream, event.code) for event in events if isinstance(event, StreamClosed)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (h2.frame(h2.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.DATA, h2.PADDED, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.DATA, 0, 2, b"x"), ErrorCode.PROTOCOL_ERROR),
        (opened(2), ErrorCode.PROTOCOL_ERROR),
        (opened(0), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.HEADERS, h2.END_HEADERS | h2.HAS_PRIORITY, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
        (h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xc0"), ErrorCode.COMPRESSION_ERROR),
        (h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x82\x3f\xe1\x1f"), ErrorCode.COMPRESSION_ERROR),
        (h2.frame(h2.HEADERS, 0, 1, BLOCK) + h2.frame(h2.PING, 0, 0, b"12345678"), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.HEADERS, 0, 1, BLOCK) + h2.frame(h2.CONTINUATION, 4, 3, b""), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, BLOCK), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
        (h2.frame(h2.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.SETTINGS, h2.ACK, 0, b"123456"), ErrorCode.FRAME_SIZE_ERROR),
        (h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
        (h2.settings_frame({h2.MAX_FRAME_SIZE: 100}), ErrorCode.PROTOCOL_ERROR),
        (h2.settings_frame({h2.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.PING, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
        (h2.frame(h2.GOAWAY, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
        (h2.frame(h2.RST_STREAM, 0, 1, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
        (h2.rst_stream_frame(1, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
        (h2.frame(h2.WINDOW_UPDATE, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
        (h2.window_update_frame(0, 0), ErrorCode.PROTOCOL_ERROR),
        (h2.window_update_frame(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (h2.window_update_frame(1, 5), ErrorCode.PROTOCOL_ERROR),
        (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", ErrorCode.FRAME_SIZE_ERROR),
        (opened(3) + opened(1), None),
    ],
)
def test_a_broken_frame_ends_the_connection(data: bytes, code: ErrorCode | None) -> None:
    assert fate(server(), data) == code


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", h2.PREFACE[:-1] + b"x"])
def test_what_is_not_http2_is_recognised_at_once(data: bytes) -> None:
    assert fate(Connection(client=False, limits=LIMITS), data) == ErrorCode.PROTOCOL_ERROR


def test_settings_must_come_first() -> None:
    assert fate(Connection(client=False, limits=LIMITS), h2.PREFACE + opened()) == ErrorCode.PROTOCOL_ERROR


def test_a_server_may_not_open_streams_at_a_client() -> None:
    client = Connection(client=True, limits=LIMITS)
    client.receive(h2.settings_frame({}), 0.0)
    assert fate(client, opened(2)) == ErrorCode.PROTOCOL_ERROR


def test_streams_beyond_the_limit_are_refused_and_the_others_go_on() -> None:
    connection = server()
    connection.receive(opened(1) + opened(3) + opened(5) + opened(7), 0.0)
    assert h2.rst_stream_frame(7, ErrorCode.REFUSED_STREAM) in connection.take_output()
    assert sorted(connection.streams) == [1, 3, 5]
    (event,) = connection.receive(h2.frame(h2.DATA, 0, 1, b"x"), 0.0)
    assert isinstance(event, DataReceived)


def test_opening_and_resetting_streams_rapidly_ends_the_connection() -> None:
    def attack(count: int) -> bytes:
        return b"".join(opened(n) + h2.rst_stream_frame(n, ErrorCode.CANCEL) for n in range(1, 2 * count, 2))

    assert fate(server(), attack(10)) is None
    assert fate(server(), attack(11)) == ErrorCode.ENHANCE_YOUR_CALM


def test_resets_at_a_moderate_pace_are_fine() -> None:
    connection = server()
    for n in range(1, 201, 2):
        assert fate(connection, opened(n) + h2.rst_stream_frame(n, ErrorCode.CANCEL), now=n * 0.1) is None


@pytest.mark.parametrize(
    "frame",
    [
        h2.frame(h2.PING, 0, 0, b"12345678"),
        h2.settings_frame({}),
        h2.frame(h2.SETTINGS, h2.ACK, 0),
        h2.frame(h2.DATA, 0, 1),
        h2.frame(h2.DATA, h2.PADDED, 1, b"\0"),
        h2.frame(h2.PRIORITY, 0, 1, b"12345"),
        h2.frame(0x77, 0, 1, b"unknown"),
        h2.rst_stream_frame(3, ErrorCode.CANCEL),
        h2.frame(h2.DATA, 0, 3, b"late"),
        h2.header_frames(3, BLOCK, True, h2.DEFAULT_FRAME_BYTES),
        h2.frame(h2.GOAWAY, 0, 0, b"\0" * 8),
    ],
)
def test_a_flood_of_frames_without_use_ends_the_connection(frame: bytes) -> None:
    connection = server()
    connection.receive(opened(1) + opened(3) + h2.rst_stream_frame(3, ErrorCode.CANCEL), 0.0)
    assert fate(connection, frame * 40) is None
    assert fate(connection, frame * 20) == ErrorCode.ENHANCE_YOUR_CALM


def test_the_same_frames_spread_over_time_are_fine() -> None:
    connection = server()
    for second in range(20):
        assert fate(connection, h2.frame(h2.PING, 0, 0, b"12345678") * 40, now=float(second)) is None


def test_window_updates_for_data_that_was_never_sent_are_a_flood() -> None:
    connection = server()
    assert fate(connection, h2.window_update_frame(0, 1) * 100) is None
    assert fate(connection, h2.window_update_frame(0, 1) * 60) == ErrorCode.ENHANCE_YOUR_CALM


def test_a_flood_of_continuations_ends_the_connection() -> None:
    flood = h2.frame(h2.HEADERS, 0, 1, BLOCK) + h2.frame(h2.CONTINUATION, 0, 1) * 10
    assert fate(server(), flood) == ErrorCode.ENHANCE_YOUR_CALM


def test_a_header_block_that_grows_without_end_ends_the_connection() -> None:
    flood = h2.frame(h2.HEADERS, 0, 1, BLOCK) + h2.frame(h2.CONTINUATION, 0, 1, b"\0" * 600)
    assert fate(server(), flood) == ErrorCode.ENHANCE_YOUR_CALM


def test_a_small_block_that_unpacks_to_a_long_list_ends_the_connection() -> None:
    bomb = b"\x40\x01a\x7f\x49" + b"v" * 200 + b"\xbe" * 3
    assert fate(server(), h2.frame(h2.HEADERS, h2.END_HEADERS, 1, bomb)) == ErrorCode.ENHANCE_YOUR_CALM
    references = b"\x40\x01a\x7f\x49" + b"v" * 200
    connection = server()
    assert fate(connection, h2.frame(h2.HEADERS, h2.END_HEADERS, 1, references)) is None
    assert fate(connection, h2.frame(h2.HEADERS, h2.END_HEADERS, 3, b"\xbe" * 300)) == ErrorCode.ENHANCE_YOUR_CALM


def test_more_data_than_the_streams_window_resets_the_stream() -> None:
    connection = server()
    events = connection.receive(opened(1) + opened(3) + h2.frame(h2.DATA, 0, 1, b"x" * 1001), 0.0)
    assert resets(events) == [(1, ErrorCode.FLOW_CONTROL_ERROR)]
    assert list(connection.streams) == [3]
    assert h2.rst_stream_frame(1, ErrorCode.FLOW_CONTROL_ERROR) in connection.take_output()


def test_more_data_than_the_connections_window_ends_the_connection() -> None:
    connection = server(replace(LIMITS, stream_window_bytes=1 << 20, connection_window_bytes=1 << 20))
    connection._windows.connection = 20_000
    data = h2.frame(h2.DATA, 0, 1, b"x" * 16_000)
    assert fate(connection, opened() + data * 2) == ErrorCode.FLOW_CONTROL_ERROR


def test_padding_counts_and_is_given_back() -> None:
    connection = server()
    padded = h2.frame(h2.DATA, h2.PADDED, 1, b"\xff" + b"x" + b"\0" * 255)
    connection.receive(opened(), 0.0)
    for _ in range(100):
        assert resets(connection.receive(padded, 0.0)) == []
        connection.consumed(connection.streams[1], 1)


def test_data_after_the_end_resets_the_stream() -> None:
    connection = server()
    events = connection.receive(opened(end=True) + h2.frame(h2.DATA, 0, 1, b"x"), 0.0)
    assert isinstance(events[0], HeadersReceived)
    assert resets(events) == [(1, ErrorCode.STREAM_CLOSED)]


def test_headers_after_the_end_reset_the_stream() -> None:
    connection = server()
    assert resets(connection.receive(opened(end=True) + opened(end=True), 0.0)) == [(1, ErrorCode.STREAM_CLOSED)]


def test_a_window_that_overflows_resets_the_stream() -> None:
    events = server().receive(opened() + h2.window_update_frame(1, 2**31 - 1), 0.0)
    assert resets(events) == [(1, ErrorCode.FLOW_CONTROL_ERROR)]


def test_settings_that_make_a_window_overflow_end_the_connection() -> None:
    connection = server()
    connection.receive(opened() + h2.window_update_frame(1, 2**31 - 1 - 65_535), 0.0)
    settings = h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 65_536})
    assert fate(connection, settings) == ErrorCode.FLOW_CONTROL_ERROR


def test_what_a_stream_reset_by_the_peer_had_to_send_is_dropped() -> None:
    connection = server()
    connection.receive(opened(), 0.0)
    connection.send(connection.streams[1], b"x" * 1_000_000)
    assert connection.buffered
    connection.take_output()
    connection.receive(h2.rst_stream_frame(1, ErrorCode.CANCEL), 0.0)
    assert connection.buffered == 0
    assert h2.frame(h2.DATA, 0, 1)[3:9] not in connection.take_output()


def test_an_unfinished_frame_or_block_is_noticed() -> None:
    connection = server()
    assert not connection.awaiting_frames
    connection.receive(opened()[:12], 0.0)
    assert connection.awaiting_frames
    connection.receive(opened()[12:], 0.0)
    assert not connection.awaiting_frames
    connection.receive(h2.frame(h2.HEADERS, 0, 3, BLOCK), 0.0)
    assert connection.awaiting_frames


def test_a_stream_waits_for_credit_once_however_often_it_asks() -> None:
    connection = server(replace(LIMITS, grant_bytes_max=5_000))
    connection.receive(opened(1) + opened(3) + opened(5), 0.0)
    first, second, third = (connection.streams[number] for number in (1, 3, 5))
    connection.want(first, 5_000)
    for _ in range(1_000):  # as for a message that comes in frames of one byte
        connection.want(second, 5_000)
        connection.want(third, 3_000)
    assert connection._windows.waiting == [3, 5]
    connection.reset(second, ErrorCode.CANCEL)
    assert connection._windows.waiting == [5]
    connection.reset(first, ErrorCode.CANCEL)
    assert (third.granted, third.receive_window) == (2_000, 3_000)
    assert connection._windows.waiting == []


def test_what_came_behind_a_fault_is_not_kept() -> None:
    connection = server()
    events = connection.receive(h2.frame(h2.DATA, 0, 0, b"x") + bytes(200_000), 0.0)
    assert isinstance(events[-1], Terminated)
    connection.take_output()
    assert connection.held_bytes() == 0


def test_all_that_a_peer_makes_a_connection_keep_is_counted() -> None:
    connection = server()
    assert connection.held_bytes() == 0
    connection.receive(opened(1), 0.0)
    cached = connection.held_bytes()
    assert cached >= len(BLOCK)
    connection.receive(h2.frame(h2.HEADERS, h2.END_HEADERS, 3, b"\x40\x01a\x7f\x49" + b"v" * 200), 0.0)
    table = connection.held_bytes()  # the new field changed the table, and with it all cached blocks are void
    assert table == len("a") + 200 + 32
    connection.send(connection.streams[1], b"x" * 100_000)
    connection.blocked = True
    assert connection.held_bytes() == table + 100_000 == table + connection.buffered
    connection.receive(h2.rst_stream_frame(1, ErrorCode.CANCEL), 0.0)
    assert connection.held_bytes() == table
    connection.receive(h2.frame(h2.PING, 0, 0, b"12345678"), 0.0)
    assert connection.held_bytes() == table + 17
    connection.take_output()
    connection.receive(h2.frame(h2.HEADERS, 0, 5, b"\0" * 100), 0.0)
    assert connection.held_bytes() == table + 100
    connection.receive(h2.frame(h2.CONTINUATION, 0, 5, b"\0" * 50)[:-1], 0.0)
    assert connection.held_bytes() == table + 100 + h2.FRAME_HEADER_BYTES + 49
