"""Attacks with gRPC on every method of the cluster port: what does not parse, is cut off, too long, or a bomb."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from certs.tls import Credentials
from swarm import api, defaults
from swarm.api.methods import METHODS, AnyMethod
from swarm.errors import Code
from swarm.grpc import frames as h2
from tests.security.absurd import fill
from tests.security.fort import MANAGER, OTHER_WORKER, WORKER, Fort, Intruder, data_frames, framed, headers, settled

BOMB = gzip.compress(b"\0" * (64 << 20))

_AT_ONCE = 10


def nested(depth: int) -> bytes:
    """A message in a message in a message, for any type that has one as its field 1."""
    body = b""
    for _ in range(depth):
        body = b"\x0a" + _varint(len(body)) + body
    return body


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes((*encoded, number))


BODIES: dict[str, Callable[[], bytes]] = {
    "no protobuf": lambda: framed(b"\xff" * 50),
    "a field without its value": lambda: framed(b"\x0a\xff\xff\xff\xff\x0f"),
    "a group without an end": lambda: framed(b"\x0b" * 200),
    "field number zero": lambda: framed(b"\x00\x01"),
    "a number of eleven bytes": lambda: framed(b"\x08" + b"\xff" * 11),
    "messages nested without end": lambda: framed(nested(10_000)),
    "text that is no UTF-8": lambda: framed(b"\x0a\x02\xff\xfe\x12\x02\xff\xfe\x1a\x02\xff\xfe"),
    "cut off in the message": lambda: framed(b"x" * 100)[:50],
    "cut off in the prefix": lambda: b"\0\0\0",
    "no message": lambda: b"",
    "two messages": lambda: framed(b"") * 2,
    "compressed": lambda: b"\1" + framed(BOMB)[1:],
    "compressed, a bomb of 64 MiB in one byte more": lambda: b"\1" + len(BOMB).to_bytes(4, "big") + BOMB[:20_000],
    "an unknown flag": lambda: b"\x80\0\0\0\0",
    "announced as 4 GiB": lambda: b"\0\xff\xff\xff\xff" + b"x" * 1000,
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_request_that_is_broken_ends_its_call_on_every_method(fort: Fort, name: str) -> None:
    body = BODIES[name]()
    with capture_logs() as logs:
        async with fort.served_meanwhile():
            for methods in batches():
                await tried(fort, methods, body)
    await fort.leave_alone()
    assert fort.server._calls == {}
    assert fort.server._incomplete == {}
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
    assert len([entry for entry in logs if entry["event"].startswith("rpc.")]) == 0


def batches() -> list[list[AnyMethod]]:
    methods = list(METHODS.values())
    return [methods[start : start + _AT_ONCE] for start in range(0, len(methods), _AT_ONCE)]


def caller(fort: Fort, method: AnyMethod) -> Credentials | None:
    """The least that opens a method."""
    if method.insecure:
        return None
    return fort.worker() if "swarm-worker" in method.roles else fort.manager()


async def tried(fort: Fort, methods: list[AnyMethod], body: bytes) -> None:
    """Each call must come to an end and leave its connection alone."""
    intruders: dict[Credentials | None, Intruder] = {}
    for number, method in enumerate(methods):
        credentials = caller(fort, method)
        if credentials not in intruders:
            intruders[credentials] = await fort.intrude(credentials)
        intruders[credentials].request(2 * number + 1, method, body)
    for intruder in intruders.values():
        await intruder.alive()
    for number, method in enumerate(methods):
        intruder = intruders[caller(fort, method)]
        if not (method.client_streaming or method.server_streaming):
            await intruder.answer(2 * number + 1)
    for intruder in intruders.values():
        intruder.close()


@pytest.mark.parametrize("kind", ["anonymous", "worker", "manager"])
async def test_a_message_beyond_the_limit_is_refused_at_its_first_bytes(fort: Fort, kind: str) -> None:
    credentials = {"anonymous": None, "worker": fort.worker(), "manager": fort.manager()}[kind]
    most = defaults.RPC_MESSAGE_ANONYMOUS_BYTES_MAX if kind == "anonymous" else defaults.RPC_MESSAGE_BYTES_MAX
    intruder = await fort.intrude(credentials)
    intruder.request(1, "NodeCA/IssueNodeCertificate", b"\0" + (most + 1).to_bytes(4, "big"), end=False)
    assert await intruder.answer() == (
        int(Code.RESOURCE_EXHAUSTED),
        f"grpc: received message larger than max ({most + 1} vs. {most})",
    )
    intruder.request(3, "NodeCA/IssueNodeCertificate", b"\0" + most.to_bytes(4, "big"), end=False)
    await intruder.alive()
    assert 3 not in intruder.outcome.status


async def test_a_compressed_message_is_never_unpacked(fort: Fort) -> None:
    intruder = await fort.intrude(fort.worker())
    for number, encoding in enumerate(("gzip", "deflate", "snappy", "x" * 5000)):
        stream = 2 * number + 1
        intruder.request(stream, "Dispatcher/Heartbeat", b"\1" + framed(BOMB[:16_000])[1:], {"grpc-encoding": encoding})
        code, text = await intruder.answer(stream)
        assert code == Code.UNIMPLEMENTED
        assert text.startswith(f'grpc: Decompressor is not installed for grpc-encoding "{encoding[:20]}"')
    intruder.request(9, "Dispatcher/Heartbeat", b"\1" + framed(BOMB[:16_000])[1:])
    assert await intruder.answer(9) == (
        int(Code.INTERNAL),
        "grpc: compressed flag set with identity or empty encoding",
    )


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (h2.literal(":method", "GET") + h2.literal(":path", "/"), "405"),
        (h2.METHOD_POST + h2.literal(":path", "/") + h2.literal("content-type", "text/html"), "415"),
        (h2.METHOD_POST, "415"),
        (b"", "405"),
    ],
)
async def test_what_is_not_grpc_gets_an_http_status(fort: Fort, block: bytes, status: str) -> None:
    intruder = await fort.intrude()
    intruder.write(h2.header_frames(1, block, True, h2.DEFAULT_FRAME_BYTES))
    await intruder.until(lambda seen: 1 in seen.http)
    assert intruder.outcome.http == {1: status}


@pytest.mark.parametrize(
    "path", ["", "/", "//", "/x", "/docker.swarmkit.v1.Control/", "/../Control/ListNodes", "/" + "a/" * 5000]
)
async def test_methods_that_do_not_exist_are_unimplemented(fort: Fort, path: str) -> None:
    intruder = await fort.intrude()
    block = h2.METHOD_POST + h2.literal(":path", path) + h2.literal("content-type", "application/grpc")
    intruder.write(h2.header_frames(1, block, True, h2.DEFAULT_FRAME_BYTES))
    code, text = await intruder.answer()
    assert code == Code.UNIMPLEMENTED
    assert len(text) < 400


@pytest.mark.parametrize("timeout", ["", "1", "S", "-1S", "999999999S", "1h", "0n", "99999999H", "1S1S"])
async def test_strange_deadlines_do_no_harm(fort: Fort, timeout: str) -> None:
    intruder = await fort.intrude(fort.worker())
    intruder.request(1, "LogBroker/ListenSubscriptions", framed(b""), {"grpc-timeout": timeout})
    await intruder.alive()
    if timeout == "99999999H":
        assert intruder.outcome.status == {}
    else:
        assert (await intruder.answer())[0] == (Code.DEADLINE_EXCEEDED if timeout == "0n" else Code.INTERNAL)


async def test_messages_of_members_that_make_no_sense_are_answered(fort: Fort) -> None:
    """Every method, with the certificate that opens it and a session, and nonsense in every field."""
    rng = Random(4)
    ids = ("task-mine", "task-other", WORKER, OTHER_WORKER, MANAGER, "secret-mine")
    with capture_logs() as logs:
        async with fort.served_meanwhile():
            intruder = await fort.intrude(fort.worker())
            stream = 1
            for method in [
                method for method in METHODS.values() if "swarm-worker" in method.roles or method.insecure
            ] * 6:
                intruder.request(stream, method, framed(fill(method.request(), rng, ids)))
                stream += 2
                await intruder.alive()
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
    assert not fort.process.failed.done()


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_the_memory_of_the_manager_stays_bounded_under_all_of_it(fort: Fort) -> None:
    """A worker and clients without a certificate make the manager keep as much as they can."""
    async with fort.served_meanwhile():
        before = rss_bytes()
        intruders = [await filled(fort, number) for number in range(12)]
        grown = rss_bytes() - before
        for intruder in intruders:
            intruder.close()
        await settled(lambda: fort.server.connection_count <= 1)
    bound = defaults.RPC_UNFINISHED_WORKER_BYTES_MAX + defaults.RPC_UNFINISHED_ANONYMOUS_BYTES_MAX
    assert grown < 2 * bound + (48 << 20)  # of ours and of the attackers, who live in this process as well


async def filled(fort: Fort, number: int) -> Intruder:
    """A connection with as many half requests as it may have."""
    intruder = await fort.intrude(fort.worker() if number % 2 else None)
    await intruder.until(lambda seen: seen.settings)
    for stream in range(1, 2 * intruder.outcome.settings[h2.MAX_CONCURRENT_STREAMS], 2):
        intruder.write(h2.header_frames(stream, headers("NodeCA/IssueNodeCertificate"), False, h2.DEFAULT_FRAME_BYTES))
        intruder.write(data_frames(stream, (32_000).to_bytes(5, "big") + b"x" * 31_000, end=False))
        await asyncio.sleep(0)
    await intruder.alive()
    return intruder


async def test_the_root_certificate_is_all_that_strangers_get(fort: Fort) -> None:
    intruder = await fort.intrude()
    intruder.request(1, "CA/GetRootCACertificate", framed(b""))
    assert await intruder.answer() == (0, "")
    answer = api.GetRootCACertificateResponse.FromString(intruder.outcome.data[1][5:])
    assert answer.certificate == fort.cluster.root_ca.ca_cert
    assert b"PRIVATE KEY" not in intruder.outcome.data[1]
