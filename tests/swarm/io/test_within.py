"""Waiting for a condition that changes announce."""

from __future__ import annotations

import asyncio

from swarm.io.process import within


async def test_a_condition_that_holds_at_once_or_after_a_change_is_told_and_one_that_never_does_is_given_up() -> None:
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
