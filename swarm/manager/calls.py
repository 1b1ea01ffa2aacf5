"""Where each call is that this manager has taken and not answered: the one book of open calls.

    waits for a leader     until somebody leads, for as long as an election may take
    at a service           the leader's service answers it, and hears what else its client sends
    at a write             it is answered when the leader's pass is committed
    at a read barrier      it is answered when the group has confirmed that this manager leads
    at a check             a joiner that is called back before it becomes a member
    forwarded              the leader was given it; what its client sends waits until the call is open there
    to be tried again      in FORWARD_RETRY_S, because the leader certainly did not take it, or it changes nothing

A call that was forwarded is given up when another member leads, and LEADER_GONE_S after the leader was lost. More of a
call never goes anywhere before its beginning did.

(swarmkit: manager/state/raft/raft.go, ca/forward.go and the raftproxy of each service)
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from swarm import api, defaults
from swarm.api.methods import METHODS
from swarm.errors import Code, NoLeader, NotTaken, PermissionDenied, ResourceExhausted, SwarmError, Unavailable
from swarm.manager.events import (
    Forward,
    ForwardAnswered,
    ForwardFailed,
    ForwardMore,
    ForwardOpened,
    ManagerEffect,
)
from swarm.manager.group.members import RaftGroup
from swarm.manager.service import Service
from swarm.manager.shares import Shares
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import Call, Peer, Reply, StreamData, StreamEnd

_STOCK_LEADS = ", and not while a stock manager leads, as it would not look at the key and the time of the certificate"


class Place(Enum):
    """Where a call is."""

    WAITING = "waiting for a leader"
    SERVICE = "service"
    WRITE = "write"
    BARRIER = "read barrier"
    CHECK = "check of a joiner"
    FORWARDED = "forwarded"
    RETRY = "to be tried again"


@dataclass(slots=True)
class _Open:
    """One open call.

    call: None when no other leader could take it. caller: who may have which method of this leader. until: of a call
    that waits or is to be tried again, in seconds since the epoch. tag: of its read barrier or Forward. early: words
    that wait until it is open at the leader. sent: whether some went to the leader, so that no other one can take the
    call any more.
    """

    place: Place
    call: Call | None
    service: Service | None = None
    caller: tuple[str, Peer] | None = None
    tag: int = 0
    until: float = 0.0
    addr: str = ""
    leader: int = 0
    opened: bool = False
    sent: bool = False
    early: list[StreamData | StreamEnd] = field(default_factory=list)

    def stalled(self, missed_s: float) -> None:
        """See Calls.stalled."""
        self.until += missed_s
        if self.call is not None and self.call.since is not None:
            self.call = replace(self.call, since=self.call.since + missed_s)


@dataclass(slots=True)
class Counts:
    """How often it happened since the start."""

    forwarded: int = 0
    retried: int = 0
    refused: int = 0


class _Alarms:
    """When calls have waited long enough. until_of: of a call that waits; None for others, whose alarms are void."""

    def __init__(self, until_of: Callable[[int], float | None]) -> None:
        self._until_of = until_of
        self._heap: list[tuple[float, int]] = []

    def set(self, until: float, stream: int) -> None:
        """For this call."""
        heapq.heappush(self._heap, (until, stream))

    def next(self) -> float | None:
        """When the next one is due."""
        while self._heap and self._until_of(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> int | None:
        """A call whose alarm is due."""
        due = self.next()
        return heapq.heappop(self._heap)[1] if due is not None and due <= now else None

    def stalled(self, missed_s: float) -> None:
        """See Calls.stalled."""
        self._heap = [(until + missed_s, stream) for until, stream in self._heap]


class Calls:
    """See the module. now: seconds since the epoch. out: gets answers and what is to be passed on."""

    def __init__(
        self, raft: Raft, group: RaftGroup, reads: Container[str], out: list[ManagerEffect], tags: Iterator[int]
    ) -> None:
        """reads: names of the calls that change nothing, so that another leader may be asked again."""
        self.counts = Counts()
        self.shares = Shares()
        self._reads = reads
        self._raft = raft
        self._group = group
        self._out = out
        self._tags = tags
        self._open: dict[int, _Open] = {}
        self._barriers: dict[int, int] = {}  # streams by tag
        self._waiting: dict[int, None] = {}
        self._alarms = _Alarms(self._waits_until)
        self._forwards: dict[int, int] = {}  # streams by tag
        self._leaderless_since: float | None = None
        self._gone_at: float | None = None

    # --- while this manager leads ----------------------------------------------------------------------------------

    def at_service(self, call: Call, service: Service) -> None:
        """A service of the leader answers it."""
        self._open[call.stream] = _Open(Place.SERVICE, _movable(call), service, (call.method, call.peer))

    def at_write(self, call: Call) -> None:
        """A write of the leader answers it."""
        self._open[call.stream] = _Open(Place.WRITE, _movable(call), caller=(call.method, call.peer))

    def at_barrier(self, call: Call) -> int:
        """A read waits until the group has confirmed who leads; the tag of the barrier."""
        tag = next(self._tags)
        self._open[call.stream] = _Open(Place.BARRIER, call, tag=tag)
        self._barriers[tag] = call.stream
        return tag

    def at_check(self, call: Call, addr: str) -> None:
        """A joiner's address is looked at."""
        self._open[call.stream] = _Open(Place.CHECK, call, addr=addr)

    def caller(self, stream: int) -> tuple[str, Peer] | None:
        """The method and the caller of a call that a service or a write of this leader answers."""
        found = self._open.get(stream)
        return found.caller if found is not None else None

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
        """This member leads now; 0: nobody is known to. Who waits for the answer of another one waits in vain."""
        if raft_id:
            self._leaderless_since = self._gone_at = None
            self._abandon(raft_id, now)
            return
        self._gone_at = now + defaults.LEADER_GONE_S
        if self._leaderless_since is None:
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
        taken = [call for stream in sorted(self._waiting) if (call := self._open.pop(stream).call) is not None]
        self._waiting.clear()
        self.shares.served(taken)
        return taken

    # --- calls without a leader ------------------------------------------------------------------------------------

    def pass_on(self, call: Call, now: float) -> None:
        """This manager does not lead: the leader answers, and while there is none the call waits for an election."""
        leader = self._group.peers.get(self._raft.leader)
        if call.peer.forwarder or (not call.peer.local and call.method.startswith("Control/")):
            self._refuse(call, NotTaken())
        elif call.since is not None and now >= call.since + self._patience_s:
            self._refuse(call, NoLeader())
        elif call.peer.certificate_error and leader is not None and not self._group.is_ours(leader.raft_id):
            self._refuse(call, PermissionDenied(f"Permission denied: {call.peer.certificate_error}{_STOCK_LEADS}"))
        elif leader is not None and leader.raft_id != self._group.raft_id:
            self._forward(replace(call, since=call.since or now), leader)
        elif len(self._waiting) >= defaults.INBOX_CALLS_MAX:
            self._refuse(call, ResourceExhausted("too many calls wait for a leader"))
        else:
            self._wait(call, now)

    def ask_again(self, call: Call, now: float) -> None:
        """A read did no harm: whoever leads next may answer it, if the caller is still there."""
        self._open.pop(call.stream, None)
        if call.peer.forwarder:
            self._refuse(call, NotTaken())
        else:
            self._wait(call, now)

    def _wait(self, call: Call, now: float) -> None:
        """Keep a call until somebody leads, for as long as an election may take since the last leader was lost."""
        if call.request is None:  # what it sends meanwhile would have to be kept as well
            self._refuse(call, NoLeader())
            return
        since = now if call.since is None else call.since
        lost = since if self._leaderless_since is None else self._leaderless_since
        until = min(since, lost) + self._patience_s
        self._open[call.stream] = _Open(Place.WAITING, replace(call, since=since), until=until)
        self._waiting[call.stream] = None
        self._alarms.set(until, call.stream)

    @property
    def _patience_s(self) -> float:
        """For how long a call looks for a leader, in seconds."""
        return max(defaults.NO_LEADER_WAIT_S, self._raft.config.election_s)

    def _refuse(self, call: Call, error: SwarmError) -> None:
        self.counts.refused += 1
        self._out.append(StreamEnd(call.stream, error))

    # --- calls that the leader answers -----------------------------------------------------------------------------

    def _forward(self, call: Call, leader: api.RaftMember) -> None:
        tag = next(self._tags)
        opened = call.request is not None  # then nothing but its end can follow
        self._open[call.stream] = _Open(Place.FORWARDED, call, tag=tag, leader=leader.raft_id, opened=opened)
        self._forwards[tag] = call.stream
        self.counts.forwarded += 1
        self._out.append(Forward(tag, call, leader))

    def forward_opened(self, event: ForwardOpened) -> None:
        """What the client sent meanwhile follows."""
        stream = self._forwards.get(event.tag)
        if stream is None:
            return
        found = self._open[stream]
        found.opened = True
        found.sent = found.sent or bool(found.early)
        self._out += [ForwardMore(event.tag, word) for word in found.early]
        found.early.clear()

    def forward_failed(self, event: ForwardFailed, now: float) -> None:
        """The leader could not be reached, so it certainly did not take the call."""
        stream = self._forwards.get(event.tag)
        if stream is None:
            return
        if event.error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            self._retry(self._open[stream], stream, now)
        else:
            self._answered(event.tag, StreamEnd(stream, event.error), now)

    def forward_answered(self, event: ForwardAnswered, now: float) -> None:
        """The leader's answer, or the end of the connection to it."""
        if event.tag not in self._forwards:
            return
        if isinstance(event.answer, StreamData):
            self._out.append(event.answer)
        else:
            self._answered(event.tag, event.answer, now)

    def _answered(self, tag: int, answer: Reply | StreamEnd, now: float) -> None:
        stream = self._forwards[tag]
        found = self._open[stream]
        assert found.call is not None
        error = answer.error if isinstance(answer, StreamEnd) else None
        untaken = _is_untaken(error)
        if not untaken and not (isinstance(error, Unavailable) and found.call.method in self._reads):
            self._drop(stream)
            self._out.append(answer)
        elif found.sent:  # what it sent is gone, and no other leader can take the rest
            self._drop(stream)
            self._refuse(found.call, NoLeader())
        else:
            self._retry(found, stream, now)

    def _retry(self, found: _Open, stream: int, now: float) -> None:
        """Look in a moment who leads then."""
        del self._forwards[found.tag]
        found.place, found.tag, found.until = Place.RETRY, 0, now + defaults.FORWARD_RETRY_S
        found.opened = False
        self._alarms.set(found.until, stream)
        self.counts.retried += 1

    def _abandon(self, leader: int, now: float) -> None:
        """End the calls that went to any other member."""
        text = "the leader of the swarm was lost before it answered; the request may have been carried out"
        for tag, stream in list(self._forwards.items()):
            if self._open[stream].leader != leader:
                end = StreamEnd(stream, Unavailable(text))
                self._out.append(ForwardMore(tag, end))
                self._answered(tag, end, now)

    # --- what else happens to a call ---------------------------------------------------------------------------------

    def more(self, word: StreamData | StreamEnd) -> Service | None:
        """More of a call: the service that is to hear it, or None when it is dealt with."""
        found = self._open.get(word.stream)
        if found is None:
            return None
        cancelled = isinstance(word, StreamEnd) and word.error is not None
        if found.place is Place.SERVICE:
            if cancelled:
                self._drop(word.stream)
            return found.service
        if found.place is Place.FORWARDED or found.place is Place.RETRY:
            self._more_for_leader(found, word, cancelled)
        elif (
            isinstance(word, StreamEnd) and found.place is not Place.CHECK
        ):  # a joiner may become a member all the same
            self._drop(word.stream)
        return None

    def _more_for_leader(self, found: _Open, word: StreamData | StreamEnd, cancelled: bool) -> None:
        if not (found.opened or cancelled):
            found.early.append(word)
        elif found.place is Place.FORWARDED:
            assert found.call is not None
            found.sent = found.sent or found.call.request is None
            self._out.append(ForwardMore(found.tag, word))
        if cancelled:
            self._drop(word.stream)

    def _drop(self, stream: int) -> None:
        found = self._open.pop(stream)
        self._waiting.pop(stream, None)
        self._barriers.pop(found.tag, None)
        self._forwards.pop(found.tag, None)

    def waiting_bytes(self, stream: int) -> int:
        """What waits here until the call is open at the leader; 0 for any other call."""
        found = self._open.get(stream)
        if found is None:
            return 0
        return sum(word.message.ByteSize() for word in found.early if isinstance(word, StreamData))

    def by_place(self) -> dict[Place, int]:
        """How many calls are where."""
        return dict(Counter(found.place for found in self._open.values()))

    # --- time --------------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[tuple[Call, list[StreamData | StreamEnd]]]:
        """End what has waited for long enough; the calls to be tried again, with what their clients sent meanwhile."""
        again = []
        if self._gone_at is not None and self._gone_at <= now:
            self._gone_at = None
            self._abandon(events.NO_ONE, now)
        while (stream := self._alarms.take(now)) is not None:
            found = self._open.pop(stream)
            assert found.call is not None
            if found.place is Place.RETRY:
                again.append((found.call, found.early))
            else:
                del self._waiting[stream]
                self._refuse(found.call, NoLeader())
        return again

    def stalled(self, missed_s: float) -> None:
        """This process stood still for so long (swarm/attention.py): no call has waited for a leader meanwhile."""
        self._gone_at = self._gone_at and self._gone_at + missed_s
        self._leaderless_since = self._leaderless_since and self._leaderless_since + missed_s
        for found in self._open.values():
            found.stalled(missed_s)
        self._alarms.stalled(missed_s)

    def deadline(self) -> float | None:
        """When expire has something to do."""
        times = (self._alarms.next(), self._gone_at if self._forwards else None)
        return min((at for at in times if at is not None), default=None)

    def _waits_until(self, stream: int) -> float | None:
        found = self._open.get(stream)
        return found.until if found is not None and found.place in (Place.WAITING, Place.RETRY) else None


def _movable(call: Call) -> Call | None:
    """Until a call with one request and one answer is answered, another leader could take it as well."""
    return call if call.request is not None and not METHODS[call.method].server_streaming else None


def _is_untaken(error: SwarmError | None) -> bool:
    """Whether the other manager says that it did nothing, since it does not lead."""
    return error is not None and error.code == Code.FAILED_PRECONDITION and error.message == NotTaken().message
