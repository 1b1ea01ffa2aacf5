"""Which networks of the swarm a node can make, and what is said of others."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from engine_api.executor.errors import TaskError
from engine_api.executor.overlay_networks import check_engine, overlay_network
from overlay.model import Network, Subnet
from swarm import api
from swarm.manager.allocator.subnets import VNI_OPTION


def _network(**options: str) -> api.Network:
    network = api.Network(id="n1", driver_state=api.Driver(name="overlay", options={VNI_OPTION: "4097", **options}))
    network.spec.annotations.name = "web"
    network.ipam.configs.add(subnet="10.1.0.0/24", gateway="10.1.0.1")
    return network


def test_a_network_is_made_from_what_the_managers_allocated() -> None:
    subnet = Subnet(IPv4Network("10.1.0.0/24"), IPv4Address("10.1.0.1"), 4097)
    assert overlay_network(_network()) == Network("n1", "web", (subnet,))


def test_a_network_that_shall_be_encrypted_never_carries_plain_text() -> None:
    with pytest.raises(TaskError, match="network web cannot be attached: encryption between nodes is not available"):
        overlay_network(_network(encrypted=""))


@pytest.mark.parametrize("server", ["Docker/29.0.0 (linux)", "Docker/29.0.3 (linux)", "Docker/29.0.1-rc.1 (linux)"])
def test_an_engine_that_fails_with_network_plugins_is_refused_with_the_reason(server: str) -> None:
    with pytest.raises(TaskError, match=r"Docker Engine 29\.0\.\d does not work .* need 29\.0\.4"):
        check_engine(server)


@pytest.mark.parametrize("server", ["Docker/20.10.24 (linux)", "Docker/28.5.2", "Docker/29.0.4", "Docker/29.1.0", "x"])
def test_other_engines_are_not_refused(server: str) -> None:
    check_engine(server)
