"""What a node is told to run."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from swarm import api, defaults
from swarm.api.equality import same_status, same_task
from swarm.rpc import StreamEnd
from swarm.store.store import Change
from swarm.store.tx import Tx
from tests.swarm.agent.agent_world import make_task
from tests.swarm.manager.dispatcher.test_dispatcher import DispatcherHarness

UPDATE, REMOVE = api.AssignmentChange.UPDATE, api.AssignmentChange.REMOVE


def new_secret(secret_id: str, driver: str = "") -> api.Secret:
    secret = api.Secret(id=secret_id)
    secret.spec.annotations.name = secret_id
    secret.spec.data = b"payload"
    if driver:
        secret.spec.driver.name = driver
    return secret


def words(message: api.AssignmentsMessage) -> list[str]:
    """A message as ``+task t1 -secret s1``."""
    out = []
    for change in message.changes:
        kind = change.assignment.WhichOneof("item")
        assert kind is not None
        sign = "+" if change.action == UPDATE else "-"
        out.append(f"{sign}{kind} {getattr(change.assignment, kind).id}")
    return out


class Feed:
    """Drives a Dispatcher with one registered node and its Assignments stream."""

    def __init__(self, *objects: api.Task | api.Secret | api.Config | api.Volume) -> None:
        self.cluster = DispatcherHarness()
        if objects:
            self.cluster.create(*objects)
        self.session_id = self.cluster.register()
        self.stream = self.cluster.assignments(self.session_id)
        self.first = self.cluster.data(self.stream, api.AssignmentsMessage)[0]

    def later(self) -> list[api.AssignmentsMessage]:
        """What comes within the next moment."""
        self.cluster.pass_time(2 * defaults.ASSIGNMENT_BATCH_S)
        return self.cluster.data(self.stream, api.AssignmentsMessage)

    def words(self) -> list[str]:
        """The same, in words."""
        return [word for message in self.later() for word in words(message)]

    def state(self, task_id: str, state: int) -> None:
        """A task reaches a state."""
        self.cluster.edit(api.Task, task_id, lambda t: setattr(t.status, "state", state))


def test_the_first_message_is_complete_and_names_only_assigned_tasks_of_the_node() -> None:
    pending = make_task("t3", "n1")
    pending.status.state = api.PENDING
    done = make_task("t4", "n1")
    done.status.state = api.COMPLETE
    feed = Feed(make_task("t1", "n1"), make_task("t2", "n2"), pending, done)
    assert (feed.first.type, feed.first.applies_to, feed.first.results_in) == (api.AssignmentsMessage.COMPLETE, "", "1")
    assert words(feed.first) == ["+task t1", "+task t4"]
    assert feed.later() == []


def test_changes_come_as_increments_that_apply_to_each_other() -> None:
    feed = Feed()
    feed.cluster.create(make_task("t1", "n1"))
    feed.cluster.create(make_task("t2", "n2"))
    messages = feed.later()
    feed.cluster.remove(api.Task, "t1")
    messages += feed.later()
    assert [(m.applies_to, m.results_in, words(m)) for m in messages] == [
        ("1", "2", ["+task t1"]),
        ("2", "3", ["-task t1"]),
    ]
    assert {m.type for m in messages} == {api.AssignmentsMessage.INCREMENTAL}


def test_a_task_is_sent_when_it_becomes_assigned() -> None:
    task = make_task("t1", "n1")
    task.status.state = api.PENDING
    feed = Feed(task)
    assert words(feed.first) == []
    feed.state("t1", api.ASSIGNED)
    assert feed.words() == ["+task t1"]


def test_statuses_that_the_agent_reported_are_not_sent_back() -> None:
    feed = Feed(make_task("t1", "n1"))
    feed.state("t1", api.RUNNING)
    assert feed.words() == []
    feed.cluster.edit(api.Task, "t1", lambda t: setattr(t, "desired_state", api.SHUTDOWN))
    assert feed.words() == ["+task t1"]


def test_changes_within_a_moment_are_one_message() -> None:
    feed = Feed()
    feed.cluster.pass_time(1.0)
    for i in range(5):
        feed.cluster.create(make_task(f"t{i}", "n1"))
    assert [words(m) for m in feed.cluster.data(feed.stream, api.AssignmentsMessage)] == [["+task t0"]]
    assert [len(m.changes) for m in feed.later()] == [4]


def test_big_changes_are_split_and_dependencies_come_before_their_tasks() -> None:
    feed = Feed()
    secrets = [new_secret(f"s{i}") for i in range(90)]
    tasks = [make_task(f"t{i}", "n1", [f"s{i % 90}"]) for i in range(150)]
    feed.cluster.create(*tasks, *secrets)
    messages = feed.later()
    assert [len(m.changes) for m in messages] == [100, 100, 40]
    assert [(m.applies_to, m.results_in) for m in messages] == [("1", "2"), ("2", "3"), ("3", "4")]
    flat = [word for m in messages for word in words(m)]
    assert all(word.startswith("+secret") for word in flat[:90])

    def remove_all(tx: Tx) -> None:
        for i in range(150):
            tx.remove(api.Task, f"t{i}")

    feed.cluster.write(remove_all)
    flat = feed.words()
    assert all(word.startswith("-task") for word in flat[:150])
    assert sorted(flat[150:]) == sorted(f"-secret s{i}" for i in range(90))


def test_secrets_come_with_the_first_task_and_go_with_the_last() -> None:
    feed = Feed(new_secret("s1"), make_task("t1", "n1", ["s1"]), make_task("t2", "n1", ["s1"]))
    assert words(feed.first) == ["+secret s1", "+task t1", "+task t2"]
    feed.state("t1", api.FAILED)
    assert feed.words() == []
    feed.state("t2", api.COMPLETE)
    assert feed.words() == ["-secret s1"]
    feed.cluster.create(make_task("t3", "n1", ["s1"]))
    assert feed.words() == ["+secret s1", "+task t3"]
    feed.cluster.remove(api.Task, "t3")
    assert feed.words() == ["-task t3", "-secret s1"]


def test_a_finished_task_brings_no_secrets() -> None:
    task = make_task("t1", "n1", ["s1"])
    task.status.state = api.FAILED
    assert words(Feed(new_secret("s1"), task).first) == ["+task t1"]


def test_configs_and_resource_references_count_as_well() -> None:
    config = api.Config(id="c9")
    config.spec.annotations.name = "c9"
    task = make_task("t1", "n1")
    task.spec.container.configs.add(config_id="c9")
    task.spec.resource_references.add(resource_id="s1", resource_type=api.SECRET)
    task.spec.resource_references.add(resource_id="x", resource_type=api.TASK)
    feed = Feed(new_secret("s1"), config, task)
    assert words(feed.first) == ["+secret s1", "+config c9", "+task t1"]
    feed.state("t1", api.FAILED)
    assert feed.words() == ["-config c9", "-secret s1"]


def test_secrets_of_other_nodes_tasks_are_never_sent() -> None:
    feed = Feed(new_secret("s1"), new_secret("s2"), make_task("t1", "n2", ["s1"]))
    feed.cluster.create(make_task("t2", "n2", ["s2"]))
    feed.cluster.edit(api.Secret, "s1", lambda s: s.spec.annotations.labels.update(a="b"))
    assert words(feed.first) == []
    assert feed.words() == []


def test_missing_secrets_and_those_of_drivers_are_left_out() -> None:
    feed = Feed(new_secret("s2", driver="vault"), make_task("t1", "n1", ["s1", "s2"]))
    assert words(feed.first) == ["+task t1"]


def test_a_task_that_moves_to_another_node_is_taken_from_the_first() -> None:
    feed = Feed(make_task("t1", "n1"))
    feed.cluster.edit(api.Task, "t1", lambda t: setattr(t, "node_id", "n2"))
    assert feed.words() == ["-task t1"]


def test_a_cancelled_stream_is_forgotten() -> None:
    feed = Feed()
    feed.cluster.send(StreamEnd(feed.stream))
    feed.cluster.create(make_task("t1", "n1"))
    assert feed.later() == []


def test_volumes_follow_their_publish_status() -> None:
    volume = api.Volume(id="v1")
    volume.spec.annotations.name = "v1"
    volume.spec.secrets.add(key="k", secret="s1")
    volume.publish_status.add(node_id="n1", state=api.VolumePublishStatus.PENDING_PUBLISH)
    feed = Feed(new_secret("s1"), volume)
    assert words(feed.first) == []

    def publish(state: int) -> list[str]:
        feed.cluster.edit(api.Volume, "v1", lambda v: setattr(v.publish_status[0], "state", state))
        return feed.words()

    assert publish(api.VolumePublishStatus.PUBLISHED) == ["+secret s1", "+volume v1"]
    assert publish(api.VolumePublishStatus.PENDING_NODE_UNPUBLISH) == ["-volume v1"]
    assert publish(api.VolumePublishStatus.PENDING_UNPUBLISH) == ["-secret s1"]


def test_a_volume_that_must_go_is_in_the_first_message_too() -> None:
    volume = api.Volume(id="v1")
    volume.publish_status.add(node_id="n1", state=api.VolumePublishStatus.PENDING_NODE_UNPUBLISH)
    assert words(Feed(volume).first) == ["-volume v1"]


def test_the_deprecated_tasks_stream_sends_everything_each_time() -> None:
    cluster = DispatcherHarness()
    cluster.create(make_task("t1", "n1"))
    stream = cluster.call("Dispatcher/Tasks", api.TasksRequest(session_id=cluster.register()), "n1")
    cluster.create(make_task("t2", "n1"))
    cluster.pass_time(1.0)
    messages = cluster.data(stream, api.TasksMessage)
    assert [[t.id for t in m.tasks] for m in messages] == [["t1"], ["t1", "t2"]]


def calls_for_one_change(nodes: int) -> int:
    """How many functions the dispatcher calls for a new task when so many agents listen."""
    cluster = DispatcherHarness(*(api.Node(id=f"n{i}") for i in range(nodes)))
    for i in range(nodes):
        cluster.assignments(cluster.register(f"n{i}"), f"n{i}")
    cluster.create(make_task("t1", "n1"))
    cluster.pass_time(1.0)
    change = Change("task", "t1", None, cluster.need(api.Task, "t1"))
    count = 0

    def on_event(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(on_event)
    try:
        cluster.dispatcher.committed([change], cluster.now)
    finally:
        sys.setprofile(None)
    return count


def test_a_change_costs_the_same_whatever_the_number_of_agents() -> None:
    assert calls_for_one_change(2) == calls_for_one_change(60)


def variants() -> Iterable[api.Task]:
    for name, value in (("desired_state", api.SHUTDOWN), ("slot", 2), ("node_id", "n2")):
        task = make_task("t1", "n1")
        setattr(task, name, value)
        yield task


def test_tasks_are_the_same_but_for_status_and_meta() -> None:
    a, b = make_task("t1", "n1"), make_task("t1", "n1")
    b.status.state = api.RUNNING
    b.meta.version.index = 9
    assert same_task(a, b)
    assert not any(same_task(a, variant) for variant in variants())


def test_statuses_are_the_same_whoever_applied_them() -> None:
    a, b = api.TaskStatus(state=api.RUNNING), api.TaskStatus(state=api.RUNNING, applied_by="m1")
    assert same_status(a, b)
    assert not same_status(a, api.TaskStatus(state=api.RUNNING, err="x"))
