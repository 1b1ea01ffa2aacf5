"""The object table: everything that the store must know about each kind of object.

To keep a new kind of object, add one row. (swarmkit: manager/state/store/{tasks,services,...}.go, one file per kind)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from swarm import api

Index = Callable[[Any], Iterable[str]]


@dataclass(frozen=True)
class Kind:
    """One kind of stored object.

    name: its field in StoreAction, also used in events and logs. plural: its field in StoreSnapshot. indexes: from the
    name of an index to the function that returns an object's keys. unique: the index whose keys must be unique.
    """

    name: str
    plural: str
    message: type[Message]
    indexes: dict[str, Index] = field(default_factory=dict)
    unique: str | None = None


def _name(obj: Any) -> Iterable[str]:
    return (obj.spec.annotations.name.lower(),) if obj.spec.annotations.name else ()


def _task_references(field_name: str, id_name: str) -> Index:
    def keys(task: Any) -> Iterable[str]:
        container = task.spec.container
        return dict.fromkeys(getattr(reference, id_name) for reference in getattr(container, field_name))

    return keys


def _service_references(field_name: str, id_name: str) -> Index:
    def keys(service: Any) -> Iterable[str]:
        container = service.spec.task.container
        return dict.fromkeys(getattr(reference, id_name) for reference in getattr(container, field_name))

    return keys


def _service_networks(service: Any) -> Iterable[str]:
    """The networks of the spec, by ID or name; the deprecated field counts as well."""
    targets = service.spec.task.networks or service.spec.networks
    return dict.fromkeys(attachment.target for attachment in targets)


def _task_networks(task: Any) -> Iterable[str]:
    return dict.fromkeys(attachment.network.id for attachment in task.networks)


def slot_key(service_id: str, slot: int) -> str:
    """Key of the task index "slot"."""
    return f"{service_id}/{slot}"


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("cluster", "clusters", api.Cluster, {"name": _name}, unique="name"),
        Kind("node", "nodes", api.Node, {"hostname": lambda n: (n.description.hostname.lower(),)}),
        Kind("network", "networks", api.Network, {"name": _name}, unique="name"),
        Kind(
            "service",
            "services",
            api.Service,
            {
                "name": _name,
                "network": _service_networks,
                "secret": _service_references("secrets", "secret_id"),
                "config": _service_references("configs", "config_id"),
            },
            unique="name",
        ),
        Kind(
            "task",
            "tasks",
            api.Task,
            {
                "service": lambda t: (t.service_id,) if t.service_id else (),
                "node": lambda t: (t.node_id,) if t.node_id else (),
                "slot": lambda t: (slot_key(t.service_id, t.slot),) if t.slot else (),
                "network": _task_networks,
                "secret": _task_references("secrets", "secret_id"),
                "config": _task_references("configs", "config_id"),
            },
        ),
        Kind("secret", "secrets", api.Secret, {"name": _name}, unique="name"),
        Kind("config", "configs", api.Config, {"name": _name}, unique="name"),
        Kind("resource", "resources", api.Resource),
        Kind("extension", "extensions", api.Extension),
        Kind("volume", "volumes", api.Volume, {"name": _name}, unique="name"),
    )
}

KIND_OF: dict[type[Message], Kind] = {kind.message: kind for kind in KINDS.values()}
