"""Where messages begin and end, and what is no message."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_api.front.http1 import BadMessage, Body, Head, parse_request, parse_response

LINE = b"POST /v1.41/containers/create?name=a HTTP/1.1\r\n"


def _head(*lines: bytes, first: bytes = LINE) -> Head:
    return parse_request(first + b"".join(line + b"\r\n" for line in lines) + b"\r\n")


def test_a_request_tells_its_method_target_length_and_wishes() -> None:
    head = _head(b"Host: docker", b"content-length:  12 ", b"Connection: keep-alive, Upgrade", b"Upgrade: tcp")
    assert (head.method, head.target) == (b"POST", b"/v1.41/containers/create?name=a")
    assert (head.length, head.chunked, head.upgrade, head.close) == (12, False, True, False)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/swarm", b"/swarm", b""),
        (b"/events?since=1%202", b"/events", b"since=1%202"),
        (b"/%73warm%2Finit?a=?", b"/swarm/init", b"a=?"),
        (b"http://docker:2375/swarm/init?x=1", b"/swarm/init", b"x=1"),
        (b"http://docker", b"", b""),
        (b"http://docker?x", b"", b"x"),
        (b"*", b"*", b""),
    ],
)
def test_paths_are_read_as_gos_server_reads_them(target: bytes, path: bytes, query: bytes) -> None:
    assert _head(first=b"GET " + target + b" HTTP/1.1\r\n").path_and_query == (path, query)


def test_an_old_client_wants_its_connection_closed() -> None:
    assert _head(first=b"GET / HTTP/1.0\r\n").close
    assert _head(b"Connection: Close").close


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Content-Length: +5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: "],
        [b"Content-Length: 0x5"],
        [b"Content-Length: " + b"9" * 5000],
        [b"Content-Length : 5"],
        [b"\tContent-Length: 5"],
        [b"A: b", b" Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: \x0bchunked"],
        [b"no colon"],
        [b": no name"],
        [b"A: b\nTransfer-Encoding: chunked"],
        [b"A: b\rTransfer-Encoding: chunked"],
        [b"A: \0"],
        [b"A\x0b: b"],
    ],
)
def test_a_head_that_two_servers_could_read_in_two_ways_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(BadMessage):
        _head(*lines)


@pytest.mark.parametrize(
    "line",
    [
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.1 ",
        b"GET /a b HTTP/1.1",
        b"G\xc3T / HTTP/1.1",
        b"GET /\x01 HTTP/1.1",
        b"GET / HTTP/1.1\nHost: x",
        b"",
    ],
)
def test_a_malformed_request_line_is_refused(line: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_request(line + b"\r\nHost: x\r\n\r\n")


def test_a_chunked_request_of_http_1_0_is_refused_because_go_would_not_see_its_body() -> None:
    with pytest.raises(BadMessage):
        _head(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0\r\n")


def test_a_repeated_but_equal_length_is_one_length() -> None:
    assert _head(b"Content-Length: 7", b"Content-Length: 7").length == 7


def test_a_response_tells_its_status() -> None:
    assert parse_response(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\n").status == 101
    assert parse_response(b"HTTP/1.0 200\r\n\r\n").close
    for line in (b"HTTP/1.1 2000 OK", b"HTTP/1.1 20x OK", b"HTTP/2 200 OK", b"200 OK", b""):
        with pytest.raises(BadMessage):
            parse_response(line + b"\r\n\r\n")


# --- bodies ---


def _chunked(chunks: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    parts = [b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk]
    return b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


def _feed(body: Body, data: bytes, cuts: list[int]) -> int:
    """Bytes taken when the data comes in pieces."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    taken = 0
    for start, stop in pairwise(edges):
        piece = data[start:stop]
        position = 0 if body.done else body.feed(piece)
        taken += position
        if position < len(piece):
            break
    return taken


@given(st.lists(st.binary(max_size=40)), st.binary(max_size=20), st.lists(st.integers(0, 2000), max_size=8))
def test_a_chunked_body_ends_at_the_same_place_however_it_is_cut(
    chunks: list[bytes], behind: bytes, cuts: list[int]
) -> None:
    message = _chunked(chunks, b";a=b", b"Digest: x\r\n")
    body = Body(None, chunked=True)
    assert _feed(body, message + behind, cuts) == len(message)
    assert body.done


@given(st.binary(max_size=60), st.binary(max_size=20), st.lists(st.integers(0, 2000), max_size=8))
def test_a_body_with_a_length_takes_that_many_bytes(data: bytes, behind: bytes, cuts: list[int]) -> None:
    body = Body(len(data), chunked=False)
    assert _feed(body, data + behind, cuts) == len(data)
    assert body.done


@given(st.binary(max_size=200), st.lists(st.integers(0, 2000), max_size=8))
def test_any_bytes_are_a_body_or_refused(data: bytes, cuts: list[int]) -> None:
    body = Body(None, chunked=True)
    try:
        taken = _feed(body, data, cuts)
    except BadMessage:
        return
    assert taken == len(data) or body.done


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\n0\n\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-1\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"\r\n",
        b"5_0\r\n",
        b"11111111111111111\r\n",
        b"0\r\nTrailer: x\n\r\n",
        b"1" + b";" + b"x" * 5000,
    ],
)
def test_a_chunk_that_two_servers_could_read_in_two_ways_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Body(None, chunked=True).feed(data)
