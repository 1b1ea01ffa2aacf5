"""Attacks on the cluster port before the first request: old TLS, half handshakes, and connections held open."""

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
from swarm.api import rpc
from swarm.errors import SwarmError, Unavailable
from swarm.grpc import frames as h2
from swarm.grpc.frames import ErrorCode
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


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 40_000, b"\0" * 70_000])
async def test_what_is_not_tls_is_dropped_and_logged_once(fort: Fort, data: bytes) -> None:
    with capture_logs() as logs:
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*fort.address)
            writer.write(data)
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
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_MAX", 20)
    with capture_logs() as logs:
        async with fort.served_meanwhile():
            writers = await half_handshakes(fort, 60, hello)
            await settled(lambda: fort.server.connection_count == 21)
        for writer in writers:  # they have the long time-out still
            writer.transport.abort()
        await settled(lambda: fort.server.connection_count <= 2)
        monkeypatch.setattr(defaults, "RPC_HANDSHAKE_TIMEOUT_S", 0.05)
        writers += await half_handshakes(fort, 60, hello)
        await settled(lambda: fort.server.connection_count <= 2)
    assert [entry["event"] for entry in logs] == ["rpc.handshake_failed"]
    for writer in writers:
        writer.transport.abort()


async def test_anonymous_connections_that_come_too_fast_are_refused_before_their_handshake(
    fort: Fort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_PER_S_MAX", 5)
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
        await connections[0].unary(rpc.GET_ROOT_CA_CERTIFICATE, ROOT)
    assert not any(connection.closed.done() for connection in connections)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        h2.PREFACE[:20],
        h2.PREFACE,
        h2.PREFACE + h2.settings_frame({}) + h2.frame(h2.HEADERS, 0, 1, b"\x83"),
        h2.PREFACE + h2.settings_frame({}) + b"\0\0\x08\x06\0\0\0\0\0abc",
    ],
)
async def test_a_greeting_a_header_block_and_a_frame_must_be_completed_in_time(fort: Fort, data: bytes) -> None:
    slow = [await fort.intrude(greeting=data) for _ in range(10)]
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


class Session:
    """A TLS client in memory, for what OpenSSL can do and Python cannot ask for."""

    def __init__(self, fort: Fort, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=MANAGER_ROLE)
        self.library = ctypes.CDLL(_ssl.__file__)
        self._address = fort.address
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    @property
    def handle(self) -> ctypes.c_void_p:
        """OpenSSL's, of struct PySSLSocket."""
        return ctypes.c_void_p.from_address(id(self.tls._sslobj) + 24)  # type: ignore[attr-defined]

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(*self._address)
        await self.handshake()

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.exchange()
        self.writer.write(self.outgoing.read())

    async def read_until(self, data: bytes) -> None:
        seen = b""
        while data not in seen:
            try:
                seen += self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                await self.exchange()

    async def exchange(self) -> None:
        self.writer.write(self.outgoing.read())
        data = await self.reader.read(1 << 16)
        assert data, "closed"
        self.incoming.write(data)


def tls_1_2_context() -> ssl.SSLContext:
    """As old as may be, and ready to negotiate again."""
    context = old_context(ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256")
    context.options &= ~(ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION)
    return context


async def test_tls_1_2_is_not_negotiated_again(fort: Fort) -> None:
    """A client could make the server sign as often as it likes, or change its identity in mid-connection."""
    session = Session(fort, tls_1_2_context())
    await session.connect()
    assert session.tls.version() == "TLSv1.2"
    session.tls.write(h2.PREFACE + h2.settings_frame({}) + h2.frame(h2.PING, 0, 0, b"12345678"))
    await session.read_until(b"12345678")
    async with fort.served_meanwhile():
        assert session.library.SSL_renegotiate(session.handle) == 1
        session.library.SSL_do_handshake(session.handle)
        assert session.outgoing.pending > 0
        session.writer.write(session.outgoing.read())
        kind = 23
        while kind == 23:  # data; the types of records are not encrypted
            head = await session.reader.readexactly(5)
            kind = head[0]
            await session.reader.readexactly(int.from_bytes(head[3:], "big"))
        assert kind == 21  # an alert, and no ServerHello
    session.writer.transport.abort()


async def test_compression_of_tls_is_not_taken_from_who_offers_it(fort: Fort) -> None:
    session = Session(fort, tls_1_2_context())
    with pytest.raises(ssl.SSLWantReadError):
        session.tls.do_handshake()
    hello = session.outgoing.read()
    at = 5 + 4 + 2 + 32  # of the session's ID: after the heads of record and message, version and random
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    assert hello[at : at + 2] == b"\x01\x00"
    message = hello[9:at] + b"\x02\x01\x00" + hello[at + 2 :]  # DEFLATE, or none
    body = b"\x01" + len(message).to_bytes(3, "big") + message
    reader, writer = await asyncio.open_connection(*fort.address)
    writer.write(b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body)
    answer = await reader.readexactly(5 + 4 + 2 + 32 + 1)
    assert (answer[0], answer[5]) == (22, 2)
    rest = await reader.readexactly(answer[-1] + 3)
    assert rest[-1] == 0
    writer.transport.abort()


async def test_a_flood_of_key_updates_ends_the_connection(fort: Fort) -> None:
    """Each costs more than a call, and is answered; Python cannot ask for one, OpenSSL can."""
    session = Session(fort, client_context(fort.client_tls(None)))
    await session.connect()
    reader, writer = session.reader, session.writer

    def updates(count: int) -> bytes:
        for _ in range(count):
            assert session.library.SSL_key_update(session.handle, 1) == 1
            session.library.SSL_do_handshake(session.handle)
        return session.outgoing.read()

    with capture_logs() as logs:
        async with fort.served_meanwhile():
            writer.write(updates(10))
            session.tls.write(h2.PREFACE + h2.settings_frame({}) + h2.frame(h2.PING, 0, 0, b"12345678"))
            await session.read_until(b"12345678")
            writer.write(updates(USELESS_RECORDS_MAX))
            while await reader.read(1 << 16):
                pass
    writer.transport.abort()
    assert [entry["reason"] for entry in logs] == ["too many TLS records without data"]


async def test_a_member_behind_the_address_of_a_flood_is_let_in(fort: Fort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_MAX", 8)
    flood: list[Intruder] = []
    for _ in range(12):
        flood.append(await fort.intrude())
        member = await fort.connect(fort.worker())
        await member.unary(rpc.GET_ROOT_CA_CERTIFICATE, ROOT)
        member.close()
    assert sum(intruder.outcome.closed for intruder in flood) >= 4
    with pytest.raises(SwarmError):  # a displaced connection can only try again
        await (await fort.connect()).unary(rpc.HEARTBEAT, api.HeartbeatRequest())
