"""What the HTTP routes need from the daemon: the seam between the Engine API and the swarm behind it.

(moby: api/server/router/swarm/backend.go)
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from swarm import api
from swarm.api.methods import Method, Req, Res

_asked_at: ContextVar[float | None] = ContextVar("asked_at", default=None)


def asked_now() -> None:
    """Note that a client's request begins in this task: all its calls together have one deadline."""
    _asked_at.set(time.monotonic())


def waited_s() -> float:
    """How long the client of this task's request has been waiting, in seconds."""
    asked_at = _asked_at.get()
    return 0.0 if asked_at is None else time.monotonic() - asked_at


class LocalNodeState(Enum):
    """What /info calls LocalNodeState."""

    INACTIVE = "inactive"
    PENDING = "pending"
    ACTIVE = "active"
    ERROR = "error"
    LOCKED = "locked"


@dataclass(frozen=True)
class LocalNode:
    """The state of this node in the swarm, for /info, /_ping and the check that it is a manager.

    remote_managers: (node ID, "ip:port") of the managers it knows. error: empty, or what is wrong, for the user.
    """

    state: LocalNodeState = LocalNodeState.INACTIVE
    node_id: str = ""
    node_addr: str = ""
    control_available: bool = False
    error: str = ""
    remote_managers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class InitRequest:
    """POST /swarm/init, addresses as the user typed them; spec is already merged over the defaults."""

    listen_addr: str
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    force_new_cluster: bool = False
    spec: api.ClusterSpec = field(default_factory=api.ClusterSpec)
    autolock_managers: bool = False
    availability: str = ""
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0


@dataclass(frozen=True)
class JoinRequest:
    """POST /swarm/join."""

    listen_addr: str
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: tuple[str, ...] = ()
    join_token: str = ""
    availability: str = ""


class SwarmBackend(Protocol):
    """Implemented by engine_api.cluster.Cluster; tests use a fake."""

    def local(self) -> LocalNode:
        """The current state of this node."""
        ...

    def require_manager(self) -> None:
        """Raises ServiceUnavailable, with a text for the current state, unless this node is a working manager."""
        ...

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """A unary RPC to the leader (rpc.CREATE_SERVICE) as this manager itself.

        Raises ApiError (require_manager's, or the deadline) or SwarmError (the RPC's own).
        """
        ...

    def stream(self, method: Method[Req, Res], request: Req) -> AsyncIterator[Res]:
        """A server-streaming RPC to the leader (rpc.SUBSCRIBE_LOGS); closing the iterator cancels it."""
        ...

    async def init(self, request: InitRequest) -> str:
        """Create a cluster with this node as its manager; returns the node ID. Raises ApiError."""
        ...

    async def join(self, request: JoinRequest) -> None:
        """Join a cluster; returns when the node is ready. Raises ApiError, also after 20 s; the join then goes on."""
        ...

    async def leave(self, force: bool) -> None:
        """Leave the cluster: stop all roles, remove task containers, delete all state. Raises ApiError."""
        ...

    async def unlock(self, key: str) -> None:
        """Unlock a locked manager with its SWMKEY. Raises ApiError."""
        ...
