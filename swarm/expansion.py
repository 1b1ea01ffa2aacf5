"""Templates of a task: the data that they may use, and the parts of a spec in which they are expanded.

The manager expands them as a check when a service is created; the agent expands them when it creates the container.

(swarmkit: template/context.go, template/expand.go)
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from swarm import api, gotext
from swarm.template import Function, FunctionError, Record, TemplateError, expand, getter

__all__ = ["TemplateError", "context", "env_function", "expand_container", "expand_payload"]

_SERVICE_TYPE = "struct { ID string; Name string; Labels map[string]string }"
_NODE_TYPE = "struct { ID string; Hostname string; Platform template.Platform }"
_TASK_TYPE = "struct { ID string; Name string; Slot string }"


def context(node: api.NodeDescription | None, task: api.Task, type_name: str = "*template.Context") -> Record:
    """The data of a task's templates. Without a node description, host name and platform are empty."""
    node = node if node is not None else api.NodeDescription()
    service = {
        "ID": task.service_id,
        "Name": task.service_annotations.name,
        "Labels": dict(task.service_annotations.labels),
    }
    platform = {"Architecture": node.platform.architecture, "OS": node.platform.os}
    where = {
        "ID": task.node_id,
        "Hostname": node.hostname,
        "Platform": Record("template.Platform", platform),
    }
    slot = str(task.slot) if task.slot else task.node_id
    name = task.annotations.name or f"{task.service_annotations.name}.{slot}.{task.id}"
    return Record(
        type_name,
        {
            "Service": Record(_SERVICE_TYPE, service),
            "Node": Record(_NODE_TYPE, where),
            "Task": Record(_TASK_TYPE, {"ID": task.id, "Name": name, "Slot": slot}),
        },
    )


def expand_container(node: api.NodeDescription | None, task: api.Task) -> api.ContainerSpec:
    """A copy of the task's container with environment, mounts and host name expanded.

    Raises TemplateError; its text says which part of the spec is wrong.
    """
    data = context(node, task)
    container = api.ContainerSpec()
    container.CopyFrom(task.spec.container)
    for position, entry in enumerate(container.env):
        name, equals, value = entry.partition("=")
        if equals:
            with _Naming(f"expanding env failed: expanding env {gotext.quote(entry)}"):
                container.env[position] = f"{name}={expand(value, data)}"
    for mount in container.mounts:
        with _Naming(f"expanding mounts failed: expanding mount source {gotext.quote(mount.source)}"):
            mount.source = expand(mount.source, data)
        with _Naming(f"expanding mounts failed: expanding mount target {gotext.quote(mount.target)}"):
            mount.target = expand(mount.target, data)
        options = mount.volume_options
        if mount.HasField("volume_options"):
            _expand_map("expanding mounts failed: expanding volume labels", data, options.labels)
        if options.HasField("driver_config"):
            where = "expanding mounts failed: expanding volume driver config"
            _expand_map(where, data, options.driver_config.options)
    with _Naming("expanding hostname failed"):
        container.hostname = expand(container.hostname, data)
    return container


def _expand_map(where: str, data: Record, values: MutableMapping[str, str]) -> None:
    for key in sorted(values):
        entry = f"{gotext.quote(key)}={gotext.quote(values[key])}"
        with _Naming(f"{where}: expanding map entry {entry}"):
            values[key] = expand(values[key], data)


class _Naming:
    """Puts ``where`` before the text of a TemplateError that leaves the block."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TemplateError):
            raise TemplateError(f"{self._where}: {error}") from error


def expand_payload(
    data: bytes, node: api.NodeDescription | None, task: api.Task, functions: Mapping[str, Function]
) -> bytes:
    """Data of a secret or config whose templating driver is "golang".

    functions: ``secret`` and ``config`` from the caller (see getter), ``env`` from env_function. Raises TemplateError.
    """
    text = data.decode("utf-8", "surrogateescape")
    expanded = expand(text, context(node, task, "*template.PayloadContext"), functions)
    return expanded.encode("utf-8", "surrogateescape")


def env_function(task: api.Task) -> Function:
    """The function ``env`` of payloads: a variable from the spec of the task's container, or an empty string."""

    def value_of(variable: str) -> str:
        if task.spec.WhichOneof("runtime") != "container":
            raise FunctionError("task is not a container")
        for entry in task.spec.container.env:
            name, equals, value = entry.partition("=")
            if equals and name == variable:
                return value
        return ""

    return getter(value_of)
