"""The daemon ends: at any step of anything the disk is kept, and everybody who waits is answered."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import pytest

from swarm.node import events
from swarm.node.events import Refusal, Refused
from swarm.node.steps import Phase
from swarm.rpc import MANAGER_ROLE
from tests.swarm.node.daemon import Daemon, Disk, Issuer, manager_disk, worker_disk

STEPS_MAX = 20


def nothing(issuer: Issuer) -> Disk:
    return Disk()


def demoted(issuer: Issuer) -> Disk:
    disk = worker_disk(issuer)
    disk.log = manager_disk(issuer).log
    disk.state = manager_disk(issuer).state
    return disk


def locked(issuer: Issuer) -> Disk:
    return manager_disk(issuer, unlock_key=b"key")


def as_manager(daemon: Daemon) -> None:
    daemon.role = MANAGER_ROLE
    daemon.join()


PROCEDURES: dict[str, tuple[Callable[[Issuer], Disk], Callable[[Daemon], object]]] = {
    "boot in no swarm": (nothing, lambda daemon: None),
    "boot as a worker": (worker_disk, lambda daemon: None),
    "boot as a manager": (manager_disk, lambda daemon: None),
    "boot as a manager that was demoted": (demoted, lambda daemon: None),
    "init": (nothing, Daemon.init),
    "join as a worker": (nothing, Daemon.join),
    "join as a manager": (nothing, as_manager),
    "leave as a worker": (worker_disk, Daemon.leave),
    "leave as a manager": (manager_disk, Daemon.leave),
    "unlock": (locked, lambda daemon: daemon.unlock(b"key")),
    "force a new cluster": (manager_disk, Daemon.force_new_cluster),
}


@pytest.mark.parametrize("name", PROCEDURES)
def test_a_stop_at_any_step_keeps_the_disk_and_answers_everybody(issuer: Issuer, name: str) -> None:
    disk, begin = PROCEDURES[name]
    for step in range(STEPS_MAX):
        daemon = Daemon(issuer, disk(issuer))
        daemon.hold_after, daemon.ends_held = step, False
        daemon.boot()
        begin(daemon)
        begun, before = len(daemon.performed), copy(daemon.disk)
        ticket = daemon.stop()
        assert [type(effect) for effect in daemon.performed[begun:]] == [events.StopRoles]
        assert daemon.disk == before
        assert daemon.waiting == []
        assert daemon.answers[ticket] is None
        assert daemon.status.phase is Phase.STOPPED
        daemon.advance(1000.0)
        assert len(daemon.performed) == begun + 1, "a daemon that has stopped does nothing any more"


@pytest.mark.parametrize("request_", [Daemon.init, Daemon.join, Daemon.leave, Daemon.force_new_cluster])
def test_what_is_asked_while_roles_are_stopped_is_refused(issuer: Issuer, request_: Callable[[Daemon], int]) -> None:
    daemon = Daemon(issuer, manager_disk(issuer))
    daemon.boot()
    daemon.hold = (events.StopRoles,)
    daemon.stop()
    ticket = request_(daemon)
    daemon.perform_held()
    error = daemon.answers[ticket]
    assert isinstance(error, Refused)
    assert error.refusal is Refusal.STOPPING
    assert daemon.names[-1] == "StopRoles"
    assert daemon.disk == manager_disk(issuer)


def test_a_leave_that_was_to_end_a_join_has_failed_when_the_daemon_stops_first(issuer: Issuer) -> None:
    daemon = Daemon(issuer)
    daemon.boot()
    daemon.sessions = False
    join = daemon.join()
    daemon.hold, daemon.ends_held = (events.Erase, events.StopRoles), False
    leave = daemon.leave()
    stop = daemon.stop()
    daemon.perform_held()
    for ticket in (join, leave):
        error = daemon.answers[ticket]
        assert isinstance(error, Refused)
        assert error.refusal is Refusal.STOPPING
    assert daemon.answers[stop] is None
    assert daemon.disk.leaving, "the next start finishes it"
    assert daemon.count(events.Erase) == 0
    daemon.kill()
    daemon.boot()
    assert daemon.disk == Disk()


def test_who_asks_twice_for_the_end_is_answered_twice(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    daemon.hold = (events.StopRoles,)
    first, second = daemon.stop(), daemon.stop()
    assert daemon.waiting == [first, second]
    daemon.perform_held()
    assert daemon.answers[first] is None
    assert daemon.answers[second] is None
    assert daemon.count(events.StopRoles) == 1
