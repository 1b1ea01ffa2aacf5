"""The control API of clusters and nodes: what is changed, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from certs.keys import certificates_pem, load_certificates, new_csr, new_private_key, private_key_pem
from certs.root import RootCA
from swarm import api, defaults
from swarm.api.extensions import NETWORK_KEYS, has_extension, with_extension
from swarm.manager.controlapi.clusters import redacted
from swarm.manager.orchestrator.reaper import ReaperStage


def _update(control: Any, rotation: api.KeyRotation | None = None, **spec: Any) -> api.UpdateClusterRequest:
    return api.UpdateClusterRequest(
        cluster_id="cl",
        cluster_version=control.version(api.Cluster, "cl"),
        spec=api.ClusterSpec(annotations=api.Annotations(name="default"), **spec),
        rotation=rotation,
    )


def _cluster(control: Any) -> api.Cluster:
    cluster: api.Cluster = control.store.get(api.Cluster, "cl")
    return cluster


# --- clusters ------------------------------------------------------------------------------------------------------


def test_a_cluster_is_shown_without_its_keys() -> None:
    cluster = api.Cluster(id="cl")
    cluster.spec.ca_config.signing_ca_key = b"HIDDEN"
    cluster.spec.ca_config.signing_ca_cert = b"HIDDEN"
    cluster.root_ca.ca_key = b"HIDDEN"
    cluster.root_ca.ca_cert = b"cert"
    cluster.root_ca.root_rotation.ca_key = b"HIDDEN"
    cluster.root_ca.root_rotation.ca_cert = b"next"
    cluster.unlock_keys.add(subsystem="swarm-manager", key=b"HIDDEN")
    cluster.network_bootstrap_keys.add(key=b"HIDDEN")
    cluster.blacklisted_certificates["n"].expiry.seconds = 5
    before = cluster.SerializeToString(deterministic=True)
    shown = redacted(cluster)
    assert b"HIDDEN" not in shown.SerializeToString()
    assert (shown.root_ca.ca_cert, shown.root_ca.root_rotation.ca_cert) == (b"cert", b"next")
    assert shown.blacklisted_certificates["n"].expiry.seconds == 5
    assert cluster.SerializeToString(deterministic=True) == before


def test_every_field_of_a_cluster_is_either_shown_or_hidden_on_purpose() -> None:
    shown = {"id", "meta", "spec", "root_ca", "blacklisted_certificates"}
    shown |= {"defaultAddressPool", "subnetSize", "VXLANUDPPort"}
    hidden = {"network_bootstrap_keys", "encryption_key_lamport_clock", "unlock_keys", "fips"}
    assert {field.name for field in api.Cluster.DESCRIPTOR.fields} == shown | hidden


def test_a_cluster_shows_the_defaults_of_its_networks(control: Any) -> None:
    shown = control.call("GetCluster", api.GetClusterRequest(cluster_id="cl")).cluster
    assert (list(shown.defaultAddressPool), shown.subnetSize, shown.VXLANUDPPort) == (["10.0.0.0/8"], 24, 4789)
    listed = control.call("ListClusters", api.ListClustersRequest()).clusters
    assert listed == [shown]


def test_join_tokens_rotate_one_by_one(control: Any) -> None:
    before = _cluster(control).root_ca.join_tokens
    control.call("UpdateCluster", _update(control, api.KeyRotation(worker_join_token=True)))
    after = _cluster(control).root_ca.join_tokens
    assert after.worker != before.worker
    assert after.manager == before.manager
    assert after.worker.rpartition("-")[0] == before.worker.rpartition("-")[0]


def test_the_keys_of_the_networks_change_when_a_mark_asks_for_it_and_never_show(control: Any) -> None:
    plain = control.call("UpdateCluster", _update(control))
    assert not has_extension(plain, NETWORK_KEYS)
    assert not _cluster(control).network_bootstrap_keys
    newest = 0
    for _ in range(2):
        answer = control.call("UpdateCluster", with_extension(_update(control), NETWORK_KEYS))
        assert has_extension(answer, NETWORK_KEYS)
        keys = _cluster(control).network_bootstrap_keys
        assert len(keys) == 6
        assert not any(key.key in answer.SerializeToString() for key in keys)
        assert max(key.lamport_time for key in keys) > newest
        newest = max(key.lamport_time for key in keys)
    assert _cluster(control).encryption_key_lamport_clock == newest


def test_the_unlock_key_lives_as_long_as_the_lock(control: Any) -> None:
    def key() -> bytes:
        return b"".join(key.key for key in _cluster(control).unlock_keys if key.subsystem == "swarm-manager")

    locked: dict[str, Any] = {"encryption_config": api.EncryptionConfig(auto_lock_managers=True)}
    rotate = api.KeyRotation(manager_unlock_key=True)
    assert key() == b""
    control.call("UpdateCluster", _update(control, rotate))
    assert key() == b""
    shown = control.call("UpdateCluster", _update(control, **locked)).cluster
    first = key()
    assert len(first) == 32
    assert first not in shown.SerializeToString()
    control.call("UpdateCluster", _update(control, **locked))
    assert key() == first
    control.call("UpdateCluster", _update(control, rotate, **locked))
    assert len(key()) == 32
    assert key() != first
    control.call("UpdateCluster", _update(control))
    assert key() == b""
    assert not _cluster(control).unlock_keys


def test_an_update_replaces_the_whole_spec(control: Any) -> None:
    control.call(
        "UpdateCluster", _update(control, orchestration=api.OrchestrationConfig(task_history_retention_limit=9))
    )
    assert _cluster(control).spec.orchestration.task_history_retention_limit == 9
    answer = control.call("UpdateCluster", _update(control)).cluster
    assert _cluster(control).spec.orchestration.task_history_retention_limit == 0
    assert answer.meta == _cluster(control).meta


def test_the_cluster_keeps_its_name(control: Any) -> None:
    request = _update(control)
    request.spec.annotations.name = "other"
    assert control.refused("UpdateCluster", request) == "InvalidArgument: modification of cluster name is not allowed"


def test_old_entries_of_the_blacklist_are_forgotten(control: Any) -> None:
    tx = control.tx()
    cluster = tx.edit(api.Cluster, "cl")
    grace = int(defaults.BLACKLIST_GRACE_S)
    cluster.blacklisted_certificates["old"].expiry.seconds = int(control.now) - grace - 100
    cluster.blacklisted_certificates["fresh"].expiry.seconds = int(control.now) - grace + 100
    cluster.blacklisted_certificates["unknown"].SetInParent()
    control.commit(tx)
    control.call("UpdateCluster", _update(control))
    assert sorted(_cluster(control).blacklisted_certificates) == ["fresh", "unknown"]


def _ca(**fields: Any) -> dict[str, Any]:
    return {"ca_config": api.CAConfig(**fields)}


def test_signing_material_is_checked_before_anything_changes(control: Any) -> None:
    other = RootCA.create(control.now)
    ours, key = control.root.bundle_pem, control.root.key_pem or b""
    two = certificates_pem([*load_certificates(ours), *load_certificates(other.bundle_pem)])
    cases = (
        (
            _ca(signing_ca_cert=two, signing_ca_key=key),
            "the desired CA certificate cannot contain multiple certificates",
        ),
        (_ca(signing_ca_cert=ours, signing_ca_key=other.key_pem), "certificate key mismatch"),
        (_ca(signing_ca_cert=ours, signing_ca_key=b"junk"), "malformed private key"),
        (
            _ca(signing_ca_cert=other.bundle_pem),
            "there must be at least one valid, reachable external CA corresponding to the desired CA certificate",
        ),
    )
    for spec, text in cases:
        assert control.refused("UpdateCluster", _update(control, **spec)) == f"InvalidArgument: {text}"
    control.now += 19.5 * 365 * 24 * 3600
    spec = _ca(signing_ca_cert=other.bundle_pem, signing_ca_key=other.key_pem)
    refused = control.refused("UpdateCluster", _update(control, **spec))
    assert refused == "InvalidArgument: CA certificate expires too soon"


def test_text_without_a_certificate_counts_as_no_certificate(control: Any) -> None:
    control.call("UpdateCluster", _update(control, **_ca(signing_ca_cert=b"no certificate at all")))
    assert _cluster(control).root_ca.ca_cert == control.root.bundle_pem


def test_a_rotation_of_the_root_can_be_forced_once_per_number(control: Any) -> None:
    shown = control.call("UpdateCluster", _update(control, **_ca(force_rotate=1))).cluster
    root = _cluster(control).root_ca
    assert root.root_rotation.ca_cert
    assert root.root_rotation.ca_cert != root.ca_cert
    assert (shown.root_ca.root_rotation.ca_cert, shown.root_ca.root_rotation.ca_key) == (
        root.root_rotation.ca_cert,
        b"",
    )
    control.call("UpdateCluster", _update(control, **_ca(force_rotate=1)))
    assert _cluster(control).root_ca.root_rotation == root.root_rotation


def test_a_stale_update_does_not_start_a_rotation(control: Any) -> None:
    request = _update(control, **_ca(force_rotate=1))
    request.cluster_version.index = 1
    assert control.refused("UpdateCluster", request) == "Unknown: update out of sequence"


def test_a_root_given_again_ends_a_rotation_away_from_it(control: Any) -> None:
    control.call("UpdateCluster", _update(control, **_ca(force_rotate=1)))
    spec = _ca(signing_ca_cert=control.root.bundle_pem, signing_ca_key=control.root.key_pem, force_rotate=3)
    control.call("UpdateCluster", _update(control, **spec))
    root = _cluster(control).root_ca
    assert (root.HasField("root_rotation"), root.last_forced_rotation, root.ca_key) == (False, 3, control.root.key_pem)


def test_a_cluster_without_its_root_key_can_be_given_the_key_back(control: Any) -> None:
    tx = control.tx()
    tx.edit(api.Cluster, "cl").root_ca.ClearField("ca_key")
    control.commit(tx)
    assert control.refused("UpdateCluster", _update(control)) == (
        "InvalidArgument: there must be at least one valid, reachable external CA "
        "corresponding to the current CA certificate"
    )
    wrong = private_key_pem(new_private_key())
    refused = control.refused(
        "UpdateCluster", _update(control, **_ca(signing_ca_cert=control.root.bundle_pem, signing_ca_key=wrong))
    )
    assert refused.endswith("certificate key mismatch")
    right = _ca(signing_ca_cert=control.root.bundle_pem, signing_ca_key=control.root.key_pem)
    control.call("UpdateCluster", _update(control, **right))
    assert _cluster(control).root_ca.ca_key == control.root.key_pem


# --- nodes ---------------------------------------------------------------------------------------------------------


def test_a_node_shows_its_place_in_the_group_which_is_not_stored(control: Any) -> None:
    shown = control.call("GetNode", api.GetNodeRequest(node_id="n1")).node
    assert shown.manager_status == control.group.members["n1"]
    assert not control.store.get(api.Node, "n1").HasField("manager_status")
    listed = control.call("ListNodes", api.ListNodesRequest()).nodes
    assert [(node.id, node.HasField("manager_status")) for node in listed] == [("n1", True), ("n2", False)]


def _wish(control: Any, node_id: str, role: int) -> api.UpdateNodeRequest:
    request = api.UpdateNodeRequest(node_id=node_id, node_version=control.version(api.Node, node_id))
    request.spec.CopyFrom(control.store.get(api.Node, node_id).spec)
    request.spec.desired_role = role  # type: ignore[assignment]
    return request


def _managers(control: Any, *node_ids: str) -> None:
    for node_id in node_ids:
        node = api.Node(id=node_id, role=api.MANAGER)
        node.spec.desired_role = api.MANAGER
        control.put(node)
        control.group.members[node_id] = api.ManagerStatus(raft_id=len(control.group.members) + 10)


def test_an_unknown_role_does_not_get_around_the_checks_of_a_demotion(control: Any) -> None:
    _managers(control, "m2", "m3")
    text = "InvalidArgument: invalid argument: spec.desired_role has a value that this manager does not know"
    for node_id in ("m2", "n2"):
        assert control.refused("UpdateNode", _wish(control, node_id, 7)) == text


def test_a_demotion_needs_a_member_that_the_group_can_spare(control: Any) -> None:
    _managers(control, "m2", "m3")
    assert control.refused("UpdateNode", _wish(control, "m2", api.WORKER)) == (
        "FailedPrecondition: can't remove member from the raft: this would result in a loss of quorum"
    )
    control.group.removable.append("m2")
    control.call("UpdateNode", _wish(control, "m2", api.WORKER))
    assert control.store.get(api.Node, "m2").spec.desired_role == api.WORKER
    del control.group.members["m3"]
    refused = control.refused("UpdateNode", _wish(control, "m3", api.WORKER))
    assert refused == "NotFound: can't find manager in raft memberlist"


def test_a_promotion_into_a_group_that_cannot_grow_is_refused(control: Any) -> None:
    control.group.full = True
    assert control.refused("UpdateNode", _wish(control, "n2", api.MANAGER)).startswith(
        "FailedPrecondition: the swarm has 51 managers, as many as it may have"
    )
    control.group.full = False
    control.call("UpdateNode", _wish(control, "n2", api.MANAGER))
    assert control.store.get(api.Node, "n2").spec.desired_role == api.MANAGER


def test_managers_cannot_all_be_demoted_before_the_first_has_stepped_down(control: Any) -> None:
    _managers(control, "m2")
    control.group.removable += ["n1", "m2"]
    control.call("UpdateNode", _wish(control, "m2", api.WORKER))
    refused = control.refused("UpdateNode", _wish(control, "n1", api.WORKER))
    assert refused == "FailedPrecondition: attempting to demote the last manager of the swarm"


def test_other_changes_of_a_manager_are_allowed(control: Any) -> None:
    request = _wish(control, "n1", api.MANAGER)
    request.spec.availability = api.NodeSpec.DRAIN
    answer = control.call("UpdateNode", request).node
    assert answer == control.store.get(api.Node, "n1")
    assert answer.spec.availability == api.NodeSpec.DRAIN


@pytest.mark.parametrize("life_days", [400.0, 1 / 12])
def test_removing_a_node_blacklists_its_last_certificate_and_older_ones(control: Any, life_days: float) -> None:
    life_s = life_days * 86400.0
    chain = control.root.sign(new_csr(new_private_key()), "n2", "swarm-worker", "cl", control.now, life_s)
    tx = control.tx()
    node = tx.edit(api.Node, "n2")
    node.certificate.certificate = chain
    node.status.state = api.NodeStatus.DOWN
    control.commit(tx)
    control.call("RemoveNode", api.RemoveNodeRequest(node_id="n2"))
    assert control.store.get(api.Node, "n2") is None
    expiry = int(load_certificates(chain)[0].not_valid_after_utc.timestamp())
    older = int(control.now + defaults.NODE_CERT_EXPIRY_S)  # of the default life, before somebody shortened it
    assert _cluster(control).blacklisted_certificates["n2"].expiry.seconds == max(expiry, older)


def test_the_reaper_gives_up_the_tasks_of_a_removed_node_in_the_same_pass(control: Any) -> None:
    for task_id, node_id, state in (("t1", "n2", api.RUNNING), ("t2", "n2", api.FAILED), ("t3", "n1", api.RUNNING)):
        task = api.Task(id=task_id, node_id=node_id, service_id="svcmin")
        task.status.state = state
        control.put(task)
    tx, reaper = control.tx(), ReaperStage()
    reaper.rebuild(control.store, control.now)
    control.table["Control/RemoveNode"].function(tx, api.RemoveNodeRequest(node_id="n2", force=True))
    for kind, object_id in tx.log:
        reaper.note(kind, object_id)
    reaper.run(tx)
    control.commit(tx)
    states = [control.store.get(api.Task, task_id).status.state for task_id in ("t1", "t2", "t3")]
    assert states == [api.ORPHANED, api.FAILED, api.RUNNING]
    assert control.store.get(api.Task, "t1").status.message == "Task belonged to a node that has been deleted"


@pytest.mark.parametrize(
    "certificate", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_certificate_that_cannot_be_read_is_blacklisted_for_ever(control: Any, certificate: bytes) -> None:
    tx = control.tx()
    tx.edit(api.Node, "n2").certificate.certificate = certificate
    control.commit(tx)
    control.call("RemoveNode", api.RemoveNodeRequest(node_id="n2", force=True))
    assert not _cluster(control).blacklisted_certificates["n2"].HasField("expiry")


def test_a_demoted_manager_that_left_the_group_can_be_removed(control: Any) -> None:
    _managers(control, "m2")
    del control.group.members["m2"]
    control.call("RemoveNode", api.RemoveNodeRequest(node_id="m2"))
    assert control.store.get(api.Node, "m2") is None


def test_a_demoted_member_that_the_quorum_needs_is_not_removed(control: Any) -> None:
    """Nothing that a removed node says counts, so its vote would be missing until the group has removed it."""
    _managers(control, "m2")
    tx = control.tx()
    tx.edit(api.Node, "m2").spec.desired_role = api.WORKER
    control.commit(tx)
    refused = control.refused("RemoveNode", api.RemoveNodeRequest(node_id="m2", force=True))
    assert "loss of quorum" in refused
    control.group.removable.append("m2")
    control.call("RemoveNode", api.RemoveNodeRequest(node_id="m2", force=True))
    assert control.store.get(api.Node, "m2") is None


# --- secrets and configs -------------------------------------------------------------------------------------------


def test_the_data_of_a_secret_never_comes_back(control: Any) -> None:
    spec = api.SecretSpec(annotations=api.Annotations(name="new"), data=b"HIDDEN")
    answers = [control.call("CreateSecret", api.CreateSecretRequest(spec=spec))]
    secret = answers[0].secret
    answers.append(control.call("GetSecret", api.GetSecretRequest(secret_id=secret.id)))
    answers.append(control.call("ListSecrets", api.ListSecretsRequest()))
    update = api.UpdateSecretRequest(secret_id=secret.id, secret_version=secret.meta.version, spec=spec)
    update.spec.annotations.labels["k"] = "v"
    answers.append(control.call("UpdateSecret", update))
    assert all(b"HIDDEN" not in answer.SerializeToString() for answer in answers)
    kept = control.store.get(api.Secret, secret.id)
    assert (kept.spec.data, dict(kept.spec.annotations.labels)) == (b"HIDDEN", {"k": "v"})


def test_configs_show_their_data_and_change_their_labels(control: Any) -> None:
    spec = api.ConfigSpec(annotations=api.Annotations(name="new", labels={"a": "b"}), data=b"shown")
    config = control.call("CreateConfig", api.CreateConfigRequest(spec=spec)).config
    assert control.call("GetConfig", api.GetConfigRequest(config_id=config.id)).config == config
    del spec.annotations.labels["a"]
    spec.ClearField("data")
    update = api.UpdateConfigRequest(config_id=config.id, config_version=config.meta.version, spec=spec)
    changed = control.call("UpdateConfig", update).config
    assert (changed.spec.data, dict(changed.spec.annotations.labels)) == (b"shown", {})
    control.call("RemoveConfig", api.RemoveConfigRequest(config_id=config.id))
    assert control.store.get(api.Config, config.id) is None


def test_a_secret_in_use_by_several_services_names_them_all(control: Any) -> None:
    spec = control.service_spec("also")
    spec.task.container.secrets.add(secret_id="s1", secret_name="sec1").file.name = "x"
    control.put(api.Service(id="aaa", spec=spec))
    refused = control.refused("RemoveSecret", api.RemoveSecretRequest(secret_id="s1"))
    assert refused == "InvalidArgument: secret 'sec1' is in use by the following services: also, full"
