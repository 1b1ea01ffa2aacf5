"""Listeners: who gets through a TLS handshake, what a refusal costs and says, and what each has of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from structlog.testing import capture_logs

from certs.tls import ClientTls, Credentials, client_context
from engine_api.config import Config, load
from engine_api.front.admission import Admission
from engine_api.front.http1 import Head
from engine_api.front.listener import Listener, ListenError
from engine_api.front.policy import FullAccess, Policy, Refused
from engine_api.front.tls import Tls, TlsError
from swarm import defaults
from tests.conftest import Authority


class Echo(asyncio.Protocol):
    """What is behind the handshake."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Place:
    """A listener on a free port, its files, and clients."""

    def __init__(self, directory: Path, authority: Authority, *flags: str) -> None:
        self.directory = directory
        self.authority = authority
        self.now = 1000.0
        self.port = 0
        self.write(authority, authority.issue())
        self.config: Config = load(["-H", "tcp://", *(flags or ("--tls",))], {"DOCKER_CERT_PATH": str(directory)})
        self.admission = Admission(lambda: self.now)
        config = self.config
        self.tls = Tls(
            config.tlscert, config.tlskey, config.tlscacert, verify=config.tlsverify, admission=self.admission
        )

    def write(self, trusted: Authority, server: Credentials) -> None:
        """The files of --tlscacert, --tlscert and --tlskey."""
        for name, content in (("ca", trusted.pem), ("cert", server.certificate_pem), ("key", server.key_pem)):
            (self.directory / f"{name}.pem").write_bytes(content)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        self.tls.load()
        listener = Listener("tcp://127.0.0.1:0", tls=self.tls)
        await listener.open(lambda policy: Echo())
        self.port = listener.port
        yield
        listener.close()

    async def connect(
        self, credentials: Credentials | None, adjust: Callable[[ssl.SSLContext], object] = lambda context: None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = client_context(ClientTls("", None, credentials), ("h2", "http/1.1"))
        adjust(context)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context)

    async def works(self, credentials: Credentials | None, **more: Any) -> bool:
        """Whether something comes back."""
        try:
            reader, writer = await self.connect(credentials, **more)
        except (ssl.SSLError, ConnectionError):
            return False
        with closing(writer):
            return await _echoes(reader, writer)


async def _echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """TLS 1.3 clients hear of a refusal only when they read."""
    try:
        writer.write(b"hello")
        return await reader.read(5) == b"hello"
    except (ssl.SSLError, ConnectionError):
        return False


@pytest.fixture
def place(tmp_path: Path, authority: Authority) -> Place:
    return Place(tmp_path, authority)


def _old_tls(context: ssl.SSLContext, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_1) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version


def _oldest_tls(context: ssl.SSLContext) -> None:
    _old_tls(context, ssl.TLSVersion.TLSv1)


def _tls_1_2(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


async def test_only_clients_with_a_certificate_of_the_ca_get_in(place: Place, other_authority: Authority) -> None:
    authority = place.authority
    async with place.open():
        client = authority.issue(usage=(ExtendedKeyUsageOID.CLIENT_AUTH,))
        assert await place.works(client)
        assert await place.works(client, adjust=_tls_1_2)
        assert not await place.works(client, adjust=_old_tls)
        assert not await place.works(client, adjust=_oldest_tls)
        assert not await place.works(None)
        assert not await place.works(other_authority.issue())
        assert not await place.works(authority.issue(usage=(ExtendedKeyUsageOID.SERVER_AUTH,)))
        assert not await place.works(authority.issue(not_after=authority.now))
        assert await place.works(client)


async def test_without_verification_everybody_gets_in_by_tls(tmp_path: Path, authority: Authority) -> None:
    place = Place(tmp_path, authority, "--tlsverify=false")
    async with place.open():
        assert await place.works(None)
    (tmp_path / "ca.pem").unlink()
    place.tls.load()  # nobody is verified by it


async def test_new_files_count_for_new_connections_and_bad_ones_for_none(
    place: Place, other_authority: Authority
) -> None:
    old, new = place.authority.issue(), other_authority.issue()
    async with place.open():
        reader, writer = await place.connect(old)
        with closing(writer):
            assert await _echoes(reader, writer)
            place.write(other_authority, other_authority.issue())
            assert await place.works(old)
            place.tls.load()
            assert await place.works(new)
            assert not await place.works(old)
            assert await _echoes(reader, writer)
            for name in ("ca", "cert", "key"):
                file = place.directory / f"{name}.pem"
                before = file.read_bytes()
                for content in (b"", b"x" * 10, place.authority.issue().key_pem):
                    file.write_bytes(content)
                    with pytest.raises(TlsError) as refused:
                        place.tls.load()
                    assert str(file) in str(refused.value)
                file.unlink()
                with pytest.raises(TlsError, match=rf"cannot read {file} \(--tls{'ca' * (name == 'ca')}"):
                    place.tls.load()
                file.write_bytes(before)
            assert await place.works(new)


async def test_a_client_without_a_certificate_is_logged_once_a_minute(place: Place) -> None:
    async with place.open():
        with capture_logs() as logs:
            for _ in range(3):
                assert not await place.works(None)
            place.now += defaults.API_REFUSAL_LOG_S - 1
            assert not await place.works(None)
            assert [(line["event"], line["peer"]) for line in logs] == [("api.tls_refused", "127.0.0.1")]
            place.now += 1
            assert not await place.works(None)
            assert len(logs) == 2
    assert logs[0]["error"] == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


async def test_a_client_that_speaks_plain_http_is_told(place: Place) -> None:
    async with place.open():
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        with closing(writer):
            writer.write(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.0 400 Bad Request\r\n")
        assert answer.endswith(b"\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")


async def test_handshakes_that_are_not_finished_keep_nobody_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "API_HANDSHAKES_PER_ADDRESS_MAX", 3)
    client = place.authority.issue()
    async with place.open():
        reader, writer = await place.connect(client)
        with closing(writer), capture_logs() as logs:
            silent = [await asyncio.open_connection("127.0.0.1", place.port) for _ in range(4)]
            assert await silent[0][0].read() == b""  # the oldest made room
            for _ in range(5):
                assert await place.works(client)
            assert await _echoes(reader, writer)
        for _, held in silent:
            held.close()
    assert [line["error"] for line in logs] == ["too many handshakes"]


async def _silent(place: Place, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", place.port, local_addr=(host, 0))


async def test_handshakes_from_many_addresses_are_limited_and_keep_nobody_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "API_HANDSHAKES_MAX", 10)
    client = place.authority.issue()
    async with place.open():
        silent = [await _silent(place, f"127.1.0.{number}") for number in range(1, 31)]
        for reader, _ in silent[:20]:
            assert await reader.read() == b""
        assert place.admission.handshakes == 10
        assert await place.works(client)
        for _, held in silent:
            held.close()


async def test_a_flood_of_anonymous_connections_does_not_keep_out_clients_from_known_addresses(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "API_ANONYMOUS_CONNECTIONS_PER_S_MAX", 10)
    monkeypatch.setattr(defaults, "API_ANONYMOUS_CONNECTIONS_PER_ADDRESS_PER_S_MAX", 5)
    client = place.authority.issue()
    async with place.open():
        assert await place.works(client)
        anonymous = [await _silent(place, f"127.1.0.{number}") for number in range(1, 31)]
        for reader, _ in anonymous[10:]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        for _ in range(20):
            assert await place.works(client)
        for _ in range(5):
            assert not await place.works(None)
        assert not await place.works(client)  # its own address has come too often now
        place.now += 1.0
        assert await place.works(client)
        for _, held in anonymous:
            held.close()


async def test_a_handshake_that_is_not_finished_is_out_of_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "API_HANDSHAKE_TIMEOUT_S", 0.02)
    async with place.open():
        for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
            with closing(writer):
                writer.write(data)
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""


# --- unix sockets, and what each listener has of its own ---


class Nothing:
    """A policy that allows nothing."""

    def check(self, head: Head) -> None:
        raise Refused("nothing is allowed here")


async def test_listeners_have_files_modes_and_policies_of_their_own(tmp_path: Path) -> None:
    given: list[Policy] = []

    def front(policy: Policy) -> Echo:
        given.append(policy)
        return Echo()

    restricted = Listener(f"unix://{tmp_path}/restricted.sock", policy=Nothing(), mode=0o600)
    full = Listener(f"unix://{tmp_path}/full.sock")
    for listener, name, mode in ((restricted, "restricted.sock", 0o600), (full, "full.sock", 0o660)):
        await listener.open(front)
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / name))
        with closing(writer):
            assert await _echoes(reader, writer)
        assert given[-1] is listener.policy
    assert [type(policy) for policy in given] == [Nothing, FullAccess]
    for listener, name in ((restricted, "restricted.sock"), (full, "full.sock")):
        listener.close()
        listener.forget_file()
        assert not (tmp_path / name).exists()


async def test_a_listener_removes_no_file_that_it_did_not_make(tmp_path: Path) -> None:
    first = Listener(f"unix://{tmp_path}/a.sock")
    await first.open(lambda policy: Echo())
    second = Listener(f"unix://{tmp_path}/a.sock")
    with pytest.raises(ListenError, match="another process listens on"):
        await second.open(lambda policy: Echo())
    second.close()
    second.forget_file()
    assert (tmp_path / "a.sock").exists()
    first.close()
    first.forget_file()
