"""gRPC's framing, statuses and deadlines, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import defaults
from swarm.errors import Code, InvalidArgument, SwarmError
from swarm.grpc import wire as grpc_wire
from swarm.grpc.frames import ErrorCode, HeaderDecoder
from swarm.grpc.wire import HttpError, MessageReader, WireError

REQUEST = ((b":method", b"POST"), (b":path", b"/a/B"), (b"content-type", b"application/grpc"))


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 97), min_size=1, max_size=20))
def test_messages_survive_any_cutting(messages: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(map(grpc_wire.frame_message, messages))
    reader = MessageReader(1000)
    got, position, turn = [], 0, 0
    while position < len(wire):
        size = cuts[turn % len(cuts)]
        got += reader.feed(wire[position : position + size])
        position, turn = position + size, turn + 1
    assert got == messages
    assert not reader.partial
    assert reader.missing == 0


def test_a_reader_knows_what_is_missing() -> None:
    reader = MessageReader(1000)
    assert reader.feed(grpc_wire.frame_message(b"x" * 100)[:25]) == []
    assert reader.missing == 80
    assert reader.partial


def test_a_message_over_the_limit_is_refused_at_its_prefix() -> None:
    with pytest.raises(WireError, match=r"larger than max \(11 vs. 10\)") as refused:
        MessageReader(10).feed(b"\0\0\0\0\x0b")
    assert refused.value.code == Code.RESOURCE_EXHAUSTED


def test_a_compressed_message_is_refused() -> None:
    with pytest.raises(WireError, match="compressed flag"):
        MessageReader(10).feed(b"\1\0\0\0\1x")


@given(st.text())
def test_status_texts_survive(text: str) -> None:
    encoded = grpc_wire.percent_encode(text)
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    assert grpc_wire.percent_decode(encoded) == text


def test_a_malformed_status_text_is_shown_as_it_is() -> None:
    assert grpc_wire.percent_decode(b"100% %zz %41 %ff") == "100% %zz A �"


@given(st.floats(0, 10**10))
def test_a_timeout_never_becomes_shorter_nor_much_longer(timeout_s: float) -> None:
    text = grpc_wire.format_timeout(timeout_s)
    assert len(text) <= 9
    assert timeout_s <= grpc_wire.parse_timeout(text.encode()) * (1 + 1e-12) <= timeout_s * 1.001 + 0.0011


@pytest.mark.parametrize("value", [b"", b"5", b"S", b"-1S", b"123456789S", b"5s", b"1.5S"])
def test_a_malformed_timeout_is_refused(value: bytes) -> None:
    with pytest.raises(WireError):
        grpc_wire.parse_timeout(value)


@given(st.sampled_from([code for code in Code if code]), st.text(max_size=200))
def test_an_error_arrives_as_it_was_sent(code: Code, text: str) -> None:
    fields = HeaderDecoder(defaults.RPC_HEADER_LIST_BYTES_MAX).decode(grpc_wire.status_block(SwarmError(text, code)))
    error = grpc_wire.outcome(fields)
    assert error is not None
    assert (error.code, error.message) == (code, text)


def test_a_long_status_text_is_cut_to_fit_into_headers() -> None:
    block = grpc_wire.status_block(SwarmError("€" * 100_000))
    fields = HeaderDecoder(defaults.RPC_HEADER_LIST_BYTES_MAX).decode(block)
    error = grpc_wire.outcome(fields)
    assert error is not None
    assert error.message == "€" * (defaults.RPC_STATUS_TEXT_BYTES_MAX // 3)


@pytest.mark.parametrize(("number", "code"), [(b"17", Code.UNKNOWN), (b"x", Code.UNKNOWN), (b"", Code.UNKNOWN)])
def test_an_unknown_status_is_unknown(number: bytes, code: Code) -> None:
    error = grpc_wire.outcome(((b"grpc-status", number),))
    assert error is not None
    assert error.code == code


def test_trailers_without_status_are_an_error() -> None:
    assert grpc_wire.outcome(()) is not None


@pytest.mark.parametrize(
    ("status", "code"),
    [(b"503", Code.UNAVAILABLE), (b"404", Code.UNIMPLEMENTED), (b"418", Code.UNKNOWN), (b"abc", Code.UNKNOWN)],
)
def test_a_proxys_http_error_becomes_a_status(status: bytes, code: Code) -> None:
    with pytest.raises(WireError) as refused:
        grpc_wire.check_response(((b":status", status),))
    assert refused.value.code == code


def test_a_web_page_is_no_grpc_response() -> None:
    with pytest.raises(WireError, match="content-type"):
        grpc_wire.check_response(((b":status", b"200"), (b"content-type", b"text/html")))


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc;x=1"])
def test_every_spelling_of_the_content_type_is_taken(content_type: bytes) -> None:
    fields = (*REQUEST[:2], (b"content-type", content_type))
    assert grpc_wire.parse_request(fields).path == "/a/B"


@pytest.mark.parametrize(
    ("index", "field", "status"), [(0, (b":method", b"GET"), 405), (2, (b"content-type", b"x"), 415)]
)
def test_what_is_not_grpc_gets_an_http_status(index: int, field: tuple[bytes, bytes], status: int) -> None:
    fields = list(REQUEST)
    fields[index] = field
    with pytest.raises(HttpError) as refused:
        grpc_wire.parse_request(fields)
    assert refused.value.status == status


def test_a_compressed_request_is_unimplemented() -> None:
    with pytest.raises(WireError, match="gzip") as refused:
        grpc_wire.parse_request((*REQUEST, (b"grpc-encoding", b"gzip")))
    assert refused.value.code == Code.UNIMPLEMENTED


def test_metadata_arrives_with_every_value() -> None:
    block = grpc_wire.request_block(
        "/a/B", "host", secure=True, timeout_s=2.5, metadata=(("k", "1"), ("k", ""), ("forwarded_cert", "true"))
    )
    request = grpc_wire.parse_request(HeaderDecoder(4096).decode(block))
    assert request.metadata == {"k": ("1", ""), "forwarded_cert": ("true",)}
    assert request.timeout_s == 2.5


@pytest.mark.parametrize("pair", [("Bad", "x"), ("grpc-status", "0"), (":path", "/"), ("a", "line\nbreak"), ("a", "ü")])
def test_metadata_that_cannot_travel_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        grpc_wire.request_block("/a/B", "host", secure=False, metadata=(pair,))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.REFUSED_STREAM, Code.UNAVAILABLE),
        (ErrorCode.CANCEL, Code.CANCELED),
        (ErrorCode.NO_ERROR, Code.INTERNAL),
    ],
)
def test_a_reset_becomes_a_status(code: ErrorCode, expected: Code) -> None:
    assert grpc_wire.reset_error(code).code == expected
