"""What a node keeps of itself on disk."""

from __future__ import annotations

import pytest

from swarm.node.state import NodeState, StateDamaged

STATE = NodeState("n1", "c1", "0.0.0.0", 2377, "10.0.0.1", 2377, "", managers=(("n1", "a:1"), ("n2", "b:1")), raft_id=7)
OTHERS = (("n3", "c:1"),)


def test_what_is_written_is_read_again() -> None:
    state = STATE.without_log(7, OTHERS)
    assert NodeState.from_json(state.to_json()) == state
    assert NodeState.from_json(STATE.to_json()) == STATE


def test_a_log_that_is_given_up_is_remembered() -> None:
    state = STATE.without_log(7, OTHERS)
    assert (state.raft_id, state.past_raft_ids, state.managers) == (0, (7,), OTHERS)
    assert state.without_log(8, ()).past_raft_ids == (7, 8)
    assert state.without_log(8, ()).managers == OTHERS, "whoever was known last is better than nobody"


def test_a_node_does_not_count_itself_among_the_others() -> None:
    assert STATE.other_managers() == ["b:1"]


def test_a_file_of_an_earlier_version_tells_of_no_past() -> None:
    text = STATE.to_json().replace(' "past_raft_ids": []\n', ' "data_path_port": 0\n')
    assert NodeState.from_json(text).past_raft_ids == ()
    with pytest.raises(StateDamaged):
        NodeState.from_json('{"version": 1}')


@pytest.mark.parametrize(
    ("written", "damaged"),
    [
        ('"listen_port": 2377', '"listen_port": "2377"'),
        ('"node_id": "n1"', '"node_id": 1'),
        ('"b:1"', "null"),
        ('"past_raft_ids": []', '"past_raft_ids": [1e999]'),
        ('"past_raft_ids": []', '"past_raft_ids": ' + "[" * 100_000),
    ],
)
def test_a_damaged_file_is_named_as_that(written: str, damaged: str) -> None:
    text = STATE.to_json()
    assert written in text
    with pytest.raises(StateDamaged):
        NodeState.from_json(text.replace(written, damaged))
