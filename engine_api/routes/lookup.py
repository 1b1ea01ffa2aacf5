"""Finding objects by what users type: full ID, then exact name, then a prefix of the ID.

(moby: daemon/cluster/helpers.go)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from engine_api.backend import SwarmBackend
from engine_api.errors import ApiError, BadParameter, ObjectNotFound
from swarm import api
from swarm.api import rpc
from swarm.api.methods import AnyMethod
from swarm.errors import SwarmError

ID_CHARS = 25

Obj = TypeVar("Obj", bound=Message)


@dataclass(frozen=True)
class Kind(Generic[Obj]):
    """One kind of object: its word in texts, the RPCs that read it and their fields. missing: the not-found error."""

    word: str
    plural: str
    get: AnyMethod
    get_request: Callable[[str], Message]
    list: AnyMethod
    missing: type[ApiError] = ObjectNotFound


SERVICE: Kind[api.Service] = Kind(
    "service",
    "services",
    rpc.GET_SERVICE,
    lambda object_id: api.GetServiceRequest(service_id=object_id),
    rpc.LIST_SERVICES,
)
TASK: Kind[api.Task] = Kind(
    "task",
    "tasks",
    rpc.GET_TASK,
    lambda object_id: api.GetTaskRequest(task_id=object_id),
    rpc.LIST_TASKS,
)
NODE: Kind[api.Node] = Kind(
    "node",
    "nodes",
    rpc.GET_NODE,
    lambda object_id: api.GetNodeRequest(node_id=object_id),
    rpc.LIST_NODES,
)
SECRET: Kind[api.Secret] = Kind(
    "secret",
    "secrets",
    rpc.GET_SECRET,
    lambda object_id: api.GetSecretRequest(secret_id=object_id),
    rpc.LIST_SECRETS,
)
CONFIG: Kind[api.Config] = Kind(
    "config",
    "configs",
    rpc.GET_CONFIG,
    lambda object_id: api.GetConfigRequest(config_id=object_id),
    rpc.LIST_CONFIGS,
)
NETWORK: Kind[api.Network] = Kind(
    "network",
    "networks",
    rpc.GET_NETWORK,
    lambda object_id: api.GetNetworkRequest(network_id=object_id),
    rpc.LIST_NETWORKS,
    missing=ApiError,
)
"""An unknown network in a service spec is status 500 in stock engines, and clients rely on it."""


async def find(backend: SwarmBackend, kind: Kind[Obj], word: str) -> Obj:
    """The object. Raises ObjectNotFound (or ``kind.missing``), BadParameter when several match, or the RPC's error."""
    if len(word) == ID_CHARS:
        try:
            found: Obj = getattr(await backend.call(kind.get, kind.get_request(word)), kind.word)
            return found
        except SwarmError:
            pass  # as in stock engines, the lists below decide
    matches = await _list(backend, kind, names=[word])
    if not matches:
        matches = await _list(backend, kind, id_prefixes=[word])
    if not matches:
        raise kind.missing(f"{kind.word} {word} not found")
    if len(matches) > 1:
        raise BadParameter(f"{kind.word} {word} is ambiguous ({len(matches)} matches found)")
    return matches[0]


async def _list(backend: SwarmBackend, kind: Kind[Obj], **filters: list[str]) -> list[Obj]:
    request = kind.list.request(filters=kind.list.request.Filters(**filters))
    return list(getattr(await backend.call(kind.list, request), kind.plural))
