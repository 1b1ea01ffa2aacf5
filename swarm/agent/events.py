"""The words of an agent: to its executor (one step of one task at a time), to the driver of its connection and
journal, and to the node around it.

Besides the dataclasses here an agent takes Reply, StreamData and StreamEnd (swarm/rpc.py) of its present connection as
events, and returns Call, StreamData and StreamEnd as effects. It numbers the streams; a number is never used twice.

(swarmkit: agent/exec/controller.go, whose Controller methods are the steps)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from swarm import api


class Step(Enum):
    """What an executor can be asked to do for a task. At most one step of a task runs at a time."""

    PREPARE = "prepare"  # pull, create the container
    START = "start"  # start it, and wait until it is healthy where it has a health check
    WAIT = "wait"  # until the container ends
    SHUTDOWN = "shutdown"  # stop with grace period; the container stays for its logs
    REMOVE = "remove"  # delete the container and everything made for it
    UPDATE = "update"  # the task's desired state or networks changed while it runs


@dataclass(frozen=True, slots=True)
class Execute:
    """Effect: perform one step. Steps are idempotent: repeated after a crash they find what is already there.

    secrets and configs: the payloads that this task references, by ID.
    """

    task_id: str
    step: Step
    task: api.Task
    secrets: Mapping[str, api.Secret] = field(default_factory=dict, repr=False)
    configs: Mapping[str, api.Config] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class CancelStep:
    """Effect: give up the running step of this task (WAIT, or a PREPARE that pulls).

    Executed for that step must come soon, ``cancelled`` unless the step ended by itself first; the agent asks for the
    next step of the task only then, or after CANCEL_WAIT_S.
    """

    task_id: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """Effect: these are all tasks of this node; what else is left of any task belongs to nobody and is to be removed.

    Comes once, when the manager has named all tasks. The journal need not be on disk when the machine loses its power,
    so there may be containers of tasks that the agent never heard of. Tasks that come later are not to be touched.
    """

    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineGone:
    """Event: this node cannot run tasks, so it leaves its session until EngineBack.

    certain: the engine has ended, it is not only slow; the managers are told and need not wait for missing heartbeats.
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

    error: empty on success; as users read it in ``docker service ps``. temporary: the same step should be tried again
    with the state kept. container.exit_code counts for WAIT (and for START when the container died at once): when it is
    not 0 and error is empty, the agent writes ``task: non-zero exit (N)``. cancelled: the step was given up on request.
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
    """Effect: send the logs that a subscription asks for; the driver opens LogBroker/PublishLogs by itself.

    A second PublishLogs of the same subscription brings only tasks that came later (follow): add them to what runs.
    Without follow the driver ends the publication (close=true) when the logs of all tasks were sent, at once if there
    are none; with follow when StopLogs comes.
    """

    subscription: api.SubscriptionMessage
    tasks: tuple[api.Task, ...]


@dataclass(frozen=True, slots=True)
class StopLogs:
    """Effect: end a subscription."""

    subscription_id: str


@dataclass(frozen=True, slots=True)
class LogsEnded:
    """Event: the publication of a subscription is over, whatever the reason."""

    subscription_id: str


# --- the connection to a manager -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Effect: open a connection; every Call that follows goes there. An empty manager_addr means this node's own
    manager, without a network. ``connection`` comes back in Connected and ConnectionLost and is never used twice.
    """

    manager_addr: str
    node_id: str
    connection: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Effect: drop the present connection with all its streams; nothing needs to be reported about it any more."""


@dataclass(frozen=True, slots=True)
class Connected:
    """Event: the connection is open."""

    connection: int


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """Event: the connection could not be made, or broke."""

    connection: int
    error: str


@dataclass(frozen=True, slots=True)
class LocalManager:
    """Event: a manager runs in this process (or no longer does); while it does the agent prefers it."""

    running: bool


# --- the node ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Described:
    """Event: what this node has, completely (hostname and tls_info too). Sent at start, every DESCRIPTION_REFRESH_S
    and whenever it may have changed; the agent compares. No session is opened before the first one.
    """

    description: api.NodeDescription


@dataclass(frozen=True, slots=True)
class SessionUpdate:
    """Effect: what the managers say about this node and themselves, when any of it (but the node's status) changed.

    managers: all of them as (node ID, address); the Remotes given to the agent know them already, this is for keeping
    them on disk. root_ca: PEM bundle, byte-exact. network_keys: 3 for each subsystem, with their Lamport times.
    """

    session_id: str
    node: api.Node
    managers: tuple[tuple[str, str], ...]
    root_ca: bytes
    network_keys: tuple[api.EncryptionKey, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionState:
    """Effect: a session was established (error is empty) or one failed for this reason."""

    session_id: str = ""
    error: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """Event: this node leaves the cluster: stop and remove every task, accept no more. Left follows."""


@dataclass(frozen=True, slots=True)
class Left:
    """Effect: after Leave: nothing of any task is left on this node."""


@dataclass(frozen=True, slots=True)
class Journal:
    """Effect: remember these records, forget those; keys are task IDs, values are opaque. What the journal holds is
    given to the next Agent on this node. Must be atomic; need not be synchronised to disk before the next effect.
    """

    puts: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    drops: tuple[str, ...] = ()
