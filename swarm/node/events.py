"""What a Node machine hears and what it wants done: its requests, events and effects.

An effect with a ``tag`` has an outcome: whoever performs it reports Done or Failed with the same tag, once. Effects are
performed in order; those with a tag may take their time. After StopRoles no outcome of an earlier effect is expected.

(swarmkit: node/node.go; moby: daemon/cluster/noderunner.go)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from swarm import api
from swarm.agent import events as agent_events
from swarm.agent.agent import AgentEvent
from swarm.errors import SwarmError
from swarm.manager.cluster import NewCluster
from swarm.node.remotes import Manager
from swarm.node.state import Addresses, NodeState

# --- requests: each is answered by one Answer with its ticket --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Init:
    """Make a new cluster, of which this node is the first manager. state: with fresh node and cluster IDs."""

    ticket: int
    state: NodeState
    spec: api.ClusterSpec
    details: NewCluster


@dataclass(frozen=True, slots=True)
class Join:
    """Join the cluster of the managers in ``state``, whose IDs are not known yet. availability: api.NodeSpec's."""

    ticket: int
    state: NodeState
    token: str = field(repr=False)
    availability: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave the cluster and forget everything. force: also as a manager, and while locked."""

    ticket: int
    force: bool


@dataclass(frozen=True, slots=True)
class Unlock:
    """Go on with this unlock key after a start that found the key file encrypted."""

    ticket: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ForceNewCluster:
    """Go on as the only manager of the same cluster, at these addresses, after the majority was lost."""

    ticket: int
    addresses: Addresses


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon ends: stop everything, keep the disk."""

    ticket: int


Request = Init | Join | Leave | Unlock | ForceNewCluster | Stop


class Refusal(Enum):
    """Why a request does not fit the state of this node. Users see the texts of engine_api/host.py."""

    IN_SWARM = "this node is already part of a swarm"
    NOT_IN_SWARM = "this node is not part of a swarm"
    NO_MANAGER = "this node keeps no log of a manager"
    LOCKED = "the key of this node is locked"
    NOT_LOCKED = "the key of this node is not locked"
    MANAGER = "this node is a manager"
    STILL_JOINING = "the attempt to join goes on in the background"
    LEFT = "the attempt to join was ended by a request to leave"
    STOPPING = "the daemon is stopping"


class Refused(SwarmError):
    """A request that was refused; nothing was changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Boot:
    """The daemon starts; answered like a request. state: what state.json says, None if there is none.

    error: why it cannot be read, None if it can. leaving: DropState was performed. others: names of the other files of
    this node. node_id: the ID that they still show, when there is no state.
    """

    ticket: int
    state: NodeState | None
    error: Exception | None = None
    node_id: str = ""
    leaving: bool = False
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of the effect with this tag: what it found or made, or None."""

    tag: int
    value: Identity | ManagerUp | ManagerDown | api.NodeDescription | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The effect with this tag came to nothing."""

    tag: int
    error: Exception


@dataclass(frozen=True, slots=True)
class ManagerEnded:
    """The manager of the StartManager with this tag is of no use any more: removed from its group, or failed."""

    tag: int
    removed: bool = False
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class RenewCertificateNow:
    """The certificate's key is not to be trusted any more, for example since it lay on disk in the clear."""


Event = (
    Request
    | Boot
    | Done
    | Failed
    | ManagerEnded
    | agent_events.EngineGone
    | agent_events.EngineBack
    | RenewCertificateNow
    | agent_events.SessionState
    | agent_events.SessionUpdate
    | agent_events.Left
)

# --- outcomes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """The certificate that this node uses from now on, and the roots that it trusts. Both are on disk."""

    certificate_pem: bytes
    root_pem: bytes


@dataclass(frozen=True, slots=True)
class ManagerUp:
    """A manager runs, as this member of its Raft group."""

    raft_id: int


@dataclass(frozen=True, slots=True)
class ManagerDown:
    """A manager was stopped. others: (node ID, "ip:port") of the other members. removed: the group removed it."""

    raft_id: int
    others: tuple[Manager, ...]
    removed: bool = False


# --- effects: the disk -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveState:
    """Write state.json, synchronised."""

    tag: int
    state: NodeState


@dataclass(frozen=True, slots=True)
class DropState:
    """Record that this node leaves, in place of state.json: Erase deletes what else is there, now or after a start."""

    tag: int


@dataclass(frozen=True, slots=True)
class SaveRoot:
    """Write the roots to trust."""

    tag: int
    root_pem: bytes


@dataclass(frozen=True, slots=True)
class ForgetLog:
    """Delete Raft's log of a manager that does not run."""

    tag: int


@dataclass(frozen=True, slots=True)
class Erase:
    """Delete everything of this node; last of all what DropState recorded. It may be repeated."""

    tag: int


# --- effects: who this node is ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MakeIdentity:
    """Make a root and a certificate for the first manager of a new cluster, and save both. Outcome: Identity."""

    tag: int
    state: NodeState
    spec: api.ClusterSpec
    unlock_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """Get a certificate from these managers ("ip:port") by join token, and save it. Outcome: Identity."""

    tag: int
    managers: tuple[str, ...]
    token: str = field(repr=False)
    availability: int


@dataclass(frozen=True, slots=True)
class OpenIdentity:
    """Read what is on disk. Outcome: Identity. Fails with NodeLocked without the key that is needed.

    unlock_key: empty if there is none at hand. reuse_key: the key that opened it before is good, too.
    """

    tag: int
    unlock_key: bytes = field(default=b"", repr=False)
    reuse_key: bool = False


@dataclass(frozen=True, slots=True)
class RenewCertificate:
    """Exchange the certificate at one of these managers, and save the new one. Outcome: Identity."""

    tag: int
    managers: tuple[Manager, ...]
    root_pem: bytes


# --- effects: manager and agent --------------------------------------------------------------------------------------


class OnLoss(Enum):
    """What a manager does whose log does not hold what it confirmed."""

    REFUSE = "it does not start"
    REJOIN = "it becomes another member of its group; the log stays until the group took it in"
    ACCEPT = "it goes on with what is left, as the only member"


@dataclass(frozen=True, slots=True)
class StartManager:
    """Start the manager. Outcome: ManagerUp. Fails with LogLost if the log does not hold what it confirmed.

    create: of a new cluster. force_new_cluster: as the only member of its group. Otherwise it goes on from its log, or
    becomes a member through one of ``state``'s other managers. on_loss: REJOIN only after LogLost, ACCEPT only with
    force_new_cluster and when users were told what is lost.
    """

    tag: int
    state: NodeState
    create: bool = False
    force_new_cluster: bool = False
    on_loss: OnLoss = OnLoss.REFUSE


@dataclass(frozen=True, slots=True)
class StopManager:
    """Stop the manager; a leader hands over first. Outcome: ManagerDown."""

    tag: int


@dataclass(frozen=True, slots=True)
class AwaitLeadership:
    """Wait until the manager leads."""

    tag: int


@dataclass(frozen=True, slots=True)
class WriteFirstObjects:
    """Write the cluster and its first node through the manager, once it leads."""

    tag: int
    state: NodeState
    spec: api.ClusterSpec
    details: NewCluster


@dataclass(frozen=True, slots=True)
class StartAgent:
    """Start the executor and the agent of this node."""

    tag: int
    node_id: str


@dataclass(frozen=True, slots=True)
class TellAgent:
    """Hand an event to the agent, if it runs."""

    event: AgentEvent


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask the executor what this node has. Outcome: api.NodeDescription."""

    tag: int


@dataclass(frozen=True, slots=True)
class StopRoles:
    """Stop agent, executor and manager, and whatever is being performed. The disk keeps everything."""

    tag: int


@dataclass(frozen=True, slots=True)
class RemoveContainers:
    """Delete the containers of tasks of this node."""

    tag: int
    node_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a request. error: None after success."""

    ticket: int
    error: Exception | None = None


Effect = (
    SaveState
    | DropState
    | SaveRoot
    | ForgetLog
    | Erase
    | MakeIdentity
    | RequestIdentity
    | OpenIdentity
    | RenewCertificate
    | StartManager
    | StopManager
    | AwaitLeadership
    | WriteFirstObjects
    | StartAgent
    | TellAgent
    | Describe
    | StopRoles
    | RemoveContainers
    | Answer
)
TaggedEffect = (
    SaveState
    | DropState
    | SaveRoot
    | ForgetLog
    | Erase
    | MakeIdentity
    | RequestIdentity
    | OpenIdentity
    | RenewCertificate
    | StartManager
    | StopManager
    | AwaitLeadership
    | WriteFirstObjects
    | StartAgent
    | Describe
    | StopRoles
    | RemoveContainers
)
