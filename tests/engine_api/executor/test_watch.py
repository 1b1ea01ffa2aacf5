"""The watch wakes whoever should look again."""

from __future__ import annotations

import asyncio

import pytest

from engine_api.engine.client import EngineClient
from engine_api.executor.watch import ContainerWatch
from tests.engine_api.fake_engine import FakeEngine


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    for name in ("a", "b"):
        labels = {"com.docker.swarm.task": "", "com.docker.swarm.task.id": f"t{name}"}
        engine.add_container(name, {"Labels": labels})
        engine.containers[name]["State"].update(Status="running", Running=True)
    return engine


@pytest.fixture
def watch(client: EngineClient) -> ContainerWatch:
    return ContainerWatch(client)


async def test_events_reach_the_task_they_are_about_and_no_other(engine: FakeEngine, watch: ContainerWatch) -> None:
    running = asyncio.create_task(watch.run())
    await engine.followed.wait()
    with watch.subscribe("ta") as one, watch.subscribe("ta") as two, watch.subscribe("tb") as other:
        engine.exit("a", 4)
        await asyncio.gather(one.wait(), two.wait())
        assert (one.exit_code, two.exit_code, other.exit_code) == (4, 4, None)
        other.clear()
        await other.wait(timeout_s=0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_after_a_reconnection_everybody_looks_again(engine: FakeEngine, watch: ContainerWatch) -> None:
    running = asyncio.create_task(watch.run())
    await engine.followed.wait()
    with watch.subscribe("tb") as subscription:
        engine.lose_events()
        await subscription.wait()
        assert subscription.exit_code is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_list_wakes_those_whose_container_is_not_plainly_running(
    engine: FakeEngine, watch: ContainerWatch
) -> None:
    await watch.reconcile()
    assert engine.calls == []  # nobody asked
    engine.exit("b", 0, silently=True)
    engine.add_container("c", {"Labels": {"com.docker.swarm.task": "", "com.docker.swarm.task.id": "tc"}})
    engine.containers["c"]["State"].update(Status="running", Health={"Status": "unhealthy"})
    woken = []
    with watch.subscribe("ta") as a, watch.subscribe("tb") as b, watch.subscribe("tc") as c, watch.subscribe("td") as d:
        await watch.reconcile()
        for name, subscription in {"a": a, "b": b, "c": c, "d": d}.items():
            subscription.exit_code = None
            if subscription.notified:
                woken.append(name)
    assert woken == ["b", "c", "d"]


async def test_waiting_for_an_exit_ignores_everything_else(watch: ContainerWatch) -> None:
    with watch.subscribe("ta") as subscription:
        waiting = asyncio.create_task(subscription.wait_for_exit(60))
        subscription.notify()
        await asyncio.sleep(0)
        assert not waiting.done()
        subscription.exit_code = 0
        subscription.notify()
        await waiting
        subscription.exit_code = None
        await subscription.wait_for_exit(0)
