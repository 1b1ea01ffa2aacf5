"""The session of one agent, from its side."""

from __future__ import annotations

from random import Random
from typing import TypeVar

import pytest

from swarm import api, defaults
from swarm.agent.agent import Agent, AgentEffect, AgentEvent
from swarm.agent.events import (
    Connect,
    Connected,
    ConnectionLost,
    Described,
    Disconnect,
    EngineBack,
    EngineGone,
    Execute,
    Executed,
    Leave,
    Left,
    LocalManager,
    LogsEnded,
    PublishLogs,
    SessionState,
    SessionUpdate,
    Step,
    StopLogs,
    Sweep,
)
from swarm.api import extensions
from swarm.errors import Aborted, NotFound, PermissionDenied, SwarmError, Unavailable, Unimplemented
from swarm.node.remotes import Remotes
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from tests.swarm.agent.agent_world import make_task
from tests.swarm.agent.test_worker import COMPLETE, INCREMENTAL, message

M1, M2 = ("m1", "10.0.0.1:2377"), ("m2", "10.0.0.2:2377")
X = TypeVar("X")


class AgentHarness:
    """Drives one Agent, and keeps its effects and streams."""

    def __init__(self) -> None:
        self.now = 100.0
        self.remotes = Remotes([M1])
        self.agent = Agent("n1", self.remotes, Random(1), self.now, {})
        self.seen: list[AgentEffect] = []
        self.streams: dict[str, int] = {}

    def tell(self, event: AgentEvent | None) -> list[AgentEffect]:
        """One event; returns the effects."""
        effects = self.agent.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, Call):
                self.streams[effect.method.split("/")[1]] = effect.stream
        self.seen += effects
        return effects

    def due(self) -> list[AgentEffect]:
        """Let time pass until the next deadline."""
        deadline = self.agent.deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        return self.tell(None)

    def describe(self, hostname: str = "host") -> list[AgentEffect]:
        """The node's description."""
        return self.tell(Described(api.NodeDescription(hostname=hostname)))

    def session_message(self, session_id: str = "sid", **fields: object) -> list[AgentEffect]:
        """The manager says something on the Session stream."""
        answer = api.SessionMessage(session_id=session_id, node=api.Node(id="n1"), RootCA=b"ROOT")
        for node_id, addr in (M1, M2):
            answer.managers.add(peer=api.Peer(node_id=node_id, addr=addr), weight=10)
        for name, value in fields.items():
            getattr(answer.node, name).MergeFrom(value)
        return self.tell(StreamData(self.streams["Session"], answer))

    def connect(self) -> list[AgentEffect]:
        """Until the connection is open."""
        connect = only(self.describe() if not self.seen else self.due(), Connect)
        return self.tell(Connected(connect.connection))

    def register(self, session_id: str = "sid") -> list[AgentEffect]:
        """Until a session is established."""
        self.connect()
        return self.session_message(session_id)

    def assign(
        self, assignments: api.AssignmentsMessage, applies_to: str = "", results_in: str = "1"
    ) -> list[AgentEffect]:
        """The manager says something on the Assignments stream."""
        assignments.applies_to, assignments.results_in = applies_to, results_in
        return self.tell(StreamData(self.streams["Assignments"], assignments))

    def fail(self, name: str, error: SwarmError | None) -> list[AgentEffect]:
        """A stream or call ends."""
        return self.tell(StreamEnd(self.streams[name], error))


def every(effects: list[AgentEffect], kind: type[X]) -> list[X]:
    return [e for e in effects if isinstance(e, kind)]


def only(effects: list[AgentEffect], kind: type[X]) -> X:
    found = every(effects, kind)
    assert len(found) == 1, effects
    return found[0]


def methods(effects: list[AgentEffect]) -> list[str]:
    return [call.method for call in every(effects, Call)]


def test_nothing_happens_before_the_node_is_described() -> None:
    driver = AgentHarness()
    assert driver.tell(None) == []
    assert driver.agent.deadline() is None
    assert driver.describe() == [Connect("10.0.0.1:2377", "m1", 1)]


def test_a_session_opens_with_the_description_and_then_all_its_streams() -> None:
    driver = AgentHarness()
    call = only(driver.connect(), Call)
    assert call.method == "Dispatcher/Session"
    assert call.request == api.SessionRequest(description=api.NodeDescription(hostname="host"))
    effects = driver.session_message()
    assert methods(effects) == [
        "Dispatcher/Assignments",
        "LogBroker/ListenSubscriptions",
        "Discovery/WatchNetworks",
        "Dispatcher/Heartbeat",
    ]
    assert every(effects, SessionState) == [SessionState("sid")]
    assert driver.agent.registered


def test_heartbeats_follow_the_period_of_the_manager() -> None:
    driver = AgentHarness()
    driver.register()
    response = api.HeartbeatResponse()
    response.period.FromMilliseconds(4700)
    assert driver.tell(Reply(driver.streams["Heartbeat"], response)) == []
    before = driver.now
    assert methods(driver.due()) == ["Dispatcher/Heartbeat"]
    assert driver.now == before + 4.7


def test_a_heartbeat_without_answer_ends_the_session() -> None:
    driver = AgentHarness()
    driver.register()
    effects = driver.due()
    assert driver.now == 105.0
    assert every(effects, Disconnect) == [Disconnect()]
    assert only(effects, SessionState).error == "the manager did not answer Dispatcher/Heartbeat in time"


def test_a_node_whose_engine_ended_says_farewell_and_comes_back_with_it() -> None:
    driver = AgentHarness()
    driver.register()
    driver.tell(Reply(driver.streams["Heartbeat"], api.HeartbeatResponse()))
    call = only(driver.tell(EngineGone("no engine", certain=True)), Call)
    assert call.method == "Dispatcher/Heartbeat"
    assert call.request is not None
    assert extensions.has_extension(call.request, extensions.ENGINE_GONE)
    assert driver.agent.registered
    effects = driver.tell(Reply(call.stream, api.HeartbeatResponse()))
    assert only(effects, SessionState).error == "no engine"
    assert every(effects, Disconnect)
    assert driver.agent.deadline() is None
    assert only(driver.tell(EngineBack()), Connect)


def test_a_farewell_that_nobody_answers_is_not_waited_for() -> None:
    driver = AgentHarness()
    driver.register()
    driver.tell(Reply(driver.streams["Heartbeat"], api.HeartbeatResponse()))
    driver.tell(EngineGone("no engine", certain=True))
    assert every(driver.due(), Disconnect)
    assert driver.now == 100.0 + defaults.FAREWELL_TIMEOUT_S


def test_a_node_whose_engine_is_only_slow_disconnects_without_a_farewell() -> None:
    driver = AgentHarness()
    driver.register()
    effects = driver.tell(EngineGone("no answer", certain=False))
    assert every(effects, Disconnect)
    assert methods(effects) == []


def test_an_engine_that_comes_back_during_the_farewell_opens_a_new_session() -> None:
    driver = AgentHarness()
    driver.register()
    driver.tell(EngineGone("no engine", certain=True))
    assert every(driver.tell(EngineBack()), Disconnect)
    assert only(driver.due(), Connect)


def test_a_first_message_that_does_not_come_in_time_ends_the_attempt() -> None:
    driver = AgentHarness()
    driver.connect()
    effects = driver.due()
    assert driver.now == 100.0 + defaults.SESSION_FIRST_MESSAGE_S
    assert only(effects, SessionState).error == "session initiation timed out"


def test_a_connection_that_is_not_made_in_time_is_given_up() -> None:
    driver = AgentHarness()
    driver.describe()
    assert every(driver.due(), Disconnect) == [Disconnect()]
    assert driver.tell(Connected(1)) == []
    assert driver.tell(ConnectionLost(1, "late")) == []


@pytest.mark.parametrize("name", ["Session", "Heartbeat", "Assignments", "ListenSubscriptions", "WatchNetworks"])
def test_any_stream_that_ends_ends_the_session(name: str) -> None:
    driver = AgentHarness()
    driver.register()
    effects = driver.fail(name, NotFound("node not registered") if name == "Heartbeat" else None)
    assert every(effects, Disconnect) == [Disconnect()]
    assert driver.remotes.weight(M1) is not None
    assert (driver.remotes.weight(M1) or 0) < 0
    assert not driver.agent.registered


def test_a_manager_without_log_broker_is_tolerated() -> None:
    driver = AgentHarness()
    driver.register()
    assert driver.fail("ListenSubscriptions", Unimplemented("unknown service")) == []
    assert driver.agent.registered


def test_without_managers_the_agent_keeps_trying() -> None:
    driver = AgentHarness()
    driver.remotes.keep_only([])
    assert only(driver.describe(), SessionState).error == "no remote hosts provided"
    driver.remotes.observe(M2, 10)
    assert only(driver.due(), Connect).manager_addr == M2[1]


def test_the_managers_of_the_message_replace_what_is_known() -> None:
    driver = AgentHarness()
    driver.remotes.observe(("gone", "10.0.0.9:2377"), -100)
    driver.register()
    assert driver.remotes.managers() == [M1, M2]


def test_the_node_hears_of_session_messages_only_when_something_changed() -> None:
    driver = AgentHarness()
    update = only(driver.register(), SessionUpdate)
    assert (update.node.id, update.managers, update.root_ca) == ("n1", (M1, M2), b"ROOT")
    quiet = driver.session_message(
        status=api.NodeStatus(state=api.NodeStatus.READY), meta=api.Meta(version={"index": 7})
    )
    assert every(quiet, SessionUpdate) == []
    rotate = api.Certificate(status=api.IssuanceStatus(state=api.IssuanceStatus.ROTATE))
    assert only(driver.session_message(certificate=rotate), SessionUpdate).node.certificate == rotate


def test_a_new_description_opens_a_new_session_at_once_with_the_old_id() -> None:
    driver = AgentHarness()
    driver.register()
    assert driver.describe("host") == []
    effects = driver.describe("renamed")
    assert effects[0] == Disconnect()
    call = only(driver.tell(Connected(only(effects, Connect).connection)), Call)
    assert call.request == api.SessionRequest(description=api.NodeDescription(hostname="renamed"), session_id="sid")
    assert (driver.remotes.weight(M1) or 0) > 0


def test_plugins_in_another_order_are_no_new_description() -> None:
    driver = AgentHarness()
    a, b = api.PluginDescription(type="Log", name="a"), api.PluginDescription(type="Log", name="b")
    driver.tell(Described(api.NodeDescription(engine=api.EngineDescription(plugins=[a, b]))))
    driver.tell(Connected(1))
    driver.session_message()
    assert driver.tell(Described(api.NodeDescription(engine=api.EngineDescription(plugins=[b, a])))) == []


def test_a_description_that_changed_while_registering_is_told_right_after() -> None:
    driver = AgentHarness()
    driver.connect()
    driver.describe("renamed")
    assert only(driver.session_message(), Connect).connection == 2


def test_a_manager_in_the_same_process_is_preferred() -> None:
    driver = AgentHarness()
    driver.tell(LocalManager(True))
    assert driver.describe() == [Connect("", "n1", 1)]
    driver.tell(ConnectionLost(1, "gone"))
    driver.tell(LocalManager(False))
    assert only(driver.due(), Connect).manager_addr == M1[1]


# --- assignments and statuses --------------------------------------------------------------------------------------


def test_a_gap_in_the_assignments_opens_the_stream_again_and_skips_the_message() -> None:
    driver = AgentHarness()
    driver.register()
    driver.assign(message(COMPLETE, make_task("t1", "n1")))
    stream = driver.streams["Assignments"]
    effects = driver.assign(message(INCREMENTAL, removes=("t1",)), applies_to="2", results_in="3")
    given_up = effects[0]
    assert isinstance(given_up, StreamEnd)
    assert given_up.stream == stream
    assert given_up.error is not None, "only the end of a client stream has none"
    assert methods(effects) == ["Dispatcher/Assignments"]
    assert every(driver.assign(message(COMPLETE, make_task("t1", "n1"))), Execute) == []
    assert every(driver.assign(message(INCREMENTAL, removes=("t1",)), applies_to="1", results_in="2"), Call) == []


def test_what_belongs_to_no_task_is_swept_once_all_tasks_are_known() -> None:
    driver = AgentHarness()
    driver.register()
    effects = driver.assign(message(COMPLETE, make_task("t1", "n1"), make_task("t2", "n1")))
    assert only(effects, Sweep).task_ids == ("t1", "t2")
    assert every(driver.assign(message(INCREMENTAL, removes=("t1",)), applies_to="1", results_in="2"), Sweep) == []
    assert every(driver.assign(message(COMPLETE, make_task("t2", "n1"))), Sweep) == []


def statuses(call: Call) -> list[tuple[str, int]]:
    assert isinstance(call.request, api.UpdateTaskStatusRequest)
    assert call.request.session_id == "sid"
    return [(update.task_id, update.status.state) for update in call.request.updates]


def with_tasks(*task_ids: str) -> AgentHarness:
    driver = AgentHarness()
    driver.register()
    driver.tell(Reply(driver.streams["Heartbeat"], period(60)))
    driver.assign(message(COMPLETE, *(make_task(i, "n1") for i in task_ids)))
    return driver


def period(seconds: int) -> api.HeartbeatResponse:
    response = api.HeartbeatResponse()
    response.period.FromSeconds(seconds)
    return response


def test_statuses_are_collected_for_a_moment_and_sent_together() -> None:
    driver = with_tasks("t1", "t2")
    driver.tell(Executed("t1", Step.PREPARE))
    assert statuses(only(driver.due(), Call)) == [("t1", api.STARTING), ("t2", api.PREPARING)]
    assert driver.now == 100.0 + defaults.STATUS_BATCH_S


def test_a_status_that_changes_while_it_is_sent_is_sent_again() -> None:
    driver = with_tasks("t1")
    driver.due()
    driver.tell(Executed("t1", Step.PREPARE))
    effects = driver.tell(Reply(driver.streams["UpdateTaskStatus"], api.UpdateTaskStatusResponse()))
    assert statuses(only(effects, Call)) == [("t1", api.STARTING)]
    driver.tell(Reply(driver.streams["UpdateTaskStatus"], api.UpdateTaskStatusResponse()))
    assert driver.agent.deadline() == 160.0


def test_every_status_is_told_again_in_a_new_session() -> None:
    driver = with_tasks("t1", "t2")
    driver.due()
    driver.tell(Reply(driver.streams["UpdateTaskStatus"], api.UpdateTaskStatusResponse()))
    driver.fail("Session", None)
    driver.register()
    assert statuses(only(driver.due(), Call)) == [("t1", api.PREPARING), ("t2", api.PREPARING)]


def test_a_status_that_is_not_acknowledged_is_kept_for_the_next_session() -> None:
    driver = with_tasks("t1")
    driver.due()
    driver.fail("UpdateTaskStatus", Unavailable("no"))
    assert not driver.agent.registered
    driver.register()
    assert statuses(only(driver.due(), Call)) == [("t1", api.PREPARING)]


def test_a_status_that_is_refused_for_good_does_not_hold_up_the_others() -> None:
    driver = with_tasks("t1", "t2")
    refusal = PermissionDenied("cannot update a task not assigned this node")
    driver.due()
    first = only(driver.fail("UpdateTaskStatus", refusal), Call)
    assert statuses(first) == [("t1", api.PREPARING)]
    second = only(driver.fail("UpdateTaskStatus", refusal), Call)
    assert statuses(second) == [("t2", api.PREPARING)]
    driver.tell(Reply(driver.streams["UpdateTaskStatus"], api.UpdateTaskStatusResponse()))
    assert driver.agent.registered
    assert driver.agent.deadline() == 160.0


def test_tasks_go_on_without_a_session() -> None:
    driver = with_tasks("t1")
    driver.fail("Session", None)
    effects = driver.tell(Executed("t1", Step.PREPARE))
    assert [e.step for e in every(effects, Execute)] == [Step.START]


def test_events_of_streams_of_the_past_are_ignored() -> None:
    driver = with_tasks("t1")
    old = driver.streams["Assignments"]
    driver.fail("Session", None)
    driver.register()
    assert driver.tell(StreamData(old, message(COMPLETE))) == []
    assert driver.tell(StreamEnd(old, Aborted("late"))) == []
    assert driver.tell(Reply(old, period(1))) == []


def test_leaving_removes_all_tasks_and_takes_no_more() -> None:
    driver = with_tasks("t1")
    driver.tell(Leave())
    driver.tell(Executed("t1", Step.PREPARE, cancelled=True))
    driver.tell(Executed("t1", Step.SHUTDOWN))
    assert every(driver.assign(message(COMPLETE, make_task("t2", "n1"))), Execute) == []
    assert every(driver.tell(Executed("t1", Step.REMOVE)), Left) == [Left()]
    assert every(driver.tell(None), Left) == []


def test_an_unpublished_volume_is_reported() -> None:
    driver = with_tasks()
    remove = api.AssignmentsMessage(type=INCREMENTAL)
    remove.changes.add(action=api.AssignmentChange.REMOVE).assignment.volume.id = "v1"
    driver.assign(remove, applies_to="1", results_in="2")
    request = only(driver.due(), Call).request
    assert isinstance(request, api.UpdateVolumeStatusRequest)
    assert [(u.id, u.unpublished) for u in request.updates] == [("v1", True)]
    driver.fail("UpdateVolumeStatus", Unimplemented("an old manager"))
    assert driver.agent.registered


# --- logs ----------------------------------------------------------------------------------------------------------


def subscribe(driver: AgentHarness, follow: bool, close: bool = False) -> list[AgentEffect]:
    subscription = api.SubscriptionMessage(id="sub", close=close)
    subscription.selector.service_ids.append("s1")
    subscription.options.follow = follow
    return driver.tell(StreamData(driver.streams["ListenSubscriptions"], subscription))


def test_a_subscription_names_the_tasks_that_it_selects() -> None:
    driver = with_tasks("t1", "t2")
    driver.assign(message(INCREMENTAL, make_task("t3", "n1", service_id="other")), "1", "2")
    publish = only(subscribe(driver, follow=False), PublishLogs)
    assert [t.id for t in publish.tasks] == ["t1", "t2"]
    assert subscribe(driver, follow=False) == []
    driver.tell(LogsEnded("sub"))
    assert len(every(subscribe(driver, follow=False), PublishLogs)) == 1


def test_following_includes_tasks_that_come_later() -> None:
    driver = with_tasks("t1")
    subscribe(driver, follow=True)
    effects = driver.assign(
        message(INCREMENTAL, make_task("t2", "n1"), make_task("t3", "n1", service_id="x")), "1", "2"
    )
    assert [t.id for t in only(effects, PublishLogs).tasks] == ["t2"]
    assert subscribe(driver, follow=True, close=True) == [StopLogs("sub")]


def test_subscriptions_end_with_the_session_and_may_come_again() -> None:
    driver = with_tasks("t1")
    subscribe(driver, follow=True)
    assert StopLogs("sub") in driver.fail("Session", None)
    driver.register()
    assert len(every(subscribe(driver, follow=True), PublishLogs)) == 1


# --- stalls of this process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed_s", [5.0, 20.0, 600.0])
def test_an_agent_that_stood_still_reads_its_managers_answers_before_it_gives_up(missed_s: float) -> None:
    driver = AgentHarness()
    driver.register()
    driver.now += 1.0
    heartbeat = driver.streams["Heartbeat"]
    driver.now += missed_s + defaults.RPC_DIAL_TIMEOUT_S
    assert not every(driver.tell(None), Disconnect)
    assert not every(driver.tell(Reply(heartbeat, api.HeartbeatResponse())), Disconnect)
    assert driver.agent.registered


def test_after_a_stall_a_manager_that_stays_silent_is_given_up_all_the_same() -> None:
    driver = AgentHarness()
    driver.register()
    driver.now += 60.0
    assert not every(driver.tell(None), Disconnect)
    assert every(driver.due(), Disconnect)
