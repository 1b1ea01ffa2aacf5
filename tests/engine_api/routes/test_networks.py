"""Networks of the swarm by name, as the CLI asks for them before it makes a service."""

from __future__ import annotations

from typing import Any

import pytest

from swarm import api

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
