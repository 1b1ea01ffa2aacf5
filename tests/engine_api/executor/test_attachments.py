"""Addresses of plain containers: asked for, kept for a restart, given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.message import Message

from engine_api.executor.attachments import AttachError, Attachments
from swarm import api
from swarm.errors import NotFound, SwarmError, Unavailable


class Managers:
    """Managers with one network: each attachment gets the next address, and the node is told a moment later."""

    def __init__(self) -> None:
        self.attachments: Attachments | None = None
        self.given: dict[str, str] = {}
        self.error: SwarmError | None = None
        self.full = False
        self._told: set[asyncio.Task[None]] = set()
        self._next = 2

    async def call(self, method: Any, request: Message) -> Any:
        """Managers.call."""
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if isinstance(request, api.DetachNetworkRequest):
            if self.given.pop(request.attachment_id, None) is None:
                raise NotFound("not found")
            return api.DetachNetworkResponse()
        assert isinstance(request, api.AttachNetworkRequest)
        wanted = next(iter(request.config.addresses), f"10.0.1.{self._next}")
        task_id = f"t{self._next}"
        self._next += 1
        self.given[task_id] = wanted
        if not self.full:
            self.tell(task_id)
        return api.AttachNetworkResponse(attachment_id=task_id)

    def tell(self, task_id: str, in_use: bool = False) -> None:
        """The node hears of its attachment."""
        assert self.attachments is not None
        task = api.Task(id=task_id)
        network = task.networks.add(addresses=[f"{self.given[task_id]}/24"]).network
        network.id, network.spec.annotations.name = "net", "front"
        told = asyncio.create_task(self.attachments.assigned(task, in_use))
        self._told.add(told)
        told.add_done_callback(self._told.discard)


@pytest.fixture
async def managers() -> AsyncIterator[Managers]:
    made = Managers()
    made.attachments = Attachments(lambda: made)
    yield made
    await made.attachments.close()


def of(managers: Managers) -> Attachments:
    assert managers.attachments is not None
    return managers.attachments


def later() -> float:
    return asyncio.get_running_loop().time() + 1.0


async def test_containers_that_start_at_once_get_an_address_each(managers: Managers) -> None:
    found = await asyncio.gather(*(of(managers).request("net") for _ in range(20)))
    assert len(set(found)) == 20
    assert set(found) == set(managers.given.values())


async def test_a_container_that_restarts_gets_its_address_again_without_any_manager(managers: Managers) -> None:
    address = await of(managers).request("net")
    of(managers).release("net", address)
    managers.error = Unavailable("no connection to a manager")
    assert await of(managers).request("net") == address


async def test_an_address_that_was_asked_for_is_the_only_one_that_will_do(managers: Managers) -> None:
    address = await of(managers).request("net")
    of(managers).release("net", address)
    assert await of(managers).request("net", "10.0.1.77") == "10.0.1.77"
    assert await of(managers).request("net", address) == address
    assert len(managers.given) == 2


async def test_what_no_container_uses_goes_back(managers: Managers) -> None:
    used, left = await of(managers).request("net"), await of(managers).request("net")
    of(managers).release("net", left)
    await of(managers).give_back(later() - 10)
    assert sorted(managers.given.values()) == sorted([used, left])  # it has not been idle for long
    await of(managers).give_back(later())
    assert list(managers.given.values()) == [used]


async def test_what_can_not_be_given_back_now_is_given_back_later(managers: Managers) -> None:
    of(managers).release("net", await of(managers).request("net"))
    managers.error = Unavailable("no connection to a manager")
    await of(managers).give_back(later())
    assert managers.given
    managers.error = None
    await of(managers).give_back(later())
    assert not managers.given


async def test_after_a_restart_only_what_containers_use_is_kept(managers: Managers) -> None:
    managers.given = {"t1": "10.0.1.2", "t2": "10.0.1.3"}
    for task_id in ("t1", "t2", "t1"):
        managers.tell(task_id, in_use=task_id == "t2")
    await asyncio.sleep(0.01)
    assert await of(managers).request("net") == "10.0.1.2"  # never one that a container has
    of(managers).release("net", "10.0.1.2")
    await of(managers).give_back(later())
    assert managers.given == {"t2": "10.0.1.3"}


async def test_a_refusal_of_the_managers_is_what_the_user_reads(managers: Managers) -> None:
    managers.error = SwarmError("network net not manually attachable")
    with pytest.raises(AttachError, match=r"^network net not manually attachable$"):
        await of(managers).request("net")


async def test_an_attachment_that_the_managers_took_back_is_not_used_again(managers: Managers) -> None:
    address = await of(managers).request("net")
    of(managers).release("net", address)
    [task_id] = managers.given
    of(managers).gone(task_id)
    assert await of(managers).request("net") != address


async def test_an_address_that_was_reserved_is_the_next_containers(managers: Managers) -> None:
    assert await of(managers).reserve("front") == "front"
    [address] = managers.given.values()
    assert await of(managers).request("net") == address
    managers.error = SwarmError("network nosuch not found")
    with pytest.raises(SwarmError, match="network nosuch not found"):
        await of(managers).reserve("nosuch")


async def test_an_attachment_that_nobody_waits_for_any_more_goes_back(managers: Managers) -> None:
    managers.full = True
    for waiting in (of(managers).request("net"), of(managers).reserve("front")):
        asked = asyncio.create_task(waiting)
        await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    assert len(managers.given) == 2
    await of(managers).give_back(later() - 100)
    assert managers.given == {}
