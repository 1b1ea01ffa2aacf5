"""The cluster object: read without its secrets, update settings, rotate join tokens, unlock key and network keys.

This API never returns key material: readers get a copy without the CA keys and without the keys that encrypt logs and
networks. The unlock key has a method of its own (CA/GetUnlockKey), which only managers may call.

(swarmkit: manager/controlapi/cluster.go, manager/controlapi/ca_rotation.go)
"""

from __future__ import annotations

from certs.keys import MANAGER_ROLE
from certs.tokens import new_unlock_key
from swarm import api, defaults
from swarm.api.extensions import NETWORK_KEYS, has_extension, with_extension
from swarm.api.timestamps import seconds
from swarm.manager.controlapi.common import annotation_tests, find_one, require, select, spec_labels, spec_name
from swarm.manager.controlapi.validate import check_cluster, check_present
from swarm.manager.external_ca import Answers
from swarm.manager.network_keys import rotate_keys
from swarm.manager.root_rotation import rotate_join_tokens, update_root_ca
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx


def get_cluster(view: View, request: api.GetClusterRequest) -> api.GetClusterResponse:
    """GetCluster."""
    return api.GetClusterResponse(cluster=redacted(find_one(view, api.Cluster, request.cluster_id)))


def list_clusters(view: View, request: api.ListClustersRequest) -> api.ListClustersResponse:
    """ListClusters."""
    tests = annotation_tests(request.filters, spec_name, spec_labels)
    return api.ListClustersResponse(clusters=[redacted(cluster) for cluster in select(view.all(api.Cluster), tests)])


def redacted(cluster: api.Cluster) -> api.Cluster:
    """What a client may see of a cluster: a new object with only those fields that are listed here."""
    out = api.Cluster(
        id=cluster.id,
        meta=cluster.meta,
        spec=cluster.spec,
        root_ca=cluster.root_ca,
        defaultAddressPool=cluster.defaultAddressPool,
        subnetSize=cluster.subnetSize,
        VXLANUDPPort=cluster.VXLANUDPPort or defaults.VXLAN_PORT,
    )
    for node_id, entry in cluster.blacklisted_certificates.items():
        out.blacklisted_certificates[node_id].CopyFrom(entry)
    out.spec.ca_config.ClearField("signing_ca_key")
    out.spec.ca_config.ClearField("signing_ca_cert")
    out.root_ca.ClearField("ca_key")
    if out.root_ca.HasField("root_rotation"):
        out.root_ca.root_rotation.ClearField("ca_key")
    if not out.defaultAddressPool:
        out.defaultAddressPool.append(defaults.DEFAULT_ADDRESS_POOL)
        out.subnetSize = defaults.SUBNET_SIZE_BITS
    return out


def update_cluster(
    tx: Tx, request: api.UpdateClusterRequest, answers: Answers | None = None
) -> api.UpdateClusterResponse:
    """UpdateCluster: replaces the spec as a whole; rotates what ``rotation`` names.

    answers: what is known of external authorities. Raises Unanswered when one must be asked first.
    """
    require(request.cluster_id and request.HasField("cluster_version"))
    check_present(request.HasField("spec"))
    check_cluster(request.spec)
    before = find_one(tx, api.Cluster, request.cluster_id)
    # Try the CA configuration on a copy: a wrong one is reported before a stale version.
    wanted = copy_of(before)
    wanted.spec.CopyFrom(request.spec)
    update_root_ca(wanted, tx.now, answers=answers)

    cluster = tx.edit(api.Cluster, before.id, request.cluster_version.index)
    cluster.spec.CopyFrom(wanted.spec)
    cluster.root_ca.CopyFrom(wanted.root_ca)
    expire_blacklist(cluster, tx.now)
    rotation = request.rotation
    rotate_join_tokens(cluster, tx, rotation.worker_join_token, rotation.manager_join_token)
    _update_unlock_key(tx, cluster, rotation.manager_unlock_key)
    new_network_keys = has_extension(request, NETWORK_KEYS)
    if new_network_keys:
        rotate_keys(cluster, tx.rng)
    answer = api.UpdateClusterResponse(cluster=redacted(tx.stamped(cluster)))
    return with_extension(answer, NETWORK_KEYS) if new_network_keys else answer


def _update_unlock_key(tx: Tx, cluster: api.Cluster, rotate: bool) -> None:
    """Make a key when the lock is turned on, replace it on rotation, forget it when the lock is turned off."""
    keys = [key for key in cluster.unlock_keys if key.subsystem != MANAGER_ROLE]
    if cluster.spec.encryption_config.auto_lock_managers:
        present = next((key for key in cluster.unlock_keys if key.subsystem == MANAGER_ROLE), None)
        key = api.EncryptionKey(subsystem=MANAGER_ROLE) if present is None else copy_of(present)
        if rotate or present is None:
            key.key = new_unlock_key(tx.rng)
        keys.append(key)
    kept = [copy_of(key) for key in keys]
    del cluster.unlock_keys[:]
    cluster.unlock_keys.extend(kept)


def expire_blacklist(cluster: api.Cluster, now: float) -> None:
    """Remove entries of nodes whose certificates expired too long ago to be renewed. Changes ``cluster``."""
    for node_id in sorted(cluster.blacklisted_certificates):
        entry = cluster.blacklisted_certificates[node_id]
        if entry.HasField("expiry") and seconds(entry.expiry) < now - defaults.BLACKLIST_GRACE_S:
            del cluster.blacklisted_certificates[node_id]
