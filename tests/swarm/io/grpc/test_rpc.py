"""Our client and our server together: identities, TLS, backpressure, limits, and how connections end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from certs.tls import ClientTls, server_context
from swarm import api, defaults
from swarm.address import parse_host_port
from swarm.api import rpc
from swarm.errors import Code, DeadlineExceeded, InvalidArgument, SwarmError, Unavailable
from swarm.grpc import frames as h2
from swarm.grpc.authorize import ClusterAuthorizer, forwarding_metadata
from swarm.io.grpc import client
from swarm.io.grpc.client import ClientConnection
from swarm.rpc import Call, Peer, Reply, StreamData, StreamEnd

if TYPE_CHECKING:
    from tests.conftest import Authority
    from tests.swarm.io.conftest import MakeServed, Served

HEALTH = api.HealthCheckRequest()
NEVER = api.HealthCheckRequest(service="never")
SERVING = api.HealthCheckResponse(status=api.HealthCheckResponse.SERVING)


class Listener:
    """Takes the answers of a call that a machine makes, as events."""

    def __init__(self) -> None:
        self.answers: list[Reply | StreamData | StreamEnd] = []
        self.changed = asyncio.Event()

    def __call__(self, answer: Reply | StreamData | StreamEnd) -> None:
        self.answers.append(answer)
        self.changed.set()

    async def ended(self) -> StreamEnd | Reply:
        while not self.answers or isinstance(self.answers[-1], StreamData):
            self.changed.clear()
            await self.changed.wait()
        end = self.answers[-1]
        assert not isinstance(end, StreamData)
        return end


# --- events ---


async def test_a_machine_makes_a_unary_call(connection: ClientConnection) -> None:
    listener = Listener()
    connection.open(Call(7, "Health/Check", HEALTH), listener)
    assert listener.answers == []
    assert await listener.ended() == Reply(7, SERVING)


async def test_a_machine_takes_a_server_stream(connection: ClientConnection) -> None:
    listener = Listener()
    connection.open(Call(8, "Dispatcher/Session", api.SessionRequest(session_id="3")), listener)
    assert await listener.ended() == StreamEnd(8)
    assert [a.message.session_id for a in listener.answers if isinstance(a, StreamData)] == ["0", "1", "2"]  # type: ignore[attr-defined]


async def test_a_machine_sends_a_client_stream(served: Served, connection: ClientConnection) -> None:
    listener = Listener()
    connection.open(Call(9, "LogBroker/PublishLogs", None), listener)
    for _ in range(10):
        connection.send(StreamData(9, api.PublishLogsMessage(subscription_id="s")))
    connection.send(StreamEnd(9))
    assert await listener.ended() == Reply(9, api.PublishLogsResponse())
    assert list(served.received.values()) == [10]


async def test_a_machine_gives_up_a_call_and_hears_no_more(served: Served, connection: ClientConnection) -> None:
    listener = Listener()
    connection.open(Call(1, "Health/Check", NEVER), listener)
    await served.until(lambda: bool(served.calls))
    connection.send(StreamEnd(1, SwarmError("enough")))
    connection.send(StreamEnd(1, SwarmError("enough")))
    await served.until(lambda: bool(served.ends))
    assert listener.answers == []


async def test_a_client_stream_that_ends_ok_without_an_answer_is_ok(
    served: Served, connection: ClientConnection
) -> None:
    listener = Listener()
    connection.open(Call(1, "LogBroker/PublishLogs", None), listener)
    await served.until(lambda: bool(served.calls))
    served.server.send(StreamEnd(served.calls[0].stream))
    assert await listener.ended() == StreamEnd(1)


async def test_a_unary_call_that_ends_ok_without_an_answer_is_an_error(
    served: Served, connection: ClientConnection
) -> None:
    task = asyncio.create_task(connection.unary(rpc.CHECK, NEVER))
    await served.until(lambda: bool(served.calls))
    served.server.send(StreamEnd(served.calls[0].stream))
    with pytest.raises(SwarmError) as failed:
        await task
    assert failed.value.code == Code.INTERNAL


async def test_the_deadline_reaches_the_server(served: Served, connection: ClientConnection) -> None:
    listener = Listener()
    connection.open(Call(1, "Health/Check", NEVER), listener, timeout_s=0.02)
    end = await listener.ended()
    assert isinstance(end, StreamEnd)
    assert isinstance(end.error, DeadlineExceeded)
    await served.until(lambda: bool(served.ends))
    error = served.ends[0].error
    assert error is not None
    assert error.code in (Code.DEADLINE_EXCEEDED, Code.CANCELED)


async def test_bad_metadata_is_refused_before_anything_is_sent(connection: ClientConnection) -> None:
    with pytest.raises(InvalidArgument):
        await connection.unary(rpc.CHECK, HEALTH, metadata=(("UPPER", "x"),))


async def test_answers_to_calls_that_are_gone_are_dropped(served: Served) -> None:
    served.server.send(Reply(4711, SERVING))
    served.server.send(StreamEnd(4711))
    assert served.server.buffered(4711) == 0


async def test_a_handler_that_raises_costs_only_its_call(served: Served, connection: ClientConnection) -> None:
    with capture_logs() as logs, pytest.raises(SwarmError) as failed:
        async for _ in connection.stream(rpc.SESSION, api.SessionRequest(session_id="not a number")):
            pass
    assert failed.value.code == Code.INTERNAL
    assert [log["event"] for log in logs] == ["rpc.handler_failed"]
    assert await connection.unary(rpc.CHECK, HEALTH) == SERVING


# --- backpressure ---


async def test_a_reader_that_stops_loses_its_stream_not_the_servers_memory(
    served: Served, connection: ClientConnection
) -> None:
    stream = connection.stream(rpc.SESSION, api.SessionRequest(session_id="open"))
    await anext(stream)
    number = served.calls[0].stream
    message = api.SessionMessage(RootCA=b"x" * 1_000_000)
    sent = 0
    while not served.ends:
        served.server.send(StreamData(number, message))
        sent += 1
        assert served.server.buffered(number) <= defaults.RPC_STREAM_BUFFER_BYTES_MAX + 1_000_100
        assert sent < 100
    error = served.ends[0].error
    assert error is not None
    assert error.code == Code.RESOURCE_EXHAUSTED
    with pytest.raises(SwarmError) as failed:
        async for _ in stream:
            pass
    assert failed.value.code == Code.RESOURCE_EXHAUSTED
    assert await connection.unary(rpc.CHECK, HEALTH) == SERVING


async def test_a_producer_can_wait_for_a_slow_reader(served: Served, connection: ClientConnection) -> None:
    stream = connection.stream(rpc.SESSION, api.SessionRequest(session_id="open"))
    await anext(stream)
    number = served.calls[0].stream
    for _ in range(3):
        served.server.send(StreamData(number, api.SessionMessage(RootCA=b"x" * 2_000_000)))
    await connection.unary(rpc.CHECK, HEALTH)
    assert served.server.buffered(number) > 0
    for _ in range(3):
        await anext(stream)
    assert served.server.buffered(number) == 0
    await stream.aclose()


async def test_a_paused_client_stream_holds_its_client_back(served: Served, connection: ClientConnection) -> None:
    def messages() -> api.PublishLogsMessage:
        return api.PublishLogsMessage(subscription_id="s" * 100_000)

    listener = Listener()
    connection.open(Call(1, "LogBroker/PublishLogs", None), listener)
    await served.until(lambda: bool(served.calls))
    number = served.calls[0].stream
    served.server.pause(number)
    for _ in range(50):
        connection.send(StreamData(1, messages()))
    connection.send(StreamEnd(1))
    await connection.unary(rpc.CHECK, HEALTH)
    assert served.received == {}
    assert connection.buffered(1) > 50 * 100_000 - 2 * defaults.RPC_MANAGER_STREAM_WINDOW_BYTES
    served.server.resume(number)
    assert await listener.ended() == Reply(1, api.PublishLogsResponse())
    assert served.received == {number: 50}


async def test_the_end_of_a_client_stream_is_told_once_however_often_it_is_paused(
    served: Served, connection: ClientConnection
) -> None:
    def keep_open(event: Call | StreamData | StreamEnd) -> None:
        served.events.append(event)
        served.changed.set()

    served.server._handler = keep_open
    connection.open(Call(1, "LogBroker/PublishLogs", None), Listener())
    connection.send(StreamEnd(1))
    await served.until(lambda: bool(served.ends))
    number = served.calls[0].stream
    for _ in range(2):
        served.server.pause(number)
        served.server.resume(number)
    assert served.ends == [StreamEnd(number)]


async def test_messages_keep_their_order_when_the_handler_pauses_between_them(
    served: Served, connection: ClientConnection
) -> None:
    seen: list[str] = []

    def halting(event: Call | StreamData | StreamEnd) -> None:
        served.events.append(event)
        served.changed.set()
        served.server.pause(event.stream)
        if isinstance(event, StreamData):
            assert isinstance(event.message, api.PublishLogsMessage)
            seen.append(event.message.subscription_id)
        if len(seen) != 2:
            served.server.resume(event.stream)

    served.server._handler = halting
    connection.open(Call(1, "LogBroker/PublishLogs", None), Listener())
    for number in range(5):
        connection.send(StreamData(1, api.PublishLogsMessage(subscription_id=str(number))))
    connection.send(StreamEnd(1))
    await served.until(lambda: len(seen) == 2)
    assert seen == ["0", "1"], "paused"
    served.server.resume(served.calls[0].stream)
    await served.until(lambda: bool(served.ends))
    assert seen == ["0", "1", "2", "3", "4"]
    assert served.events[-1] == StreamEnd(served.calls[0].stream)


async def test_a_long_status_text_comes_as_far_as_headers_may_go(served: Served, connection: ClientConnection) -> None:
    listener = Listener()
    connection.open(Call(5, "Health/Check", NEVER), listener)
    await served.until(lambda: bool(served.calls))
    number = served.calls[-1].stream
    served.server.send(StreamEnd(number, SwarmError("ü" * 3000, Code.ABORTED)))
    end = await listener.ended()
    assert isinstance(end, StreamEnd)
    assert end.error is not None
    assert end.error.message == "ü" * 2048


# --- identities ---


async def test_a_worker_a_manager_and_a_stranger_are_told_apart(authority: Authority, cluster: Served) -> None:
    for node_id, role in (("w1", "swarm-worker"), ("m1", "swarm-manager"), ("", "")):
        tls = authority.client(authority.issue(node_id, role) if node_id else None, "swarm-ca")
        connection = await client.connect(cluster.address, tls)
        with pytest.raises(DeadlineExceeded):
            await connection.unary(rpc.GET_ROOT_CA_CERTIFICATE, api.GetRootCACertificateRequest(), 0.02)
        assert (cluster.calls[-1].peer.node_id, cluster.calls[-1].peer.role) == (node_id, role)
        assert cluster.calls[-1].peer.host == "127.0.0.1"
        connection.close()


async def test_a_worker_may_not_do_what_managers_do(authority: Authority, cluster: Served) -> None:
    connection = await client.connect(cluster.address, authority.client(authority.issue("w1", "swarm-worker")))
    with pytest.raises(SwarmError, match=r"not part of OUs: \[swarm-manager\]") as failed:
        await connection.unary(rpc.CHECK, HEALTH)
    assert failed.value.code == Code.PERMISSION_DENIED
    assert not cluster.calls
    connection.close()


async def test_a_removed_node_is_refused(authority: Authority, cluster: Served) -> None:
    connection = await client.connect(cluster.address, authority.client(authority.issue("gone")))
    with pytest.raises(SwarmError, match="node gone was removed from swarm"):
        await connection.unary(rpc.CHECK, HEALTH)
    connection.close()


async def test_a_follower_passes_on_who_asked(authority: Authority, cluster: Served) -> None:
    follower = await client.connect(cluster.address, authority.client(authority.issue("m2")))
    original = Peer("w1", "swarm-worker", "cluster1", "10.0.0.9:4000")
    stream = follower.stream(rpc.SESSION, api.SessionRequest(session_id="1"), metadata=forwarding_metadata(original))
    assert len([message async for message in stream]) == 1
    assert cluster.calls[0].peer == Peer("w1", "swarm-worker", "cluster1", "10.0.0.9:4000", forwarder="m2")
    follower.close()


async def test_new_credentials_count_from_the_next_connection_on(
    authority: Authority, other_authority: Authority, make_served: MakeServed
) -> None:
    contexts = [server_context(authority.issue("m1"), authority.pem)]
    served = await make_served(lambda: contexts[-1], ClusterAuthorizer("cluster1", lambda node_id: False))
    old = await client.connect(served.address, authority.client(authority.issue("m2")))
    cross = authority.cross_sign(other_authority)
    contexts.append(
        server_context(other_authority.issue("m1", intermediates=cross), authority.pem + other_authority.pem)
    )
    for tls in (authority.client(authority.issue("m3")), other_authority.client(other_authority.issue("m4"))):
        connection = await client.connect(served.address, tls)
        assert await connection.unary(rpc.CHECK, HEALTH) == SERVING
        connection.close()
    assert await old.unary(rpc.CHECK, HEALTH) == SERVING
    old.close()


# --- connecting ---


async def test_a_refused_connection_reads_as_gos() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unavailable) as failed:
        await client.connect(address, None)
    assert failed.value.rpc_text == (
        'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing '
        f'dial tcp {address}: connect: connection refused"'
    )


async def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match="i/o timeout"):
            await client.connect(address, None, timeout_s=0.05)
        with pytest.raises(Unavailable, match="i/o timeout"):
            await client.connect(address, ClientTls("swarm-manager", None), timeout_s=0.05)


async def test_a_server_of_another_root_is_not_trusted(
    other_authority: Authority, authority: Authority, cluster: Served
) -> None:
    with capture_logs(), pytest.raises(Unavailable, match="x509: certificate signed by unknown authority"):
        await client.connect(cluster.address, other_authority.client())
    connection = await client.connect(cluster.address, ClientTls("swarm-ca", None))  # on purpose, for the root
    connection.close()


async def test_our_certificate_of_another_root_fails_the_connect_and_is_logged_once(
    authority: Authority, other_authority: Authority, cluster: Served
) -> None:
    with capture_logs() as logs, pytest.raises(Unavailable, match="connection error"):
        await client.connect(cluster.address, authority.client(other_authority.issue("x")))
    (log,) = [log for log in logs if log["event"] == "rpc.handshake_failed"]
    assert log["peer"].startswith("127.0.0.1:")
    assert log["error"] == "CERTIFICATE_VERIFY_FAILED"


async def test_a_renewed_stock_peer_without_alpn_is_served(authority: Authority, cluster: Served) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = parse_host_port(cluster.address)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.write(h2.PREFACE + h2.settings_frame({}))
    assert (await reader.readexactly(9))[3] == h2.SETTINGS
    writer.close()
    await writer.wait_closed()


# --- how connections end ---


async def test_calls_that_are_open_fail_when_the_connection_is_closed(
    served: Served, connection: ClientConnection
) -> None:
    task = asyncio.create_task(connection.unary(rpc.CHECK, NEVER))
    await served.until(lambda: bool(served.calls))
    connection.close()
    with pytest.raises(Unavailable, match="is closing"):
        await task
    assert isinstance(await connection.closed, Unavailable)
    await served.until(lambda: bool(served.ends))
    with pytest.raises(Unavailable):
        await connection.unary(rpc.CHECK, HEALTH)


async def test_a_stopping_server_lets_open_calls_finish(served: Served, connection: ClientConnection) -> None:
    task = asyncio.create_task(connection.unary(rpc.CHECK, NEVER))
    await served.until(lambda: bool(served.calls))
    closing = asyncio.create_task(served.server.close(5.0))
    for _ in range(100_000):
        if connection.draining:
            break
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="draining"):
        await connection.unary(rpc.CHECK, HEALTH)
    served.server.send(Reply(served.calls[0].stream, SERVING))
    assert await task == SERVING
    await closing
    await connection.closed


async def test_a_stopping_server_ends_what_does_not_finish(served: Served, connection: ClientConnection) -> None:
    task = asyncio.create_task(connection.unary(rpc.CHECK, NEVER))
    await served.until(lambda: bool(served.calls))
    await served.server.close(0.01)
    with pytest.raises(SwarmError, match="the server is stopping") as failed:
        await task
    assert failed.value.code == Code.UNAVAILABLE
    assert [end.error.code for end in served.ends if end.error] == [Code.UNAVAILABLE]
