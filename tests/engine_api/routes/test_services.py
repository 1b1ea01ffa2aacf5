"""Services, tasks and nodes through HTTP, against what a stock engine answered for the same cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_api.convert.objects import TASK
from engine_api.convert.service import SERVICE, SERVICE_SPEC
from engine_api.errors import ApiError
from engine_api.server.fragments import Fragments
from engine_api.server.request import EngineHooks
from swarm import api
from swarm.api import rpc

_SPEC = {"TaskTemplate": {"ContainerSpec": {"Image": "busybox:latest"}}}


async def _json(client: Any, method: str, path: str, status: int = 200, **request: Any) -> Any:
    async with client.request(method, path, **request) as answer:
        text = await answer.text()
        assert answer.status == status, text
        return json.loads(text) if text else None


def _recorded(golden: str) -> Any:
    return json.loads((Path(__file__).parents[2] / "golden/stock-20.10/api" / f"{golden}.json").read_text())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1.41/services", "services"),
        ("/v1.41/services/full", "service_full"),
        ("/v1.41/services/ttyhyq24", "service_full"),
        ("/v1.41/services/min?insertDefaults=true", "service_min_defaults"),
        ("/v1.41/tasks", "tasks"),
        ("/v1.41/secrets", "secrets"),
        ("/v1.41/secrets/sec1", "secret_by_name"),
        ("/v1.41/configs", "configs"),
        ("/v1.41/nodes", "nodes_3"),
        ("/v1.41/nodes/node2", "node_by_name"),
    ],
)
async def test_reads_answer_what_was_stored_in_the_recorded_shape(
    backend: Any, start: Any, path: str, name: str
) -> None:
    assert await _json(await start(backend), "GET", path) == _recorded(name)


async def test_the_status_of_services_is_counted_from_their_tasks(backend: Any, start: Any) -> None:
    found = await _json(await start(backend), "GET", "/v1.41/services?status=true")
    expected = {service["ID"]: service["ServiceStatus"] for service in _recorded("services_status")}
    assert {service["ID"]: service["ServiceStatus"] for service in found} == expected
    assert all(
        "ServiceStatus" not in service
        for service in await _json(await start(backend), "GET", "/v1.40/services?status=true")
    )


async def test_old_clients_find_networks_at_the_top_of_the_spec(backend: Any, start: Any) -> None:
    found = await _json(await start(backend), "GET", "/v1.24/services/full")
    assert found["Spec"]["Networks"] == found["Spec"]["TaskTemplate"]["Networks"]


async def test_a_service_without_a_name_gets_one(backend: Any, start: Any) -> None:
    client = await start(backend)
    created = await _json(client, "POST", "/v1.41/services/create", 201, json=_SPEC)
    name = (await _json(client, "GET", f"/v1.41/services/{created['ID']}"))["Spec"]["Name"]
    assert name.count("_") == 1
    assert name.replace("_", "").isalpha()


async def test_a_made_up_name_that_is_taken_is_made_up_again(backend: Any, start: Any) -> None:
    first = await start(backend)
    second = await start(backend)  # makes the same names up, having the same seed
    await _json(first, "POST", "/v1.41/services/create", 201, json=_SPEC)
    await _json(second, "POST", "/v1.41/services/create", 201, json=_SPEC)


async def test_names_of_networks_become_ids_and_predefined_ones_their_twins(backend: Any, start: Any) -> None:
    host = api.Network(id="h" * 25)
    host.spec.annotations.name = "host"
    backend.put(host)
    client = await start(backend)
    template = {**_SPEC["TaskTemplate"], "Networks": [{"Target": "ov1", "Aliases": ["a"]}, {"Target": "host"}]}
    async with client.post("/v1.41/services/create", json={"TaskTemplate": template}):
        method, request = backend.calls[-1]
    assert method == rpc.CREATE_SERVICE.name
    assert SERVICE_SPEC.show(request.spec)["TaskTemplate"]["Networks"] == [
        {"Target": "ul8zog7fcztlf6ws185hqx0sd", "Aliases": ["a"]},
        {"Target": "h" * 25},
    ]


async def test_credentials_are_kept_over_updates_and_never_shown(backend: Any, start: Any) -> None:
    client = await start(backend)
    spec = {"Name": "a", **_SPEC}
    headers = {"X-Registry-Auth": "bG9naW4="}
    created = await _json(client, "POST", "/v1.41/services/create", 201, json=spec, headers=headers)
    path = f"/v1.41/services/{created['ID']}"
    shown = await _json(client, "GET", path)
    answer = await _json(client, "POST", f"{path}/update?version={shown['Version']['Index']}", json=spec)
    assert answer == {"Warnings": None}
    service = backend.store.get(api.Service, created["ID"])
    assert service.spec.task.container.pull_options.registry_auth == "bG9naW4="
    assert "bG9naW4=" not in json.dumps(await _json(client, "GET", path))


async def test_images_are_pinned_for_clients_that_do_not_do_it_themselves(backend: Any, start: Any) -> None:
    async def pin(image: str, auth: str) -> str:
        if image.startswith("nosuch"):
            raise ApiError("no such registry")
        return f"{image}@sha256:{'0' * 64}"

    client = await start(backend, hooks=EngineHooks(pin_image=pin))
    created = await _json(client, "POST", "/v1.29/services/create", 201, json=_SPEC)
    image = backend.store.get(api.Service, created["ID"]).spec.task.container.image
    assert image == f"busybox:latest@sha256:{'0' * 64}"
    spec = {"TaskTemplate": {"ContainerSpec": {"Image": "nosuch/img"}}}
    created = await _json(client, "POST", "/v1.29/services/create", 201, json=spec)
    assert created["Warnings"][0].startswith("image nosuch/img could not be accessed on a registry to record\n")


async def test_tasks_are_filtered_by_names_of_services_and_nodes(backend: Any, start: Any) -> None:
    client = await start(backend)
    found = await _json(client, "GET", '/v1.41/tasks?filters={"service":["full"],"desired-state":["running"]}')
    assert {task["ServiceID"] for task in found} == {"ttyhyq24mkt4jqw4zujd88xvu"}
    request = backend.calls[-1][1]
    assert list(request.filters.runtimes) == ["container", ""]
    by_node = await _json(client, "GET", '/v1.41/tasks?filters={"node":["node1"]}')
    assert {task["NodeID"] for task in by_node} == {"9sajldf3ee308yb7sb2mislv5"}
    await _json(client, "GET", '/v1.41/tasks?filters={"_up-to-date":{"true":true}}')
    assert backend.calls[-1][1].filters.up_to_date


async def test_modes_filter_services(backend: Any, start: Any) -> None:
    client = await start(backend)
    for mode, names in (("global", {"glob"}), ("replicated-job", {"job"}), ("global-job", {"gjob"})):
        found = await _json(client, "GET", f'/v1.41/services?filters={{"mode":["{mode}"]}}')
        assert {service["Spec"]["Name"] for service in found} == names


async def test_init_hands_over_a_merged_spec_and_join_complete_addresses(empty_backend: Any, start: Any) -> None:
    client = await start(empty_backend)
    body = {"ListenAddr": "0.0.0.0", "Spec": {"Orchestration": {"TaskHistoryRetentionLimit": 2}}, "SubnetSize": 26}
    assert await _json(client, "POST", "/v1.41/swarm/init", json=body) == "9sajldf3ee308yb7sb2mislv5"
    request = empty_backend.inits[-1]
    assert request.listen_addr == "0.0.0.0:2377"
    assert request.spec.orchestration.task_history_retention_limit == 2
    assert request.spec.ca_config.node_cert_expiry.seconds == 90 * 24 * 3600
    assert (request.default_addr_pool, request.subnet_size, request.data_path_port) == (("10.0.0.0/8",), 26, 4789)
    await _json(client, "POST", "/v1.38/swarm/init", json={**body, "DefaultAddrPool": ["10.20.0.0/16"]})
    assert (empty_backend.inits[-1].default_addr_pool, empty_backend.inits[-1].subnet_size) == (("10.0.0.0/8",), 24)
    await _json(client, "POST", "/v1.41/swarm/init", json={**body, "DefaultAddrPool": []})
    assert empty_backend.inits[-1].default_addr_pool == ()
    join = {"ListenAddr": "0.0.0.0:2377", "RemoteAddrs": ["10.99.0.1"], "JoinToken": "t", "Availability": "drain"}
    await _json(client, "POST", "/v1.41/swarm/join", json=join)
    assert empty_backend.joins[-1].remote_addrs == ("10.99.0.1:2377",)
    assert empty_backend.joins[-1].availability == "drain"


async def test_unlock_hands_the_key_over_and_the_key_is_shown_in_its_written_form(backend: Any, start: Any) -> None:
    client = await start(backend)
    await _json(client, "POST", "/v1.41/swarm/unlock", json={"UnlockKey": "SWMKEY-1-x"})
    assert backend.keys == ["SWMKEY-1-x"]
    assert await _json(client, "GET", "/v1.41/swarm/unlockkey") == {"UnlockKey": ""}
    backend.unlock_key = bytes(32)
    assert await _json(client, "GET", "/v1.41/swarm/unlockkey") == {"UnlockKey": "SWMKEY-1-" + "A" * 43}


async def test_a_list_of_tasks_is_made_from_fragments_and_follows_new_versions(backend: Any, start: Any) -> None:
    client = await start(backend)
    before = await _json(client, "GET", "/v1.41/tasks")
    assert await _json(client, "GET", "/v1.41/tasks") == before
    task = next(task for task in backend.store.all(api.Task) if task.id == before[0]["ID"])
    task.desired_state = api.REMOVE
    task.meta.version.index += 1
    assert (await _json(client, "GET", "/v1.41/tasks"))[0]["DesiredState"] == "remove"


def test_fragments_stay_within_their_limit() -> None:
    fragments = Fragments(bytes_max=1000)
    for n in range(50):
        task = api.Task(id=f"t{n}")
        task.meta.version.index = 1
        fragments.of(TASK, task)
    assert 0 < fragments.bytes_kept <= 1000
    service = api.Service(id="t49")
    service.meta.version.index = 1
    service.spec.task.container.image = "i"
    assert json.loads(fragments.of(SERVICE, service))["Spec"]
