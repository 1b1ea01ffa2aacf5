"""Reads sqlite's write-ahead log before sqlite does, and says whether something in it that was synchronised is damaged.

    header   magic, format, page size, checkpoint number, two salts, checksum               32 bytes
    frame    page number, size of the database after a commit (else 0), salts, checksum     24 bytes, then the page

Theory of operation. sqlite reads frames until the first that does not fit, and takes that for the end. So does a crash:
but only the last transaction can be torn, because each is synchronised before the next begins. Thus a frame that fits,
after a commit after the first frame that does not, shows that content was damaged that had been synchronised. Each
checksum continues from the one before, and that is stored in the frame before: so frames behind a damaged one can be
checked. Frames with other salts are left over from before the log started over. The header is written at once and
synchronised by itself, so it is never torn. (sqlite.org/fileformat2.html, The Write-Ahead Log)

Damage to the very last transaction, or a log that was cut, looks like the end: see swarm/io/disk/mark.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from pathlib import Path
from typing import BinaryIO

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_MAGIC = 0x377F0682  # its last bit: checksums of big-endian words
_FORMAT = 3007000
_PAGE_BYTES = frozenset(1 << bits for bits in range(9, 17))
_BLOCK_BYTES = 1 << 20

Sum = tuple[int, int]


@lru_cache(maxsize=8)
def _factors(words: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int, int]]:
    """How much each of so many words adds to the two halves of a checksum, and how the earlier checksum does.

    One step of sqlite's sum is ``a += x + b; b += y + a`` modulo 2^32 for two words x, y, so it is linear in all.
    """
    first, second = [0] * words, [0] * words
    aa, ab, ba, bb = 1, 0, 0, 1  # the matrix of the steps that follow
    for at in range(words - 2, -1, -2):
        first[at : at + 2] = (aa + ab) & 0xFFFFFFFF, ab
        second[at : at + 2] = (ba + bb) & 0xFFFFFFFF, bb
        aa, ab = (aa + ab) & 0xFFFFFFFF, (aa + 2 * ab) & 0xFFFFFFFF
        ba, bb = (ba + bb) & 0xFFFFFFFF, (ba + 2 * bb) & 0xFFFFFFFF
    return tuple(first), tuple(second), (aa, ab, ba, bb)


def checksum(data: bytes, order: str, before: Sum = (0, 0)) -> Sum:
    """sqlite's checksum of these bytes, a multiple of 8. order: of the bytes in a word, ``<`` or ``>``."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    first, second, (aa, ab, ba, bb) = _factors(len(words))
    a = aa * before[0] + ab * before[1] + sum(map(mul, first, words))
    b = ba * before[0] + bb * before[1] + sum(map(mul, second, words))
    return a & 0xFFFFFFFF, b & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Header:
    page_bytes: int
    order: str
    salts: bytes
    sum: Sum


def _header(data: bytes) -> _Header | None:
    """None: it is not one that sqlite would accept."""
    magic, version, page_bytes, _, _, _, a, b = struct.unpack(">8I", data)
    order = ">" if magic & 1 else "<"
    if magic & ~1 != _MAGIC or version != _FORMAT or page_bytes not in _PAGE_BYTES:
        return None
    if checksum(data[:24], order) != (a, b):
        return None
    return _Header(page_bytes, order, data[16:24], (a, b))


def damage(path: Path) -> str:
    """Why this log cannot be what sqlite wrote, for users; empty if it can, also if there is none. Raises OSError."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return ""
    with file:
        start = file.read(HEADER_BYTES)
        if len(start) < HEADER_BYTES:
            return ""
        if not any(start):
            return "its header is gone" if _has_content(file) else ""
        header = _header(start)
        if header is None:
            return "its header is damaged"
        return _damaged_frame(header, _frames(file, header.page_bytes))


def _has_content(file: BinaryIO) -> bool:
    return any(block.strip(b"\0") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


def _frames(file: BinaryIO, page_bytes: int) -> Iterator[bytes]:
    size = FRAME_HEADER_BYTES + page_bytes
    while len(frame := file.read(size)) == size:
        yield frame


def _damaged_frame(header: _Header, frames: Iterator[bytes]) -> str:
    before: Sum | None = header.sum
    bad, committed = 0, False
    for number, frame in enumerate(frames, 1):
        page, commit = struct.unpack_from(">II", frame)
        stored: Sum = struct.unpack_from(">II", frame, 16)
        ours = frame[8:16] == header.salts
        fits = ours and page and before is not None and _fits(header, frame, before, stored)
        if not fits:
            bad = bad or number
        elif bad and committed:
            return f"frame {bad} is damaged: frame {number} was written after it had been synchronised"
        if bad and ours and commit and (fits or number == bad):
            committed = True
        before = stored if ours or number == bad else None
    return ""


def _fits(header: _Header, frame: bytes, before: Sum, stored: Sum) -> bool:
    body = frame[:8] + frame[FRAME_HEADER_BYTES:]
    return checksum(body, header.order, before) == stored
