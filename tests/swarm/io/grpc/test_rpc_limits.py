"""What clients without a certificate may not do to port 2377: limits of time, number and memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from swarm import api, defaults
from swarm.address import parse_host_port
from swarm.api import rpc
from swarm.errors import SwarmError, Unavailable
from swarm.grpc import frames as h2
from swarm.grpc.wire import frame_message
from swarm.io.grpc import client
from swarm.io.grpc.client import ClientConnection
from swarm.io.grpc.server_connection import format_address

if TYPE_CHECKING:
    from tests.conftest import Authority
    from tests.swarm.io.conftest import Served

HEALTH = api.HealthCheckRequest()


async def turns_until(condition: Callable[[], bool]) -> None:
    """A few turns of the loop, for what happens without any event that a test could await."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")


class Raw:
    """A client of the RpcServer that sends frames by hand and keeps no rules."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, served: Served, greeting: bytes = h2.PREFACE + h2.settings_frame({})) -> Raw:
        host, port = parse_host_port(served.address)
        raw = cls(*await asyncio.open_connection(host, port))
        raw.writer.write(greeting)
        return raw

    async def close(self) -> None:
        self.writer.close()
        await asyncio.wait([asyncio.ensure_future(self.writer.wait_closed())])


def sweep(served: Served, later_s: float) -> None:
    """As if ``later_s`` seconds had passed since what happened before."""
    served.server.sweep(asyncio.get_running_loop().time() + later_s)


async def test_a_client_that_never_says_hello_is_dropped(served: Served) -> None:
    raw = await Raw.connect(served, h2.PREFACE[:10])
    await raw.reader.readexactly(9)
    with capture_logs() as logs:
        sweep(served, 0)
        sweep(served, defaults.RPC_HANDSHAKE_TIMEOUT_S / 2)
        assert not logs
        sweep(served, defaults.RPC_HANDSHAKE_TIMEOUT_S + 1)
        assert logs[0]["event"] == "rpc.connection_refused"
    with contextlib.suppress(ConnectionResetError):
        await raw.reader.read()
    await raw.close()


async def test_a_request_that_does_not_arrive_runs_out_of_time(served: Served) -> None:
    raw = await Raw.connect(served)
    block = b"".join((h2.METHOD_POST, h2.literal(":path", "/docker.swarmkit.v1.Health/Check")))
    block += h2.literal("content-type", "application/grpc")
    raw.writer.write(h2.header_frames(1, block, False, 16_384) + h2.frame(h2.PING, 0, 0, b"12345678"))
    await raw.reader.readuntil(h2.frame(h2.PING, h2.ACK, 0, b"12345678"))
    sweep(served, defaults.RPC_REQUEST_TIMEOUT_S - 1)
    sweep(served, defaults.RPC_REQUEST_TIMEOUT_S + 1)
    await raw.reader.readuntil(b"the request did not come in time")
    assert not served.events
    await raw.close()


async def test_an_idle_client_is_asked_to_leave(served: Served, connection: ClientConnection) -> None:
    await connection.unary(rpc.CHECK, HEALTH)
    sweep(served, defaults.RPC_IDLE_ANONYMOUS_S + 1)
    assert "draining" in str(await connection.closed)


async def test_a_silent_client_is_pinged_and_then_dropped(served: Served) -> None:
    raw = await Raw.connect(served)
    block = b"".join((h2.METHOD_POST, h2.literal(":path", "/docker.swarmkit.v1.LogBroker/PublishLogs")))
    block += h2.literal("content-type", "application/grpc")
    raw.writer.write(h2.header_frames(1, block, False, 16_384))
    await served.until(lambda: bool(served.calls))
    sweep(served, defaults.RPC_KEEPALIVE_S + 1)
    await raw.reader.readuntil(h2.frame(h2.PING, 0, 0, b"alive?\0\0"))
    sweep(served, defaults.RPC_KEEPALIVE_S + defaults.RPC_KEEPALIVE_TIMEOUT_S + 5)
    await served.until(lambda: bool(served.ends))
    await raw.close()


async def test_a_client_that_reads_no_answers_is_dropped(served: Served) -> None:
    raw = await Raw.connect(served)
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    path = h2.literal(":path", "/docker.swarmkit.v1.Health/Check")
    block = h2.METHOD_POST + path + h2.literal("content-type", "application/grpc")
    request = frame_message(api.HealthCheckRequest(service="missing").SerializeToString())
    with capture_logs() as logs:
        number = 1
        while not logs:
            raw.writer.write(
                b"".join(
                    h2.header_frames(n, block, False, 16_384) + h2.frame(h2.DATA, h2.END_STREAM, n, request)
                    for n in range(number, number + 1000, 2)
                )
            )
            number += 1000
            await asyncio.sleep(0)
            assert number < 1_000_000
    assert logs[0]["reason"] == "the client does not read its answers"
    await raw.close()


async def test_one_address_gets_only_so_many_connections(
    authority: Authority, cluster: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RPC_CONNECTIONS_PER_ADDRESS_MAX", 3)
    connections = [await client.connect(cluster.address, authority.client()) for _ in range(3)]
    with capture_logs() as logs:
        for _ in range(5):
            with pytest.raises(Unavailable):
                await client.connect(cluster.address, authority.client())
    assert [entry["event"] for entry in logs] == ["rpc.not_admitted"]
    connections.pop().close()
    await turns_until(lambda: cluster.server.connection_count == 2)
    connections.append(await client.connect(cluster.address, authority.client()))
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("limit", ["RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_MAX", "RPC_ANONYMOUS_CONNECTIONS_MAX"])
async def test_the_oldest_stranger_makes_room_for_the_newest(
    authority: Authority, cluster: Served, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(defaults, limit, 3)
    connections = [await client.connect(cluster.address, authority.client()) for _ in range(5)]
    for displaced in connections[:2]:
        await displaced.closed
    assert cluster.server.connection_count == 3
    assert not any(connection.closed.done() for connection in connections[2:])
    for connection in connections:
        connection.close()


async def test_members_do_not_count_as_strangers(
    authority: Authority, cluster: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_MAX", 1)
    tls = authority.client(authority.issue("m2"))
    connections = [await client.connect(cluster.address, tls) for _ in range(4)]
    for connection in connections:
        connection.close()


async def test_a_stranger_may_not_send_much(authority: Authority, cluster: Served) -> None:
    connection = await client.connect(cluster.address, authority.client(server_name="swarm-ca"))
    request = api.IssueNodeCertificateRequest(csr=b"x" * defaults.RPC_MESSAGE_ANONYMOUS_BYTES_MAX)
    with pytest.raises(SwarmError, match="larger than max"):
        await connection.unary(rpc.ISSUE_NODE_CERTIFICATE, request)
    connection.close()


@pytest.mark.parametrize(
    ("peername", "text"),
    [
        (("10.0.0.1", 80), "10.0.0.1:80"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80"),
        (("fd00::1", 80, 0, 0), "[fd00::1]:80"),
        ("/run/socket", ""),
        (None, ""),
    ],
)
def test_addresses_are_written_as_go_writes_them(peername: object, text: str) -> None:
    assert format_address(peername) == text
