"""What POST /swarm/update does beyond stock: new keys for the networks."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from swarm import api
from swarm.api.extensions import NETWORK_KEYS, has_extension


def _keys(backend: Any) -> list[int]:
    cluster = next(backend.store.all(api.Cluster))
    return sorted(key.lamport_time for key in cluster.network_bootstrap_keys)


async def _update(client: Any, query: str = "") -> tuple[int, Any]:
    async with client.get("/swarm") as answer:
        shown = await answer.json()
    target = f"/swarm/update?version={shown['Version']['Index']}{query}"
    async with client.post(target, json=shown["Spec"]) as answer:
        return answer.status, await answer.json() if answer.status != 200 else None


async def test_the_keys_of_the_networks_change_when_asked_for(backend: Any, start: Any) -> None:
    client = await start(backend)
    assert await _update(client) == (200, None)
    assert _keys(backend) == []
    assert await _update(client, "&rotateNetworkKeys=true") == (200, None)
    first = _keys(backend)
    assert len(first) == 6
    assert await _update(client, "&rotateNetworkKeys=1") == (200, None)
    second = _keys(backend)
    assert (len(set(first) & set(second)), second[-2:]) == (4, [first[-1] + 1, first[-1] + 2])
    assert await _update(client, "&rotateNetworkKeys=false") == (200, None)
    assert _keys(backend) == second


async def test_a_flag_that_is_not_a_boolean_changes_nothing(backend: Any, start: Any) -> None:
    status, body = await _update(await start(backend), "&rotateNetworkKeys=please")
    assert status == 400
    assert "invalid value for rotateNetworkKeys" in body["message"]
    assert _keys(backend) == []


async def test_a_leader_that_does_not_know_the_mark_is_reported(
    backend: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = backend.call

    async def stock(method: str, request: Message) -> Message:
        if has_extension(request, NETWORK_KEYS):
            request.DiscardUnknownFields()  # what a stock engine does with them
        answer: Message = await call(method, request)
        return answer

    monkeypatch.setattr(backend, "call", stock)
    status, body = await _update(await start(backend), "&rotateNetworkKeys=true")
    assert status == 503
    assert "the network keys were not rotated" in body["message"]
    assert _keys(backend) == []
