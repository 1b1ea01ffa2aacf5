"""TLS over a transport: handshakes, half-closes, slow readers, and what a peer can do wrong."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from certs.stream import TlsStream, open_tls, serve_tls
from certs.tls import ClientTls, Credentials, UntrustedCertificate, client_context, server_context, verify_chain
from certs.transport import TlsTransport

if TYPE_CHECKING:
    from tests.conftest import Authority

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on either loop; both must behave alike."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def runner(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(coroutine)

    return runner


class Recorder(asyncio.Protocol):
    """An application that writes down what it sees."""

    def __init__(self, *, keep_open: bool = True) -> None:
        self.data = bytearray()
        self.keep_open = keep_open
        self.events: list[str] = []
        self.paused = False
        self.error: Exception | None = None
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def eof_received(self) -> bool:
        self.note("eof")
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.note("lost")

    def pause_writing(self) -> None:
        self.paused = True
        self.changed.set()

    def resume_writing(self) -> None:
        self.paused = False
        self.changed.set()

    def note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def seen(self, event: str) -> None:
        await self.until(lambda: event in self.events)


class Echo(Recorder):
    """Answers only after the client has ended its direction, as a container does with its standard input."""

    def eof_received(self) -> bool:
        super().eof_received()
        self.transport.write(bytes(self.data[::-1]))
        self.transport.close()
        return True


class Watched(TlsStream):
    """Tells when the connection is gone, whatever became of its handshake."""

    gone: asyncio.Event

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()


class Pair:
    """Drives serve_tls and open_tls, and keeps the connections and failures."""

    def __init__(self, authority: Authority, factory: Callable[[], Recorder] = Recorder) -> None:
        self.authority = authority
        self.factory = factory
        self.connections: list[Recorder] = []
        self.clients: list[Recorder] = []
        self.streams: list[Watched] = []
        self.arrived = asyncio.Event()
        self.failures: list[tuple[Any, Exception]] = []
        self.failed = asyncio.Event()
        self.accepted = asyncio.Event()
        self.context = server_context(authority.issue(), authority.pem)

    def accept(self) -> TlsStream:
        stream = Watched(self.make, self.context, server_side=True, handshake_timeout_s=0.5, on_failed=self.on_failed)
        stream.gone = asyncio.Event()
        self.streams.append(stream)
        self.arrived.set()
        return stream

    def make(self) -> Recorder:
        self.connections.append(self.factory())
        self.accepted.set()
        return self.connections[-1]

    async def connection(self) -> Recorder:
        """The server's side; with TLS 1.3 it may come later than the client's."""
        await self.accepted.wait()
        await self.connections[0].seen("made")
        return self.connections[0]

    def on_failed(self, peer: Any, error: Exception) -> None:
        self.failures.append((peer, error))
        self.failed.set()

    async def __aenter__(self) -> Pair:
        self.server = await asyncio.get_running_loop().create_server(self.accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.arrived.wait()
        self.server.close()
        for client in self.clients:
            client.transport.abort()
            await client.seen("lost")
        for stream in self.streams:
            await asyncio.sleep(0)
            stream.abort()
            await stream.gone.wait()
        await asyncio.sleep(0)  # uvloop closes handles a turn later
        await asyncio.sleep(0)

    async def connect(self, tls: ClientTls | None = None, **options: Any) -> Recorder:
        tls = tls or self.authority.client()
        client = await open_tls(
            Recorder, "127.0.0.1", self.port, client_context(tls), server_name=tls.server_name, **options
        )
        return await self.track(client)

    async def track(self, client: asyncio.BaseProtocol) -> Recorder:
        assert isinstance(client, Recorder)
        self.clients.append(client)
        await client.seen("made")
        return client


def test_an_answer_still_comes_after_the_client_ended_its_direction(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority, Echo) as pair:
            client = await pair.connect()
            client.transport.write(b"abc" * 100_000)
            client.transport.write_eof()
            client.transport.write(b"ignored")
            await client.seen("eof")
            assert client.data == b"cba" * 100_000
            client.transport.close()
            await client.seen("lost")
            assert client.error is None

    run(main())


def test_the_server_may_end_its_direction_first(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            client = await pair.connect()
            server = await pair.connection()
            server.transport.write_eof()
            await client.seen("eof")
            client.transport.write(b"x" * 50_000)
            await server.until(lambda: len(server.data) == 50_000)
            client.transport.close()
            await server.seen("eof")
            server.transport.close()
            await server.seen("lost")

    run(main())


def test_data_that_came_while_reading_was_paused_survives_our_own_end(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            client = await pair.connect()
            server = await pair.connection()
            server.transport.pause_reading()
            client.transport.write(b"y" * 40_000)
            client.transport.write_eof()
            await asyncio.sleep(0.05)
            server.transport.write_eof()
            await client.seen("eof")
            assert "eof" not in server.events
            server.transport.resume_reading()
            await server.seen("eof")
            assert len(server.data) == 40_000

    run(main())


def test_an_application_that_does_not_want_half_a_connection_is_closed(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority, lambda: Recorder(keep_open=False)) as pair:
            client = await pair.connect()
            client.transport.write_eof()
            await (await pair.connection()).seen("lost")
            await client.seen("eof")
            client.transport.close()

    run(main())


def test_a_slow_reader_holds_back_the_writer(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            client = await pair.connect()
            client.transport.pause_reading()
            server = await pair.connection()
            written = 0
            while not server.paused:
                server.transport.write(b"z" * 65_536)
                written += 65_536
                assert written < 64 << 20
            assert server.transport.get_write_buffer_size() > 0
            assert len(client.data) == 0
            client.transport.resume_reading()
            await client.until(lambda: len(client.data) == written)
            await server.until(lambda: not server.paused)

    run(main())


def test_the_peers_chain_name_and_protocol_are_known(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            credentials = authority.issue("worker7", "swarm-worker")
            client = await pair.connect(authority.client(credentials))
            client.transport.write(b".")
            server = await pair.connection()
            await server.until(lambda: bool(server.data))
            chain = server.transport.get_extra_info("peer_chain_der")
            assert [ssl.DER_cert_to_PEM_cert(der) for der in chain] == [credentials.certificate_pem.decode()]
            assert server.transport.get_extra_info("alpn") == "h2"
            assert server.transport.get_extra_info("peername")[0] == "127.0.0.1"
            assert server.transport.get_extra_info("sslcontext") is pair.context

    run(main())


def test_a_client_without_certificate_and_alpn_is_served(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
            client = await pair.track(await open_tls(Recorder, "127.0.0.1", pair.port, plain))
            assert (await pair.connection()).transport.get_extra_info("peer_chain_der") == []
            assert client.transport.get_extra_info("alpn") is None

    run(main())


def refused(pair: Pair, client: Awaitable[Recorder]) -> Coroutine[Any, Any, Exception]:
    async def attempt() -> Exception:
        connection = await client
        await connection.seen("lost")
        assert connection.error is not None
        return connection.error

    return attempt()


def test_a_client_certificate_of_another_root_is_refused_and_reported_once(
    run: Run, authority: Authority, other_authority: Authority
) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            stranger: Credentials = other_authority.issue()
            error = await refused(pair, pair.connect(authority.client(stranger)))
            assert "ALERT" in str(error).upper()  # with TLS 1.3 the client's own handshake had succeeded
            await pair.failed.wait()
            await asyncio.sleep(0)
            ((peer, reason),) = pair.failures
            assert peer[0] == "127.0.0.1"
            assert isinstance(reason, ssl.SSLError)
            assert not pair.connections

    run(main())


def test_a_client_may_refuse_the_servers_chain_before_the_first_byte(
    run: Run, authority: Authority, other_authority: Authority
) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:

            def verify(chain: list[bytes]) -> None:
                verify_chain(chain, other_authority.pem, "swarm-manager", authority.now.timestamp())

            with pytest.raises(UntrustedCertificate):
                await pair.connect(verify=verify)

    run(main())


def test_both_roots_of_a_rotation_are_trusted_by_a_new_context(
    run: Run, authority: Authority, other_authority: Authority
) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            pair.context = server_context(authority.issue(), authority.pem + other_authority.pem)
            renewed = other_authority.issue(intermediates=authority.cross_sign(other_authority))
            for credentials in (authority.issue(), renewed):
                client = await pair.connect(authority.client(credentials))
                client.transport.write(b"!")
                await (await pair.connection()).until(lambda: bool(pair.connections[0].data))
                pair.connections.clear()
                pair.accepted.clear()
            assert not pair.failures

    run(main())


def test_a_handshake_that_takes_too_long_is_given_up(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            _, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(b"\x16\x03")
            await pair.failed.wait()
            assert isinstance(pair.failures[0][1], TimeoutError)
            writer.close()

    run(main())


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64])
def test_what_is_not_tls_is_refused(run: Run, authority: Authority, garbage: bytes) -> None:
    async def main() -> None:
        async with Pair(authority) as pair:
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(garbage)
            await pair.failed.wait()
            assert len(pair.failures) == 1
            await reader.read()
            writer.close()

    run(main())


def test_a_connection_that_is_not_admitted_does_not_begin(run: Run, authority: Authority) -> None:
    async def main() -> None:
        asked = []

        def admit(peer: Any) -> bool:
            asked.append(peer[0])
            return False

        context = server_context(authority.issue(), authority.pem)
        server = await asyncio.get_running_loop().create_server(
            serve_tls(Recorder, lambda: context, admit=admit), "127.0.0.1", 0
        )
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await open_tls(
                Recorder, "127.0.0.1", server.sockets[0].getsockname()[1], client_context(authority.client())
            )
        assert asked == ["127.0.0.1"]
        server.close()

    run(main())


def test_tls_1_2_peers_half_close_as_well(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with Pair(authority, Echo) as pair:
            pair.context.maximum_version = ssl.TLSVersion.TLSv1_2
            client = await pair.connect()
            client.transport.write(b"12" * 30_000)
            client.transport.write_eof()
            await client.seen("eof")
            assert client.data == b"21" * 30_000
            client.transport.close()

    run(main())
