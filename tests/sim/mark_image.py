"""The mark beside a simulated log: what a process says there, and what is left of that after a loss of power.

(swarm/io/disk/mark.py)
"""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path
from random import Random

from swarm.io.disk import mark
from swarm.raft.confirmed import Confirmed

_MISSING = "raft.db-mark is missing"
UNSYNCED_MAX = 20
"""So many writes are never in a row without a moment in which the log is idle, and the mark is synchronised."""


class MarkImage:
    """confirmed: what a reader finds. trouble: why none can be read."""

    def __init__(self) -> None:
        self.confirmed = Confirmed()
        self.trouble = _MISSING
        self._older: deque[Confirmed] = deque(maxlen=UNSYNCED_MAX)  # what the platter may still say instead

    @property
    def exists(self) -> bool:
        """Whether there is one that can be read."""
        return not self.trouble

    def copy(self) -> MarkImage:
        """As it is now."""
        other = MarkImage()
        other.confirmed, other.trouble = self.confirmed, self.trouble
        other._older = self._older.copy()
        return other

    def write(self, confirmed: Confirmed) -> None:
        """Say this from now on, unless the power is lost."""
        if self.exists:
            self._older.append(self.confirmed)
        self.confirmed, self.trouble = confirmed, ""

    def sync(self) -> None:
        """It is on the platter."""
        self._older.clear()

    def read(self) -> tuple[Confirmed, str]:
        """See LogGuard.read_mark."""
        return (Confirmed(), self.trouble) if self.trouble else (self.confirmed, "")

    # --- what nature does ------------------------------------------------------------------------------------------

    def lose_power(self, rng: Random) -> None:
        """It says something that it said since it was last synchronised."""
        self.confirmed = rng.choice((self.confirmed, *self._older))
        self.sync()

    def vanish(self) -> None:
        """The file is gone."""
        self.confirmed, self.trouble = Confirmed(), _MISSING
        self.sync()

    def flip(self, rng: Random) -> None:
        """One bit turns over in the file."""
        with tempfile.TemporaryDirectory(prefix="sideswarm-mark-") as directory:
            path = Path(directory) / "raft.db-mark"
            mark.Mark(path, self.confirmed).close()
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            try:
                self.confirmed = mark.read(path)
            except mark.MarkDamaged as error:
                self.trouble = error.message.replace(str(path), path.name)
