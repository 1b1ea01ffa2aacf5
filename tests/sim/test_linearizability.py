"""The checker itself: it must be able to fail, and it must not fail for nothing."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.checkers import Checkers
from tests.sim.history import History
from tests.sim.kernel import Kernel
from tests.sim.linearizability import ABSENT, NEVER, Kind, Operation, State, after, explain
from tests.sim.lists import Life, Look, contradiction

CREATED = Operation(Kind.CREATE, 0.0, 1.0, version=5)


def read(called: float, answered: float, version: int) -> Operation:
    return Operation(Kind.READ, called, answered, version)


def update(called: float, answered: float, base: int, version: int = ABSENT) -> Operation:
    return Operation(Kind.UPDATE, called, answered, version, base)


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([update(2, 3, 5, 7), read(4, 5, 5)], id="an old version after an acknowledged update"),
        pytest.param([update(2, 9, 5, 7), read(3, 4, 7), read(5, 6, 5)], id="new, then old again"),
        pytest.param([update(2, 4, 5, 7), update(3, 5, 5, 8)], id="two updates of one version"),
        pytest.param([read(2, 3, 6)], id="a version that nobody made"),
        pytest.param([read(2, 3, ABSENT)], id="a lost object"),
        pytest.param([Operation(Kind.REMOVE, 2, 3), read(4, 5, 5)], id="read after its removal"),
        pytest.param([Operation(Kind.REMOVE, 2, 3, refused=True)], id="a removal that does not find it"),
        pytest.param([Operation(Kind.UPDATE, 2, 3, base=5, refused=True)], id="refused though the version was right"),
        pytest.param([update(6, NEVER, 5), read(2, 3, 7)], id="an update that is seen before it was called"),
        pytest.param([update(2, NEVER, 5), read(4, 5, 7), read(6, 7, 5)], id="an unanswered update that is undone"),
        pytest.param([update(2, NEVER, 5), read(4, 5, 7), read(6, 7, 8)], id="an unanswered update with two versions"),
        pytest.param([Operation(Kind.CREATE, 2, 3, version=9)], id="made twice"),
    ],
)
def test_what_no_order_explains_is_found(operations: list[Operation]) -> None:
    assert explain([CREATED, *operations]) is None


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([update(2, 9, 5, 7), read(3, 4, 5), read(5, 6, 7)], id="old, then new, during an update"),
        pytest.param([update(2, NEVER, 5), read(4, 5, 5), read(6, 7, 7)], id="an unanswered update happens late"),
        pytest.param([update(2, NEVER, 5), read(4, 500, 5)], id="an unanswered update never happens"),
        pytest.param([Operation(Kind.REMOVE, 2, NEVER), read(3, 4, 5), read(5, 6, ABSENT)], id="a late removal"),
        pytest.param([update(2, 4, 5, 7), Operation(Kind.UPDATE, 3, 5, base=5, refused=True)], id="one of two wins"),
        pytest.param([update(2, NEVER, 5), update(3, NEVER, 7), read(9, 10, 8)], id="two unanswered in a row"),
    ],
)
def test_what_an_order_explains_passes(operations: list[Operation]) -> None:
    assert explain([CREATED, *operations]) is not None


@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_what_a_true_register_answers_always_passes_and_a_stale_answer_does_not(
    seed: int, count: int, stale: bool
) -> None:
    """Operations of a register that obeys, each at a moment of its own inside its call; then one read is falsified."""
    rng, state, version, out = Random(seed), State(), 5, []
    for moment in range(count):
        called, answered = moment - 3 * rng.random(), moment + 3 * rng.random()
        version += 1
        kind = rng.choice((Kind.READ, Kind.READ, Kind.UPDATE)) if state.version else Kind.CREATE
        operation = Operation(kind, called, answered, state.version if kind is Kind.READ else version, state.version)
        following = after(state, operation)
        assert following is not None
        state = following
        out.append(operation)
    if stale:
        version += 1
        out += [update(100.0, 101.0, state.version, version), read(102.0, 103.0, state.version)]
    assert (explain(out) is None) == stale


# --- objects that the cluster changes itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operations", "right"),
    [
        pytest.param([read(2, 3, 9), read(4, 5, 12)], True, id="it moves on by itself"),
        pytest.param([read(2, 3, 9), read(4, 5, 7)], False, id="it never goes back"),
        pytest.param([update(2, 3, 7, 9), read(4, 5, 7)], False, id="an old version after an acknowledged update"),
        pytest.param([update(2, 3, 7, 9), update(4, 5, 8, 10)], False, id="an update of a version that is past"),
        pytest.param([Operation(Kind.UPDATE, 2, 3, base=5, refused=True)], True, id="it had moved on"),
        pytest.param([read(2, 3, ABSENT)], False, id="it does not vanish"),
        pytest.param([Operation(Kind.REMOVE, 2, 3), read(4, 5, 9)], False, id="it does not come back"),
    ],
)
def test_a_service_moves_on_by_itself_and_never_back(operations: list[Operation], right: bool) -> None:
    assert (explain([CREATED, *operations], drifts=True) is not None) is right


def test_a_search_that_takes_too_long_says_nothing() -> None:
    open_updates = [update(2 + i / 100, NEVER, 5 + i) for i in range(24)]
    assert explain([CREATED, *open_updates, read(50, 51, 4)]) == []


# --- lists -----------------------------------------------------------------------------------------------------------

LIVES = {"a": Life((0.0, 1.0), removal_called=30.0), "b": Life((10.0, 11.0))}


@pytest.mark.parametrize(
    ("one", "other", "right"),
    [
        pytest.param(Look(2, 3, {"a": 5}), Look(4, 5, {"a": 7}), True, id="one is older"),
        pytest.param(Look(12, 14, {"a": 5, "b": 6}), Look(12, 14, {"a": 7, "b": 9}), True, id="both older"),
        pytest.param(Look(12, 14, {"a": 5, "b": 9}), Look(12, 14, {"a": 7, "b": 6}), False, id="torn"),
        pytest.param(Look(9, 14, {"a": 7}), Look(9, 14, {"a": 5, "b": 6}), False, id="newer, but not made yet"),
        pytest.param(Look(31, 32, {"b": 6}), Look(29, 33, {"a": 5, "b": 8}), False, id="gone, but an older other"),
        pytest.param(Look(31, 32, {"b": 8}), Look(29, 33, {"a": 5, "b": 6}), True, id="gone"),
    ],
)
def test_of_two_lists_one_is_older_in_everything(one: Look, other: Look, right: bool) -> None:
    for looks in ([one, other], [other, one]):
        assert (not contradiction(looks, LIVES)) is right


@pytest.mark.parametrize("kind", ["config", "secret", "service"])
@pytest.mark.parametrize("stale", [False, True])
def test_a_list_that_a_deposed_leader_answers_from_an_old_store_is_found(kind: str, stale: bool) -> None:
    checkers = Checkers(Kernel(1))
    checkers.applied_ops |= {"op1": 1, "op2": 2}
    history = History(checkers)
    known = history.created(kind, "a", "a", 5, "op1")
    known.note(Kind.CREATE, 0.0, 1.0, version=5)
    history.updated(known, 5, 9, "op2")
    known.note(Kind.UPDATE, 2.0, 3.0, base=5, version=9)
    history.looked(kind, Look(4.0, 5.0, {"a": 5 if stale else 9}))
    if stale:
        with pytest.raises(AssertionError, match="no order explains what clients saw of a"):
            history.check()
    else:
        history.check()
