"""What a start finds, and what becomes of what a kill or a stop cut off."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import pytest

from swarm import defaults
from swarm.errors import SwarmError, Unavailable
from swarm.node import events
from swarm.node.events import Refusal, Refused
from swarm.node.membership import LEAVING
from swarm.node.state import Pending, StateDamaged, StateLost
from swarm.node.steps import Phase
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE
from tests.swarm.node.daemon import NODE, Daemon, Disk, Issuer, manager_disk, worker_disk

FULL = OSError("no space left on device")
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


def removals(daemon: Daemon) -> list[str]:
    return [effect.node_id for effect in daemon.performed if isinstance(effect, events.RemoveContainers)]


def test_an_init_that_was_never_acknowledged_is_erased_at_the_start(issuer: Issuer) -> None:
    disk = manager_disk(issuer)
    assert disk.state is not None
    disk.state = disk.state.begun(Pending())
    daemon = Daemon(issuer, disk)
    assert daemon.answers[daemon.boot()] is None
    assert daemon.names == ["DropState", "StopRoles", "Erase"]
    assert daemon.disk == Disk()


@pytest.mark.parametrize("there", [{"log": 7}, {"certificate_pem": b"x"}, {"log": 7, "certificate_pem": b"x"}])
def test_a_directory_without_state_json_is_an_error_and_nothing_is_deleted(
    issuer: Issuer, there: dict[str, Any]
) -> None:
    disk = Disk(**there)
    daemon = Daemon(issuer, copy(disk))
    assert daemon.answers[daemon.boot()] is None
    daemon.advance(1000.0)
    status = daemon.status
    assert (status.phase, daemon.disk, daemon.performed) == (Phase.ERROR, disk, [])
    assert isinstance(status.error, StateLost)
    assert all(name in str(status.error) for name in ("state.json", *disk.others))
    assert refusal_of(daemon, daemon.init()) is Refusal.IN_SWARM
    assert refusal_of(daemon, daemon.force_new_cluster()) is Refusal.NO_MANAGER
    assert daemon.disk == disk
    assert daemon.answers[daemon.leave()] is None
    assert daemon.disk == Disk()


@pytest.mark.parametrize("changed", [{"node_id": "node9"}, {"cluster_id": "cluster9"}])
def test_the_state_json_of_another_node_is_an_error_and_nothing_is_changed(
    issuer: Issuer, changed: dict[str, Any]
) -> None:
    disk = manager_disk(issuer)
    assert disk.state is not None
    disk.state = replace(disk.state, **changed)
    daemon = Daemon(issuer, copy(disk))
    daemon.boot()
    assert daemon.status.phase is Phase.ERROR
    assert isinstance(daemon.status.error, StateDamaged)
    assert daemon.disk == disk
    assert daemon.names == ["OpenIdentity", "StopRoles"]


@pytest.mark.parametrize("state", [True, False])
def test_a_leave_that_was_cut_off_is_finished_by_the_next_start(issuer: Issuer, state: bool) -> None:
    disk = replace(manager_disk(issuer), leaving=True)
    if not state:
        disk.state = None
    daemon = Daemon(issuer, disk)
    daemon.hold = (events.RemoveContainers,)
    assert daemon.answers[daemon.boot()] is None, "nobody waits for it"
    assert (daemon.status.phase, daemon.status.trouble) == (Phase.PENDING, LEAVING)
    assert refusal_of(daemon, daemon.init()) is Refusal.IN_SWARM
    daemon.perform_held()
    assert removals(daemon) == [NODE if state else ""]
    assert daemon.disk == Disk()
    assert (daemon.status.phase, daemon.status.trouble) == (Phase.INACTIVE, "")


def test_a_leave_whose_files_cannot_be_deleted_says_so_and_is_finished_later(issuer: Issuer) -> None:
    daemon = started(issuer, manager_disk(issuer))
    daemon.fail[events.Erase] = [FULL, FULL]
    assert daemon.answers[daemon.leave()] is FULL
    assert (daemon.status.phase, daemon.status.error) == (Phase.ERROR, FULL)
    assert refusal_of(daemon, daemon.force_new_cluster()) is Refusal.NO_MANAGER, "it has left"
    daemon.kill()
    daemon.boot()
    assert (daemon.status.phase, daemon.status.error) == (Phase.ERROR, FULL)
    daemon.kill()
    daemon.boot()
    assert daemon.disk == Disk()


@pytest.mark.parametrize("role", [MANAGER_ROLE, WORKER_ROLE])
@pytest.mark.parametrize("steps", range(6))
def test_the_next_start_goes_on_with_a_join_that_was_stopped(issuer: Issuer, steps: int, role: str) -> None:
    daemon = started(issuer)
    daemon.role, daemon.hold_after = role, steps
    ticket = daemon.join()
    daemon.stop()
    error = daemon.answers[ticket]
    assert error is None or (isinstance(error, Refused) and error.refusal is Refusal.STOPPING)
    before = daemon.disk.state
    daemon.kill()
    daemon.hold_after = -1
    daemon.boot()
    assert daemon.count(events.Erase) == 0
    if before is None:  # nothing of it was on disk
        assert daemon.status.phase is Phase.INACTIVE
        return
    assert daemon.status.ready
    assert daemon.status.manager_running == (role == MANAGER_ROLE)
    assert daemon.disk.state is not None
    assert daemon.disk.state.pending is None
    asked = [effect.token for effect in daemon.performed if isinstance(effect, events.RequestIdentity)]
    assert set(asked) == {"SWMTKN"}
    assert before.pending is not None or len(asked) == 1, "a node that has its certificate asks for no other"


@pytest.mark.parametrize("kind", [events.RequestIdentity, events.SaveState, events.StartAgent])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), TimeoutError("slow"), Unavailable("not now"), SwarmError("?")]
)
def test_a_join_that_nobody_waits_for_is_ended_by_no_passing_error(
    issuer: Issuer, kind: type[events.Effect], error: Exception
) -> None:
    daemon = started(issuer)
    daemon.role, daemon.hold = MANAGER_ROLE, (events.RequestIdentity,)
    daemon.join()
    daemon.advance(defaults.JOIN_WAIT_S)
    daemon.fail[kind] = [error, error]
    daemon.perform_held()
    daemon.hold = ()
    assert daemon.status.trouble == str(error), "a user can read why it takes so long"
    daemon.advance(100.0)
    assert daemon.status.ready
    assert daemon.status.trouble == ""
    assert daemon.count(events.Erase) == 0
    assert daemon.disk.state is not None
    assert daemon.disk.state.raft_id == daemon.disk.log != 0


def test_a_join_as_manager_that_the_group_may_count_on_is_left_by_force_only(issuer: Issuer) -> None:
    daemon = started(issuer)
    daemon.role, daemon.hold = MANAGER_ROLE, (events.StartManager,)
    join = daemon.join()
    assert refusal_of(daemon, daemon.leave(force=False)) is Refusal.MANAGER
    assert daemon.waiting == [join]
    leave = daemon.leave(force=True)
    assert refusal_of(daemon, join) is Refusal.LEFT
    assert daemon.answers[leave] is None
    assert daemon.disk == Disk()


def test_a_manager_goes_on_with_its_log(issuer: Issuer) -> None:
    daemon = Daemon(issuer, manager_disk(issuer))
    assert daemon.answers[daemon.boot()] is None
    assert daemon.names == ["OpenIdentity", "StartManager", "StartAgent"]
    assert daemon.status.manager_running


def test_a_log_that_was_given_up_is_forgotten_after_state_json_says_so(issuer: Issuer) -> None:
    disk = replace(manager_disk(issuer), certificate_pem=issuer.certificate(WORKER_ROLE))
    daemon = Daemon(issuer, disk)
    daemon.boot()
    assert daemon.names == ["OpenIdentity", "SaveState", "ForgetLog", "StartAgent"]
    assert daemon.disk.state is not None
    assert (daemon.disk.state.raft_id, daemon.disk.state.past_raft_ids, daemon.disk.log) == (0, (7,), 0)


def test_a_log_that_was_given_up_stays_while_state_json_cannot_say_so(issuer: Issuer) -> None:
    disk = replace(manager_disk(issuer), certificate_pem=issuer.certificate(WORKER_ROLE))
    daemon = Daemon(issuer, copy(disk))
    daemon.fail[events.SaveState] = [FULL]
    assert daemon.answers[daemon.boot()] is None
    assert daemon.status.error is FULL
    assert daemon.disk == disk


def test_a_worker_that_was_killed_before_its_log_was_gone_forgets_it_at_the_next_start(issuer: Issuer) -> None:
    disk = replace(worker_disk(issuer), log=7)
    daemon = Daemon(issuer, disk)
    daemon.boot()
    assert daemon.names == ["OpenIdentity", "ForgetLog", "StartAgent"]
    assert daemon.disk.log == 0


@pytest.mark.parametrize("kind", [events.OpenIdentity, events.StartManager, events.StartAgent])
def test_a_start_that_fails_shows_and_keeps_the_disk(issuer: Issuer, kind: type[events.Effect]) -> None:
    daemon = Daemon(issuer, manager_disk(issuer))
    error = SwarmError("damaged")
    daemon.fail[kind] = [error]
    assert daemon.answers[daemon.boot()] is None
    assert (daemon.status.phase, daemon.status.error) == (Phase.ERROR, error)
    assert daemon.names[-1] == "StopRoles"
    assert daemon.disk == manager_disk(issuer)


def test_a_node_whose_file_is_damaged_removes_containers_by_the_id_of_its_certificate(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    damaged = StateDamaged("state.json is damaged")
    assert daemon.answers[daemon.ask(lambda ticket: events.Boot(ticket, None, damaged, NODE))] is None
    assert daemon.status.error is damaged
    assert daemon.performed == []
    daemon.leave()
    assert removals(daemon) == [NODE]
    assert daemon.disk == Disk()


@pytest.mark.parametrize("role", [MANAGER_ROLE, WORKER_ROLE])
@pytest.mark.parametrize("first", [Daemon.init, Daemon.join])
def test_killed_at_any_step_a_node_is_in_its_swarm_again_or_in_none(issuer: Issuer, first: object, role: str) -> None:
    assert callable(first)
    for step in range(1, STEPS_MAX):
        for leaves in (False, True):
            daemon = Daemon(issuer)
            daemon.role = role
            daemon.kill_after = step
            daemon.boot()
            if daemon.alive:
                first(daemon)
            if daemon.alive and leaves:
                daemon.leave()
            if daemon.alive:
                daemon.kill()
            state = daemon.disk.state
            there = state is not None and not daemon.disk.leaving
            if state is not None and state.pending is not None:
                there = there and bool(state.pending.token)
            daemon.boot()
            daemon.advance(10.0)
            assert daemon.status.error is None
            assert daemon.status.ready == there
            assert (daemon.disk == Disk()) == (not there)
            assert daemon.status.manager_running == (there and daemon.status.role == MANAGER_ROLE)
            assert daemon.waiting == []
