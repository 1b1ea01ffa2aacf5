"""The interface of the consensus core: its settings, its events and its effects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swarm import defaults
from swarm.api import raftpb
from swarm.errors import Code, InvalidArgument, SwarmError

NO_ONE = 0
"""The Raft id of nobody: no leader, no vote, no transfer."""


class Role(Enum):
    """What a member is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Reason(Enum):
    """Why a proposal or a read was refused; the value is a sentence for logs."""

    NOT_LEADER = "this member does not lead"
    NOT_READY = "the leader has not yet committed an entry of its own term"
    TRANSFERRING = "leadership is being handed over"
    TOO_MUCH_UNCOMMITTED = "too many bytes wait for their commit"
    TOO_LARGE = "the entry is larger than peers accept"
    CHANGE_PENDING = "another membership change is under way"
    REMOVES_LEADER = "leadership must be handed over before this member is removed"
    BAD_CHANGE = "this membership change is impossible"


class LogLost(SwarmError):
    """This member's disk does not hold what it confirmed: it is damaged, lost, or an old copy.

    The member must never vote or lead with such a log. Its own disk tells (swarm/raft/confirmed.py), or the leader.
    """

    code = Code.DATA_LOSS


class LogConflict(SwarmError):
    """A message contradicts an entry that is already committed here."""

    code = Code.DATA_LOSS


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one member.

    A follower campaigns after election_ticks to twice that many ticks of silence; a leader sends heartbeats every
    heartbeat_ticks. pre_vote: ask for votes before raising the term. check_quorum: a leader that hears no majority for
    election_ticks steps down, and followers do not vote while they hear their leader. campaigns: if False, this member
    stands for election only when a leader tells it to (MsgTimeoutNow), or after a candidate whose log is behind this
    one, because that candidate can never win. announce_s: how long a new commit index may wait for an entry to be sent
    with; after that it is sent alone. commit_lag_entries: by how many entries the commit index on disk may be behind
    where nothing depends on it (it is learnt again after a restart), so that not every write has to carry it.
    """

    raft_id: int
    tick_s: float = defaults.RAFT_TICK_S
    election_ticks: int = defaults.RAFT_ELECTION_TICKS
    heartbeat_ticks: int = defaults.RAFT_HEARTBEAT_TICKS
    pre_vote: bool = False
    check_quorum: bool = True
    campaigns: bool = True
    announce_s: float = 0.0
    commit_lag_entries: int = 0
    message_bytes_max: int = defaults.RAFT_APPEND_BYTES_MAX
    inflight_messages_max: int = defaults.RAFT_INFLIGHT_MESSAGES_MAX
    uncommitted_bytes_max: int = defaults.RAFT_UNCOMMITTED_BYTES_MAX
    entry_bytes_max: int = defaults.TRANSACTION_BYTES_MAX

    def __post_init__(self) -> None:
        if self.raft_id == NO_ONE:
            raise InvalidArgument("raft: the raft id must not be 0")
        if self.tick_s <= 0 or self.heartbeat_ticks < 1:
            raise InvalidArgument("raft: tick and heartbeat must be positive")
        if self.election_ticks <= self.heartbeat_ticks:
            raise InvalidArgument("raft: election tick must be greater than heartbeat tick")
        if min(self.message_bytes_max, self.inflight_messages_max, self.uncommitted_bytes_max) < 1:
            raise InvalidArgument("raft: limits must be positive")

    @property
    def election_s(self) -> float:
        """The shortest silence after which an election may begin, in seconds; also the leader's lease."""
        return self.tick_s * self.election_ticks

    @property
    def heartbeat_s(self) -> float:
        """Seconds between two heartbeats of a leader."""
        return self.tick_s * self.heartbeat_ticks


# --- events ---


@dataclass(frozen=True, slots=True)
class Propose:
    """Append these bytes to the log. Answered by Accepted or Refused with the same tag."""

    tag: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ProposeMembership:
    """Add, remove or update one member. Answered by Accepted or Refused with the same tag."""

    tag: int
    change: raftpb.ConfChange


@dataclass(frozen=True, slots=True)
class Received:
    """A message came from a peer."""

    message: raftpb.Message


@dataclass(frozen=True, slots=True)
class Persisted:
    """What Persist(token) carried is on disk and will survive a crash."""

    token: int


@dataclass(frozen=True, slots=True)
class ReadBarrier:
    """Ask whether this member still leads. Answered by ReadReady or Refused with the same tag."""

    tag: int


@dataclass(frozen=True, slots=True)
class TransferLeadership:
    """Hand leadership to this member; NO_ONE: to the one with the longest log. Ignored unless leading."""

    to: int = NO_ONE


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The last message to this member could not be delivered."""

    raft_id: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The process of this member has ended: its connections were closed, and its address refuses new ones."""

    raft_id: int


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """A MsgSnap was delivered, or could not be."""

    raft_id: int
    ok: bool


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The state machine was saved as of metadata.index, which must have been applied.

    metadata.term and metadata.conf_state are filled in if they are empty. keep_entries: how many entries before it
    to keep for slow followers.
    """

    snapshot: raftpb.Snapshot
    keep_entries: int = defaults.RAFT_ENTRIES_FOR_SLOW_FOLLOWERS


@dataclass(frozen=True, slots=True)
class Campaign:
    """Stand for election now; force: even if others still hear a leader."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class Configure:
    """Use these settings from now on. The raft id cannot change."""

    config: Config


Event = (
    Propose
    | ProposeMembership
    | Received
    | Persisted
    | ReadBarrier
    | TransferLeadership
    | Unreachable
    | Gone
    | SnapshotSent
    | SnapshotTaken
    | Campaign
    | Configure
)


# --- effects ---


@dataclass(frozen=True, slots=True)
class Persist:
    """Write all of this in one transaction, then answer Persisted(token). At most one is under way at a time.

    entries: replace everything from the index of the first one on. snapshot: from now on the newest; entries up to
    compact_to may be deleted. replaces_log: the snapshot came from the leader; no entry that is on disk is valid.
    """

    token: int
    hard_state: raftpb.HardState | None = None
    entries: tuple[raftpb.Entry, ...] = ()
    snapshot: raftpb.Snapshot | None = None
    compact_to: int = 0
    replaces_log: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Give this message to the peer message.to; it may be lost."""

    message: raftpb.Message


@dataclass(frozen=True, slots=True)
class Accepted:
    """The proposal is in the log at this index; it is decided once an entry with this index is committed."""

    tag: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The proposal or the read was not taken; nothing was changed."""

    tag: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Committed:
    """Apply these entries: strictly in order, each once, empty ones and ConfChanges included."""

    entries: tuple[raftpb.Entry, ...]


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """The voters as of the last committed entry or restored snapshot."""

    conf_state: raftpb.ConfState


@dataclass(frozen=True, slots=True)
class Restore:
    """Replace the state machine by this snapshot, which is on disk already."""

    snapshot: raftpb.Snapshot


@dataclass(frozen=True, slots=True)
class BecameLeader:
    """This member leads, and everything committed before was handed out: it may take decisions from now on."""

    term: int


@dataclass(frozen=True, slots=True)
class BecameFollower:
    """This member does not lead, or no longer, or learnt who does. leader NO_ONE: not known."""

    term: int
    leader: int


@dataclass(frozen=True, slots=True)
class ReadReady:
    """This member led when the read was asked for; all entries up to index were handed out."""

    tag: int
    index: int


@dataclass(frozen=True, slots=True)
class NeedSnapshot:
    """A follower needs a snapshot newer than the last one: answer with SnapshotTaken."""

    raft_id: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The group committed the removal of this member."""


Effect = (
    Persist
    | Send
    | Accepted
    | Refused
    | Committed
    | MembershipChanged
    | Restore
    | BecameLeader
    | BecameFollower
    | ReadReady
    | NeedSnapshot
    | Removed
)


@dataclass(frozen=True, slots=True)
class Status:
    """A member's state at one moment. matches: what the leader knows each follower to have on disk."""

    role: Role
    term: int
    leader: int
    last_index: int
    committed: int
    applied: int
    transferee: int
    matches: dict[int, int]


def sender(message: raftpb.Message) -> int:
    """Who sent this message: the field "from", whose name is a keyword of Python."""
    raft_id: int = getattr(message, "from")
    return raft_id


def is_plausible(message: raftpb.Message, own_term: int) -> bool:
    """Whether the terms and indexes of a message can be true: absurd ones would be kept, and nothing could follow them.

    own_term: the term of the receiving member; 0: it has no log, and may join a group of any age.
    """
    metadata = message.snapshot.metadata
    indexes = (message.index, message.commit, message.rejectHint, metadata.index)
    terms = (message.term, message.logTerm, metadata.term)
    if max(indexes) > defaults.RAFT_NUMBER_MAX or max(terms) > defaults.RAFT_NUMBER_MAX:
        return False
    if message.type == raftpb.MsgSnap and metadata.term > message.term:  # of a term later than the leader's
        return False
    return not own_term or message.term <= own_term + defaults.RAFT_TERMS_AHEAD_MAX
