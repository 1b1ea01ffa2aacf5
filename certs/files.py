"""How this program replaces and removes files: the only place that renames, so that each rename is done in one way.

    replace    write a temporary file beside the old one, synchronise it, rename it, synchronise the directory
    move       the last two steps, for a file that is complete
    remove     unlink, then synchronise the directory

A rename is a commit point. An error before it means that nothing has changed. After it, or when the rename itself
fails and nobody can see whether it happened, the new name may well be there: that is Unsettled. Whoever gets it reads
back what is there and decides by that, and calls settle() until it succeeds: before, a loss of power may still bring
the old content back.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

TEMPORARY_SUFFIX = ".tmp"


class Unsettled(OSError):
    """The change of a directory was made, or may have been, but is not known to be on the platter."""


class Files(Protocol):
    """What changes names and contents on disk. Each call may raise OSError; tests make them fail one by one."""

    def write(self, path: Path, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
        """Create the file with this content, synchronised. owner: user and group ID, None: this process's."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of the file that has it."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        ...

    def mkdir(self, path: Path, mode: int) -> None:
        """Create a directory."""
        ...

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        ...

    def sync(self, directory: Path) -> None:
        """What was created, renamed and removed in this directory survives a loss of power."""
        ...


class System:
    """The operating system (Files)."""

    def write(self, path: Path, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
        """See Files."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, old: Path, new: Path) -> None:
        """See Files."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """See Files."""
        os.unlink(path)

    def mkdir(self, path: Path, mode: int) -> None:
        """See Files."""
        os.mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        """See Files."""
        os.rmdir(path)

    def sync(self, directory: Path) -> None:
        """See Files."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


SYSTEM = System()


def temporary(path: Path) -> Path:
    """Where the new content of ``path`` is written; it is of no use to anybody when the process dies there."""
    return path.with_name(f".{path.name.removeprefix('.')}{TEMPORARY_SUFFIX}")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is the rest of a write that never became true."""
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def exists(path: Path) -> bool:
    """Whether there is such a file. Raises OSError when that cannot be told: what cannot be read is not absent."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def replace(
    path: Path, data: bytes, files: Files = SYSTEM, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    """Give ``path`` this content, whole or not at all. Raises OSError if nothing changed, Unsettled if it may have."""
    beside = temporary(path)
    if exists(beside):
        files.unlink(beside)
    try:
        files.write(beside, data, mode, owner)
    except OSError:
        _discard(beside, files)
        raise
    move(beside, path, files)


def move(old: Path, new: Path, files: Files = SYSTEM) -> None:
    """Rename within a directory. Raises OSError if nothing changed, Unsettled if it may have."""
    moved = os.lstat(old).st_ino
    try:
        files.rename(old, new)
    except OSError as error:
        if not _may_be(new, moved):
            raise
        raise Unsettled(error.errno, error.strerror, str(new)) from error
    settle(new.parent, files)


def remove(paths: list[Path], files: Files = SYSTEM) -> None:
    """Remove those files of one directory that are there. Raises OSError; it may be repeated."""
    there = [path for path in paths if exists(path)]
    for path in there:
        files.unlink(path)
    if there:
        settle(there[0].parent, files)


def make_directory(path: Path, files: Files = SYSTEM, mode: int = 0o700) -> None:
    """Create a directory with those above it; the entries of all of them are on disk after that. Raises OSError."""
    if exists(path):
        return
    make_directory(path.parent, files, mode)
    files.mkdir(path, mode)
    settle(path.parent, files)


def settle(directory: Path, files: Files = SYSTEM) -> None:
    """What was done to names in this directory is on disk after that. Raises Unsettled; it may be repeated."""
    try:
        files.sync(directory)
    except OSError as error:
        raise Unsettled(error.errno, error.strerror, str(directory)) from error


def _may_be(path: Path, inode: int) -> bool:
    """Whether this file has the name, as far as can be told."""
    try:
        return os.lstat(path).st_ino == inode
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _discard(path: Path, files: Files) -> None:
    """A temporary file that was not completed takes no room on a full disk, if that can be helped."""
    try:
        files.unlink(path)
    except OSError:
        return
