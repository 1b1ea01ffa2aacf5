"""A disk for tests that fails or dies at one of the calls that change it (drives certs.files)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from certs.files import SYSTEM

EIO = errno.EIO
ENOSPC = errno.ENOSPC
DEATH = 0


class Death(BaseException):
    """The process was killed here."""


class BadDisk:
    """Files as they are, but the ``at``-th call fails, counted from 0; after: once it has had its effect.

    code: EIO, ENOSPC or DEATH. times: so many calls in a row fail. calls: the names of all calls so far.
    """

    def __init__(self, at: int, after: bool, code: int = EIO, times: int = 1) -> None:
        self.at = at
        self.after = after
        self.code = code
        self.times = times
        self.calls: list[str] = []

    @property
    def struck(self) -> bool:
        """Whether a call has failed."""
        return len(self.calls) > self.at

    def heal(self) -> None:
        """From now on nothing fails."""
        self.times = 0

    def _fails(self, name: str) -> bool:
        self.calls.append(name)
        return self.at < len(self.calls) <= self.at + self.times or (self.code == DEATH and self.struck)

    def _fail(self, path: Path) -> None:
        if self.code == DEATH:
            raise Death
        raise OSError(self.code, os.strerror(self.code), str(path))

    def write(self, path: Path, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
        """A write that fails leaves a part of the file."""
        fails = self._fails("write")
        SYSTEM.write(path, data if not fails or self.after else data[: len(data) // 2], mode, owner)
        if fails:
            self._fail(path)

    def rename(self, old: Path, new: Path) -> None:
        """See Files."""
        fails = self._fails("rename")
        if not fails or self.after:
            SYSTEM.rename(old, new)
        if fails:
            self._fail(new)

    def unlink(self, path: Path) -> None:
        """See Files."""
        fails = self._fails("unlink")
        if not fails or self.after:
            SYSTEM.unlink(path)
        if fails:
            self._fail(path)

    def mkdir(self, path: Path, mode: int) -> None:
        """See Files."""
        fails = self._fails("mkdir")
        if not fails or self.after:
            SYSTEM.mkdir(path, mode)
        if fails:
            self._fail(path)

    def rmdir(self, path: Path) -> None:
        """See Files."""
        fails = self._fails("rmdir")
        if not fails or self.after:
            SYSTEM.rmdir(path)
        if fails:
            self._fail(path)

    def sync(self, directory: Path) -> None:
        """See Files."""
        if self._fails("sync"):
            self._fail(directory)
        SYSTEM.sync(directory)
