"""Where each call is that this manager has taken and not answered: the one book of open calls.

    waits for a leader     until somebody leads, for as long as an election may take
    at a service           the leader's service answers it, and hears what else its client sends
    at a write             it is answered when the leader's pass is committed
    at a read barrier      it is answered when the group has confirmed that this manager leads
    at a check             a joiner that is called back before it becomes a member

(swarmkit: manager/state/raft/raft.go, ca/forward.go and the raftproxy of each service)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from swarm import defaults
from swarm.api.methods import METHODS
from swarm.errors import NoLeader, NotTaken, ResourceExhausted
from swarm.manager.events import Forward, ManagerEffect
from swarm.manager.group.members import RaftGroup
from swarm.manager.service import Service
from swarm.raft.raft import Raft
from swarm.rpc import Call, Reply, StreamData, StreamEnd


class Place(Enum):
    """Where a call is."""

    WAITING = "waiting for a leader"
    SERVICE = "service"
    WRITE = "write"
    BARRIER = "read barrier"
    CHECK = "check of a joiner"


@dataclass(slots=True)
class _Open:
    """call: None when no other leader could take it. until: of a call that waits, in seconds since the epoch."""

    place: Place
    call: Call | None
    service: Service | None = None
    tag: int = 0
    until: float = 0.0
    addr: str = ""


class Calls:
    """See the module. now: seconds since the epoch. out: gets answers and what is to be passed on."""

    def __init__(self, raft: Raft, group: RaftGroup, out: list[ManagerEffect], tags: Iterator[int]) -> None:
        self._raft = raft
        self._group = group
        self._out = out
        self._tags = tags
        self._open: dict[int, _Open] = {}
        self._barriers: dict[int, int] = {}  # streams by tag
        self._waiting: dict[int, None] = {}
        self._alarms: list[tuple[float, int]] = []  # heap of (until, stream); what is not true any more is skipped
        self._leaderless_since: float | None = None

    # --- while this manager leads ----------------------------------------------------------------------------------

    def at_service(self, call: Call, service: Service) -> None:
        """A service of the leader answers it."""
        self._open[call.stream] = _Open(Place.SERVICE, _movable(call), service)

    def at_write(self, call: Call) -> None:
        """A write of the leader answers it."""
        self._open[call.stream] = _Open(Place.WRITE, _movable(call))

    def at_barrier(self, call: Call) -> int:
        """A read waits until the group has confirmed who leads; the tag of the barrier."""
        tag = next(self._tags)
        self._open[call.stream] = _Open(Place.BARRIER, call, tag=tag)
        self._barriers[tag] = call.stream
        return tag

    def at_check(self, call: Call, addr: str) -> None:
        """A joiner's address is looked at."""
        self._open[call.stream] = _Open(Place.CHECK, call, addr=addr)

    def take_barrier(self, tag: int) -> Call | None:
        """The read that waited for this barrier, if its caller did."""
        stream = self._barriers.pop(tag, None)
        found = self._open.pop(stream, None) if stream is not None else None
        return found.call if found is not None else None

    def take_check(self, stream: int) -> tuple[Call, str] | None:
        """The join that waited for its check, and the joiner's address."""
        found = self._open.get(stream)
        if found is None or found.place is not Place.CHECK or found.call is None:
            return None
        del self._open[stream]
        return found.call, found.addr

    def finish(self, answer: Reply | StreamEnd, now: float) -> None:
        """The last answer of a call, unless the call was not taken: then it goes to the next leader."""
        found = self._open.pop(answer.stream, None)
        call = found.call if found is not None else None
        untaken = isinstance(answer, StreamEnd) and isinstance(answer.error, NotTaken)
        if untaken and call is not None and not call.peer.forwarder:
            self._wait(call, now)
        else:
            self._out.append(answer)

    # --- leadership comes and goes -----------------------------------------------------------------------------------

    def leader_is(self, raft_id: int, now: float) -> None:
        """This member leads now; 0: nobody is known to."""
        if raft_id:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = now

    def deposed(self, now: float) -> None:
        """This manager leads no more, and its services have said their last."""
        for call in [found.call for found in self._open.values() if found.place is Place.BARRIER]:
            assert call is not None
            self.ask_again(call, now)
        self._barriers.clear()
        led = (Place.SERVICE, Place.WRITE)
        self._open = {stream: found for stream, found in self._open.items() if found.place not in led}

    def take_waiting(self) -> list[Call]:
        """The calls that wait for a leader, oldest first; they wait no more."""
        taken = [self._open.pop(stream).call for stream in sorted(self._waiting)]
        self._waiting.clear()
        self._alarms.clear()
        return [call for call in taken if call is not None]

    # --- calls without a leader ------------------------------------------------------------------------------------

    def pass_on(self, call: Call, now: float) -> None:
        """This manager does not lead: the leader answers, and while there is none the call waits for an election."""
        leader = self._group.peers.get(self._raft.leader)
        if call.peer.forwarder or (not call.peer.local and call.method.startswith("Control/")):
            self._out.append(StreamEnd(call.stream, NotTaken()))
        elif call.since is not None and now >= call.since + self._patience_s:
            self._out.append(StreamEnd(call.stream, NoLeader()))
        elif leader is not None and leader.raft_id != self._group.raft_id:
            self._out.append(Forward(replace(call, since=call.since or now), leader))
        elif len(self._waiting) >= defaults.INBOX_CALLS_MAX:
            self._out.append(StreamEnd(call.stream, ResourceExhausted("too many calls wait for a leader")))
        else:
            self._wait(call, now)

    def ask_again(self, call: Call, now: float) -> None:
        """A read did no harm: whoever leads next may answer it, if the caller is still there."""
        self._open.pop(call.stream, None)
        if call.peer.forwarder:
            self._out.append(StreamEnd(call.stream, NotTaken()))
        else:
            self._wait(call, now)

    def _wait(self, call: Call, now: float) -> None:
        """Keep a call until somebody leads, for as long as an election may take since the last leader was lost."""
        if call.request is None:  # what it sends meanwhile would have to be kept as well
            self._out.append(StreamEnd(call.stream, NoLeader()))
            return
        since = now if call.since is None else call.since
        lost = since if self._leaderless_since is None else self._leaderless_since
        until = min(since, lost) + self._patience_s
        self._open[call.stream] = _Open(Place.WAITING, replace(call, since=since), until=until)
        self._waiting[call.stream] = None
        heapq.heappush(self._alarms, (until, call.stream))

    @property
    def _patience_s(self) -> float:
        """For how long a call looks for a leader, in seconds."""
        return max(defaults.NO_LEADER_WAIT_S, self._raft.config.election_s)

    # --- what else happens to a call ---------------------------------------------------------------------------------

    def more(self, word: StreamData | StreamEnd) -> Service | None:
        """More of a call: the service that is to hear it, or None when nobody is."""
        found = self._open.get(word.stream)
        if found is None:
            return None
        if found.service is not None:
            if isinstance(word, StreamEnd) and word.error is not None:
                del self._open[word.stream]
            return found.service
        if isinstance(word, StreamEnd) and found.place is not Place.CHECK:
            del self._open[word.stream]
            self._waiting.pop(word.stream, None)
            self._barriers.pop(found.tag, None)
        return None

    def expire(self, now: float) -> None:
        """End the calls that have waited for long enough."""
        while (due := self.deadline()) is not None and due <= now:
            _, stream = heapq.heappop(self._alarms)
            del self._open[stream], self._waiting[stream]
            self._out.append(StreamEnd(stream, NoLeader()))

    def deadline(self) -> float | None:
        """When expire has something to do."""
        alarms = self._alarms
        while alarms:
            until, stream = alarms[0]
            found = self._open.get(stream)
            if found is not None and found.place is Place.WAITING and found.until == until:
                return until
            heapq.heappop(alarms)
        return None


def _movable(call: Call) -> Call | None:
    """Until a call with one request and one answer is answered, another leader could take it as well."""
    return call if call.request is not None and not METHODS[call.method].server_streaming else None
