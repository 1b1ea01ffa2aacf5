"""Events and effects of an agent: for its executor (one step of one task at a time), for the driver of its connection
and journal, and for the node that it is part of.

Besides the dataclasses here, an agent takes Reply, StreamData and StreamEnd (swarm/rpc.py) of its current connection as
events, and returns Call, StreamData and StreamEnd as effects. It numbers the streams; a number is never used twice.

(swarmkit: agent/exec/controller.go, whose Controller methods are the steps)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from overlay.model import LocalNode, NetworkState
from swarm import api


class Step(Enum):
    """A step that an executor performs for a task. At most one step of a task runs at a time."""

    PREPARE = "prepare"  # pull the image, create the container
    START = "start"  # start it; with a health check, wait until it is healthy
    WAIT = "wait"  # until the container ends
    SHUTDOWN = "shutdown"  # stop with the grace period; the container is kept for its logs
    REMOVE = "remove"  # delete the container and everything made for it
    UPDATE = "update"  # the task's desired state or networks changed while it runs


@dataclass(frozen=True, slots=True)
class Execute:
    """Effect: perform one step. Steps are idempotent: when repeated after a crash, they find what already exists.

    secrets and configs: the payloads that this task references, by ID.
    """

    task_id: str
    step: Step
    task: api.Task
    secrets: Mapping[str, api.Secret] = field(default_factory=dict, repr=False)
    configs: Mapping[str, api.Config] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class CancelStep:
    """Effect: cancel the running step of this task (WAIT, or a PREPARE that pulls).

    Executed for that step must follow soon, with ``cancelled`` unless the step ended by itself first. The agent starts
    the next step of the task only then, or after CANCEL_WAIT_S.
    """

    task_id: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """Effect: these are all tasks of this node. Remove everything that is left of other tasks.

    Comes once, after the manager has sent all tasks. The journal may not have been on disk when the machine lost power,
    so there may be containers of tasks that the agent does not know. Leave tasks that come later alone.
    """

    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineGone:
    """Event: this node cannot run tasks, so it leaves its session until EngineBack.

    certain: the engine has ended, and is not only slow. The managers are told, so they need not wait for missing
    heartbeats.
    """

    error: str
    certain: bool


@dataclass(frozen=True, slots=True)
class EngineBack:
    """Event: the engine answers again."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Event: facts about a container while a step is still running."""

    task_id: str
    container: api.ContainerStatus | None = None
    ports: api.PortStatus | None = None


@dataclass(frozen=True, slots=True)
class Executed:
    """Event: a step ended.

    error: empty on success; users read it in ``docker service ps``. temporary: try the same step again and keep the
    state. container.exit_code matters for WAIT (and for START when the container died at once): when it is not 0 and
    error is empty, the agent writes ``task: non-zero exit (N)``. cancelled: the step ended because of CancelStep.
    """

    task_id: str
    step: Step
    error: str = ""
    temporary: bool = False
    cancelled: bool = False
    container: api.ContainerStatus | None = None
    ports: api.PortStatus | None = None


# --- logs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishLogs:
    """Effect: send the logs that a subscription wants. The driver itself opens LogBroker/PublishLogs.

    A second PublishLogs of the same subscription contains only tasks that came later (follow): add them to the running
    publication. Without follow, the driver ends the publication (close=true) when it has sent the logs of all tasks, at
    once if there are none. With follow, it ends the publication when StopLogs comes.
    """

    subscription: api.SubscriptionMessage
    tasks: tuple[api.Task, ...]


@dataclass(frozen=True, slots=True)
class StopLogs:
    """Effect: end a subscription."""

    subscription_id: str


@dataclass(frozen=True, slots=True)
class LogsEnded:
    """Event: the publication of a subscription has ended, for whatever reason."""

    subscription_id: str


# --- the connection to a manager -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Effect: open a connection; all later Calls go there. An empty manager_addr means the manager in this process,
    reached without the network. Connected and ConnectionLost repeat ``connection``, which is never used twice.
    """

    manager_addr: str
    node_id: str
    connection: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Effect: drop the current connection with all its streams. Do not report anything about it any more."""


@dataclass(frozen=True, slots=True)
class Connected:
    """Event: the connection is open."""

    connection: int


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """Event: the connection could not be opened, or broke."""

    connection: int
    error: str


@dataclass(frozen=True, slots=True)
class LocalManager:
    """Event: a manager runs in this process (or no longer does). The agent prefers it while it runs."""

    running: bool


# --- the node ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Described:
    """Event: the complete node description (with hostname and tls_info). Sent at start, every DESCRIPTION_REFRESH_S
    and whenever it may have changed; the agent compares. It opens no session before the first one.
    """

    description: api.NodeDescription


@dataclass(frozen=True, slots=True)
class SessionUpdate:
    """Effect: what the managers say about this node and themselves. Sent when any of it except the node's status
    changed.

    managers: all of them as (node ID, address), to be kept on disk; the agent's Remotes have them already. root_ca: PEM
    bundle, byte-exact. network_keys: 3 for each subsystem, with their Lamport times.
    """

    session_id: str
    node: api.Node
    managers: tuple[tuple[str, str], ...]
    root_ca: bytes
    network_keys: tuple[api.EncryptionKey, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Networks:
    """Effect: what this node knows now of these networks.

    local: None until a manager has told it. changed: by network ID, each as a whole; None: no task of this node uses
    the network any more. complete: False while this is only what the journal remembers from before a restart, so that
    nothing that exists may be taken away because of it.
    """

    local: LocalNode | None
    changed: Mapping[str, NetworkState | None]
    complete: bool


@dataclass(frozen=True, slots=True)
class SessionState:
    """Effect: a session was established (error is empty), or failed for this reason."""

    session_id: str = ""
    error: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """Event: this node leaves the cluster: stop and remove every task, accept no new ones. Left follows."""


@dataclass(frozen=True, slots=True)
class Left:
    """Effect: after Leave, nothing is left of any task on this node."""


@dataclass(frozen=True, slots=True)
class Journal:
    """Effect: write and delete journal records. Keys are task IDs, values are opaque. The next Agent on this node gets
    the content of the journal. Must be atomic; need not be synchronised to disk before the next effect.
    """

    puts: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    drops: tuple[str, ...] = ()
