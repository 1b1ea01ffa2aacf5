"""Writes of the log that fail, for example on a full disk: nothing is acknowledged, and the same write is tried again.

Who waits for an answer in this process is told why, and its next writes are refused, until the disk can be written.
"""

from __future__ import annotations

import structlog

from swarm import defaults
from swarm.errors import Unavailable
from swarm.manager.events import FailLocalCalls, ManagerEffect, PersistFailed
from swarm.raft.events import Persist

log = structlog.get_logger()


class Persistence:
    """See the module. trouble: why the log cannot be written now; empty: it can. now: seconds since the epoch."""

    def __init__(self, out: list[ManagerEffect]) -> None:
        self.trouble = ""
        self.failures = 0
        """Since the start."""
        self._out = out
        self._waiting: Persist | None = None
        self._retry_at = 0.0

    def failed(self, event: PersistFailed, now: float) -> None:
        """A write failed, and left nothing on the disk."""
        if not self.trouble:
            log.error("raft.disk_failed", error=event.error, retry_s=defaults.DISK_RETRY_S)
        self.failures += 1
        self.trouble = f"the manager cannot write its log: {event.error}"
        self._out.append(FailLocalCalls(Unavailable(f"{self.trouble}; this request may still take effect when it can")))
        self._waiting, self._retry_at = event.write, now + defaults.DISK_RETRY_S

    def succeeded(self) -> None:
        """A write is on the disk."""
        if self.trouble:
            log.info("raft.disk_recovered")
            self.trouble = ""

    def wake(self, now: float) -> None:
        """Try the write again when it is due."""
        if self._waiting is not None and self._retry_at <= now:
            self._out.append(self._waiting)
            self._waiting = None

    def deadline(self) -> float | None:
        """When wake has something to do."""
        return self._retry_at if self._waiting is not None else None
