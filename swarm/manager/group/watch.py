"""What the other members are, found out again and again: a member that was replaced or upgraded is noticed as well.

Also the wait of a leader that stops for the next one. Coroutines of the same kind as dialogues.py.

(swarmkit: manager/state/raft/raft.go checkHealth, transferLeadership)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from swarm import defaults
from swarm.manager.events import PeerKnown
from swarm.manager.status import Member, Status
from swarm.raft.events import TransferLeadership

log = structlog.get_logger()


class Kinds:
    """By raft ID whether a member is a manager of ours, as checks have told; of the others nothing is known."""

    def __init__(self, known: Mapping[int, bool]) -> None:
        self.known = dict(known)

    def is_ours(self, raft_id: int) -> bool:
        """Whether a member is known to be a manager of ours."""
        return self.known.get(raft_id, False)

    def learn(self, member: Member, error: str, ours: bool) -> PeerKnown | None:
        """The outcome of a check (error empty: it serves); what is news in it."""
        if error or self.known.get(member.raft_id) is ours:
            return None
        log.info("raft.peer_known", peer=f"{member.raft_id:x}", addr=member.found_at, ours=ours)
        self.known[member.raft_id] = ours
        return PeerKnown(member.raft_id, ours)


class Watched(Protocol):
    """What the watch needs of the driver of a manager."""

    def status(self) -> Status:
        """Of the manager."""
        ...

    async def check(self, members: Sequence[Member]) -> Sequence[tuple[str, bool]]:
        """For each whether it serves (empty) or why not, and whether it is one of ours."""
        ...

    def tell(self, event: PeerKnown) -> None:
        """Hand it to the manager, and keep it for the next start."""
        ...

    def ask_for_us(self, raft_id: int, addresses: Sequence[str]) -> None:
        """See Locator."""
        ...

    async def changed(self, timeout_s: float) -> None:
        """Return when the members changed since the last call, at the latest after ``timeout_s``."""
        ...


async def watch(watched: Watched, kinds: Kinds) -> None:
    """Check all other members for ever."""
    while True:
        others = watched.status().others
        for member, (error, ours) in zip(others, await watched.check(others), strict=True):
            if (news := kinds.learn(member, error, ours)) is not None:
                watched.tell(news)
        status = watched.status()
        pause_s = defaults.PEER_CHECK_SOON_S if status.undetermined else defaults.PEER_CHECK_S
        watched.ask_for_us(status.raft_id, [member.found_at for member in others])
        if not status.leader:
            pause_s = min(pause_s, defaults.PEER_CHECK_LEADERLESS_S)
        await watched.changed(pause_s)


async def hand_over(
    status: Status, put: Callable[[TransferLeadership], None], deposed: Callable[[float], Awaitable[object]]
) -> None:
    """A leader that stops hands over first, if there is somebody to hand over to.

    deposed: waits until this manager leads no more, for so many seconds at most.
    """
    if status.leading and status.others:
        put(TransferLeadership())
        await deposed(defaults.HANDOVER_WAIT_S)
