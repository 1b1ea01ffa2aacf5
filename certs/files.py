"""The primitives by which small files are kept: what a disk does in one step, and what may fail in each step.

Theory of operation. A file is replaced in steps: the new content is written beside it and synchronised, then renamed,
and then the directory is synchronised. Only after the last step does the new content survive a loss of power. Whoever
keeps a file is handed these primitives, so that simulated disks can fail at each of them (tests/sim/files.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """All methods block and raise OSError. After an error a step may have happened all the same."""

    def read(self, path: Path) -> bytes | None:
        """The content of a file; None if there is none."""
        ...

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file (0600) in place of any that is there, in a directory (0700) that may not exist yet.

        Synchronise its content. A loss of power may still take the file away, until its directory is synchronised.
        """
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of any file that has it."""
        ...

    def remove(self, path: Path) -> None:
        """Delete a file, if there is one."""
        ...

    def sync_directory(self, directory: Path) -> None:
        """Synchronise the names in a directory: files that were written, renamed or removed there."""
        ...


class OsFiles:
    """Files of the operating system."""

    def read(self, path: Path) -> bytes | None:
        """See Files."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: Path, data: bytes) -> None:
        """See Files."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, old: Path, new: Path) -> None:
        """See Files."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """See Files."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """See Files."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
