"""Performs the watch over the other members (swarm/manager/group/watch.py) and keeps on disk what they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence

import structlog

from swarm.errors import SwarmError
from swarm.io.disk.raft_disk import Loaded, RaftDisk
from swarm.io.node.peers import Peers
from swarm.manager.events import PeerKnown
from swarm.manager.group.watch import Kinds
from swarm.manager.status import Member, Status

log = structlog.get_logger()

_BLOB = "peers"


def load_kinds(loaded: Loaded) -> Kinds:
    """As the disk has them."""
    return Kinds({int(peer): ours for peer, ours in json.loads(loaded.blobs.get(_BLOB, b"{}")).items()})


class PeerWatch:
    """See Watched. members_changed is to be called when the group has other members."""

    def __init__(
        self, status: Callable[[], Status], peers: Peers, put: Callable[[PeerKnown], None], kinds: Kinds, disk: RaftDisk
    ) -> None:
        self.status = status
        self.ask_for_us = peers.ask_for_us
        self._peers = peers
        self._put = put
        self._kinds = kinds
        self._disk = disk
        self._changed = asyncio.Event()

    async def check(self, members: Sequence[Member]) -> Sequence[tuple[str, bool]]:
        """See Watched. All at once: one that does not answer holds up no other."""
        return await asyncio.gather(*(self._peers.check(member.found_at, member.node_id) for member in members))

    def tell(self, event: PeerKnown) -> None:
        """See Watched."""
        self._put(event)
        self._disk.put_blob(_BLOB, json.dumps(self._kinds.known).encode(), _not_noted)

    async def changed(self, timeout_s: float) -> None:
        """See Watched."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        self._changed.clear()

    def members_changed(self) -> None:
        """Check soon."""
        self._changed.set()


def _not_noted(error: SwarmError | None) -> None:
    """What a peer is can be found out again."""
    if error is not None:
        log.warning("raft.peers_not_noted", error=str(error))
