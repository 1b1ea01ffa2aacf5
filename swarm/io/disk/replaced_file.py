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

from certs import files
from certs.files import SYSTEM, Files

_ZEROS = bytes(1 << 16)
_SQLITE_SUFFIXES = ("-wal", "-shm", "-journal")


def copy_of(path: Path) -> Path:
    """The path at which the rewritten database is written."""
    return path.with_name(f"{path.name}.copy")


def rewritten(path: Path) -> Path:
    """The path at which the rewritten database waits for the commit."""
    return path.with_name(f"{path.name}.rewritten")


def with_logs(path: Path) -> list[Path]:
    """The files of a database: sqlite's own logs first, which must never be applied to another database."""
    return [*(path.with_name(path.name + suffix) for suffix in _SQLITE_SUFFIXES), path]


def discard(path: Path, disk: Files = SYSTEM) -> None:
    """The commit did not happen, or there was no rewrite: delete the files of one. Blocks. Raises OSError.

    Only after that may the database be written again: a rewritten one that is found later would take its place.
    """
    marks = [file.with_name(f"{file.name}-mark") for file in (rewritten(path), copy_of(path))]
    files.remove([*with_logs(rewritten(path)), *with_logs(copy_of(path)), *marks], disk)


def prepare(path: Path, disk: Files = SYSTEM) -> None:
    """The copy is complete, synchronised and closed: prepare it for the commit. Blocks. Raises OSError."""
    files.move(copy_of(path), rewritten(path), disk)


def adopt(path: Path, disk: Files = SYSTEM) -> None:
    """The commit happened: replace the database by the rewritten one, if there is one. Blocks. Raises OSError.

    May be repeated after a crash or an error.
    """
    if files.exists(rewritten(path)):
        *logs, database = with_logs(path)
        with contextlib.ExitStack() as old:
            opened = [_open_old(file, old) for file in (database, *logs)]
            files.remove(logs, disk)
            files.move(rewritten(path), path, disk)
            for descriptor in opened:
                _overwrite(descriptor)
    else:
        files.settle(path.parent, disk)  # an earlier attempt may have failed there
    discard(path, disk)


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
