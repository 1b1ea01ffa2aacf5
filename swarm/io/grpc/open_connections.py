"""The connections of a server that are open, and those that still shake hands; a server that stops waits for them."""

from __future__ import annotations

import asyncio

from swarm.grpc.admission import TrackedConnection
from swarm.io.grpc.server_connection import ServerConnection


class OpenConnections:
    """ready: after the handshake. handshaking: before."""

    def __init__(self) -> None:
        self.ready: dict[ServerConnection, None] = {}
        self.handshaking: dict[TrackedConnection, None] = {}
        self._empty: asyncio.Event | None = None

    def drop(self, connection: ServerConnection) -> None:
        """It is gone."""
        self.ready.pop(connection, None)
        self._note()

    def shaken(self, tracked: TrackedConnection) -> None:
        """Its handshake is over, or has failed."""
        self.handshaking.pop(tracked, None)
        self._note()

    async def wait_empty(self, timeout_s: float) -> None:
        """Until all are gone, or so many seconds."""
        if not (self.ready or self.handshaking) or timeout_s <= 0:
            return
        self._empty = asyncio.Event()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return

    def _note(self) -> None:
        if self._empty is not None and not (self.ready or self.handshaking):
            self._empty.set()
