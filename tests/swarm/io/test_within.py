"""Waiting for a condition that changes announce."""

from __future__ import annotations

import asyncio

from swarm.io.process import within


async def test_waiting_ends_when_the_condition_holds_or_the_time_is_up() -> None:
    changed, seen = asyncio.Event(), [0]
    assert await within(10.0, changed, lambda: seen == [0])

    def change() -> None:
        seen[0] += 1
        changed.set()
        if seen[0] < 3:
            asyncio.get_running_loop().call_soon(change)

    asyncio.get_running_loop().call_soon(change)
    assert await within(10.0, changed, lambda: seen[0] >= 3)
    assert not await within(0.0, changed, lambda: seen[0] > 3)
