"""Places for work at a time: so many in all, and so many of one client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable


class Places:
    """Counts who holds how many places."""

    def __init__(self, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._held: Counter[Hashable] = Counter()
        self._count = 0

    def take(self, client: Hashable) -> bool:
        """Take a place, to be given back; False: there is none."""
        if self._count >= self._total or self._held.get(client, 0) >= self._per_client:
            return False
        self._count += 1
        self._held[client] += 1
        return True

    def give_back(self, client: Hashable) -> None:
        """The work is done."""
        self._count -= 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
