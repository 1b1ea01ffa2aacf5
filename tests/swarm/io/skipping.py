"""An event loop whose process seems to stand still."""

from __future__ import annotations

import asyncio


class Skipping(asyncio.SelectorEventLoop):
    """A loop whose process may stand still: skip() is what its clock shows afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_s = 0.0

    def time(self) -> float:
        """See BaseEventLoop.time."""
        return super().time() + self.skipped_s

    def turns(self, count: int = 5) -> None:
        """Turn a few times; the clock hardly moves meanwhile."""

        async def turn() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.run_until_complete(turn())
