"""Tables of the cluster, of nodes and of the Swarm section of /info.

(moby: daemon/cluster/convert/{swarm,node}.go, daemon/cluster/swarm.go)
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from certs.errors import InvalidCertificate
from certs.keys import load_certificates
from certs.root import Issuer
from engine_api.backend import LocalNode, LocalNodeState
from engine_api.convert.fields import (
    DRIVER,
    META,
    ZERO_TIME,
    custom,
    data,
    duration,
    enum,
    flag,
    ignored,
    labels,
    many,
    named,
    narrow,
    nested,
    number,
    pem,
    strings,
    text,
)
from engine_api.convert.gotypes import BOOL, INTS, STRING, STRINGS, string_type
from engine_api.convert.service import PLATFORM, RESOURCES
from engine_api.convert.table import OMIT, Row, Table
from engine_api.errors import BadParameter
from swarm import api, defaults
from swarm.api.timestamps import set_seconds
from swarm.manager.root_rotation import waited_for

# --- the cluster's spec -----------------------------------------------------------------------------------------------

EXTERNAL_CA = Table(
    "swarm.ExternalCA",
    [
        enum(
            "Protocol",
            "protocol",
            {name.lower(): value for name, value in api.ExternalCA.CAProtocol.items()},
            go="swarm.ExternalCAProtocol",
            refuse="invalid protocol: ",
            required=True,
        ),
        text("URL", "url", always=True),
        labels("Options", "options"),
        pem("CACert", "ca_cert", always=True),
    ],
    begin=lambda parsed: {"Protocol": "", **parsed},
)


def _hidden(row: Row) -> Row:
    """A row that clients can set but never see."""
    return Row(row.key, row.type, lambda message: OMIT, row.fill)


CLUSTER_SPEC = Table(
    "swarm.Spec",
    [
        *named("annotations"),
        nested(
            "Orchestration",
            "orchestration",
            Table(
                "swarm.OrchestrationConfig",
                [number("TaskHistoryRetentionLimit", "task_history_retention_limit", pointer=True)],
            ),
            always=True,
        ),
        nested(
            "Raft",
            "raft",
            Table(
                "swarm.RaftConfig",
                [
                    number("SnapshotInterval", "snapshot_interval", "uint64"),
                    number("KeepOldSnapshots", "keep_old_snapshots", "uint64", pointer=True),
                    number("LogEntriesForSlowFollowers", "log_entries_for_slow_followers", "uint64"),
                    narrow("ElectionTick", "election_tick", unsigned=True, always=True),
                    narrow("HeartbeatTick", "heartbeat_tick", unsigned=True, always=True),
                ],
            ),
            always=True,
        ),
        nested(
            "Dispatcher",
            "dispatcher",
            Table("swarm.DispatcherConfig", [duration("HeartbeatPeriod", "heartbeat_period")]),
            always=True,
        ),
        nested(
            "CAConfig",
            "ca_config",
            Table(
                "swarm.CAConfig",
                [
                    duration("NodeCertExpiry", "node_cert_expiry"),
                    many("ExternalCAs", "external_cas", EXTERNAL_CA, pointer=True),
                    _hidden(pem("SigningCACert", "signing_ca_cert")),
                    _hidden(pem("SigningCAKey", "signing_ca_key")),
                    number("ForceRotate", "force_rotate", "uint64"),
                ],
            ),
            always=True,
        ),
        nested(
            "TaskDefaults",
            "task_defaults",
            Table("swarm.TaskDefaults", [nested("LogDriver", "log_driver", DRIVER)]),
            always=True,
        ),
        nested(
            "EncryptionConfig",
            "encryption_config",
            Table("swarm.EncryptionConfig", [flag("AutoLockManagers", "auto_lock_managers", always=True)]),
            always=True,
        ),
    ],
)


def default_cluster_spec() -> api.ClusterSpec:
    """What a new cluster has unless init says otherwise (swarmkit: node/node.go, manager/manager.go)."""
    spec = api.ClusterSpec()
    spec.annotations.name = "default"
    spec.orchestration.task_history_retention_limit = defaults.TASK_HISTORY_RETENTION_LIMIT
    spec.raft.snapshot_interval = defaults.RAFT_SNAPSHOT_INTERVAL_ENTRIES
    spec.raft.keep_old_snapshots = defaults.RAFT_KEEP_OLD_SNAPSHOTS
    spec.raft.log_entries_for_slow_followers = defaults.RAFT_ENTRIES_FOR_SLOW_FOLLOWERS
    spec.raft.heartbeat_tick = defaults.RAFT_HEARTBEAT_TICKS
    spec.raft.election_tick = defaults.RAFT_ELECTION_TICKS
    set_seconds(spec.dispatcher.heartbeat_period, defaults.HEARTBEAT_PERIOD_S)
    set_seconds(spec.ca_config.node_cert_expiry, defaults.NODE_CERT_EXPIRY_S)
    spec.task_defaults.SetInParent()
    spec.encryption_config.SetInParent()
    return spec


def check_cluster_name(parsed: dict[str, Any]) -> None:
    """Check the name: the only cluster is named "default"; an empty name means the same. Raises BadParameter."""
    if parsed.setdefault("Name", "default") != "default" and parsed["Name"]:
        raise BadParameter('swarm spec must be named "default"')
    parsed["Name"] = "default"


# --- requests ---------------------------------------------------------------------------------------------------------


# --- the cluster ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def issuer(certificates: bytes) -> tuple[bytes, bytes]:
    """Subject and public key, both DER, of the first certificate in PEM text; empty when there is none."""
    try:
        found = Issuer.of(load_certificates(certificates)[0])
    except (InvalidCertificate, IndexError):
        return b"", b""
    return found.subject_der, found.public_key_der


def _show_tls_info(cluster: Any) -> dict[str, str]:
    """The root that nodes trust, and the root that issues now; during a rotation these differ."""
    root = cluster.root_ca
    subject, key = issuer(root.root_rotation.ca_cert if root.HasField("root_rotation") else root.ca_cert)
    shown = {
        "TrustRoot": root.ca_cert.decode("utf-8", "replace"),
        "CertIssuerSubject": b64encode(subject).decode(),
        "CertIssuerPublicKey": b64encode(key).decode(),
    }
    return {name: value for name, value in shown.items() if value}


def _fill_tls_info(cluster: Any, value: dict[str, Any]) -> None:
    cluster.root_ca.ca_cert = value.get("TrustRoot", "").encode()


def _fill_rotation(cluster: Any, value: bool) -> None:
    if value:
        cluster.root_ca.root_rotation.SetInParent()


_TLS_INFO_ROWS = [
    pem("TrustRoot", "trust_root"),
    data("CertIssuerSubject", "cert_issuer_subject"),
    data("CertIssuerPublicKey", "cert_issuer_public_key"),
]
TLS_INFO = Table("swarm.TLSInfo", _TLS_INFO_ROWS)

_CLUSTER_ROWS = [
    text("ID", "id", always=True),
    *META,
    nested("Spec", "spec", CLUSTER_SPEC, always=True),
    custom("TLSInfo", TLS_INFO.type, _show_tls_info, _fill_tls_info),
    custom("RootRotationInProgress", BOOL, lambda cluster: cluster.root_ca.HasField("root_rotation"), _fill_rotation),
    strings("DefaultAddrPool", "defaultAddressPool", null=True),
    number("SubnetSize", "subnetSize", "uint32", always=True),
    number("DataPathPort", "VXLANUDPPort", "uint32", always=True),
]

CLUSTER_INFO = Table("swarm.ClusterInfo", _CLUSTER_ROWS)
"""The cluster without its join tokens, as /info has it."""

SWARM = Table(
    "swarm.Swarm",
    [
        *_CLUSTER_ROWS,
        nested(
            "JoinTokens",
            "root_ca.join_tokens",
            Table("swarm.JoinTokens", [text("Worker", "worker", always=True), text("Manager", "manager", always=True)]),
            always=True,
        ),
    ],
)

# --- nodes ------------------------------------------------------------------------------------------------------------

AVAILABILITIES = {name.lower(): value for name, value in api.NodeSpec.Availability.items()}
_ROLES = {name.lower(): value for name, value in api.NodeRole.items()}
_REACHABILITIES = {name.lower(): value for name, value in api.RaftMemberStatus.Reachability.items()}

NODE_SPEC = Table(
    "swarm.NodeSpec",
    [
        *named("annotations"),
        enum("Role", "desired_role", _ROLES, go="swarm.NodeRole", refuse="invalid Role: ", required=True),
        enum(
            "Availability",
            "availability",
            AVAILABILITIES,
            go="swarm.NodeAvailability",
            refuse="invalid Availability: ",
            required=True,
        ),
    ],
    begin=lambda parsed: {"Role": "", "Availability": "", **parsed},
)

ENGINE_DESCRIPTION = Table(
    "swarm.EngineDescription",
    [
        text("EngineVersion", "engine_version"),
        labels("Labels", "labels"),
        many("Plugins", "plugins", Table("swarm.PluginDescription", [text("Type", "type"), text("Name", "name")])),
    ],
)

CSI_INFO = Table(
    "swarm.NodeCSIInfo",
    [
        text("PluginName", "plugin_name"),
        text("NodeID", "node_id"),
        number("MaxVolumesPerNode", "max_volumes_per_node"),
        nested("AccessibleTopology", "accessible_topology", Table("swarm.Topology", [labels("Segments", "segments")])),
    ],
)

NODE_DESCRIPTION = Table(
    "swarm.NodeDescription",
    [
        text("Hostname", "hostname"),
        nested("Platform", "platform", PLATFORM, always=True),
        nested("Resources", "resources", RESOURCES, always=True),
        nested("Engine", "engine", ENGINE_DESCRIPTION, always=True),
        nested("TLSInfo", "tls_info", TLS_INFO, always=True),
        many("CSIInfo", "csi_info", CSI_INFO),
    ],
)

NODE = Table(
    "swarm.Node",
    [
        text("ID", "id", always=True),
        *META,
        nested("Spec", "spec", NODE_SPEC, always=True),
        nested("Description", "description", NODE_DESCRIPTION, always=True),
        nested(
            "Status",
            "status",
            Table(
                "swarm.NodeStatus",
                [
                    enum(
                        "State",
                        "state",
                        {name.lower(): value for name, value in api.NodeStatus.State.items()},
                        go="swarm.NodeState",
                    ),
                    text("Message", "message"),
                    text("Addr", "addr"),
                ],
            ),
            always=True,
        ),
        nested(
            "ManagerStatus",
            "manager_status",
            Table(
                "swarm.ManagerStatus",
                [
                    flag("Leader", "leader"),
                    enum("Reachability", "reachability", _REACHABILITIES, go="swarm.Reachability"),
                    text("Addr", "addr"),
                ],
            ),
        ),
    ],
)

# --- requests that are no message of the protocol ---------------------------------------------------------------------

_AVAILABILITY = string_type("swarm.NodeAvailability")

INIT_REQUEST = Table(
    "swarm.InitRequest",
    [
        ignored("ListenAddr", STRING),
        ignored("AdvertiseAddr", STRING),
        ignored("DataPathAddr", STRING),
        ignored("DataPathPort", INTS["uint32"]),
        ignored("ForceNewCluster", BOOL),
        ignored("Spec", CLUSTER_SPEC.type),
        ignored("AutoLockManagers", BOOL),
        ignored("Availability", _AVAILABILITY),
        ignored("DefaultAddrPool", STRINGS),
        ignored("SubnetSize", INTS["uint32"]),
    ],
)
"""Only parsed: the route reads the dict. The same holds for the two below."""

JOIN_REQUEST = Table(
    "swarm.JoinRequest",
    [
        ignored("ListenAddr", STRING),
        ignored("AdvertiseAddr", STRING),
        ignored("DataPathAddr", STRING),
        ignored("RemoteAddrs", STRINGS),
        ignored("JoinToken", STRING),
        ignored("Availability", _AVAILABILITY),
    ],
)

UNLOCK_REQUEST = Table("swarm.UnlockRequest", [ignored("UnlockKey", STRING)])

# --- /info ------------------------------------------------------------------------------------------------------------

TWO_MANAGERS_WARNING = (
    "WARNING: Running Swarm in a two-manager configuration. This configuration provides\n"
    "         no fault tolerance, and poses a high risk to lose control over the cluster.\n"
    "         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the\n"
    "         Swarm for fault-tolerance."
)


def info_section(
    local: LocalNode, cluster: api.Cluster | None = None, nodes: Sequence[api.Node] | None = None, error: str = ""
) -> dict[str, Any]:
    """The ``Swarm`` object of /info.

    cluster, nodes: as the leader answered; None when it could not be asked, and ``error`` says why.
    """
    shown: dict[str, Any] = {
        "NodeID": local.node_id,
        "NodeAddr": local.node_addr,
        "LocalNodeState": local.state.value,
        "ControlAvailable": local.control_available,
        "Error": error or local.error,
        "RemoteManagers": [{"NodeID": node_id, "Addr": addr} for node_id, addr in local.remote_managers] or None,
    }
    if not local.control_available:
        return shown
    managers = sum(node.HasField("manager_status") for node in nodes or ())
    if nodes:
        shown["Nodes"] = len(nodes)
    if managers:
        shown["Managers"] = managers
    shown["Cluster"] = CLUSTER_INFO.show(cluster) if cluster is not None else _no_cluster()
    warnings = _rotation_warnings(cluster, nodes or ())
    if managers == 2 and local.state in (LocalNodeState.ACTIVE, LocalNodeState.PENDING):
        warnings.append(TWO_MANAGERS_WARNING)
    if warnings:
        shown["Warnings"] = warnings
    return shown


def _rotation_warnings(cluster: api.Cluster | None, nodes: Sequence[api.Node]) -> list[str]:
    """Nodes that are down and that a root rotation waits for."""
    if cluster is None or not cluster.root_ca.HasField("root_rotation"):
        return []
    away = [node for node in waited_for(cluster.root_ca, nodes) if node.status.state != api.NodeStatus.READY]
    if not away:
        return []
    names = ", ".join(sorted(node.description.hostname or node.id for node in away))
    return [
        f"WARNING: The rotation of the root CA waits for nodes that are away: {names}\n"
        "         Bring them back, or remove them from the swarm with docker node rm."
    ]


def _no_cluster() -> dict[str, Any]:
    """The cluster as shown when the leader cannot be asked: all zero, as in stock engines."""
    return {
        **CLUSTER_INFO.show(api.Cluster()),
        "CreatedAt": ZERO_TIME,
        "UpdatedAt": ZERO_TIME,
        "Spec": {
            "Labels": None,
            "Orchestration": {},
            "Raft": {"ElectionTick": 0, "HeartbeatTick": 0},
            "Dispatcher": {},
            "CAConfig": {},
            "TaskDefaults": {},
            "EncryptionConfig": {"AutoLockManagers": False},
        },
        "TLSInfo": {},
    }
