"""Client streams are taken no faster than the manager, or whoever they are passed on to, works through them.

Theory of operation. What a client stream brings is parsed at once and waits for the machine. A few messages of each
stream may wait; then the stream is paused, its window fills up and its client has to wait. The stream goes on when the
machine has taken them and, for a stream that is passed on, when most of it was taken there, which is looked at every
RPC_STREAM_RECHECK_S. A call of a follower's client is passed on to the leader, and a node's publication of logs to
their reader: a reader that stops holds back the nodes that it reads from, and nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarm import defaults
from swarm.manager.events import ManagerEffect, ManagerEvent
from swarm.manager.manager import Manager
from swarm.rpc import StreamData, StreamEnd


class Backpressure:
    """All client streams of a server. came, taken and ended may be called for any stream, at any time."""

    def __init__(
        self, pause: Callable[[int], None], resume: Callable[[int], None], waiting_bytes: Callable[[int], int]
    ) -> None:
        """waiting_bytes: what was not taken yet where a stream is passed on to, 0 if it is not."""
        self._pause = pause
        self._resume = resume
        self._waiting_bytes = waiting_bytes
        self._messages: dict[int, int] = {}
        self._paused: dict[int, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def came(self, stream: int) -> None:
        """A message was put into the machine's inbox."""
        count = self._messages[stream] = self._messages.get(stream, 0) + 1
        if count >= defaults.RPC_STREAM_MESSAGES_AT_ONCE and stream not in self._paused:
            self._paused[stream] = None
            self._pause(stream)

    def taken(self, stream: int) -> None:
        """The machine has handled a message."""
        count = self._messages.get(stream, 0) - 1
        if count > 0:
            self._messages[stream] = count
            return
        self._messages.pop(stream, None)
        if stream in self._paused:
            self._look(stream)
        else:
            self.forwarded(stream)

    def forwarded(self, stream: int) -> None:
        """Some of it waits for the leader."""
        waits = self._waiting_bytes(stream) > defaults.RPC_STREAM_FORWARDED_BYTES_MAX
        if waits and stream not in self._paused:
            self._paused[stream] = None
            self._pause(stream)
            self._look_later()

    def ended(self, stream: int) -> None:
        """Nothing more comes."""
        self._messages.pop(stream, None)
        self._paused.pop(stream, None)

    def stop(self) -> None:
        """Forget everything."""
        if self._timer is not None:
            self._timer.cancel()
        self._messages.clear()
        self._paused.clear()

    def _look(self, stream: int) -> None:
        if self._waiting_bytes(stream) > defaults.RPC_STREAM_FORWARDED_BYTES_MAX:
            self._look_later()
        elif stream not in self._messages:
            self._paused.pop(stream, None)
            self._resume(stream)

    def _look_later(self) -> None:
        if self._timer is None:
            rounds = 1 + len(self._paused) // defaults.RPC_STREAM_RECHECKS_AT_ONCE
            delay_s = rounds * defaults.RPC_STREAM_RECHECK_S
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look_at_all)

    def _look_at_all(self) -> None:
        self._timer = None
        for stream in list(self._paused):
            self._look(stream)


class Flow:
    """The manager as a machine, which tells when it has taken what a client stream brought."""

    def __init__(self, manager: Manager, flow: Backpressure) -> None:
        self._manager = manager
        self._flow = flow

    def handle(self, event: ManagerEvent | None, now: float) -> list[ManagerEffect]:
        """See Machine.handle."""
        effects = self._manager.handle(event, now)
        if isinstance(event, StreamData):
            self._flow.taken(event.stream)
        elif isinstance(event, StreamEnd):
            self._flow.ended(event.stream)
        return effects

    def deadline(self) -> float | None:
        """See Machine.deadline."""
        return self._manager.deadline()
