"""What clients send: Go's rules for keys and types, defaults, refusals in stock's words, API versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_api.convert.cluster import CLUSTER_SPEC, INIT_REQUEST, NODE_SPEC, default_cluster_spec
from engine_api.convert.fields import shortest_float32
from engine_api.convert.gojson import JsonError, first_value
from engine_api.convert.objects import SECRET_SPEC
from engine_api.convert.service import SERVICE_SPEC, adjust_for_version
from engine_api.convert.table import Table
from engine_api.errors import ApiError, BadParameter
from swarm import api

TRACE = Path(__file__).parents[2] / "golden/stock-20.10/trace"


def spec_of(body: dict[str, Any], version: tuple[int, ...] = (1, 41)) -> api.ServiceSpec:
    """A service spec as a request of this version gives it."""
    parsed = SERVICE_SPEC.parse(body)
    adjust_for_version(parsed, version)
    spec = api.ServiceSpec()
    SERVICE_SPEC.fill(spec, parsed)
    return spec


def _container(**fields: Any) -> dict[str, Any]:
    return {"Name": "a", "TaskTemplate": {"ContainerSpec": {"Image": "busybox", **fields}}}


def _sent(name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (TRACE / f"{name}.jsonl").read_text().splitlines()]
    return [row[3] for row in rows if row[1].split("?")[0].endswith(("/services/create", "/update")) and row[3]]


@pytest.mark.parametrize("name", ["service_create_full", "service_create_min", "stack_deploy"])
def test_what_the_cli_sends_comes_back_with_nothing_but_defaults_added(name: str) -> None:
    bodies = [body for body in _sent(name) if "TaskTemplate" in body]
    assert bodies
    for body in bodies:
        shown = SERVICE_SPEC.show(spec_of(body))
        _contains(shown, body)


def _contains(shown: Any, sent: Any, path: str = "") -> None:
    """Each thing that was sent and not empty is shown as it was sent."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            if value not in (None, [], 0, "", False) and not (isinstance(value, dict) and not value):
                assert key in shown, f"{path}.{key}"
                _contains(shown[key], value, f"{path}.{key}")
    elif isinstance(sent, list):
        assert len(shown) == len(sent), path
        for one, other in zip(shown, sent, strict=True):
            _contains(one, other, path + "[]")
    else:
        assert shown == sent, path


def test_docker_py_sends_modes_in_lower_case_and_nulls() -> None:
    body: dict[str, Any] = {"Name": "py", "Mode": {"replicated": {"Replicas": 2}}}
    body |= {"Networks": None, "EndpointSpec": None}
    body |= {"TaskTemplate": {"ContainerSpec": {"Image": "busybox", "Args": None, "Healthcheck": {"Test": None}}}}
    assert spec_of(body).replicated.replicas == 2
    assert spec_of({**body, "Mode": {"global": {}}}).WhichOneof("mode") == "global"


def test_all_of_the_docker_py_tour_is_understood() -> None:
    bodies = [body for body in _sent("dockerpy_tour") if "TaskTemplate" in body]
    assert len(bodies) > 5
    for body in bodies:
        assert spec_of(body).task.container.image


def test_an_update_of_the_swarm_by_docker_py_leaves_zeros_where_it_says_nothing() -> None:
    body = {"Orchestration": {"TaskHistoryRetentionLimit": 5}, "CAConfig": {"NodeCertExpiry": 7776000000000000}}
    spec = api.ClusterSpec()
    CLUSTER_SPEC.fill(spec, CLUSTER_SPEC.parse({**body, "Labels": {"py": "1"}}))
    shown = CLUSTER_SPEC.show(spec)
    assert shown["Raft"] == {"KeepOldSnapshots": 0, "ElectionTick": 0, "HeartbeatTick": 0}
    assert shown["Dispatcher"] == {}


def test_init_merges_over_the_defaults_and_zero_keeps_them_except_for_pointers() -> None:
    spec = default_cluster_spec()
    body = {"Raft": {"SnapshotInterval": 0, "ElectionTick": 3}, "Orchestration": {"TaskHistoryRetentionLimit": 0}}
    CLUSTER_SPEC.fill(spec, CLUSTER_SPEC.parse(body))
    assert spec.raft.snapshot_interval == 10_000
    assert spec.raft.election_tick == 3
    assert spec.orchestration.task_history_retention_limit == 0
    assert spec.dispatcher.heartbeat_period.seconds == 5


def test_without_a_mode_there_is_one_replica_and_a_job_runs_once() -> None:
    assert spec_of(_container()).replicated.replicas == 1
    assert spec_of({**_container(), "Mode": {"Replicated": {"Replicas": 0}}}).replicated.replicas == 0
    job = spec_of({**_container(), "Mode": {"ReplicatedJob": {"MaxConcurrent": 3}}}).replicated_job
    assert (job.max_concurrent, job.total_completions) == (3, 3)
    assert spec_of({**_container(), "Mode": {"ReplicatedJob": {}}}).replicated_job.total_completions == 1


def test_a_mount_without_a_type_is_a_bind_and_empty_bind_options_are_dropped() -> None:
    mounts = spec_of(
        _container(
            Mounts=[
                {"Source": "/a", "Target": "/b", "BindOptions": {}},
                {"Source": "/a", "Target": "/c", "BindOptions": {"NonRecursive": True}},
                {"Type": "tmpfs", "Target": "/d", "Consistency": "cached", "TmpfsOptions": {"Options": [["a", "b"]]}},
            ]
        ),
        (1, 46),
    )
    shown = SERVICE_SPEC.show(mounts)["TaskTemplate"]["ContainerSpec"]["Mounts"]
    assert shown[0] == {"Type": "bind", "Source": "/a", "Target": "/b"}
    assert shown[1]["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}
    assert shown[2] == {"Type": "tmpfs", "Target": "/d", "TmpfsOptions": {"Options": [["a", "b"]]}}


def test_pids_are_kept_with_the_container_and_shown_with_the_limits() -> None:
    body = _container()
    body["TaskTemplate"]["Resources"] = {"Limits": {"Pids": 7}}
    spec = spec_of(body)
    assert spec.task.container.pidsLimit == 7
    assert SERVICE_SPEC.show(spec)["TaskTemplate"]["Resources"] == {"Limits": {"Pids": 7}}


_TYPE_ERRORS = [
    ({"Name": 5}, "number into Go struct field ServiceSpec.Name of type string"),
    ({"TaskTemplate": 5}, "number into Go struct field ServiceSpec.TaskTemplate of type swarm.TaskSpec"),
    (
        {"Mode": {"Replicated": {"Replicas": -1}}},
        "number -1 into Go struct field ReplicatedService.Mode.Replicated.Replicas of type uint64",
    ),
    (
        {"mode": {"replicated": {"replicas": 1.5}}},
        "number 1.5 into Go struct field ReplicatedService.Mode.Replicated.Replicas of type uint64",
    ),
    ({"Labels": {"a": 1}}, "number into Go struct field ServiceSpec.Labels of type string"),
    (
        {"TaskTemplate": {"ContainerSpec": {"Args": "sleep"}}},
        "string into Go struct field ContainerSpec.TaskTemplate.ContainerSpec.Args of type []string",
    ),
    (
        {"TaskTemplate": {"ContainerSpec": {"TTY": "yes"}}},
        "string into Go struct field ContainerSpec.TaskTemplate.ContainerSpec.TTY of type bool",
    ),
    (
        {"UpdateConfig": {"Delay": "5s"}},
        "string into Go struct field UpdateConfig.UpdateConfig.Delay of type time.Duration",
    ),
    (
        {"EndpointSpec": {"Ports": [{"TargetPort": 4294967296}]}},
        "number 4294967296 into Go struct field PortConfig.EndpointSpec.Ports.TargetPort of type uint32",
    ),
    ([], "array into Go value of type swarm.ServiceSpec"),
]


@pytest.mark.parametrize(("body", "text"), _TYPE_ERRORS)
def test_a_wrong_type_is_refused_with_gos_message(body: Any, text: str) -> None:
    value, _ = first_value(json.dumps(body))
    with pytest.raises(JsonError) as caught:
        SERVICE_SPEC.parse(value)
    assert str(caught.value) == f"json: cannot unmarshal {text}"


@pytest.mark.parametrize(
    ("table", "body", "text"),
    [
        (NODE_SPEC, {}, 'invalid Role: ""'),
        (NODE_SPEC, {"Role": "WORKER", "Availability": "zzz"}, 'invalid Availability: "zzz"'),
        (CLUSTER_SPEC, {"CAConfig": {"ExternalCAs": [{"URL": "x"}]}}, 'invalid protocol: ""'),
        (SERVICE_SPEC, _container(Privileges={"CredentialSpec": {"File": "a", "Registry": "b", "Config": "c"}}),
         'invalid CredentialSpec: cannot specify both "config", "file", and "registry" credential specs'),
        (SERVICE_SPEC, {"TaskTemplate": {"ContainerSpec": {}, "Resources": {"SwapBytes": 1}}},
         "memory swap provided, but no memory-limit was set"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused_with_stocks_message(table: Table, body: Any, text: str) -> None:
    message: Any = {NODE_SPEC: api.NodeSpec, CLUSTER_SPEC: api.ClusterSpec, SERVICE_SPEC: api.ServiceSpec}[table]()
    with pytest.raises(BadParameter) as caught:
        table.fill(message, table.parse(body))
    assert caught.value.message == text


def test_an_unknown_seccomp_mode_is_the_default_and_an_unknown_protocol_is_tcp() -> None:
    body = _container(Privileges={"Seccomp": {"Mode": "foo"}})
    body["EndpointSpec"] = {"Ports": [{"Protocol": "foo", "TargetPort": 1}]}
    spec = spec_of(body, (1, 44))
    assert SERVICE_SPEC.show(spec)["TaskTemplate"]["ContainerSpec"]["Privileges"]["Seccomp"] == {"Mode": "default"}
    assert spec.endpoint.ports[0].protocol == api.PortConfig.TCP


def test_a_plugin_service_is_refused_as_on_an_engine_that_is_not_experimental() -> None:
    with pytest.raises(ApiError, match='runtime type "plugin" only supported in experimental') as caught:
        spec_of({"Name": "p", "TaskTemplate": {"Runtime": "plugin", "PluginSpec": {"name": "a"}}})
    assert caught.value.status == 500


def test_a_plugin_service_of_a_stock_peer_is_shown() -> None:
    spec = api.ServiceSpec()
    spec.task.generic.kind = "plugin"
    spec.task.generic.payload.value = b"\x0a\x01p\x12\x03r/p\x1a\x06\x0a\x01n\x1a\x01v"
    shown = SERVICE_SPEC.show(spec)["TaskTemplate"]
    assert shown["PluginSpec"] == {"name": "p", "remote": "r/p", "privileges": [{"name": "n", "value": ["v"]}]}
    assert shown["Runtime"] == "plugin"


@pytest.mark.parametrize(
    ("version", "kept"),
    [
        ((1, 52), {"swap", "oom", "seccomp", "caps", "sysctls", "job"}),
        ((1, 46), {"oom", "seccomp", "caps", "sysctls", "job"}),
        ((1, 44), {"seccomp", "caps", "sysctls", "job"}),
        ((1, 41), {"caps", "sysctls", "job"}),
        ((1, 40), {"sysctls"}),
        ((1, 39), set()),
    ],
)
def test_fields_newer_than_the_clients_api_version_are_ignored(version: tuple[int, ...], kept: set[str]) -> None:
    body = _container(
        OomScoreAdj=5,
        Privileges={"Seccomp": {"Mode": "custom"}},
        CapabilityAdd=["CAP_X"],
        Sysctls={"a": "b"},
    )
    body["TaskTemplate"]["Resources"] = {"SwapBytes": 5, "Limits": {"MemoryBytes": 1 << 30}}
    body["Mode"] = {"GlobalJob": {}}
    spec = spec_of(body, version)
    container = spec.task.container
    found = {
        "swap": spec.task.resources.HasField("swap_bytes"),
        "oom": bool(container.oom_score_adj),
        "seccomp": container.privileges.HasField("seccomp"),
        "caps": bool(container.capability_add),
        "sysctls": bool(container.sysctls),
        "job": spec.WhichOneof("mode") == "global_job",
    }
    assert {name for name, there in found.items() if there} == kept


def test_networks_at_the_top_count_for_old_versions_only() -> None:
    body = {**_container(), "Networks": [{"Target": "n"}]}
    assert [network.target for network in spec_of(body, (1, 24)).task.networks] == ["n"]
    assert not spec_of(body, (1, 44)).task.networks


def test_bad_base64_is_refused_with_the_position_of_the_fault() -> None:
    for text, place in (("???", 0), ("eA=", 3), ("eA", 0), ("eHg*", 3), ("eA==x", 4), ("eA=x", 2)):
        with pytest.raises(JsonError, match=f"illegal base64 data at input byte {place}$"):
            SECRET_SPEC.parse({"Data": text})
    assert SECRET_SPEC.parse({"Data": "eHg\n="})["Data"] == b"xx"


def test_half_a_surrogate_pair_does_not_break_a_name() -> None:
    value, _ = first_value('{"Name": "a\\ud800"}')
    assert SECRET_SPEC.parse(value)["Name"] == "a\ufffd"


def test_an_init_request_keeps_the_difference_between_no_pool_and_an_empty_one() -> None:
    assert "DefaultAddrPool" not in INIT_REQUEST.parse({"DefaultAddrPool": None})
    assert INIT_REQUEST.parse({"DefaultAddrPool": []})["DefaultAddrPool"] == []


def test_a_ratio_is_shown_with_the_digits_that_identify_it() -> None:
    spec = spec_of({**_container(), "UpdateConfig": {"MaxFailureRatio": 0.1}})
    assert SERVICE_SPEC.show(spec)["UpdateConfig"]["MaxFailureRatio"] == 0.1
    assert shortest_float32(1.0) == 1
