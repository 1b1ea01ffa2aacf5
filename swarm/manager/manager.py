"""The manager: consensus, store, and while it leads everything that decides, as one machine.

Calls come in (from peers or from this process), effects go out; between them there are only function calls:

    Call -> service.handle -> Write -> leader.next_pass -> raft Propose -> Persist -> Persisted -> Committed
         -> store.apply -> Reply to the callers, committed(changes) to every service -> StreamData to the agents

Reads of the control API wait for a read barrier of the log, so that no deposed leader answers from an old store.
The manager gives events to its parts and collects their effects:

    Consensus   drives the Raft core, applies what commits
    Messages    what other members send
    Changes     members join and leave, leadership is handed over
    Persistence writes of the log that fail
    Calls       where each open call is
    Leading     passes and services, while this manager leads

(swarmkit: manager/manager.go, manager/state/raft/raft.go)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random

import structlog

from swarm import api, defaults
from swarm.api import raftpb, rpc
from swarm.attention import Attention
from swarm.errors import Internal, NotTaken, SwarmError, Unavailable, Unimplemented
from swarm.manager import node_keys
from swarm.manager.calls import Calls
from swarm.manager.events import (
    AuthorityAnswered,
    Changed,
    DialPeer,
    DisconnectRemovedNodes,
    EndCallsOfDemoted,
    ForwardAnswered,
    ForwardFailed,
    ForwardOpened,
    FoundAt,
    Leadership,
    ManagerEffect,
    ManagerEvent,
    Parts,
    PeerAnswered,
    PeerChecked,
    PeerDialled,
    PeerKnown,
    PersistFailed,
)
from swarm.manager.group import health
from swarm.manager.group.changes import Changes
from swarm.manager.group.consensus import Consensus
from swarm.manager.group.members import RaftGroup
from swarm.manager.group.messages import Messages
from swarm.manager.group.persistence import Persistence
from swarm.manager.group.senders import Senders
from swarm.manager.judge import Judge
from swarm.manager.leading import LOG_SAYS_WHY, Leading
from swarm.manager.service import Write
from swarm.manager.status import Member, Status
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store

log = structlog.get_logger()


class Manager:
    """One manager. store: as restored from the snapshot that ``raft`` was started with.

    strict: an exception inside a stage, a write or a read ends the machine, as tests want it.
    """

    def __init__(self, raft: Raft, store: Store, parts: Parts, rng: Random, strict: bool = False) -> None:
        self.raft = raft
        self.store = store
        self.group = RaftGroup(raft.config.raft_id)
        self._parts = parts
        self._strict = strict
        self._attention = Attention()
        out: list[ManagerEffect] = []
        tags = itertools.count(1)
        self._out = out
        self.judge = Judge(store, lambda: self.leading)
        self._calls = Calls(raft, self.group, parts.reads, out, tags)
        self._leading = Leading(store, parts, self.group, self._calls, self.judge, out, tags, rng, strict)
        self._consensus = Consensus(raft, store, self.group, self, out, parts.mixed_leadership, strict)
        self._persistence = Persistence(out)
        senders = Senders(self.group, raft, store)
        self._messages = Messages(self.group, senders, self._consensus, lambda: self.leading, out)
        self._changes = Changes(raft, store, self.group, self._consensus, self._calls, self.judge, out, tags, rng)

    # --- machine ---------------------------------------------------------------------------------------------------

    def handle(self, event: ManagerEvent | None, now: float) -> list[ManagerEffect]:
        """See Machine.handle."""
        self._look(now)
        match event:
            case Call():
                self._call(event, now)
            case StreamData() | StreamEnd():
                self._more(event, now)
            case Write():
                self._leading.submit(event, now)
            case ForwardOpened():
                self._calls.forward_opened(event)
            case ForwardFailed():
                self._calls.forward_failed(event, now)
            case ForwardAnswered():
                self._calls.forward_answered(event, now)
            case PeerChecked():
                self._changes.joiner_checked(event, self.leading)
            case AuthorityAnswered():
                self._leading.answered(event, now)
            case PeerKnown(raft_id=raft_id, ours=ours):
                self.group.known(raft_id, ours)
                self._consensus.configure(now)
            case PeerDialled():
                self._dialled(event)
            case FoundAt(addr=addr, moved=moved):
                if self.leading:
                    self.group.found_at(addr, moved)
            case PeerAnswered(raft_id=raft_id, round_trip_s=round_trip_s):
                self._consensus.round_trips.measured(raft_id, round_trip_s)
                self._consensus.configure(now)
            case events.Persisted():
                self._persistence.succeeded()
                self._consensus.step(event, now)
            case PersistFailed():
                self._persistence.failed(event, now)
            case None:
                self._persistence.wake(now)
                self._consensus.step(None, now)
                self._leading.wake(now)
                self._expire(now)
            case events.TransferLeadership(to=to):
                self._changes.heir = to
            case events.Unreachable(raft_id=raft_id) | events.Gone(raft_id=raft_id):
                self.group.lost(raft_id)
                self._consensus.step(event, now)
            case _:
                self._consensus.step(event, now)
        return self._decide(now)

    def _look(self, now: float) -> None:
        """If this process stood still, or its clock jumped, that counts against nobody (swarm/attention.py)."""
        if missed_s := self._attention.missed_s(now):
            log.warning("manager.stalled", missed_s=round(missed_s, 1))
            self._leading.stalled(missed_s, now)
            self._calls.stalled(missed_s)
            self._messages.streams.stalled(missed_s)
        self._attention.due = now + defaults.ATTENTION_S

    def _decide(self, now: float) -> list[ManagerEffect]:
        """What follows from any event; all that is to be done now."""
        changes, leading = self._changes, self._leading
        if leading.leader is not None:
            changes.yield_leadership(now)
            changes.propose(now, leading.leader.in_flight)
        if leading.leader is None or not leading.leader.in_flight:
            changes.hand_over(now)
        if not self.raft.transferring and (entry := leading.next_pass(now)) is not None:
            tag = leading.pass_tag
            self._consensus.step(events.Propose(tag, entry) if entry else events.ReadBarrier(tag), now)
        for member in self.group.dials(now):
            self._out.append(DialPeer(member.raft_id, member.node_id, member.addr))
        out = list(self._out)
        self._out.clear()
        self._calls.shares.answered(out)
        return out

    def deadline(self) -> float | None:
        """See Machine.deadline."""
        leading = self._leading.deadline(passes=not self.raft.transferring)
        candidates = (
            self.raft.deadline(),
            leading,
            self._calls.deadline(),
            self._persistence.deadline(),
            self._attention.due,
        )
        return min((due for due in candidates if due is not None), default=None)

    def restore(self, snapshot: raftpb.Snapshot) -> None:
        """Begin with a snapshot's store and membership."""
        self._consensus.restore(snapshot)

    def recall(self, kinds: Mapping[int, bool], joined: Iterable[api.RaftMember]) -> None:
        """Begin with what was known of members before.

        kinds: which are managers of ours, by raft ID. joined: the members that were told when this one joined.
        """
        for raft_id, ours in kinds.items():
            self.group.known(raft_id, ours)
        self.group.expect(joined)

    def destinations(self) -> tuple[Mapping[int, api.RaftMember], Mapping[int, api.RaftMember]]:
        """Where messages go, by raft ID: to members; to callers that the log does not tell of yet."""
        return self.group.peers, self.group.callers

    def members(self) -> tuple[Member, ...]:
        """The members of the group, by raft ID."""
        group, peers = self.group, self.group.peers
        return tuple(
            Member(
                raft_id=raft_id,
                node_id=member.node_id,
                addr=member.addr,
                found_at=peers[raft_id].addr,
                reachable=group.reachable(raft_id),
                leads=raft_id == self.raft.leader,
                ours=group.is_ours(raft_id),
            )
            for raft_id, member in sorted(group.members.items())
        )

    def status(self) -> Status:
        """The present state."""
        core, snapshot = self.raft.status(), self.raft.snapshot
        return Status(
            raft_id=self.group.raft_id,
            members=self.members(),
            leading=self.leading,
            leader=core.leader,
            term=core.term,
            calls=self._calls.by_place(),
            counts=replace(self._calls.counts),
            store_index=self.store.index,
            commit_index=core.committed,
            applied_index=core.applied,
            snapshot_index=snapshot.metadata.index if snapshot is not None else 0,
            elections_won=self._leading.elections_won,
            passes=self._leading.passes,
            entries_applied=self._consensus.entries_applied,
        )

    @property
    def leading(self) -> bool:
        """Whether this manager leads and its leader is at work."""
        return self._leading.leader is not None

    def _dialled(self, event: PeerDialled) -> None:
        """It was seen whether a member is where it seems to be."""
        if not self.group.dialled(event.raft_id, event.addr, event.error):
            return
        if event.error:
            log.warning("raft.peer_not_there", peer=f"{event.raft_id:x}", addr=event.addr, error=event.error)
        else:
            log.info("raft.peer_moved", peer=f"{event.raft_id:x}", addr=event.addr)

    # --- calls -----------------------------------------------------------------------------------------------------

    def _call(self, call: Call, now: float) -> None:
        method = call.method
        if method == rpc.CHECK.name:
            self._out.append(health.answer(call))
        elif method == rpc.PROCESS_RAFT_MESSAGE.name:
            self._messages.process(call, now)
        elif method == rpc.STREAM_RAFT_MESSAGE.name:
            self._messages.begin(call, now)
        elif method == rpc.RESOLVE_ADDRESS.name:
            self._messages.resolve(call)
        elif (refusal := self.judge.refusal(method, call.peer)) is not None:
            self._out.append(StreamEnd(call.stream, refusal))
        elif (full := self._calls.shares.admit(call, waits=not (self.leading or self.raft.leader))) is not None:
            self._out.append(StreamEnd(call.stream, full))
        elif method == rpc.JOIN.name and (answer := self._changes.known_joiner(call)) is not None:
            self._out.append(answer)
        elif self._persistence.trouble and call.peer.local and method in self._parts.writes:
            self._out.append(StreamEnd(call.stream, Unavailable(self._persistence.trouble)))
        elif self.leading:
            self._lead_call(call, now)
        else:
            self._calls.pass_on(call, now)

    def _lead_call(self, call: Call, now: float) -> None:
        try:
            call = self.judge.admit(call)
        except SwarmError as error:
            self._out.append(StreamEnd(call.stream, error))
            return
        method = call.method
        if method == rpc.JOIN.name:
            self._join(call, now)
        elif method == rpc.LEAVE.name:
            self._changes.leave(call)
        elif (service := self._leading.service_of(method)) is not None:
            self._calls.at_service(call, service)
            self._leading.serve(service, call, now)
        elif (write := self._parts.writes.get(method)) is not None and call.request is not None:
            self._calls.at_write(call)
            self._leading.submit_call(call.stream, call.request, write, self._parts.checks.get(method), now)
        elif method in self._parts.reads:
            self._consensus.step(events.ReadBarrier(self._calls.at_barrier(call)), now)
        else:
            self._out.append(StreamEnd(call.stream, Unimplemented(f"{method} is not available in this version")))

    def _join(self, call: Call, now: float) -> None:
        """A manager joins the group, with the certificate that it has now."""
        try:
            note = node_keys.note_use(self.store, call.peer)
        except SwarmError as error:
            self._out.append(StreamEnd(call.stream, error))
            return
        if note is not None:
            self._leading.submit(note, now)
        self._changes.join(call)

    def _more(self, event: StreamData | StreamEnd, now: float) -> None:
        if isinstance(event, StreamEnd) and event.error is not None:
            self._calls.shares.hung_up(event.stream)
        if event.stream in self._messages.streams:
            self._messages.more(event, now)
        elif (service := self._calls.more(event)) is not None:
            caller = self._calls.caller(event.stream)
            if isinstance(event, StreamData) and caller is not None and (refusal := self.judge.refusal(*caller)):
                self._calls.finish(end := StreamEnd(event.stream, refusal), now)
                event = end
            self._leading.serve(service, event, now)

    def _expire(self, now: float) -> None:
        for call, words in self._calls.expire(now):
            self._call(call, now)
            for word in words:
                self._more(word, now)

    def passed_on(self, stream: int) -> tuple[int, int | None]:
        """Of a client stream: bytes that wait here for the leader, and the call that reads the logs that it brings."""
        return self._calls.waiting_bytes(stream), self._leading.reader_of(stream)

    # --- what the group decides (Above) ----------------------------------------------------------------------------

    def applied(self, changes: Sequence[Change], now: float) -> None:
        """See Above."""
        if self._leading.leader is not None:
            self._leading.perform(self._leading.leader.committed(), now)
        self._out.append(Changed(changes))
        if self.leading and any(map(_loses_rights, changes)):
            self._out.append(EndCallsOfDemoted())
        self._leading.tell(changes, now)
        if any(change.kind == "cluster" for change in changes):
            self._out.append(DisconnectRemovedNodes())  # after the dispatcher's own last word to them

    def membership_applied(self, change: raftpb.ConfChange | None, index: int, now: float) -> None:
        """See Above."""
        self._changes.applied(change, index)
        self._leading.tell((), now)
        if self._leading.leader is not None:
            self._leading.leader.wake()

    def accepted(self, tag: int, index: int) -> None:
        """See Above."""
        self._changes.accepted(tag, index)

    def read_ready(self, tag: int, now: float) -> None:
        """See Above."""
        if self._leading.leader is not None and tag == self._leading.pass_tag:
            self._leading.perform(self._leading.leader.committed(), now)
            return
        call = self._calls.take_barrier(tag)
        if call is None or call.request is None:
            return
        try:
            self.judge.admit(call)
            self._out.append(Reply(call.stream, self._parts.reads[call.method](self.store, call.request)))
        except SwarmError as error:
            self._out.append(StreamEnd(call.stream, error))
        except Exception:
            if self._strict:
                raise
            log.exception("read.failed", method=call.method)
            self._out.append(StreamEnd(call.stream, Internal(LOG_SAYS_WHY)))

    def refused(self, tag: int, reason: events.Reason, now: float) -> None:
        """See Above."""
        call = self._calls.take_barrier(tag)
        if call is not None:
            self._calls.ask_again(call, now)
            return
        log.warning("raft.refused", reason=reason.value)
        leading = self._leading
        if not self._changes.refused(tag, reason) and leading.leader is not None and tag == leading.pass_tag:
            moves = reason in (events.Reason.NOT_LEADER, events.Reason.TRANSFERRING)
            error = NotTaken() if moves else Unavailable(f"raft: {reason.value}")
            leading.perform(leading.leader.refused(error), now)

    def leads(self, term: int, now: float) -> None:
        """See Above: the leader can start."""
        self._calls.leader_is(self.group.raft_id, now)
        self._leading.begin(now)
        self._out += [Leadership(True, self.group.raft_id, term), EndCallsOfDemoted()]
        for call in self._calls.take_waiting():
            self._lead_call(call, now)

    def follows(self, term: int, leader: int, now: float) -> None:
        """See Above."""
        self._calls.leader_is(leader, now)
        if self._leading.leader is not None:
            self._leading.stop(now)
            self._calls.deposed(now)
            self._changes.deposed()
        self._out.append(Leadership(False, leader, term))
        if leader in self.group.members:
            for call in self._calls.take_waiting():
                self._calls.pass_on(call, now)


def _loses_rights(change: Change) -> bool:
    """Whether a manager became a worker, or a node was removed."""
    before, after = change.before, change.after
    if not isinstance(before, api.Node):
        return False
    return after is None or (isinstance(after, api.Node) and (before.role, after.role) == (api.MANAGER, api.WORKER))
