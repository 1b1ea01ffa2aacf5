"""Choices read from a fuzzer's bytes, front to back; when they run out, every choice is the first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


class Feed:
    """What is left of one input. Small numbers and short strings take one byte, so that mutations stay local."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, limit: int) -> int:
        """0 to limit - 1; limit at most 65536."""
        if limit <= 1:
            return 0
        return (self.byte() if limit <= 256 else self.byte() << 8 | self.byte()) % limit

    def flag(self) -> bool:
        """Yes or no."""
        return bool(self.byte() & 1)

    def choice(self, values: Sequence[T]) -> T:
        """One of these."""
        return values[self.below(len(values))]

    def take(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def some(self) -> bytes:
        """A length below 256, then so many bytes."""
        return self.take(self.byte())

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def number(self, bits: int = 64) -> int:
        """A number of that many bits: often a small one, or one near a border."""
        kind = self.byte()
        if kind < 160:
            return kind & 31
        near = self.byte() % bits if kind < 224 else 0
        value = (1 << near) + (kind & 3) - 2 if near else int.from_bytes(self.take(bits // 8), "little")
        return value % (1 << bits)

    def cuts(self, size: int) -> list[tuple[int, int]]:
        """A sequence of ``size`` in pieces, as (start, stop)."""
        edges = {0, size}
        for _ in range(self.byte() % 8):
            edges.add(self.below(min(size, 65535) + 1))
        return list(pairwise(sorted(edges)))
