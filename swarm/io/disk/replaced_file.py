"""Replaces a database by a rewritten one together with a change of another file; a crash leaves both or neither.

    database            in use
    database.copy       being written, not usable yet
    database.rewritten  complete and on disk

Theory of operation. First the rewritten database is completed. Then comes the *commit*: the other file is replaced in
one step. Then the rewritten database replaces the old one. After a crash, the other file shows whether the commit
happened; the new process calls adopt() or discard() accordingly before it opens the database. The old content is
overwritten, as far as the file system overwrites in place, because it must not be readable any more.

(swarmkit: manager/state/raft/storage.go, rotation of the encryption keys)
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_ZEROS = bytes(1 << 16)
_SQLITE_SUFFIXES = ("-wal", "-shm", "-journal")


def copy_of(path: Path) -> Path:
    """The path at which the rewritten database is written."""
    return path.with_name(f"{path.name}.copy")


def rewritten(path: Path) -> Path:
    """The path at which the rewritten database waits for the commit."""
    return path.with_name(f"{path.name}.rewritten")


def discard(path: Path) -> None:
    """The commit did not happen, or there was no rewrite: delete the files of one. Blocks. Raises OSError."""
    for file in (rewritten(path), copy_of(path)):
        for suffix in ("", *_SQLITE_SUFFIXES, "-mark"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)


def prepare(path: Path) -> None:
    """The copy is complete, synchronised and closed: prepare it for the commit. Blocks. Raises OSError."""
    copy_of(path).replace(rewritten(path))
    _sync_directory(path.parent)


def adopt(path: Path) -> None:
    """The commit happened: replace the database by the rewritten one, if there is one. Blocks. Raises OSError.

    May be repeated after a crash or an error.
    """
    if rewritten(path).exists():
        with contextlib.ExitStack() as old:
            files = [_open_old(path.with_name(path.name + suffix), old) for suffix in ("", *_SQLITE_SUFFIXES)]
            # an old write-ahead log must never be applied to the new database, so it is removed first
            for suffix in _SQLITE_SUFFIXES:
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            _sync_directory(path.parent)
            rewritten(path).replace(path)
            _sync_directory(path.parent)
            for descriptor in files:
                _overwrite(descriptor)
    discard(path)


def _open_old(file: Path, stack: contextlib.ExitStack) -> int | None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    stack.callback(os.close, descriptor)
    return descriptor


def _overwrite(descriptor: int | None) -> None:
    """Overwrite everything with zeros. If the disk refuses, the old content remains, but only in its raw blocks."""
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        left = os.fstat(descriptor).st_size
        while left > 0:
            left -= os.write(descriptor, _ZEROS[:left])
        os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
