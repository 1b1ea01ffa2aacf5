"""A manager as a member of its Raft group: what commits goes into the store, and the group itself changes.

(swarmkit: manager/state/raft/raft.go)
"""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import structlog
from google.protobuf.message import DecodeError

from swarm import api, defaults
from swarm.api import encoding, extensions, raftpb
from swarm.errors import (
    FailedPrecondition,
    InvalidArgument,
    NoLeader,
    NotFound,
    NotLeader,
    NotTaken,
    PermissionDenied,
    SwarmError,
    Unavailable,
)
from swarm.manager.certificates import is_demoted
from swarm.manager.claims import with_host
from swarm.manager.events import (
    AskAuthority,
    Changed,
    CheckPeer,
    Leadership,
    ManagerEffect,
    Parts,
    PeerChecked,
)
from swarm.manager.external_ca import Outcome
from swarm.manager.group import UNREACHABLE_TEXT, RaftGroup
from swarm.manager.incoming import Incoming, is_readable
from swarm.manager.leader import Leader
from swarm.manager.pace import Pace
from swarm.manager.service import Ask, Effect, Service, Write
from swarm.raft import events
from swarm.raft.membership import parse_change
from swarm.raft.raft import Raft
from swarm.rpc import MANAGER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Store

log = structlog.get_logger()

NO_STOCK_FOLLOWERS = (
    "the leader of this swarm is a sideswarm manager without --allow-mixed-leadership: a stock engine may join it as a "
    "worker only"
)
NO_QUORUM_LEFT = "can't remove member from the raft: this would result in a loss of quorum"


class GroupMember:
    """Consensus, store, leader and group of a Manager, which adds the calls."""

    def __init__(self, raft: Raft, store: Store, parts: Parts, rng: Random, strict: bool) -> None:
        self.raft = raft
        self.store = store
        self.group = RaftGroup(raft.config.raft_id)
        self.pace = Pace()
        self.leader: Leader | None = None
        self._parts = parts
        self._rng = rng
        self._strict = strict
        self._services: list[Service] = []
        self._routes: dict[str, Service] = {}
        self._streams: dict[int, Service] = {}
        self._reads: dict[int, Call] = {}
        self._joins: dict[int, tuple[Call, str]] = {}
        self._incoming = Incoming()
        self._open: dict[int, Call] = {}
        self._asked: dict[int, Callable[[Outcome, float], Sequence[Effect]]] = {}
        self._waiting: list[tuple[float, int, Call]] = []
        self._tag = 0
        self._proposed = 0
        self._now = 0.0
        self._leaderless_since: float | None = None
        self._yield_at = 0.0
        self._heir: int | None = None
        self._out: list[ManagerEffect] = []

    @abstractmethod
    def _lead_call(self, call: Call, now: float) -> None:
        """Answer a call as the leader."""

    @abstractmethod
    def _pass_on(self, call: Call, now: float) -> None:
        """Another member leads, or none: find somebody who answers the call."""

    @abstractmethod
    def _read(self, tag: int) -> None:
        """A read barrier was reached."""

    # --- effects of services and writes ----------------------------------------------------------------------------

    def _perform(self, effects: Sequence[Effect]) -> None:
        """What services and finished writes want, which may be further writes."""
        for effect in effects:
            match effect:
                case Write():
                    self._submit(effect)
                case Ask(question=question, done=done):
                    self._tag += 1
                    self._asked[self._tag] = done
                    self._out.append(AskAuthority(self._tag, question))
                case StreamData():
                    self._out.append(effect)
                case Reply() | StreamEnd():
                    self._finish(effect)

    def _finish(self, answer: Reply | StreamEnd) -> None:
        """The last answer of a call, unless the call was not taken: then it goes to the next leader."""
        self._streams.pop(answer.stream, None)
        call = self._open.pop(answer.stream, None)
        untaken = isinstance(answer, StreamEnd) and isinstance(answer.error, NotTaken)
        if untaken and call is not None and not call.peer.forwarder:
            self._wait_for_leader(call, self._now)
        else:
            self._out.append(answer)

    def _submit(self, write: Write) -> None:
        if self.leader is not None:
            self._perform(self.leader.submit(write))
        elif write.done is not None:
            self._perform(write.done(None, NotLeader()))
        elif write.stream is not None:
            self._finish(StreamEnd(write.stream, NotTaken()))

    # --- calls without a leader ------------------------------------------------------------------------------------

    def _wait_for_leader(self, call: Call, now: float) -> None:
        """Keep a call until somebody leads, for as long as an election may take since the last leader was lost."""
        if call.request is None:  # what it sends meanwhile would have to be kept as well
            self._out.append(StreamEnd(call.stream, NoLeader()))
            return
        since = now if call.since is None else call.since
        lost = since if self._leaderless_since is None else self._leaderless_since
        give_up = min(since, lost) + self._patience_s
        heapq.heappush(self._waiting, (give_up, call.stream, replace(call, since=since)))

    @property
    def _patience_s(self) -> float:
        """For how long a call looks for a leader, in seconds."""
        return max(defaults.NO_LEADER_WAIT_S, self.raft.config.election_s)

    def _take_waiting(self) -> list[Call]:
        """The calls that wait for a leader, oldest first; they wait no more."""
        waiting, self._waiting = self._waiting, []
        return [call for _, _, call in sorted(waiting, key=lambda item: item[1])]

    # --- consensus -------------------------------------------------------------------------------------------------

    def _pass(self, now: float) -> None:
        if self.leader is None or self.raft.transferring:
            return
        data, effects = self.leader.next_pass(now)
        self._perform(effects)
        if data is not None:
            self._tag += 1
            self._proposed = self._tag
            self._raft(events.Propose(self._tag, data), now)

    def _raft(self, event: events.Event | None, now: float) -> None:
        effects = self.raft.handle(event, now)
        for effect in effects:
            match effect:
                case events.Persist() | events.Send() | events.Removed() | events.MembershipChanged():
                    self._out.append(effect)
                case events.Committed(entries=entries):
                    for entry in entries:
                        self._apply(entry, now)
                    self._maybe_snapshot(now)
                case events.Restore(snapshot=snapshot):
                    self.restore(snapshot)
                    self._out.append(effect)
                case events.ReadReady(tag=tag):
                    self._read(tag)
                case events.BecameLeader(term=term):
                    self._lead(term, now)
                case events.BecameFollower(term=term, leader=leader):
                    self._depose(leader, term, now)
                case events.Accepted(tag=tag, index=index):
                    if self.group.proposed is not None and self.group.proposed.tag == tag:
                        self.group.proposed.index = index
                case events.NeedSnapshot():
                    self._snapshot(now)
                case events.Refused(tag=tag, reason=reason):
                    self._refused(tag, reason, now)
        if any(type(effect) is events.MembershipChanged for effect in effects):  # a log that is read tells of many
            self._set_pace(now)

    def _apply(self, entry: raftpb.Entry, now: float) -> None:
        if entry.Type == raftpb.EntryConfChange:
            self.store.index = entry.Index
            self._apply_membership(parse_change(entry), entry.Index, now)
        elif entry.Data:
            self._apply_actions(entry, now)
        else:
            self.store.index = entry.Index

    def _apply_actions(self, entry: raftpb.Entry, now: float) -> None:
        try:
            request = api.InternalRaftRequest.FromString(entry.Data)
            changes = self.store.apply(request.action, entry.Index)
        except (SwarmError, DecodeError) as error:
            # as SwarmKit's followers do: an entry that breaks a rule of the store is skipped, loudly
            log.error("raft.entry_skipped", index=entry.Index, error=str(error))
            if self._strict:
                raise
            changes = []
        if self.leader is None:
            self._out.append(Changed(changes))
            return
        self._perform(self.leader.committed())
        self._out.append(Changed(changes))
        for service in self._services:
            self._perform(service.committed(changes, now))

    def _apply_membership(self, change: raftpb.ConfChange | None, index: int, now: float) -> None:
        if change is None:
            log.error("raft.entry_skipped", index=index, error="a change of the group that cannot be read")
        elif self.group.apply(change):
            self._snapshot(now, keep=0)  # newcomers must not read of our removal, even for a moment: they would tell us
        pending = self.group.decided(index)
        if change is not None and pending is not None and pending.stream is not None:
            removal = change.type == raftpb.ConfChangeRemoveNode
            answer = api.LeaveResponse() if removal else self.group.join_answer(change.node_id)
            self._out.append(Reply(pending.stream, answer))
        for service in self._services:
            self._perform(service.committed((), now))
        if self.leader is not None:
            self.leader.wake()

    def _refused(self, tag: int, reason: events.Reason, now: float) -> None:
        """The log took neither this read nor this pass; nothing was changed."""
        call = self._reads.pop(tag, None)
        if call is not None:
            self._ask_again(call, now)
            return
        log.warning("raft.refused", reason=reason.value)
        if self.group.proposed is not None and self.group.proposed.tag == tag:
            if reason is events.Reason.CHANGE_PENDING or reason is events.Reason.NOT_READY:
                self.group.put_back()
                return
            pending, self.group.proposed = self.group.proposed, None
            if pending.stream is not None:
                self._out.append(StreamEnd(pending.stream, Unavailable(f"raft: {reason.value}")))
        elif self.leader is not None and tag == self._proposed:
            moves = reason in (events.Reason.NOT_LEADER, events.Reason.TRANSFERRING)
            self._perform(self.leader.refused(NotTaken() if moves else Unavailable(f"raft: {reason.value}")))

    def _ask_again(self, call: Call, now: float) -> None:
        """A read did no harm: whoever leads next may answer it, if the caller is still there."""
        if call.peer.forwarder:
            self._out.append(StreamEnd(call.stream, NotTaken()))
        else:
            self._wait_for_leader(call, now)

    def _lead(self, term: int, now: float) -> None:
        """This member leads and its store is complete: the leader can start."""
        self._leaderless_since = None
        stages = self._parts.stages(self.store, self._rng, now, self._strict)
        self.leader = Leader(self.store, stages, self._rng, now, self._strict)
        self._services = list(self._parts.services(self.store, self._rng, now))
        self._routes = {method: service for service in self._services for method in service.methods}
        self._out.append(Leadership(True, self.raft.config.raft_id, term))
        for call in self._take_waiting():
            if call.peer.role == MANAGER_ROLE and is_demoted(self.store, call.peer.node_id):
                self._out.append(StreamEnd(call.stream, NoLeader()))  # nobody who knew let it in; it may ask again
            else:
                self._lead_call(call, now)

    def _depose(self, leader: int, term: int, now: float) -> None:
        if leader != events.NO_ONE:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = now
        if self.leader is not None:
            for service in self._services:
                for effect in service.stop():
                    if not isinstance(effect, Write | Ask):
                        self._perform((effect,))
            old, self.leader = self.leader, None
            self._heir = None
            self._perform(old.stop())
            reads, self._reads = self._reads, {}
            for call in reads.values():
                self._ask_again(call, now)
            for pending in self.group.give_up():
                if pending.stream is not None:
                    self._out.append(StreamEnd(pending.stream, NotLeader()))
            self._services, self._routes = [], {}
            self._streams.clear()
            self._open.clear()
            self._asked.clear()
        self._out.append(Leadership(False, leader, term))
        if leader in self.group.members:
            for call in self._take_waiting():
                self._pass_on(call, now)

    # --- snapshots -------------------------------------------------------------------------------------------------

    def restore(self, snapshot: raftpb.Snapshot) -> None:
        """Replace store and membership by a snapshot's."""
        content = api.Snapshot.FromString(snapshot.data)
        self.store.restore(content.store, snapshot.metadata.index)
        self.group.restore(content.membership)

    def _set_pace(self, now: float) -> None:
        """A group of ours alone ticks fast and asks before it votes; with a stock member it keeps SwarmKit's time."""
        fast = self.group.only_ours()
        cluster = next(self.store.all(api.Cluster), None)
        ticks = cluster.spec.raft if cluster is not None else api.RaftConfig()
        heartbeat_ticks = ticks.heartbeat_tick or defaults.RAFT_HEARTBEAT_TICKS
        wanted = replace(
            self.raft.config,
            tick_s=self.pace.tick_s(self.group.others(), self.raft.leader) if fast else defaults.RAFT_TICK_S,
            pre_vote=fast,
            campaigns=self._may_lead,
            commit_lag_entries=defaults.RAFT_COMMIT_LAG_ENTRIES,
            announce_s=defaults.RAFT_ANNOUNCE_S if fast else 0.0,
            heartbeat_ticks=heartbeat_ticks,
            election_ticks=max(ticks.election_tick or defaults.RAFT_ELECTION_TICKS, heartbeat_ticks + 1),
        )
        if wanted != self.raft.config:
            log.info("raft.pace", election_s=wanted.election_s, pre_vote=wanted.pre_vote)
            self._raft(events.Configure(wanted), now)

    @property
    def _may_lead(self) -> bool:
        return self._parts.mixed_leadership or not self.group.stock()

    def _yield_leadership(self, now: float) -> None:
        """Hand over to a stock manager that stays one; without any there is nobody else who could lead them."""
        if self.leader is None or self._may_lead or self.raft.transferring or now < self._yield_at:
            return
        self._yield_at = now + self.raft.config.election_s
        for raft_id in self.group.stock():
            node = self.store.get(api.Node, self.group.members[raft_id].node_id)
            if node is not None and node.spec.desired_role == api.MANAGER and self.group.reachable(raft_id):
                log.warning("raft.leadership_yielded", to=f"{raft_id:x}", flag="--allow-mixed-leadership is not set")
                self._heir = raft_id
                return

    def _maybe_snapshot(self, now: float) -> None:
        """Every so many entries, each member in its turn: while one writes, the disks of the others decide."""
        (interval, _), last = self._snapshot_settings(), self.raft.snapshot
        after = self.group.turn(interval)
        if (self.store.index - after) // interval > ((last.metadata.index if last else 0) - after) // interval:
            self._snapshot(now)

    def _snapshot(self, now: float, keep: int | None = None) -> None:
        """Save the store as of the last applied entry, so that the log before it may go."""
        keep = self._snapshot_settings()[1] if keep is None else keep
        content = api.Snapshot(version=api.Snapshot.V0, membership=self.group.save())
        data = content.SerializeToString() + encoding.embedded(api.Snapshot, "store", self.store.encode())
        snapshot = raftpb.Snapshot(data=data)
        snapshot.metadata.index = self.store.index
        self._raft(events.SnapshotTaken(snapshot, keep), now)

    def _snapshot_settings(self) -> tuple[int, int]:
        cluster = next(self.store.all(api.Cluster), None)
        raft = cluster.spec.raft if cluster is not None else api.RaftConfig()
        interval = raft.snapshot_interval or defaults.RAFT_SNAPSHOT_INTERVAL_ENTRIES
        keep = raft.log_entries_for_slow_followers or defaults.RAFT_ENTRIES_FOR_SLOW_FOLLOWERS
        return interval, keep

    # --- messages of other members ---------------------------------------------------------------------------------

    def _receive(self, stream: int, message: raftpb.Message, sender: Peer, now: float) -> bool:
        """Take a message, unless its sender is not, or no more, the member that it says."""
        raft_id = events.sender(message)
        refusal: SwarmError | None = self.group.refusal(raft_id, sender)
        if refusal is None and message.type == raftpb.MsgSnap and not is_readable(message.snapshot):
            refusal = InvalidArgument("raft: the snapshot cannot be read")
        if refusal is not None:
            self._refuse(stream, sender, refusal, now)
            return False
        self.group.heard(raft_id, sender)
        if message.to == self.group.raft_id and message.type != raftpb.MsgProp:
            self._raft(events.Received(message), now)
        return True

    def _more_of_messages(self, stream: int, event: StreamData | StreamEnd, now: float) -> None:
        """A word of a stream of messages."""
        sender = self._incoming.sender(stream)
        try:
            message = self._incoming.take(stream, event, now)
        except SwarmError as error:
            self._incoming.end(stream)
            self._refuse(stream, sender, error, now)
            return
        self._out += self._incoming.supersede(stream)
        taken = message is None or self._receive(stream, message, sender, now)
        if not taken or isinstance(event, StreamEnd):
            self._incoming.end(stream)
            if taken:
                self._out.append(Reply(stream, api.StreamRaftMessageResponse()))

    def _refuse(self, stream: int, sender: Peer, error: SwarmError, now: float) -> None:
        self._out.append(StreamEnd(stream, error))
        if not isinstance(error, NotFound) and (times := self._incoming.refused.times(sender.node_id, now)):
            log.warning("raft.message_refused", node=sender.node_id, error=str(error), times=times)

    def _resolve(self, call: Call, raft_id: int) -> None:
        member = self.group.resolve(raft_id, call.peer)
        if member is None:
            unknown = self.group.refusal(raft_id, call.peer) or NotFound(f"member {raft_id:x} not found")
            self._out.append(StreamEnd(call.stream, unknown))
        else:
            answer, moved = api.ResolveAddressResponse(addr=member.addr), member != self.group.members[raft_id]
            self._out.append(Reply(call.stream, extensions.marked(answer, extensions.MOVED) if moved else answer))

    # --- changes of the group --------------------------------------------------------------------------------------

    def _join(self, call: Call) -> None:
        """RaftMembership/Join: check that the joiner serves, then add it (swarmkit: raft.go Join)."""
        assert isinstance(call.request, api.JoinRequest)
        addr = with_host(call.request.addr, call.peer.host)
        self._joins[call.stream] = (call, addr)
        self._out.append(CheckPeer(call.stream, addr))

    def _known_joiner(self, call: Call) -> Reply | None:
        """The answer for one who is a member already: it did not hear the first one, and the group may need its vote.

        No leader is needed for it, and none may be possible without the joiner. That it never was this member before
        is for the joiner to say.
        """
        assert isinstance(call.request, api.JoinRequest)
        member = self.group.by_node(call.peer.node_id)
        if member is None or member.addr != with_host(call.request.addr, call.peer.host):
            return None
        return Reply(call.stream, self.group.join_answer(member.raft_id))

    def _joiner_checked(self, event: PeerChecked) -> None:
        call, addr = self._joins.pop(event.stream, (None, ""))
        if call is None:
            return
        if self.leader is None:
            self._out.append(StreamEnd(call.stream, NotLeader()))
        elif event.error:
            self._out.append(StreamEnd(call.stream, Unavailable(UNREACHABLE_TEXT + event.error)))
        elif not (event.ours or self._parts.mixed_leadership):
            self._out.append(StreamEnd(call.stream, FailedPrecondition(NO_STOCK_FOLLOWERS)))
        elif (member := self.group.by_node(call.peer.node_id)) is not None:
            self.group.update(member, addr, call.stream)
        else:
            self.group.add(call.peer.node_id, addr, call.stream, self._rng, event.ours)

    def _leave(self, call: Call) -> None:
        """RaftMembership/Leave: a node asks to remove the member that it was, whose log is gone (raft.go Leave)."""
        assert isinstance(call.request, api.LeaveRequest)
        member = self.group.members.get(call.request.node.raft_id)
        if member is None:
            self._out.append(Reply(call.stream, api.LeaveResponse()))
        elif member.node_id != call.peer.node_id:
            self._out.append(StreamEnd(call.stream, PermissionDenied("a member is removed by its own node only")))
        elif not self.group.can_remove(member.node_id):
            self._out.append(StreamEnd(call.stream, FailedPrecondition(NO_QUORUM_LEFT)))
        else:
            self.group.remove(member.node_id, call.stream)

    def _hand_over(self, now: float) -> None:
        """Begin to hand over, if that is wanted, between two passes: who waits for one gets its answer."""
        if self._heir is not None and not (self.leader is not None and self.leader.in_flight):
            heir, self._heir = self._heir, None
            self._raft(events.TransferLeadership(heir), now)

    def _change_group(self, now: float) -> None:
        """Propose the next change of the group, if one waits and none is under way."""
        if self.leader is None:
            return
        self.group.readdress()
        pending = self.group.next_change()
        if pending is None:
            return
        change = pending.change
        goes = change.type == raftpb.ConfChangeRemoveNode and change.node_id == self.group.raft_id
        if goes and len(self.group.members) > 1:
            # a leader that goes hands over first, and leaves its removal to the next one
            self.group.proposed = None
            if pending.stream is not None:
                self._out.append(StreamEnd(pending.stream, NotLeader()))
            self._heir = events.NO_ONE
            return
        self._tag += 1
        pending.tag = self._tag
        change.id = self._rng.getrandbits(63) | 1
        self._raft(events.ProposeMembership(pending.tag, change), now)
