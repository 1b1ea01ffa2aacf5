"""Timers that judge others, and that a stall of this process does not make ring at once.

When a process goes on after it was stopped, event loops ring what is due before they read what waits in the sockets. A
timer of this kind that rings more than STALL_S late waits once more, for STALL_GRACE_S, so that what was sent in time
is read first. (swarm/attention.py is the same for machines.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from swarm import defaults


class PatientTimer:
    """loop.call_later that gives others time to be heard after a stall. In the running loop."""

    __slots__ = ("_call", "_due", "_handle", "_loop", "_spared")

    def __init__(self, delay_s: float, call: Callable[..., object], *arguments: object) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._call = partial(call, *arguments)
        self._due = loop.time() + delay_s
        self._spared = False
        self._handle = loop.call_later(delay_s, self._ring)

    def cancel(self) -> None:
        """It does not ring any more."""
        self._handle.cancel()

    def _ring(self) -> None:
        if self._loop.time() - self._due > defaults.STALL_S and not self._spared:
            self._spared = True
            self._handle = self._loop.call_later(defaults.STALL_GRACE_S, self._ring)
        else:
            self._call()
