"""Every recorded network of the swarm is shown as recorded: by the managers, and by a node that takes part in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from engine_api.convert.network import carried_resource, in_generation, network_resource, peers, services
from overlay.model import Endpoint, Network, NetworkState, Node, Port, Readiness, Service, Subnet
from overlay.plugin import network_options
from swarm import api
from swarm.manager.allocator.subnets import VNI_OPTION
from tests.engine_api.conftest import golden

# --- from the managers ---

FROM_MANAGERS = ("networks_after_init", "networks", "networks_left", "networks_inactive")


def network_of(shown: Mapping[str, Any]) -> api.Network:
    """A stored network that is shown like this."""
    network = api.Network(id=shown["Id"])
    network.meta.created_at.FromJsonString(shown["Created"])
    spec = network.spec
    spec.annotations.name = shown["Name"]
    spec.annotations.labels.update(shown["Labels"] or {})
    spec.internal, spec.attachable, spec.ingress = shown["Internal"], shown["Attachable"], shown["Ingress"]
    if shown["Driver"]:
        network.driver_state.name = shown["Driver"]
        network.driver_state.options.update(shown["Options"] or {})
    if shown["IPAM"]["Driver"]:
        network.ipam.driver.name = shown["IPAM"]["Driver"]
    for config in shown["IPAM"]["Config"] or ():
        network.ipam.configs.add(subnet=config["Subnet"], gateway=config["Gateway"])
    return network


def _recorded() -> list[Any]:
    found = [golden("network_enc1_unused"), golden("network_overlap_inspect")]
    for name in FROM_MANAGERS:
        found += [row for row in golden(name) if row["Scope"] == "swarm" and row["Containers"] is None]
    return [pytest.param(shown, id=f"{shown['Name']}-{number}") for number, shown in enumerate(found)]


@pytest.mark.parametrize("shown", _recorded())
def test_a_network_of_the_managers_is_shown_as_recorded(shown: dict[str, Any]) -> None:
    assert json.dumps(network_resource(network_of(shown))) == json.dumps(shown)


def test_there_are_recorded_networks_of_managers() -> None:
    assert len(_recorded()) >= 6


# --- from a node that takes part ---

TAKING_PART = ("network_ov1", "network_ov1_verbose", "network_ingress_verbose", "network_ov1_attached")


def _state(shown: Mapping[str, Any]) -> NetworkState:
    """What a node was told that shows this."""
    vnis = shown["Options"][VNI_OPTION].split(",")
    subnets = tuple(
        Subnet(IPv4Network(config["Subnet"]), IPv4Address(config["Gateway"]), int(vni))
        for config, vni in zip(shown["IPAM"]["Config"], vnis, strict=True)
    )
    network = Network(shown["Id"], shown["Name"], subnets, ingress=shown["Ingress"], internal=shown["Internal"])
    nodes = {peer["Name"]: Node(peer["Name"], "", IPv4Address(peer["IP"])) for peer in shown["Peers"]}
    by_address = {str(node.address): node.id for node in nodes.values()}
    state = NetworkState(network, nodes, {}, {})
    told: dict[str, Service] = {}
    endpoints: dict[str, Endpoint] = {}
    for name, service in shown.get("Services", {}).items():
        virtual_ip = None if service["VIP"] == "<nil>" else IPv4Address(service["VIP"])
        ports = tuple(Port("tcp", 8080, 80) for _ in service["Ports"])
        told[name] = Service(name, name, virtual_ip, ports=ports)
        for task in service["Tasks"]:
            node_id = by_address[task["Info"]["Host IP"]]
            address = IPv4Address(task["EndpointIP"])
            endpoints[task["EndpointID"]] = Endpoint(
                task["EndpointID"], node_id, address, Readiness.READY, name, task["Name"]
            )
    return NetworkState(state.network, nodes, told, endpoints)


def _carrier(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's network beside it."""
    return {
        "Name": shown["Name"],
        "Id": "c" * 64,
        "Created": shown["Created"],
        "Scope": "local",
        "Driver": "sideswarm",
        "Containers": shown["Containers"],
        "Options": network_options(_state(shown).network),
        "Labels": {},
    }


def _comparable(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Without the order of nodes and tasks, and the numbers that only IPVS has."""
    out = json.loads(json.dumps(shown))
    out["Peers"] = sorted(out["Peers"], key=lambda peer: peer["Name"])
    for service in out.get("Services", {}).values():
        service["LocalLBIndex"] = 0
        service["Tasks"] = sorted(service["Tasks"], key=lambda task: task["EndpointID"])
    return dict(out)


@pytest.mark.parametrize("name", TAKING_PART)
def test_a_manager_that_takes_part_shows_what_is_recorded(name: str) -> None:
    shown = golden(name)
    state = _state(shown)
    ours = carried_resource(_carrier(shown), network_resource(network_of(shown)))
    ours["Peers"] = peers(state)
    if "Services" in shown:
        ours["Services"] = services(state, "<nil>")
    assert list(ours) == list(shown)
    assert _comparable(ours) == _comparable(shown)


@pytest.mark.parametrize("name", ["networks_worker"])
def test_a_worker_shows_the_network_of_the_mesh_as_recorded(name: str) -> None:
    shown = next(row for row in golden(name) if row["Name"] == "ingress")
    ours = carried_resource(_carrier(shown), None)
    if "Peers" in shown:
        ours["Peers"] = peers(_state(shown))
    assert list(ours) == list(shown)
    assert _comparable(ours) == _comparable(shown)


def test_a_worker_shows_of_a_network_what_it_was_told() -> None:
    shown = golden("network_ov1_on_worker")
    ours = carried_resource(_carrier(shown), None)
    ours["Peers"] = peers(_state(shown))
    ours["Services"] = services(_state(shown), "<nil>")
    unknown = {"Labels": {}, "Attachable": False, "Options": {VNI_OPTION: "4097"}}  # the carrier does not have them
    assert _comparable(ours) == {**_comparable(shown), **unknown}


def test_a_carrier_that_a_user_spoiled_is_still_shown() -> None:
    carrier = {"Name": "x", "Created": "", "Options": {"sideswarm.id": "n1", "sideswarm.network": "nonsense"}}
    assert carried_resource(carrier, None)["Id"] == "n1"


# --- newer engines ---


@pytest.mark.parametrize("engine", [(1, 41), (1, 45)])
def test_older_engines_show_no_member_for_ipv4(engine: tuple[int, ...]) -> None:
    shown = golden("network_enc1_unused")
    assert in_generation(shown, engine) == shown


def test_a_newer_engine_shows_the_members_and_the_order_of_its_generation() -> None:
    shown = in_generation(golden("network_ov1_verbose"), (1, 55))
    assert list(shown) == [
        "Name",
        "Id",
        "Created",
        "Scope",
        "Driver",
        "EnableIPv4",
        "EnableIPv6",
        "IPAM",
        "Internal",
        "Attachable",
        "Ingress",
        "ConfigFrom",
        "ConfigOnly",
        "Options",
        "Labels",
        "Peers",
        "Containers",
        "Services",
    ]
    listed = in_generation(golden("network_enc1_unused"), (1, 55), listed=True)
    assert "Containers" not in listed
    assert in_generation(golden("network_enc1_unused"), (1, 55))["Containers"] == {}
