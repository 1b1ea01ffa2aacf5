"""Where messages go whose receiver the log does not tell of yet: a member that lags may have to answer a new leader.

Its address is asked of the members and managers that are known, one search at a time for each raft ID. Until it is
found, an answer goes to where the receiver called from.

(swarmkit: manager/state/raft/transport/transport.go, raft.go ResolveAddress)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from swarm import api, defaults
from swarm.errors import SwarmError
from swarm.manager.events import FoundAt
from swarm.manager.group import dialogues
from swarm.manager.group.members import REMOVED_TEXT
from swarm.raft.events import Removed, Unreachable

Sleep = Callable[[float], Awaitable[object]]
Search = Coroutine[Any, Any, None]


def undelivered(raft_id: int, error: Exception) -> Removed | Unreachable:
    """What it tells that a message to this member was not delivered: it may say that this one is a member no more."""
    if isinstance(error, SwarmError) and error.message == REMOVED_TEXT:
        return Removed()
    return Unreachable(raft_id)


class Locator:
    """start: runs a search; it ends with the driver. managers: addresses of managers that this node has heard of."""

    def __init__(
        self,
        managers: Iterable[str],
        dial: dialogues.Dial,
        sleep: Sleep,
        start: Callable[[Search], object],
        report: Callable[[FoundAt | Removed], None],
    ) -> None:
        """report: hears where the others find this member, or that it is a member no more."""
        self._managers = tuple(managers)
        self._dial = dial
        self._sleep = sleep
        self._start = start
        self._report = report
        self._found: dict[int, api.RaftMember] = {}
        self._searches: dict[int, None] = {}

    def member(
        self, raft_id: int, members: Mapping[int, api.RaftMember], callers: Mapping[int, api.RaftMember]
    ) -> api.RaftMember | None:
        """Where to send to; None: nobody knows yet, and the message is lost.

        callers: where those may be that sent messages. Who could tell more may be gone.
        """
        member = members.get(raft_id) or self._found.get(raft_id)
        if member is not None:
            return member
        self._begin(raft_id, [known.addr for known in members.values()], self._find)
        return callers.get(raft_id)

    def ask_for_us(self, raft_id: int, addresses: Sequence[str]) -> None:
        """See where the others find this member, and whether it is still one."""
        self._begin(raft_id, addresses, self._ask_for_us)

    def lost(self, raft_id: int) -> None:
        """It cannot be reached: it may have moved since its address was asked for."""
        self._found.pop(raft_id, None)

    def keep_unknown(self, members: Mapping[int, api.RaftMember]) -> None:
        """Forget what was asked about those that the log tells of now."""
        self._found = {raft_id: found for raft_id, found in self._found.items() if raft_id not in members}

    def _begin(self, raft_id: int, addresses: Sequence[str], search: Callable[[int, list[str]], Search]) -> None:
        if raft_id not in self._searches:
            self._searches[raft_id] = None
            self._start(search(raft_id, list(dict.fromkeys([*addresses, *self._managers]))))

    async def _find(self, raft_id: int, addresses: list[str]) -> None:
        try:
            found = await dialogues.find(raft_id, addresses, self._dial)
            if found is not None:
                self._found[raft_id] = found
            await self._sleep(defaults.PEER_CHECK_SOON_S)
        finally:
            self._searches.pop(raft_id, None)

    async def _ask_for_us(self, raft_id: int, addresses: list[str]) -> None:
        try:
            found = await dialogues.ask_for_us(raft_id, addresses, self._dial)
            if found is not None:
                self._report(found)
            else:
                await self._sleep(defaults.PEER_CHECK_SOON_S)
        finally:
            self._searches.pop(raft_id, None)
