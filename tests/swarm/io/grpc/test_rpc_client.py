"""Our client against servers that break the rules, or say nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import Code, SwarmError, Unavailable
from swarm.grpc import frames as h2
from swarm.grpc import wire
from swarm.grpc.frames import ErrorCode
from swarm.io.grpc import client

HEALTH = api.HealthCheckRequest()
HELLO = h2.settings_frame({})
ANSWER = wire.frame_message(api.HealthCheckResponse(status=api.HealthCheckResponse.SERVING).SerializeToString())


def headers(block: bytes, *, end: bool = False) -> bytes:
    return h2.header_frames(1, block, end, h2.DEFAULT_FRAME_BYTES)


def data(payload: bytes, *, end: bool = False) -> bytes:
    return h2.frame(h2.DATA, h2.END_STREAM if end else 0, 1, payload)


RESPONSE = headers(wire.RESPONSE_BLOCK)
OK = headers(wire.OK_BLOCK, end=True)


@contextlib.asynccontextmanager
async def scripted(*answers: bytes, hello: bytes = HELLO) -> AsyncIterator[client.ClientConnection]:
    """A connection to a server that says hello, and these bytes as soon as it sees a request."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(hello)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"/docker.swarmkit.v1.")
            for answer in answers:
                writer.write(answer)
            await reader.read()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        connection = await client.connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", None)
        yield connection
        connection.close()
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def failure(*answers: bytes) -> SwarmError:
    async with scripted(*answers) as connection:
        with pytest.raises(SwarmError) as failed:
            await connection.unary(rpc.CHECK, HEALTH)
        return failed.value


async def test_the_script_can_answer_well() -> None:
    async with scripted(RESPONSE, data(ANSWER), OK) as connection:
        assert (await connection.unary(rpc.CHECK, HEALTH)).ListFields()


@pytest.mark.parametrize(
    ("answers", "code", "text"),
    [
        ([data(ANSWER)], Code.INTERNAL, "data before headers"),
        ([RESPONSE, RESPONSE], Code.INTERNAL, "headers twice"),
        ([RESPONSE, data(ANSWER), data(ANSWER)], Code.INTERNAL, "more than one answer"),
        ([RESPONSE, data(ANSWER, end=True)], Code.INTERNAL, "without sending trailers"),
        ([RESPONSE, data(ANSWER[:-1]), OK], Code.INTERNAL, "middle of a message"),
        ([RESPONSE, OK], Code.INTERNAL, "without an answer"),
        ([RESPONSE, data(b"\0\0\0\0\1\xff")], Code.INTERNAL, "unmarshal"),
        ([RESPONSE, data(b"\0\xff\xff\xff\xff")], Code.RESOURCE_EXHAUSTED, "larger than max"),
        (
            [headers(h2.literal(":status", "503"), end=True)],
            Code.UNAVAILABLE,
            "HTTP status code received from server: 503",
        ),
        ([headers(h2.STATUS_200, end=True)], Code.UNKNOWN, "unexpected content-type"),
        ([RESPONSE, headers(b"", end=True)], Code.INTERNAL, "without sending trailers"),
        ([h2.rst_stream_frame(1, ErrorCode.ENHANCE_YOUR_CALM)], Code.RESOURCE_EXHAUSTED, "ENHANCE_YOUR_CALM"),
        ([h2.goaway_frame(0, ErrorCode.NO_ERROR, "")], Code.UNAVAILABLE, "the connection is draining"),
        ([h2.frame(h2.PING, 0, 0, b"x")], Code.UNAVAILABLE, "broke the protocol: PING of a wrong size"),
    ],
)
async def test_a_broken_answer_is_an_error_of_the_call(answers: list[bytes], code: Code, text: str) -> None:
    error = await failure(*answers)
    assert error.code == code
    assert text in error.message


async def test_a_refused_call_is_repeated_unseen() -> None:
    second = b"".join(
        (
            h2.header_frames(3, wire.RESPONSE_BLOCK, False, 16_384),
            h2.frame(h2.DATA, 0, 3, ANSWER),
            h2.header_frames(3, wire.OK_BLOCK, True, 16_384),
        )
    )
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readuntil(b"/docker.swarmkit.v1.")
        writer.write(h2.rst_stream_frame(1, ErrorCode.REFUSED_STREAM))
        await reader.readuntil(b"/docker.swarmkit.v1.")
        writer.write(second)
        await reader.read()
        writer.close()
        done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = await client.connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", None)
    assert (await connection.unary(rpc.CHECK, HEALTH)).ListFields()
    connection.close()
    await done.wait()
    server.close()


async def test_the_reason_of_a_goaway_is_reported() -> None:
    async with scripted(h2.goaway_frame(1, ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")) as connection:
        call = asyncio.create_task(connection.unary(rpc.CHECK, HEALTH))
        for _ in range(1000):
            if connection.draining:
                break
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="code: ENHANCE_YOUR_CALM, debug data: 'too_many_pings'"):
            await connection.unary(rpc.CHECK, HEALTH)
        call.cancel()
        await asyncio.wait([call])


async def test_a_server_that_does_not_answer_pings_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RPC_KEEPALIVE_S", 0.01)
    monkeypatch.setattr(defaults, "RPC_KEEPALIVE_TIMEOUT_S", 0.01)
    async with scripted() as connection:
        with pytest.raises(Unavailable, match="keepalive ping failed to receive ACK within timeout"):
            await connection.unary(rpc.CHECK, HEALTH)


async def test_a_server_that_is_not_grpc_is_recognised() -> None:
    with pytest.raises(Unavailable, match="connection error"):
        async with scripted(hello=b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            pass
