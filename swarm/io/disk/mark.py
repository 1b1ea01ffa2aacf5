"""A small file beside a log that tells what its member has confirmed, so that a loss at the log's end is noticed.

Theory of operation. The mark is written after each synchronised write of the log and before that is reported, but is
not synchronised itself: that would cost as much again. So after a crash of the process it is exact, and after a crash
of the machine it may be behind, never ahead. It is synchronised when the log has been idle for a moment. There are two
copies, each in a block of its own: should one be torn or damaged, the other says the same.
(swarm/raft/confirmed.py)
"""

from __future__ import annotations

import os
import struct
import zlib
from operator import attrgetter, itemgetter
from pathlib import Path

from swarm.errors import Code, SwarmError
from swarm.raft.confirmed import Confirmed

_MAGIC = b"raftmark"
_BODY = struct.Struct(">8sQ7Q")  # magic, number of the write, the fields of Confirmed
_SUM = struct.Struct(">I")
_FIELDS = attrgetter(*Confirmed.__slots__)
_COPY_BYTES = 4096
_COPIES = 2


class MarkDamaged(SwarmError):
    """No copy can be read, or the file is missing."""

    code = Code.DATA_LOSS


def mark_of(path: Path) -> Path:
    """The mark of the log in this file."""
    return path.with_name(f"{path.name}-mark")


class Mark:
    """The file, open. confirmed: what it says."""

    def __init__(self, path: Path, confirmed: Confirmed) -> None:
        """Make it, or say something else from now on; synchronised. Blocks. Raises OSError."""
        self.confirmed = confirmed
        self.unsynced = False
        self._number = _last_number(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.write(confirmed)
            self.sync()
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException:
            self.close()
            raise

    def write(self, confirmed: Confirmed) -> None:
        """Say this from now on, unless the machine crashes before sync(). Raises OSError."""
        self._number += 1
        body = _BODY.pack(_MAGIC, self._number, *_FIELDS(confirmed))
        copy = body + _SUM.pack(zlib.crc32(body))
        for number in range(_COPIES):
            os.pwrite(self._file, copy, number * _COPY_BYTES)
        self.confirmed = confirmed
        self.unsynced = True

    def sync(self) -> None:
        """Blocks until the file is on disk. Raises OSError."""
        os.fdatasync(self._file)
        self.unsynced = False

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


def read(path: Path) -> Confirmed:
    """What the file says. Raises MarkDamaged, OSError."""
    found = _copies(path)
    if found is None:
        raise MarkDamaged(f"{path} is missing")
    if not found:
        raise MarkDamaged(f"{path} is damaged")
    return max(found, key=itemgetter(0))[1]


def _last_number(path: Path) -> int:
    return max((number for number, _ in _copies(path) or ()), default=0)


def _copies(path: Path) -> list[tuple[int, Confirmed]] | None:
    """Those that can be read, with the number of their write. None: there is no file."""
    try:
        with path.open("rb") as file:
            content = file.read(_COPIES * _COPY_BYTES)
    except FileNotFoundError:
        return None
    copies = [content[number * _COPY_BYTES :][: _BODY.size + _SUM.size] for number in range(_COPIES)]
    return [found for copy in copies if (found := _read_copy(copy)) is not None]


def _read_copy(copy: bytes) -> tuple[int, Confirmed] | None:
    body, stored = copy[: _BODY.size], copy[_BODY.size :]
    if len(stored) < _SUM.size or _SUM.unpack(stored)[0] != zlib.crc32(body):
        return None
    magic, write, *fields = _BODY.unpack(body)
    return (write, Confirmed(*fields)) if magic == _MAGIC else None
