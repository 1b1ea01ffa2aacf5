"""Which network is the ingress network."""

from __future__ import annotations

from random import Random

from swarm import api
from swarm.manager.networks import ingress_network, is_ingress
from swarm.store.store import Store
from swarm.store.tx import Tx


def _network(network_id: str, name: str, ingress: bool = False, label: bool = False) -> api.Network:
    network = api.Network(id=network_id)
    network.spec.annotations.name = name
    network.spec.ingress = ingress
    if label:
        network.spec.annotations.labels["com.docker.swarm.internal"] = "true"
    return network


def test_an_ingress_network_says_so_or_has_the_label_of_the_first_releases() -> None:
    assert is_ingress(_network("a", "mesh", ingress=True))
    assert is_ingress(_network("a", "ingress", label=True))
    assert not is_ingress(_network("a", "ingress"))
    assert not is_ingress(_network("a", "other", label=True))


def test_all_parts_of_a_manager_find_the_same_ingress_network() -> None:
    tx = Tx(Store(), 1000.0, Random(1))
    assert ingress_network(tx) is None
    for network in (_network("c", "plain"), _network("b", "two", ingress=True), _network("a", "one", ingress=True)):
        tx.create(network)
    found = ingress_network(tx)
    assert found is not None
    assert found.id == "a"
