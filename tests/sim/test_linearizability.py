"""The checker itself: it must be able to fail, and it must not fail for nothing."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.linearizability import ABSENT, NEVER, Kind, Operation, State, after, explain

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
