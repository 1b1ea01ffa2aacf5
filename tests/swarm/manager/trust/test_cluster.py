"""Birth of a cluster, predefined networks, network keys."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.tokens import parse_join_token, root_digest
from swarm import api
from swarm.api.extensions import INGRESS_MADE, has_extension
from swarm.manager.certificates import node_cert_expiry_s
from swarm.manager.cluster import ClusterStage, NewCluster, bootstrap, complete_spec
from swarm.manager.network_keys import SUBSYSTEM_GOSSIP, rotate_keys
from swarm.manager.networks import is_ingress, is_predefined
from swarm.store.store import Store
from swarm.store.tx import Tx
from tests.swarm.manager.trust.conftest import CLUSTER, CSR, MANAGER, NOW, ROOT, TrustHarness

HOUR_S = 3600.0


def born(spec: api.ClusterSpec | None = None, details: NewCluster | None = None, seed: int = 1) -> Store:
    store = Store()
    tx = Tx(store, NOW, Random(seed))
    bootstrap(tx, CLUSTER, MANAGER, spec or api.ClusterSpec(), ROOT, CSR, b"certificate", details or NewCluster())
    store.apply(tx.actions(), 1)
    return store


def cluster_in(store: Store) -> api.Cluster:
    return next(store.all(api.Cluster))


def test_a_new_cluster_has_the_settings_that_users_know() -> None:
    cluster = cluster_in(born())
    spec = cluster.spec
    assert (cluster.id, spec.annotations.name) == (CLUSTER, "default")
    assert spec.orchestration.task_history_retention_limit == 5
    raft = spec.raft
    assert (raft.snapshot_interval, raft.keep_old_snapshots, raft.log_entries_for_slow_followers) == (10000, 0, 500)
    assert (raft.election_tick, raft.heartbeat_tick) == (10, 1)
    assert spec.dispatcher.heartbeat_period.ToNanoseconds() == 5_000_000_000
    assert spec.ca_config.node_cert_expiry.ToNanoseconds() == 7_776_000_000_000_000
    assert (cluster.subnetSize, cluster.VXLANUDPPort, list(cluster.defaultAddressPool)) == (24, 4789, [])


def test_a_new_cluster_keeps_what_the_user_asked_for() -> None:
    spec = api.ClusterSpec()
    spec.orchestration.task_history_retention_limit = 0
    spec.raft.snapshot_interval = 7
    spec.dispatcher.heartbeat_period.FromSeconds(9)
    spec.ca_config.node_cert_expiry.FromSeconds(7200)
    spec.annotations.labels["a"] = "b"
    full = complete_spec(spec)
    assert full.orchestration.task_history_retention_limit == 0
    assert (full.raft.snapshot_interval, full.raft.election_tick) == (7, 10)
    assert full.dispatcher.heartbeat_period.ToSeconds() == 9
    assert node_cert_expiry_s(full) == 7200.0
    assert full.annotations.labels["a"] == "b"
    assert complete_spec(full) == full


def test_join_tokens_name_the_root_and_differ_by_role() -> None:
    root_ca = cluster_in(born()).root_ca
    assert root_ca.ca_cert == ROOT.bundle_pem
    assert root_ca.ca_key == ROOT.key_pem
    assert root_ca.ca_cert_hash == f"sha256:{root_digest(ROOT.bundle_pem)}"
    tokens = [parse_join_token(text) for text in (root_ca.join_tokens.worker, root_ca.join_tokens.manager)]
    assert [token.root_digest for token in tokens] == [ROOT.digest, ROOT.digest]
    assert tokens[0].secret != tokens[1].secret


def test_details_of_init_reach_the_cluster_and_the_node() -> None:
    details = NewCluster(api.NodeSpec.DRAIN, "10.1.1.1", ("10.20.0.0/16",), 26, 5000, b"k" * 32, fips=True)
    spec = api.ClusterSpec()
    spec.encryption_config.auto_lock_managers = True
    store = born(spec, details)
    cluster, node = cluster_in(store), next(store.all(api.Node))
    assert (list(cluster.defaultAddressPool), cluster.subnetSize, cluster.VXLANUDPPort) == (["10.20.0.0/16"], 26, 5000)
    assert [(key.subsystem, key.key) for key in cluster.unlock_keys] == [("swarm-manager", b"k" * 32)]
    assert cluster.root_ca.join_tokens.worker.startswith("SWMTKN-2-1-")
    assert (node.spec.availability, node.status.addr, node.VXLANUDPPort) == (api.NodeSpec.DRAIN, "10.1.1.1", 5000)
    assert "kkkk" not in repr(details)


def test_the_first_manager_is_a_node_with_a_certificate() -> None:
    node = next(born().all(api.Node))
    assert (node.id, node.role, node.spec.desired_role) == (MANAGER, api.MANAGER, api.MANAGER)
    assert node.spec.membership == api.NodeSpec.ACCEPTED
    assert node.certificate == api.Certificate(
        role=api.MANAGER,
        cn=MANAGER,
        csr=CSR,
        certificate=b"certificate",
        status=api.IssuanceStatus(state=api.IssuanceStatus.ISSUED),
    )


def test_the_network_of_the_routing_mesh_is_born_with_the_cluster_as_stock_makes_it() -> None:
    ingress = next(n for n in born().all(api.Network) if is_ingress(n))
    spec = api.NetworkSpec(annotations=api.Annotations(name="ingress"), ingress=True)
    spec.driver_config.SetInParent()
    spec.ipam.driver.SetInParent()
    assert ingress.spec == spec


def _without(trust: TrustHarness, *, mark: bool, add: str = "") -> None:
    """A cluster without the network of the mesh. mark: with the mark that it was there; add: another network."""

    def change(tx: Tx) -> None:
        ingress = next(n for n in tx.all(api.Network) if is_ingress(n))
        tx.remove(api.Network, ingress.id)
        if not mark:
            cluster = tx.edit(api.Cluster, CLUSTER)
            cluster.DiscardUnknownFields()
        if add:
            tx.create(api.Network(id=tx.new_id(), spec=api.NetworkSpec(annotations=api.Annotations(name=add))))

    trust.edit(change)
    trust.elect()
    trust.run_pass()


def _ingress_networks(trust: TrustHarness) -> int:
    return sum(is_ingress(network) for network in trust.store.all(api.Network))


def test_a_cluster_that_never_had_the_network_of_the_mesh_gets_it_once(trust: TrustHarness) -> None:
    _without(trust, mark=False)
    assert _ingress_networks(trust) == 1
    index = trust.store.index
    trust.elect()
    trust.run_pass()
    assert trust.store.index == index
    _without(trust, mark=True)
    assert _ingress_networks(trust) == 0


def test_a_user_who_removed_the_network_of_the_mesh_does_not_get_it_back(trust: TrustHarness) -> None:
    _without(trust, mark=True)
    assert _ingress_networks(trust) == 0


def test_a_stock_cluster_without_the_network_of_the_mesh_stays_without_it(trust: TrustHarness) -> None:
    _without(trust, mark=False, add="web")
    assert _ingress_networks(trust) == 0

    def remove(tx: Tx) -> None:
        for network in list(tx.all(api.Network)):
            if not is_predefined(network):
                tx.remove(api.Network, network.id)

    trust.edit(remove)
    trust.elect()
    trust.run_pass()
    assert _ingress_networks(trust) == 0


def test_a_cluster_whose_mark_a_stock_manager_dropped_is_marked_again(trust: TrustHarness) -> None:
    trust.edit(lambda tx: tx.edit(api.Cluster, CLUSTER).DiscardUnknownFields())
    assert not has_extension(trust.cluster, INGRESS_MADE)
    trust.run_pass()
    assert has_extension(trust.cluster, INGRESS_MADE)
    assert _ingress_networks(trust) == 1


def test_the_predefined_networks_carry_the_label_of_internal_ones() -> None:
    networks = {n.spec.annotations.name: n.spec for n in born().all(api.Network) if is_predefined(n)}
    assert sorted(networks) == ["bridge", "host"]
    for name, spec in networks.items():
        assert spec.driver_config.name == name
        assert dict(spec.annotations.labels) == {"com.docker.swarm.predefined": "true"}


def test_bootstrapping_a_second_time_changes_nothing() -> None:
    store = born()
    tx = Tx(store, NOW + 5, Random(2))
    bootstrap(tx, CLUSTER, MANAGER, api.ClusterSpec(), ROOT, CSR, b"", NewCluster())
    assert tx.actions() == []


# --- network keys --------------------------------------------------------------------------------------------------


def rings(cluster: api.Cluster) -> dict[str, list[int]]:
    times: dict[str, list[int]] = {}
    for key in cluster.network_bootstrap_keys:
        times.setdefault(key.subsystem, []).append(key.lamport_time)
    return times


def check_keys(cluster: api.Cluster) -> None:
    """What libnetwork relies on."""
    keys = cluster.network_bootstrap_keys
    assert {len(key.key) for key in keys} == {16}
    assert len({key.key for key in keys}) == len({key.lamport_time for key in keys}) == len(keys)
    assert {subsystem: len(ring) for subsystem, ring in rings(cluster).items()} == {
        "networking:gossip": 3,
        "networking:ipsec": 3,
    }
    assert cluster.encryption_key_lamport_clock == max(key.lamport_time for key in keys)


def test_a_new_cluster_has_three_keys_for_each_purpose() -> None:
    cluster = cluster_in(born())
    check_keys(cluster)
    start = cluster.encryption_key_lamport_clock - 6
    assert 0 <= start < 65536
    assert rings(cluster)["networking:gossip"] == [start + 1, start + 2, start + 3]


@given(st.integers(0, 2**32), st.integers(1, 10))
def test_any_number_of_rotations_keeps_three_keys_each_and_two_of_the_ones_before(seed: int, count: int) -> None:
    cluster = cluster_in(born(seed=seed))
    for _ in range(count):
        before = rings(cluster)
        rotate_keys(cluster, Random(seed))
        after = rings(cluster)
        for subsystem, ring in before.items():
            assert after[subsystem][:2] == sorted(ring)[1:]
            assert after[subsystem][2] > max(ring)
    assert len({key.lamport_time for key in cluster.network_bootstrap_keys}) == 6


def test_three_rotations_leave_nothing_of_what_was_known_before() -> None:
    cluster = cluster_in(born())
    known = {key.key for key in cluster.network_bootstrap_keys}
    for left in (4, 2, 0):
        rotate_keys(cluster, Random(left))
        check_keys(cluster)
        assert len(known & {key.key for key in cluster.network_bootstrap_keys}) == left


def test_keys_change_every_twelve_hours() -> None:
    trust = TrustHarness()
    trust.run_pass()
    before = rings(trust.cluster)
    assert trust.stages[0].deadline() == NOW + 12 * HOUR_S
    trust.now += 12 * HOUR_S - 1
    trust.run_pass()
    assert rings(trust.cluster) == before
    trust.now += 1
    trust.run_pass()
    check_keys(trust.cluster)
    assert rings(trust.cluster) != before
    assert trust.stages[0].deadline() == trust.now + 12 * HOUR_S
    trust.run_pass()
    assert trust.stages[0].deadline() == trust.now + 12 * HOUR_S


def test_a_new_leader_goes_on_counting_from_the_last_change(trust: TrustHarness) -> None:
    trust.now += 11 * HOUR_S
    trust.elect()
    trust.run_pass()
    assert trust.stages[0].deadline() == NOW + 12 * HOUR_S


def test_other_changes_of_the_cluster_do_not_put_off_the_keys(trust: TrustHarness) -> None:
    trust.now += 11 * HOUR_S
    trust.edit(lambda tx: tx.edit(api.Cluster, CLUSTER).spec.annotations.labels.update(a="b"))
    trust.run_pass()
    assert trust.stages[0].deadline() == NOW + 12 * HOUR_S


def test_a_clock_ahead_of_ours_does_not_put_off_the_keys_for_long(trust: TrustHarness) -> None:
    trust.now -= 1000 * HOUR_S
    trust.elect()
    trust.run_pass()
    assert trust.stages[0].deadline() == trust.now + 12 * HOUR_S


@pytest.mark.parametrize("left", [0, 1])
def test_missing_keys_and_networks_are_created(trust: TrustHarness, left: int) -> None:
    def damage(tx: Tx) -> None:
        cluster = tx.edit(api.Cluster, CLUSTER)
        gossip = [key for key in cluster.network_bootstrap_keys if key.subsystem == SUBSYSTEM_GOSSIP]
        for key in gossip[left:]:
            cluster.network_bootstrap_keys.remove(key)
        for network in list(tx.all(api.Network)):
            tx.remove(api.Network, network.id)

    trust.edit(damage)
    trust.run_pass()
    check_keys(trust.cluster)
    assert trust.store.count(api.Network) == 2
    index = trust.store.index
    trust.run_pass()
    assert trust.store.index == index


def test_the_stage_waits_for_a_cluster() -> None:
    stage = ClusterStage(CLUSTER)
    store = Store()
    stage.rebuild(store, NOW)
    tx = Tx(store, NOW, Random(1))
    stage.run(tx)
    assert tx.empty()
    assert stage.deadline() is None, "it would be asked again and again"
    stage.note("cluster", CLUSTER)
    assert stage.deadline() is not None
