"""A server whose process stood still cuts nobody off for a silence that it did not see."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from certs.tls import server_context
from swarm import defaults
from swarm.grpc import frames
from swarm.io.grpc.server import RpcServer
from tests.swarm.io.skipping import Skipping

if TYPE_CHECKING:
    from tests.conftest import Authority

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def loop() -> Iterator[Skipping]:
    loop = Skipping()
    yield loop
    loop.close()


async def until_connected(server: RpcServer) -> None:
    while not server.connection_count:  # noqa: ASYNC110  # accepting tells nobody
        await asyncio.sleep(0)


def sweep_once(loop: Skipping) -> None:
    loop.skipped_s += defaults.RPC_SWEEP_PERIOD_S + 0.1
    loop.turns()


@pytest.mark.parametrize("last_bytes", [b"", b"\0\0"])
def test_a_server_that_stood_still_keeps_its_connections(loop: Skipping, last_bytes: bytes) -> None:
    """Idle ones, and those in the middle of a frame."""
    server = RpcServer(lambda event: None, None, lambda method, peer, _: peer, itertools.count(1))
    settings = frames.frame(frames.SETTINGS, 0, 0, b"")

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await server.listen("127.0.0.1", 0)
        host, port = server.addresses[0].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + settings + last_bytes)
        await reader.readexactly(frames.FRAME_HEADER_BYTES)
        return reader, writer

    _, writer = loop.run_until_complete(connect())
    sweep_once(loop)
    loop.skipped_s += 2 * defaults.RPC_IDLE_ANONYMOUS_S
    loop.turns()
    assert server.connection_count == 1
    for _ in range(int(2 * defaults.RPC_IDLE_ANONYMOUS_S / defaults.RPC_SWEEP_PERIOD_S)):
        sweep_once(loop)
    assert server.connection_count == 0, "without a stall it is cut off"
    writer.close()
    loop.run_until_complete(server.close(0.0))


def test_a_server_that_stood_still_waits_for_handshakes_that_it_did_not_see(
    loop: Skipping, authority: Authority
) -> None:
    context = server_context(authority.issue(), authority.pem)
    server = RpcServer(lambda event: None, lambda: context, lambda method, peer, _: peer, itertools.count(1))

    async def connect() -> asyncio.StreamWriter:
        await server.listen("127.0.0.1", 0)
        host, port = server.addresses[0].rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        await until_connected(server)
        return writer

    writer = loop.run_until_complete(connect())
    loop.skipped_s += 20.0
    loop.turns()
    assert server.connection_count == 1
    loop.skipped_s += defaults.STALL_GRACE_S + 0.1
    loop.turns()
    assert server.connection_count == 0, "it had the time to be heard, and said nothing"
    writer.close()
    loop.run_until_complete(server.close(0.0))


async def test_a_server_that_stops_ends_handshakes_under_way(authority: Authority) -> None:
    context = server_context(authority.issue(), authority.pem)
    server = RpcServer(lambda event: None, lambda: context, lambda method, peer, _: peer, itertools.count(1))
    await server.listen("127.0.0.1", 0)
    host, port = server.addresses[0].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    await until_connected(server)
    await server.close(0.0)
    assert server.connection_count == 0
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
