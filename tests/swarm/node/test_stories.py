"""Generated stories: everything that a Node machine can hear, failures and kills, in any order.

What no effect may do is checked by tests/swarm/node/daemon.py after each step: one manager at a time, and none without
a manager's certificate; no log is forgotten that state.json names; state.json is not written after a leave; requests
are answered once; nothing is due at once again. In the end nothing fails any more, and the node must come to rest.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.files import Unsettled
from swarm.agent.events import EngineBack, EngineGone
from swarm.errors import JoinUndecided, PermissionDenied, Unavailable
from swarm.node import events
from swarm.node.steps import Phase
from swarm.raft.events import LogLost
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE
from tests.swarm.node.daemon import Daemon, Disk, Issuer

REST_S = 120.0
KEY = b"key"
GONE = EngineGone("Cannot connect to the Docker daemon", certain=True)
LATE: tuple[type[events.Effect], ...] = (
    events.ForgetLog,
    events.Erase,
    events.MakeIdentity,
    events.RequestIdentity,
    events.OpenIdentity,
    events.RenewCertificate,
    events.StartManager,
    events.StopManager,
    events.AwaitLeadership,
    events.WriteFirstObjects,
    events.StartAgent,
    events.Describe,
    events.StopRoles,
    events.RemoveContainers,
)
FAILING = (*LATE, events.SaveState, events.DropState, events.SaveRoot)
Step = Callable[[Daemon], object]


def _boot(daemon: Daemon) -> None:
    if daemon.status.phase is Phase.STOPPED and not daemon.waiting:
        daemon.kill()
    if not daemon.alive:
        daemon.boot()


def _kill(daemon: Daemon) -> None:
    daemon.kill()
    daemon.boot()


def _lock(daemon: Daemon) -> None:
    """The cluster is autolocked by now, so that the next start finds an encrypted key."""
    if daemon.disk.certificate_pem and daemon.status.phase is Phase.PENDING:
        daemon.disk.unlock_key = KEY


def _lose_manager(removed: bool, error: Exception | None) -> Step:
    return lambda daemon: daemon.lose_manager(removed, error) if daemon.manager else None


def _set_role(role: str) -> Step:
    return lambda daemon: setattr(daemon, "role", role)


def _hear(role: str, wanted: str, root: bool, rotate: bool) -> Step:
    return lambda daemon: daemon.hear(role, wanted, daemon.issuer.bundle_pem if root else b"", rotate)


def _hold(kind: type[events.Effect]) -> Step:
    return lambda daemon: setattr(daemon, "hold", (*daemon.hold, kind))


def _fail(kind: type[events.Effect], errors: list[Exception | None]) -> Step:
    return lambda daemon: daemon.fail.setdefault(kind, []).extend(errors)


def _kill_after(steps: int) -> Step:
    return lambda daemon: setattr(daemon, "kill_after", len(daemon.performed) + steps)


ROLES = st.sampled_from([MANAGER_ROLE, WORKER_ROLE])
UNSETTLED = Unsettled(5, "Input/output error")
FAILURES = (
    *(None, OSError("no space left"), UNSETTLED),
    *(Unavailable("not now"), PermissionDenied("never"), JoinUndecided("perhaps")),
)
ERRORS = st.sampled_from(FAILURES)
FIXED: tuple[Step, ...] = (
    Daemon.init,
    Daemon.join,
    lambda daemon: daemon.leave(force=True),
    lambda daemon: daemon.leave(force=False),
    lambda daemon: daemon.unlock(KEY),
    lambda daemon: daemon.unlock(b"wrong"),
    Daemon.force_new_cluster,
    Daemon.stop,
    _boot,
    _kill,
    _lock,
    lambda daemon: daemon.session(),
    lambda daemon: daemon.session("x509: certificate has expired"),
    lambda daemon: daemon.put(GONE),
    lambda daemon: daemon.put(EngineBack()),
    lambda daemon: daemon.put(events.RenewCertificateNow()),
    Daemon.perform_held,
)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.sampled_from(FIXED),
    st.sampled_from([0.01, 0.5, 1.0, 5.0, 21.0]).map(lambda s: lambda daemon: daemon.advance(s)),
    st.builds(_lose_manager, st.booleans(), st.sampled_from([None, OSError("disk")])),
    st.builds(_set_role, ROLES),
    st.builds(_hear, ROLES, ROLES, st.booleans(), st.booleans()),
    st.builds(_hold, st.sampled_from(LATE)),
    st.builds(_fail, st.sampled_from(FAILING), st.lists(ERRORS, min_size=1, max_size=3)),
    st.builds(_kill_after, st.integers(1, 6)),
)


@pytest.mark.timeout(300)  # who searches looks at more of them
@given(st.sampled_from([Daemon.init, Daemon.join]), ROLES, st.lists(STEPS, max_size=25))
def test_whatever_happens_no_rule_is_broken_and_the_node_comes_to_rest(
    issuer: Issuer, first: Step, role: str, steps: list[Step]
) -> None:
    daemon = Daemon(issuer)
    daemon.boot()
    daemon.role = role
    for step in (first, *steps):
        if daemon.alive or step is _boot:
            step(daemon)
        else:
            _boot(daemon)
    come_to_rest(daemon)


def come_to_rest(daemon: Daemon) -> None:
    daemon.fail.clear()
    daemon.kill_after = -1
    daemon.sessions = True
    _boot(daemon)
    daemon.perform_held()
    daemon.perform_held()
    daemon.put(EngineBack())
    daemon.advance(REST_S)
    if daemon.status.phase is Phase.ERROR:  # whatever failed does not fail any more
        _kill(daemon)
        daemon.advance(REST_S)
    status, disk = daemon.status, daemon.disk
    assert daemon.waiting == []
    assert status.phase is not Phase.INACTIVE or not daemon.acknowledged or daemon.left, "a member stays one"
    assert daemon.held == []
    match status.phase:
        case Phase.INACTIVE:
            assert disk == Disk()
        case Phase.PENDING:
            assert status.ready
            assert status.state == disk.state
            assert not disk.leaving
            assert status.state is not None
            assert status.state.pending is None
            assert status.manager_running == bool(daemon.manager)
            assert daemon.agent
            if status.role == WORKER_ROLE:
                assert disk.log == 0
                assert not daemon.manager
        case Phase.LOCKED:
            assert disk.unlock_key == KEY
            assert not daemon.agent
            assert not daemon.manager
        case Phase.ERROR | Phase.STOPPED:
            assert isinstance(status.error, LogLost), "nothing else cannot be mended"
            assert not daemon.agent
            assert not daemon.manager
