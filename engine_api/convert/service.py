"""Tables of services and of the task template: resources, placement, mode, updates, endpoint.

(moby: daemon/cluster/convert/service.go)
"""

from __future__ import annotations

from typing import Any

from engine_api.convert.container import CONTAINER_SPEC
from engine_api.convert.fields import (
    DRIVER,
    META,
    custom,
    duration,
    enum,
    labels,
    many,
    named,
    nested,
    number,
    ratio,
    strings,
    text,
    time,
    wrapped,
)
from engine_api.convert.gotypes import INTS, string_type
from engine_api.convert.plugin import PLUGIN_SPEC, show_plugin
from engine_api.convert.table import OMIT, Row, Table
from engine_api.errors import ApiError, BadParameter
from swarm import api

# --- resources --------------------------------------------------------------------------------------------------------

GENERIC_RESOURCE = Table(
    "swarm.GenericResource",
    [
        nested(
            "NamedResourceSpec",
            "named_resource_spec",
            Table("swarm.NamedGenericResource", [text("Kind", "kind"), text("Value", "value")]),
        ),
        nested(
            "DiscreteResourceSpec",
            "discrete_resource_spec",
            Table("swarm.DiscreteGenericResource", [text("Kind", "kind"), number("Value", "value")]),
        ),
    ],
)

RESOURCES = Table(
    "swarm.Resources",
    [
        number("NanoCPUs", "nano_cpus"),
        number("MemoryBytes", "memory_bytes"),
        many("GenericResources", "generic", GENERIC_RESOURCE),
    ],
)


def _limit_row(key: str) -> Row:
    """In JSON, Pids is a member of the limits; the protocol keeps it in the container (see _show_resources)."""
    return custom(key, INTS["int64"], lambda message: OMIT, lambda message, value: None)


LIMIT = Table(
    "swarm.Limit", [number("NanoCPUs", "nano_cpus"), number("MemoryBytes", "memory_bytes"), _limit_row("Pids")]
)


def _check_swap(parsed: dict[str, Any]) -> dict[str, Any]:
    if "SwapBytes" in parsed and not parsed.get("Limits", {}).get("MemoryBytes"):
        raise BadParameter("memory swap provided, but no memory-limit was set")
    return parsed


REQUIREMENTS = Table(
    "swarm.ResourceRequirements",
    [
        nested("Limits", "limits", LIMIT),
        nested("Reservations", "reservations", RESOURCES),
        wrapped("SwapBytes", "swap_bytes", INTS["int64"]),
        wrapped("MemorySwappiness", "memory_swappiness", INTS["int64"]),
    ],
    begin=_check_swap,
)


def _show_resources(task: Any) -> Any:
    present = task.HasField("resources")
    pids = task.container.pidsLimit
    if not present and not pids:
        return OMIT
    shown = REQUIREMENTS.show(task.resources) if present else {}
    return {**shown, "Limits": {**shown.get("Limits", {}), "Pids": pids}} if pids else shown


def _fill_resources(task: Any, value: dict[str, Any]) -> None:
    task.resources.SetInParent()
    REQUIREMENTS.fill(task.resources, value)
    pids = value.get("Limits", {}).get("Pids")
    if pids and task.WhichOneof("runtime") == "container":
        task.container.pidsLimit = pids


# --- restart and placement --------------------------------------------------------------------------------------------

RESTART_POLICY = Table(
    "swarm.RestartPolicy",
    [
        enum(
            "Condition",
            "condition",
            {"any": api.RestartPolicy.ANY, "none": api.RestartPolicy.NONE, "on-failure": api.RestartPolicy.ON_FAILURE},
            go="swarm.RestartPolicyCondition",
            refuse="invalid RestartCondition: ",
            exact=True,
            unknown="any",
        ),
        duration("Delay", "delay", pointer=True),
        number("MaxAttempts", "max_attempts", "uint64", pointer=True),
        duration("Window", "window", pointer=True),
    ],
    begin=lambda parsed: {"Condition": "", **parsed},
)

PLATFORM = Table("swarm.Platform", [text("Architecture", "architecture"), text("OS", "os")])

SPREAD_OVER = Table("swarm.SpreadOver", [text("SpreadDescriptor", "spread_descriptor", always=True)])
PREFERENCE = Table(
    "swarm.PlacementPreference",
    [
        nested(
            "Spread", "spread", Table("swarm.SpreadOver", [text("SpreadDescriptor", "spread_descriptor", always=True)])
        )
    ],
)

PLACEMENT = Table(
    "swarm.Placement",
    [
        strings("Constraints", "constraints"),
        many("Preferences", "preferences", PREFERENCE, keep=lambda preference: preference.HasField("spread")),
        number("MaxReplicas", "max_replicas", "uint64"),
        many("Platforms", "platforms", PLATFORM),
    ],
)

ATTACHMENT_CONFIG = Table(
    "swarm.NetworkAttachmentConfig",
    [text("Target", "target"), strings("Aliases", "aliases"), labels("DriverOpts", "driver_attachment_opts")],
)

ATTACHMENT_SPEC = Table("swarm.NetworkAttachmentSpec", [text("ContainerID", "container_id", always=True)])

# --- the task template ------------------------------------------------------------------------------------------------


def _task_rows(runtime: Row) -> list[Row]:
    """The rows of a task spec; services and tasks show it with different runtimes."""
    plugin = custom(
        "PluginSpec",
        PLUGIN_SPEC.type,
        lambda task: OMIT if (shown := show_plugin(task)) is None else shown,
        _refuse_plugin,
    )
    return [
        nested("ContainerSpec", "container", CONTAINER_SPEC),
        plugin,
        nested("NetworkAttachmentSpec", "attachment", ATTACHMENT_SPEC),
        custom("Resources", REQUIREMENTS.type, _show_resources, _fill_resources),
        nested("RestartPolicy", "restart", RESTART_POLICY),
        nested("Placement", "placement", PLACEMENT),
        many("Networks", "networks", ATTACHMENT_CONFIG),
        nested("LogDriver", "log_driver", DRIVER),
        number("ForceUpdate", "force_update", "uint64", always=True),
        runtime,
    ]


def _refuse_plugin(task: Any, value: Any) -> None:
    raise ApiError('runtime type "plugin" only supported in experimental')


def _one_runtime(parsed: dict[str, Any]) -> dict[str, Any]:
    """Runtime decides which of the specs counts; the others are ignored, as in stock engines."""
    runtime = parsed.pop("Runtime", "")
    chosen = {"": "ContainerSpec", "container": "ContainerSpec", "plugin": "PluginSpec"}.get(runtime)
    if chosen is None:
        raise BadParameter("unsupported runtime")
    if chosen not in parsed:
        raise BadParameter("mismatched Runtime and *Spec fields")
    for other in {"ContainerSpec", "PluginSpec", "NetworkAttachmentSpec"} - {chosen}:
        parsed.pop(other, None)
    return parsed


def _runtime_row(shown: dict[str | None, str]) -> Row:
    """Read by _one_runtime; shown by the kind of spec that is set."""
    return custom(
        "Runtime",
        string_type("swarm.RuntimeType"),
        lambda task: shown.get(task.WhichOneof("runtime"), OMIT),
        lambda task, value: None,
    )


TASK_TEMPLATE = Table(
    "swarm.TaskSpec", _task_rows(_runtime_row({"container": "container", "generic": "plugin"})), begin=_one_runtime
)
"""The template of a service: says its runtime, and needs one."""

TASK_SPEC = Table("swarm.TaskSpec", _task_rows(_runtime_row({"attachment": "attachment"})))
"""The spec of a task."""

# --- mode -------------------------------------------------------------------------------------------------------------

_REPLICATED = Table("swarm.ReplicatedService", [number("Replicas", "replicas", "uint64", pointer=True)])
_REPLICATED_JOB = Table(
    "swarm.ReplicatedJob",
    [
        number("MaxConcurrent", "max_concurrent", "uint64", pointer=True),
        number("TotalCompletions", "total_completions", "uint64", pointer=True),
    ],
)

_MODE = Table(
    "swarm.ServiceMode",
    [
        nested("Replicated", "replicated", _REPLICATED),
        nested("Global", "global", Table("swarm.GlobalService", [])),
        nested("ReplicatedJob", "replicated_job", _REPLICATED_JOB),
        nested("GlobalJob", "global_job", Table("swarm.GlobalJob", [])),
    ],
)


def _fill_mode(spec: Any, value: dict[str, Any]) -> None:
    """Check that there is at most one mode. None means one replica; a job runs once by default."""
    if len(value) > 1:
        raise BadParameter("must specify only one service mode")
    mode = dict(value) or {"Replicated": {}}
    if "Replicated" in mode:
        mode["Replicated"] = {"Replicas": 1, **mode["Replicated"]}
    if "ReplicatedJob" in mode:
        concurrent = mode["ReplicatedJob"].get("MaxConcurrent", 1)
        mode["ReplicatedJob"] = {"MaxConcurrent": concurrent, "TotalCompletions": concurrent, **mode["ReplicatedJob"]}
    _MODE.fill(spec, mode)


# --- updates and endpoint ---------------------------------------------------------------------------------------------

UPDATE_CONFIG = Table(
    "swarm.UpdateConfig",
    [
        number("Parallelism", "parallelism", "uint64", always=True),
        duration("Delay", "delay"),
        enum(
            "FailureAction",
            "failure_action",
            {
                "pause": api.UpdateConfig.PAUSE,
                "continue": api.UpdateConfig.CONTINUE,
                "rollback": api.UpdateConfig.ROLLBACK,
            },
            go="swarm.FailureAction",
            refuse="unrecognized update failure action ",
            quoted=False,
            exact=True,
        ),
        duration("Monitor", "monitor"),
        ratio("MaxFailureRatio", "max_failure_ratio", always=True),
        enum(
            "Order",
            "order",
            {"stop-first": api.UpdateConfig.STOP_FIRST, "start-first": api.UpdateConfig.START_FIRST},
            go="swarm.UpdateOrder",
            refuse="unrecognized update order ",
            quoted=False,
            exact=True,
        ),
    ],
)

PORT_CONFIG = Table(
    "swarm.PortConfig",
    [
        text("Name", "name"),
        enum(
            "Protocol",
            "protocol",
            {name.lower(): value for name, value in api.PortConfig.Protocol.items()},
            go="swarm.PortConfigProtocol",
        ),
        number("TargetPort", "target_port", "uint32"),
        number("PublishedPort", "published_port", "uint32"),
        enum(
            "PublishMode",
            "publish_mode",
            {name.lower(): value for name, value in api.PortConfig.PublishMode.items()},
            go="swarm.PortConfigPublishMode",
        ),
    ],
)

ENDPOINT_SPEC = Table(
    "swarm.EndpointSpec",
    [
        enum(
            "Mode",
            "mode",
            {"vip": api.EndpointSpec.VIP, "dnsrr": api.EndpointSpec.DNSRR},
            go="swarm.ResolutionMode",
            refuse="invalid resolution mode: ",
            exact=True,
        ),
        many("Ports", "ports", PORT_CONFIG),
    ],
)

ENDPOINT = Table(
    "swarm.Endpoint",
    [
        nested("Spec", "spec", ENDPOINT_SPEC, missing={}),
        many("Ports", "ports", PORT_CONFIG),
        many(
            "VirtualIPs",
            "virtual_ips",
            Table("swarm.EndpointVirtualIP", [text("NetworkID", "network_id"), text("Addr", "addr")]),
        ),
    ],
)

# --- the service ------------------------------------------------------------------------------------------------------


def _show_template(spec: Any) -> Any:
    """Services of very old clients have networks in the service spec only; show those in the task template."""
    shown = TASK_TEMPLATE.show(spec.task)
    if spec.networks and "Networks" not in shown:
        shown["Networks"] = [ATTACHMENT_CONFIG.show(network) for network in spec.networks]
    return shown


SERVICE_SPEC = Table(
    "swarm.ServiceSpec",
    [
        *named("annotations"),
        custom(
            "TaskTemplate",
            TASK_TEMPLATE.type,
            _show_template,
            lambda spec, value: TASK_TEMPLATE.fill(spec.task, value),
        ),
        custom("Mode", _MODE.type, _MODE.show, _fill_mode),
        nested("UpdateConfig", "update", UPDATE_CONFIG),
        nested("RollbackConfig", "rollback", UPDATE_CONFIG),
        nested("EndpointSpec", "endpoint", ENDPOINT_SPEC),
        custom(
            "Networks",
            many("Networks", "networks", ATTACHMENT_CONFIG).type,
            lambda spec: OMIT,
            lambda spec, value: None,
        ),
    ],
    begin=lambda parsed: {"TaskTemplate": {}, "Mode": {}, **parsed},
)
"""``Networks`` is the deprecated place; adjust_for_version moves it for the clients that may still use it."""

_UPDATE_STATES = {
    name.lower(): value for name, value in api.UpdateStatus.UpdateState.items()
}  # the first, UNKNOWN, is left out

UPDATE_STATUS = Table(
    "swarm.UpdateStatus",
    [
        enum("State", "state", _UPDATE_STATES, go="swarm.UpdateState", unset=api.UpdateStatus.UNKNOWN),
        time("StartedAt", "started_at", pointer=True),
        time("CompletedAt", "completed_at", pointer=True),
        text("Message", "message"),
    ],
)

VERSION = Table("swarm.Version", [number("Index", "index", "uint64")])

JOB_STATUS = Table(
    "swarm.JobStatus",
    [nested("JobIteration", "job_iteration", VERSION, always=True), time("LastExecution", "last_execution")],
)

SERVICE_STATUS = Table(
    "swarm.ServiceStatus",
    [
        number("RunningTasks", "running_tasks", "uint64", always=True),
        number("DesiredTasks", "desired_tasks", "uint64", always=True),
        number("CompletedTasks", "completed_tasks", "uint64", always=True),
    ],
)

SERVICE = Table(
    "swarm.Service",
    [
        text("ID", "id", always=True),
        *META,
        nested("Spec", "spec", SERVICE_SPEC, always=True),
        nested("PreviousSpec", "previous_spec", SERVICE_SPEC),
        nested("Endpoint", "endpoint", ENDPOINT, always=True),
        nested("UpdateStatus", "update_status", UPDATE_STATUS),
        nested("JobStatus", "job_status", JOB_STATUS),
    ],
)


# --- API versions -----------------------------------------------------------------------------------------------------

ApiVersion = tuple[int, ...]


def adjust_for_version(spec: dict[str, Any], version: ApiVersion) -> None:
    """Remove from a parsed ServiceSpec what this API version does not have (moby: adjustForAPIVersion)."""
    template: dict[str, Any] = spec.get("TaskTemplate", {})
    container: dict[str, Any] = template.get("ContainerSpec", {})
    resources: dict[str, Any] = template.get("Resources", {})
    privileges: dict[str, Any] = container.get("Privileges", {})
    for limit, holder, keys in (
        ((1, 52), resources, ("SwapBytes", "MemorySwappiness")),
        ((1, 46), container, ("OomScoreAdj",)),
        ((1, 44), privileges, ("Seccomp", "AppArmor", "NoNewPrivileges")),
        ((1, 44), container.get("Healthcheck", {}), ("StartInterval",)),
        ((1, 41), container, ("CapabilityAdd", "CapabilityDrop", "Ulimits")),
        ((1, 41), resources.get("Limits", {}), ("Pids",)),
        ((1, 41), spec.get("Mode", {}), ("ReplicatedJob", "GlobalJob")),
        ((1, 40), container, ("Sysctls",)),
        ((1, 40), privileges.get("CredentialSpec", {}), ("Config",)),
        ((1, 40), template.get("Placement", {}), ("MaxReplicas",)),
        *(((1, 40), config, ("Runtime",)) for config in container.get("Configs", ())),
        *(((1, 46), mount.get("TmpfsOptions", {}), ("Options",)) for mount in container.get("Mounts", ())),
    ):
        if version < limit:
            for key in keys:
                holder.pop(key, None)
    legacy = spec.pop("Networks", [])
    if version < (1, 44) and legacy and not template.get("Networks"):
        spec.setdefault("TaskTemplate", template)["Networks"] = legacy


def with_legacy_networks(service: dict[str, Any]) -> dict[str, Any]:
    """A shown service as API versions below 1.25 expect it: networks at the top of the specs as well."""
    out = dict(service)
    for key in ("Spec", "PreviousSpec"):
        networks = out.get(key, {}).get("TaskTemplate", {}).get("Networks")
        if networks:
            out[key] = {**out[key], "Networks": networks}
    return out
