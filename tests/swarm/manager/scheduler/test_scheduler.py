"""The scheduler: what it keeps on trying, what it explains, and that notes may repeat."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm import api, defaults
from swarm.manager.scheduler.filters import Pipeline
from swarm.manager.scheduler.nodes import NodeSet
from tests.swarm.manager import commands
from tests.swarm.manager.leader_harness import LeaderHarness


def states(harness: LeaderHarness, name: str) -> list[str]:
    return [commands.state_of(task) for task in commands.tasks_of(harness, name)]


def test_a_waiting_task_survives_a_label_update_of_its_service() -> None:
    harness = LeaderHarness()
    commands.service(harness, "create", "web", {"image": "x", "replicas": "1"})
    assert states(harness, "web") == ["PENDING (no suitable node)"]
    commands.service(harness, "update", "web", {"label": "y"})
    commands.node(harness, "add", "w1", {})
    harness.tick(1)
    assert states(harness, "web") == ["ASSIGNED on w1"]


def test_a_service_larger_than_an_entry_takes_several_passes() -> None:
    harness = LeaderHarness()
    for name in ("w1", "w2", "w3"):
        commands.node(harness, "add", name, {})
    before = harness.index
    commands.service(harness, "create", "web", {"image": "x", "replicas": "450"})
    assert harness.index - before == 450 // defaults.ENTRY_CHANGES_MAX + 1
    per_node = [len(list(harness.store.find(api.Task, "node", name))) for name in ("w1", "w2", "w3")]
    assert per_node == [150, 150, 150]


def test_every_task_of_a_large_group_is_told_why_it_waits() -> None:
    harness = LeaderHarness()
    commands.node(harness, "add", "w1", {"cpus": "1"})
    commands.service(harness, "create", "web", {"image": "x", "replicas": "450", "cpus": "1"})
    texts = [task.status.err for task in harness.store.find(api.Task, "service", "web")]
    assert sorted(set(texts)) == ["", "no suitable node (insufficient resources on 1 node)"]
    assert texts.count("") == 1


def test_resources_that_a_task_frees_go_to_one_that_waits() -> None:
    harness = LeaderHarness()
    harness.agents = True
    commands.node(harness, "add", "w1", {"cpus": "1"})
    commands.service(harness, "create", "first", {"image": "x", "replicas": "1", "cpus": "1"})
    commands.service(harness, "create", "second", {"image": "x", "replicas": "1", "cpus": "1"})
    commands.service(harness, "rm", "first", {})
    harness.tick(1)
    assert states(harness, "second") == ["RUNNING on w1"]


def test_spread_preferences_nest_and_full_branches_give_their_share_to_the_others() -> None:
    harness = LeaderHarness()
    for name, zone, cpus in (("a1", "a", "1"), ("b1", "b", "8"), ("b2", "b", "8"), ("c1", "c", "8")):
        commands.node(harness, "add", name, {"label.zone": zone, "cpus": cpus})
    commands.service(
        harness, "create", "web", {"image": "x", "replicas": "9", "cpus": "1", "spread": "node.labels.zone"}
    )
    counts = [len(list(harness.store.find(api.Task, "node", name))) for name in ("a1", "b1", "b2", "c1")]
    assert counts == [1, 2, 2, 4]


def make_task(**reserved: int) -> api.Task:
    task = api.Task(id="t", service_id="s", node_id="n")
    task.spec.resources.reservations.nano_cpus = reserved.get("cpus", 0)
    return task


def test_plugins_and_platforms_are_checked() -> None:
    nodes = NodeSet()
    node = api.Node(id="n")
    node.status.state = api.NodeStatus.READY
    node.description.platform.os, node.description.platform.architecture = "linux", "x86_64"
    node.description.engine.plugins.add(type="Volume", name="nfs:latest")
    node.description.engine.plugins.add(type="Log", name="json-file")
    nodes.set_node("n", node)
    info = nodes.infos["n"]

    def why(task: api.Task) -> str:
        return Pipeline(task, lambda: nodes.counts("s")).explain([info])

    task = make_task()
    task.spec.placement.platforms.add(os="linux", architecture="amd64")
    mount = task.spec.container.mounts.add(type=api.Mount.VOLUME)
    mount.volume_options.driver_config.name = "nfs"
    task.spec.log_driver.name = "json-file"
    assert why(task) == ""
    task.spec.log_driver.name = "gelf"
    assert why(task) == "missing plugin on 1 node"
    task.spec.log_driver.name = "none"
    mount.volume_options.driver_config.name = "other"
    assert why(task) == "missing plugin on 1 node"
    mount.volume_options.driver_config.name = "local"
    del task.spec.placement.platforms[:]
    task.spec.placement.platforms.add(os="windows")
    assert why(task) == "unsupported platform on 1 node"
    task.spec.placement.ClearField("platforms")
    task.spec.container.mounts.add(type=api.Mount.CLUSTER)
    assert why(task) == "cannot fulfill requested CSI volume mounts on 1 node"


STATES = (api.PENDING, api.ASSIGNED, api.RUNNING, api.FAILED)
TASKS = st.tuples(st.sampled_from("abc"), st.sampled_from(("", "n1", "n2")), st.sampled_from(STATES), st.integers(0, 3))


@given(notes=st.lists(st.tuples(st.sampled_from("xyz"), st.none() | TASKS), max_size=40))
def test_accounts_depend_on_the_last_note_of_each_task_only(
    notes: list[tuple[str, tuple[str, str, api.TaskState, int] | None]],
) -> None:
    live, fresh = NodeSet(), NodeSet()
    last: dict[str, api.Task | None] = {}
    for task_id, fields in notes:
        task = None
        if fields is not None:
            service, node, state, cpus = fields
            task = make_task(cpus=cpus)
            task.id, task.service_id, task.node_id, task.status.state = task_id, service, node, state
        last[task_id] = task
        live.account(task_id, task)
        live.account(task_id, task)
    for task_id, task in last.items():
        fresh.account(task_id, task)
    for service in "abc":
        assert dict(live.counts(service)) == dict(fresh.counts(service))
    assert {i: (x.tasks, x.active, list(x.taken)) for i, x in live.infos.items()} == {
        i: (x.tasks, x.active, list(x.taken)) for i, x in fresh.infos.items()
    }
