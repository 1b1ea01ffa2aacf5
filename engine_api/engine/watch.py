"""Checks that the engine is alive: a node without one must leave its session, so that its tasks move to other nodes.

An engine whose socket refuses connections has certainly ended. An engine that does not answer may only be slow, and
gets much more time. (moby: in stock engines the two are one process)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from swarm import defaults


async def watch_engine(engine: EngineClient, tell: Callable[[str, bool], None]) -> None:
    """Ping the engine forever. tell gets why it cannot be used (empty: it can), and whether it has certainly ended.

    tell is called after each answered ping, and after each failed ping once the engine counts as gone.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    refused_at: float | None = None
    while True:
        refused = False
        try:
            async with asyncio.timeout(defaults.ENGINE_PING_TIMEOUT_S):
                await engine.ping()
            failures, refused_at = 0, None
            tell("", False)
        except (EngineUnavailable, EngineError, TimeoutError) as problem:
            failures += 1
            refused = isinstance(problem, EngineUnavailable) and problem.refused
            refused_at = (refused_at or loop.time()) if refused else None
            gone = refused_at is not None and loop.time() - refused_at >= defaults.ENGINE_GONE_S
            if gone or (not refused and failures >= defaults.ENGINE_PING_FAILURES):
                tell(f"this node's engine is gone: {problem or 'it does not answer'}", gone)
        await asyncio.sleep(defaults.ENGINE_PING_SOON_S if refused else defaults.ENGINE_PING_PERIOD_S)
