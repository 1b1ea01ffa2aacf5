"""What a pass wants done outside the store is done when the pass is committed, and not at all if it is not."""

from __future__ import annotations

from random import Random

import pytest

from swarm import api
from swarm.errors import NotFound, NotTaken, Unavailable
from swarm.manager.leader import Leader
from swarm.manager.service import RemoveMember, Write
from swarm.rpc import StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx

NOW = 1000.0
GOES = RemoveMember("n2")


def leader() -> Leader:
    return Leader(Store(), (), Random(1), NOW, strict=True)


def changes_and_removes(tx: Tx) -> None:
    tx.create(api.Config(id="c"))
    tx.after_commit(GOES)


def only_removes(tx: Tx) -> None:
    tx.after_commit(GOES)


def fails(tx: Tx) -> None:
    changes_and_removes(tx)
    raise NotFound("nothing there")


def test_a_member_is_removed_when_the_pass_that_asks_for_it_is_committed() -> None:
    made = leader()
    made.submit(Write(changes_and_removes))
    entry, effects = made.next_pass(NOW)
    assert entry is not None
    assert effects == []
    assert made.committed() == [GOES]
    assert made.committed() == []


def test_a_write_that_changes_nothing_is_answered_when_it_is_confirmed_who_leads() -> None:
    made = leader()
    made.submit(Write(only_removes))
    made.submit(Write(fails, stream=7))
    assert made.next_pass(NOW) == (b"", [])
    assert made.in_flight
    (end, goes) = made.committed()
    assert isinstance(end, StreamEnd)
    assert (end.stream, str(end.error), goes) == (7, "nothing there", GOES)


def test_a_write_that_changes_nothing_goes_to_the_next_leader_when_this_one_is_deposed() -> None:
    made = leader()
    made.submit(Write(fails, stream=7))
    made.next_pass(NOW)
    (end,) = made.stop()
    assert isinstance(end, StreamEnd)
    assert isinstance(end.error, NotTaken)


@pytest.mark.parametrize("end", ["refused", "stopped"])
def test_a_pass_that_the_log_does_not_take_has_no_effects(end: str) -> None:
    made = leader()
    made.submit(Write(changes_and_removes))
    made.next_pass(NOW)
    assert (made.refused(Unavailable("no")) if end == "refused" else made.stop()) == []
    assert made.committed() == []


def test_a_write_that_fails_has_no_effects() -> None:
    made = leader()
    made.submit(Write(fails))
    assert made.next_pass(NOW) == (b"", [])
    assert made.committed() == []


def test_what_is_undone_to_a_savepoint_has_no_effects_and_what_came_before_has() -> None:
    tx = Tx(Store(), NOW, Random(1))
    tx.after_commit(GOES)
    with pytest.raises(NotFound), tx.savepoint():
        fails(tx)
    assert tx.effects == [GOES]
