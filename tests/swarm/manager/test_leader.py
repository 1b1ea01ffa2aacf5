"""What a pass wants done outside the store is done when the pass is committed, and not at all if it is not."""

from __future__ import annotations

from random import Random

import pytest

from swarm import api
from swarm.errors import NotFound, Unavailable
from swarm.manager.leader import Leader
from swarm.manager.service import RemoveMember, Write
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


def test_a_pass_that_changes_nothing_has_its_effects_at_once() -> None:
    made = leader()
    made.submit(Write(only_removes))
    assert made.next_pass(NOW) == (None, [GOES])


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
    assert made.next_pass(NOW) == (None, [])


def test_what_is_undone_to_a_savepoint_has_no_effects_and_what_came_before_has() -> None:
    tx = Tx(Store(), NOW, Random(1))
    tx.after_commit(GOES)
    with pytest.raises(NotFound), tx.savepoint():
        fails(tx)
    assert tx.effects == [GOES]
