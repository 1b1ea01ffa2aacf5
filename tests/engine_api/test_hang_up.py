"""A client that is gone changes nothing: a request that changes something runs to its end (real front, real RST)."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine_api.app import ROUTES, build_app
from engine_api.backend import InitRequest, JoinRequest, LocalNode
from engine_api.front.backends import Backends, make_runner
from engine_api.front.front import Front
from engine_api.front.paths import local_requests
from engine_api.front.policy import FullAccess
from swarm import api
from swarm.api.methods import Method, Req, Res
from tests.engine_api.conftest import MANAGER, FakeBackend

STEPS_MAX = 20
RST = struct.pack("ii", 1, 0)


class Stepwise:
    """A backend whose calls take two steps each: before and after they have their effect (SwarmBackend).

    at: the step in which the client hangs up, counted from 1; 0: never.
    """

    def __init__(self, backend: FakeBackend, at: int) -> None:
        self.backend = backend
        self.at = at
        self.steps = 0
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def _step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.reached.set()
            await self.go_on.wait()
        await asyncio.sleep(0)

    def local(self) -> LocalNode:
        return self.backend.local()

    def require_manager(self) -> None:
        self.backend.require_manager()

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        await self._step()
        answer = await self.backend.call(method, request)
        await self._step()
        return answer

    def stream(self, method: Method[Req, Res], request: Req) -> AsyncIterator[Res]:
        return self.backend.stream(method, request)

    async def init(self, request: InitRequest) -> str:
        await self._step()
        answer = await self.backend.init(request)
        await self._step()
        return answer

    async def join(self, request: JoinRequest) -> None:
        await self._step()
        await self.backend.join(request)
        await self._step()

    async def leave(self, force: bool) -> None:
        await self._step()
        await self.backend.leave(force)
        await self._step()

    async def unlock(self, key: str) -> None:
        await self._step()
        await self.backend.unlock(key)
        await self._step()


def spec_of(backend: FakeBackend) -> tuple[str, dict[str, Any]]:
    cluster = next(backend.store.all(api.Cluster))
    body = {"Name": "default", "Labels": {"changed": "yes"}, "EncryptionConfig": {"AutoLockManagers": True}}
    return f"/swarm/update?version={cluster.meta.version.index}&rotateWorkerToken=1", body


def node_of(backend: FakeBackend) -> tuple[str, dict[str, Any]]:
    node = backend.store.get(api.Node, MANAGER.node_id)
    assert node is not None
    body = {"Role": "manager", "Availability": "drain"}
    return f"/nodes/{node.id}/update?version={node.meta.version.index}", body


REQUESTS: dict[str, Any] = {
    "leave": lambda backend: ("/swarm/leave?force=1", None),
    "unlock": lambda backend: ("/swarm/unlock", {"UnlockKey": "SWMKEY-1-x"}),
    "force-new-cluster": lambda backend: (
        "/swarm/init",
        {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.99.0.1", "ForceNewCluster": True},
    ),
    "init": lambda backend: ("/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.99.0.1"}),
    "join": lambda backend: (
        "/swarm/join",
        {"ListenAddr": "0.0.0.0:2377", "RemoteAddrs": ["10.99.0.2:2377"], "JoinToken": "SWMTKN-1-a-b"},
    ),
    "autolock": spec_of,
    "drain itself": node_of,
}


def effects(backend: FakeBackend) -> tuple[object, ...]:
    """What requests have done here."""
    calls = [(name, request.SerializeToString(deterministic=True)) for name, request in backend.calls]
    return backend.inits, backend.joins, backend.left, backend.keys, calls


async def perform(name: str, backend: FakeBackend, at: int) -> tuple[int, tuple[object, ...]]:
    """Send the request through the front; the client resets the connection in that step. Returns steps, effects."""
    if name in ("init", "join"):
        backend.node = LocalNode()
    stepwise, fronts = Stepwise(backend, at), set[Front]()
    path, body = REQUESTS[name](backend)
    runner = await make_runner(build_app(stepwise, lambda: "1.41", lambda: "Docker/20.10.24 (linux)"))
    assert runner.server is not None

    async def no_engine(upstream: object) -> None:
        raise AssertionError("this is no request for the engine")

    backends = Backends(runner.server, local_requests(ROUTES), no_engine, "unix:///engine")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Front(backends, fronts, FullAccess()), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    text = json.dumps(body).encode() if body is not None else b""
    headers = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    head = f"POST /v1.41{path} HTTP/1.1\r\n{headers}"
    writer.write(head.encode() + text)
    if at:
        await stepwise.reached.wait()
        (front,) = fronts
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.transport.abort()
        await front.closed.wait()
        for _ in range(10):
            await asyncio.sleep(0)  # whoever is to be cancelled has been
        stepwise.go_on.set()
        for _ in range(100):
            await asyncio.sleep(0)
    else:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    server.close()
    await runner.cleanup()
    return stepwise.steps, effects(backend)


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_that_changes_something_runs_to_its_end_whoever_hangs_up(
    name: str, backend: FakeBackend, again: Any
) -> None:
    steps, done = await perform(name, backend, 0)
    assert 2 <= steps < STEPS_MAX
    for at in range(1, steps + 1):
        assert await perform(name, again(), at) == (steps, done), f"hung up in step {at}"
