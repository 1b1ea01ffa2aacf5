"""All clients together: who has to go when connections, memory or patience run out.

What a client does not read waits in our memory. Nothing is read for it from a back end while more than a write buffer
waits, so a stream costs little for as long as its reader likes: logs in a pager, events, terminals, downloads. It is
only cut when all clients together hold too much, those that stopped first before the others. An answer that is not a
stream, such as a list, is in memory as a whole, and no client takes long to read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol, TypeVar

import structlog

from swarm import defaults

log = structlog.get_logger()

_CLOSING_S, _ANSWER_S = defaults.API_UNREAD_REST_S, defaults.API_UNREAD_ANSWER_S


class Client(Protocol):
    """A connection of a client. patient: what it gets is a stream, or comes from the engine."""

    transport: asyncio.Transport
    patient: bool
    idle_since: float

    @property
    def idle(self) -> bool:
        """Whether it can end without loss."""
        ...


C = TypeVar("C", bound=Client)


def make_room(clients: set[C], new: C) -> bool:
    """Close the connection that has been idle the longest; False when none is idle."""
    others = [client for client in clients if client.idle and client is not new]
    if not others:
        return False
    oldest = min(others, key=lambda client: client.idle_since)
    clients.discard(oldest)
    if oldest.transport.get_write_buffer_size():
        oldest.transport.abort()  # it does not read its last answer, so it would never be closed
    else:
        oldest.transport.close()
    return True


class Unread:
    """What clients do not read."""

    def __init__(self) -> None:
        self._slow: dict[Client, None] = {}  # with a full write buffer, those that stopped reading first in front
        self._still: dict[Client, tuple[int, float]] = {}  # what waits for a client, and since when it is as much

    def slow(self, client: Client) -> None:
        """A client's write buffer is full. Others are cut off if all together hold too much."""
        self._slow[client] = None
        waiting = {each: each.transport.get_write_buffer_size() for each in self._slow}
        too_much = sum(waiting.values()) - defaults.API_UNREAD_BYTES_MAX
        for each, size in waiting.items():
            if too_much <= 0 or each is client:
                return
            too_much -= size
            self._cut(each, size, "all clients together leave too much unread")

    def fast(self, client: Client) -> None:
        """A client has read, or is gone."""
        self._slow.pop(client, None)

    def _cut(self, client: Client, size: int, reason: str) -> None:
        self.fast(client)
        log.warning("api.unread", peer=str(client.transport.get_extra_info("peername")), waiting=size, reason=reason)
        client.transport.abort()

    def sweep(self, clients: Collection[Client], now: float) -> None:
        """Cut off who has read nothing for too long; ``now``: the loop's clock. Runs every API_UNREAD_SWEEP_S."""
        before, self._still = self._still, {}
        for client in list(clients):
            size = client.transport.get_write_buffer_size()
            if not size:
                continue
            was, since = before.get(client, (-1, now))
            self._still[client] = (size, since if was == size else now)
            closing = client.transport.is_closing()
            if client.patient and not closing:
                continue
            if now - self._still[client][1] > (_CLOSING_S if client.patient else _ANSWER_S):
                self._cut(client, size, "the client does not read its answer")

    async def watch(self, clients: Collection[Client]) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(defaults.API_UNREAD_SWEEP_S)
            self.sweep(clients, asyncio.get_running_loop().time())
