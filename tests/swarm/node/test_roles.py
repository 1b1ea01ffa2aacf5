"""The manager of a node: when it is started, stopped, and when its log goes."""

from __future__ import annotations

import pytest

from swarm import defaults
from swarm.agent.events import LocalManager
from swarm.errors import Unavailable
from swarm.node import events
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE
from tests.swarm.node.daemon import Daemon, Issuer, manager_disk, worker_disk

FULL = OSError("no space left on device")
FAILURE = Unavailable("its disk failed")
SOON_S = 1.0  # more than a certificate takes that managers want now


def manager(issuer: Issuer) -> Daemon:
    daemon = Daemon(issuer, manager_disk(issuer))
    daemon.boot()
    daemon.role = MANAGER_ROLE
    daemon.performed.clear()
    daemon.told.clear()
    return daemon


def steps(daemon: Daemon) -> list[str]:
    return [name for name in daemon.names if name != "RenewCertificate"]


def saved(daemon: Daemon) -> tuple[int, tuple[int, ...]]:
    assert daemon.disk.state is not None
    return daemon.disk.state.raft_id, daemon.disk.state.past_raft_ids


def local(daemon: Daemon) -> list[bool]:
    return [event.running for event in daemon.told if isinstance(event, LocalManager)]


def test_a_promoted_worker_starts_a_manager_and_state_json_says_as_which_member(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    daemon.told.clear()
    daemon.role = MANAGER_ROLE
    daemon.hear(MANAGER_ROLE)
    daemon.advance(SOON_S)
    assert daemon.status.manager_running
    assert saved(daemon) == (daemon.disk.log, ())
    assert daemon.disk.log
    assert local(daemon) == [True]


def test_a_demoted_manager_stops_and_forgets_its_log_only_after_state_json_says_so(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.role = WORKER_ROLE
    daemon.hold = (events.SaveState,)
    daemon.hear(WORKER_ROLE)
    daemon.advance(SOON_S)
    assert "ForgetLog" not in daemon.names
    assert local(daemon) == [False]
    daemon.perform_held()
    assert [name for name in steps(daemon) if name != "SaveState"] == ["StopManager", "ForgetLog"]
    assert steps(daemon)[-1] == "ForgetLog"
    assert saved(daemon) == (0, (7,))
    assert daemon.disk.log == 0


def test_on_a_full_disk_the_log_is_not_forgotten_before_state_json_was_written(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.fail[events.SaveState] = [FULL] * 4
    daemon.lose_manager(removed=True)
    for _ in range(4):
        assert daemon.count(events.ForgetLog) == 0
        assert saved(daemon) == (7, ())
        assert daemon.disk.log == 7
        daemon.advance(defaults.DISK_RETRY_S)
    assert saved(daemon) == (0, (7,))
    assert daemon.disk.log == 0


def test_a_log_that_cannot_be_deleted_is_tried_again_and_no_manager_starts_meanwhile(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.fail[events.ForgetLog] = [FULL, FULL]
    daemon.lose_manager(removed=True)
    assert "no space left" in daemon.status.trouble
    daemon.advance(2 * defaults.ROLE_START_PAUSE_S - 0.01)
    assert daemon.count(events.ForgetLog) == 1
    daemon.advance(0.01)
    assert daemon.count(events.ForgetLog) == 2
    daemon.advance(4 * defaults.ROLE_START_PAUSE_S)
    assert daemon.count(events.ForgetLog) == 3
    assert daemon.disk.log == 0
    assert daemon.count(events.StartManager) == 0


def test_a_removed_manager_asks_for_a_certificate_and_as_a_worker_starts_none(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.role = WORKER_ROLE
    daemon.lose_manager(removed=True)
    daemon.advance(SOON_S)
    assert daemon.count(events.RenewCertificate) == 1
    assert daemon.status.role == WORKER_ROLE
    daemon.advance(2 * defaults.ROLE_CHANGE_WAIT_S)
    assert daemon.count(events.StartManager) == 0
    assert not daemon.status.manager_running


def test_a_removed_manager_does_not_start_again_with_the_certificate_that_was_in_use(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.hold = (events.RenewCertificate,)
    daemon.lose_manager(removed=True)
    daemon.advance(60.0)
    assert daemon.status.role == MANAGER_ROLE
    assert daemon.count(events.RenewCertificate) == 1
    assert daemon.count(events.StartManager) == 0
    daemon.perform_held()  # the next one says manager again
    assert daemon.count(events.StartManager) == 1
    assert saved(daemon) == (daemon.disk.log, (7,))
    assert daemon.disk.log not in (0, 7), "it is another member"


def test_a_removed_manager_waits_for_a_workers_certificate_when_it_gets_one_of_a_manager(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.lose_manager(removed=True)
    daemon.advance(defaults.ROLE_CHANGE_WAIT_S - 0.01)
    assert daemon.count(events.RenewCertificate) == 1
    assert daemon.count(events.StartManager) == 0
    daemon.advance(0.01)
    assert daemon.count(events.StartManager) == 1


def test_a_manager_that_was_removed_while_it_stopped_forgets_its_log(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.hold = (events.StopManager,)
    daemon.lose_manager(error=FAILURE)
    daemon.removed = True
    daemon.perform_held()
    assert daemon.disk.log == 0
    assert saved(daemon) == (0, (7,))


def test_a_manager_that_fails_starts_again_after_pauses_that_grow(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.fail[events.StartManager] = [FAILURE] * 10
    daemon.lose_manager(error=FAILURE)
    assert daemon.status.trouble == "manager stopped: its disk failed"
    assert not daemon.status.manager_running
    for attempt in range(1, 11):
        pause_s = min(defaults.ROLE_START_PAUSE_MAX_S, defaults.ROLE_START_PAUSE_S * 2**attempt)
        daemon.advance(pause_s - 0.01)
        assert daemon.count(events.StartManager) == attempt - 1
        daemon.advance(0.01)
        assert daemon.count(events.StartManager) == attempt
    daemon.advance(defaults.ROLE_START_PAUSE_MAX_S)
    assert daemon.status.manager_running
    assert daemon.status.trouble == ""
    assert daemon.disk.log == 7, "its log stays"


@pytest.mark.parametrize(("run_s", "pause_s"), [(1.0, 1.6), (defaults.ROLE_START_PAUSE_MAX_S + 1.0, 0.4)])
def test_the_pauses_begin_anew_after_a_long_run_only(issuer: Issuer, run_s: float, pause_s: float) -> None:
    daemon = manager(issuer)
    daemon.fail[events.StartManager] = [FAILURE]
    daemon.lose_manager(error=FAILURE)
    daemon.advance(0.4 + 0.8)
    assert daemon.status.manager_running
    daemon.advance(run_s)
    daemon.lose_manager(error=FAILURE)
    daemon.performed.clear()
    daemon.advance(pause_s - 0.01)
    assert daemon.count(events.StartManager) == 0
    daemon.advance(0.01)
    assert daemon.count(events.StartManager) == 1


def test_what_an_earlier_manager_tells_is_old_news(issuer: Issuer) -> None:
    daemon = manager(issuer)
    earlier = daemon.manager
    daemon.lose_manager(error=FAILURE)
    daemon.advance(SOON_S)
    daemon.performed.clear()
    daemon.put(events.ManagerEnded(earlier, removed=True))
    assert daemon.status.manager_running
    assert daemon.performed == []


def test_who_becomes_a_manager_again_while_it_stops_keeps_its_log(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.role = WORKER_ROLE
    daemon.hold = (events.StopManager,)
    daemon.hear(WORKER_ROLE)
    daemon.advance(SOON_S)
    daemon.role = MANAGER_ROLE
    daemon.hear(MANAGER_ROLE)
    daemon.advance(SOON_S)
    assert daemon.status.role == MANAGER_ROLE
    daemon.perform_held()
    assert daemon.status.manager_running
    assert daemon.disk.log == 7
    assert saved(daemon) == (7, ())


def test_a_manager_whose_stop_fails_counts_as_stopped(issuer: Issuer) -> None:
    daemon = manager(issuer)
    daemon.fail[events.StopManager] = [FULL]
    daemon.role = WORKER_ROLE
    daemon.hear(WORKER_ROLE)
    daemon.advance(SOON_S)
    assert saved(daemon) == (0, (7,))
    assert daemon.disk.log == 0


def test_a_manager_that_failed_while_a_join_was_under_way_is_started_again(issuer: Issuer) -> None:
    daemon = Daemon(issuer)
    daemon.boot()
    daemon.role = MANAGER_ROLE
    daemon.hold = (events.StartAgent,)
    daemon.join()
    daemon.lose_manager(error=FAILURE)
    assert daemon.count(events.StopManager) == 0
    daemon.perform_held()
    assert daemon.count(events.StopManager) == 1
    daemon.advance(SOON_S)
    assert daemon.status.manager_running
