"""Whether a call that was allowed on arrival is allowed still: asked where it is served, with the store as it is then.

A call may wait for a leader, be tried again, stand in the leader's queue or be an open stream. Meanwhile its caller, or
the manager that forwarded it, may have been demoted or removed, and this manager may have become the leader, which
knows more than it did as a follower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from google.protobuf.message import Message

from swarm.api.methods import METHODS
from swarm.errors import SwarmError
from swarm.grpc.authorize import authorize_again, overstays
from swarm.manager.standing import is_removed, why_no_manager
from swarm.rpc import Call, Peer
from swarm.store.store import Store, View
from swarm.store.tx import Tx


class Judge:
    """See the module. leads: whether this manager leads, so that its store lacks nothing."""

    def __init__(self, store: Store, leads: Callable[[], bool]) -> None:
        self._store = store
        self._leads = leads

    def why_no_manager(self, peer: Peer) -> str:
        """See standing.why_no_manager."""
        return why_no_manager(self._store, peer, self._leads())

    def admit(self, call: Call) -> Call:
        """The call with the role that its caller has now. Raises PermissionDenied, Unavailable."""
        removed, demoted = self._rules(self._store)
        peer = authorize_again(METHODS[call.method], call.peer, removed, demoted)
        return call if peer is call.peer else replace(call, peer=peer)

    def refusal(self, method: str, peer: Peer) -> SwarmError | None:
        """Why a call of this method by this peer is not allowed any more; None: it is."""
        return overstays(METHODS[method], peer, *self._rules(self._store))

    def judged(self, run: Callable[[Tx], Message | None], method: str, peer: Peer) -> Callable[[Tx], Message | None]:
        """A write that is refused if its caller may not have it any more when it is run."""
        if peer.local:
            return run

        def judged(tx: Tx) -> Message | None:
            authorize_again(METHODS[method], peer, *self._rules(tx))
            return run(tx)

        return judged

    def _rules(self, view: View) -> tuple[Callable[[str], bool], Callable[[Peer], str]]:
        leading = self._leads()
        return (lambda node_id: is_removed(view, node_id)), (lambda peer: why_no_manager(view, peer, leading))
