"""The small files of one simulated machine, under the primitives that production's key store and state.json use.

Implements certs.files.Files in a directory of its own. What a process sees and what survives a loss of power differ:
content that was not synchronised may be torn, and names that were not synchronised with their directory may be undone,
the newest first. Each primitive may fail: before it did anything, or after it was done; writes fail on a full disk. A
kill may come before or after any of them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random


class Killed(BaseException):
    """The process died inside a primitive: nothing that it does from here on reaches the disk."""


class Outcome(Enum):
    """Of one primitive."""

    DONE = "done"
    NOT_DONE = "not done, and it says so"
    DONE_AND_FAILED = "done, but it says that it was not"


@dataclass
class Trouble:
    """An ailing disk: each primitive fails with this probability, until ``left`` have."""

    rng: Random
    probability: float
    left: int

    def strike(self) -> Outcome:
        """What becomes of the next primitive."""
        if self.left <= 0 or self.rng.random() >= self.probability:
            return Outcome.DONE
        self.left -= 1
        return self.rng.choice((Outcome.NOT_DONE, Outcome.DONE_AND_FAILED))


class SimFiles:
    """See the module. full: no space is left. kill_in: after how many primitives a kill comes, which calls killed()."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.full = False
        self.trouble: Trouble | None = None
        self.kill_in: int | None = None
        self.killed: Callable[[], None] = lambda: None
        self._undo: list[tuple[Path, bytes | None]] = []
        self._torn: dict[Path, None] = {}
        self._dead = False
        directory.mkdir()

    # --- as production sees them -----------------------------------------------------------------------------------

    def write(self, path: Path, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
        """See Files."""
        if self.full:
            self._step(lambda: self._create(path, data[: len(data) // 2]))
            raise OSError(errno.ENOSPC, "no space left on device")
        self._step(lambda: self._create(path, data))
        self._step(lambda: self._torn.pop(path, None))

    def rename(self, old: Path, new: Path) -> None:
        """See Files."""
        self._step(lambda: self._rename(old, new))

    def unlink(self, path: Path) -> None:
        """See Files."""
        self._step(lambda: self._remove(path))

    def mkdir(self, path: Path, mode: int) -> None:
        """See Files."""
        self._step(lambda: path.mkdir(mode))

    def rmdir(self, path: Path) -> None:
        """See Files. The directory of the node is a mount point."""
        if path == self.directory:
            raise OSError(errno.EBUSY, "device or resource busy")
        self._step(path.rmdir)

    def sync(self, directory: Path) -> None:
        """See Files."""
        self._step(lambda: self._synced(directory))

    # --- what else happens to them ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Another process starts on them."""
        self._dead, self.kill_in = False, None

    def lose_power(self, rng: Random) -> None:
        """What was not synchronised may be lost."""
        for path in sorted(self._torn):
            if (data := _content(path)) is not None:
                path.write_bytes(data[: rng.randint(0, len(data))])
        for _ in range(rng.randint(0, len(self._undo))):
            path, before = self._undo.pop()
            path.unlink(missing_ok=True)
            if before is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(before)
        self._undo.clear()
        self._torn.clear()

    def flip(self, path: Path, rng: Random) -> None:
        """One bit of a file turns over."""
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    def paths(self) -> list[Path]:
        """Of all files, in order."""
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    # --- steps -----------------------------------------------------------------------------------------------------

    def _step(self, do: Callable[[], object]) -> None:
        """One primitive, which may fail or be the last."""
        if self._dead:
            raise Killed
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self._dead = True
                self.killed()
                raise Killed
        outcome = self.trouble.strike() if self.trouble is not None else Outcome.DONE
        if outcome is not Outcome.NOT_DONE:
            do()
        if outcome is not Outcome.DONE:
            raise OSError(errno.EIO, "input/output error")

    def _create(self, path: Path, data: bytes) -> None:
        self._undo.append((path, _content(path)))
        self._torn[path] = None
        path.write_bytes(data)

    def _rename(self, old: Path, new: Path) -> None:
        """Both names change in one step: whoever undoes it undoes both."""
        self._undo.append((new, _content(new)))
        os.replace(old, new)
        if old in self._torn:
            del self._torn[old]
            self._torn[new] = None

    def _remove(self, path: Path) -> None:
        self._undo.append((path, _content(path)))
        path.unlink(missing_ok=True)

    def _synced(self, directory: Path) -> None:
        self._undo = [(path, before) for path, before in self._undo if path.parent != directory]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
