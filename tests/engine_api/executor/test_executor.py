"""The executor over a fake engine: steps, their order, their errors, and what a restart finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine_api.engine.client import EngineClient
from engine_api.executor.container import Endpoint
from engine_api.executor.errors import TemporaryTaskError
from engine_api.executor.executor import Event, Executor
from engine_api.executor.logs import LogSink
from engine_api.executor.networks import Attachment
from swarm import api
from swarm.agent.events import CancelStep, Execute, Executed, Observed, Step, Sweep
from swarm.agent.events import Networks as KnownNetworks
from tests.engine_api.fake_engine import FakeEngine

NAME = "web.1.t1"


class Networks:
    """An overlay that only remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.endpoints: list[Endpoint] = []
        self.busy = False
        self.deactivated = asyncio.Event()

    def known(self, networks: KnownNetworks) -> None:
        self.calls.append("known")

    async def prepare(self, task: api.Task) -> Attachment:
        if self.busy:
            raise TemporaryTaskError("no address yet")
        self.calls.append("prepare")
        return Attachment(self.endpoints, ["10.0.0.1"])

    async def activate(self, task: api.Task) -> None:
        self.calls.append("activate")

    async def deactivate(self, task: api.Task) -> None:
        self.calls.append("deactivate")
        self.deactivated.set()

    async def release(self, task: api.Task) -> None:
        self.calls.append("release")

    async def attached(self, task: api.Task) -> None:
        self.calls.append("attached")

    async def detached(self, task: api.Task) -> None:
        self.calls.append("detached")

    async def remove_all(self) -> None:
        self.calls.append("remove_all")


class ExecutorHarness:
    """Drives an Executor on a fake engine, and keeps its events."""

    def __init__(self, engine: FakeEngine, client: EngineClient, directory: Path) -> None:
        self.engine = engine
        self.client = client
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.networks = Networks()
        self.executor = Executor(
            self.client,
            "n1",
            self.events.put_nowait,
            directory=directory / "tasks",
            open_sink=self._no_logs,
            networks=self.networks,
        )

    async def _no_logs(self, subscription_id: str) -> LogSink:
        raise AssertionError(subscription_id)

    def begin(self, step: Step, task: api.Task) -> None:
        self.executor.perform(Execute(task.id, step, task))

    async def next(self) -> Executed:
        event = await self.events.get()
        assert isinstance(event, Executed)
        return event

    async def do(self, task: api.Task, *steps: Step) -> Executed:
        for step in steps:
            self.begin(step, task)
            ended = await self.next()
            assert ended.step is step
        return ended


@pytest.fixture
async def harness(engine: FakeEngine, client: EngineClient, tmp_path: Path) -> AsyncIterator[ExecutorHarness]:
    made = ExecutorHarness(engine, client, tmp_path)
    yield made
    await made.executor.close()


@pytest.fixture
def task() -> api.Task:
    made = api.Task(id="t1", slot=1, node_id="n1", service_id="s1")
    made.service_annotations.name = "web"
    made.spec.container.image = "busybox"
    return made


def health_check(task: api.Task) -> None:
    task.spec.container.healthcheck.test.extend(["CMD", "true"])


def overlay(task: api.Task) -> None:
    task.networks.add().network.spec.annotations.name = "ov1"


# --- prepare -----------------------------------------------------------------------------------------------------


async def test_preparing_twice_makes_one_container_and_one_pull(harness: ExecutorHarness, task: api.Task) -> None:
    assert (await harness.do(task, Step.PREPARE, Step.PREPARE)).error == ""
    assert harness.engine.calls.count("POST /containers/create") == 1
    assert harness.engine.calls.count("POST /images/create") == 1
    assert list(harness.engine.containers) == [NAME]


async def test_a_task_whose_image_is_nowhere_is_rejected(harness: ExecutorHarness, task: api.Task) -> None:
    task.spec.container.image = "nosuch.invalid/img:1"
    harness.engine.pull_lines = [{"error": "no such host"}]
    refused = await harness.do(task, Step.PREPARE)
    assert refused.error == "No such image: nosuch.invalid/img:1: no such host"
    assert not refused.temporary


async def test_a_failed_pull_does_not_matter_when_the_image_is_here(harness: ExecutorHarness, task: api.Task) -> None:
    harness.engine.pull_lines = [{"error": "no such host"}]
    assert (await harness.do(task, Step.PREPARE)).error == ""


async def test_a_config_whose_template_costs_too_much_is_refused_and_other_tasks_go_on_meanwhile(
    harness: ExecutorHarness, task: api.Task
) -> None:
    dear = api.Task()
    dear.CopyFrom(task)
    dear.id = "t2"
    dear.spec.container.configs.add(config_id="c").file.name = "c"
    data = b'{{$x := js "' + b"<" * 500_000 + b'"}}' + b"{{$x = js $x}}" * 30_000
    config = api.Config(id="c", spec=api.ConfigSpec(data=data, templating=api.Driver(name="golang")))
    harness.executor.perform(Execute(dear.id, Step.PREPARE, dear, configs={"c": config}))
    harness.begin(Step.PREPARE, task)
    first, second = await harness.next(), await harness.next()
    assert (first.task_id, first.error) == ("t1", "")
    assert second.task_id == "t2"
    assert "failed to expand templated config c: template: expansion:1" in second.error
    assert "the templates of this task's secrets and configs " in second.error


async def test_an_engine_that_is_away_is_temporary(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.engine.stop()
    failed = await harness.do(task, Step.PREPARE)
    assert failed.temporary
    assert "Is it running?" in failed.error


async def test_what_the_engine_refuses_is_final(harness: ExecutorHarness, task: api.Task) -> None:
    harness.engine.refuse["POST /containers/create"] = (400, "invalid mount config")
    failed = await harness.do(task, Step.PREPARE)
    assert (failed.error, failed.temporary) == ("invalid mount config", False)


async def test_a_name_taken_by_somebody_else_is_refused(harness: ExecutorHarness, task: api.Task) -> None:
    harness.engine.add_container(NAME, {"Labels": {"com.docker.swarm.task.id": "other"}})
    assert "already in use" in (await harness.do(task, Step.PREPARE)).error


async def test_a_container_is_created_with_its_first_network_and_connected_to_the_others(
    harness: ExecutorHarness, task: api.Task
) -> None:
    overlay(task)
    harness.networks.endpoints = [Endpoint("ov1", {"IPAMConfig": {}}), Endpoint("ov2", {"Aliases": ["web"]})]
    assert (await harness.do(task, Step.PREPARE)).error == ""
    created = harness.engine.containers[NAME]["Config"]
    assert created["HostConfig"]["NetworkMode"] == "ov1"
    assert created["NetworkingConfig"]["EndpointsConfig"] == {"ov1": {"IPAMConfig": {}}}
    assert created["HostConfig"]["Dns"] == ["10.0.0.1"]
    assert harness.engine.bodies[-1] == {"Container": NAME, "EndpointConfig": {"Aliases": ["web"]}}
    harness.engine.refuse["POST /networks/ov2"] = (403, "endpoint with name x already exists in network ov2")
    assert (await harness.do(task, Step.PREPARE)).error == ""
    harness.engine.refuse["POST /networks/ov2"] = (404, "network ov2 not found")
    assert (await harness.do(task, Step.PREPARE)).error == "network ov2 not found"


async def test_a_network_that_is_not_ready_is_temporary(harness: ExecutorHarness, task: api.Task) -> None:
    harness.networks.busy = True
    failed = await harness.do(task, Step.PREPARE)
    assert (failed.error, failed.temporary) == ("no address yet", True)


async def test_a_node_without_overlay_refuses_tasks_that_need_one(
    engine: FakeEngine, tmp_path: Path, task: api.Task
) -> None:
    overlay(task)
    client, events = EngineClient(engine.host), asyncio.Queue[Event]()
    executor = Executor(
        client, "n1", events.put_nowait, directory=tmp_path, open_sink=lambda _: pytest.fail("no logs here")
    )
    executor.perform(Execute("t1", Step.PREPARE, task))
    event = await events.get()
    assert isinstance(event, Executed)
    assert event.error == "network ov1 cannot be attached: this node has no overlay networks"
    await executor.close()
    await client.close()


async def test_volumes_with_a_driver_are_made_first(harness: ExecutorHarness, task: api.Task) -> None:
    mount = task.spec.container.mounts.add(type=api.Mount.VOLUME, source="v-{{.Task.Slot}}", target="/v")
    mount.volume_options.driver_config.name = "local"
    await harness.do(task, Step.PREPARE)
    calls = harness.engine.calls
    assert calls.index("POST /volumes/create") < calls.index("POST /containers/create")
    assert harness.engine.bodies[0]["Name"] == "v-1"


# --- start -------------------------------------------------------------------------------------------------------


async def test_starting_tells_container_and_ports(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE)
    harness.engine.containers[NAME]["NetworkSettings"]["Ports"] = {"80/tcp": [{"HostPort": "8080"}]}
    started = await harness.do(task, Step.START)
    assert started.container == api.ContainerStatus(container_id=f"id-{NAME}", pid=4711)
    assert started.ports is not None
    assert started.ports.ports[0].published_port == 8080
    assert harness.networks.calls == ["prepare", "prepare", "activate"]


async def test_starting_a_second_time_does_nothing(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START, Step.START)
    assert harness.engine.calls.count(f"POST /containers/{NAME}/start") == 1


async def test_a_container_that_has_ended_meanwhile_is_not_started_again(
    harness: ExecutorHarness, task: api.Task
) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.engine.exit(NAME, 5)
    again = await harness.do(task, Step.START)
    assert again.error == ""
    assert again.container is not None
    assert again.container.exit_code == 5


async def test_a_start_that_fails_says_so(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE)
    harness.engine.refuse[f"POST /containers/{NAME}/start"] = (400, "OCI runtime create failed: no such file")
    failed = await harness.do(task, Step.START)
    assert failed.error == "starting container failed: OCI runtime create failed: no such file"
    assert failed.container == api.ContainerStatus(container_id=f"id-{NAME}")


async def test_a_bind_source_that_has_gone_fails_the_start(
    harness: ExecutorHarness, task: api.Task, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    task.spec.container.mounts.add(source=str(source), target="/x")
    await harness.do(task, Step.PREPARE)
    source.rmdir()
    expected = f"starting container failed: invalid bind mount source, source path not found: {source}"
    assert (await harness.do(task, Step.START)).error == expected


async def test_a_container_that_does_not_exist_cannot_start(harness: ExecutorHarness, task: api.Task) -> None:
    assert (await harness.do(task, Step.START)).error == f"No such container: {NAME}"


async def test_with_a_health_check_a_start_waits_until_the_container_is_healthy(
    harness: ExecutorHarness, task: api.Task
) -> None:
    health_check(task)
    harness.engine.health_of_new = "starting"
    await harness.do(task, Step.PREPARE)
    harness.begin(Step.START, task)
    observed = await harness.events.get()
    assert isinstance(observed, Observed)
    assert observed.container is not None
    assert observed.container.pid == 4711
    assert "activate" not in harness.networks.calls
    await harness.engine.followed.wait()
    harness.engine.health(NAME, "healthy")
    assert (await harness.next()).error == ""
    assert harness.networks.calls[-1] == "activate"


async def test_an_unhealthy_start_stops_the_container(harness: ExecutorHarness, task: api.Task) -> None:
    health_check(task)
    harness.engine.health_of_new = "starting"
    await harness.do(task, Step.PREPARE)
    harness.begin(Step.START, task)
    await harness.events.get()
    await harness.engine.followed.wait()
    harness.engine.health(NAME, "unhealthy")
    failed = await harness.next()
    assert failed.error == "task: non-zero exit (143): dockerexec: unhealthy container"
    assert failed.container is not None
    assert (failed.container.pid, failed.container.exit_code) == (0, 143)


async def test_a_container_that_exits_before_it_is_healthy_ends_the_start(
    harness: ExecutorHarness, task: api.Task
) -> None:
    health_check(task)
    harness.engine.health_of_new = "starting"
    await harness.do(task, Step.PREPARE)
    harness.begin(Step.START, task)
    await harness.events.get()
    await harness.engine.followed.wait()
    harness.engine.exit(NAME, 9)
    ended = await harness.next()
    assert ended.error == ""
    assert ended.container is not None
    assert ended.container.exit_code == 9


# --- wait --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "error"), [(0, ""), (7, "task: non-zero exit (7)")])
async def test_an_exit_ends_the_wait(harness: ExecutorHarness, task: api.Task, code: int, error: str) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    await harness.engine.followed.wait()
    harness.engine.exit(NAME, code)
    ended = await harness.next()
    assert ended.error == error
    assert ended.container == api.ContainerStatus(container_id=f"id-{NAME}", exit_code=code)
    assert ended.ports == api.PortStatus()


async def test_a_container_that_was_never_started_did_not_complete(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE)
    assert (await harness.do(task, Step.WAIT)).error == "dockerexec: container was never started"


async def test_the_engines_own_error_is_the_cause_of_an_exit(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.engine.containers[NAME]["State"]["Error"] = "oom"
    harness.engine.exit(NAME, 137)
    assert (await harness.do(task, Step.WAIT)).error == "task: non-zero exit (137): oom"


async def test_an_exit_whose_event_was_lost_is_seen_after_reconnecting(
    harness: ExecutorHarness, task: api.Task
) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    await harness.engine.followed.wait()
    harness.engine.followed.clear()
    harness.engine.exit(NAME, 3, silently=True)
    harness.engine.lose_events()
    assert (await harness.next()).error == "task: non-zero exit (3)"


async def test_waiting_survives_a_restart_of_the_engine(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    await harness.engine.followed.wait()
    await harness.engine.stop()
    harness.engine.exit(NAME, 3)
    await harness.engine.start()
    assert (await harness.next()).error == "task: non-zero exit (3)"


async def test_a_container_removed_behind_our_back_ends_the_wait(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    await harness.engine.followed.wait()
    await harness.client.remove_container(NAME, force=True)
    assert (await harness.next()).error == "task: non-zero exit (137)"
    assert (await harness.do(task, Step.WAIT)).error == "dockerexec: container destroyed"


async def test_a_task_that_becomes_unhealthy_is_stopped(harness: ExecutorHarness, task: api.Task) -> None:
    harness.engine.health_of_new = "healthy"
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    await harness.engine.followed.wait()
    harness.engine.health(NAME, "unhealthy")
    assert (await harness.next()).error == "task: non-zero exit (143): dockerexec: unhealthy container"


async def test_a_wait_that_is_given_up_leaves_the_container_alone(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    harness.executor.perform(CancelStep("t1"))
    ended = await harness.next()
    assert (ended.step, ended.cancelled, ended.error) == (Step.WAIT, True, "")
    assert harness.engine.containers[NAME]["State"]["Running"]
    harness.executor.perform(CancelStep("t1"))
    harness.executor.perform(CancelStep("never heard of"))


async def test_steps_of_a_task_follow_one_another(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    await harness.engine.followed.wait()
    harness.executor.perform(CancelStep("t1"))
    harness.begin(Step.SHUTDOWN, task)
    assert [(await harness.next()).step for _ in range(2)] == [Step.WAIT, Step.SHUTDOWN]


# --- shutdown and remove -----------------------------------------------------------------------------------------


async def test_a_shutdown_stops_with_the_grace_the_user_gave(harness: ExecutorHarness, task: api.Task) -> None:
    task.spec.container.stop_grace_period.FromMilliseconds(3500)
    await harness.do(task, Step.PREPARE, Step.START)
    stopped = await harness.do(task, Step.SHUTDOWN)
    assert stopped.container == api.ContainerStatus(container_id=f"id-{NAME}", exit_code=143)
    assert harness.engine.queries[f"POST /containers/{NAME}/stop"] == {"t": "3"}
    assert harness.networks.calls[-1] == "release"
    assert (await harness.do(task, Step.SHUTDOWN)).error == ""
    assert harness.engine.calls.count(f"POST /containers/{NAME}/stop") == 1


async def test_a_task_with_networks_leaves_its_services_first(harness: ExecutorHarness, task: api.Task) -> None:
    overlay(task)
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.SHUTDOWN, task)
    await harness.networks.deactivated.wait()
    assert f"POST /containers/{NAME}/stop" not in harness.engine.calls
    harness.engine.exit(NAME, 0)  # nothing to wait for any more
    assert (await harness.next()).error == ""


async def test_without_a_container_there_is_nothing_to_stop_or_remove(harness: ExecutorHarness, task: api.Task) -> None:
    stopped = await harness.do(task, Step.SHUTDOWN)
    assert (stopped.error, stopped.container) == ("", None)
    assert (await harness.do(task, Step.REMOVE)).error == ""


async def test_removing_stops_and_deletes_with_anonymous_volumes(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    assert (await harness.do(task, Step.REMOVE)).error == ""
    assert harness.engine.containers == {}
    assert harness.engine.queries[f"DELETE /containers/{NAME}"] == {"force": "1", "v": "1"}


async def test_a_removal_under_way_is_tried_again(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE)
    harness.engine.refuse[f"DELETE /containers/{NAME}"] = (409, "removal of container is already in progress")
    harness.begin(Step.REMOVE, task)
    await harness.engine.called(f"DELETE /containers/{NAME}")
    await harness.engine.followed.wait()
    harness.engine.tell(NAME, "destroy")
    assert (await harness.next()).temporary


async def test_an_update_changes_nothing(harness: ExecutorHarness, task: api.Task) -> None:
    assert (await harness.do(task, Step.UPDATE)).error == ""


# --- the node ----------------------------------------------------------------------------------------------------


async def test_a_bug_of_ours_fails_the_step_and_not_the_node(harness: ExecutorHarness, task: api.Task) -> None:
    harness.engine.info = {"NCPU": "many"}
    assert (await harness.do(task, Step.PREPARE)).error == "internal error: ValueError"
    harness.engine.info = {}
    assert (await harness.do(task, Step.PREPARE)).error == ""


async def test_after_closing_nothing_happens(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE, Step.START)
    harness.begin(Step.WAIT, task)
    await harness.executor.close()
    harness.begin(Step.SHUTDOWN, task)
    assert harness.events.empty()
    assert harness.engine.containers[NAME]["State"]["Running"]


async def test_a_node_without_managed_plugins_describes_itself(harness: ExecutorHarness) -> None:
    harness.engine.refuse["GET /plugins"] = (403, "plugins are off")
    assert (await harness.executor.describe()).hostname == "host1"


def owned(task_id: str, node_id: str = "n1") -> dict[str, Any]:
    labels = {"com.docker.swarm.task": "", "com.docker.swarm.task.id": task_id, "com.docker.swarm.node.id": node_id}
    return {"Labels": labels}


async def test_containers_of_unknown_tasks_of_this_node_are_swept(harness: ExecutorHarness) -> None:
    bodies: dict[str, dict[str, Any]] = {"a": owned("ta"), "b": owned("tb"), "c": owned("tc", "n2"), "d": {}}
    for name, body in bodies.items():
        harness.engine.add_container(name, body)
    await harness.executor.sweep({"ta"})
    assert list(harness.engine.containers) == ["a", "c", "d"]
    await harness.executor.remove_all("n2")
    assert list(harness.engine.containers) == ["a", "d"]


async def test_a_sweep_spares_the_tasks_that_arrived_meanwhile(harness: ExecutorHarness, task: api.Task) -> None:
    await harness.do(task, Step.PREPARE)
    harness.engine.add_container("left", owned("t0"))
    harness.executor.perform(Sweep(("another",)))
    await harness.engine.called("DELETE /containers/id-left")
    assert list(harness.engine.containers) == [NAME]
    await harness.do(task, Step.REMOVE)
    await harness.executor.sweep(())
    assert not harness.engine.containers


async def test_one_container_that_cannot_be_removed_does_not_keep_the_others(harness: ExecutorHarness) -> None:
    for name in ("a", "b"):
        harness.engine.add_container(name, owned(f"t{name}"))
    harness.engine.refuse["DELETE /containers/id-a"] = (500, "device busy")
    await harness.executor.remove_all("n1")
    assert list(harness.engine.containers) == ["a"]


async def test_an_attachment_of_a_plain_container_runs_until_it_is_taken_back(harness: ExecutorHarness) -> None:
    task = api.Task(id="t1", node_id="n1")
    task.spec.attachment.container_id = "c1"
    overlay(task)
    assert (await harness.do(task, Step.PREPARE, Step.START)).error == ""
    harness.begin(Step.WAIT, task)
    await asyncio.sleep(0.01)
    assert harness.events.empty()
    harness.executor.perform(CancelStep(task.id))
    assert (await harness.next()).cancelled
    assert (await harness.do(task, Step.SHUTDOWN, Step.REMOVE)).error == ""
    assert harness.networks.calls == ["prepare", "attached", "attached", "detached", "detached"]
    assert harness.engine.containers == {}
