"""Attacks on the cluster port before the first request: TLS of yesterday, half handshakes, and places that are held."""

from __future__ import annotations

import _ssl
import asyncio
import ctypes
import ssl
import warnings

import pytest
from structlog.testing import capture_logs

from certs.records import USELESS_RECORDS_MAX
from certs.tls import client_context
from swarm import api, defaults
from swarm.errors import SwarmError, Unavailable
from swarm.io import http2_frames as h2
from swarm.io.http2_frames import ErrorCode
from tests.security.fort import MANAGER_ROLE, Fort, Intruder, framed, settled

ROOT = api.GetRootCACertificateRequest()


def old_context(version: ssl.TLSVersion, ciphers: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = min(version, ssl.TLSVersion.TLSv1_2)
        context.maximum_version = version
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_of_tls_are_refused(fort: Fort, version: ssl.TLSVersion) -> None:
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        await fort.intrude(context=old_context(version, "ALL"))


@pytest.mark.parametrize(
    "ciphers",
    [
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-ECDSA-AES256-SHA384",
        "ECDHE-ECDSA-AES128-CCM8",
        "AECDH-AES128-SHA",
        "eNULL",
        "DHE",
        "kRSA",
    ],
)
async def test_ciphers_without_forward_secrecy_or_authentication_are_refused(fort: Fort, ciphers: str) -> None:
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        await fort.intrude(context=old_context(ssl.TLSVersion.TLSv1_2, ciphers))


async def test_a_peer_that_means_another_protocol_is_turned_away(fort: Fort) -> None:
    context = client_context(fort.client_tls(fort.worker()), alpn=["http/1.1"])
    intruder = await fort.intrude(greeting=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", context=context)
    outcome = await intruder.end()
    assert outcome.goaway == (ErrorCode.PROTOCOL_ERROR, "not HTTP/2")


async def test_a_peer_without_alpn_is_taken_at_its_word(fort: Fort) -> None:
    """Stock nodes stop offering it after their first renewal; the preface tells what it is."""
    intruder = await fort.intrude(context=client_context(fort.client_tls(fort.worker()), alpn=()))
    intruder.request(1, "CA/GetRootCACertificate", framed(ROOT))
    assert await intruder.answer() == (0, "")


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 40_000, b"\0" * 70_000])
async def test_what_is_not_tls_is_dropped_and_logged_once(fort: Fort, words: bytes) -> None:
    with capture_logs() as logs:
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*fort.address)
            writer.write(words)
            await reader.read(1 << 16)
            writer.transport.abort()
        await settled(lambda: fort.server.connection_count == 0)
    assert [entry["event"] for entry in logs] == ["rpc.handshake_failed"]


async def half_handshakes(fort: Fort, count: int, hello: bytes) -> list[asyncio.StreamWriter]:
    """Connections that begin a handshake and leave it at that."""
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(*fort.address)
        writer.write(hello)
        writers.append(writer)
    return writers


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_half_handshakes_keep_nobody_out_and_time_out(
    fort: Fort, monkeypatch: pytest.MonkeyPatch, hello: bytes
) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_PER_ADDRESS_MAX", 20)
    with capture_logs() as logs:
        async with fort.served_meanwhile():
            writers = await half_handshakes(fort, 60, hello)
            await settled(lambda: fort.server.connection_count == 21)
        monkeypatch.setattr(defaults, "RPC_HANDSHAKE_TIMEOUT_S", 0.05)
        writers += await half_handshakes(fort, 60, hello)
        await settled(lambda: fort.server.connection_count <= 2)
    assert [entry["event"] for entry in logs] == ["rpc.handshake_failed"]
    for writer in writers:
        writer.transport.abort()


async def test_strangers_that_come_too_fast_are_turned_away_before_their_handshake(
    fort: Fort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RPC_STRANGERS_PER_ADDRESS_PER_S_MAX", 5)
    admission = fort.server._admission
    refused = 0
    with capture_logs() as logs:
        async with fort.served_meanwhile():
            for _ in range(30):
                try:
                    connection = await fort.connect()
                    connection.close()
                except Unavailable:
                    refused += 1
                if refused > 3:
                    break
            for account in admission._addresses.values():
                account.second -= 1.0  # a second later
    assert refused > 3
    assert [entry["event"] for entry in logs] == ["rpc.not_admitted"]


async def test_one_certificate_gets_only_so_many_connections(fort: Fort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RPC_CONNECTIONS_PER_NODE_MAX", 5)
    connections = [await fort.connect(fort.worker()) for _ in range(5)]
    with capture_logs() as logs:
        for _ in range(10):
            with pytest.raises(Unavailable):
                await fort.connect(fort.worker())
    assert [entry["event"] for entry in logs] == ["rpc.not_admitted"]
    async with fort.served_meanwhile():
        await connections[0].unary("CA/GetRootCACertificate", ROOT)
    assert not any(connection.closed.done() for connection in connections)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        h2.PREFACE[:20],
        h2.PREFACE,
        h2.PREFACE + h2.settings_frame({}) + h2.frame(h2.HEADERS, 0, 1, b"\x83"),
        h2.PREFACE + h2.settings_frame({}) + b"\0\0\x08\x06\0\0\0\0\0abc",
    ],
)
async def test_a_greeting_a_header_block_and_a_frame_must_be_completed_in_time(fort: Fort, words: bytes) -> None:
    slow = [await fort.intrude(greeting=words) for _ in range(10)]
    await settled(lambda: len(fort.server._connections) == 10)
    for intruder in slow:
        await intruder.until(lambda seen: seen.settings)
    with capture_logs() as logs:
        async with fort.served_meanwhile():
            fort.sweep(0)
            fort.sweep(defaults.RPC_HANDSHAKE_TIMEOUT_S + 1)
            for intruder in slow:
                assert (await intruder.end()).goaway is not None
    assert [entry["event"] for entry in logs] == ["rpc.connection_refused"]


async def test_a_stranger_that_is_asked_to_leave_and_stays_is_cut_off(fort: Fort) -> None:
    idle = await fort.intrude()
    await idle.alive()
    fort.sweep(defaults.RPC_IDLE_ANONYMOUS_S + 1)
    outcome = await idle.until(lambda seen: seen.goaway)
    assert outcome.goaway == (ErrorCode.NO_ERROR, "graceful stop")
    await idle.alive()
    fort.sweep(defaults.RPC_IDLE_ANONYMOUS_S + defaults.RPC_KEEPALIVE_TIMEOUT_S + 1)
    await idle.end()


async def test_a_flood_of_key_updates_ends_the_connection(fort: Fort) -> None:
    """Each costs more than a call, and is answered; Python cannot ask for one, OpenSSL can."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(fort.client_tls(None))
    tls = context.wrap_bio(incoming, outgoing, server_hostname=MANAGER_ROLE)
    reader, writer = await asyncio.open_connection(*fort.address)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(1 << 16))
    writer.write(outgoing.read())
    library = ctypes.CDLL(_ssl.__file__)
    session = ctypes.c_void_p.from_address(id(tls._sslobj) + 24)  # type: ignore[attr-defined]  # struct PySSLSocket
    update, send = library.SSL_key_update, library.SSL_do_handshake

    def updates(count: int) -> bytes:
        for _ in range(count):
            assert update(session, 1) == 1
            send(session)
        return outgoing.read()

    with capture_logs() as logs:
        async with fort.served_meanwhile():
            writer.write(updates(10))
            tls.write(h2.PREFACE + h2.settings_frame({}) + h2.frame(h2.PING, 0, 0, b"12345678"))
            writer.write(outgoing.read())
            seen = b""
            while b"12345678" not in seen:
                incoming.write(await reader.read(1 << 16))
                seen += tls.read(1 << 16)
            writer.write(updates(USELESS_RECORDS_MAX))
            while await reader.read(1 << 16):
                pass
    writer.transport.abort()
    assert [entry["reason"] for entry in logs] == ["too many TLS records without data"]


async def test_a_member_behind_the_address_of_a_flood_is_let_in(fort: Fort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_PER_ADDRESS_MAX", 8)
    flood: list[Intruder] = []
    for _ in range(12):
        flood.append(await fort.intrude())
        member = await fort.connect(fort.worker())
        await member.unary("CA/GetRootCACertificate", ROOT)
        member.close()
    assert sum(intruder.outcome.closed for intruder in flood) >= 4
    with pytest.raises(SwarmError):  # who is displaced can only come again
        await (await fort.connect()).unary("Dispatcher/Heartbeat", api.HeartbeatRequest())
