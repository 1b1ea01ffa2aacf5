"""The engine's calls to the driver, and the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.errors import OverlayError
from overlay.model import Network, Subnet, mac_of
from overlay.plugin import HostPort, Joined, Plugin, network_of, network_options

WEB = Network("web-id", "web", (Subnet(IPv4Network("10.0.1.0/24"), IPv4Address("10.0.1.1"), 4097),), 1500)
INGRESS = Network("in-id", "ingress", (Subnet(IPv4Network("10.0.0.0/24"), IPv4Address("10.0.0.1"), 4096),), 0, True)
GATEWAY_REQUEST = {"RequestAddressType": "com.docker.network.gateway"}


class Backend:
    """Keeps the calls. fails: every call is refused."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.fails = False

    def _note(self, *call: object) -> None:
        if self.fails:
            raise OverlayError("the kernel said no")
        self.calls.append(call)

    async def join(self, network: Network, endpoint_id: str, address: IPv4Address, mac: str) -> Joined:
        self._note("join", network.id, endpoint_id, str(address), mac)
        return Joined("sw0", network.subnets[0].gateway if network.ingress else None)

    async def leave(self, network_id: str, endpoint_id: str) -> None:
        self._note("leave", network_id, endpoint_id)

    async def publish(self, network_id: str, endpoint_id: str, address: IPv4Address, ports: Sequence[HostPort]) -> None:
        self._note("publish", network_id, endpoint_id, str(address), tuple(ports))

    async def network_gone(self, network_id: str) -> None:
        self._note("gone", network_id)

    async def request_address(self, network_id: str, wanted: str) -> str:
        self._note("request", network_id, wanted)
        return wanted or "10.0.1.77"

    async def release_address(self, network_id: str, address: str) -> None:
        self._note("release", network_id, address)


class Engine:
    """Calls a plugin as the engine does."""

    def __init__(self, plugin: Plugin | None = None) -> None:
        self.backend = Backend()
        self.plugin = plugin or Plugin(self.backend)

    def call(self, path: str, **request: Any) -> Any:
        return asyncio.run(self.plugin.handle(f"/{path}", request))

    def network(self, network: Network, engine_id: str) -> Any:
        options = {"com.docker.network.generic": network_options(network)}
        return self.call("NetworkDriver.CreateNetwork", NetworkID=engine_id, Options=options)

    def endpoint(self, engine_id: str, endpoint_id: str, address: str, mac: str = "") -> Any:
        interface = {"Address": address, "MacAddress": mac}
        return self.call(
            "NetworkDriver.CreateEndpoint", NetworkID=engine_id, EndpointID=endpoint_id, Interface=interface
        )

    def on(self, what: str, engine_id: str, endpoint_id: str, **more: Any) -> Any:
        return self.call(f"NetworkDriver.{what}", NetworkID=engine_id, EndpointID=endpoint_id, **more)


@pytest.fixture
def engine() -> Engine:
    made = Engine()
    assert made.network(WEB, "n1") == {}
    assert made.network(INGRESS, "n2") == {}
    return made


@pytest.mark.parametrize("network", [WEB, INGRESS])
def test_the_options_of_an_engine_network_are_enough_to_build_it(network: Network) -> None:
    assert network_of(network_options(network)) == network


def test_a_network_that_sideswarm_did_not_make_is_refused(engine: Engine) -> None:
    before = engine.plugin.dump()
    assert "made by sideswarm alone" in engine.call("NetworkDriver.CreateNetwork", NetworkID="n3", Options={})["Err"]
    assert "made by sideswarm alone" in engine.call("IpamDriver.RequestPool", Pool="10.9.0.0/24", Options={})["Err"]
    assert engine.plugin.dump() == before


def test_a_container_gets_its_interface_with_the_address_and_its_mac(engine: Engine) -> None:
    mac = mac_of(IPv4Address("10.0.1.5"))
    assert engine.endpoint("n1", "e1", "10.0.1.5/24") == {"Interface": {"MacAddress": mac}}
    assert engine.on("Join", "n1", "e1") == {"InterfaceName": {"SrcName": "sw0", "DstPrefix": "eth"}}
    assert engine.backend.calls == [("join", "web-id", "e1", "10.0.1.5", mac)]


def test_a_mac_that_the_engine_gives_is_kept_and_not_answered(engine: Engine) -> None:
    assert engine.endpoint("n1", "e1", "10.0.1.5/24", "02:42:00:00:00:09") == {"Interface": {}}
    engine.on("Join", "n1", "e1")
    assert engine.backend.calls[-1][-1] == "02:42:00:00:00:09"


def test_only_the_ingress_network_gives_a_default_route(engine: Engine) -> None:
    engine.endpoint("n1", "e1", "10.0.1.5/24")
    engine.endpoint("n2", "e2", "10.0.0.5/24")
    assert "Gateway" not in engine.on("Join", "n1", "e1")
    assert engine.on("Join", "n2", "e2")["Gateway"] == "10.0.0.1"


def test_the_next_daemon_joins_an_endpoint_of_the_last(engine: Engine) -> None:
    engine.endpoint("n1", "e1", "10.0.1.5/24")
    backend = Backend()
    plugin = Plugin(backend)
    plugin.load(json.loads(json.dumps(engine.plugin.dump())))
    assert plugin.dump() == engine.plugin.dump()
    assert "Err" not in Engine(plugin).on("Join", "n1", "e1")
    assert backend.calls == [("join", "web-id", "e1", "10.0.1.5", mac_of(IPv4Address("10.0.1.5")))]


def test_each_call_may_come_twice(engine: Engine) -> None:
    for what in ("Join", "Leave", "RevokeExternalConnectivity", "ProgramExternalConnectivity", "DeleteEndpoint"):
        engine.endpoint("n1", "e1", "10.0.1.5/24")
        assert engine.on(what, "n1", "e1") == engine.on(what, "n1", "e1")
        assert "Err" not in engine.on("EndpointOperInfo", "n1", "e1")
    for _ in range(2):
        assert engine.call("NetworkDriver.DeleteNetwork", NetworkID="n1") == {}


def test_ports_of_the_host_are_published_and_revoked(engine: Engine) -> None:
    engine.endpoint("n2", "e2", "10.0.0.5/24")
    ports = [{"Proto": 6, "Port": 80, "HostPort": 8080}, {"Proto": 17, "Port": 53}]
    engine.on("ProgramExternalConnectivity", "n2", "e2", Options={"com.docker.network.portmap": ports})
    engine.on("RevokeExternalConnectivity", "n2", "e2")
    published = (HostPort("tcp", 8080, 80), HostPort("udp", 0, 53))
    assert [call[-1] for call in engine.backend.calls] == [published, ()]


def test_the_gateway_is_no_address_of_a_container(engine: Engine) -> None:
    pool = {"PoolID": "web-id/10.0.1.0/24", "Address": "10.0.1.1", "Options": GATEWAY_REQUEST}
    assert engine.call("IpamDriver.RequestAddress", **pool)["Address"] == "10.0.1.1/24"
    assert engine.backend.calls == []
    asked = engine.call("IpamDriver.RequestAddress", PoolID="web-id/10.0.1.0/24", Address="")
    assert asked["Address"] == "10.0.1.77/24"


def test_a_network_that_could_not_go_goes_at_the_next_call(engine: Engine) -> None:
    engine.backend.fails = True
    assert engine.call("NetworkDriver.DeleteNetwork", NetworkID="n1") == {"Err": "the kernel said no"}
    engine.backend.fails = False
    assert engine.call("NetworkDriver.DeleteNetwork", NetworkID="n1") == {}
    assert engine.backend.calls == [("gone", "web-id")]


def test_a_network_that_the_engine_has_twice_goes_with_the_second(engine: Engine) -> None:
    engine.network(WEB, "n3")
    engine.call("NetworkDriver.DeleteNetwork", NetworkID="n1")
    assert engine.backend.calls == []
    engine.call("NetworkDriver.DeleteNetwork", NetworkID="n3")
    assert engine.backend.calls == [("gone", "web-id")]


def test_the_endpoints_of_a_network_go_with_it(engine: Engine) -> None:
    engine.endpoint("n1", "e1", "10.0.1.5/24")
    engine.endpoint("n2", "e2", "10.0.0.5/24")
    engine.call("NetworkDriver.DeleteNetwork", NetworkID="n1")
    assert list(engine.plugin.dump()["endpoints"]) == ["e2"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_KEYS = ("NetworkID", "EndpointID", "Options", "Interface", "PoolID", "Pool", "Address")
_CALLS = sorted(Plugin(Backend())._calls)
_VALUES = _JSON | st.sampled_from(
    ["n1", "e1", "web-id/10.0.1.0/24", {"Address": "10.0.1.6/24"}, {"Address": "10.0.1.6/24", "MacAddress": 5}]
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(_CALLS), st.dictionaries(st.sampled_from(_KEYS), _VALUES))
def test_a_call_that_makes_no_sense_gets_an_error_and_changes_nothing(path: str, request: dict[str, Any]) -> None:
    engine = Engine()
    engine.network(WEB, "n1")
    engine.endpoint("n1", "e1", "10.0.1.5/24")
    before = engine.plugin.dump()
    answer = engine.call(path.removeprefix("/"), **request)
    if "Err" in answer:
        assert engine.plugin.dump() == before
    Plugin(Backend()).load(json.loads(json.dumps(engine.plugin.dump())))


@pytest.mark.parametrize("options", [[1], "text", 5, {"com.docker.network.generic": [1]}])
def test_options_of_a_wrong_shape_are_refused(engine: Engine, options: Any) -> None:
    assert "Err" in engine.call("NetworkDriver.CreateNetwork", NetworkID="n3", Options=options)


@pytest.mark.parametrize("mtu", [float("inf"), float("nan"), "x", None])
def test_a_network_with_an_impossible_mtu_is_refused(mtu: Any) -> None:
    options = network_options(WEB)
    options["sideswarm.network"] = json.dumps({**json.loads(options["sideswarm.network"]), "underlay_mtu": mtu})
    with pytest.raises(OverlayError):
        network_of(options)


@settings(max_examples=300, deadline=None)
@given(_JSON | st.fixed_dictionaries({"networks": _JSON, "endpoints": _JSON}))
def test_a_damaged_record_is_refused_as_such_and_changes_nothing(damaged: Any) -> None:
    plugin = Engine().plugin
    before = plugin.dump()
    try:
        plugin.load(damaged)
    except OverlayError:
        assert plugin.dump() == before
