"""The agent's connection to a manager. Only the newest one counts; answers from earlier ones are dropped.

(swarmkit: agent/session.go)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from swarm.agent.events import Connect, Connected, ConnectionLost
from swarm.errors import Unavailable
from swarm.rpc import Call, Reply, StreamData, StreamEnd

Answer = Reply | StreamData | StreamEnd


class Link(Protocol):
    """An open connection to a remote manager, or to the manager in this process."""

    def open(self, call: Call, listener: Callable[[Answer], None]) -> None:
        """Begin a call of the agent. The answers have the agent's stream number."""
        ...

    def send(self, event: StreamData | StreamEnd) -> None:
        """Send more of a client stream."""
        ...

    def close(self) -> None:
        """Close the connection and everything open on it."""
        ...


L = TypeVar("L", bound=Link)


class ManagerConnection(Generic[L]):
    """The connection of an agent, for its driver. The driver dials, and calls connected() or failed()."""

    def __init__(self, put: Callable[[Answer | Connected | ConnectionLost], None]) -> None:
        """put: gives an event to the agent."""
        self.link: L | None = None
        self._put = put
        self._number = 0

    @property
    def open_or_dialled(self) -> bool:
        """Whether the agent has a connection, or one is being dialled."""
        return self._number != 0

    def begin(self, effect: Connect) -> None:
        """The agent wants this connection instead of its present one; the driver starts to dial it."""
        self.drop()
        self._number = effect.connection

    def connected(self, effect: Connect, link: L) -> None:
        """The dial succeeded."""
        if effect.connection != self._number:
            link.close()
            return
        self.link = link
        self._put(Connected(effect.connection))

    def failed(self, effect: Connect, error: str) -> None:
        """The dial failed."""
        if effect.connection == self._number:
            self._put(ConnectionLost(effect.connection, error))

    def lost(self, link: L, error: str) -> None:
        """A link broke by itself."""
        if link is self.link:
            number = self._number
            self.drop()
            self._put(ConnectionLost(number, error))

    def call(self, call: Call) -> None:
        """Begin a call of the agent."""
        number = self._number
        if self.link is None:
            self._put(StreamEnd(call.stream, Unavailable("no connection to a manager")))
            return

        def listen(answer: Answer) -> None:
            if number == self._number:
                self._put(answer)

        self.link.open(call, listen)

    def send(self, event: StreamData | StreamEnd) -> None:
        """Send more of a client stream of the agent."""
        if self.link is not None:
            self.link.send(event)

    def drop(self) -> None:
        """Close the connection and stop dialling."""
        self._number = 0
        if self.link is not None:
            link, self.link = self.link, None
            link.close()
