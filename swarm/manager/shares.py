"""Fair shares of a manager's places for calls: nobody can take so many that others are not served.

A call holds a place from its arrival to its answer, whether it is in the leader's queue, waits for a certificate or for
a leader, or was forwarded. A caller is a node (by its certificate, also when a follower forwards its calls), this
process with all its API clients, or, without a certificate, the network that a call comes from. Each may hold
as many as a part of the places that are free now, so one flood ends at a fraction of all places, and several floods
leave each other less and less, but some stay free (dynamic thresholds: Choudhury and Hahne, 1998). Everybody has a few
places that nobody can take away, and those without a certificate share other places than the nodes.

A stream that is being served holds none: the services limit streams themselves. A caller that hangs up keeps its place
for as long as its write is in the leader's queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from swarm import defaults
from swarm.api.methods import METHODS
from swarm.errors import ResourceExhausted
from swarm.grpc.admission import network_of
from swarm.rpc import MANAGER_ROLE, Call, Peer, Reply, StreamEnd

_ANONYMOUS = "without a certificate from "
_LOCAL = "of this manager's own clients"


class Shares:
    """The places that are held, by stream."""

    def __init__(
        self,
        places_max: int = defaults.CALL_PLACES_MAX,
        anonymous_max: int = defaults.CALL_PLACES_ANONYMOUS_MAX,
    ) -> None:
        self._places_max = places_max
        self._anonymous_max = anonymous_max
        self._anonymous = 0
        self._holder: dict[int, str] = {}
        self._held: Counter[str] = Counter()
        self._queued: dict[int, None] = {}

    def admit(self, call: Call, waits: bool) -> ResourceExhausted | None:
        """A call arrives, or is tried again: None, or why its caller may not have a place for it.

        waits: whether there is nobody yet who could serve it.
        """
        if not waits:
            self.served((call,))
        if call.stream in self._holder or (_is_stream(call) and not waits):
            return None
        peer = call.peer
        holder = holder_of(peer)
        if self._held[holder] >= self._most(peer):
            return ResourceExhausted(
                f"too many calls {holder} are open: {self._held[holder]}, while all callers have {len(self._holder)}; "
                "wait for answers before calling again"
            )
        self._holder[call.stream] = holder
        self._held[holder] += 1
        self._anonymous += holder.startswith(_ANONYMOUS)
        return None

    def queued(self, stream: int) -> None:
        """Its write is in the leader's queue: it will be answered, even if nobody waits any more."""
        if stream in self._holder:
            self._queued[stream] = None

    def hung_up(self, stream: int) -> None:
        """Its caller is gone."""
        if stream not in self._queued:
            self.free(stream)

    def served(self, calls: Iterable[Call]) -> None:
        """These wait for a leader no more: streams need no place from now on."""
        for call in calls:
            if _is_stream(call):
                self.free(call.stream)

    def answered(self, effects: Iterable[object]) -> None:
        """What leaves the manager, of which some ends calls."""
        for effect in effects:
            if isinstance(effect, Reply | StreamEnd):
                self.free(effect.stream)

    def free(self, stream: int) -> None:
        """Its call is over."""
        self._queued.pop(stream, None)
        holder = self._holder.pop(stream, None)
        if holder is not None:
            self._anonymous -= holder.startswith(_ANONYMOUS)
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]

    def held(self, peer: Peer) -> int:
        """How many places its caller has."""
        return self._held.get(holder_of(peer), 0)

    @property
    def all_held(self) -> int:
        """How many places are taken."""
        return len(self._holder)

    def _most(self, peer: Peer) -> int:
        """How many places this caller may have now."""
        if not (peer.node_id or peer.local):
            free = max(0, self._anonymous_max - self._anonymous)
            return max(free // defaults.CALL_SHARE_OF_NETWORK, defaults.CALL_PLACES_OWN_ANONYMOUS)
        free = max(0, self._places_max - (len(self._holder) - self._anonymous))
        part = 1 if peer.local or peer.role == MANAGER_ROLE else defaults.CALL_SHARE_OF_NODE
        return max(free // part, defaults.CALL_PLACES_OWN)


def _is_stream(call: Call) -> bool:
    method = METHODS.get(call.method)
    return method is not None and (method.server_streaming or method.client_streaming)


def holder_of(peer: Peer) -> str:
    """For whom a call is made, as words that follow "calls"."""
    if peer.node_id:
        return f"of node {peer.node_id}"
    return _LOCAL if peer.local else _ANONYMOUS + network_of(peer.host)
