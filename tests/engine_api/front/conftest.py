"""The front and both its sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from engine_api.front.backends import Backends, engine_connector, make_runner
from engine_api.front.front import Front
from tests.engine_api.front_place import MIB, Place, close, quick
from tests.engine_api.route_table import IS_LOCAL


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    app = web.Application(client_max_size=64 * MIB)
    app.router.add_route("*", "/swarm", made.local)
    app.router.add_route("*", "/swarm/refuse", made.refuse)
    app.router.add_route("*", "/swarm/large", made.large)
    app.router.add_route("*", "/events", made.stream)
    runner = await make_runner(app)
    assert runner.server is not None
    connect = engine_connector(f"unix://{made.engine}", 5)
    made.backends = Backends(runner.server, IS_LOCAL, connect, "unix:///engine", quick, linger_s=0.05)
    loop = asyncio.get_running_loop()
    engine = await asyncio.start_unix_server(made.accept, made.engine)
    front = await loop.create_unix_server(lambda: Front(made.backends, made.fronts, made.policy), made.socket)
    yield made
    for client in made.clients:
        await close(client.writer)
    front.close()
    engine.close()
    for open_front in list(made.fronts):
        open_front.transport.abort()
        await open_front.closed.wait()
    for task in made.scripts:
        task.cancel()
    outcomes = await asyncio.gather(*made.scripts, return_exceptions=True)
    await runner.cleanup()
    for outcome in outcomes:  # what the engine's script asserts counts, too
        assert not isinstance(outcome, AssertionError), outcome
