"""The swarm's events: their content, their filters, and how they are merged with the engine's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import test_utils

from engine_api.app import build_app
from engine_api.convert.events import Event, EventFilter, swarm_events
from engine_api.engine.client import EngineClient
from engine_api.routes.system import System
from swarm import api
from swarm.store.store import Change
from tests.engine_api.conftest import GOLDEN, NOW, FakeBackend
from tests.engine_api.fake_engine import FakeEngine

Client = test_utils.TestClient[Any, Any]
EVENT: Event = {
    "Type": "service",
    "Action": "update",
    "Actor": {"ID": "abc123", "Attributes": {"name": "web", "replicas.new": "2"}},
    "scope": "swarm",
    "time": 1,
    "timeNano": 1_500_000_000,
}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, True),
        ({"scope": ["swarm"]}, True),
        ({"scope": ["local"]}, False),
        ({"scope": ["local", "swarm"]}, True),
        ({"type": ["service"]}, True),
        ({"type": ["serv"]}, False),
        ({"event": ["create", "update"]}, True),
        ({"event": ["create"]}, False),
        ({"service": ["web"]}, True),
        ({"service": ["we"]}, True),
        ({"service": ["abc"]}, True),
        ({"service": ["eb"]}, False),
        ({"node": ["web"]}, True),  # engines look at the name only, whatever it names
        ({"container": ["db"]}, False),
        ({"label": ["replicas.new"]}, True),
        ({"label": ["replicas.new=2", "name=web"]}, True),
        ({"label": ["replicas.new=3"]}, False),
        ({"label": ["replicas"]}, False),
        ({"image": ["busybox"]}, False),
        ({"nonsense": ["x"]}, True),
        ({"type": []}, True),
        ({"type": ["service"], "event": ["create"]}, False),
    ],
)
def test_filters_choose_events_as_engines_do(filters: dict[str, list[str]], wanted: bool) -> None:
    assert EventFilter(filters).wants(EVENT) is wanted


def _service(
    replicas: int = 1, image: str = "busybox:latest", update: api.UpdateStatus.UpdateState | None = None
) -> api.Service:
    service = api.Service(id="s1")
    service.spec.annotations.name = "web"
    service.spec.replicated.replicas = replicas
    service.spec.task.container.image = image
    service.meta.created_at.FromSeconds(100)
    service.meta.updated_at.FromSeconds(200)
    if update is not None:
        service.update_status.state = update
    return service


def _only(before: Any, after: Any, kind: str = "service") -> Event:
    (event,) = swarm_events([Change(kind, "s1", before, after)], 300.25)
    return event


def test_a_life_of_a_service_is_create_update_remove_each_with_its_time() -> None:
    create, update, remove = _only(None, _service()), _only(_service(), _service()), _only(_service(), None)
    assert [event["Action"] for event in (create, update, remove)] == ["create", "update", "remove"]
    assert [event["time"] for event in (create, update, remove)] == [100, 200, 300]
    assert remove["timeNano"] == 300_250_000_000
    for event in (create, update, remove):
        assert event["Actor"] == {"ID": "s1", "Attributes": {"name": "web"}}
        assert event["scope"] == "swarm"


def test_an_update_tells_what_changed_and_nothing_else() -> None:
    assert _only(_service(1), _service(3))["Actor"]["Attributes"] == {
        "name": "web",
        "replicas.old": "1",
        "replicas.new": "3",
    }
    attributes = _only(_service(), _service(image="busybox:1.35"))["Actor"]["Attributes"]
    assert attributes == {"name": "web", "image.old": "busybox:latest", "image.new": "busybox:1.35"}


def test_the_state_of_an_update_shows_its_old_one_only_when_there_was_one() -> None:
    updating, completed = api.UpdateStatus.UPDATING, api.UpdateStatus.COMPLETED
    begun = _only(_service(), _service(update=updating))["Actor"]["Attributes"]
    assert begun == {"name": "web", "updatestate.new": "updating"}
    ended = _only(_service(update=updating), _service(update=completed))["Actor"]["Attributes"]
    assert ended == {"name": "web", "updatestate.old": "updating", "updatestate.new": "completed"}


def test_a_node_without_a_name_goes_by_its_host_name() -> None:
    node = api.Node(id="n1")
    node.description.hostname = "host1"
    before = api.Node()
    before.CopyFrom(node)
    node.spec.availability = api.NodeSpec.DRAIN
    node.status.state = api.NodeStatus.READY
    (event,) = swarm_events([Change("node", "n1", before, node)], NOW)
    assert event["Actor"]["Attributes"] == {
        "name": "host1",
        "availability.old": "active",
        "availability.new": "drain",
        "state.old": "unknown",
        "state.new": "ready",
    }


def test_tasks_and_clusters_are_no_events() -> None:
    changes = [Change("task", "t1", None, api.Task(id="t1")), Change("cluster", "c1", None, api.Cluster(id="c1"))]
    assert swarm_events(changes, NOW) == []


def test_events_have_the_shape_of_recorded_ones() -> None:
    lines = (GOLDEN / "events" / "swarm_scope.jsonl").read_text().splitlines()
    recorded = [event for event in map(json.loads, lines) if event.get("Type") == "service"]
    scaled = next(event for event in recorded if "replicas.new" in event["Actor"]["Attributes"])
    ours = _only(_service(1), _service(2))
    assert list(ours) == list(scaled)
    assert list(ours["Actor"]) == list(scaled["Actor"])
    assert ours["Actor"]["Attributes"] | {"name": "ev"} == scaled["Actor"]["Attributes"]


# --- the stream ---


class EventsHarness:
    """Drives the route /events between a fake engine and a client."""

    def __init__(self, engine: FakeEngine, system: System, client: Client) -> None:
        self.engine, self.system, self.client = engine, system, client

    def happen(self, name: str, seconds: int) -> None:
        """A config is created in the swarm."""
        config = api.Config(id=f"id-{name}")
        config.spec.annotations.name = name
        config.meta.created_at.FromSeconds(seconds)
        self.system.publish([Change("config", config.id, None, config)])

    def engine_event(self, name: str, seconds: int) -> None:
        """Something happens on the engine, or is sent from its memory."""
        actor = {"ID": f"id-{name}", "Attributes": {"name": name}}
        event = {"Type": "container", "Action": "create", "Actor": actor, "timeNano": seconds * 10**9}
        self.engine.send(event)

    async def listen(self, **query: str) -> AsyncIterator[str]:
        """Names of the events as they come."""
        async with self.client.get("/v1.41/events", params=query) as response:
            assert response.status == 200
            async for line in response.content:
                yield json.loads(line)["Actor"]["Attributes"]["name"]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[EventsHarness]:
    async with FakeEngine(tmp_path) as engine:
        client_of_engine = EngineClient(engine.host)
        system = System(client_of_engine, [], lambda: NOW)
        backend = FakeBackend()
        await system.attach(backend)
        app = build_app(backend, system.api_version, system.server_header, routes=system.routes)
        client: Client = test_utils.TestClient(test_utils.TestServer(app))
        await client.start_server()
        yield EventsHarness(engine, system, client)
        await client.close()
        await client_of_engine.close()


async def test_events_of_both_come_as_they_happen(harness: EventsHarness) -> None:
    names = harness.listen()
    first = asyncio.ensure_future(anext(names))
    await harness.engine.followed.wait()
    harness.engine_event("box", 10)
    assert await first == "box"
    harness.happen("settings", 11)
    assert await anext(names) == "settings"
    harness.engine_event("box2", 12)
    assert await anext(names) == "box2"
    await names.aclose()  # type: ignore[attr-defined]


async def test_remembered_events_of_both_are_in_the_order_of_their_times(harness: EventsHarness) -> None:
    for name, seconds in (("c1", 10), ("c3", 30), ("c5", 50)):
        harness.happen(name, seconds)
    names = harness.listen(since="5")
    first = asyncio.ensure_future(anext(names))
    await harness.engine.followed.wait()
    for name, seconds in (("e2", 20), ("e4", 40)):
        harness.engine_event(name, seconds)
    harness.engine.lose_events()
    assert [await first, *[name async for name in names]] == ["c1", "e2", "c3", "e4", "c5"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"since": "20"}, ["c2", "c3"]),
        ({"since": "20.000000001"}, ["c3"]),
        ({"until": "20"}, ["c1", "c2"]),
        ({"since": "11", "until": "29.9"}, ["c2"]),
        ({"since": "0", "filters": '{"config":{"c3":true}}'}, ["c3"]),
        ({"since": "0", "filters": '{"config":["id-c1"],"type":["config"]}'}, ["c1"]),
        ({"since": "0", "filters": '{"scope":["local"]}'}, []),
        ({}, []),
    ],
)
async def test_since_until_and_filters_choose_among_the_remembered(
    harness: EventsHarness, query: dict[str, str], names: list[str]
) -> None:
    for number in (1, 2, 3):
        harness.happen(f"c{number}", number * 10)
    listening = asyncio.ensure_future(_all(harness.listen(**query)))
    await harness.engine.followed.wait()
    harness.engine.lose_events()
    assert await listening == names


async def _all(names: AsyncIterator[str]) -> list[str]:
    return [name async for name in names]


async def test_a_quiet_engine_does_not_hold_back_what_we_remember(harness: EventsHarness) -> None:
    harness.happen("c1", 10)
    names = harness.listen(since="5")
    assert await anext(names) == "c1"
    await names.aclose()  # type: ignore[attr-defined]


async def test_the_engine_is_asked_what_the_client_asked(harness: EventsHarness) -> None:
    harness.engine.refuse["GET /events"] = (400, "invalid filter")
    async with harness.client.get("/v1.40/events", params={"filters": "xx", "since": "1"}) as response:
        assert response.status == 400
        assert await response.json() == {"message": "invalid filter"}
    assert harness.engine.event_queries == [("1.40", {"filters": "xx", "since": "1"})]


async def test_without_an_engine_there_is_an_error_and_no_stream(harness: EventsHarness) -> None:
    await harness.engine.stop()
    async with harness.client.get("/events") as response:
        assert response.status == 503
        assert "cannot connect to the Docker Engine" in (await response.json())["message"]


async def test_streams_end_with_the_daemon_and_new_ones_at_once(harness: EventsHarness) -> None:
    listening = asyncio.ensure_future(_all(harness.listen()))
    await harness.engine.followed.wait()
    harness.system.stop()
    assert await listening == []
    assert await _all(harness.listen()) == []
