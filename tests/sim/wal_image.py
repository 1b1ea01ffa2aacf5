"""sqlite's write-ahead log beside a simulated database: bytes only where production judges it (swarm/io/disk/wal.py).

Each transaction is a few frames with true checksums, the last of which is a commit. Bits turn over in those bytes, the
file is cut, and what was never synchronised is there in part.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from swarm.io.disk import wal
from tests.sim.raft_content import Owner, Write

PAGE_BYTES = 512
FRAME_BYTES = wal.FRAME_HEADER_BYTES + PAGE_BYTES
_MAGIC, _FORMAT = 0x377F0682, 3007000
_SALTS = b"salt one"
_FRAMES_MAX = 4


def frames_of(write: Write) -> int:
    """How many frames this transaction takes."""
    return 1 if isinstance(write, Owner) else min(_FRAMES_MAX, 1 + len(write.entries))


@dataclass
class WalImage:
    """writes: the transactions in order, each with its data key. unsynced: one of which an error was reported."""

    writes: list[tuple[Write, bytes]] = field(default_factory=list)
    unsynced: tuple[Write, bytes] | None = None
    _unsynced_bytes: int | None = None  # of the unsynchronised transaction, so many bytes are there; None: all
    _flipped: list[int] = field(default_factory=list)  # bits of the file
    _cut: int | None = None  # the length of the file, if it lost its end

    @property
    def intact(self) -> bool:
        """Whether nothing happened to what was synchronised."""
        return not self._flipped and self._cut is None

    @property
    def suspicious(self) -> bool:
        """Whether a reader may see something else than what was written."""
        return not self.intact or self._unsynced_bytes is not None

    def copy(self) -> WalImage:
        """As it is now."""
        return WalImage(list(self.writes), self.unsynced, self._unsynced_bytes, list(self._flipped), self._cut)

    # --- what nature does ------------------------------------------------------------------------------------------

    def flip(self, rng: Random) -> tuple[str, bool]:
        """One bit turns over in what was synchronised. Returns where, and whether that is the last transaction."""
        bit = rng.randrange(8 * self._length())
        self._flipped.append(bit)
        frame = (bit // 8 - wal.HEADER_BYTES) // FRAME_BYTES
        what = "header" if bit // 8 < wal.HEADER_BYTES else f"frame {frame + 1}"
        return what, frame >= self._frames() - frames_of(self.writes[-1][0])

    def cut(self, rng: Random, everything: bool = False) -> None:
        """It ends earlier."""
        self._cut = 0 if everything else rng.randrange(self._length())

    def lose_power(self, rng: Random) -> None:
        """Of what was not synchronised there is nothing, a part or all."""
        if self.unsynced is not None and self._unsynced_bytes is None:
            size = frames_of(self.unsynced[0]) * FRAME_BYTES
            self._unsynced_bytes = rng.choice((0, rng.randrange(size), size))

    def _length(self) -> int:
        return wal.HEADER_BYTES + self._frames() * FRAME_BYTES

    def _frames(self) -> int:
        return sum(frames_of(write) for write, _ in self.writes)

    # --- reading ---------------------------------------------------------------------------------------------------

    def damage(self) -> str:
        """What production says of the file."""
        with tempfile.TemporaryDirectory(prefix="sideswarm-wal-") as directory:
            path = Path(directory) / "raft.db-wal"
            path.write_bytes(self._bytes())
            return wal.damage(path).replace(str(path), path.name)

    def readable(self) -> list[tuple[Write, bytes]]:
        """The transactions up to the first that sqlite takes for the end of the log."""
        end, place, found = self._end(), wal.HEADER_BYTES, []
        for write, key in self.everything():
            place += frames_of(write) * FRAME_BYTES
            if place > end:
                break
            found.append((write, key))
        return found

    def everything(self) -> list[tuple[Write, bytes]]:
        """All transactions, also those that cannot be read any more."""
        return [*self.writes, self.unsynced] if self.unsynced is not None else self.writes

    def _end(self) -> int:
        """Where the first byte is that is not what was written."""
        ends = [bit // 8 for bit in self._flipped]
        if self._cut is not None:
            ends.append(self._cut)
        if self._unsynced_bytes is not None:
            ends.append(self._length() + self._unsynced_bytes)
        return min(ends, default=1 << 62)

    def _bytes(self) -> bytes:
        content = bytearray(_header())
        before: wal.Sum = struct.unpack_from(">II", content, 24)
        for write, _ in self.everything():
            frames = frames_of(write)
            for number in range(frames):
                frame = _frame(len(content), number == frames - 1, before)
                before = struct.unpack_from(">II", frame, 16)
                content += frame
        if self._unsynced_bytes is not None:
            del content[self._length() + self._unsynced_bytes :]
        for bit in self._flipped:
            content[bit // 8] ^= 1 << bit % 8
        return bytes(content[: self._cut])


def _header() -> bytes:
    start = struct.pack(">4I", _MAGIC, _FORMAT, PAGE_BYTES, 1) + _SALTS
    return start + struct.pack(">II", *wal.checksum(start, "<"))


def _frame(place: int, commits: bool, before: wal.Sum) -> bytes:
    start = struct.pack(">II", 1 + place % 1000, 7 if commits else 0)
    page = struct.pack(">I", place) * (PAGE_BYTES // 4)
    return start + _SALTS + struct.pack(">II", *wal.checksum(start + page, "<", before)) + page
