"""Routes of networks: the swarm's and the engine's are one list, and each request reaches whom it concerns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_api.backend import LocalNode, LocalNodeState
from engine_api.engine.client import EngineClient
from engine_api.routes.system import System
from engine_api.server.request import EngineHooks
from swarm import api
from swarm.errors import ResourceExhausted, SwarmError
from tests.engine_api.conftest import NOW
from tests.engine_api.fake_engine import FakeEngine

HOST_ID = "v1ec2drwfral37bvks7knio31"


def _host_network() -> api.Network:
    labels = {"com.docker.swarm.predefined": "true"}
    network = api.Network(id=HOST_ID, driver_state=api.Driver(name="host"), ipam=api.IPAMOptions(driver=api.Driver()))
    network.spec.annotations.name = "host"
    network.spec.annotations.labels.update(labels)
    network.meta.created_at.FromJsonString("2026-11-22T17:12:27.300062312Z")
    return network


@pytest.mark.parametrize("word", [HOST_ID, "host", "v1ec2"])
async def test_a_predefined_network_is_shown_as_stock_shows_it(empty_backend: Any, start: Any, word: str) -> None:
    empty_backend.gate = ""
    empty_backend.put(_host_network())
    client = await start(empty_backend)
    async with client.get(f"/v1.41/networks/{word}?scope=swarm") as answer:
        assert answer.status == 200
        assert await answer.text() == (
            '{"Name":"host","Id":"v1ec2drwfral37bvks7knio31","Created":"2026-11-22T17:12:27.300062312Z",'
            '"Scope":"swarm","Driver":"host","EnableIPv6":false,"IPAM":{"Driver":"","Options":null,"Config":[]},'
            '"Internal":false,"Attachable":false,"Ingress":false,"ConfigFrom":{"Network":""},"ConfigOnly":false,'
            '"Containers":null,"Options":null,"Labels":{"com.docker.swarm.predefined":"true"}}\n'
        )


@pytest.mark.parametrize("gate", ["", "This node is not a swarm manager."])
async def test_an_unknown_network_is_not_found_on_any_node(empty_backend: Any, start: Any, gate: str) -> None:
    empty_backend.gate = gate
    client = await start(empty_backend)
    async with client.get("/v1.41/networks/nosuch?scope=swarm") as answer:
        assert (answer.status, await answer.json()) == (404, {"message": "network nosuch not found"})


# --- made ---


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    async with FakeEngine(tmp_path) as engine:
        yield engine


@pytest.fixture
async def hooks(engine: FakeEngine) -> AsyncIterator[EngineHooks]:
    """The routes' way to this engine."""
    client = EngineClient(engine.host)
    yield System(client, [], lambda: NOW).hooks
    await client.close()


async def _post(client: Any, path: str, body: Any) -> tuple[int, Any]:
    async with client.post(path, json=body) as answer:
        text = await answer.read()
        return answer.status, await answer.json() if text else None


@pytest.mark.parametrize(
    "body",
    [
        {"Name": "web", "Driver": "overlay"},
        {"name": "web", "driver": "overlay", "Attachable": True},
        {"Name": "web", "Driver": "bridge", "Scope": "swarm", "ConfigFrom": {"Network": "mine"}},
        {"Name": "web", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.7.0.0/16", "IPRange": "10.7.9.0/24"}]}},
    ],
)
async def test_a_manager_makes_the_networks_of_the_swarm(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, body: Any
) -> None:
    client = await start(backend, hooks=hooks)
    status, answer = await _post(client, "/v1.41/networks/create", body)
    assert (status, answer["Warning"]) == (201, "")
    made = backend.store.get(api.Network, answer["Id"])
    assert made.spec.annotations.name == "web"
    assert "POST /networks/create" not in engine.calls


@pytest.mark.parametrize(
    "body", [{"Name": "web"}, {"Name": "web", "Driver": "bridge"}, {"Name": 1, "Driver": None}, []]
)
async def test_all_other_networks_are_made_by_the_engine(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, body: Any
) -> None:
    client = await start(backend, hooks=hooks)
    assert (await _post(client, "/v1.40/networks/create", body))[0] == 201
    assert engine.calls == ["POST /networks/create"]
    assert engine.bodies == [body]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"Driver":"overlay","x":[' + b"1," * 30_000 + b"1]}", "the text has more than 20000 values"),
        (b'{"Driver":"overlay","x":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "exceeded max depth"),
    ],
)
async def test_a_network_that_nobody_can_judge_is_not_left_to_the_engine(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, body: bytes, reason: str
) -> None:
    client = await start(backend, hooks=hooks)
    async with client.post("/networks/create", data=body, headers={"Content-Type": "application/json"}) as answer:
        assert (answer.status, await answer.json()) == (400, {"message": reason})
    assert engine.calls == []


async def test_a_network_is_judged_by_the_first_value_as_go_reads_it(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    client = await start(backend, hooks=hooks)
    body = b'{"Name":"web","Driver":"overlay"} x'
    async with client.post("/networks/create", data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 201
    assert "POST /networks/create" not in engine.calls


@pytest.mark.parametrize("path", ["/networks/create", "/networks/ov1/connect"])
async def test_half_a_character_is_no_bug_of_ours(backend: Any, hooks: EngineHooks, start: Any, path: str) -> None:
    client = await start(backend, hooks=hooks)
    body = b'{"Name":"\\ud800","Container":"\\ud800"}'
    async with client.post(path, data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status in (201, 404)


async def test_what_the_engine_says_of_a_network_is_passed_on(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    client = await start(backend, hooks=hooks)
    engine.refuse["POST /networks/create"] = (409, "network with name web already exists")
    refused = (409, {"message": "network with name web already exists"})
    assert await _post(client, "/networks/create", {"Name": "web"}) == refused


async def test_outside_a_swarm_the_engine_says_that_there_is_none(
    empty_backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    client = await start(empty_backend, hooks=hooks)
    engine.refuse["POST /networks/create"] = (500, empty_backend.gate)
    refused = (500, {"message": empty_backend.gate})
    assert await _post(client, "/networks/create", {"Name": "web", "Driver": "overlay"}) == refused


async def test_a_worker_sends_its_user_to_a_manager(backend: Any, hooks: EngineHooks, start: Any) -> None:
    backend.node = LocalNode(LocalNodeState.ACTIVE, "w")
    client = await start(backend, hooks=hooks)
    status, answer = await _post(client, "/networks/create", {"Name": "web", "Driver": "overlay"})
    assert (status, answer["message"][:56]) == (403, "Cannot create a multi-host network from a worker node. P")


async def test_a_locked_manager_says_so(backend: Any, hooks: EngineHooks, start: Any) -> None:
    backend.node, backend.gate = LocalNode(LocalNodeState.LOCKED), "Swarm is encrypted"
    client = await start(backend, hooks=hooks)
    refused = (503, {"message": "Swarm is encrypted"})
    assert await _post(client, "/networks/create", {"Name": "web", "Driver": "overlay"}) == refused


# --- connected ---

NOT_ATTACHABLE = (
    "Could not attach to network enc1: rpc error: code = PermissionDenied desc = network enc1 not manually attachable"
)


class Attaching:
    """The node's side of attachments: it remembers what was asked for."""

    def __init__(self, error: SwarmError | None = None) -> None:
        self.targets: list[str] = []
        self.error = error

    async def attach(self, target: str) -> str:
        self.targets.append(target)
        if self.error is not None:
            raise self.error
        return "ov1"


async def test_a_container_is_connected_to_a_network_of_the_swarm_once_the_engine_has_it(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    attaching = Attaching()
    client = await start(backend, hooks=replace(hooks, attach=attaching.attach))
    engine.add_container("c1", {})
    body = {"Container": "c1"}
    assert (await _post(client, "/networks/mine/connect", body))[0] == 201
    assert attaching.targets == []
    assert (await _post(client, "/networks/ov1/connect", body))[0] == 201
    assert len(attaching.targets) == 1
    assert await _post(client, "/networks/enc1/connect", body) == (500, {"message": NOT_ATTACHABLE})
    engine.refuse["GET /containers/c2/json"] = (404, "No such container: c2")
    assert await _post(client, "/networks/ov1/connect", {"Container": "c2"}) == (
        404,
        {"message": "No such container: c2"},
    )
    connected = [call for call in engine.calls if "connect" in call]
    assert connected == ["POST /networks/mine/connect", "POST /networks/ov1/connect"]


@pytest.mark.parametrize(
    ("body", "targets"),
    [
        ({"Image": "busybox"}, 0),
        ({"HostConfig": {"NetworkMode": "host"}}, 0),
        ({"HostConfig": {"NetworkMode": "container:web"}}, 0),
        ({"HostConfig": {"NetworkMode": "bridge"}}, 0),
        ({"HostConfig": {"NetworkMode": "ov1"}}, 1),
        ({"hostconfig": {"networkmode": "ov1"}}, 1),
        ({"NetworkingConfig": {"EndpointsConfig": {"ov1": {}}}}, 1),
        ({"HostConfig": {"NetworkMode": "ov1"}, "NetworkingConfig": {"EndpointsConfig": {"ov1": {}}}}, 1),
    ],
)
async def test_a_container_that_is_made_gets_the_networks_of_the_swarm_that_it_asks_for(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, body: dict[str, Any], targets: int
) -> None:
    attaching = Attaching()
    client = await start(backend, hooks=replace(hooks, attach=attaching.attach))
    await _post(client, "/containers/create?name=c1", body)
    assert engine.calls[-1] == "POST /containers/create"
    assert len(attaching.targets) == targets


async def test_a_refusal_of_the_managers_is_what_the_user_reads(backend: Any, hooks: EngineHooks, start: Any) -> None:
    attaching = Attaching(ResourceExhausted("too many"))
    client = await start(backend, hooks=replace(hooks, attach=attaching.attach))
    status, answer = await _post(client, "/containers/create?name=c1", {"HostConfig": {"NetworkMode": "ov1"}})
    assert status == 500
    assert answer["message"].startswith("Could not attach to network ")
    assert answer["message"].endswith("rpc error: code = ResourceExhausted desc = too many")
