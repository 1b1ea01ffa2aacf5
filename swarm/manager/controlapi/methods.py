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

from swarm import defaults
from swarm.api import rpc
from swarm.api.methods import Method, Req, Res
from swarm.manager.controlapi import clusters, networks, nodes, resources, secrets, services, tasks
from swarm.manager.controlapi.common import require_known_values
from swarm.manager.controlapi.nodes import Members
from swarm.store.store import View
from swarm.store.tx import Tx

__all__ = ["CONTROL", "Handler", "Members", "control"]


@dataclass(frozen=True, slots=True)
class Handler:
    """One method.

    function: (Tx or View, request) -> response; the rows of CONTROL are checked to take and return what their method
    does. write: whether it must run in a pass. members: whether the function takes the Raft group as a third argument,
    which control() supplies. checks: for writes, what can be said of the request alone, and may take its time; they run
    before the write waits for a pass, and raise SwarmErrors as the function does. control() supplies them.
    """

    function: Callable[..., Message]
    write: bool
    members: bool = False
    checks: tuple[Callable[[Any], None], ...] = ()

    def check(self, request: Message) -> None:
        """Run the checks. Raises SwarmError."""
        for check in self.checks:
            check(request)


Row = tuple[str, Handler]


def _read(method: Method[Req, Res], function: Callable[[View, Req], Res]) -> Row:
    return method.name, Handler(function, write=False)


def _write(method: Method[Req, Res], function: Callable[[Tx, Req], Res]) -> Row:
    return method.name, Handler(function, write=True)


def _read_with_members(method: Method[Req, Res], function: Callable[[View, Req, Members], Res]) -> Row:
    return method.name, Handler(function, write=False, members=True)


def _write_with_members(method: Method[Req, Res], function: Callable[[Tx, Req, Members], Res]) -> Row:
    return method.name, Handler(function, write=True, members=True)


CONTROL: dict[str, Handler] = dict(
    (
        _read_with_members(rpc.GET_NODE, nodes.get_node),
        _read_with_members(rpc.LIST_NODES, nodes.list_nodes),
        _write_with_members(rpc.UPDATE_NODE, nodes.update_node),
        _write_with_members(rpc.REMOVE_NODE, nodes.remove_node),
        _read(rpc.GET_TASK, tasks.get_task),
        _read(rpc.LIST_TASKS, tasks.list_tasks),
        _write(rpc.REMOVE_TASK, tasks.remove_task),
        _read(rpc.GET_SERVICE, services.get_service),
        _read(rpc.LIST_SERVICES, services.list_services),
        _write(rpc.CREATE_SERVICE, services.create_service),
        _write(rpc.UPDATE_SERVICE, services.update_service),
        _write(rpc.REMOVE_SERVICE, services.remove_service),
        _read(rpc.LIST_SERVICE_STATUSES, services.list_service_statuses),
        _read(rpc.GET_NETWORK, networks.get_network),
        _read(rpc.LIST_NETWORKS, networks.list_networks),
        _write(rpc.CREATE_NETWORK, networks.create_network),
        _write(rpc.REMOVE_NETWORK, networks.remove_network),
        _read(rpc.GET_CLUSTER, clusters.get_cluster),
        _read(rpc.LIST_CLUSTERS, clusters.list_clusters),
        # cluster_updates.py answers this one, because it may have to ask an authority
        _write(rpc.UPDATE_CLUSTER, clusters.update_cluster),
        _read(rpc.GET_SECRET, secrets.get_secret),
        _write(rpc.UPDATE_SECRET, secrets.update_secret),
        _read(rpc.LIST_SECRETS, secrets.list_secrets),
        _write(rpc.CREATE_SECRET, secrets.create_secret),
        _write(rpc.REMOVE_SECRET, secrets.remove_secret),
        _read(rpc.GET_CONFIG, secrets.get_config),
        _write(rpc.UPDATE_CONFIG, secrets.update_config),
        _read(rpc.LIST_CONFIGS, secrets.list_configs),
        _write(rpc.CREATE_CONFIG, secrets.create_config),
        _write(rpc.REMOVE_CONFIG, secrets.remove_config),
        _read(rpc.GET_EXTENSION, resources.get_extension),
        _write(rpc.CREATE_EXTENSION, resources.create_extension),
        _write(rpc.REMOVE_EXTENSION, resources.remove_extension),
        _read(rpc.GET_RESOURCE, resources.get_resource),
        _write(rpc.UPDATE_RESOURCE, resources.update_resource),
        _read(rpc.LIST_RESOURCES, resources.list_resources),
        _write(rpc.CREATE_RESOURCE, resources.create_resource),
        _write(rpc.REMOVE_RESOURCE, resources.remove_resource),
        _write(rpc.CREATE_VOLUME, resources.create_volume),
        _read(rpc.GET_VOLUME, resources.get_volume),
        _write(rpc.UPDATE_VOLUME, resources.update_volume),
        _read(rpc.LIST_VOLUMES, resources.list_volumes),
        _write(rpc.REMOVE_VOLUME, resources.remove_volume),
    )
)


def control(members: Members, replicas_max: int = defaults.SERVICE_REPLICAS_MAX) -> dict[str, Handler]:
    """The table ready for use: every function takes (Tx or View, request). replicas_max: tasks of one service."""
    table = {}
    limited = {
        rpc.CREATE_SERVICE.name: partial(services.check_create, replicas_max=replicas_max),
        rpc.UPDATE_SERVICE.name: partial(services.check_update, replicas_max=replicas_max),
    }
    for name, handler in CONTROL.items():
        function = partial(handler.function, members=members) if handler.members else handler.function
        checks = [require_known_values, *([limited[name]] if name in limited else ())]
        table[name] = Handler(function, handler.write, checks=tuple(checks) if handler.write else ())
    return table
