"""A manager whose log does not hold what it confirmed: it joins again as another member, or users accept the loss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm import defaults
from swarm.errors import Unavailable
from swarm.node import events
from swarm.node.steps import Phase
from swarm.raft.events import LogConflict, LogLost
from swarm.rpc import MANAGER_ROLE
from tests.swarm.node.daemon import OTHERS, Daemon, Disk, Issuer, manager_disk

LOST = LogLost("raft.db: part of the log is lost")
LONG_S = 10 * defaults.ROLE_START_PAUSE_MAX_S


def one_of_several(issuer: Issuer, **changes: object) -> Disk:
    disk = manager_disk(issuer)
    assert disk.state is not None
    state = replace(disk.state, managers=(*disk.state.managers, *OTHERS))
    return replace(disk, state=state, damaged=True, **changes)  # type: ignore[arg-type]


def booted(issuer: Issuer, disk: Disk) -> Daemon:
    daemon = Daemon(issuer, disk)
    daemon.role = MANAGER_ROLE
    daemon.boot()
    return daemon


def ways(daemon: Daemon) -> list[events.OnLoss]:
    return [effect.on_loss for effect in daemon.performed if isinstance(effect, events.StartManager)]


def saved(daemon: Daemon) -> tuple[int, tuple[int, ...]]:
    assert daemon.disk.state is not None
    return daemon.disk.state.raft_id, daemon.disk.state.past_raft_ids


def test_one_of_several_managers_joins_again_as_another_member(issuer: Issuer) -> None:
    daemon = booted(issuer, one_of_several(issuer))
    assert daemon.status.phase is Phase.PENDING
    assert daemon.agent
    assert not daemon.status.manager_running
    assert "the log is gone" in daemon.status.trouble
    assert daemon.disk.damaged, "it may be the best that is left"
    daemon.advance(LONG_S)
    assert daemon.status.manager_running
    assert daemon.status.trouble == ""
    assert ways(daemon) == [events.OnLoss.REFUSE, events.OnLoss.REJOIN]
    assert saved(daemon) == (daemon.disk.log, (7,))
    assert daemon.disk.log not in (0, 7)
    assert "ForgetLog" not in daemon.names


def test_while_nobody_lets_it_join_again_users_are_told_of_both_and_the_log_stays(issuer: Issuer) -> None:
    daemon = Daemon(issuer, one_of_several(issuer))
    daemon.role = MANAGER_ROLE
    daemon.fail[events.StartManager] = [LOST, *[Unavailable("no leader")] * 3]
    daemon.boot()
    daemon.advance(defaults.ROLE_START_PAUSE_S * 8)
    assert "no leader" in daemon.status.trouble
    assert LOST.message in daemon.status.trouble
    assert saved(daemon) == (7, ())
    assert daemon.disk.log == 7
    daemon.advance(LONG_S)
    assert daemon.status.manager_running


def test_a_killed_daemon_goes_on_with_joining_again_wherever_it_was(issuer: Issuer) -> None:
    for step in range(1, 30):
        daemon = Daemon(issuer, one_of_several(issuer))
        daemon.role = MANAGER_ROLE
        daemon.kill_after = step
        daemon.boot()
        daemon.advance(LONG_S)
        if daemon.alive:
            daemon.kill()
        daemon.boot()
        daemon.advance(LONG_S)
        assert daemon.status.manager_running
        raft_id, past = saved(daemon)
        assert raft_id == daemon.disk.log
        assert past == (7,)


def test_a_manager_that_hears_of_its_loss_from_the_leader_joins_again(issuer: Issuer) -> None:
    daemon = booted(issuer, replace(one_of_several(issuer), damaged=False))
    daemon.lose_manager(error=LOST)
    daemon.advance(LONG_S)
    assert ways(daemon)[-1] is events.OnLoss.REJOIN
    assert saved(daemon)[1] == (7,)


def test_a_manager_that_failed_for_another_reason_stays_the_member_it_is(issuer: Issuer) -> None:
    daemon = booted(issuer, replace(one_of_several(issuer), damaged=False))
    for error in (Unavailable("its disk failed"), LogConflict("two leaders in one term")):
        daemon.lose_manager(error=error)
        daemon.advance(LONG_S)
    assert set(ways(daemon)) == {events.OnLoss.REFUSE}
    assert saved(daemon) == (7, ())


def test_a_single_manager_is_in_error_and_stays_so_after_a_restart(issuer: Issuer) -> None:
    daemon = Daemon(issuer, replace(manager_disk(issuer), damaged=True))
    for _ in range(2):
        daemon.boot()
        assert daemon.status.phase is Phase.ERROR
        assert isinstance(daemon.status.error, LogLost)
        assert not daemon.agent
        daemon.kill()
    assert set(ways(daemon)) == {events.OnLoss.REFUSE}


@pytest.mark.parametrize("several", [False, True])
def test_who_was_told_of_the_loss_accepts_it_by_forcing_a_new_cluster(issuer: Issuer, several: bool) -> None:
    disk = one_of_several(issuer) if several else replace(manager_disk(issuer), damaged=True)
    daemon = booted(issuer, disk)
    if several:
        daemon.fail[events.StartManager] = [Unavailable("nobody answers")]
        daemon.advance(defaults.ROLE_START_PAUSE_S * 3)
    assert daemon.answers[daemon.force_new_cluster()] is None
    assert ways(daemon)[-1] is events.OnLoss.ACCEPT
    assert daemon.status.manager_running
    assert saved(daemon) == (7, ())


def test_a_single_manager_that_is_locked_is_in_error_once_it_is_unlocked_and_can_be_forced(issuer: Issuer) -> None:
    daemon = Daemon(issuer, replace(manager_disk(issuer, unlock_key=b"key"), damaged=True))
    daemon.role = MANAGER_ROLE
    phases = []
    for _ in range(2):
        daemon.boot()
        assert daemon.answers[daemon.unlock(b"wrong")] is not None
        phases.append(daemon.status.phase)
        assert isinstance(daemon.answers[daemon.unlock(b"key")], LogLost)
        phases.append(daemon.status.phase)
        assert isinstance(daemon.status.error, LogLost)
        daemon.kill()
    assert phases == [Phase.LOCKED, Phase.ERROR] * 2
    daemon.boot()
    daemon.unlock(b"key")
    assert daemon.answers[daemon.force_new_cluster()] is None
    assert ways(daemon)[-1] is events.OnLoss.ACCEPT
    assert daemon.status.manager_running


def test_who_was_not_told_yet_is_told_first(issuer: Issuer) -> None:
    daemon = booted(issuer, manager_disk(issuer))
    daemon.disk.damaged = True
    assert isinstance(daemon.answers[daemon.force_new_cluster()], LogLost)
    assert daemon.status.phase is Phase.ERROR
    assert daemon.disk.damaged
    assert daemon.answers[daemon.force_new_cluster()] is None
    assert ways(daemon) == [events.OnLoss.REFUSE, events.OnLoss.REFUSE, events.OnLoss.ACCEPT]
