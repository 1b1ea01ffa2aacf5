"""Drives engine_api.app and the method table of swarm.manager.controlapi on the cluster of the recorded answers.

Reads and writes run the control API's own functions. Only what needs another machine or a kernel is faked.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import test_utils
from google.protobuf.message import Message

from certs.root import RootCA
from engine_api.app import build_app
from engine_api.backend import InitRequest, JoinRequest, LocalNode, LocalNodeState
from engine_api.convert.address import Interface, resolve_init
from engine_api.convert.cluster import NODE, SWARM
from engine_api.convert.objects import CONFIG, SECRET, TASK
from engine_api.convert.service import SERVICE
from engine_api.engine.client import EngineClient
from engine_api.errors import ServiceUnavailable
from engine_api.server.request import EngineHooks
from swarm import api
from swarm.api import rpc
from swarm.api.methods import Method, Req, Res
from swarm.errors import SwarmError
from swarm.manager.controlapi.methods import control
from swarm.store.store import Store, pack
from swarm.store.tx import Tx
from tests.engine_api.fake_engine import FakeEngine
from tests.swarm.manager.fake_members import FakeMembers

GOLDEN = Path(__file__).parents[1] / "golden" / "stock-20.10"
NOW = 1_795_359_300.0
ROOT = RootCA.create(NOW)
MANAGER = LocalNode(
    LocalNodeState.ACTIVE,
    "9sajldf3ee308yb7sb2mislv5",
    "10.99.0.1",
    True,
    "",
    (("9sajldf3ee308yb7sb2mislv5", "10.99.0.1:2377"),),
)
_STATUS = api.ManagerStatus(raft_id=7, addr="10.99.0.1:2377", leader=True, reachability=api.RaftMemberStatus.REACHABLE)
_OBJECTS = (
    ("swarm", SWARM, api.Cluster),
    ("nodes_3", NODE, api.Node),
    ("services", SERVICE, api.Service),
    ("tasks", TASK, api.Task),
    ("secrets", SECRET, api.Secret),
    ("configs", CONFIG, api.Config),
)


def golden(name: str) -> Any:
    """A recorded body."""
    return json.loads((GOLDEN / "api" / f"{name}.json").read_text())


class FakeBackend:
    """A daemon without peers, over the control API.

    gate: text of the 503 for everything that needs a manager; empty on a manager.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.now = NOW
        self.rng = Random("routes")
        self.node = MANAGER
        self.gate = ""
        self.interfaces = [Interface("eth0", (ip_address("10.99.0.1"),), device=True)]
        self.inits: list[InitRequest] = []
        self.joins: list[JoinRequest] = []
        self.left: list[bool] = []
        self.keys: list[str] = []
        self.unlock_key = b""
        self.calls: list[tuple[str, Message]] = []  # method name, request
        self.log: list[api.SubscribeLogsMessage | SwarmError] = []
        self.log_closed = False
        self.subscriptions: list[Message] = []
        self._table = control(FakeMembers({MANAGER.node_id: _STATUS}))

    def put(self, *objects: Message) -> None:
        """Store objects as they are, versions included."""
        self.store.apply([pack(api.STORE_ACTION_CREATE, obj) for obj in objects], self.store.index + 1)

    def replace(self, *objects: Message) -> None:
        """Store other content of objects that are there."""
        self.store.apply([pack(api.STORE_ACTION_UPDATE, obj) for obj in objects], self.store.index + 1)

    def local(self) -> LocalNode:
        return self.node

    def require_manager(self) -> None:
        if self.gate:
            raise ServiceUnavailable(self.gate)

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        self.require_manager()
        self.calls.append((method.name, request))
        if method.name == rpc.GET_UNLOCK_KEY.name:
            return method.checked_response(api.GetUnlockKeyResponse(unlock_key=self.unlock_key))
        handler = self._table[method.name]
        if not handler.write:
            return method.checked_response(handler.function(self.store, request))
        handler.check(request)
        self.now += 1
        tx = Tx(self.store, self.now, self.rng)
        with tx.savepoint():
            answer = handler.function(tx, request)
        self.store.apply(tx.actions(), self.store.index + 1)
        return method.checked_response(answer)

    async def stream(self, method: Method[Req, Res], request: Req) -> AsyncIterator[Res]:
        self.subscriptions.append(request)
        try:
            for message in self.log:
                if isinstance(message, SwarmError):
                    raise message
                yield method.checked_response(message)
        finally:
            self.log_closed = True

    async def init(self, request: InitRequest) -> str:
        resolve_init(request.listen_addr, request.advertise_addr, request.data_path_addr, self.interfaces, lambda: ())
        self.inits.append(request)
        return MANAGER.node_id

    async def join(self, request: JoinRequest) -> None:
        self.joins.append(request)

    async def leave(self, force: bool) -> None:
        self.left.append(force)

    async def unlock(self, key: str) -> None:
        self.keys.append(key)


def _recorded_store(backend: FakeBackend) -> None:
    for name, table, message in _OBJECTS:
        body = golden(name)
        for shown in body if isinstance(body, list) else [body]:
            obj = message()
            table.fill(obj, table.parse(shown))
            if isinstance(obj, api.Cluster):
                obj.root_ca.ca_cert, obj.root_ca.ca_key = ROOT.bundle_pem, ROOT.key_pem or b""
            if isinstance(obj, api.Secret):
                obj.spec.data = b"kept from readers"
            if isinstance(obj, api.Node):
                obj.spec.membership = api.NodeSpec.ACCEPTED
                obj.role = obj.spec.desired_role
            backend.put(obj)
    for shown in golden("networks"):
        if shown["Scope"] == "swarm":
            network = api.Network(id=shown["Id"])
            network.spec.annotations.name = shown["Name"]
            network.spec.ingress = shown["Ingress"]
            network.spec.attachable = shown["Attachable"]
            backend.put(network)


@pytest.fixture
def backend(again: Callable[[], FakeBackend]) -> FakeBackend:
    """A manager of the recorded cluster."""
    return again()


@pytest.fixture
def again() -> Callable[[], FakeBackend]:
    """Makes another manager of the recorded cluster."""

    def make() -> FakeBackend:
        made = FakeBackend()
        _recorded_store(made)
        made.store.index = 400
        return made

    return make


@pytest.fixture
def empty_backend() -> FakeBackend:
    """A machine that is in no swarm."""
    backend = FakeBackend()
    backend.node = LocalNode()
    backend.gate = (
        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to '
        "swarm and try again."
    )
    return backend


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    """An engine without containers."""
    async with FakeEngine(tmp_path) as running:
        yield running


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[EngineClient]:
    """A client of that engine."""
    made = EngineClient(engine.host)
    yield made
    await made.close()


async def find_local_network(word: str) -> str | None:
    """The engine beside us has its own three networks and the bridge of the gateway."""
    return word if word in ("bridge", "host", "none", "docker_gwbridge") else None


Start = Callable[..., Awaitable[test_utils.TestClient[Any, Any]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Serve a backend; api_version: the maximum, 1.41 as beside a 20.10 engine."""
    clients: list[test_utils.TestClient[Any, Any]] = []

    async def run(
        backend: FakeBackend, api_version: str = "1.41", hooks: EngineHooks | None = None
    ) -> test_utils.TestClient[Any, Any]:
        app = build_app(
            backend,
            lambda: api_version,
            lambda: "Docker/20.10.24+dfsg1 (linux)",
            hooks=hooks or EngineHooks(find_local_network=find_local_network),
            rng=Random("names"),
        )
        client: test_utils.TestClient[Any, Any] = test_utils.TestClient(test_utils.TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield run
    for client in clients:
        await client.close()
