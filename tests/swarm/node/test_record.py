"""state.json follows what is known, whatever the disk says."""

from __future__ import annotations

from swarm import api, defaults
from swarm.agent.events import SessionUpdate
from swarm.node import events
from swarm.rpc import MANAGER_ROLE
from tests.swarm.node.daemon import NODE, OTHERS, Daemon, Issuer, worker_disk

FULL = OSError("no space left on device")
MORE = (*OTHERS, ("node3", "10.0.0.3:2377"))


def tell(daemon: Daemon, managers: tuple[tuple[str, str], ...]) -> None:
    daemon.put(SessionUpdate("session", api.Node(id=NODE), managers, b"", ()))


def managers(daemon: Daemon) -> tuple[tuple[str, str], ...]:
    assert daemon.disk.state is not None
    return daemon.disk.state.managers


def test_what_is_news_is_written_and_nothing_else(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    tell(daemon, OTHERS)
    tell(daemon, ())
    assert daemon.count(events.SaveState) == 0
    tell(daemon, MORE)
    assert managers(daemon) == MORE
    assert daemon.count(events.SaveState) == 1


def test_a_write_that_fails_is_repeated_until_it_succeeds(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    daemon.fail[events.SaveState] = [FULL] * 3
    tell(daemon, MORE)
    for attempts in (1, 2, 3):
        daemon.advance(defaults.DISK_RETRY_S - 0.01)
        assert daemon.count(events.SaveState) == attempts
        assert managers(daemon) == OTHERS
        daemon.advance(0.01)
    assert managers(daemon) == MORE
    daemon.advance(10.0)
    assert daemon.count(events.SaveState) == 4


def test_after_a_write_that_failed_the_file_is_written_even_if_it_should_be_as_before(issuer: Issuer) -> None:
    """An error does not tell which content is there."""
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    daemon.fail[events.SaveState] = [FULL]
    tell(daemon, MORE)
    tell(daemon, OTHERS)  # as before
    daemon.advance(10 * defaults.DISK_RETRY_S)
    assert managers(daemon) == OTHERS
    assert daemon.count(events.SaveState) == 2


def test_what_comes_during_a_write_is_written_after_it(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    daemon.hold = (events.SaveState,)
    tell(daemon, MORE)
    tell(daemon, MORE[1:])
    assert daemon.count(events.SaveState) == 1
    daemon.perform_held()
    assert managers(daemon) == MORE[1:]
    assert daemon.count(events.SaveState) == 2


def test_the_end_of_a_write_from_before_a_leave_that_failed_does_not_count_for_the_next(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    daemon.role = MANAGER_ROLE
    daemon.hold = (events.StartManager, events.SaveState, events.DropState)
    daemon.hear(MANAGER_ROLE)
    daemon.advance(1.0)
    tell(daemon, MORE)
    daemon.leave(force=True)
    daemon.perform_held(events.StartManager)
    daemon.fail = {events.DropState: [FULL], events.SaveState: [None, FULL]}
    daemon.perform_held(events.DropState)
    assert [type(effect) for effect in daemon.held] == [events.SaveState] * 2
    daemon.perform_held()
    daemon.advance(defaults.DISK_RETRY_S)
    assert daemon.disk.state is not None
    assert daemon.disk.state.raft_id == daemon.disk.log != 0
