"""Every recorded object parses to protobuf and is shown again exactly: keys, their order, null, {} and []."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from certs.root import RootCA
from engine_api.backend import LocalNode, LocalNodeState
from engine_api.convert.cluster import NODE, SWARM, info_section
from engine_api.convert.objects import CONFIG, SECRET, TASK
from engine_api.convert.service import SERVICE
from swarm import api

API = Path(__file__).parents[2] / "golden/stock-20.10/api"
_TABLES = {
    "node": (NODE, api.Node),
    "secret": (SECRET, api.Secret),
    "config": (CONFIG, api.Config),
    "swarm": (SWARM, api.Cluster),
    "task": (TASK, api.Task),
    "job_tasks": (TASK, api.Task),
    "service": (SERVICE, api.Service),
    "stack": (SERVICE, api.Service),
    "up_": (SERVICE, api.Service),
    "job_rerun": (SERVICE, api.Service),
}
_NOT_STORED = {"ServiceStatus"}


def _objects() -> list[Any]:
    out = []
    for path in sorted(API.glob("*.json")):
        for prefix, (table, message) in _TABLES.items():
            if path.stem.startswith(prefix) and path.stem != "swarm_rotating":
                body = json.loads(path.read_text())
                bodies = body if isinstance(body, list) else [body]
                out += [pytest.param(table, message, shown, id=f"{path.stem}-{shown['ID']}") for shown in bodies]
    return out


@pytest.mark.parametrize(("table", "message", "shown"), _objects())
def test_a_recorded_object_survives_both_directions(table: Any, message: Any, shown: dict[str, Any]) -> None:
    expected = {key: value for key, value in shown.items() if key not in _NOT_STORED}
    obj = message()
    table.fill(obj, table.parse(shown))
    again = table.show(message.FromString(obj.SerializeToString()))
    assert json.dumps(again) == json.dumps(expected)


def test_during_a_root_rotation_the_new_root_is_named_as_issuer_and_the_old_one_is_trusted() -> None:
    before, rotating = (json.loads((API / f"{name}.json").read_text()) for name in ("swarm_after_ca", "swarm_rotating"))
    cluster = api.Cluster()
    SWARM.fill(cluster, SWARM.parse(rotating))
    cluster.root_ca.root_rotation.ca_cert = before["TLSInfo"]["TrustRoot"].encode()
    shown = SWARM.show(cluster)
    assert shown["RootRotationInProgress"] is True
    assert shown["TLSInfo"]["TrustRoot"] == rotating["TLSInfo"]["TrustRoot"]
    assert shown["TLSInfo"]["CertIssuerPublicKey"] == before["TLSInfo"]["CertIssuerPublicKey"]


def test_signing_keys_are_taken_and_never_shown() -> None:
    cluster = api.Cluster()
    SWARM.fill(cluster, SWARM.parse({"Spec": {"CAConfig": {"SigningCACert": "cert", "SigningCAKey": "key"}}}))
    assert cluster.spec.ca_config.signing_ca_key == b"key"
    assert SWARM.show(cluster)["Spec"]["CAConfig"] == {}


def test_the_data_of_a_secret_is_never_shown() -> None:
    secret = api.Secret(id="s", spec=api.SecretSpec(data=b"top secret"))
    assert "Data" not in SECRET.show(secret)["Spec"]


def _info(name: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads((API / f"{name}.json").read_text())["Swarm"]
    return shown


def _local(shown: dict[str, Any]) -> LocalNode:
    return LocalNode(
        LocalNodeState(shown["LocalNodeState"]),
        shown["NodeID"],
        shown["NodeAddr"],
        shown["ControlAvailable"],
        shown["Error"],
        tuple((peer["NodeID"], peer["Addr"]) for peer in shown["RemoteManagers"] or ()),
    )


@pytest.mark.parametrize("name", ["info_inactive", "info_locked", "info_worker", "info_error"])
def test_the_info_of_a_node_that_is_not_a_manager_is_as_recorded(name: str) -> None:
    shown = _info(name)
    assert info_section(_local(shown)) == shown


def test_the_info_of_a_manager_without_quorum_is_as_recorded() -> None:
    shown = _info("info_noquorum")
    assert json.dumps(info_section(_local(shown), None, None, shown["Error"])) == json.dumps(shown)


@pytest.mark.parametrize("name", ["info_manager", "info_2managers"])
def test_the_info_of_a_manager_is_as_recorded(name: str) -> None:
    shown = _info(name)
    cluster = api.Cluster()
    SWARM.fill(cluster, SWARM.parse(shown["Cluster"]))
    nodes = [api.Node(id=str(n)) for n in range(shown["Nodes"])]
    for node in nodes[: shown["Managers"]]:
        node.manager_status.SetInParent()
    assert info_section(_local(shown), cluster, nodes) == shown


def test_a_rotation_that_waits_for_nodes_that_are_away_shows_which() -> None:
    new = RootCA.create(1_795_362_749.0)
    cluster = api.Cluster(root_ca=api.RootCA(root_rotation=api.RootRotation(ca_cert=new.bundle_pem)))
    nodes = []
    ready, down = api.NodeStatus.READY, api.NodeStatus.DOWN
    for name, state, done in (("here", ready, False), ("done", down, True), ("attic", down, False)):
        node = api.Node(id=name, description=api.NodeDescription(hostname=name))
        node.status.state = state
        if done:
            info = node.description.tls_info
            info.cert_issuer_subject, info.cert_issuer_public_key = new.issuer.subject_der, new.issuer.public_key_der
        nodes.append(node)
    local = _local(_info("info_manager"))
    (warning,) = info_section(local, cluster, nodes)["Warnings"]
    assert "waits for nodes that are away: attic\n" in warning
    assert "Warnings" not in info_section(local, cluster, nodes[:2])
    cluster.root_ca.ClearField("root_rotation")
    assert "Warnings" not in info_section(local, cluster, nodes)
