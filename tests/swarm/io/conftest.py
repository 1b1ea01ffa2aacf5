"""A gRPC server with a handler that answers according to what it is asked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from ssl import SSLContext
from typing import TYPE_CHECKING

import pytest_asyncio

from certs.tls import server_context
from swarm import api
from swarm.api.methods import AnyMethod
from swarm.errors import NotFound
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.grpc import client
from swarm.io.grpc.server import Authorizer, RpcServer
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamData, StreamEnd

if TYPE_CHECKING:
    from tests.conftest import Authority


def let_everyone_in(method: AnyMethod, direct: Peer, metadata: Mapping[str, tuple[str, ...]]) -> Peer:
    return LOCAL


class Served:
    """Drives an RpcServer with services for tests, by method and request.

    Health/Check answers with a status, with an error for the service "missing", and not at all for "never".
    Dispatcher/Session sends as many messages as its session_id says and ends; "open" is kept open.
    Control/CreateConfig echoes the config. LogBroker/PublishLogs counts messages.
    """

    def __init__(self, tls: Callable[[], SSLContext] | None, authorizer: Authorizer) -> None:
        self.server = RpcServer(self.handle, tls, authorizer, itertools.count(1))
        self.events: list[Call | StreamData | StreamEnd] = []
        self.changed = asyncio.Event()
        self.received: dict[int, int] = {}

    @property
    def address(self) -> str:
        return self.server.addresses[0]

    def handle(self, event: Call | StreamData | StreamEnd) -> None:
        self.events.append(event)
        self.changed.set()
        if isinstance(event, Call):
            self.call(event)
        elif isinstance(event, StreamData):
            self.received[event.stream] = self.received.get(event.stream, 0) + 1
        elif event.error is None:
            self.server.send(Reply(event.stream, api.PublishLogsResponse()))

    def call(self, call: Call) -> None:
        match call.request:
            case api.HealthCheckRequest(service="missing"):
                self.server.send(StreamEnd(call.stream, NotFound("no service “missing” 100%\n")))
            case api.HealthCheckRequest(service="never"):
                pass
            case api.HealthCheckRequest():
                self.server.send(Reply(call.stream, api.HealthCheckResponse(status=api.HealthCheckResponse.SERVING)))
            case api.SessionRequest(session_id="open"):
                self.server.send(StreamData(call.stream, api.SessionMessage(session_id="open")))
            case api.SessionRequest(session_id=count):
                for number in range(int(count)):
                    self.server.send(StreamData(call.stream, api.SessionMessage(session_id=str(number))))
                self.server.send(StreamEnd(call.stream))
            case api.CreateConfigRequest(spec=spec):
                self.server.send(Reply(call.stream, api.CreateConfigResponse(config=api.Config(id="c", spec=spec))))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    @property
    def calls(self) -> list[Call]:
        return [event for event in self.events if isinstance(event, Call)]

    @property
    def ends(self) -> list[StreamEnd]:
        return [event for event in self.events if isinstance(event, StreamEnd)]


MakeServed = Callable[[Callable[[], SSLContext] | None, Authorizer], Awaitable[Served]]


@pytest_asyncio.fixture
async def make_served() -> AsyncIterator[MakeServed]:
    """Servers that listen, and are closed after the test."""
    made: list[Served] = []

    async def make(tls: Callable[[], SSLContext] | None, authorizer: Authorizer) -> Served:
        made.append(Served(tls, authorizer))
        await made[-1].server.listen("127.0.0.1", 0)
        return made[-1]

    yield make
    for service in made:
        await service.server.close(0)


@pytest_asyncio.fixture
async def served(make_served: MakeServed) -> Served:
    """A server without TLS that lets everyone in."""
    return await make_served(None, let_everyone_in)


@pytest_asyncio.fixture
async def connection(served: Served) -> AsyncIterator[client.ClientConnection]:
    """Our client, connected to ``served``."""
    connection = await client.connect(served.address, None)
    yield connection
    connection.close()


@pytest_asyncio.fixture
async def cluster(authority: Authority, make_served: MakeServed) -> Served:
    """Port 2377 of a manager."""
    context = server_context(authority.issue("manager1"), authority.pem)
    return await make_served(lambda: context, ClusterAuthorizer("cluster1", lambda node_id: node_id == "gone"))
