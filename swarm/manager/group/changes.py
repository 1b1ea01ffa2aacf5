"""Changes of the group: members join, leave and move, one at a time, and a leader that goes hands over first.

A joiner is called back before it becomes a member. Without --allow-mixed-leadership a leader hands over to a stock
manager that stays one.

(swarmkit: manager/state/raft/raft.go Join, Leave; manager/manager.go)
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import structlog

from swarm import api
from swarm.api import raftpb, rpc
from swarm.errors import FailedPrecondition, NotLeader, PermissionDenied, Unavailable
from swarm.manager.calls import Calls
from swarm.manager.events import CheckPeer, ManagerEffect, PeerChecked
from swarm.manager.group.addresses import with_host
from swarm.manager.group.consensus import Consensus
from swarm.manager.group.members import UNREACHABLE_TEXT, RaftGroup
from swarm.manager.judge import Judge
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import MANAGER_ROLE, Call, Peer, Reply, StreamEnd
from swarm.store.store import Store

log = structlog.get_logger()

NO_STOCK_FOLLOWERS = (
    "the leader of this swarm is a sideswarm manager without --allow-mixed-leadership: a stock engine may join it as a "
    "worker only"
)
NO_QUORUM_LEFT = "can't remove member from the raft: this would result in a loss of quorum"


class Changes:
    """See the module. now: seconds since the epoch."""

    def __init__(
        self,
        raft: Raft,
        store: Store,
        group: RaftGroup,
        consensus: Consensus,
        calls: Calls,
        judge: Judge,
        out: list[ManagerEffect],
        tags: Iterator[int],
        rng: Random,
    ) -> None:
        self.heir: int | None = None
        """Who is to lead instead, events.NO_ONE: any other member; None: nobody is to."""
        self._raft = raft
        self._store = store
        self._group = group
        self._consensus = consensus
        self._calls = calls
        self._judge = judge
        self._out = out
        self._tags = tags
        self._rng = rng
        self._yield_at = 0.0

    # --- calls -----------------------------------------------------------------------------------------------------

    def known_joiner(self, call: Call) -> Reply | None:
        """The answer for one who is a member already: it did not hear the first one, and the group may need its vote.

        No leader is needed for it, and none may be possible without the joiner. That it never was this member before
        is for the joiner to say.
        """
        request = rpc.JOIN.checked_request(call.request)
        member = self._group.by_node(call.peer.node_id)
        if member is None or member.addr != with_host(request.addr, call.peer.host):
            return None
        return Reply(call.stream, self._group.join_answer(member.raft_id))

    def join(self, call: Call) -> None:
        """RaftMembership/Join, to the leader: check that the joiner serves, then add it (swarmkit: raft.go Join)."""
        addr = with_host(rpc.JOIN.checked_request(call.request).addr, call.peer.host)
        self._calls.at_check(call, addr)
        self._out.append(CheckPeer(call.stream, addr))

    def joiner_checked(self, event: PeerChecked, leading: bool) -> None:
        """A joiner was called back. leading: whether this manager leads still."""
        found = self._calls.take_check(event.stream)
        if found is None:
            return
        call, addr = found
        if not leading:
            self._out.append(StreamEnd(call.stream, NotLeader()))
        elif (refusal := self._judge.refusal(call.method, call.peer)) is not None:
            self._out.append(StreamEnd(call.stream, refusal))
        elif event.error:
            self._out.append(StreamEnd(call.stream, Unavailable(UNREACHABLE_TEXT + event.error)))
        elif not (event.ours or self._consensus.mixed_leadership):
            self._out.append(StreamEnd(call.stream, FailedPrecondition(NO_STOCK_FOLLOWERS)))
        elif (member := self._group.by_node(call.peer.node_id)) is not None:
            self._group.update(member, addr, call.stream)
        else:
            self._group.add(call.peer.node_id, addr, call.stream, self._rng, event.ours)

    def leave(self, call: Call) -> None:
        """RaftMembership/Leave: a node asks to remove the member that it was, whose log is gone (raft.go Leave)."""
        member = self._group.members.get(rpc.LEAVE.checked_request(call.request).node.raft_id)
        if member is None:
            self._out.append(Reply(call.stream, api.LeaveResponse()))
        elif member.node_id != call.peer.node_id:
            self._out.append(StreamEnd(call.stream, PermissionDenied("a member is removed by its own node only")))
        elif not self._group.can_remove(member.node_id):
            self._out.append(StreamEnd(call.stream, FailedPrecondition(NO_QUORUM_LEFT)))
        else:
            self._group.remove(member.node_id, call.stream)

    # --- proposals -------------------------------------------------------------------------------------------------

    def propose(self, now: float, in_flight: bool) -> None:
        """As the leader: propose the next change of the group, if one waits and none is under way.

        in_flight: a pass is. It may demote a joiner, so the joiner waits, and is judged again: a member is a manager at
        every point of the log. While it is proposed, no pass demotes it (roles.py).
        """
        self._group.readdress()
        if joiner := self._group.next_joiner():
            if in_flight:
                return
            if reason := self._judge.why_no_manager(Peer(joiner, MANAGER_ROLE)):
                if (stream := self._group.drop_next().stream) is not None:
                    self._out.append(StreamEnd(stream, Unavailable(reason)))
                return
        pending = self._group.next_change()
        if pending is None:
            return
        change = pending.change
        goes = change.type == raftpb.ConfChangeRemoveNode and change.node_id == self._group.raft_id
        if goes and len(self._group.members) > 1:
            # a leader that goes hands over first, and leaves its removal to the next one
            self._group.proposed = None
            if pending.stream is not None:
                self._out.append(StreamEnd(pending.stream, NotLeader()))
            self.heir = events.NO_ONE
            return
        pending.tag = next(self._tags)
        change.id = self._rng.getrandbits(63) | 1
        self._consensus.step(events.ProposeMembership(pending.tag, change), now)

    def accepted(self, tag: int, index: int) -> None:
        """What was proposed is entry ``index`` now."""
        if self._group.proposed is not None and self._group.proposed.tag == tag:
            self._group.proposed.index = index

    def refused(self, tag: int, reason: events.Reason) -> bool:
        """The log did not take what was proposed; whether that was a change of the group."""
        pending = self._group.proposed
        if pending is None or pending.tag != tag:
            return False
        if reason is events.Reason.CHANGE_PENDING or reason is events.Reason.NOT_READY:
            self._group.put_back()
            return True
        self._group.proposed = None
        if pending.stream is not None:
            self._out.append(StreamEnd(pending.stream, Unavailable(f"raft: {reason.value}")))
        return True

    def applied(self, change: raftpb.ConfChange | None, index: int) -> None:
        """A change of the group was applied: who waits for it is answered."""
        pending = self._group.decided(index)
        if change is None or pending is None or pending.stream is None:
            return
        removal = change.type == raftpb.ConfChangeRemoveNode
        answer = api.LeaveResponse() if removal else self._group.join_answer(change.node_id)
        self._out.append(Reply(pending.stream, answer))

    def deposed(self) -> None:
        """This manager leads no more: what was under way or waited is given up."""
        self.heir = None
        for pending in self._group.give_up():
            if pending.stream is not None:
                self._out.append(StreamEnd(pending.stream, NotLeader()))

    # --- handing over ----------------------------------------------------------------------------------------------

    def yield_leadership(self, now: float) -> None:
        """As the leader: hand over to a stock manager that stays one; nobody else could lead them."""
        if self._consensus.may_lead or self._raft.transferring or now < self._yield_at:
            return
        self._yield_at = now + self._raft.config.election_s
        for raft_id in self._group.stock():
            node = self._store.get(api.Node, self._group.members[raft_id].node_id)
            if node is not None and node.spec.desired_role == api.MANAGER and self._group.reachable(raft_id):
                log.warning("raft.leadership_yielded", to=f"{raft_id:x}", flag="--allow-mixed-leadership is not set")
                self.heir = raft_id
                return

    def hand_over(self, now: float) -> None:
        """Begin to hand over, if that is wanted; between two passes: who waits for one gets its answer."""
        if self.heir is not None:
            heir, self.heir = self.heir, None
            self._consensus.step(events.TransferLeadership(heir), now)
