"""Messages that are encoded in pieces are those that would have been encoded at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import api
from swarm.api import encoding
from swarm.store.store import Store


@pytest.mark.parametrize("count", [0, 1, encoding.OBJECTS_PER_CHUNK, 2 * encoding.OBJECTS_PER_CHUNK + 1])
def test_a_large_field_in_pieces_is_the_whole_field(count: int) -> None:
    configs = [api.Config(id=str(number)) for number in range(count)]
    whole = api.StoreSnapshot(configs=configs)
    assert encoding.repeated(api.StoreSnapshot, "configs", configs) == whole.SerializeToString()


@given(st.integers(0, 1 << 21))
def test_a_message_in_another_is_that_message_whatever_its_length(length: int) -> None:
    whole = api.Snapshot(store=api.StoreSnapshot(configs=[api.Config(id="x" * length)]))
    assert encoding.embedded(api.Snapshot, "store", whole.store.SerializeToString()) == whole.SerializeToString()


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_are_protobufs(number: int) -> None:
    assert encoding.varint(number) == api.JoinResponse(raft_id=number).SerializeToString()[1:] or not number


def test_a_store_comes_back_from_its_encoding() -> None:
    store = Store()
    content = api.StoreSnapshot(nodes=[api.Node(id="n2"), api.Node(id="n1")], tasks=[api.Task(id="t1", slot=3)])
    store.restore(content, 7)
    again = Store()
    again.restore(api.StoreSnapshot.FromString(store.encode()), store.index)
    assert again.save() == store.save()
    assert [node.id for node in again.save().nodes] == ["n1", "n2"]
