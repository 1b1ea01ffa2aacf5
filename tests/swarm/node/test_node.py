"""What a Node machine hears of engine, session and user beside its procedures."""

from __future__ import annotations

from swarm import api
from swarm.agent.events import Connect, EngineBack, EngineGone, LocalManager
from swarm.errors import Unavailable
from swarm.node import events
from swarm.node.steps import Phase
from swarm.rpc import WORKER_ROLE
from tests.swarm.node.daemon import NODE, OTHERS, Daemon, Disk, Issuer, manager_disk, worker_disk

GONE = EngineGone("the engine is gone", certain=True)
OWN, REMOTE = Connect("", NODE, 1), Connect("10.0.0.2:2377", "node2", 1)


def engine_events(daemon: Daemon) -> list[EngineGone | EngineBack]:
    return [event for event in daemon.told if isinstance(event, EngineGone | EngineBack)]


def test_the_agent_is_told_of_the_engine_once_a_change(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    for event in (EngineBack(), GONE, GONE, EngineBack(), EngineBack(), GONE):
        daemon.put(event)
    assert engine_events(daemon) == [GONE, EngineBack(), GONE]


def test_an_agent_learns_at_its_start_that_the_engine_is_gone(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.hold = (events.StartAgent,)
    daemon.boot()
    daemon.put(GONE)
    daemon.perform_held()
    assert engine_events(daemon) == [EngineGone(GONE.error, certain=False)]
    assert daemon.told[0] == LocalManager(running=False)


def test_an_engine_that_was_gone_and_is_back_before_the_agent_starts_is_no_news(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.hold = (events.StartAgent,)
    daemon.boot()
    daemon.put(GONE)
    daemon.put(EngineBack())
    daemon.perform_held()
    assert engine_events(daemon) == []


def test_no_session_is_opened_without_an_engine_nor_to_a_manager_that_does_not_run(issuer: Issuer) -> None:
    worker = Daemon(issuer, worker_disk(issuer))
    worker.boot()
    assert worker.node.why_not_connect(REMOTE) is None
    assert isinstance(worker.node.why_not_connect(OWN), Unavailable)
    worker.put(GONE)
    assert str(worker.node.why_not_connect(REMOTE)) == GONE.error
    manager = Daemon(issuer, manager_disk(issuer))
    manager.boot()
    assert manager.node.why_not_connect(OWN) is None


def test_a_node_is_ready_from_the_first_session_until_its_roles_are_stopped(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.sessions = False
    daemon.boot()
    assert daemon.status.phase is Phase.PENDING
    assert not daemon.status.ready
    daemon.session()
    daemon.session("connection refused")
    assert daemon.status.ready
    daemon.leave()
    assert not daemon.status.ready
    daemon.session()
    assert not daemon.status.ready, "a session of an agent that ended"


def test_what_a_session_brought_for_a_node_that_left_is_dropped(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    daemon.leave()
    daemon.performed.clear()
    daemon.hear(WORKER_ROLE, root_pem=issuer.bundle_pem, rotate=True)
    daemon.advance(60.0)
    assert daemon.performed == []
    assert daemon.disk == Disk()


def test_the_status_names_the_managers_that_the_agent_knows(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.boot()
    assert daemon.status.managers == OTHERS
    more = ("node3", "10.0.0.3:2377")
    daemon.node.record.remotes.learn([more])
    status = daemon.status
    assert status.managers == (*OTHERS, more)


def test_a_node_in_no_swarm_has_nothing_to_do(issuer: Issuer) -> None:
    daemon = Daemon(issuer)
    daemon.boot()
    for event in (EngineBack(), GONE, EngineBack(), events.RenewCertificateNow(), None):
        daemon.put(event)
    assert daemon.node.deadline() is None
    assert daemon.names == []


def test_requests_wait_their_turn_and_each_is_answered(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.hold = (events.StartAgent, events.RemoveContainers)
    boot, first, second = daemon.boot(), daemon.leave(), daemon.leave()
    assert daemon.waiting == [boot, first, second]
    daemon.perform_held(events.StartAgent)
    assert daemon.waiting == [first, second]
    daemon.perform_held()
    assert daemon.answers[first] is None
    assert isinstance(daemon.answers[second], events.Refused)


def test_secrets_do_not_appear_in_what_is_logged_of_events(issuer: Issuer) -> None:
    state = worker_disk(issuer).state
    assert state is not None
    shown = repr(
        [
            events.Unlock(1, b"secret"),
            events.Join(1, state, "secret", api.NodeSpec.ACTIVE),
            events.RequestIdentity(1, (), "secret", api.NodeSpec.ACTIVE),
            events.OpenIdentity(1, b"secret"),
        ]
    )
    assert "secret" not in shown
