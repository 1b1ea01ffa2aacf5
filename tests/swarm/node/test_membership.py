"""The ways into a swarm and out of it, one rule each."""

from __future__ import annotations

import pytest

from certs.errors import InvalidUnlockKey
from swarm import defaults
from swarm.agent import events as agent_events
from swarm.agent.events import EngineBack, EngineGone
from swarm.errors import JoinUndecided, PermissionDenied, SwarmError, Unavailable
from swarm.node import events
from swarm.node.events import Refusal, Refused
from swarm.node.state import Pending, StateDamaged
from swarm.node.steps import Phase
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE
from tests.swarm.node.daemon import NODE, Daemon, Disk, Issuer, manager_disk, worker_disk

FULL = OSError("no space left on device")
GONE = EngineGone("Cannot connect to the Docker daemon", certain=False)
STEPS_MAX = 20


def started(issuer: Issuer, disk: Disk | None = None) -> Daemon:
    daemon = Daemon(issuer, disk)
    daemon.boot()
    daemon.performed.clear()
    return daemon


def refusal_of(daemon: Daemon, ticket: int) -> Refusal:
    error = daemon.answers[ticket]
    assert isinstance(error, Refused)
    return error.refusal


# --- init ------------------------------------------------------------------------------------------------------------


def test_init_writes_state_json_when_the_cluster_is_there_and_answers_when_managers_accepted_this_node(
    issuer: Issuer,
) -> None:
    daemon = started(issuer)
    daemon.hold = (events.Describe,)
    ticket = daemon.init()
    assert daemon.names == [
        *("SaveState", "MakeIdentity", "StartManager", "WriteFirstObjects", "SaveState", "StartAgent")
    ]
    saved = [effect.state.pending for effect in daemon.performed if isinstance(effect, events.SaveState)]
    assert saved == [Pending(), None], "it is no member before the cluster is there"
    assert daemon.waiting == [ticket]
    assert not daemon.status.ready
    daemon.perform_held()
    assert daemon.answers[ticket] is None
    assert daemon.status.ready
    assert daemon.disk.state is not None
    assert daemon.disk.state.raft_id == daemon.disk.log != 0


@pytest.mark.parametrize(
    "kind",
    [events.MakeIdentity, events.StartManager, events.WriteFirstObjects, events.SaveState, events.StartAgent],
)
def test_an_init_that_fails_leaves_nothing_and_answers_its_error(issuer: Issuer, kind: type[events.Effect]) -> None:
    daemon = started(issuer)
    error = OSError("address already in use")
    daemon.fail[kind] = [error]
    ticket = daemon.init()
    assert daemon.answers[ticket] is error
    assert daemon.names[-2:] == ["StopRoles", "Erase"]
    assert daemon.disk == Disk()
    assert daemon.status.phase is Phase.INACTIVE
    assert daemon.answers[daemon.init()] is None, "the next one may succeed"


def test_an_init_whose_node_is_not_accepted_in_time_leaves_nothing(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.sessions = False
    ticket = daemon.init()
    daemon.advance(defaults.JOIN_WAIT_S)
    assert isinstance(daemon.answers[ticket], TimeoutError)
    assert daemon.disk == Disk()


def test_a_disk_that_cannot_be_erased_is_an_error_of_the_node_and_leave_tries_again(issuer: Issuer) -> None:
    daemon = started(issuer)
    failed = OSError("cannot listen")
    daemon.fail = {events.StartManager: [failed], events.Erase: [FULL]}
    ticket = daemon.init()
    assert daemon.answers[ticket] is failed
    assert daemon.status.phase is Phase.ERROR
    assert daemon.status.error is FULL
    assert refusal_of(daemon, daemon.init()) is Refusal.IN_SWARM
    assert daemon.answers[daemon.leave()] is None
    status = daemon.status
    assert status.phase is Phase.INACTIVE
    assert daemon.disk == Disk()


def test_a_second_init_is_refused_at_once_while_the_first_goes_on(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.hold = (events.MakeIdentity,)
    first, second = daemon.init(), daemon.init()
    assert refusal_of(daemon, second) is Refusal.IN_SWARM
    daemon.perform_held()
    assert daemon.answers[first] is None


def test_roles_that_cannot_be_stopped_do_not_end_the_node(issuer: Issuer) -> None:
    daemon = started(issuer)
    failed = OSError("cannot listen")
    daemon.fail = {events.StartManager: [failed], events.StopRoles: [FULL]}
    assert daemon.answers[daemon.init()] is failed
    assert daemon.disk == Disk()


# --- join ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_joins_is_named_by_its_certificate(issuer: Issuer) -> None:
    daemon = started(issuer)
    ticket = daemon.join()
    assert daemon.answers[ticket] is None
    assert daemon.names == ["SaveState", "RequestIdentity", "SaveState", "StartAgent"]
    assert daemon.status.node_id == NODE
    assert daemon.disk.state == daemon.status.state


def test_a_manager_that_joins_says_in_state_json_as_which_member(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.role = MANAGER_ROLE
    assert daemon.answers[daemon.join()] is None
    assert daemon.names == ["SaveState", "RequestIdentity", "SaveState", "StartManager", "SaveState", "StartAgent"]
    assert daemon.disk.state is not None
    assert daemon.disk.state.raft_id == daemon.disk.log != 0


@pytest.mark.parametrize("kind", [events.RequestIdentity, events.SaveState, events.StartManager])
def test_a_join_that_fails_while_somebody_waits_leaves_nothing(issuer: Issuer, kind: type[events.Effect]) -> None:
    daemon = started(issuer)
    daemon.role = MANAGER_ROLE
    error = Unavailable("nobody there")
    daemon.fail[kind] = [error]
    assert daemon.answers[daemon.join()] is error
    assert daemon.disk == Disk()
    assert daemon.status.phase is Phase.INACTIVE


def test_a_join_goes_on_whatever_fails_once_the_group_counts_on_this_member(issuer: Issuer) -> None:
    failures: list[tuple[type[events.Effect], list[Exception | None]]] = [
        (events.StartAgent, [Unavailable("no engine")]),
        (events.SaveState, [None, None, OSError(5, "EIO")]),
    ]
    for kind, errors in failures:
        daemon = started(issuer)
        daemon.role = MANAGER_ROLE
        daemon.fail[kind] = errors
        ticket = daemon.join()
        member = daemon.disk.log
        assert member != 0
        assert ticket not in daemon.answers
        daemon.advance(defaults.JOIN_WAIT_S)
        assert daemon.answers[ticket] is None
        assert daemon.status.ready
        assert daemon.disk.log == member


def test_a_join_that_nobody_waits_for_any_more_goes_on(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.hold = (events.RequestIdentity,)
    ticket = daemon.join()
    daemon.advance(defaults.JOIN_WAIT_S)
    assert refusal_of(daemon, ticket) is Refusal.STILL_JOINING
    daemon.fail[events.RequestIdentity] = [Unavailable("nobody there")] * 3
    daemon.perform_held()
    assert daemon.status.phase is Phase.PENDING
    for attempts in (2, 3):
        daemon.advance(defaults.JOIN_RETRY_BASE_S * 2 ** (attempts - 1) - 0.01)
        assert daemon.count(events.RequestIdentity) == attempts - 1
        daemon.advance(0.01)
        assert daemon.count(events.RequestIdentity) == attempts
    daemon.advance(defaults.JOIN_RETRY_MAX_S)
    assert daemon.status.ready
    assert daemon.disk.state is not None


def test_a_join_that_nobody_waits_for_ends_when_it_is_refused(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.hold = (events.RequestIdentity,)
    daemon.join()
    daemon.advance(defaults.JOIN_WAIT_S)
    daemon.fail[events.RequestIdentity] = [PermissionDenied("the token is wrong")]
    daemon.perform_held()
    assert daemon.status.phase is Phase.INACTIVE
    assert daemon.disk == Disk()


def test_leave_ends_a_join_and_both_are_answered(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.sessions = False
    join, leave = daemon.join(), daemon.leave(force=False)
    assert refusal_of(daemon, join) is Refusal.LEFT
    assert daemon.answers[leave] is None
    assert daemon.disk == Disk()
    assert daemon.status.phase is Phase.INACTIVE


def test_a_request_to_leave_waits_while_a_join_ends_by_itself(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.sessions = False
    daemon.hold = (events.StopRoles, events.Erase)
    join, first, second = daemon.join(), daemon.leave(), daemon.leave()
    daemon.perform_held(events.StopRoles)
    third = daemon.leave()
    assert daemon.waiting == [join, first, second, third]
    daemon.perform_held()
    assert daemon.answers[first] is None
    assert refusal_of(daemon, second) is refusal_of(daemon, third) is Refusal.NOT_IN_SWARM
    assert daemon.disk == Disk()
    assert daemon.count(events.Erase) == 1


def test_a_join_is_neither_unlocked_nor_forced(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.hold = (events.RequestIdentity,)
    daemon.join()
    assert refusal_of(daemon, daemon.unlock(b"key")) is Refusal.NOT_LOCKED
    assert refusal_of(daemon, daemon.force_new_cluster()) is Refusal.NO_MANAGER


def test_a_manager_whose_group_may_count_on_it_does_not_give_up(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.role = MANAGER_ROLE
    daemon.fail[events.StartManager] = [JoinUndecided("no answer")]
    assert daemon.answers[daemon.join()] is None
    assert daemon.status.manager_running, "it was started again"
    assert daemon.count(events.StartManager) == 2
    assert daemon.count(events.Erase) == 0


# --- leave -----------------------------------------------------------------------------------------------------------


def test_leave_drops_state_json_first_and_everything_at_last(issuer: Issuer) -> None:
    daemon = started(issuer, worker_disk(issuer))
    ticket = daemon.leave(force=False)
    assert daemon.answers[ticket] is None
    assert daemon.names == ["DropState", "RemoveContainers", "StopRoles", "Erase"]
    assert [event for event in daemon.told if isinstance(event, agent_events.Leave)] == [agent_events.Leave()]
    assert daemon.disk == Disk()
    assert daemon.status.phase is Phase.INACTIVE
    assert daemon.status.node_id == ""


def test_state_json_is_not_written_again_by_what_comes_during_a_leave(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer))
    daemon.agent_leaves = False
    daemon.role = WORKER_ROLE
    daemon.leave()
    daemon.hear(WORKER_ROLE)  # other managers, and a demotion
    daemon.advance(5.0)
    assert daemon.status.role == WORKER_ROLE
    daemon.lose_manager(removed=True)
    daemon.advance(5.0)
    assert daemon.disk.leaving
    assert daemon.count(events.SaveState) == 0
    assert daemon.count(events.StopManager) == daemon.count(events.ForgetLog) == 0
    daemon.put(agent_events.Left())
    assert daemon.status.phase is Phase.INACTIVE


def test_a_leave_whose_state_json_stays_changes_nothing(issuer: Issuer) -> None:
    disk = manager_disk(issuer)
    daemon = started(issuer, disk)
    daemon.fail[events.DropState] = [FULL]
    assert daemon.answers[daemon.leave()] is FULL
    assert daemon.disk == manager_disk(issuer)
    assert daemon.status.manager_running
    daemon.hear(MANAGER_ROLE)
    assert daemon.disk.state is not None
    assert daemon.disk.state.managers == (("node2", "10.0.0.2:2377"),), "the file follows again"
    daemon.lose_manager(removed=True)
    assert daemon.disk.log == 0, "and so does the manager"


def test_leave_waits_for_tasks_no_longer_than_it_may(issuer: Issuer) -> None:
    daemon = started(issuer, worker_disk(issuer))
    daemon.agent_leaves = False
    ticket = daemon.leave()
    daemon.advance(defaults.LEAVE_WAIT_S - 0.01)
    assert daemon.waiting == [ticket]
    daemon.advance(0.01)
    assert daemon.answers[ticket] is None
    assert daemon.disk == Disk()


def test_leave_does_not_wait_for_tasks_while_the_engine_is_gone(issuer: Issuer) -> None:
    daemon = started(issuer, worker_disk(issuer))
    daemon.agent_leaves = False
    daemon.put(GONE)
    assert daemon.answers[daemon.leave()] is None


def test_a_manager_leaves_by_force_only(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer))
    assert refusal_of(daemon, daemon.leave(force=False)) is Refusal.MANAGER
    assert daemon.status.manager_running
    assert daemon.answers[daemon.leave(force=True)] is None


def test_a_locked_node_leaves_by_force_only(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer, unlock_key=b"key"))
    assert refusal_of(daemon, daemon.leave(force=False)) is Refusal.LOCKED
    assert daemon.answers[daemon.leave(force=True)] is None
    assert daemon.disk == Disk()


def test_who_is_in_no_swarm_cannot_leave_one(issuer: Issuer) -> None:
    daemon = started(issuer)
    assert refusal_of(daemon, daemon.leave()) is Refusal.NOT_IN_SWARM


def removals(daemon: Daemon) -> list[str]:
    return [effect.node_id for effect in daemon.performed if isinstance(effect, events.RemoveContainers)]


def test_containers_left_behind_are_removed_when_the_engine_answers_again(issuer: Issuer) -> None:
    daemon = started(issuer, worker_disk(issuer))
    daemon.fail[events.RemoveContainers] = [Unavailable("no engine"), Unavailable("no engine")]
    assert daemon.answers[daemon.leave()] is None
    assert removals(daemon) == [NODE]
    daemon.put(GONE)
    assert removals(daemon) == [NODE]
    for expected in (2, 3, 3):  # fails once more, succeeds, and is done
        daemon.put(EngineBack())
        assert removals(daemon) == [NODE] * expected


def test_one_node_whose_containers_stay_does_not_keep_those_of_others(issuer: Issuer) -> None:
    daemon = Daemon(issuer)
    daemon.ask(lambda ticket: events.Boot(ticket, None, StateDamaged("state.json is damaged")))  # which node, is lost
    daemon.fail[events.RemoveContainers] = [Unavailable("no engine"), Unavailable("no engine")]
    daemon.leave()
    daemon.join()
    daemon.leave()
    assert removals(daemon) == ["", NODE]
    daemon.join()
    daemon.put(EngineBack())
    assert removals(daemon) == ["", NODE, NODE], "those of unknown nodes wait: they could be this node's by now"
    daemon.leave()
    daemon.put(EngineBack())
    assert removals(daemon)[-1] == ""


# --- unlock ----------------------------------------------------------------------------------------------------------


def test_a_wrong_key_leaves_the_node_locked_and_the_right_one_unlocks_it(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer, unlock_key=b"key"))
    assert daemon.status.phase is Phase.LOCKED
    assert isinstance(daemon.answers[daemon.unlock(b"wrong")], InvalidUnlockKey)
    assert daemon.status.phase is Phase.LOCKED
    assert daemon.answers[daemon.unlock(b"key")] is None
    assert daemon.status.ready
    assert daemon.status.manager_running


def test_a_node_that_cannot_start_after_its_key_was_read_stays_locked(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer, unlock_key=b"key"))
    error = OSError("address already in use")
    daemon.fail[events.StartManager] = [error]
    assert daemon.answers[daemon.unlock(b"key")] is error
    assert daemon.status.phase is Phase.LOCKED
    assert not daemon.status.manager_running
    assert daemon.answers[daemon.unlock(b"key")] is None


def test_the_first_manager_is_unlocked_although_it_finds_no_leader(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer, unlock_key=b"key"))
    daemon.sessions = False
    ticket = daemon.unlock(b"key")
    assert daemon.status.phase is Phase.PENDING
    daemon.advance(defaults.NO_LEADER_WAIT_S)
    assert daemon.answers[ticket] is None
    assert daemon.status.manager_running


def test_only_a_locked_node_is_unlocked(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer))
    assert refusal_of(daemon, daemon.unlock(b"key")) is Refusal.NOT_LOCKED


# --- force -----------------------------------------------------------------------------------------------------------


def forced(daemon: Daemon) -> list[bool]:
    return [effect.force_new_cluster for effect in daemon.performed if isinstance(effect, events.StartManager)]


def test_a_new_cluster_is_forced_on_a_manager_that_runs(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer))
    daemon.hear(MANAGER_ROLE)
    daemon.performed.clear()
    assert daemon.answers[daemon.force_new_cluster()] is None
    assert daemon.names[:3] == ["StopRoles", "OpenIdentity", "StartManager"]
    assert daemon.names.index("AwaitLeadership") < daemon.names.index("StartAgent")
    assert forced(daemon) == [True]
    assert daemon.disk.state is not None
    assert daemon.disk.state.managers == ((NODE, "10.0.0.1:2377"),), "it is the only one"


def test_a_new_cluster_is_forced_on_a_node_in_error(issuer: Issuer) -> None:
    daemon = Daemon(issuer, manager_disk(issuer))
    daemon.fail[events.StartManager] = [SwarmError("the address is gone")]
    daemon.boot()
    assert daemon.status.phase is Phase.ERROR
    assert daemon.answers[daemon.force_new_cluster()] is None
    assert daemon.status.error is None
    assert daemon.status.ready
    assert forced(daemon) == [False, True]


@pytest.mark.parametrize("kind", [events.OpenIdentity, events.StartManager, events.AwaitLeadership, events.StartAgent])
def test_a_new_cluster_that_could_not_be_forced_may_be_tried_again(issuer: Issuer, kind: type[events.Effect]) -> None:
    daemon = started(issuer, manager_disk(issuer))
    error = SwarmError("not now")
    daemon.fail[kind] = [error]
    assert daemon.answers[daemon.force_new_cluster()] is error
    assert (daemon.status.phase, daemon.status.error) == (Phase.ERROR, error)
    assert daemon.disk.log == 7
    assert daemon.answers[daemon.force_new_cluster()] is None


def test_who_keeps_no_log_of_a_manager_forces_nothing(issuer: Issuer) -> None:
    for disk, refusal in (
        (Disk(), Refusal.NOT_IN_SWARM),
        (worker_disk(issuer), Refusal.NO_MANAGER),
        (manager_disk(issuer, unlock_key=b"key"), Refusal.LOCKED),
    ):
        daemon = started(issuer, disk)
        assert refusal_of(daemon, daemon.force_new_cluster()) is refusal
        assert daemon.performed == []
