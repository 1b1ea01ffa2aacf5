"""grpcio as the judge: its client against our server, our client against its server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio

from certs.tls import ClientTls, server_context
from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import METHODS
from swarm.errors import Code, SwarmError, Unavailable
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.grpc import client
from swarm.rpc import StreamData, StreamEnd

if TYPE_CHECKING:
    from tests.conftest import Authority
    from tests.swarm.io.conftest import MakeServed, Served

HEALTH = api.HealthCheckRequest(service="")
SERVING = api.HealthCheckResponse(status=api.HealthCheckResponse.SERVING)


def stub(channel: grpc.aio.Channel, name: str) -> Any:
    method = METHODS[name]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    return getattr(channel, kind)(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def config(size: int) -> api.CreateConfigRequest:
    return api.CreateConfigRequest(spec=api.ConfigSpec(data=b"c" * size))


# --- its client, our server ---


@pytest_asyncio.fixture
async def channel(served: Served) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(served.address, options=options) as channel:
        yield channel


async def test_grpcio_gets_a_unary_answer(channel: grpc.aio.Channel) -> None:
    assert await stub(channel, "Health/Check")(HEALTH) == SERVING


async def test_grpcio_gets_errors_with_code_and_text(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub(channel, "Health/Check")(api.HealthCheckRequest(service="missing"))
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == "no service “missing” 100%\n"


async def test_grpcio_gets_a_server_stream(channel: grpc.aio.Channel) -> None:
    call = stub(channel, "Dispatcher/Session")(api.SessionRequest(session_id="500"))
    assert [message.session_id async for message in call] == [str(number) for number in range(500)]


async def test_grpcio_sends_a_client_stream(served: Served, channel: grpc.aio.Channel) -> None:
    call = stub(channel, "LogBroker/PublishLogs")()
    for _ in range(300):
        await call.write(api.PublishLogsMessage(subscription_id="s" * 1000))
    await call.done_writing()
    assert isinstance(await call, api.PublishLogsResponse)
    assert list(served.received.values()) == [300]


@pytest.mark.parametrize("size", [0, 100, 16_384, 65_535, 3 << 20])
async def test_grpcio_sends_and_gets_messages_of_any_allowed_size(channel: grpc.aio.Channel, size: int) -> None:
    response = await stub(channel, "Control/CreateConfig")(config(size))
    assert len(response.config.spec.data) == size


async def test_grpcio_is_refused_a_message_of_20_mb(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub(channel, "Control/CreateConfig")(config(20 << 20))
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max (" in (failed.value.details() or "")
    assert await stub(channel, "Health/Check")(HEALTH) == SERVING  # the connection is fine


async def test_grpcio_cancels(served: Served, channel: grpc.aio.Channel) -> None:
    call = stub(channel, "Dispatcher/Session")(api.SessionRequest(session_id="open"))
    assert (await call.read()).session_id == "open"
    call.cancel()
    await served.until(lambda: bool(served.ends))
    (end,) = served.ends
    assert end.error is not None
    assert end.error.code == Code.CANCELED
    served.server.send(StreamData(end.stream, api.SessionMessage()))  # too late, and harmless


async def test_grpcio_runs_out_of_time(served: Served, channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub(channel, "Health/Check")(api.HealthCheckRequest(service="never"), timeout=0.05)
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await served.until(lambda: bool(served.ends))


async def test_grpcio_makes_many_calls_at_once(channel: grpc.aio.Channel) -> None:
    check, create = stub(channel, "Health/Check"), stub(channel, "Control/CreateConfig")
    answers = await asyncio.gather(*(check(HEALTH) for _ in range(200)), *(create(config(100_000)) for _ in range(30)))
    assert answers[:200] == [SERVING] * 200
    assert all(len(answer.config.spec.data) == 100_000 for answer in answers[200:])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/docker.swarmkit.v1.Nothing/Check", "unknown service docker.swarmkit.v1.Nothing"),
        ("/docker.swarmkit.v1.Health/Nothing", "unknown method Nothing for service docker.swarmkit.v1.Health"),
        ("/odd", "malformed method name"),
    ],
)
async def test_grpcio_asks_for_what_does_not_exist(channel: grpc.aio.Channel, path: str, text: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary(path)(b"")
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert failed.value.details() == text


async def test_grpcio_sends_no_protobuf(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary(METHODS["Health/Check"].path)(b"\xff\xff")
    assert failed.value.code() == grpc.StatusCode.INTERNAL


async def test_grpcio_compresses_and_is_told_not_to(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub(channel, "Control/CreateConfig")(config(1000), compression=grpc.Compression.Gzip)
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_grpcio_is_sent_elsewhere_when_the_server_stops(served: Served, channel: grpc.aio.Channel) -> None:
    call = stub(channel, "Dispatcher/Session")(api.SessionRequest(session_id="open"))
    await call.read()
    closing = asyncio.create_task(served.server.close(5.0))
    stream = served.calls[0].stream
    await asyncio.sleep(0)
    served.server.send(StreamData(stream, api.SessionMessage(session_id="last")))
    served.server.send(StreamEnd(stream))
    assert (await call.read()).session_id == "last"
    assert await call.read() is grpc.aio.EOF
    await closing


async def test_grpcio_comes_over_tls_with_its_certificate(authority: Authority, make_served: MakeServed) -> None:
    context = server_context(authority.issue("manager1"), authority.pem)
    served = await make_served(lambda: context, ClusterAuthorizer("cluster1", lambda node_id: False))
    mine = authority.issue("worker1", "swarm-worker")
    credentials = grpc.ssl_channel_credentials(authority.pem, mine.key_pem, mine.certificate_pem)
    options = [("grpc.ssl_target_name_override", "swarm-manager")]
    async with grpc.aio.secure_channel(served.address, credentials, options=options) as channel:
        call = stub(channel, "Dispatcher/Session")(api.SessionRequest(session_id="1"))
        assert [message.session_id async for message in call] == ["0"]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub(channel, "Control/CreateConfig")(config(1))
    assert failed.value.code() == grpc.StatusCode.PERMISSION_DENIED
    peer = served.calls[0].peer
    assert (peer.node_id, peer.role, peer.org, peer.host) == ("worker1", "swarm-worker", "cluster1", "127.0.0.1")


# --- our client, its server ---


class Reference:
    """grpcio's server with the same services, for our client to call."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str]] = []
        self.cancelled = asyncio.Event()
        self.deadline: float | None = None
        self.port = 0

    async def check(self, request: Any, context: Any) -> Any:
        self.metadata = list(context.invocation_metadata())
        self.deadline = context.time_remaining()
        if request.service == "missing":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service “missing” 100%\n")
        if request.service == "never":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return SERVING

    async def session(self, request: Any, context: Any) -> AsyncIterator[Any]:
        context.add_done_callback(lambda context: self.cancelled.set())
        for number in range(int(request.session_id)):
            yield api.SessionMessage(session_id=str(number))

    async def publish(self, requests: AsyncIterator[Any], context: Any) -> Any:
        async for message in requests:
            if message.close:
                await context.abort(grpc.StatusCode.NOT_FOUND, "subscription not found")
        return api.PublishLogsResponse()

    async def create(self, request: Any, context: Any) -> Any:
        return api.CreateConfigResponse(config=api.Config(spec=request.spec))

    def handlers(self) -> list[Any]:
        rows = (
            ("Health/Check", grpc.unary_unary_rpc_method_handler, self.check),
            ("Dispatcher/Session", grpc.unary_stream_rpc_method_handler, self.session),
            ("LogBroker/PublishLogs", grpc.stream_unary_rpc_method_handler, self.publish),
            ("Control/CreateConfig", grpc.unary_unary_rpc_method_handler, self.create),
        )
        return [
            grpc.method_handlers_generic_handler(
                METHODS[name].path.split("/")[1],
                {
                    METHODS[name].path.split("/")[2]: make(
                        function,
                        request_deserializer=METHODS[name].request.FromString,
                        response_serializer=METHODS[name].response.SerializeToString,
                    )
                },
            )
            for name, make, function in rows
        ]


@contextlib.asynccontextmanager
async def grpcio_server(
    reference: Reference, credentials: Any = None, **options: int
) -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server(options=[(f"grpc.{name}", value) for name, value in options.items()])
    server.add_generic_rpc_handlers(reference.handlers())
    if credentials is None:
        reference.port = server.add_insecure_port("127.0.0.1:0")
    else:
        reference.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield server
    await server.stop(0)


@pytest_asyncio.fixture
async def reference() -> AsyncIterator[Reference]:
    reference = Reference()
    async with grpcio_server(reference):
        yield reference


@pytest_asyncio.fixture
async def connection(reference: Reference) -> AsyncIterator[client.ClientConnection]:
    connection = await client.connect(f"127.0.0.1:{reference.port}", None)
    yield connection
    connection.close()


async def test_we_get_a_unary_answer_and_send_metadata(
    reference: Reference, connection: client.ClientConnection
) -> None:
    metadata = (("forwarded_cert", "true"), ("forwarded_cert_cn", ""))
    assert await connection.unary(rpc.CHECK, HEALTH, timeout_s=30, metadata=metadata) == SERVING
    assert set(metadata) <= set(reference.metadata)
    assert reference.deadline is not None
    assert 0 < reference.deadline <= 30


async def test_we_get_errors_with_code_and_text(connection: client.ClientConnection) -> None:
    with pytest.raises(SwarmError) as failed:
        await connection.unary(rpc.CHECK, api.HealthCheckRequest(service="missing"))
    assert (failed.value.code, failed.value.message) == (Code.NOT_FOUND, "no service “missing” 100%\n")


async def test_we_get_a_server_stream(connection: client.ClientConnection) -> None:
    stream = connection.stream(rpc.SESSION, api.SessionRequest(session_id="500"))
    assert [message.session_id async for message in stream] == [str(number) for number in range(500)]


async def test_closing_a_stream_cancels_it(reference: Reference, connection: client.ClientConnection) -> None:
    stream = connection.stream(rpc.SESSION, api.SessionRequest(session_id="100000000"))
    await anext(stream)
    await stream.aclose()
    await reference.cancelled.wait()


async def logs(count: int, *, close: bool = False) -> AsyncIterator[api.PublishLogsMessage]:
    for _ in range(count):
        yield api.PublishLogsMessage(subscription_id="s" * 1000)
    if close:
        yield api.PublishLogsMessage(close=True)
        await asyncio.Event().wait()


async def test_we_send_a_client_stream(connection: client.ClientConnection) -> None:
    assert isinstance(await connection.client_stream(rpc.PUBLISH_LOGS, logs(1000)), api.PublishLogsResponse)


async def test_a_client_stream_ends_when_the_server_ends_it(connection: client.ClientConnection) -> None:
    with pytest.raises(SwarmError, match="subscription not found"):
        await connection.client_stream(rpc.PUBLISH_LOGS, logs(1, close=True))


@pytest.mark.parametrize("size", [0, 100, 16_384, 65_535, 3 << 20])
async def test_we_send_and_get_messages_of_any_allowed_size(connection: client.ClientConnection, size: int) -> None:
    response = await connection.unary(rpc.CREATE_CONFIG, config(size))
    assert isinstance(response, api.CreateConfigResponse)
    assert len(response.config.spec.data) == size


async def test_we_are_refused_a_message_of_20_mb(connection: client.ClientConnection) -> None:
    with pytest.raises(SwarmError) as failed:
        await connection.unary(rpc.CREATE_CONFIG, config(20 << 20))
    assert failed.value.code == Code.RESOURCE_EXHAUSTED
    assert await connection.unary(rpc.CHECK, HEALTH) == SERVING


async def test_we_take_an_answer_of_20_mb_from_a_manager() -> None:
    reference = Reference()
    async with grpcio_server(reference, max_receive_message_length=-1, max_send_message_length=-1):
        connection = await client.connect(f"127.0.0.1:{reference.port}", None)
        response = await connection.unary(rpc.CREATE_CONFIG, config(20 << 20))
        assert isinstance(response, api.CreateConfigResponse)
        assert len(response.config.spec.data) == 20 << 20
        connection.close()


async def test_we_run_out_of_time(connection: client.ClientConnection) -> None:
    """Either side may see first that the time is over, and the call may not even have reached the server by then."""
    with pytest.raises(SwarmError) as late:
        await connection.unary(rpc.CHECK, api.HealthCheckRequest(service="never"), timeout_s=0.05)
    assert late.value.code == Code.DEADLINE_EXCEEDED
    assert await connection.unary(rpc.CHECK, HEALTH) == SERVING


async def test_the_server_is_told_how_long_we_wait(reference: Reference, connection: client.ClientConnection) -> None:
    await connection.unary(rpc.CHECK, HEALTH, timeout_s=600.0)
    assert reference.deadline is not None
    assert 0.0 < reference.deadline <= 600.0


async def test_cancelling_the_task_cancels_the_call(reference: Reference, connection: client.ClientConnection) -> None:
    task = asyncio.create_task(connection.unary(rpc.CHECK, api.HealthCheckRequest(service="never")))
    await connection.unary(rpc.CHECK, HEALTH)
    task.cancel()
    await reference.cancelled.wait()


async def test_we_make_many_calls_at_once(connection: client.ClientConnection) -> None:
    answers = await asyncio.gather(
        *(connection.unary(rpc.CHECK, HEALTH) for _ in range(200)),
        *(connection.unary(rpc.CREATE_CONFIG, config(100_000)) for _ in range(30)),
    )
    assert answers[:200] == [SERVING] * 200


async def test_calls_beyond_the_peers_limit_wait_for_their_turn() -> None:
    reference = Reference()
    async with grpcio_server(reference, max_concurrent_streams=2):
        connection = await client.connect(f"127.0.0.1:{reference.port}", None)
        answers = await asyncio.gather(*(connection.unary(rpc.CHECK, HEALTH) for _ in range(50)))
        assert answers == [SERVING] * 50
        connection.close()


async def test_we_ask_for_what_does_not_exist(connection: client.ClientConnection) -> None:
    with pytest.raises(SwarmError) as failed:
        await connection.unary(rpc.GET_ROOT_CA_CERTIFICATE, api.GetRootCACertificateRequest())
    assert failed.value.code == Code.UNIMPLEMENTED


async def test_when_the_server_dies_open_calls_are_unavailable() -> None:
    reference = Reference()
    async with grpcio_server(reference) as server:
        connection = await client.connect(f"127.0.0.1:{reference.port}", None)
        task = asyncio.create_task(connection.unary(rpc.CHECK, api.HealthCheckRequest(service="never")))
        await connection.unary(rpc.CHECK, HEALTH)
        await server.stop(0)
        with pytest.raises(SwarmError) as failed:
            await task
        assert failed.value.code in (Code.UNAVAILABLE, Code.CANCELED)
        assert isinstance(await connection.closed, Unavailable)
        with pytest.raises(Unavailable):
            await connection.unary(rpc.CHECK, HEALTH)


async def test_we_speak_to_grpcio_over_tls(authority: Authority) -> None:
    manager = authority.issue("manager1")
    credentials = grpc.ssl_server_credentials(
        [(manager.key_pem, manager.certificate_pem)], authority.pem, require_client_auth=True
    )
    reference = Reference()
    async with grpcio_server(reference, credentials):
        address = f"127.0.0.1:{reference.port}"
        connection = await client.connect(address, authority.client(authority.issue("w", "swarm-worker")))
        assert await connection.unary(rpc.CHECK, HEALTH, 5.0) == SERVING
        connection.close()
        with pytest.raises(Unavailable):
            await client.connect(address, ClientTls("swarm-manager", None), timeout_s=5.0)


def test_the_limits_of_this_file_are_those_of_the_product() -> None:
    assert 3 << 20 < defaults.RPC_MESSAGE_BYTES_MAX < 20 << 20 < defaults.RPC_RESPONSE_BYTES_MAX
