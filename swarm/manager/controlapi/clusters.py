"""The cluster object: read without its secrets, update settings, rotate join tokens and the unlock key.

Key material never leaves through this API: readers get a copy without the CA keys and without the keys that encrypt
logs and networks. The unlock key has a method of its own, for managers only.

(swarmkit: manager/controlapi/cluster.go, manager/controlapi/ca_rotation.go; ca/server.go GetUnlockKey)
"""

from __future__ import annotations

import hmac

from certs.errors import CertsError
from certs.keys import MANAGER_ROLE, normalize_pem
from certs.root import RootCA, desired_root
from certs.tokens import new_join_token, new_unlock_key
from swarm import api, defaults
from swarm.errors import Code, Internal, InvalidArgument, SwarmError, Unimplemented
from swarm.manager.controlapi.common import annotation_tests, find_one, require, select, spec_labels, spec_name
from swarm.manager.controlapi.validate import check_cluster, check_present
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx

_NO_EXTERNAL_CA = "there must be at least one valid, reachable external CA corresponding to the {} CA certificate"
_ROTATION_MISSING = "rotating the cluster's root certificate is not available yet; nothing was changed"
_EXTERNAL_CA_MISSING = (
    "this cluster's root key is held by an external certificate authority, which is not supported yet; "
    "nothing was changed"
)


def get_cluster(view: View, request: api.GetClusterRequest) -> api.GetClusterResponse:
    """GetCluster."""
    return api.GetClusterResponse(cluster=redacted(find_one(view, api.Cluster, request.cluster_id)))


def list_clusters(view: View, request: api.ListClustersRequest) -> api.ListClustersResponse:
    """ListClusters."""
    tests = annotation_tests(request.filters, spec_name, spec_labels)
    return api.ListClustersResponse(clusters=[redacted(cluster) for cluster in select(view.all(api.Cluster), tests)])


def redacted(cluster: api.Cluster) -> api.Cluster:
    """What a client may see of a cluster: a new object with nothing in it that was not chosen to be there."""
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


def get_unlock_key(view: View, request: api.GetUnlockKeyRequest) -> api.GetUnlockKeyResponse:
    """CA/GetUnlockKey: empty while managers are not locked."""
    cluster = next(view.find(api.Cluster, "name", defaults.CLUSTER_NAME), None)
    if cluster is None:
        raise Internal("could not fetch cluster object")
    response = api.GetUnlockKeyResponse(version=cluster.meta.version)
    if cluster.spec.encryption_config.auto_lock_managers:
        response.unlock_key = next((key.key for key in cluster.unlock_keys if key.subsystem == MANAGER_ROLE), b"")
    return response


def update_cluster(tx: Tx, request: api.UpdateClusterRequest) -> api.UpdateClusterResponse:
    """UpdateCluster: replaces the spec as a whole; rotates what ``rotation`` names."""
    require(request.cluster_id and request.HasField("cluster_version"))
    check_present(request.HasField("spec"))
    check_cluster(request.spec)
    before = find_one(tx, api.Cluster, request.cluster_id)
    root_ca = _next_root(before, request.spec.ca_config, tx.now)

    cluster = tx.edit(api.Cluster, before.id, request.cluster_version.index)
    cluster.spec.CopyFrom(request.spec)
    expire_blacklist(cluster, tx.now)
    cluster.root_ca.CopyFrom(root_ca)
    tokens, bundle = cluster.root_ca.join_tokens, cluster.root_ca.ca_cert
    if request.rotation.worker_join_token:
        tokens.worker = new_join_token(bundle, tx.rng, cluster.fips)
    if request.rotation.manager_join_token:
        tokens.manager = new_join_token(bundle, tx.rng, cluster.fips)
    _update_unlock_key(tx, cluster, request.rotation.manager_unlock_key)
    return api.UpdateClusterResponse(cluster=redacted(tx.stamped(cluster)))


def _update_unlock_key(tx: Tx, cluster: api.Cluster, rotate: bool) -> None:
    """Turning the lock on makes a key, rotating replaces it, turning the lock off forgets it."""
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
    """Forget removed nodes whose certificates expired long ago. Changes ``cluster``."""
    for node_id in sorted(cluster.blacklisted_certificates):
        entry = cluster.blacklisted_certificates[node_id]
        if entry.HasField("expiry") and entry.expiry.ToNanoseconds() / 1e9 < now - defaults.BLACKLIST_GRACE_S:
            del cluster.blacklisted_certificates[node_id]


# --- root certificate ----------------------------------------------------------------------------------------------


def _next_root(cluster: api.Cluster, config: api.CAConfig, now: float) -> api.RootCA:
    """The root that this CA configuration asks for, most often the present one; raises what users know.

    Starting a rotation needs the certificates stage, which does not do it yet: refused with Unimplemented.
    """
    present = cluster.root_ca
    wanted_cert = normalize_pem(config.signing_ca_cert)
    require(
        wanted_cert or not config.signing_ca_key,
        "if a signing CA key is provided, the signing CA cert must also be provided",
    )
    present_cert = normalize_pem(present.ca_cert)
    if not present.ca_key:
        if wanted_cert == present_cert and config.signing_ca_key:
            _checked(wanted_cert, config.signing_ca_key)
            return _with_key(present, config)
        _require_external(config, present_cert, present_cert, "current")
        raise Unimplemented(_EXTERNAL_CA_MISSING)
    if not wanted_cert:
        if present.last_forced_rotation != config.force_rotate:
            raise Unimplemented(_ROTATION_MISSING)
        if present.HasField("root_rotation") and not present.root_rotation.ca_key:
            _require_external(config, present_cert, normalize_pem(present.root_rotation.ca_cert), "next")
            raise Unimplemented(_EXTERNAL_CA_MISSING)
        return present
    try:
        desired_root(wanted_cert, config.signing_ca_key, now)
    except CertsError as error:
        raise InvalidArgument(error.message) from error
    if not config.signing_ca_key:
        _require_external(config, present_cert, wanted_cert, "desired")
        raise Unimplemented(_EXTERNAL_CA_MISSING)
    if wanted_cert == present_cert:
        return _with_key(present, config)
    same_key = hmac.compare_digest(config.signing_ca_key, present.ca_key)
    require(not same_key, "Cannot update to a cert with an identical key")
    if normalize_pem(present.root_rotation.ca_cert) == wanted_cert:
        root = copy_of(present)
        root.root_rotation.ca_key = config.signing_ca_key
        root.last_forced_rotation = config.force_rotate
        return root
    raise Unimplemented(_ROTATION_MISSING)


def _with_key(present: api.RootCA, config: api.CAConfig) -> api.RootCA:
    """The present root with the given key; ends a rotation away from it."""
    root = copy_of(present)
    root.ca_key = config.signing_ca_key
    root.ClearField("root_rotation")
    root.last_forced_rotation = config.force_rotate
    return root


def _require_external(config: api.CAConfig, present_cert: bytes, wanted_cert: bytes, word: str) -> None:
    """Raises InvalidArgument unless an external CA is named for this certificate (by default the present one)."""
    named = [normalize_pem(ca.ca_cert) if ca.ca_cert else present_cert for ca in config.external_cas]
    require(wanted_cert in named, _NO_EXTERNAL_CA.format(word))


def _checked(certificate: bytes, key: bytes) -> None:
    try:
        RootCA(certificate, key)
    except CertsError as error:
        raise SwarmError(error.message, Code(error.code)) from error
