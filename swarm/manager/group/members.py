"""The Raft group as a manager knows it: members and their addresses, who was removed, and changes under way.

Changes of the group are proposed one at a time, each when the one before is applied; a joiner is checked first (it must
answer on its advertised address, since the group will count on it), and so is a member's new address (addresses.py).

(swarmkit: manager/state/raft/membership/cluster.go; raft.go Join, Leave)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from google.protobuf.message import DecodeError

from swarm import api, defaults
from swarm.address import at_host, host_of
from swarm.api import raftpb
from swarm.errors import Code, NotFound, NotLeader, PermissionDenied, SwarmError
from swarm.manager.group.addresses import Claims, moved_to
from swarm.raft.progress import quorum
from swarm.rpc import MANAGER_ROLE, Peer

REMOVED_TEXT = "raft: member was removed from the cluster"
UNREACHABLE_TEXT = "could not connect to prospective new cluster member using its advertised address: "
_UNDECIDED = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED)


def is_join_undecided(error: SwarmError) -> bool:
    """Whether this answer to RaftMembership/Join, or the lack of one, leaves open what becomes of the joiner."""
    if error.message == NotLeader().message:  # it was proposed, and another leader may bring it to its end
        return True
    return error.code in _UNDECIDED and not error.message.startswith(UNREACHABLE_TEXT)


@dataclass(slots=True)
class Pending:
    """One change of the group. stream: the call that waits for it, or None. index: its entry once accepted."""

    change: raftpb.ConfChange
    stream: int | None = None
    tag: int = 0
    index: int = 0


class RaftGroup:
    """Bookkeeping only: the manager proposes and answers."""

    def __init__(self, raft_id: int) -> None:
        self.raft_id = raft_id
        self.members: dict[int, api.RaftMember] = {}
        self.removed: dict[int, None] = {}
        self._unreachable: dict[int, None] = {}
        self._moved: dict[int, api.RaftMember] = {}
        self._claims = Claims()
        self.callers: dict[int, api.RaftMember] = {}
        """Who sent messages without being a member as far as the log tells: it may lag, and they need answers."""
        self._ours: dict[int, bool] = {}
        self._queue: deque[Pending] = deque()
        self.proposed: Pending | None = None

    # --- what is so ------------------------------------------------------------------------------------------------

    def apply(self, change: raftpb.ConfChange) -> bool:
        """A committed change. Returns whether it takes this member back, which the log has removed before.

        Only force_new_cluster does that, in a member that was being removed when the others were lost.
        """
        self._moved.pop(change.node_id, None)
        self._claims.drop(change.node_id)
        self.callers.pop(change.node_id, None)
        comes = change.type != raftpb.ConfChangeRemoveNode
        back = comes and change.node_id == self.raft_id and self.raft_id in self.removed
        if comes:
            self.members[change.node_id] = _member_of(change)
            self.removed.pop(change.node_id, None)
        else:
            self.members.pop(change.node_id, None)
            self.removed[change.node_id] = None
            self._unreachable.pop(change.node_id, None)
            self._claims.keep_only(dict.fromkeys(self.members))
        return back

    def restore(self, membership: api.ClusterSnapshot) -> None:
        """What a snapshot says."""
        self.members = {member.raft_id: member for member in membership.members}
        self.removed = dict.fromkeys(membership.removed)
        self._moved.clear()
        self._claims = Claims()

    def save(self) -> api.ClusterSnapshot:
        """For a snapshot."""
        members = [self.members[raft_id] for raft_id in sorted(self.members)]
        return api.ClusterSnapshot(members=members, removed=sorted(self.removed))

    def join_answer(self, raft_id: int) -> api.JoinResponse:
        """What this new member has to know."""
        members = [self.members[key] for key in sorted(self.members)]
        return api.JoinResponse(raft_id=raft_id, members=members, removed_members=sorted(self.removed))

    def by_node(self, node_id: str) -> api.RaftMember | None:
        """The member on this node."""
        return next((member for member in self.members.values() if member.node_id == node_id), None)

    # --- who can be reached ----------------------------------------------------------------------------------------

    def heard(self, raft_id: int, sender: Peer) -> None:
        """A message of this member arrived.

        A member that cannot be reached where it should be, and now calls from elsewhere, may be found there: that is to
        be seen (dials). One that can be reached may call from any of its addresses.
        """
        if self.refusal(raft_id, sender) is not None:
            return
        member = self.members.get(raft_id)
        if member is None and sender.host and self.members:
            self._remember_caller(raft_id, sender)
        unreachable = raft_id in self._unreachable
        self._unreachable.pop(raft_id, None)
        if unreachable and member is not None and sender.node_id == member.node_id:
            self._claim(raft_id, moved_to(sender.host, member.addr))

    def refusal(self, raft_id: int, sender: Peer) -> NotFound | PermissionDenied | None:
        """Why a message of this member, that came from this node, does not count, as far as the group can tell.

        Who was removed is told so, and stops (the exact text counts). Nobody speaks for another node's member, or for
        this one. What else is to be seen: senders.py.
        """
        if raft_id in self.removed:
            return NotFound(REMOVED_TEXT)
        if not raft_id:
            return PermissionDenied("raft: the message names no sender")
        if not sender.node_id or sender.role != MANAGER_ROLE:
            return PermissionDenied("raft: only managers send messages of the log")
        member = self.members.get(raft_id)
        if raft_id == self.raft_id or (member is not None and member.node_id not in ("", sender.node_id)):
            return PermissionDenied(f"raft: member {raft_id:x} is not on node {sender.node_id}")
        return None

    def _remember_caller(self, raft_id: int, sender: Peer) -> None:
        """The log does not tell of this one yet. Perhaps it listens where it calls from, on the port of the others."""
        if len(self.callers) >= defaults.MANAGERS_MAX:
            self.callers.clear()
        addr = at_host(sender.host, next(iter(self.members.values())).addr)
        self.callers[raft_id] = api.RaftMember(raft_id=raft_id, node_id=sender.node_id, addr=addr)

    def found_at(self, addr: str, moved: bool) -> None:
        """Where another member finds this one, which leads; it would tell everybody its old address otherwise.

        moved: that member has looked there. If not, this is what its log says, which may be long ago.
        """
        member = self.members.get(self.raft_id)
        if member is None:
            return
        if addr == member.addr:
            self._stay(self.raft_id)
        elif moved:
            self._claim(self.raft_id, moved_to(host_of(addr), member.addr))

    def _claim(self, raft_id: int, addr: str) -> None:
        if addr and addr != self.peers[raft_id].addr:
            self._claims.note(raft_id, addr)

    def _stay(self, raft_id: int) -> None:
        """This member is where the log has it, as far as is known."""
        self._moved.pop(raft_id, None)
        self._claims.drop(raft_id)

    def dials(self, now: float) -> list[api.RaftMember]:
        """Members at the addresses where it is to be seen now whether they serve there; ``now`` as everywhere."""
        return [
            api.RaftMember(raft_id=raft_id, node_id=self.members[raft_id].node_id, addr=addr)
            for raft_id, addr in self._claims.due(now)
        ]

    def dialled(self, raft_id: int, addr: str, error: str) -> bool:
        """How one of the dials ended (error empty: it is found there); returns whether that is worth telling.

        A member that has moved is a peer at its new address from now on; the leader tells everybody (readdress).
        """
        member = self.members.get(raft_id)
        if not self._claims.settle(raft_id, addr) or member is None:
            return False
        if error:
            return self._claims.is_news(raft_id, addr)
        self._stay(raft_id)
        if addr != member.addr:
            self._moved[raft_id] = api.RaftMember(raft_id=raft_id, node_id=member.node_id, addr=addr)
        return True

    def resolve(self, raft_id: int, asker: Peer) -> api.RaftMember | None:
        """Where a member is to be found; one that asks for itself shows by that where it is."""
        member = self.members.get(raft_id)
        if member is not None and member.node_id == asker.node_id:
            self.heard(raft_id, asker)
        return self.peers.get(raft_id)

    @property
    def peers(self) -> Mapping[int, api.RaftMember]:
        """The members with the addresses at which they can be reached."""
        return {**self.members, **self._moved} if self._moved else self.members

    def readdress(self) -> None:
        """Queue the new addresses of members that have moved, if that is not under way."""
        if not self._moved:
            return
        pending = [*self._queue, *((self.proposed,) if self.proposed else ())]
        for raft_id, moved in self._moved.items():
            if not any(p.change.node_id == raft_id for p in pending):
                self._enqueue(raftpb.ConfChangeUpdateNode, moved, None)

    def lost(self, raft_id: int) -> None:
        """A message to this member could not be delivered."""
        self._unreachable[raft_id] = None

    def reachable(self, raft_id: int) -> bool:
        """Whether this member could be reached lately."""
        return raft_id == self.raft_id or raft_id not in self._unreachable

    def can_spare(self, node_id: str) -> bool:
        """Whether the group can decide without this node, while it is a member still: also to remove it."""
        left = [raft_id for raft_id, member in self.members.items() if member.node_id != node_id]
        return sum(map(self.reachable, left)) >= quorum(len(self.members))

    def can_remove(self, node_id: str) -> bool:
        """Whether the group keeps a quorum of members that can be reached (swarmkit: CanRemoveMember)."""
        left = [raft_id for raft_id, member in self.members.items() if member.node_id != node_id]
        return bool(left) and sum(map(self.reachable, left)) >= quorum(len(left))

    def turn(self, interval: int) -> int:
        """How far this member's turn is after the first one's, where each has one in every ``interval``."""
        before = sum(raft_id < self.raft_id for raft_id in self.members)
        return interval * before // max(len(self.members), 1)

    def others(self) -> list[int]:
        """Raft ids of the other members, in order."""
        return [raft_id for raft_id in sorted(self.members) if raft_id != self.raft_id]

    def known(self, raft_id: int, ours: bool) -> None:
        """What kind of manager a member is."""
        self._ours[raft_id] = ours

    def is_ours(self, raft_id: int) -> bool | None:
        """Whether this member is a manager of ours; None: not known yet."""
        return self._ours.get(raft_id)

    def expect(self, members: Iterable[api.RaftMember]) -> None:
        """What was told when this member joined, until the log tells: the leader could not be answered otherwise."""
        for member in members:
            self.members.setdefault(member.raft_id, member)

    def only_ours(self) -> bool:
        """Whether every other member is known to be a manager of ours."""
        return all(self._ours.get(raft_id, False) for raft_id in self.members if raft_id != self.raft_id)

    def stock(self) -> list[int]:
        """The members that are known to be stock managers."""
        return [raft_id for raft_id in sorted(self.members) if self._ours.get(raft_id) is False]

    # --- changes ---------------------------------------------------------------------------------------------------

    def add(self, node_id: str, addr: str, stream: int, rng: Random, ours: bool) -> None:
        """Queue a new member with a fresh raft ID."""
        raft_id = rng.getrandbits(63) + 1
        while raft_id in self.members or raft_id in self.removed:
            raft_id = rng.getrandbits(63) + 1
        member = api.RaftMember(raft_id=raft_id, node_id=node_id, addr=addr)
        self.known(raft_id, ours)
        self._enqueue(raftpb.ConfChangeAddNode, member, stream)

    def update(self, member: api.RaftMember, addr: str, stream: int | None) -> None:
        """Queue a new address of a member."""
        changed = api.RaftMember(raft_id=member.raft_id, node_id=member.node_id, addr=addr)
        self._enqueue(raftpb.ConfChangeUpdateNode, changed, stream)

    def remove(self, node_id: str, stream: int | None = None) -> None:
        """Queue a removal, unless one is under way that nobody waits for."""
        member = self.by_node(node_id)
        if member is None:
            return
        pending = [*self._queue, *((self.proposed,) if self.proposed else ())]
        removal = raftpb.ConfChangeRemoveNode
        if stream is None and any(p.change.type == removal and p.change.node_id == member.raft_id for p in pending):
            return
        self._enqueue(removal, member, stream)

    def _enqueue(self, kind: raftpb.ConfChangeType, member: api.RaftMember, stream: int | None) -> None:
        self._queue.append(Pending(_change(kind, member), stream))

    def next_change(self) -> Pending | None:
        """The change to propose now, if none is under way; all that were proposed before are applied."""
        if self.proposed is not None or not self._queue:
            return None
        self.proposed = pending = self._queue.popleft()
        if pending.change.type == raftpb.ConfChangeAddNode:
            member = api.RaftMember.FromString(pending.change.context)
            known = self.by_node(member.node_id)
            if known is not None:
                # asked twice, perhaps of two leaders: a node that were two members would have a vote that nobody casts
                member.raft_id = known.raft_id
                pending.change = _change(raftpb.ConfChangeUpdateNode, member)
        return pending

    def next_joiner(self) -> str:
        """The node that the next change makes a member; empty if it is another change."""
        if self.proposed is not None or not self._queue or not _adds(self._queue[0]):
            return ""
        return _member_of(self._queue[0].change).node_id

    def drop_next(self) -> Pending:
        """Give up the next change."""
        return self._queue.popleft()

    def is_joining(self, node_id: str) -> bool:
        """Whether this node is about to become a member."""
        pending = [*self._queue, *((self.proposed,) if self.proposed else ())]
        return any(_adds(change) and _member_of(change.change).node_id == node_id for change in pending)

    def put_back(self) -> None:
        """The log did not take the change: it comes again."""
        if self.proposed is not None:
            self._queue.appendleft(self.proposed)
            self.proposed = None

    def decided(self, index: int) -> Pending | None:
        """The entry at ``index`` is applied: the change that it was, if it is one of ours."""
        pending = self.proposed
        if pending is None or not pending.index or pending.index > index:
            return None
        self.proposed = None
        return pending if pending.index == index else None

    def give_up(self) -> list[Pending]:
        """Leadership is lost: what was under way or waited."""
        pending = [*((self.proposed,) if self.proposed else ()), *self._queue]
        self.proposed = None
        self._queue.clear()
        self._stay(self.raft_id)  # whoever leads next finds out where we are
        return pending


def _adds(pending: Pending) -> bool:
    return pending.change.type == raftpb.ConfChangeAddNode


def _member_of(change: raftpb.ConfChange) -> api.RaftMember:
    """Who is added or moved; what the change itself says counts, and nothing else if its context cannot be read."""
    try:
        member = api.RaftMember.FromString(change.context)
    except DecodeError:
        member = api.RaftMember()
    member.raft_id = change.node_id
    return member


def _change(kind: raftpb.ConfChangeType, member: api.RaftMember) -> raftpb.ConfChange:
    return raftpb.ConfChange(type=kind, node_id=member.raft_id, context=member.SerializeToString())
