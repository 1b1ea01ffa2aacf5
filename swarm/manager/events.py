"""The words between a manager and the process around it, and what a manager is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from google.protobuf.message import Message

from swarm import api
from swarm.errors import SwarmError
from swarm.manager.external_ca import Outcome, Question
from swarm.manager.service import Service, Write
from swarm.manager.stage import Stage
from swarm.raft import events
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store, View
from swarm.store.tx import Tx

ReadFunction = Callable[[View, Message], Message]
WriteFunction = Callable[[Tx, Message], Message]
CheckFunction = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Changed:
    """Effect: an entry was applied; for watchers in this process (/events)."""

    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class DisconnectRemovedNodes:
    """Effect: nodes may have been removed from the cluster; drop the connections of all that are."""


@dataclass(frozen=True, slots=True)
class EndCallsOfDemoted:
    """Effect: nodes may have lost rights; end the open calls that would not be allowed now (authorize.overstays)."""


@dataclass(frozen=True, slots=True)
class PersistFailed:
    """Event: this write of the log failed, instead of Persisted; nothing of it is on the disk."""

    write: events.Persist
    error: str


@dataclass(frozen=True, slots=True)
class FailLocalCalls:
    """Effect: end every open call of this process with this error."""

    error: SwarmError


@dataclass(frozen=True, slots=True)
class Leadership:
    """Effect: who leads now. leading: this manager does, and its leader is up. leader: raft ID, 0 for nobody."""

    leading: bool
    leader: int
    term: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Effect: open this call on the connection to the leader; what becomes of it is told under the tag.

    ForwardAnswered tells each answer, and how the connection ended. ForwardOpened tells that a client stream is open:
    what its client sends may follow. ForwardFailed tells that the connection could not be made.
    """

    tag: int
    call: Call
    leader: api.RaftMember


@dataclass(frozen=True, slots=True)
class ForwardMore:
    """Effect: what else the client of this call sends; an end with an error cancels it, whether it is open or not."""

    tag: int
    word: StreamData | StreamEnd


@dataclass(frozen=True, slots=True)
class ForwardOpened:
    """Event: see Forward."""

    tag: int


@dataclass(frozen=True, slots=True)
class ForwardFailed:
    """Event: see Forward."""

    tag: int
    error: SwarmError


@dataclass(frozen=True, slots=True)
class ForwardAnswered:
    """Event: see Forward."""

    tag: int
    answer: Reply | StreamData | StreamEnd


@dataclass(frozen=True, slots=True)
class CheckPeer:
    """Effect: see whether a manager serves at this address (Health/Check of "Raft"), then tell with PeerChecked."""

    stream: int
    addr: str


@dataclass(frozen=True, slots=True)
class PeerChecked:
    """Event: the answer to CheckPeer; error is empty when it serves. ours: it is a manager of ours."""

    stream: int
    error: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class DialPeer:
    """Effect: see whether exactly this node serves at this address, as CheckPeer does, then tell with PeerDialled."""

    raft_id: int
    node_id: str
    addr: str


@dataclass(frozen=True, slots=True)
class PeerDialled:
    """Event: the answer to DialPeer; error is empty when the node serves there."""

    raft_id: int
    addr: str
    error: str


@dataclass(frozen=True, slots=True)
class PeerKnown:
    """Event: what a member is: ours, or a stock manager."""

    raft_id: int
    ours: bool


@dataclass(frozen=True, slots=True)
class FoundAt:
    """Event: another member finds this one at this address ("ip:port"); moved: it looked, its log names another one."""

    addr: str
    moved: bool = False


@dataclass(frozen=True, slots=True)
class PeerAnswered:
    """Event: a message to this member was answered after so many seconds."""

    raft_id: int
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class AskAuthority:
    """Effect: put this question to the external authorities that it names, then tell with AuthorityAnswered."""

    tag: int
    question: Question


@dataclass(frozen=True, slots=True)
class AuthorityAnswered:
    """Event: the answer to AskAuthority."""

    tag: int
    outcome: Outcome


ManagerEffect = (
    Reply
    | StreamData
    | StreamEnd
    | Changed
    | DisconnectRemovedNodes
    | EndCallsOfDemoted
    | FailLocalCalls
    | Leadership
    | Forward
    | ForwardMore
    | CheckPeer
    | DialPeer
    | AskAuthority
    | events.Persist
    | events.Send
    | events.Restore
    | events.MembershipChanged
    | events.Removed
)
ManagerEvent = (
    Call
    | StreamData
    | StreamEnd
    | ForwardOpened
    | ForwardFailed
    | ForwardAnswered
    | PeerChecked
    | PeerDialled
    | PeerKnown
    | AuthorityAnswered
    | PeerAnswered
    | FoundAt
    | events.Persisted
    | PersistFailed
    | events.Received
    | events.Unreachable
    | events.Gone
    | events.SnapshotSent
    | events.TransferLeadership
    | events.Configure
    | Write
)


@dataclass(frozen=True)
class Parts:
    """What a manager is made of besides consensus; factories run once per leadership.

    stages: in the order of a pass. services: all gRPC services of a leader. reads, writes: the control API by method.
    checks: of those writes, what can be refused before they wait for a pass; raises SwarmError.
    mixed_leadership: stock managers may be led, by this manager as it is made.
    """

    stages: Callable[[Store, Random, float, bool], Sequence[tuple[str, Stage]]]
    services: Callable[[Store, Random, float], Sequence[Service]]
    reads: Mapping[str, ReadFunction]
    writes: Mapping[str, WriteFunction]
    checks: Mapping[str, CheckFunction] = field(default_factory=dict)
    mixed_leadership: bool = False
