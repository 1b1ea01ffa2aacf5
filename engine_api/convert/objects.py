"""Tables of secrets, configs, tasks, and of networks as tasks carry them.

(moby: daemon/cluster/convert/{secret,config,task,network}.go)
"""

from __future__ import annotations

from typing import Any

from engine_api.convert.fields import (
    DRIVER,
    META,
    custom,
    data,
    enum,
    flag,
    ignored,
    many,
    named,
    narrow,
    nested,
    number,
    strings,
    text,
    time,
)
from engine_api.convert.gotypes import BYTES, string_type
from engine_api.convert.service import GENERIC_RESOURCE, PORT_CONFIG, TASK_SPEC, VERSION
from engine_api.convert.table import OMIT, Table
from swarm import api
from swarm.manager.networks import is_ingress

# --- secrets and configs ----------------------------------------------------------------------------------------------

_TEMPLATING = nested("Templating", "templating", DRIVER)

SECRET_SPEC = Table(
    "swarm.SecretSpec", [*named("annotations"), data("Data", "data"), nested("Driver", "driver", DRIVER), _TEMPLATING]
)
"""As clients send it."""

SECRET = Table(
    "swarm.Secret",
    [
        text("ID", "id", always=True),
        *META,
        nested(
            "Spec",
            "spec",
            Table(
                "swarm.SecretSpec",
                [*named("annotations"), ignored("Data", BYTES), nested("Driver", "driver", DRIVER), _TEMPLATING],
            ),
            always=True,
        ),
    ],
)
"""As clients see it: the data of a secret is never shown."""

CONFIG_SPEC = Table("swarm.ConfigSpec", [*named("annotations"), data("Data", "data"), _TEMPLATING])

CONFIG = Table("swarm.Config", [text("ID", "id", always=True), *META, nested("Spec", "spec", CONFIG_SPEC, always=True)])

# --- networks inside tasks --------------------------------------------------------------------------------------------

IPAM_CONFIG = Table("swarm.IPAMConfig", [text("Subnet", "subnet"), text("Range", "range"), text("Gateway", "gateway")])

IPAM_OPTIONS = Table(
    "swarm.IPAMOptions", [nested("Driver", "driver", DRIVER, always=True), many("Configs", "configs", IPAM_CONFIG)]
)


def _show_config_from(spec: Any) -> Any:
    return {"Network": spec.network} if spec.network else OMIT


def _fill_config_from(spec: Any, value: dict[str, Any]) -> None:
    spec.network = value.get("Network", "")


NETWORK_SPEC = Table(
    "swarm.NetworkSpec",
    [
        *named("annotations"),
        nested("DriverConfiguration", "driver_config", DRIVER),
        flag("IPv6Enabled", "ipv6_enabled"),
        flag("Internal", "internal"),
        flag("Attachable", "attachable"),
        flag("Ingress", "ingress"),
        nested("IPAMOptions", "ipam", IPAM_OPTIONS),
        custom(
            "ConfigFrom",
            Table("network.ConfigReference", [text("Network", "network")]).type,
            _show_config_from,
            _fill_config_from,
        ),
        custom("Scope", string_type(), lambda spec: "swarm", lambda spec, value: None),
    ],
)


def _show_network_spec(network: Any) -> Any:
    shown = NETWORK_SPEC.show(network.spec)
    if is_ingress(network):
        shown["Ingress"] = True
    return shown


NETWORK = Table(
    "swarm.Network",
    [
        text("ID", "id", always=True),
        *META,
        custom(
            "Spec",
            NETWORK_SPEC.type,
            _show_network_spec,
            lambda network, value: NETWORK_SPEC.fill(network.spec, value),
        ),
        nested("DriverState", "driver_state", DRIVER, always=True),
        nested("IPAMOptions", "ipam", IPAM_OPTIONS),
    ],
)

NETWORK_ATTACHMENT = Table(
    "swarm.NetworkAttachment", [nested("Network", "network", NETWORK, always=True), strings("Addresses", "addresses")]
)

# --- tasks ------------------------------------------------------------------------------------------------------------

TASK_STATES = {name.lower(): value for name, value in api.TaskState.items()}

CONTAINER_STATUS = Table(
    "swarm.ContainerStatus",
    [
        text("ContainerID", "container_id", always=True),
        narrow("PID", "pid", always=True),
        narrow("ExitCode", "exit_code", always=True),
    ],
)

TASK_STATUS = Table(
    "swarm.TaskStatus",
    [
        time("Timestamp", "timestamp"),
        enum("State", "state", TASK_STATES, go="swarm.TaskState"),
        text("Message", "message"),
        text("Err", "err"),
        nested("ContainerStatus", "container", CONTAINER_STATUS),
        nested(
            "PortStatus", "port_status", Table("swarm.PortStatus", [many("Ports", "ports", PORT_CONFIG)]), always=True
        ),
    ],
)

VOLUME_ATTACHMENT = Table(
    "swarm.VolumeAttachment", [text("ID", "id"), text("Source", "source"), text("Target", "target")]
)

TASK = Table(
    "swarm.Task",
    [
        text("ID", "id", always=True),
        *META,
        *named("annotations"),
        nested("Spec", "spec", TASK_SPEC, always=True),
        text("ServiceID", "service_id"),
        number("Slot", "slot"),
        text("NodeID", "node_id"),
        nested("Status", "status", TASK_STATUS, always=True),
        enum("DesiredState", "desired_state", TASK_STATES, go="swarm.TaskState"),
        many("NetworksAttachments", "networks", NETWORK_ATTACHMENT),
        many("GenericResources", "assigned_generic_resources", GENERIC_RESOURCE),
        nested("JobIteration", "job_iteration", VERSION),
        many("Volumes", "volumes", VOLUME_ATTACHMENT),
    ],
)
