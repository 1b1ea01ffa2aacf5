"""The manager: consensus, store, and while it leads everything that decides, as one machine.

Calls come in (from peers or from this process), effects go out; between them there are only function calls:

    Call -> service.handle -> Write -> leader.next_pass -> raft Propose -> Persist -> Persisted -> Committed
         -> store.apply -> Reply to the callers, committed(changes) to every service -> StreamData to the agents

Reads of the control API wait for a read barrier of the log, so that no deposed leader answers from an old store.

(swarmkit: manager/manager.go, manager/state/raft/raft.go)
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from random import Random

import structlog

from swarm import api, defaults
from swarm.api.methods import METHODS
from swarm.errors import Internal, NoLeader, NotTaken, ResourceExhausted, SwarmError, Unimplemented
from swarm.manager import health
from swarm.manager.events import (
    AuthorityAnswered,
    DialPeer,
    Forward,
    FoundAt,
    ManagerEffect,
    ManagerEvent,
    Parts,
    PeerAnswered,
    PeerChecked,
    PeerDialled,
    PeerKnown,
)
from swarm.manager.member import GroupMember
from swarm.manager.service import Service, Write
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Store

log = structlog.get_logger()

_LOG_SAYS_WHY = "the manager could not carry out this request; its log says why"


class Manager(GroupMember):
    """One manager. store: as restored from the snapshot that ``raft`` was started with.

    strict: an exception inside a stage, a write or a read ends the machine, as tests want it.
    """

    def __init__(self, raft: Raft, store: Store, parts: Parts, rng: Random, strict: bool = False) -> None:
        super().__init__(raft, store, parts, rng, strict)

    # --- machine ---------------------------------------------------------------------------------------------------

    def handle(self, event: ManagerEvent | None, now: float) -> list[ManagerEffect]:
        """See Machine.handle."""
        self._now = now
        match event:
            case Call():
                self._call(event, now)
            case StreamData(stream=stream) | StreamEnd(stream=stream):
                self._more(stream, event, now)
            case Write():
                self._submit(event)
            case PeerChecked():
                self._joiner_checked(event)
            case AuthorityAnswered(tag=tag, outcome=outcome):
                done = self._asked.pop(tag, None)
                if done is not None:
                    self._perform(done(outcome, now))
            case PeerKnown(raft_id=raft_id, ours=ours):
                self.group.known(raft_id, ours)
                self._set_pace(now)
            case PeerDialled():
                self._dialled(event)
            case FoundAt(addr=addr, moved=moved):
                if self.leader is not None:
                    self.group.found_at(addr, moved)
            case PeerAnswered(raft_id=raft_id, round_trip_s=round_trip_s):
                self.pace.measured(raft_id, round_trip_s)
                self._set_pace(now)
            case None:
                self._raft(None, now)
                for service in self._services:
                    due = service.deadline()
                    if due is not None and due <= now:
                        self._perform(service.wake(now))
                self._expire(now)
            case events.TransferLeadership(to=to):
                self._heir = to
            case events.Unreachable(raft_id=raft_id) | events.Gone(raft_id=raft_id):
                self.group.lost(raft_id)
                self._raft(event, now)
            case _:
                self._raft(event, now)
        self._yield_leadership(now)
        self._change_group(now)
        self._hand_over(now)
        self._pass(now)
        for member in self.group.dials(now):
            self._out.append(DialPeer(member.raft_id, member.node_id, member.addr))
        out, self._out = self._out, []
        return out

    def deadline(self) -> float | None:
        """See Machine.deadline."""
        candidates = [self.raft.deadline()]
        if self.leader is not None:
            if not self.raft.transferring:
                candidates.append(self.leader.deadline())
            candidates.extend(service.deadline() for service in self._services)
        if self._waiting:
            candidates.append(self._waiting[0][0])
        return min((due for due in candidates if due is not None), default=None)

    @property
    def leading(self) -> bool:
        """Whether this manager leads and its leader is at work."""
        return self.leader is not None

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
        if call.method == "Health/Check":
            self._out.append(health.answer(call))
        elif call.method == "Raft/ProcessRaftMessage":
            assert isinstance(call.request, api.ProcessRaftMessageRequest)
            if self._receive(call.stream, call.request.message, call.peer, now):
                self._out.append(Reply(call.stream, api.ProcessRaftMessageResponse()))
        elif call.method == "Raft/StreamRaftMessage":
            self._out += self._incoming.begin(call, now)
        elif call.method == "Raft/ResolveAddress":
            assert isinstance(call.request, api.ResolveAddressRequest)
            self._resolve(call, call.request.raft_id)
        elif call.method == "RaftMembership/Join" and (answer := self._known_joiner(call)) is not None:
            self._out.append(answer)
        elif self.leader is not None:
            self._lead_call(call, now)
        else:
            self._pass_on(call, now)

    def _lead_call(self, call: Call, now: float) -> None:
        method = call.method
        if method == "RaftMembership/Join":
            self._join(call)
        elif method == "RaftMembership/Leave":
            self._leave(call)
        elif (service := self._routes.get(method)) is not None:
            self._streams[call.stream] = service
            self._remember(call)
            self._serve(service, call, now)
        elif (write := self._parts.writes.get(method)) is not None and call.request is not None:
            request = call.request
            self._remember(call)
            self._submit(Write(lambda tx: write(tx, request), call.stream))
        elif method in self._parts.reads:
            self._tag += 1
            self._reads[self._tag] = call
            self._raft(events.ReadBarrier(self._tag), now)
        else:
            self._out.append(StreamEnd(call.stream, Unimplemented(f"{method} is not available in this version")))

    def _serve(self, service: Service, event: Call | StreamData | StreamEnd, now: float) -> None:
        """A service that fails costs the call that it failed on; whatever a node sends must not stop the manager."""
        try:
            effects = service.handle(event, now)
        except Exception:
            if self._strict:
                raise
            log.exception("service.failed", service=type(service).__name__, word=type(event).__name__)
            effects = [StreamEnd(event.stream, Internal(_LOG_SAYS_WHY))]
        self._perform(effects)

    def _remember(self, call: Call) -> None:
        """Until a call with one request and one answer is answered, another leader could take it as well."""
        if call.request is not None and not METHODS[call.method].server_streaming:
            self._open[call.stream] = call

    def _pass_on(self, call: Call, now: float) -> None:
        """This manager does not lead: the leader answers, and while there is none the call waits for an election."""
        leader = self.group.peers.get(self.raft.leader)
        if call.peer.forwarder or (not call.peer.local and call.method.startswith("Control/")):
            self._out.append(StreamEnd(call.stream, NotTaken()))
        elif call.since is not None and now >= call.since + self._patience_s:
            self._out.append(StreamEnd(call.stream, NoLeader()))
        elif leader is not None and leader.raft_id != self.group.raft_id:
            self._out.append(Forward(replace(call, since=call.since or now), leader))
        elif len(self._waiting) >= defaults.INBOX_CALLS_MAX:
            self._out.append(StreamEnd(call.stream, ResourceExhausted("too many calls wait for a leader")))
        else:
            self._wait_for_leader(call, now)

    def _expire(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, _, call = heapq.heappop(self._waiting)
            self._out.append(StreamEnd(call.stream, NoLeader()))

    def _more(self, stream: int, event: StreamData | StreamEnd, now: float) -> None:
        if stream in self._incoming:
            self._more_of_messages(stream, event, now)
            return
        service = self._streams.get(stream)
        if service is not None:
            if isinstance(event, StreamEnd) and event.error is not None:
                self._streams.pop(stream, None)
                self._open.pop(stream, None)
            self._serve(service, event, now)
            return
        if isinstance(event, StreamEnd):
            if self._waiting:
                self._waiting = [item for item in self._waiting if item[1] != stream]
                heapq.heapify(self._waiting)
            self._open.pop(stream, None)
            self._reads = {tag: call for tag, call in self._reads.items() if call.stream != stream}

    def _read(self, tag: int) -> None:
        call = self._reads.pop(tag, None)
        if call is None or call.request is None:
            return
        try:
            self._out.append(Reply(call.stream, self._parts.reads[call.method](self.store, call.request)))
        except SwarmError as error:
            self._out.append(StreamEnd(call.stream, error))
        except Exception:
            if self._strict:
                raise
            log.exception("read.failed", method=call.method)
            self._out.append(StreamEnd(call.stream, Internal(_LOG_SAYS_WHY)))
