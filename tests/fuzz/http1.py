"""Fuzz target: the front's HTTP/1: any bytes of a client, cut anywhere, between two back ends that read like Go.

Checked: what a client gets and what each back end is sent do not depend on where the network cut; bytes are passed on
unchanged, but for the targets of requests to us; a back end that reads the stream by its own, laxer rules finds the
same requests in it that the front saw (nothing is smuggled), and the same methods and paths; no request that the
engine's router would give to its own swarm gets there; whatever a back end sends reaches the client as it is; nothing
is raised and no timer stays.
"""

from __future__ import annotations

import asyncio
import atexit
import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

from engine_api.front.backends import Backends, Upstream
from engine_api.front.front import Front
from engine_api.front.http1 import BadMessage, Body, Head, parse_request
from engine_api.front.policy import FullAccess
from tests.engine_api.route_table import IS_LOCAL
from tests.fuzz import go_reader
from tests.fuzz.feed import Feed

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
ANSWERS = (
    OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nraw",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
)
TUNNELS = ANSWERS[5:]
LINES = (
    b"Host: x",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: 12",
    b"content-length:\t5 ",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Content-Length : 5",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:CHUNKED",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: identity",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: tcp",
    b" folded",
    b"X: a\nTransfer-Encoding: chunked",
    b"X: a\rContent-Length: 3",
    b"Expect: 100-continue",
)
METHODS = (b"GET", b"POST", b"DELETE", b"HEAD", b"CONNECT", b"OPTIONS", b"get", b"PRI", b"PUT")
TARGET_PARTS = tuple(
    b"/ // . .. ? # ; * & = + @ : :80 :x % %zz %2F %2f %2e %2E%2e %00 %25 %0a %c3%a9 \xc3\xa9 \\ \x7f host [::1] [x "
    b"user:pw@ http: HTTP: http:// https:// x: x:// http:/ 1x:// swarm %73warm Swarm swarm/init nodes services tasks "
    b"services/a/update secrets configs networks networks/a networks/create scope=swarm s%63ope=swarm v1.41 v1..41 v. "
    b"v %761.41 containers containers/json filters=is-task filters=is%2dtask info _ping events session x".split(b" ")
)
STARTS = (
    b"GET /swarm HTTP/1.1",
    b"POST /v1.41/services/create HTTP/1.1",
    b"POST /containers/create HTTP/1.1",
    b"HEAD /_ping HTTP/1.1",
    b"GET /%73warm HTTP/1.0",
    b"GET /images/json HTTP/1.1",
    b"GET /networks/a?scope=swarm HTTP/1.1",
    b"GET http://x/nodes HTTP/1.1",
)
BODIES = (
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"5;x=y \r\nhello\r\n0\r\nA: b\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"\r\n",
)


class Wire:
    """A transport for the Front: it keeps what is written to it."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.closing = self.ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        pass

    def write(self, data: bytes) -> None:
        if not self.closing:
            self.output += data

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def get_write_buffer_size(self) -> int:
        return 0


class Reading:
    """A back end: it reads requests as Go does, and answers each when it is complete."""

    def __init__(self, harness: FrontHarness) -> None:
        self.harness = harness
        self.seen = bytearray()
        self.requests: list[go_reader.Request] = []
        self.refused = self.tunnel = False

    def take(self, data: bytes) -> list[bytes]:
        """Answers to what is complete now."""
        self.seen += data
        answers: list[bytes] = []
        while not (self.refused or self.tunnel):
            try:
                request = go_reader.read(bytes(self.seen), self.requests[-1].end if self.requests else 0)
            except go_reader.Refused:
                self.refused = True
                return [*answers, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
            if request is None:
                break
            self.requests.append(request)
            answers.append(self.harness.next_answer(request.method))
            self.tunnel = answers[-1].startswith((b"HTTP/1.1 101", b"HTTP/1.0"))
        return answers

    def whole(self) -> list[bytes]:
        """The bytes of each complete request."""
        return [bytes(self.seen[a:b]) for a, b in pairwise([0, *(request.end for request in self.requests)])]


class LocalHandler(Reading):
    """Takes the place of aiohttp's request handler."""

    lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for answer in self.take(data):
            asyncio.get_running_loop().call_soon(self.deliver, answer)  # aiohttp's handlers are tasks

    def deliver(self, answer: bytes) -> None:
        if not self.lost:
            self.transport.write(answer)

    def eof_received(self) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    pause_writing = resume_writing = eof_received


class EngineWire(Wire):
    """Takes the place of a connection to the engine."""

    def __init__(self, upstream: Upstream, reading: Reading) -> None:
        super().__init__()
        self.upstream, self.reading = upstream, reading

    def write(self, data: bytes) -> None:
        for answer in self.reading.take(data):
            asyncio.get_running_loop().call_soon(self.deliver, answer)

    def deliver(self, data: bytes) -> None:
        """An answer in pieces of at most 7 bytes."""
        size = 7 if len(data) % 2 else len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            buffer = self.upstream.get_buffer(-1)
            buffer[: len(piece)] = piece
            if not self.closing:
                self.upstream.buffer_updated(len(piece))


async def quiet() -> None:
    """Until nothing is left to be done."""
    await asyncio.sleep(0)
    while _LOOP._ready:  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0)


class FrontHarness:
    """Drives one Front between a client and its back ends."""

    def __init__(self, answers: bytes) -> None:
        self.heads: list[Head] = []
        self.readings: list[tuple[bool, Reading]] = []
        self.client = Wire()
        self._answers = Feed(answers)
        self.given = b""
        backends = Backends(self._local, IS_LOCAL, self._connect, "engine", self._saw)
        self.front = Front(backends, set(), FullAccess())

    def _saw(self, head: Head) -> bytes | None:
        self.heads.append(head)
        return None

    def _local(self) -> LocalHandler:
        handler = LocalHandler(self)
        self.readings.append((True, handler))
        return handler

    async def _connect(self, upstream: Upstream) -> None:
        reading = Reading(self)
        self.readings.append((False, reading))
        upstream.connection_made(EngineWire(upstream, reading))  # type: ignore[arg-type]

    def next_answer(self, method: bytes) -> bytes:
        answer = self._answers.choice(ANSWERS)
        if method == b"HEAD":
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        self.given += answer
        return answer

    async def play(self, data: bytes, pieces: list[tuple[int, int]]) -> None:
        """Send all, then end; the front must have let go of everything."""
        self.front.connection_made(self.client)  # type: ignore[arg-type]
        for start, stop in pieces:
            if self.client.closing:
                break
            self.front.data_received(data[start:stop])
            await quiet()
        self.check()
        if not self.client.closing and not self.front.eof_received():
            self.client.closing = True
        await quiet()
        self.front.connection_lost(None)
        await asyncio.sleep(0)
        assert self.front._backends.load.unfinished_bytes == 0

    def check(self) -> None:
        """The client has the back ends' answers as they are, then perhaps one of the front's own."""
        output = bytes(self.client.output)
        if not output.startswith(self.given):
            assert self.client.closing or self.front._state.value in ("linger", "tunnel"), (output, self.given)
        own = output[len(self.given) :]
        if own.startswith(b"HTTP/1.1 ") and b"{" in own:
            json.loads(own.partition(b"\r\n\r\n")[2])
        for local in (True, False):
            saw = [head for head in self.heads if IS_LOCAL(head) is local]
            read = [(r.method, r.target) for kind, reading in self.readings if kind is local for r in reading.requests]
            lines = [(head.canonical_line if local else head.first_line).split(b" ") for head in saw[: len(read)]]
            assert read == [(method, target) for method, target, _ in lines], f"read {read}, the front saw {lines}"
            for head, (method, target) in zip(saw, read, strict=False):
                check_path(head, local, method, target)


def check_path(head: Head, local: bool, method: bytes, target: bytes) -> None:
    """What a back end routes is what was judged, and never the engine's own swarm."""
    judged = head.path_and_query[0]
    try:
        path, there = go_reader.url_path(method, target), go_reader.route(method, target)
    except go_reader.Refused:
        assert not local, f"the canonical {target!r} is no target"
        return
    assert method == head.method
    assert path == judged, f"Go routes {path!r}, judged was {judged!r}"
    assert local or not there.of_swarm, f"{target!r} reaches the engine's swarm"
    with suppress(go_reader.Refused):  # because of a host that Go does not like
        assert go_reader.url_path(head.method, head.target) == path, f"{head.target!r} became {target!r}"


def one(data: bytes) -> None:
    """The whole of one input."""
    feed = Feed(data)
    kind = feed.byte()
    answers = feed.some()
    if kind & 3 == 3:
        functions(feed.rest())
        return
    make = (Feed.rest, requests, targets)[kind & 3]
    stream = make(feed)
    outcomes = []
    every = [(n, n + 1) for n in range(len(stream))] if len(stream) < 100 else [(0, len(stream))]
    for pieces in ([(0, len(stream))], Feed(data[:9]).cuts(len(stream)), every):
        harness = FrontHarness(answers)
        _LOOP.run_until_complete(harness.play(stream, pieces))
        assert all(timer.cancelled() for timer in _LOOP._scheduled)  # type: ignore[attr-defined]
        whole = [b"".join(reading.whole()) for _, reading in harness.readings if reading.requests]
        answers_before, *refusals = bytes(harness.client.output).split(b"HTTP/1.1 400 ")
        assert len(refusals) <= 1
        outcomes.append((whole, answers_before, len(refusals)))  # who refuses first, depends on the cuts
        assert all(_unchanged(r, stream, local) for local, reading in harness.readings for r in reading.whole())
    assert outcomes[0] == outcomes[1] == outcomes[2]


def _unchanged(request: bytes, stream: bytes, local: bool) -> bool:
    """Whether a back end got a part of the stream as it is; of a request to us, all behind its target."""
    return (request.split(b" ", 2)[2] if local else request) in stream


def targets(feed: Feed) -> bytes:
    """Requests whose targets are made of parts."""
    out: list[bytes] = []
    while feed and len(out) < 4:
        method = feed.choice(METHODS)
        target = b"".join(feed.choice(TARGET_PARTS) for _ in range(1 + feed.below(8)))
        out.append(b"%s %s HTTP/1.1\r\nHost: x\r\n\r\n" % (method, target))
    return b"".join(out)


def requests(feed: Feed) -> bytes:
    """Requests made of parts that are good or nearly so."""
    out: list[bytes] = []
    while feed and len(out) < 6:
        ending = b"\n" if feed.byte() == 9 else b"\r\n"
        lines = [feed.choice(STARTS), *(feed.choice(LINES) for _ in range(feed.below(5)))]
        kind = feed.byte()
        body = feed.choice(BODIES) if kind & 1 else feed.some() if kind & 2 else b""
        out.append(ending.join((*lines, b"", b"")) + body)
    return b"".join(out)


def functions(data: bytes) -> None:
    """Heads and bodies alone: an accepted head is one that Go accepts, with the same body."""
    try:
        head = parse_request(data + b"\r\n\r\n")
    except BadMessage:
        return
    assert not (head.chunked and head.length is not None)
    local = IS_LOCAL(head)
    check_path(head, local, *(head.canonical_line if local else head.first_line).split(b" ")[:2])
    for body in BODIES:
        stream = data + b"\r\n\r\n" + body
        try:
            counted = Body(head.length, head.chunked)
            end = counted.feed(stream, len(data) + 4)
        except BadMessage:
            continue
        if not counted.done:
            continue
        try:
            request = go_reader.read(stream)
        except go_reader.Refused:
            continue
        assert request is not None, (stream, end)
        assert (request.method, request.target, request.end) == (head.method, head.target, end), (stream, request, end)


_LOOP = asyncio.new_event_loop()
atexit.register(_LOOP.close)


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    out: list[bytes] = []
    for number, start in enumerate(STARTS):
        answers = bytes((3, number % 7, 1, 0))
        length = start + b"\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        chunks = start + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + BODIES[3]
        out += [
            b"\0" + answers + length + chunks + length,
            b"\3\0" + length[:-9],
            b"\3\0" + chunks.split(b"\r\n\r\n")[0],
        ]
        out.append(b"\2" + answers + bytes((0, 3, 0, 47, number, 0, 0, number, 6, 0, 35, 0, 50 + number, 9, 36)))
        out.append(b"\1" + answers + bytes((0, number, 2, 1, 8, 1, 1, 0, number, 1, 8, 1, 1, 1, number, 0, 0)))
    return out
