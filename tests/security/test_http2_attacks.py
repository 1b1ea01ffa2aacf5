"""Attacks with HTTP/2: floods, bombs and stalls. Each ends in a GOAWAY or a reset, one line of the log, no state."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from certs.tls import Credentials
from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import METHODS
from swarm.errors import Code
from swarm.grpc import frames as h2
from swarm.grpc.frames import ErrorCode
from swarm.io.grpc.server_connection import ServerConnection
from tests.security.attacked_manager import AttackedManager, Intruder, data_frames, framed, headers, settled

PING = h2.frame(h2.PING, 0, 0, b"12345678")
ROOT = METHODS["CA/GetRootCACertificate"]
HEADERS = headers(ROOT)
CALL = framed(api.GetRootCACertificateRequest())
LITERAL = b"\x40\x01a\x7f\x81\x1e" + b"v" * 4000  # a field of 4000 bytes that enters the table
KINDS = ["anonymous", "worker"]
MEMORY_BYTES_MAX = 1 << 20  # what a connection that is being attacked may hold of us


def opened(stream: int, *, end: bool = False) -> bytes:
    return h2.header_frames(stream, HEADERS, end, h2.DEFAULT_FRAME_BYTES)


def credentials_of(attacked: AttackedManager, kind: str) -> Credentials | None:
    return None if kind == "anonymous" else attacked.worker()


def connection_of(attacked: AttackedManager, number: int = 0) -> ServerConnection:
    return list(attacked.server._connections)[number]


def held_bytes(connection: ServerConnection) -> int:
    """All bytes that a connection keeps for its client."""
    assert connection.h2 is not None
    assert connection.transport is not None
    waiting = connection.transport.get_write_buffer_size()
    return connection.h2.held_bytes() + waiting + connection.tracked.unfinished_bytes


FLOODS = {
    "CONTINUATION without end": (
        opened(1, end=False)[: 9 + len(HEADERS)].replace(b"\x01\x04", b"\x01\x00", 1)
        + h2.frame(h2.CONTINUATION, 0, 1) * 1000,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "CONTINUATION of long fragments": (
        h2.frame(h2.HEADERS, 0, 1, HEADERS) + h2.frame(h2.CONTINUATION, 0, 1, b"\0" * 16_384) * 100,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "rapid reset": (
        b"".join(opened(n) + h2.rst_stream_frame(n, ErrorCode.CANCEL) for n in range(1, 20_001, 2)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "resets that the server is made to send": (
        b"".join(opened(n) + h2.window_update_frame(n, 0) for n in range(1, 20_001, 2)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "streams beyond the limit": (
        b"".join(opened(n) for n in range(1, 20_001, 2)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "PING": (PING * 10_000, ErrorCode.ENHANCE_YOUR_CALM),
    "SETTINGS": (h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 1}) * 10_000, ErrorCode.ENHANCE_YOUR_CALM),
    "acknowledged SETTINGS": (h2.frame(h2.SETTINGS, h2.ACK, 0) * 10_000, ErrorCode.ENHANCE_YOUR_CALM),
    "PRIORITY": (h2.frame(h2.PRIORITY, 0, 1, b"12345") * 10_000, ErrorCode.ENHANCE_YOUR_CALM),
    "unknown frames": (h2.frame(0xEE, 0, 0, b"x" * 100) * 10_000, ErrorCode.ENHANCE_YOUR_CALM),
    "empty DATA": (opened(1) + h2.frame(h2.DATA, 0, 1) * 10_000, ErrorCode.ENHANCE_YOUR_CALM),
    "padding alone": (
        opened(1) + h2.frame(h2.DATA, h2.PADDED, 1, b"\xff" + b"\0" * 255) * 10_000,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "WINDOW_UPDATE": (h2.window_update_frame(0, 1) * 10_000, ErrorCode.ENHANCE_YOUR_CALM),
    "DATA on a stream that is over": (
        opened(1) + h2.rst_stream_frame(1, ErrorCode.CANCEL) + h2.frame(h2.DATA, 0, 1, b"x") * 10_000,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "window overflow": (h2.window_update_frame(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "window overflow by SETTINGS": (
        opened(1) + h2.window_update_frame(1, 2**31 - 65_536) + h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 65_536}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "frame of 16 MiB": (b"\xff\xff\xff\0\0\0\0\0\1" + b"x" * 100_000, ErrorCode.FRAME_SIZE_ERROR),
    "frame a byte too long": (h2.frame(h2.DATA, 0, 1, b"x" * 16_385), ErrorCode.FRAME_SIZE_ERROR),
    "long header list": (
        h2.header_frames(1, HEADERS + h2.literal("x", b"y" * 20_000), True, h2.DEFAULT_FRAME_BYTES),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "many small headers": (
        h2.header_frames(1, HEADERS + h2.literal("a", b"") * 3000, True, h2.DEFAULT_FRAME_BYTES),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "HPACK bomb": (
        h2.frame(h2.HEADERS, h2.END_HEADERS, 1, LITERAL + b"\xbe" * 10_000),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "HPACK table of 1 GiB": (
        h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x03" + HEADERS),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "HPACK number without end": (
        h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x7f" + b"\xff" * 16_000),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "Huffman code that is none": (
        h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x00\x84\xff\xff\xff\xff\x01x"),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "push": (h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "frames before SETTINGS": (PING, ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "anonymous") for name in FLOODS] + [(name, "worker") for name in ("rapid reset", "PING", "HPACK bomb")],
)
async def test_a_flood_ends_its_connection_is_logged_once_and_harms_nobody(
    attacked: AttackedManager, name: str, kind: str
) -> None:
    data, code = FLOODS[name]
    greeting = h2.PREFACE if name == "frames before SETTINGS" else h2.PREFACE + h2.settings_frame({})
    with capture_logs() as logs:
        async with attacked.served_meanwhile():
            for _ in range(2):
                intruder = await attacked.intrude(credentials_of(attacked, kind), greeting=greeting)
                intruder.write(data)
                outcome = await intruder.end()
                assert outcome.goaway is None or outcome.goaway[0] == code, outcome.goaway
                assert outcome.goaway is not None or len(data) > 100_000  # with unread data the last frames may be lost
    refused = [entry for entry in logs if entry["event"] == "rpc.connection_refused"]
    assert [entry["code"] for entry in refused] == [code.name]
    assert len(logs) == 1, logs
    await attacked.leave_alone()
    assert attacked.server._calls == {}
    assert attacked.server._incomplete == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_slow_flood_below_the_limits_holds_little(attacked: AttackedManager, kind: str) -> None:
    """Nothing that stays within the rates makes a connection grow."""
    intruder = await attacked.intrude(credentials_of(attacked, kind))
    async with attacked.served_meanwhile():
        for start in range(0, 1600, 160):
            for n in range(start + 1, start + 161, 2):
                intruder.write(
                    opened(n) + h2.frame(h2.DATA, 0, n, b"\0\0\0\1") + h2.rst_stream_frame(n, ErrorCode.CANCEL)
                )
            intruder.write(PING * 20 + h2.settings_frame({h2.HEADER_TABLE_SIZE: start}))
            await intruder.alive()
            connection = next(c for c in attacked.server._connections if c.tracked.anonymous is (kind == "anonymous"))
            connection.h2._receiver._resets._count = 0  # type: ignore[union-attr]  # another second
            assert held_bytes(connection) < 64 << 10
            assert len(connection.calls) == 0


async def test_a_client_that_reads_nothing_is_cut_off(attacked: AttackedManager) -> None:
    """Answers to frames and calls pile up only so far."""
    async with attacked.served_meanwhile():
        intruder = await attacked.intrude()
        await intruder.alive()
        assert intruder.transport is not None
        connection = next(c for c in attacked.server._connections if c.tracked.anonymous)
        intruder.transport.pause_reading()
        most, number = 0, 1
        with capture_logs() as logs:
            while connection in attacked.server._connections:
                intruder.write(opened(number) + data_frames(number, CALL) + PING * 4)
                number += 2
                assert number < 200_000
                most = max(most, held_bytes(connection) if connection.h2 is not None else 0)
                await asyncio.sleep(0)
        assert most < 2 * defaults.RPC_CONTROL_BUFFER_BYTES_MAX + MEMORY_BYTES_MAX
        assert [entry["event"] for entry in logs] == ["rpc.connection_refused"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_with_closed_windows_is_given_up_after_a_while(attacked: AttackedManager, kind: str) -> None:
    greeting = h2.PREFACE + h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 0})
    intruder = await attacked.intrude(credentials_of(attacked, kind), greeting=greeting)
    await intruder.until(lambda seen: seen.settings)
    most = intruder.outcome.settings[h2.MAX_CONCURRENT_STREAMS]
    for n in range(1, 2 * most, 2):
        intruder.request(n, ROOT, CALL)
    intruder.request(2 * most + 1, ROOT, CALL)
    await intruder.until(lambda seen: seen.resets)
    assert intruder.outcome.resets == {2 * most + 1: ErrorCode.REFUSED_STREAM}
    connection = connection_of(attacked)
    await settled(lambda: not connection.calls)
    assert held_bytes(connection) < MEMORY_BYTES_MAX
    with capture_logs() as logs:
        attacked.sweep(0)
        attacked.sweep(defaults.RPC_READ_TIMEOUT_S - 1)
        await intruder.alive()
        async with attacked.served_meanwhile():
            attacked.sweep(defaults.RPC_READ_TIMEOUT_S + 1)
            outcome = await intruder.end()
    assert outcome.goaway == (ErrorCode.ENHANCE_YOUR_CALM, "the client does not read its answers")
    assert [entry["event"] for entry in logs] == ["rpc.connection_refused"]


async def test_a_slow_reader_that_reads_is_not_given_up(attacked: AttackedManager) -> None:
    intruder = await attacked.intrude(greeting=h2.PREFACE + h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 0}))
    intruder.request(1, ROOT, CALL)
    await intruder.alive()
    for step in range(1, 11):
        intruder.write(h2.window_update_frame(1, 50))
        await intruder.until(lambda seen, step=step: len(seen.data.get(1, b"")) == 50 * step)  # type: ignore[misc]
        attacked.sweep(step * (defaults.RPC_KEEPALIVE_TIMEOUT_S - 1))
        await intruder.alive()


@pytest.mark.parametrize("kind", KINDS)
async def test_unfinished_requests_are_bounded_for_all_connections_of_an_attacker(
    attacked: AttackedManager, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(defaults, "RPC_UNFINISHED_ANONYMOUS_BYTES_MAX", 100_000)
    monkeypatch.setattr(defaults, "RPC_UNFINISHED_WORKER_BYTES_MAX", 100_000)
    issue = METHODS["NodeCA/IssueNodeCertificate"]
    body = (30_000).to_bytes(5, "big") + b"x" * 20_000
    async with attacked.served_meanwhile():
        intruders = [await attacked.intrude(credentials_of(attacked, kind)) for _ in range(3)]
        for intruder in intruders:
            for n in range(1, 9, 2):
                intruder.write(h2.header_frames(n, headers(issue), False, h2.DEFAULT_FRAME_BYTES))
                intruder.write(data_frames(n, body, end=False))
            await intruder.alive()
        refused = [status for intruder in intruders for status in intruder.outcome.status.values()]
        assert len(refused) == 12 - 4
        assert {code for code, _ in refused} == {Code.RESOURCE_EXHAUSTED}
        accounts = [*attacked.server._admission._nodes.values(), *attacked.server._admission._addresses.values()]
        assert sum(account.unfinished_bytes for account in accounts) <= 100_000
        for intruder in intruders:
            intruder.close()
        await settled(lambda: not any(account.unfinished_bytes for account in accounts))


async def test_requests_that_never_come_are_out_of_time(attacked: AttackedManager) -> None:
    intruder = await attacked.intrude(attacked.worker())
    for n in range(1, 201, 2):
        intruder.write(opened(n) + h2.frame(h2.DATA, 0, n, b"\0\0\0"))
    await intruder.alive()
    attacked.sweep(defaults.RPC_REQUEST_TIMEOUT_S + 1)
    outcome = await intruder.until(lambda seen: len(seen.status) == 100)
    assert {code for code, _ in outcome.status.values()} == {Code.DEADLINE_EXCEEDED}
    assert attacked.server._incomplete == {}
    assert connection_of(attacked).tracked.unfinished_bytes == 0


async def test_a_flood_of_calls_that_are_not_allowed_ends_the_connection(attacked: AttackedManager) -> None:
    with capture_logs() as logs:
        async with attacked.served_meanwhile():
            intruder = await attacked.intrude(attacked.worker())
            for n in range(1, 4 * defaults.RPC_REFUSALS_PER_S_MAX, 2):
                intruder.request(n, "Control/ListSecrets", framed(b""))
            await intruder.end()
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("rpc.connection_refused", "too many calls that are not allowed")
    ]


async def test_a_flood_of_small_messages_waits_at_the_door(attacked: AttackedManager) -> None:
    """A client stream is read no faster than the manager works through it, so nothing piles up between them."""
    machine = attacked.process._inbox
    async with attacked.served_meanwhile():
        intruder, subscription = await publishing(attacked)
        flood = framed(api.PublishLogsMessage(subscription_id=subscription)) * 300
        most = 0
        for _ in range(100):
            intruder.write(h2.frame(h2.DATA, 0, 1, flood))
            await asyncio.sleep(0)
            most = max(most, len(machine))
        await intruder.alive()
        assert not intruder.outcome.status
        assert 0 < most < 50
        connection = next(it for it in attacked.server._connections if it.h2 is not None and 1 in it.calls)
        assert held_bytes(connection) < 2 * defaults.RPC_STREAM_WINDOW_BYTES


async def publishing(attacked: AttackedManager) -> tuple[Intruder, str]:
    """A worker that was asked for logs, and the subscription it was asked under."""
    reader, worker = await attacked.connect(attacked.manager()), await attacked.connect(attacked.worker())
    listening = worker.stream(rpc.LISTEN_SUBSCRIPTIONS, api.ListenSubscriptionsRequest())
    asked = asyncio.ensure_future(anext(listening))
    await settled(lambda: bool(attacked.server._calls))
    request = api.SubscribeLogsRequest()
    request.selector.task_ids.append("task-mine")
    request.options.follow = True
    reading = reader.stream(rpc.SUBSCRIBE_LOGS, request)
    lines = asyncio.ensure_future(anext(reading))
    message = await asked
    assert isinstance(message, api.SubscriptionMessage)
    attacked.kept += [listening, reading, lines]
    intruder = await attacked.intrude(attacked.worker())
    intruder.write(h2.header_frames(1, headers("LogBroker/PublishLogs"), False, h2.DEFAULT_FRAME_BYTES))
    return intruder, message.id
