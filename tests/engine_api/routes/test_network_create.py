"""Networks of the swarm that are refused before the managers see them: stock's texts, and nothing is made anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine_api.backend import LocalNode, LocalNodeState
from engine_api.convert.ipam import ipam_error, prefix_error
from engine_api.engine.client import EngineClient
from engine_api.routes.system import System
from engine_api.server.request import EngineHooks
from swarm import api
from tests.engine_api.conftest import NOW, golden
from tests.engine_api.fake_engine import FakeEngine
from tests.engine_api.routes.test_network_views import carrier


@pytest.fixture
async def hooks(engine: FakeEngine) -> AsyncIterator[EngineHooks]:
    """The routes' way to an engine with the recorded networks, one of its own, and a driver plugin."""
    engine.networks = [row for row in golden("networks") if row["Scope"] == "local"]
    engine.networks.append({"Name": "mine", "Id": "m" * 64, "Driver": "bridge", "Scope": "local", "Options": {}})
    engine.info["Plugins"] = {"Network": ["bridge", "host", "null", "overlay", "acme/net:latest"]}
    client = EngineClient(engine.host)
    yield System(client, [], lambda: NOW).hooks
    await client.close()


async def _create(client: Any, body: Any, version: str = "1.41") -> tuple[int, str]:
    async with client.post(f"/v{version}/networks/create", json=body) as answer:
        shown = await answer.json()
        return answer.status, shown.get("message", "")


def _overlay(**fields: Any) -> dict[str, Any]:
    return {"Name": "web", "Driver": "overlay", **fields}


OWN_SETTINGS = "user specified configurations are not supported if the network depends on a configuration network"
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "taken by the swarm": (_overlay(Name="ov1"), 409, "network with name ov1 already exists"),
    "taken by the engine": (_overlay(Name="mine"), 409, "network with name mine already exists"),
    "none": (_overlay(Name="none"), 403, "operation is not permitted on predefined none network"),
    "default": (_overlay(Name="default"), 403, "operation is not permitted on predefined default network"),
    "blank": (_overlay(Name="  "), 500, "invalid name:   "),
    "subnet": (
        _overlay(IPAM={"Config": [{"Subnet": "10.1.0.0/33"}]}),
        500,
        "Invalid subnet 10.1.0.0/33 : invalid CIDR address: 10.1.0.0/33",
    ),
    "no subnet": (
        _overlay(IPAM={"Config": [{"Gateway": "10.1.0.1"}]}),
        500,
        "Invalid subnet  : invalid CIDR address: ",
    ),
    "scope": (_overlay(Scope="local"), 403, "cannot downgrade network scope for overlay networks"),
    "ingress": ({"Name": "web", "Ingress": True}, 403, "Ingress network can only be global scope network"),
    "no driver": (
        {"Name": "web", "Scope": "swarm"},
        400,
        "rpc error: code = InvalidArgument desc = driver name: if driver is specified name is required",
    ),
    "plugin of the engine": (
        {"Name": "web", "Driver": "acme/net:latest", "Scope": "swarm"},
        400,
        "rpc error: code = InvalidArgument desc = error during lookup of plugin acme/net:latest",
    ),
    "unknown driver": ({"Name": "web", "Driver": "nosuch", "Scope": "swarm"}, 404, 'plugin "nosuch" not found'),
    "config-from with subnet": (
        _overlay(ConfigFrom={"Network": "c"}, IPAM={"Config": [{"Subnet": "10.1.0.0/24"}]}),
        403,
        OWN_SETTINGS,
    ),
    "config-from with labels": (_overlay(ConfigFrom={"Network": "c"}, Labels={"a": "b"}), 403, OWN_SETTINGS),
    "config-from with options": (
        _overlay(ConfigFrom={"Network": "c"}, Options={"a": "b"}),
        403,
        "network driver options are not supported if the network depends on a configuration network",
    ),
    "type": (
        _overlay(Attachable="yes"),
        400,
        "json: cannot unmarshal string into Go struct field NetworkCreateRequest.Attachable of type bool",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_network_is_refused_and_nothing_is_made(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any, name: str
) -> None:
    body, status, text = REFUSED[name]
    before = {network.id for network in backend.store.all(api.Network)}
    client = await start(backend, hooks=hooks)
    assert await _create(client, body) == (status, text)
    assert {network.id for network in backend.store.all(api.Network)} == before
    assert not [call for call in engine.calls if call.startswith("POST")]


async def test_the_engine_is_not_asked_for_a_network_whose_name_the_swarm_has(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    client = await start(backend, hooks=hooks)
    assert await _create(client, {"Name": "ov1"}) == (409, "network with name ov1 already exists")
    assert not [call for call in engine.calls if call.startswith("POST")]


async def test_a_carrier_that_is_left_keeps_no_name_from_the_swarm(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    engine.networks.append(carrier("gone", "web"))
    client = await start(backend, hooks=hooks)
    assert (await _create(client, _overlay()))[0] == 201


async def test_a_configuration_for_other_networks_is_the_engines(
    backend: Any, engine: FakeEngine, hooks: EngineHooks, start: Any
) -> None:
    client = await start(backend, hooks=hooks)
    assert (await _create(client, _overlay(ConfigOnly=True)))[0] == 201
    assert engine.calls[-1] == "POST /networks/create"


async def test_everything_that_a_user_can_ask_for_reaches_the_managers(
    backend: Any, hooks: EngineHooks, start: Any
) -> None:
    client = await start(backend, hooks=hooks)
    body = _overlay(
        EnableIPv6=True,
        Internal=True,
        Attachable=True,
        Options={"encrypted": ""},
        Labels={"a": "b"},
        IPAM={
            "Options": {"x": "y"},
            "Config": [
                {
                    "Subnet": "10.1.0.0/16",
                    "IPRange": "10.1.2.0/24",
                    "Gateway": "10.1.0.9",
                    "AuxiliaryAddresses": {"router": "10.1.2.3"},
                }
            ],
        },
    )
    assert (await _create(client, body))[0] == 201
    [spec] = [network.spec for network in backend.store.all(api.Network) if network.spec.annotations.name == "web"]
    assert spec == api.NetworkSpec(
        annotations=api.Annotations(name="web", labels={"a": "b"}),
        driver_config=api.Driver(name="overlay", options={"encrypted": ""}),
        ipv6_enabled=True,
        internal=True,
        attachable=True,
        ipam=api.IPAMOptions(
            driver=api.Driver(name="default", options={"x": "y"}),
            configs=[
                api.IPAMConfig(
                    subnet="10.1.0.0/16", range="10.1.2.0/24", gateway="10.1.0.9", reserved={"router": "10.1.2.3"}
                )
            ],
        ),
    )


# --- newer engines ---

NEWER: dict[str, tuple[dict[str, Any], str]] = {
    "empty name": (_overlay(Name=""), "invalid name: name is empty"),
    "gateway": (
        _overlay(IPAM={"Config": [{"Subnet": "10.44.0.0/24", "Gateway": "10.45.0.1"}]}),
        "invalid network config:\ninvalid gateway 10.45.0.1: parent subnet 10.44.0.0/24 doesn't contain this address",
    ),
    "range": (
        _overlay(IPAM={"Config": [{"Subnet": "10.44.0.0/24", "IPRange": "10.45.0.0/25"}]}),
        "invalid network config:\ninvalid ip-range 10.45.0.0/25: parent subnet 10.44.0.0/24 doesn't contain ip-range",
    ),
    "host bits": (
        _overlay(IPAM={"Config": [{"Subnet": "10.44.0.1/24"}]}),
        "invalid network config:\ninvalid subnet 10.44.0.1/24: it should be 10.44.0.0/24",
    ),
}


@pytest.mark.parametrize("name", NEWER)
async def test_newer_engines_refuse_addresses_before_the_managers_do(
    backend: Any, hooks: EngineHooks, start: Any, engine: FakeEngine, name: str
) -> None:
    body, text = NEWER[name]
    client = await start(backend, "1.55", hooks=hooks)
    assert await _create(client, body, "1.44") == (400, text)


@pytest.mark.parametrize(
    ("engine_version", "text"),
    [
        ("1.45", "invalid network config:\ninvalid subnet nope: invalid CIDR block notation"),
        ("1.55", "invalid JSON: netip.ParsePrefix(\"nope\"): no '/'"),
    ],
)
async def test_each_generation_has_its_text_for_what_is_no_subnet(
    backend: Any, hooks: EngineHooks, start: Any, engine_version: str, text: str
) -> None:
    client = await start(backend, engine_version, hooks=hooks)
    assert await _create(client, _overlay(IPAM={"Config": [{"Subnet": "nope"}]}), "1.44") == (400, text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("10.0.0.0/24", ""),
        ("x/24", 'netip.ParsePrefix("x/24"): ParseAddr("x"): unable to parse IP'),
        ("10.0.0.0/x", 'netip.ParsePrefix("10.0.0.0/x"): bad bits after slash: "x"'),
        ("10.0.0.0/33", 'netip.ParsePrefix("10.0.0.0/33"): prefix length out of range'),
        (
            "10.0.0.0/99999999999999999999",
            'netip.ParsePrefix("10.0.0.0/99999999999999999999"): bad bits after slash: "99999999999999999999"',
        ),
    ],
)
def test_what_is_no_prefix_is_named_as_go_names_it(text: str, error: str) -> None:
    assert prefix_error(text) == error


def test_all_that_is_wrong_with_addresses_is_said_at_once() -> None:
    config = {
        "Subnet": "10.1.0.0/16",
        "IPRange": "fd00::/64",
        "Gateway": "nope",
        "AuxiliaryAddresses": {"a": "10.2.0.1", "b": "fd00::1"},
    }
    assert ipam_error([config, {"Subnet": "10.1.0.0/16", "IPRange": "10.0.0.0/8"}], False) == (
        "invalid network config:\n"
        "* invalid ip-range fd00::/64: parent subnet is an IPv4 block\n"
        "* invalid gateway nope: invalid address\n"
        "* invalid auxiliary address a: parent subnet 10.1.0.0/16 doesn't contain this address\n"
        "* invalid auxiliary address b: parent subnet is an IPv4 block\n"
        "* invalid ip-range 10.0.0.0/8: CIDR block is bigger than its parent subnet 10.1.0.0/16"
    )
    assert ipam_error([{"Subnet": "fd00::1/64"}], False) == ""
    assert ipam_error([{"Subnet": "fd00::1/64"}], True).endswith("it should be fd00::/64")


async def test_a_worker_beside_a_newer_engine_is_told_what_newer_engines_say(
    backend: Any, hooks: EngineHooks, start: Any
) -> None:
    backend.node, backend.gate = LocalNode(LocalNodeState.ACTIVE, "w"), "This node is not a swarm manager."
    client = await start(backend, "1.55", hooks=hooks)
    status, text = await _create(client, _overlay(), "1.44")
    assert (status, text[:72]) == (403, 'This node is not a swarm manager. Use "docker swarm init" or "docker swa')
