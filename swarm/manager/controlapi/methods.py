"""The control API as a table: which function answers which method, and whether it writes.

A function that writes takes the pass's transaction, one that reads takes the store or a transaction; both take the
request and return the response or raise a SwarmError with SwarmKit's code and text. A read returns
what is committed; the caller makes sure that this manager still leads. Callers were authorised before they come here.

(swarmkit: manager/controlapi/server.go)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import Message

from swarm.api.enums import unknown_value
from swarm.errors import InvalidArgument
from swarm.manager.controlapi import clusters, networks, nodes, resources, secrets, services, tasks
from swarm.manager.controlapi.common import MALFORMED
from swarm.manager.controlapi.nodes import Members

__all__ = ["CONTROL", "Handler", "Members", "control"]


@dataclass(frozen=True, slots=True)
class Handler:
    """One method.

    function: (Tx or View, request) -> response. write: whether it must run in a pass. members: whether the function
    takes the Raft group as a third argument, which control() supplies.
    """

    function: Callable[..., Message]
    write: bool
    members: bool = False


def _read(function: Callable[[Any, Any], Message]) -> Handler:
    return Handler(function, write=False)


def _write(function: Callable[[Any, Any], Message]) -> Handler:
    return Handler(function, write=True)


CONTROL: dict[str, Handler] = {
    "Control/GetNode": Handler(nodes.get_node, write=False, members=True),
    "Control/ListNodes": Handler(nodes.list_nodes, write=False, members=True),
    "Control/UpdateNode": Handler(nodes.update_node, write=True, members=True),
    "Control/RemoveNode": Handler(nodes.remove_node, write=True, members=True),
    "Control/GetTask": _read(tasks.get_task),
    "Control/ListTasks": _read(tasks.list_tasks),
    "Control/RemoveTask": _write(tasks.remove_task),
    "Control/GetService": _read(services.get_service),
    "Control/ListServices": _read(services.list_services),
    "Control/CreateService": _write(services.create_service),
    "Control/UpdateService": _write(services.update_service),
    "Control/RemoveService": _write(services.remove_service),
    "Control/ListServiceStatuses": _read(services.list_service_statuses),
    "Control/GetNetwork": _read(networks.get_network),
    "Control/ListNetworks": _read(networks.list_networks),
    "Control/CreateNetwork": _write(networks.create_network),
    "Control/RemoveNetwork": _write(networks.remove_network),
    "Control/GetCluster": _read(clusters.get_cluster),
    "Control/ListClusters": _read(clusters.list_clusters),
    clusters.UPDATE_CLUSTER: _write(clusters.update_cluster),
    "Control/GetSecret": _read(secrets.get_secret),
    "Control/UpdateSecret": _write(secrets.update_secret),
    "Control/ListSecrets": _read(secrets.list_secrets),
    "Control/CreateSecret": _write(secrets.create_secret),
    "Control/RemoveSecret": _write(secrets.remove_secret),
    "Control/GetConfig": _read(secrets.get_config),
    "Control/UpdateConfig": _write(secrets.update_config),
    "Control/ListConfigs": _read(secrets.list_configs),
    "Control/CreateConfig": _write(secrets.create_config),
    "Control/RemoveConfig": _write(secrets.remove_config),
    "Control/GetExtension": _read(resources.get_extension),
    "Control/CreateExtension": _write(resources.create_extension),
    "Control/RemoveExtension": _write(resources.remove_extension),
    "Control/GetResource": _read(resources.get_resource),
    "Control/UpdateResource": _write(resources.update_resource),
    "Control/ListResources": _read(resources.list_resources),
    "Control/CreateResource": _write(resources.create_resource),
    "Control/RemoveResource": _write(resources.remove_resource),
    "Control/CreateVolume": _write(resources.create_volume),
    "Control/GetVolume": _read(resources.get_volume),
    "Control/UpdateVolume": _write(resources.update_volume),
    "Control/ListVolumes": _read(resources.list_volumes),
    "Control/RemoveVolume": _write(resources.remove_volume),
}


def control(members: Members) -> dict[str, Handler]:
    """The table ready for use: every function takes (Tx or View, request)."""
    table = {}
    for name, handler in CONTROL.items():
        function = partial(handler.function, members=members) if handler.members else handler.function
        table[name] = Handler(_understood(function) if handler.write else function, handler.write)
    return table


def _understood(function: Callable[[Any, Any], Message]) -> Callable[[Any, Any], Message]:
    """The same function, which refuses requests with enumeration values that this version does not know."""

    def run(tx: Any, request: Message) -> Message:
        field = unknown_value(request)
        if field is not None:
            raise InvalidArgument(f"{MALFORMED}: {field} has a value that this manager does not know")
        return function(tx, request)

    return run
