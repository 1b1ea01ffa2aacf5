"""When images are pulled, and how often."""

from __future__ import annotations

import asyncio

import pytest

from engine_api.engine.client import EngineClient
from engine_api.executor.images import ImagePuller
from tests.engine_api.fake_engine import FakeEngine

DIGEST = "sha256:" + "ab" * 32
PULL = "POST /images/create"


async def test_a_tag_is_pulled_even_when_the_image_is_here(engine: FakeEngine, client: EngineClient) -> None:
    assert await ImagePuller(client).ensure("busybox", "auth") == ""
    assert engine.calls == [PULL]
    assert engine.headers[0]["X-Registry-Auth"] == "auth"


async def test_a_digest_is_pulled_only_when_it_is_missing(engine: FakeEngine, client: EngineClient) -> None:
    engine.images.add(f"busybox@{DIGEST}")
    puller = ImagePuller(client)
    await puller.ensure(f"busybox@{DIGEST}", "")
    assert PULL not in engine.calls
    await puller.ensure(f"other@{DIGEST}", "")
    assert engine.calls.count(PULL) == 1


async def test_an_image_id_and_an_offline_node_pull_nothing(engine: FakeEngine, client: EngineClient) -> None:
    await ImagePuller(client).ensure(DIGEST, "")
    await ImagePuller(client, prefer_offline=True).ensure("busybox", "")
    assert engine.calls == []


async def test_a_failed_pull_is_reported_and_tried_again_by_the_next_task(
    engine: FakeEngine, client: EngineClient
) -> None:
    puller = ImagePuller(client)
    engine.pull_lines = [{"error": "no such host"}]
    assert await puller.ensure("x:1", "") == "no such host"
    engine.pull_lines = []
    assert await puller.ensure("x:1", "") == ""
    assert engine.calls == [PULL, PULL]


async def test_tasks_with_the_same_image_share_a_pull(engine: FakeEngine, client: EngineClient) -> None:
    engine.pull_gate = asyncio.Event()
    puller = ImagePuller(client)
    jobs = [asyncio.create_task(puller.ensure(image, "")) for image in ("x:1", "x:1", "y:1")]
    await asyncio.sleep(0)
    jobs[0].cancel()
    engine.pull_gate.set()
    assert await asyncio.gather(*jobs[1:]) == ["", ""]
    assert engine.calls == [PULL, PULL]
    assert engine.images >= {"x:1", "y:1"}


async def test_a_pull_that_nobody_wants_any_more_ends(engine: FakeEngine, client: EngineClient) -> None:
    engine.pull_gate = asyncio.Event()
    puller = ImagePuller(client)
    waiting = asyncio.create_task(puller.ensure("x:1", ""))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await puller.close()
    engine.pull_gate.set()
    assert await puller.ensure("x:1", "") == ""


async def test_closing_ends_pulls(engine: FakeEngine, client: EngineClient) -> None:
    engine.pull_gate = asyncio.Event()
    puller = ImagePuller(client)
    waiting = asyncio.create_task(puller.ensure("x:1", ""))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await puller.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    engine.pull_gate.set()
