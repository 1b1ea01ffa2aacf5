"""What a stage still has to do: order, room, and objects whose handling fails."""

from __future__ import annotations

from random import Random

import pytest
import structlog.testing

from swarm import api, defaults
from swarm.manager.backlog import Backlog, Timers, earliest
from swarm.manager.stage import DUE_NOW
from swarm.store.store import Store
from swarm.store.tx import Tx


def make_tx(now: float = 1000.0) -> Tx:
    return Tx(Store(), now, Random(1))


def test_what_is_not_finished_comes_again_behind_the_others() -> None:
    backlog = Backlog("test")
    seen: list[str] = []

    def handle(tx: Tx, key: str) -> bool:
        seen.append(key)
        return key != "a" or len(seen) > 2

    for key in ("a", "b", "a"):
        backlog.mark(key)
    backlog.work(make_tx(), handle)
    assert backlog.deadline() == DUE_NOW
    backlog.work(make_tx(), handle)
    assert seen == ["a", "b", "a"]
    assert backlog.deadline() is None


def test_a_full_transaction_stops_the_work_except_for_what_it_holds_already() -> None:
    backlog = Backlog("test")
    seen: list[str] = []
    tx = make_tx()
    while tx.room():
        tx.create(api.Task(id=tx.new_id()))
    staged = tx.log[0][1]
    for key in ("other", staged):
        backlog.mark(key)

    def handle(tx: Tx, key: str) -> bool:
        seen.append(key)
        return True

    backlog.work(tx, handle)
    assert seen == []
    backlog.work(tx, handle, staged=api.Task)
    assert seen == [staged]
    assert "other" in backlog


def test_an_object_that_fails_is_put_aside_with_growing_pauses_and_stops_nobody() -> None:
    backlog = Backlog("test")
    done: list[str] = []

    def handle(tx: Tx, key: str) -> bool:
        tx.create(api.Task(id=key))
        if key == "bad":
            raise ValueError("poison")
        done.append(key)
        return True

    backlog.mark("bad")
    backlog.mark("good")
    tx = make_tx(1000.0)
    with structlog.testing.capture_logs() as logs:
        backlog.work(tx, handle)
        assert done == ["good"]
        assert tx.get(api.Task, "bad") is None
        assert backlog.deadline() == 1000.0 + defaults.STAGE_BACKOFF_BASE_S
        backlog.work(make_tx(1001.0), handle)
        assert backlog.deadline() == 1001.0 + 2 * defaults.STAGE_BACKOFF_BASE_S
    assert [entry["event"] for entry in logs] == ["stage.object_failed", "stage.object_failed"]


def test_a_timer_that_is_set_again_keeps_only_its_new_time() -> None:
    timers = Timers()
    timers.set("a", 5.0)
    timers.set("a", 3.0)
    timers.set("b", 4.0)
    assert timers.deadline() == 3.0
    assert timers.due(3.5) == ["a"]
    timers.cancel("b")
    assert timers.deadline() is None
    assert timers.due(9.0) == []
    assert earliest(None, 2.0, 1.0) == 1.0
    assert earliest(None) is None


def test_a_strict_backlog_raises_what_went_wrong() -> None:
    backlog = Backlog("test", strict=True)
    backlog.mark("bad")

    def handle(tx: Tx, key: str) -> bool:
        raise ValueError("poison")

    with pytest.raises(ValueError, match="poison"):
        backlog.work(make_tx(), handle)
