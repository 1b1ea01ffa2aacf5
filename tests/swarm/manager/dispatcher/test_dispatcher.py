"""The dispatcher, rule by rule."""

from __future__ import annotations

from random import Random

import pytest

from swarm import api, defaults
from swarm.api import extensions
from swarm.errors import Code
from swarm.manager.dispatcher.dispatcher import DOWN_MESSAGE, ENGINE_GONE_MESSAGE, UNKNOWN_MESSAGE, Dispatcher
from swarm.rpc import LOCAL, Call, Reply, StreamData, StreamEnd
from tests.swarm.agent.agent_world import make_task
from tests.swarm.manager.service_harness import ServiceHarness

DESCRIPTION = api.NodeDescription(hostname="host")


class DispatcherHarness(ServiceHarness):
    """Drives a Dispatcher with nodes n1 and n2."""

    def __init__(self, *nodes: api.Node) -> None:
        super().__init__()
        cluster = api.Cluster(id="c1")
        cluster.spec.annotations.name = "default"
        cluster.root_ca.ca_cert = b"ROOT"
        cluster.network_bootstrap_keys.add(subsystem="networking:gossip", lamport_time=1)
        self.create(cluster, *(nodes or (api.Node(id="n1"), api.Node(id="n2"))))
        self.managers = [("m1", "10.0.0.1:2377")]
        self.elect()

    def elect(self) -> None:
        """A new leader."""
        self.dispatcher = Dispatcher(self.store, self.now, Random(5), "m1", lambda: list(self.managers))
        self.service = self.dispatcher
        self.settle()

    def session(self, node_id: str = "n1", session_id: str = "", description: api.NodeDescription = DESCRIPTION) -> int:
        """Open Session."""
        stream = self.call(
            "Dispatcher/Session", api.SessionRequest(description=description, session_id=session_id), node_id
        )
        return stream

    def register(self, node_id: str = "n1") -> str:
        """Open Session and return the session ID."""
        stream = self.session(node_id)
        self.pass_time(defaults.STATUS_BATCH_S)
        return self.data(stream, api.SessionMessage)[0].session_id

    def assignments(self, session_id: str, node_id: str = "n1") -> int:
        """Open Assignments."""
        return self.call("Dispatcher/Assignments", api.AssignmentsRequest(session_id=session_id), node_id)

    def report(self, session_id: str, task_id: str, state: int, node_id: str = "n1", **fields: str) -> int:
        """Report the status of a task."""
        request = api.UpdateTaskStatusRequest(session_id=session_id)
        request.updates.add(task_id=task_id, status=api.TaskStatus(state=state, **fields))  # type: ignore[arg-type]
        return self.call("Dispatcher/UpdateTaskStatus", request, node_id)

    def beat(self, session_id: str, node_id: str = "n1") -> int:
        """Send a heartbeat."""
        return self.call("Dispatcher/Heartbeat", api.HeartbeatRequest(session_id=session_id), node_id)

    def stall(self, seconds: float) -> None:
        """The process stands still, or its clock jumps."""
        self.now += seconds
        self.dispatcher.stalled(seconds, self.now)
        self.settle()

    def node(self, node_id: str = "n1") -> api.Node:
        """The node in the store."""
        return self.need(api.Node, node_id)

    def task(self, task_id: str = "t1") -> api.Task:
        """The task in the store."""
        return self.need(api.Task, task_id)


@pytest.fixture
def cluster() -> DispatcherHarness:
    return DispatcherHarness()


# --- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_is_answered_only_after_its_commit(cluster: DispatcherHarness) -> None:
    cluster.pass_time(1.0)
    cluster.hold = True
    stream = cluster.session()
    assert cluster.take(stream) == []
    cluster.release()
    answer = cluster.data(stream, api.SessionMessage)[0]
    assert len(answer.session_id) == 25
    assert answer.node == cluster.node()
    assert answer.RootCA == b"ROOT"
    assert [(m.peer.node_id, m.peer.addr, m.weight) for m in answer.managers] == [("m1", "10.0.0.1:2377", 10)]
    assert [k.lamport_time for k in answer.network_bootstrap_keys] == [1]


def test_registering_makes_a_node_ready_with_its_address_and_description(cluster: DispatcherHarness) -> None:
    cluster.register()
    node = cluster.node()
    assert (node.status.state, node.status.message, node.status.addr) == (api.NodeStatus.READY, "", "10.0.0.5")
    assert node.description == DESCRIPTION


def test_a_session_whose_commit_fails_is_refused(cluster: DispatcherHarness) -> None:
    cluster.pass_time(1.0)
    cluster.hold = True
    stream = cluster.session()
    cluster.lose()
    assert cluster.error(stream).code == Code.FAILED_PRECONDITION


def test_an_unknown_node_is_refused(cluster: DispatcherHarness) -> None:
    error = cluster.error(cluster.session("n9"))
    assert (error.code, str(error)) == (Code.UNKNOWN, "node not found")


def test_a_known_session_only_updates_the_description_and_writes_nothing_when_it_is_the_same(
    cluster: DispatcherHarness,
) -> None:
    session_id = cluster.register()
    entries = len(cluster.entries)
    plugins = [api.PluginDescription(type="Log", name=n) for n in "ab"]
    stream = cluster.session(session_id=session_id)
    assert cluster.data(stream, api.SessionMessage)[0].session_id == session_id
    assert len(cluster.entries) == entries
    changed = api.NodeDescription(hostname="host", engine=api.EngineDescription(plugins=plugins))
    cluster.session(session_id=session_id, description=changed)
    cluster.pass_time(1.0)
    assert cluster.node().description == changed
    assert len(cluster.entries) == entries + 1
    changed.engine.plugins.reverse()
    for _ in range(20):
        cluster.session(session_id=session_id, description=changed)
    assert len(cluster.entries) == entries + 1


def test_a_new_session_ends_the_streams_of_the_old_one(cluster: DispatcherHarness) -> None:
    first = cluster.session()
    cluster.pass_time(1.0)
    session_id = cluster.data(first, api.SessionMessage)[0].session_id
    assignments = cluster.assignments(session_id)
    cluster.take(assignments)
    cluster.register()
    for stream in (first, assignments, cluster.beat(session_id)):
        error = cluster.error(stream)
        assert (error.code, str(error)) == (Code.INVALID_ARGUMENT, "session invalid")


def test_registrations_are_limited(cluster: DispatcherHarness) -> None:
    for _ in range(defaults.REGISTRATIONS_MAX):
        cluster.register()
    error = cluster.error(cluster.session())
    assert (error.code, str(error)) == (Code.UNAVAILABLE, "node n1 exceeded rate limit count of registrations")
    cluster.register("n2")
    cluster.pass_time(defaults.REGISTRATION_WINDOW_S + 0.1)
    cluster.register()


def test_calls_without_a_session_are_refused(cluster: DispatcherHarness) -> None:
    cluster.register()
    cluster.pass_time(100.0)
    for stream in (cluster.beat("x"), cluster.assignments("x"), cluster.report("x", "t1", api.RUNNING)):
        error = cluster.error(stream)
        assert (error.code, str(error)) == (Code.NOT_FOUND, "node not registered")
    cluster.register()
    for session_id in ("", "x"):
        error = cluster.error(cluster.beat(session_id))
        assert (error.code, str(error)) == (Code.INVALID_ARGUMENT, "session invalid")


def test_too_long_a_description_is_refused(cluster: DispatcherHarness) -> None:
    huge = api.NodeDescription(hostname="x" * defaults.NODE_DESCRIPTION_BYTES_MAX)
    assert cluster.error(cluster.session(description=huge)).code == Code.INVALID_ARGUMENT


def test_the_agent_of_this_manager_needs_no_certificate(cluster: DispatcherHarness) -> None:
    cluster.create(api.Node(id="m1"))
    call = Call(77, "Dispatcher/Session", api.SessionRequest(description=DESCRIPTION), LOCAL)
    cluster.perform(cluster.dispatcher.handle(call, cluster.now))
    cluster.pass_time(1.0)
    assert cluster.data(77, api.SessionMessage)[0].node.id == "m1"


def test_a_node_has_only_so_many_sessions_open(cluster: DispatcherHarness) -> None:
    session_id = cluster.register()
    streams = [cluster.session(session_id=session_id) for _ in range(defaults.SESSIONS_PER_NODE_MAX + 1)]
    assert len(cluster.data(streams[-1], api.SessionMessage)) == 1
    assert cluster.error(streams[0]).code == Code.ABORTED


# --- what everyone must know ---------------------------------------------------------------------------------------


def test_changes_that_concern_all_nodes_go_to_all_and_only_once(cluster: DispatcherHarness) -> None:
    streams = [cluster.session("n1"), cluster.session("n2")]
    cluster.pass_time(1.0)
    for stream in streams:
        assert len(cluster.data(stream, api.SessionMessage)) == 1
    cluster.edit(api.Cluster, "c1", lambda c: setattr(c.root_ca, "ca_cert", b"NEW"))
    cluster.settle()
    for stream in streams:
        assert [m.RootCA for m in cluster.data(stream, api.SessionMessage)] == [b"NEW"]
    cluster.edit(api.Cluster, "c1", lambda c: setattr(c.spec.orchestration, "task_history_retention_limit", 1))
    cluster.managers.append(("m2", "10.0.0.2:2377"))
    cluster.perform(cluster.dispatcher.committed((), cluster.now))
    cluster.settle()
    for stream in streams:
        assert [len(m.managers) for m in cluster.data(stream, api.SessionMessage)] == [2]


def test_a_change_of_a_node_goes_to_that_node(cluster: DispatcherHarness) -> None:
    streams = [cluster.session("n1"), cluster.session("n2")]
    cluster.pass_time(1.0)
    for stream in streams:
        cluster.take(stream)
    cluster.edit(api.Node, "n1", lambda n: setattr(n.certificate.status, "state", api.IssuanceStatus.ROTATE))
    cluster.settle()
    rotated = cluster.data(streams[0], api.SessionMessage)
    assert [m.node.certificate.status.state for m in rotated] == [api.IssuanceStatus.ROTATE]
    assert cluster.take(streams[1]) == []


def test_removing_a_node_ends_its_streams(cluster: DispatcherHarness) -> None:
    stream = cluster.session()
    cluster.pass_time(1.0)
    cluster.remove(api.Node, "n1")
    error = cluster.error(stream)
    assert (error.code, str(error)) == (Code.ABORTED, "node must disconnect")
    cluster.pass_time(100.0)
    assert cluster.store.get(api.Node, "n1") is None


# --- heartbeats ----------------------------------------------------------------------------------------------------


def test_heartbeats_keep_a_node_ready_and_carry_a_period_with_jitter(cluster: DispatcherHarness) -> None:
    session_id = cluster.register()
    periods = []
    for _ in range(30):
        cluster.pass_time(10.0)
        periods.append(cluster.data(cluster.beat(session_id), api.HeartbeatResponse)[0].period.ToNanoseconds() / 1e9)
    assert 4.5 <= min(periods) < 4.8 < 5.2 < max(periods) <= 5.5
    assert cluster.node().status.state == api.NodeStatus.READY


def test_three_silent_periods_make_a_node_down(cluster: DispatcherHarness) -> None:
    stream = cluster.session()
    cluster.pass_time(13.0)
    assert cluster.node().status.state == api.NodeStatus.READY
    cluster.pass_time(4.0)
    assert (cluster.node().status.state, cluster.node().status.message) == (api.NodeStatus.DOWN, DOWN_MESSAGE)
    assert cluster.node().description == DESCRIPTION
    assert str(cluster.error(stream)) == "node not registered"
    cluster.register()
    assert cluster.node().status.state == api.NodeStatus.READY


def test_a_node_that_says_that_its_engine_is_gone_is_down_at_once(cluster: DispatcherHarness) -> None:
    session_id = cluster.register()
    farewell = extensions.with_extension(api.HeartbeatRequest(session_id=session_id), extensions.ENGINE_GONE)
    assert cluster.data(cluster.call("Dispatcher/Heartbeat", farewell, "n1"), api.HeartbeatResponse)
    cluster.pass_time(defaults.STATUS_BATCH_S)
    assert (cluster.node().status.state, cluster.node().status.message) == (api.NodeStatus.DOWN, ENGINE_GONE_MESSAGE)
    assert str(cluster.error(cluster.beat(session_id))) == "node not registered"
    cluster.register()
    assert cluster.node().status.state == api.NodeStatus.READY


def test_the_heartbeat_period_comes_from_the_cluster_and_zero_means_the_default(cluster: DispatcherHarness) -> None:
    session_id = cluster.register()
    cluster.edit(api.Cluster, "c1", lambda c: c.spec.dispatcher.heartbeat_period.FromSeconds(60))
    period_s = cluster.data(cluster.beat(session_id), api.HeartbeatResponse)[0].period.seconds
    assert 59 <= period_s <= 60
    cluster.edit(api.Cluster, "c1", lambda c: c.spec.dispatcher.heartbeat_period.FromSeconds(0))
    period_s = cluster.data(cluster.beat(session_id), api.HeartbeatResponse)[0].period.seconds
    assert 4 <= period_s <= 5


def test_a_new_leader_finds_nodes_unknown_and_gives_them_six_periods(cluster: DispatcherHarness) -> None:
    cluster.register()
    cluster.register("n2")
    cluster.elect()
    status = cluster.node().status
    assert (status.state, status.message) == (api.NodeStatus.UNKNOWN, UNKNOWN_MESSAGE)
    cluster.pass_time(26.0)
    assert cluster.node().status.state == api.NodeStatus.UNKNOWN
    session_id = cluster.register()
    cluster.pass_time(8.0)
    cluster.beat(session_id)
    assert cluster.node().status.state == api.NodeStatus.READY
    status = cluster.node("n2").status
    assert (status.state, status.message) == (api.NodeStatus.DOWN, 'heartbeat failure for node in "unknown" state')


def test_a_node_that_came_back_and_falls_silent_gets_only_three_periods(cluster: DispatcherHarness) -> None:
    cluster.elect()
    cluster.register()
    cluster.pass_time(17.0)
    assert cluster.node().status.state == api.NodeStatus.DOWN


def test_a_stall_of_the_leader_makes_no_node_down(cluster: DispatcherHarness) -> None:
    session_id, stream = cluster.register(), cluster.session("n2")
    cluster.pass_time(4.0)
    cluster.stall(20.0)
    assert cluster.node().status.state == cluster.node("n2").status.state == api.NodeStatus.READY
    cluster.beat(session_id)
    cluster.pass_time(14.0)
    assert cluster.node().status.state == api.NodeStatus.READY
    cluster.pass_time(defaults.RETURN_S)
    assert cluster.node("n2").status.state == api.NodeStatus.DOWN, "it did not come back"
    assert str(cluster.error(stream)) == "node not registered"


def test_after_a_stall_nodes_that_gave_up_have_time_to_come_back(cluster: DispatcherHarness) -> None:
    cluster.register()
    cluster.pass_time(13.0)
    cluster.stall(60.0)
    cluster.pass_time(defaults.RETURN_S - 1.0)
    assert cluster.node().status.state == api.NodeStatus.READY


def test_a_leader_that_stalls_again_and_again_still_notices_who_is_gone(cluster: DispatcherHarness) -> None:
    cluster.register()
    seen_s = 0.0
    while cluster.node().status.state == api.NodeStatus.READY:
        cluster.pass_time(2.0)
        cluster.stall(10.0)
        seen_s += 2.0
        assert seen_s <= defaults.RETURN_S + 17.0


def test_a_new_leader_that_stalls_waits_for_unknown_nodes_as_long_as_others_do(cluster: DispatcherHarness) -> None:
    cluster.register()
    cluster.elect()
    cluster.pass_time(20.0)
    cluster.stall(30.0)
    cluster.pass_time(defaults.STATUS_BATCH_S)
    assert cluster.node().status.state == api.NodeStatus.UNKNOWN
    cluster.register()
    assert cluster.node().status.state == api.NodeStatus.READY


def test_a_stall_does_not_make_orphans_of_the_tasks_of_a_node_that_is_down(cluster: DispatcherHarness) -> None:
    cluster.create(make_task("t1", "n1"))
    cluster.register()
    cluster.pass_time(20.0)
    assert cluster.node().status.state == api.NodeStatus.DOWN
    cluster.stall(defaults.ORPHAN_TASKS_AFTER_S)
    cluster.pass_time(1.0)
    assert cluster.task().status.state == api.ASSIGNED
    cluster.pass_time(defaults.ORPHAN_TASKS_AFTER_S)
    assert cluster.task().status.state == api.ORPHANED


def test_a_node_that_comes_back_at_the_last_moment_is_not_down() -> None:
    for twentieth in range(26 * 20, 34 * 20):  # its time is up somewhere in between
        cluster = DispatcherHarness()
        cluster.call("Dispatcher/Session", api.SessionRequest(), "n2")  # writes come in batches, this is the first
        cluster.pass_time(twentieth / 20)
        cluster.session("n2")
        stream = cluster.session()
        cluster.pass_time(1.0)
        assert cluster.data(stream, api.SessionMessage)[0].session_id
        assert cluster.node().status.state == api.NodeStatus.READY


def test_tasks_of_a_node_that_is_down_for_a_day_become_orphans() -> None:
    down = api.Node(id="n1", status=api.NodeStatus(state=api.NodeStatus.DOWN))
    cluster = DispatcherHarness(down)
    tasks = [make_task(f"t{i}", "n1") for i in range(250)]
    tasks[0].status.state = api.COMPLETE
    tasks[1].status.state = api.RUNNING
    cluster.create(*tasks)
    cluster.pass_time(defaults.ORPHAN_TASKS_AFTER_S - 1)
    assert cluster.task("t1").status.state == api.RUNNING
    cluster.pass_time(2.0)
    assert cluster.task("t0").status.state == api.COMPLETE
    assert {cluster.task(f"t{i}").status.state for i in range(1, 250)} == {api.ORPHANED}
    assert max(cluster.entries[2:]) <= defaults.ENTRY_CHANGES_MAX // 2


def test_a_node_that_comes_back_within_a_day_keeps_its_tasks(cluster: DispatcherHarness) -> None:
    cluster.create(make_task("t1", "n1"))
    cluster.register()
    cluster.pass_time(3600.0)
    assert cluster.node().status.state == api.NodeStatus.DOWN
    session_id = cluster.register()
    for _ in range(9000):
        cluster.pass_time(10.0)
        cluster.beat(session_id)
        cluster.out.clear()
    assert cluster.task("t1").status.state == api.ASSIGNED


def test_an_agent_that_hangs_up_before_its_answer_is_still_watched(cluster: DispatcherHarness) -> None:
    cluster.pass_time(1.0)
    cluster.hold = True
    stream = cluster.session()
    cluster.send(StreamEnd(stream))
    cluster.release()
    assert cluster.take(stream) == []
    assert cluster.node().status.state == api.NodeStatus.READY
    cluster.pass_time(17.0)
    assert cluster.node().status.state == api.NodeStatus.DOWN


# --- statuses ------------------------------------------------------------------------------------------------------


@pytest.fixture
def working() -> tuple[DispatcherHarness, str]:
    cluster = DispatcherHarness()
    cluster.create(make_task("t1", "n1"), make_task("t2", "n2"))
    session_id = cluster.register()
    cluster.pass_time(1.0)
    return cluster, session_id


def test_a_status_is_written_with_who_applied_it_and_answered_after_its_commit(
    working: tuple[DispatcherHarness, str],
) -> None:
    cluster, session_id = working
    cluster.hold = True
    stream = cluster.report(session_id, "t1", api.RUNNING, message="started")
    assert cluster.take(stream) == []
    cluster.release()
    assert cluster.data(stream, api.UpdateTaskStatusResponse)
    status = cluster.task().status
    assert (status.state, status.message, status.applied_by) == (api.RUNNING, "started", "m1")
    assert status.applied_at.ToNanoseconds() == int(cluster.now * 1e9)


def test_a_status_never_goes_backwards(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    cluster.report(session_id, "t1", api.RUNNING)
    cluster.pass_time(1.0)
    entries = len(cluster.entries)
    assert cluster.data(cluster.report(session_id, "t1", api.PREPARING), api.UpdateTaskStatusResponse)
    assert cluster.task().status.state == api.RUNNING
    assert len(cluster.entries) == entries


def test_reports_that_overtake_each_other_in_a_batch_leave_the_higher_state(
    working: tuple[DispatcherHarness, str],
) -> None:
    cluster, session_id = working
    cluster.hold = True
    cluster.report(session_id, "t1", api.ACCEPTED)
    cluster.report(session_id, "t1", api.FAILED, err="task: non-zero exit (7)")
    cluster.report(session_id, "t1", api.RUNNING)
    cluster.release()
    cluster.pass_time(1.0)
    assert cluster.task().status.state == api.FAILED


def test_the_same_status_again_writes_nothing(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    cluster.report(session_id, "t1", api.RUNNING)
    cluster.pass_time(1.0)
    entries = len(cluster.entries)
    assert cluster.data(cluster.report(session_id, "t1", api.RUNNING), api.UpdateTaskStatusResponse)
    assert len(cluster.entries) == entries


def test_unknown_tasks_are_ignored(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    assert cluster.data(cluster.report(session_id, "gone", api.RUNNING), api.UpdateTaskStatusResponse)


def test_a_node_may_not_report_for_another_nodes_task(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    error = cluster.error(cluster.report(session_id, "t2", api.RUNNING))
    assert (error.code, str(error)) == (Code.PERMISSION_DENIED, "cannot update a task not assigned this node")
    cluster.pass_time(1.0)
    assert cluster.task("t2").status.state == api.ASSIGNED


def test_long_texts_of_a_status_are_truncated(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    cluster.report(session_id, "t1", api.REJECTED, err="x" * 2_000_000)
    assert len(cluster.task().status.err) == defaults.STATUS_TEXT_CHARS_MAX


def test_many_statuses_are_written_in_bounded_entries_and_answered_at_the_end() -> None:
    cluster = DispatcherHarness()
    for i in range(0, 500, 100):
        cluster.create(*(make_task(f"t{j}", "n1") for j in range(i, i + 100)))
    session_id = cluster.register()
    cluster.pass_time(1.0)
    cluster.entries.clear()
    request = api.UpdateTaskStatusRequest(session_id=session_id)
    for i in range(500):
        request.updates.add(task_id=f"t{i}", status=api.TaskStatus(state=api.RUNNING))
    stream = cluster.call("Dispatcher/UpdateTaskStatus", request, "n1")
    assert cluster.entries == [100] * 5
    assert cluster.data(stream, api.UpdateTaskStatusResponse)


def test_reports_within_a_tenth_of_a_second_share_an_entry(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    other = cluster.register("n2")
    cluster.pass_time(1.0)
    cluster.entries.clear()
    cluster.report(session_id, "t1", api.ACCEPTED)
    assert cluster.entries == [1]
    cluster.report(session_id, "t1", api.RUNNING)
    cluster.report(other, "t2", api.RUNNING, node_id="n2")
    assert cluster.entries == [1]
    cluster.pass_time(defaults.STATUS_BATCH_S)
    assert cluster.entries == [1, 2]


def test_an_unpublished_volume_is_noted() -> None:
    cluster = DispatcherHarness()
    volume = api.Volume(id="v1")
    volume.publish_status.add(node_id="n1", state=api.VolumePublishStatus.PENDING_NODE_UNPUBLISH)
    volume.publish_status.add(node_id="n2", state=api.VolumePublishStatus.PUBLISHED)
    cluster.create(volume)
    request = api.UpdateVolumeStatusRequest(session_id=cluster.register())
    request.updates.add(id="v1", unpublished=True)
    request.updates.add(id="gone", unpublished=True)
    cluster.call("Dispatcher/UpdateVolumeStatus", request, "n1")
    cluster.pass_time(1.0)
    states = [s.state for s in cluster.need(api.Volume, "v1").publish_status]
    assert states == [api.VolumePublishStatus.PENDING_UNPUBLISH, api.VolumePublishStatus.PUBLISHED]


# --- the end -------------------------------------------------------------------------------------------------------


def test_the_end_of_leadership_disconnects_everyone(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    session = cluster.session(session_id=session_id)
    cluster.take(session)
    assignments = cluster.assignments(session_id)
    cluster.hold = True
    first = cluster.report(session_id, "t1", api.ACCEPTED)
    second = cluster.report(session_id, "t1", api.RUNNING)
    cluster.perform(cluster.dispatcher.stop())
    cluster.lose()
    last, end = cluster.take(session)
    assert isinstance(last, StreamData)
    assert isinstance(end, StreamEnd)
    assert (end.error.code, str(end.error)) == (Code.ABORTED, "node must disconnect") if end.error else False
    assert str(cluster.error(assignments)) == "dispatcher is stopped"
    assert cluster.error(first).code == Code.FAILED_PRECONDITION
    assert str(cluster.error(second)) == "dispatcher is stopped"
    assert str(cluster.error(cluster.beat(session_id))) == "dispatcher is stopped"
    assert cluster.dispatcher.deadline() is None


def test_replies_go_only_to_those_who_still_wait(working: tuple[DispatcherHarness, str]) -> None:
    cluster, session_id = working
    cluster.hold = True
    stream = cluster.report(session_id, "t1", api.RUNNING)
    cluster.send(StreamEnd(stream))
    cluster.release()
    assert [e for e in cluster.take(stream) if isinstance(e, Reply)] == []
    assert cluster.task().status.state == api.RUNNING
