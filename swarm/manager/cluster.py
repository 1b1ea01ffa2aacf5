"""The cluster object: the initial content of a new cluster, and the network keys.

bootstrap stages the initial content of a new cluster. ClusterStage maintains what must always exist: the node-local
networks "bridge" and "host", which services may name, and the network keys (network_keys.py), which change every twelve
hours. The network of the routing mesh is born with the cluster, once: a user who removes it does not get it back.

(swarmkit: manager/manager.go becomeLeader, manager/keymanager/keymanager.go)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from certs.keys import MANAGER_ROLE
from certs.root import RootCA
from swarm import api, defaults
from swarm.api.extensions import INGRESS_MADE, has_extension, with_extension
from swarm.api.timestamps import seconds, set_seconds
from swarm.manager.network_keys import complete_keys, incomplete, rotate_keys
from swarm.manager.networks import PREDEFINED_LABEL, is_predefined
from swarm.manager.root_rotation import rotate_join_tokens
from swarm.manager.stage import DUE_NOW
from swarm.manager.standing import note_certificate
from swarm.store.store import View
from swarm.store.tx import Tx

log = structlog.get_logger()

PREDEFINED_NETWORKS = (("bridge", "bridge"), ("host", "host"))

# --- creation ------------------------------------------------------------------------------------------------------


def complete_spec(spec: api.ClusterSpec) -> api.ClusterSpec:
    """A copy of the user's spec with defaults for omitted values. The name is always "default".

    A heartbeat period, certificate lifetime or Raft number of zero counts as omitted, as in SwarmKit. A task history of
    zero or less is kept when its message is present.
    """
    full = api.ClusterSpec()
    full.CopyFrom(spec)
    full.annotations.name = defaults.CLUSTER_NAME
    if not full.HasField("orchestration"):
        full.orchestration.task_history_retention_limit = defaults.TASK_HISTORY_RETENTION_LIMIT
    raft = full.raft
    raft.snapshot_interval = raft.snapshot_interval or defaults.RAFT_SNAPSHOT_INTERVAL_ENTRIES
    raft.keep_old_snapshots = raft.keep_old_snapshots or defaults.RAFT_KEEP_OLD_SNAPSHOTS
    raft.log_entries_for_slow_followers = (
        raft.log_entries_for_slow_followers or defaults.RAFT_ENTRIES_FOR_SLOW_FOLLOWERS
    )
    raft.heartbeat_tick = raft.heartbeat_tick or defaults.RAFT_HEARTBEAT_TICKS
    raft.election_tick = raft.election_tick or defaults.RAFT_ELECTION_TICKS
    if not seconds(full.dispatcher.heartbeat_period):
        set_seconds(full.dispatcher.heartbeat_period, defaults.HEARTBEAT_PERIOD_S)
    if not seconds(full.ca_config.node_cert_expiry):
        set_seconds(full.ca_config.node_cert_expiry, defaults.NODE_CERT_EXPIRY_S)
    full.encryption_config.SetInParent()
    full.task_defaults.SetInParent()
    return full


@dataclass(frozen=True)
class NewCluster:
    """The parameters of `swarm init` besides the spec. Zeros stand for defaults.

    availability: of the first manager. address: of the first manager, as nodes see it. default_address_pool: subnets in
    CIDR form, from which networks get their subnets. vxlan_port: UDP. unlock_key: for a cluster with autolock.
    """

    availability: int = api.NodeSpec.ACTIVE
    address: str = ""
    default_address_pool: Sequence[str] = ()
    subnet_size_bits: int = 0
    vxlan_port: int = 0
    unlock_key: bytes = field(default=b"", repr=False)
    fips: bool = False


def bootstrap(
    tx: Tx,
    cluster_id: str,
    node_id: str,
    spec: api.ClusterSpec,
    root: RootCA,
    csr: bytes,
    certificate_pem: bytes,
    details: NewCluster,
) -> None:
    """Stage the content of a new cluster: the cluster object, its first manager and the predefined networks.

    Objects that exist already are kept. root: with its key. csr and certificate_pem: the manager's own.
    """
    cluster = tx.get(api.Cluster, cluster_id)
    if cluster is None:
        cluster = tx.create(with_extension(_new_cluster(tx, cluster_id, spec, root, details), INGRESS_MADE))
        tx.create(_ingress(tx.new_id()))
    if tx.get(api.Node, node_id) is None:
        tx.create(_manager_node(node_id, cluster.VXLANUDPPort, csr, certificate_pem, details))
    create_predefined_networks(tx)


def _new_cluster(tx: Tx, cluster_id: str, spec: api.ClusterSpec, root: RootCA, details: NewCluster) -> api.Cluster:
    cluster = api.Cluster(
        id=cluster_id,
        spec=complete_spec(spec),
        root_ca=api.RootCA(ca_key=root.key_pem or b"", ca_cert=root.bundle_pem, ca_cert_hash=f"sha256:{root.digest}"),
        fips=details.fips,
        subnetSize=details.subnet_size_bits or defaults.SUBNET_SIZE_BITS,
        VXLANUDPPort=details.vxlan_port or defaults.VXLAN_PORT,
    )
    cluster.defaultAddressPool.extend(details.default_address_pool)
    if details.unlock_key:
        cluster.unlock_keys.add(subsystem=MANAGER_ROLE, key=details.unlock_key)
    rotate_join_tokens(cluster, tx)
    complete_keys(cluster, tx.rng)
    return cluster


def _manager_node(node_id: str, vxlan_port: int, csr: bytes, certificate_pem: bytes, details: NewCluster) -> api.Node:
    node = api.Node(id=node_id, role=api.MANAGER, VXLANUDPPort=vxlan_port)
    node.spec.desired_role = api.MANAGER
    node.spec.membership = api.NodeSpec.ACCEPTED
    node.spec.availability = details.availability  # type: ignore[assignment]
    node.status.addr = details.address
    node.certificate.role = api.MANAGER
    node.certificate.cn = node_id
    node.certificate.csr = csr
    node.certificate.certificate = certificate_pem
    node.certificate.status.state = api.IssuanceStatus.ISSUED
    note_certificate(node)
    return node


def create_predefined_networks(tx: Tx) -> None:
    """Stage the networks that stand for each node's "bridge" and "host", unless networks with these names exist."""
    for name, driver in PREDEFINED_NETWORKS:
        if next(tx.find(api.Network, "name", name), None) is not None:
            continue
        network = api.Network(id=tx.new_id())
        network.spec.annotations.name = name
        network.spec.annotations.labels[PREDEFINED_LABEL] = "true"
        network.spec.driver_config.name = driver
        tx.create(network)


def _ingress(network_id: str) -> api.Network:
    """The network of the routing mesh, as SwarmKit makes it: with empty messages where a user would name drivers."""
    network = api.Network(id=network_id)
    network.spec.annotations.name = "ingress"
    network.spec.ingress = True
    network.spec.driver_config.SetInParent()
    network.spec.ipam.driver.SetInParent()
    return network


def create_ingress_once(tx: Tx, cluster: api.Cluster) -> None:
    """Stage the network of the routing mesh for a cluster that never had it.

    Clusters of our first versions were born without it and could have no network but the predefined ones. So whoever
    has another network, and no mark, had the network of the mesh too: a stock manager made the cluster, or rewrote it
    without the mark, which it does not know.
    """
    if has_extension(cluster, INGRESS_MADE):
        return
    if all(is_predefined(network) for network in tx.all(api.Network)):
        tx.create(_ingress(tx.new_id()))
    marked = with_extension(cluster, INGRESS_MADE)
    tx.edit(api.Cluster, cluster.id).CopyFrom(marked)


# --- the stage -----------------------------------------------------------------------------------------------------


class ClusterStage:
    """A Stage: predefined networks and network keys.

    The time of the last key change is not stored. The last change of the cluster object is never earlier, so a new
    leader counts the twelve hours from there. Frequent elections therefore do not prevent key changes.
    """

    def __init__(self, cluster_id: str) -> None:
        self._cluster_id = cluster_id
        self._check = True
        self._rotation_due_s: float | None = None

    def rebuild(self, view: View, now: float) -> None:
        """See Stage.rebuild."""
        self._check = True
        self._rotation_due_s = None
        cluster = view.get(api.Cluster, self._cluster_id)
        if cluster is not None:
            changed_s = min(seconds(cluster.meta.updated_at), now)
            self._rotation_due_s = changed_s + defaults.NETWORK_KEY_ROTATION_S

    def note(self, kind: str, object_id: str) -> None:
        """See Stage.note."""
        if kind == "cluster":
            self._check = True

    def run(self, tx: Tx) -> None:
        """See Stage.run."""
        if not tx.room():
            return
        cluster = tx.get(api.Cluster, self._cluster_id)
        if cluster is None:
            self._check = False  # note() will be called when it is created
            return
        if self._check:
            self._check = False
            create_ingress_once(tx, cluster)
            create_predefined_networks(tx)
            self._complete(tx, cluster)
        if self._rotation_due_s is None:
            self._rotation_due_s = tx.now + defaults.NETWORK_KEY_ROTATION_S
        elif self._rotation_due_s <= tx.now:
            rotate_keys(tx.edit(api.Cluster, self._cluster_id), tx.rng)
            self._rotation_due_s = tx.now + defaults.NETWORK_KEY_ROTATION_S
            log.info("cluster.network_keys_rotated", cluster=self._cluster_id)

    def deadline(self) -> float | None:
        """When the keys change next; DUE_NOW until the first check."""
        return DUE_NOW if self._check else self._rotation_due_s

    def _complete(self, tx: Tx, cluster: api.Cluster) -> None:
        if incomplete(cluster):
            complete_keys(tx.edit(api.Cluster, self._cluster_id), tx.rng)
