"""The front by hand: what clients other than the CLI send, and what no client should send."""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from integration.front_tools import Raw, get
from integration.lab import Host
from integration.waiting import until

MIB = 1 << 20
STAY = "trap exit TERM; while sleep 0.2; do :; done"


@pytest.fixture
def box(side: Host) -> Iterator[str]:
    """A running container that echoes what comes to its standard input."""
    name = side.docker("run", "-di", "--name", "wire", "busybox", "cat").strip()
    yield name
    side.docker_run("rm", "-f", "wire")


def _count_listeners(side: Host) -> int:
    count: int = get(side.engine, "/info")["NEventsListener"]
    return count


# --- one connection, many requests ---


def test_one_connection_serves_the_engines_paths_and_ours_in_turn(side: Host) -> None:
    with Raw.to(side.api) as raw:
        for _ in range(3):
            assert raw.ask("GET", "/v1.41/containers/json")[0] == 200
            assert raw.ask("GET", "/swarm")[0] == 503
            assert raw.ask("GET", "/_ping") == (200, b"OK")
            assert raw.ask("GET", "/info")[0] == 200
            assert raw.ask("HEAD", "/_ping") == (200, b"")
            assert raw.ask("POST", "/containers/none/start")[0] == 404


def test_pipelined_requests_are_answered_in_their_order(side: Host) -> None:
    paths = ["/containers/json?limit=1", "/_ping", "/swarm", "/images/none/json", "/version", "/_ping"]
    with Raw.to(side.api) as raw:
        raw.send(b"".join(f"GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n".encode() for path in paths))
        answers = [raw.answer()[::2] for _ in paths]
    assert [status for status, _ in answers] == [200, 200, 503, 404, 200, 200]
    assert answers[1][1] == b"OK"
    assert b"none" in answers[3][1]


def test_a_request_that_is_followed_by_a_half_close_is_answered(side: Host) -> None:
    for path in ("/containers/json", "/info", "/_ping", "/swarm"):
        for version in ("1.0", "1.1"):
            with Raw.to(side.api) as raw:
                raw.send(f"GET {path} HTTP/{version}\r\nHost: docker\r\n\r\n".encode())
                raw.half_close()
                status, _, body = raw.answer()
                assert (status, bool(body)) == (503 if path == "/swarm" else 200, True)
                assert raw.rest() == b""


def test_answers_have_the_engines_headers(side: Host) -> None:
    for path in ("/_ping", "/info", "/version", "/containers/json", "/containers/none/json", "/none"):
        heads = []
        for target in (side.api, side.engine):
            with Raw.to(target) as raw:
                raw.send(f"GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())
                status, headers = raw.head()
                passing = ("date", "content-length", "transfer-encoding")
                headers = {key: value for key, value in headers.items() if key not in passing}
                heads.append((status, headers))
        assert heads[0] == heads[1], path


def test_heads_of_64_kilobytes_are_accepted_on_both_sides(side: Host) -> None:
    big = f"X-Registry-Config: {'a' * (64 << 10)}"
    with Raw.to(side.api) as raw:
        assert raw.ask("GET", "/containers/json", big)[0] == 200
        assert raw.ask("GET", "/swarm", big)[0] == 503
        assert raw.ask("GET", f"/events?until=1&x={'b' * (64 << 10)}")[0] == 200


def test_head_requests_have_no_bodies(side: Host, box: str) -> None:
    with Raw.to(side.api) as raw:
        for path, expected in ((f"/containers/{box}/archive?path=/etc", 200), ("/swarm", 404), ("/_ping", 200)):
            raw.send(f"HEAD {path} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())
            status, headers, _ = raw.answer("HEAD")
            assert status == expected
            if "archive" in path:
                assert headers["x-docker-container-path-stat"]
        assert raw.ask("GET", "/_ping") == (200, b"OK")


def test_encoded_slashes_reach_the_engine_as_they_are(side: Host) -> None:
    path = "/images/a%2Fb%3Ac/json"
    with Raw.to(side.api) as ours, Raw.to(side.engine) as engines:
        assert ours.ask("GET", path) == engines.ask("GET", path)


def test_no_way_of_writing_a_swarm_path_reaches_the_engines_own_swarm(side: Host) -> None:
    spec = b'{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"nowhere0"}'
    tricks = ("http://docker/swarm/init", "/%73warm/init", "//swarm/init", "/v1.41%2Fswarm%2Finit", "/./swarm/init")
    for target in tricks:
        with Raw.to(side.api) as raw:
            assert raw.ask("POST", target, "Content-Type: application/json", body=spec)[0] >= 300
    assert get(side.engine, "/info")["Swarm"]["LocalNodeState"] == "inactive"


# --- streams ---


def test_the_old_hijack_without_upgrade(side: Host, box: str) -> None:
    with Raw.to(side.api) as raw:
        raw.send(f"POST /containers/{box}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\n\r\n".encode())
        status, headers = raw.head()
        assert (status, headers["content-type"]) == (200, "application/vnd.docker.raw-stream")
        raw.send(b"hello\n")
        assert raw.exactly(8 + 6)[8:] == b"hello\n"
        raw.half_close()
        assert raw.rest() == b""


def test_an_upgraded_stream_carries_what_came_too_early(side: Host, box: str) -> None:
    with Raw.to(side.api) as raw:
        upgrade = "Connection: Upgrade\r\nUpgrade: tcp"
        path = f"/containers/{box}/attach?stream=1&stdin=1&stdout=1"
        raw.send(f"POST {path} HTTP/1.1\r\nHost: docker\r\n{upgrade}\r\n\r\nGET /_ping HTTP/1.1\r\n".encode())
        assert raw.head()[0] == 101
        assert raw.exactly(8 + 21)[8:] == b"GET /_ping HTTP/1.1\r\n"


def test_a_client_that_leaves_ends_its_streams_at_the_engine(side: Host, box: str) -> None:
    before = _count_listeners(side)
    with ExitStack() as stack:
        for path in ("/events", "/events?filters={}", f"/containers/{box}/logs?follow=1&stdout=1"):
            raw = stack.enter_context(Raw.to(side.api))
            raw.send(f"GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())
            assert raw.head()[0] == 200
        until(lambda: _count_listeners(side), lambda count: count >= before + 2)
        created = json.loads(_post(side, f"/containers/{box}/exec", {"AttachStdin": True, "Cmd": ["cat"]}))
        hijacked = stack.enter_context(Raw.to(side.api))
        upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: 2"
        hijacked.send(f"POST /exec/{created['Id']}/start HTTP/1.1\r\nHost: docker\r\n{upgrade}\r\n\r\n{{}}".encode())
        assert hijacked.head()[0] == 101
        exec_path = f"/exec/{created['Id']}/json"
        assert get(side.api, exec_path)["Running"]
    until(lambda: _count_listeners(side), lambda count: count <= before, what="the end of the event streams")
    until(lambda: get(side.api, exec_path)["Running"], lambda running: not running, what="the end of cat")


def _post(side: Host, path: str, body: Any) -> bytes:
    with Raw.to(side.api) as raw:
        status, answer = raw.ask("POST", path, "Content-Type: application/json", body=json.dumps(body).encode())
    assert status < 300, answer
    return answer


# --- bad input ---


@pytest.mark.parametrize("path", ["/containers/create", "/swarm/init"])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("Content-Length: 4\r\nContent-Length: 5", "abcd"),
        ("Content-Length: +4", "abcd"),
        ("Content-Length: 0x4", "abcd"),
        ("A: b\r\n folded", ""),
        ("A: b\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked", "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "0x4\r\nabcd\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nabcdefgh\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "4\nabcd\n0\n\n"),
    ],
)
def test_smuggling_is_refused_before_anything_happens(side: Host, path: str, headers: str, body: str) -> None:
    with Raw.to(side.api) as raw:
        smuggled = "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"
        raw.send(f"POST {path} HTTP/1.1\r\nHost: docker\r\n{headers}\r\n\r\n{body}{smuggled}".encode())
        status, answer_headers, answer = raw.answer()
        assert status in (400, 501)
        assert json.loads(answer)["message"]
        assert answer_headers["connection"] == "close"
        assert raw.rest() == b""  # and what was behind it has no answer


def test_half_sent_requests_harm_nobody(side: Host) -> None:
    with ExitStack() as stack:
        for part in (b"", b"GET", b"GET /_ping HTTP/1.1\r\nHost:", b"POST /swarm/init HTTP/1.1\r\nHost: x\r\n") * 10:
            raw = stack.enter_context(Raw.to(side.api))
            raw.send(part)
            raw = stack.enter_context(Raw.to(side.api))
            raw.send(b"POST /swarm/init HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + part)
        assert get(side.api, "/info")["Swarm"]["LocalNodeState"] == "inactive"
        assert "busybox" in side.docker("images")
    assert get(side.api, "/info")["Swarm"]["LocalNodeState"] == "inactive"


def _send_until_answered(raw: Raw, piece: bytes) -> None:
    """Send the same again and again, 4 GiB at most, until there is an answer or the other side stops reading."""
    for _ in range((4 << 30) // len(piece)):
        if select.select([raw.socket], [], [], 0)[0]:
            return
        try:
            raw.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            return
    raise AssertionError("no answer")


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("path", ["/swarm/init", "/services/create", "/secrets/create"])
def test_huge_bodies_are_refused_on_swarm_paths(side: Host, path: str, framing: str) -> None:
    chunk = b"x" * MIB
    with Raw.to(side.api) as raw:
        length = f"Content-Length: {1 << 40}" if framing == "length" else "Transfer-Encoding: chunked"
        raw.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode())
        _send_until_answered(raw, chunk if framing == "length" else b"%x\r\n%s\r\n" % (MIB, chunk))
        status, _, body = raw.answer()
    assert status == 413
    assert json.loads(body) == {"message": "http: request body too large"}
    assert get(side.api, "/info")["Swarm"]["LocalNodeState"] == "inactive"


@pytest.mark.parametrize("body", [b"{", b"[]", b"nonsense", b'{"ListenAddr": 5}', b"\xff\xfe", "é".encode(), b""])
def test_malformed_json_gets_the_engines_status(side: Host, body: bytes) -> None:
    answers = []
    for target in (side.api, side.engine):
        with Raw.to(target) as raw:
            status, answer = raw.ask("POST", "/v1.41/swarm/join", "Content-Type: application/json", body=body)
            answers.append((status, json.loads(answer)))
    assert answers[0] == answers[1]
    assert 400 <= answers[0][0] < 500


def test_the_engines_early_answer_comes_while_the_body_is_being_sent(side: Host) -> None:
    with Raw.to(side.api) as raw:
        raw.send(b"PUT /containers/none/archive?path=/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n")
        _send_until_answered(raw, b"garbage!" * (MIB // 8))
        status, _, body = raw.answer()
    assert status == 404
    assert json.loads(body) == {"message": "No such container: none"}
