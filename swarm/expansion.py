"""Templates of a task: the data that they may use, and the parts of a spec in which they are expanded.

The manager expands them as a check when a service is created; the agent expands them when it creates the container.

(swarmkit: template/context.go, template/expand.go)
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from swarm import api
from swarm.template import (
    Budget,
    Function,
    FunctionError,
    Record,
    TemplateError,
    expand,
    getter,
    payload_budget,
    spec_budget,
)
from swarm.template.errors import quoted

__all__ = ["TemplateError", "context", "env_function", "expand_container", "expand_payload", "payload_budget"]

_SERVICE_TYPE = "struct { ID string; Name string; Labels map[string]string }"
_NODE_TYPE = "struct { ID string; Hostname string; Platform template.Platform }"
_TASK_TYPE = "struct { ID string; Name string; Slot string }"
_MOUNTS = "expanding mounts failed: expanding"


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
    """A copy of the task's container with environment, mounts and host name expanded, all from one budget.

    Raises TemplateError; its text says which part of the spec is wrong.
    """
    container = api.ContainerSpec()
    container.CopyFrom(task.spec.container)
    fields = _Fields(context(node, task), spec_budget())
    for position, entry in enumerate(container.env):
        name, equals, value = entry.partition("=")
        if equals and value:
            text = fields.expand(value, "expanding env failed: expanding env", entry)
            container.env[position] = f"{name}={text}"
    for mount in container.mounts:
        mount.source = fields.expand(mount.source, f"{_MOUNTS} mount source", mount.source)
        mount.target = fields.expand(mount.target, f"{_MOUNTS} mount target", mount.target)
        options = mount.volume_options
        if mount.HasField("volume_options"):
            fields.expand_map(f"{_MOUNTS} volume labels", options.labels)
        if options.HasField("driver_config"):
            fields.expand_map(f"{_MOUNTS} volume driver config", options.driver_config.options)
    container.hostname = fields.expand(container.hostname, "expanding hostname failed")
    return container


class _Fields:
    """Expands the fields of one spec, all from one budget."""

    def __init__(self, data: Record, budget: Budget) -> None:
        self._data = data
        self._budget = budget

    def expand(self, value: str, where: str, entry: str = "") -> str:
        """One field. where, and entry in quotes, come before the text of a TemplateError."""
        try:
            return expand(value, self._data, self._budget)
        except TemplateError as error:
            raise TemplateError(f"{where} {quoted(entry)}: {error}" if entry else f"{where}: {error}") from error

    def expand_map(self, where: str, values: MutableMapping[str, str]) -> None:
        """The values of a map."""
        for key in sorted(values):
            try:
                values[key] = expand(values[key], self._data, self._budget)
            except TemplateError as error:
                entry = f"{quoted(key)}={quoted(values[key])}"
                raise TemplateError(f"{where}: expanding map entry {entry}: {error}") from error


def expand_payload(
    data: bytes,
    node: api.NodeDescription | None,
    task: api.Task,
    functions: Mapping[str, Function],
    budget: Budget | None = None,
) -> bytes:
    """Data of a secret or config whose templating driver is "golang".

    functions: ``secret`` and ``config`` from the caller (see getter), ``env`` from env_function. budget: of all
    payloads of the task. Raises TemplateError.
    """
    text = data.decode("utf-8", "surrogateescape")
    expanded = expand(text, context(node, task, "*template.PayloadContext"), budget or payload_budget(), functions)
    return expanded.encode("utf-8", "surrogateescape")


def env_function(task: api.Task) -> Function:
    """The function ``env`` of payloads: a variable from the spec of the task's container, or an empty string."""
    values: dict[str, str] = {}
    for entry in task.spec.container.env:
        name, equals, value = entry.partition("=")
        if equals:
            values.setdefault(name, value)

    def value_of(variable: str) -> str:
        if task.spec.WhichOneof("runtime") != "container":
            raise FunctionError("task is not a container")
        return values.get(variable, "")

    return getter(value_of)
