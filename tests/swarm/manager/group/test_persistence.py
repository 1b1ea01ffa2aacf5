"""A disk that fails: the same write is tried again, and users of this process are told why they wait."""

from __future__ import annotations

from swarm import defaults
from swarm.manager.events import FailLocalCalls, ManagerEffect, PersistFailed
from swarm.manager.group.persistence import Persistence
from swarm.raft.events import Persist

NOW = 1000.0
WRITE = Persist(7, None, ())


def test_a_write_that_failed_is_tried_again_until_it_succeeds() -> None:
    out: list[ManagerEffect] = []
    persistence = Persistence(out)
    assert persistence.deadline() is None
    persistence.failed(PersistFailed(WRITE, "disk full"), NOW)
    (told,) = out
    assert isinstance(told, FailLocalCalls)
    assert str(told.error) == (
        "the manager cannot write its log: disk full; this request may still take effect when it can"
    )
    assert persistence.trouble == "the manager cannot write its log: disk full"
    due = persistence.deadline()
    assert due == NOW + defaults.DISK_RETRY_S
    out.clear()
    persistence.wake(NOW)
    assert out == []
    persistence.wake(due)
    assert out == [WRITE]
    assert persistence.deadline() is None
    assert persistence.trouble, "until it is written"
    persistence.succeeded()
    assert not persistence.trouble
    assert persistence.failures == 1
