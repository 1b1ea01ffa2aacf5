"""Finding objects by what users type: full ID, then exact name, then a prefix of the ID.

(moby: daemon/cluster/helpers.go)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from engine_api.backend import SwarmBackend
from engine_api.errors import ApiError, BadParameter, ObjectNotFound
from swarm import api
from swarm.errors import SwarmError

ID_CHARS = 25


@dataclass(frozen=True)
class Kind:
    """One kind of object: its word in texts, the RPCs that read it and their fields. missing: the not-found error."""

    word: str
    plural: str
    get: str
    get_request: Callable[[str], Message]
    list: str
    list_request: Any
    missing: type[ApiError] = ObjectNotFound


SERVICE = Kind(
    "service",
    "services",
    "Control/GetService",
    lambda object_id: api.GetServiceRequest(service_id=object_id),
    "Control/ListServices",
    api.ListServicesRequest,
)
TASK = Kind(
    "task",
    "tasks",
    "Control/GetTask",
    lambda object_id: api.GetTaskRequest(task_id=object_id),
    "Control/ListTasks",
    api.ListTasksRequest,
)
NODE = Kind(
    "node",
    "nodes",
    "Control/GetNode",
    lambda object_id: api.GetNodeRequest(node_id=object_id),
    "Control/ListNodes",
    api.ListNodesRequest,
)
SECRET = Kind(
    "secret",
    "secrets",
    "Control/GetSecret",
    lambda object_id: api.GetSecretRequest(secret_id=object_id),
    "Control/ListSecrets",
    api.ListSecretsRequest,
)
CONFIG = Kind(
    "config",
    "configs",
    "Control/GetConfig",
    lambda object_id: api.GetConfigRequest(config_id=object_id),
    "Control/ListConfigs",
    api.ListConfigsRequest,
)
NETWORK = Kind(
    "network",
    "networks",
    "Control/GetNetwork",
    lambda object_id: api.GetNetworkRequest(network_id=object_id),
    "Control/ListNetworks",
    api.ListNetworksRequest,
    missing=ApiError,
)
"""A network that a service names and nobody knows is 500 in stock engines; clients rely on it."""


async def find(backend: SwarmBackend, kind: Kind, word: str) -> Any:
    """The object. Raises ObjectNotFound (or ``kind.missing``), BadParameter when several match, or the RPC's error."""
    if len(word) == ID_CHARS:
        try:
            answer: Any = await backend.call(kind.get, kind.get_request(word))
            return getattr(answer, kind.word)
        except SwarmError:
            pass  # as in stock engines: whatever it was, the lists below say it better
    filters = kind.list_request.Filters
    found = await _list(backend, kind, filters(names=[word]))
    if not found:
        found = await _list(backend, kind, filters(id_prefixes=[word]))
    if not found:
        raise kind.missing(f"{kind.word} {word} not found")
    if len(found) > 1:
        raise BadParameter(f"{kind.word} {word} is ambiguous ({len(found)} matches found)")
    return found[0]


async def _list(backend: SwarmBackend, kind: Kind, filters: Message) -> list[Any]:
    answer = await backend.call(kind.list, kind.list_request(filters=filters))
    return list(getattr(answer, kind.plural))
