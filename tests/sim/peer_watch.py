"""The watch of a simulated manager over the other members: production's coroutine on the simulated network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swarm.manager.events import PeerKnown
from swarm.manager.status import Member, Status
from tests.sim.kernel import Future, Kernel
from tests.sim.peers import Peers


class SimWatch:
    """See swarm.manager.group.watch.Watched."""

    def __init__(
        self, status: Callable[[], Status], peers: Peers, put: Callable[[PeerKnown], None], kernel: Kernel
    ) -> None:
        self.status = status
        self.ask_for_us = peers.ask_for_us
        self.tell = put
        self._peers = peers
        self._kernel = kernel
        self._changed = Future()

    async def check(self, members: Sequence[Member]) -> Sequence[tuple[str, bool]]:
        """See Watched."""
        checks = [self._peers.run(self._peers.check(member.found_at, member.node_id)) for member in members]
        return [await check for check in checks]

    async def changed(self, timeout_s: float) -> None:
        """See Watched."""
        changed = self._changed
        self._kernel.at(timeout_s, changed.resolve)
        await changed
        self._changed = Future()

    def members_changed(self) -> None:
        """Check soon."""
        self._changed.resolve()
