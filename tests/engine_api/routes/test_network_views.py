"""What clients see of networks: one list of the swarm's and the engine's, each found by what users type."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from yarl import URL

from engine_api.backend import LocalNode, LocalNodeState
from engine_api.engine.client import EngineClient
from engine_api.routes.system import System
from engine_api.server.request import EngineHooks
from overlay.model import Endpoint, Network, NetworkState, Node, Readiness, Service, Subnet
from overlay.plugin import network_of, network_options
from swarm import api
from tests.engine_api.conftest import NOW, golden
from tests.engine_api.fake_engine import FakeEngine

OV1 = "ul8zog7fcztlf6ws185hqx0sd"
CARRIER_ID = "c" * 64


@pytest.fixture
async def hooks(engine: FakeEngine) -> AsyncIterator[EngineHooks]:
    """The routes' way to this engine, which has the recorded networks of an engine in no swarm."""
    engine.networks = [row for row in golden("networks") if row["Scope"] == "local"]
    client = EngineClient(engine.host)
    yield System(client, [], lambda: NOW).hooks
    await client.close()


def carrier(network_id: str = OV1, name: str = "ov1", engine_id: str = CARRIER_ID) -> dict[str, Any]:
    """The engine's network that carries one of the swarm."""
    subnet = Subnet(IPv4Network("10.30.0.0/24"), IPv4Address("10.30.0.1"), 4097)
    return {
        "Name": name,
        "Id": engine_id,
        "Created": "2026-11-22T15:00:00Z",
        "Scope": "local",
        "Driver": "sideswarm",
        "Internal": False,
        "Containers": {"0f" * 32: {"Name": "web.1.x", "IPv4Address": "10.30.0.7/24"}},
        "Options": network_options(Network(network_id, name, (subnet,))),
        "Labels": {},
    }


async def _get(client: Any, path: str) -> tuple[int, Any]:
    async with client.get(URL(f"/v1.41{path}", encoded=True)) as answer:
        return answer.status, await answer.json()


async def _names(client: Any, **filters: list[str]) -> list[str]:
    query = URL.build(query={"filters": json.dumps(filters)}).raw_query_string if filters else ""
    status, rows = await _get(client, f"/networks?{query}")
    assert status == 200, rows
    return [row["Name"] for row in rows]


SWARM = ["ingress", "ov1", "enc1"]
LOCAL = ["docker_gwbridge", "none", "host", "bridge"]


async def test_a_manager_lists_the_networks_of_the_swarm_before_those_of_its_engine(
    backend: Any, hooks: EngineHooks, start: Any
) -> None:
    assert await _names(await start(backend, hooks=hooks)) == SWARM + LOCAL


@pytest.mark.parametrize("taking_part", [False, True])
async def test_a_carrier_is_never_shown_beside_what_it_carries(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, taking_part: bool
) -> None:
    engine.networks += [carrier()] if taking_part else []
    client = await start(backend, hooks=hooks)
    assert await _names(client) == SWARM + LOCAL
    assert await _names(client, name=["ov1"]) == ["ov1"]
    assert await _names(client, driver=["sideswarm"]) == []
    _, shown = await _get(client, "/networks/ov1")
    assert (shown["Id"], shown["Scope"]) == (OV1, "swarm")
    assert bool(shown["Containers"]) is taking_part


@pytest.mark.parametrize("gate", ["This node is not a swarm manager."])
async def test_a_worker_sees_the_networks_that_it_takes_part_in(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, gate: str
) -> None:
    backend.node, backend.gate = LocalNode(LocalNodeState.ACTIVE, "w"), gate
    engine.networks.append(carrier())
    client = await start(backend, hooks=hooks)
    assert await _names(client) == ["ov1", *LOCAL]
    assert await _names(client, scope=["swarm"]) == ["ov1"]
    assert await _names(client, driver=["overlay"]) == ["ov1"]
    for term in ("ov1", OV1, OV1[:8], CARRIER_ID):
        status, shown = await _get(client, f"/networks/{term}?scope=swarm")
        assert (status, shown["Id"], shown["Name"]) == (200, OV1, "ov1")
        assert shown["IPAM"]["Config"] == [{"Subnet": "10.30.0.0/24", "Gateway": "10.30.0.1"}]
        assert shown["Options"] == {"com.docker.network.driver.overlay.vxlanid_list": "4097"}
    async with client.delete("/networks/ov1") as answer:
        assert (answer.status, await answer.json()) == (503, {"message": gate})
    assert not [call for call in engine.calls if call.startswith("DELETE")]


async def test_a_node_shows_what_it_was_told_of_its_networks(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    engine.networks.append(carrier())
    network = network_of(carrier()["Options"])
    node = Node("9sajldf3ee308yb7sb2mislv5", "node1", IPv4Address("10.99.0.1"))
    endpoint = Endpoint("t1", node.id, IPv4Address("10.30.0.7"), Readiness.READY, "s1", "web.1.t1")
    told = NetworkState(network, {node.id: node}, {"s1": Service("s1", "web")}, {"t1": endpoint})
    client = await start(backend, hooks=replace(hooks, network_state={OV1: told}.get))
    _, shown = await _get(client, "/networks/ov1?verbose=true")
    assert shown["Peers"] == [{"Name": "9sajldf3ee30", "IP": "10.99.0.1"}]
    task = {"Name": "web.1.t1", "EndpointID": "t1", "EndpointIP": "10.30.0.7", "Info": {"Host IP": "10.99.0.1"}}
    assert shown["Services"] == {"web": {"VIP": "<nil>", "Ports": [], "LocalLBIndex": 0, "Tasks": [task]}}
    _, short = await _get(client, "/networks/ov1")
    assert "Services" not in short
    _, unused = await _get(client, "/networks/enc1?verbose=true")
    assert "Peers" not in unused


async def test_networks_of_a_swarm_that_the_engine_itself_is_in_are_never_shown(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    theirs = next(row for row in golden("networks") if row["Scope"] == "swarm")
    engine.networks.append({**theirs, "Name": "theirs", "Id": "theirsaaaaaaaaaaaaaaaaaaa"})
    client = await start(backend, hooks=hooks)
    assert await _names(client) == SWARM + LOCAL
    for path in ("theirs", "theirs?scope=swarm", "theirsaaaaaaaaaaaaaaaaaaa"):
        assert (await _get(client, f"/networks/{path}"))[0] == 404


async def test_networks_are_found_by_the_ids_of_both_and_by_name(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    engine.networks.append(carrier())
    client = await start(backend, hooks=hooks)
    bridge = next(row for row in engine.networks if row["Name"] == "bridge")
    for term, found in (
        ("bridge", bridge["Id"]),
        (bridge["Id"], bridge["Id"]),
        (CARRIER_ID, OV1),
        ("cccc", OV1),
        (OV1[:5], OV1),
    ):
        status, shown = await _get(client, f"/networks/{term}")
        assert (status, shown["Id"]) == (200, found)
    assert (await _get(client, "/networks/ov1?scope=local"))[0] == 404
    assert (await _get(client, "/networks/bridge?scope=swarm"))[0] == 404
    refused = 'invalid value for verbose: x: strconv.ParseBool: parsing "x": invalid syntax'
    assert await _get(client, "/networks/ov1?verbose=x") == (400, {"message": refused})


async def test_a_word_that_means_several_networks_is_refused(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    engine.networks += [
        {**carrier(), "Name": "ov1", "Id": f"ul{number}" + "0" * 61, "Options": {}} for number in (1, 2)
    ]
    client = await start(backend, hooks=hooks)
    for word, text in (("ov1", "3 matches found based on name"), ("ul", "3 matches found based on ID prefix")):
        assert await _get(client, f"/networks/{word}") == (400, {"message": f"{text}: network {word} is ambiguous"})
        async with client.delete(f"/networks/{word}") as answer:
            assert answer.status == 400
    assert backend.store.get(api.Network, OV1) is not None


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"name": ["ov"]}, ["ov1"]),
        ({"name": ["1$"]}, ["ov1", "enc1"]),
        ({"name": ["^e"]}, ["enc1"]),
        ({"name": ["[oe][vn]"]}, ["ov1", "enc1"]),
        ({"name": ["["]}, []),
        ({"name": ["ov1", "enc1"]}, ["ov1", "enc1"]),
        ({"id": [OV1[:6]]}, ["ov1"]),
        ({"id": [OV1[6:9]]}, ["ov1"]),
        ({"scope": ["global"]}, []),
        ({"scope": ["swarm"], "name": ["enc"]}, ["enc1"]),
        ({"label": ["tier"]}, ["ov1"]),
        ({"label": ["tier=back"]}, ["ov1"]),
        ({"label": ["tier=front"]}, []),
        ({"label": ["tier", "nosuch"]}, []),
        ({"type": ["custom"], "driver": ["overlay"]}, SWARM),
        ({"type": ["builtin"], "driver": ["overlay"]}, []),
        ({"type": ["builtin", "custom"], "scope": ["swarm"]}, SWARM),
        ({"dangling": ["true"], "scope": ["swarm"]}, SWARM),
        ({"dangling": ["0"], "scope": ["swarm"]}, []),
    ],
)
async def test_filters_choose_among_the_networks_of_the_swarm_as_stock_does(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, filters: dict[str, list[str]], names: list[str]
) -> None:
    def label(network: api.Network) -> api.Network:
        changed = api.Network.FromString(network.SerializeToString())
        changed.driver_state.name = "overlay"
        if network.id == OV1:
            changed.spec.annotations.labels["tier"] = "back"
        return changed

    backend.replace(*map(label, backend.store.all(api.Network)))
    engine.networks = []
    assert await _names(await start(backend, hooks=hooks), **filters) == names


@pytest.mark.parametrize("word", ["(a+)+$", "a*b*c*d*", "x{1}x{1}x{1}x{1}"])
async def test_a_pattern_that_may_take_for_ever_is_refused(
    backend: Any, hooks: EngineHooks, start: Any, word: str
) -> None:
    client = await start(backend, hooks=hooks)
    query = URL.build(query={"filters": json.dumps({"name": [word]})}).raw_query_string
    status, answer = await _get(client, f"/networks?{query}")
    assert (status, answer["message"].startswith(f"filter '{word}' is a regular expression")) == (400, True)


async def test_the_engine_says_what_is_wrong_with_filters(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    engine.refuse["GET /networks"] = (500, "invalid filter: 'type'='x'")
    client = await start(backend, hooks=hooks)
    query = URL.build(query={"filters": json.dumps({"type": ["x"]})}).raw_query_string
    assert await _get(client, f"/networks?{query}") == (500, {"message": "invalid filter: 'type'='x'"})


async def test_without_its_engine_a_manager_says_so(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    await engine.stop()
    status, answer = await _get(await start(backend, hooks=hooks), "/networks")
    assert status == 503
    assert "cannot connect to the Docker Engine" in answer["message"]


# --- removed ---


async def test_each_network_is_removed_by_whom_it_belongs_to(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    enc1 = next(network.id for network in backend.store.all(api.Network) if network.spec.annotations.name == "enc1")
    bridge = next(row["Id"] for row in engine.networks if row["Name"] == "docker_gwbridge")
    engine.networks.append(carrier(enc1, "enc1"))
    client = await start(backend, hooks=hooks)
    for word in ("docker_gwbridge", "enc1"):
        async with client.delete(f"/v1.41/networks/{word}") as answer:
            assert answer.status == 204
    assert [call for call in engine.calls if call.startswith("DELETE")] == [f"DELETE /networks/{bridge}"]
    assert backend.store.get(api.Network, enc1) is None


async def test_prune_removes_what_nobody_uses_and_names_no_carrier(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    engine.networks.append(carrier())
    engine.networks_pruned = ["mine", "ov1"]
    client = await start(backend, hooks=hooks)
    async with client.post("/v1.41/networks/prune") as answer:
        assert (answer.status, await answer.json()) == (200, {"NetworksDeleted": ["enc1", "mine"]})
    left = {network.spec.annotations.name for network in backend.store.all(api.Network)}
    assert left == {"ingress", "ov1"}
    engine.networks_pruned = None
    async with client.post("/v1.41/networks/prune") as answer:
        assert (answer.status, await answer.json()) == (200, {"NetworksDeleted": None})


@pytest.mark.parametrize(
    ("filters", "goes"),
    [
        ({"label": ["nosuch"]}, False),
        ({"label!": ["nosuch"]}, True),
        ({"label!": ["keep"]}, False),
        ({"label": ["keep=yes"]}, True),
        ({"until": ["1h"]}, True),
        ({"until": ["2026-01-01"]}, False),
        ({"until": ["1.5h30m"], "label": ["keep"]}, True),
        ({"until": ["tomorrow"]}, False),
    ],
)
async def test_prune_keeps_what_its_filters_do_not_choose(
    backend: Any, hooks: EngineHooks, start: Any, filters: dict[str, list[str]], goes: bool
) -> None:
    network = api.Network(id="n")
    network.spec.annotations.name = "n"
    network.spec.annotations.labels["keep"] = "yes"
    network.meta.created_at.FromJsonString("2026-11-22T15:00:00Z")
    backend.put(network)
    client = await start(backend, hooks=hooks)
    query = URL.build(query={"filters": json.dumps(filters)}).raw_query_string
    async with client.post(URL(f"/v1.41/networks/prune?{query}", encoded=True)) as answer:
        assert answer.status == 200
    assert (backend.store.get(api.Network, "n") is None) is goes


async def test_prune_removes_nothing_when_the_engine_refuses_the_filters(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    engine.refuse["POST /networks/prune"] = (400, "Invalid filter 'foo'")
    before = {network.id for network in backend.store.all(api.Network)}
    client = await start(backend, hooks=hooks)
    async with client.post("/v1.41/networks/prune?filters=%7B%22foo%22%3A%5B%22x%22%5D%7D") as answer:
        assert (answer.status, await answer.json()) == (400, {"message": "Invalid filter 'foo'"})
    assert {network.id for network in backend.store.all(api.Network)} == before
