"""Replacing a database by a rewritten one together with another file's change, so that a crash leaves both or neither.

    database            in use
    database.copy       being written, worth nothing
    database.rewritten  complete and on disk

Theory of operation. The rewritten database is complete before the *commit*, the replacement of the other file, in one
step. After the commit the rewritten one takes the database's place. Who starts anew knows from the other file which
side of the commit a crash was on, and calls adopt() or discard() before the database is opened. The old content is
overwritten as far as the file system does that in place: it is there to be forgotten.

(swarmkit: manager/state/raft/storage.go, rotation of the encryption keys)
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_ZEROS = bytes(1 << 16)
_SQLITE_SUFFIXES = ("-wal", "-shm", "-journal")


def copy_of(path: Path) -> Path:
    """Where the rewritten database is made."""
    return path.with_name(f"{path.name}.copy")


def rewritten(path: Path) -> Path:
    """Where it waits for the commit."""
    return path.with_name(f"{path.name}.rewritten")


def discard(path: Path) -> None:
    """The commit did not happen, or nothing was under way. Blocks. Raises OSError."""
    for file in (rewritten(path), copy_of(path)):
        for suffix in ("", *_SQLITE_SUFFIXES):
            file.with_name(file.name + suffix).unlink(missing_ok=True)


def prepare(path: Path) -> None:
    """The closed, synchronised copy is complete: the commit may come. Blocks. Raises OSError."""
    copy_of(path).replace(rewritten(path))
    _sync_directory(path.parent)


def adopt(path: Path) -> None:
    """The commit happened: put the rewritten database, if there is one, in its place. Blocks. Raises OSError.

    May be repeated after a crash or an error.
    """
    if rewritten(path).exists():
        with contextlib.ExitStack() as old:
            files = [_open_old(path.with_name(path.name + suffix), old) for suffix in ("", *_SQLITE_SUFFIXES)]
            # an old write-ahead log must never be applied to the new database, so it goes first
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
    """Zeros over everything; a disk that refuses them keeps what only its raw blocks show."""
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
