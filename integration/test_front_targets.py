"""Request targets that are read differently by different parsers, sent to a bare engine and to us.

The engine is a manager of a swarm of its own here, which must not be reachable through us by any spelling.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from random import Random

import pytest

from integration.front_tools import Raw
from integration.lab import Host
from tests.fuzz import go_reader
from tests.fuzz.http1 import METHODS, TARGET_PARTS

PREFIXES = (
    *("", "/", "//", "/.", "/x/..", "/v1.41", "/v1.41/", "/v1.41/v1.41", "/v1..41", "/v.", "/v", "/%761.41", "/V1.41"),
    *("http:", "http:/", "x:", "x:/v1.41", "http://docker", "http://docker/v1.41", "HTTP://u:p@[::1]:80", "http://"),
    *("http://docker/", "http://d%zz", "http://[", "http://a b", "1x:", ":", "?", "#", "*", "%2F", "/%2f", "/%2e"),
    "\\",
)
PATHS = (
    *("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs", "/networks/mine?scope=swarm", "/info"),
    *("/%73warm", "/swarm/", "//swarm", "/./swarm", "/swarm/.", "/swarm#", "/swarm#x", "/swarm?", "/swarm??a"),
    *("/swarm;", "/swarm%00", "/swarm%0a", "/swarm%", "/swarm%zz", "%2Fswarm", "/swarm%2F", "/Swarm", ":/swarm"),
    *("/swarm/unlockkey", "/swarm\xe9", "swarm", "/x/../swarm", "/containers/%2e%2e/swarm", "/s\\warm"),
)
LINES = (
    "GET  /swarm HTTP/1.1",
    "GET\t/swarm\tHTTP/1.1",
    " GET /swarm HTTP/1.1",
    "GET /swarm HTTP/1.1 ",
    "GET /swarm HTTP/1.0",
    "GET /swarm HTTP/0.9",
    "GET /swarm",
    "GET /swarm HTTP/1.2",
    "GET /swarm HTTP/01.1",
    "GET /swarm http/1.1",
    "get /swarm HTTP/1.1",
    "HEAD /swarm HTTP/1.1",
    "CONNECT /swarm HTTP/1.1",
    "CONNECT docker:2375 HTTP/1.1",
    "CONNECT x/swarm HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET * HTTP/1.1",
    "PRI * HTTP/2.0",
    "GET x HTTP/1.1\r\nGET /swarm HTTP/1.1",
    "\r\n\r\nGET /swarm HTTP/1.1",
    "\nGET /swarm HTTP/1.1",
    "GET /x HTTP/1.1\nX: y\n\nGET /swarm HTTP/1.1",
)
HOSTS = ("", "Host: a\r\nHost: b\r\n", "Host:\r\n", "Host: /swarm\r\n", "Host: a b\r\n", " Host: a\r\n", "Host : a\r\n")


@pytest.fixture(scope="module")
def marks(side: Host) -> Iterator[list[bytes]]:
    """What only the engine's own swarm knows: IDs of its cluster and node, its tokens' ends, the name of a secret."""
    spec = {"ListenAddr": "127.0.0.1:12377", "AdvertiseAddr": "127.0.0.1"}
    with Raw.to(side.engine) as raw:
        headers = "Content-Type: application/json"
        status, node_id = raw.ask("POST", "/swarm/init", headers, body=json.dumps(spec).encode())
        assert status == 200, node_id
        try:
            for path, body in (
                ("/secrets/create", {"Name": "of-the-engine", "Data": "eA=="}),
                ("/networks/create", {"Name": "mine", "Driver": "overlay", "Labels": {"of-the-engine": ""}}),
            ):
                status, answer = raw.ask("POST", path, headers, body=json.dumps(body).encode())
                assert status == 201, answer
            cluster = json.loads(raw.ask("GET", "/swarm")[1])
            yield [json.loads(node_id).encode(), cluster["ID"].encode(), b"SWMTKN", b"of-the-engine"]
        finally:
            assert raw.ask("POST", "/swarm/leave?force=1")[0] == 200


def _sent(target: str, data: bytes) -> bytes:
    """All that comes back."""
    with Raw.to(target) as raw:
        raw.send(data)
        raw.half_close()
        try:
            return raw.rest()
        except ConnectionResetError:
            return b""


def _requests() -> Iterator[bytes]:
    for prefix, path in itertools.product(PREFIXES, PATHS):
        yield f"GET {prefix}{path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n".encode("latin-1")
    for line, host in itertools.product(LINES, ("Host: docker\r\n", *HOSTS)):
        yield f"{line}\r\n{host}Connection: close\r\n\r\n".encode()


def test_no_spelling_of_a_request_reaches_the_engines_own_swarm(side: Host, marks: list[bytes]) -> None:
    reached = 0
    for data in _requests():
        reached += any(mark in _sent(side.engine, data) for mark in marks)
        ours = _sent(side.api, data)
        assert not any(mark in ours for mark in marks), (data, ours)
    assert reached > 50, "the engine itself should have understood many of them"


def test_the_model_of_gos_parsers_that_the_fuzzer_uses_is_what_the_engine_does(side: Host, marks: list[bytes]) -> None:
    assert marks
    rng = Random(15)
    targets = [f"{prefix}{path}".encode("latin-1") for prefix, path in itertools.product(PREFIXES, PATHS)]
    targets += [b"".join(rng.choices(TARGET_PARTS, k=rng.randint(1, 5))) for _ in range(1_500)]
    for target in targets:
        if b" " in target or target.startswith(b"/_ping"):
            continue
        method = rng.choice([m for m in METHODS if m in (b"GET", b"get", b"CONNECT")])
        answer = _sent(side.engine, b"%s %s HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n" % (method, target))
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        refused = status == 400 and b"Api-Version" not in head
        try:
            expected = go_reader.route(method, target)
        except go_reader.Refused:
            assert refused, (method, target, answer)
            continue
        assert not refused, (method, target, answer)
        assert (status == 301) == expected.redirected, (method, target, answer)
        if any(mark in body for mark in marks):
            shared = (b"/info", b"/networks", b"/networks/mine")
            assert expected.of_swarm or expected.path.endswith(shared), (method, target, answer)
