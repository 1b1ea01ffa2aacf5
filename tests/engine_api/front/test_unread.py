"""What clients do not read: streams wait as long as they like, other answers do not, and all together are bounded."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engine_api.front.backends import READ_BUFFER_BYTES, WRITE_BUFFER_BYTES
from engine_api.front.crowd import Client as OfCrowd
from engine_api.front.crowd import Unread, make_room
from swarm import defaults
from tests.engine_api.front.test_front_limits import settled
from tests.engine_api.front_place import MIB, Client, Place

AN_HOUR_S = 3600.0


async def stuck(place: Place, path: str) -> Client:
    """A client that asks, and reads nothing."""
    client = await place.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def unread_bytes(place: Place) -> int:
    return sum(front.transport.get_write_buffer_size() for front in place.fronts)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine whose answer is a stream without end."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def rests(place: Place) -> None:
    """Until nothing moves any more."""
    before = -1
    while before != unread_bytes(place) or not before:
        before = unread_bytes(place)
        await asyncio.sleep(0.1)


async def test_a_stream_that_is_not_read_costs_little_and_is_never_cut(place: Place) -> None:
    place.script = endless
    client = await stuck(place, "/containers/a/logs?follow=1")
    await rests(place)
    assert unread_bytes(place) <= WRITE_BUFFER_BYTES + READ_BUFFER_BYTES
    now = asyncio.get_running_loop().time()
    for hours in range(48):
        place.backends.unread.sweep(cast(set[OfCrowd], place.fronts), now + hours * AN_HOUR_S)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert len(await client.reader.readexactly(8 * MIB)) == 8 * MIB


async def test_an_answer_of_ours_that_nobody_reads_is_given_up_after_a_while(place: Place) -> None:
    await stuck(place, "/swarm/large")
    await rests(place)
    now = asyncio.get_running_loop().time()
    fronts = cast(set[OfCrowd], place.fronts)
    place.backends.unread.sweep(fronts, now)
    place.backends.unread.sweep(fronts, now + defaults.API_UNREAD_ANSWER_S - 1)
    await asyncio.sleep(0)
    assert len(place.fronts) == 1
    place.backends.unread.sweep(fronts, now + defaults.API_UNREAD_ANSWER_S + 1)
    await settled(lambda: not place.fronts)


async def test_who_reads_slowly_is_not_given_up(place: Place) -> None:
    client = await stuck(place, "/swarm/large")
    await rests(place)
    now = asyncio.get_running_loop().time()
    for number in range(10):
        place.backends.unread.sweep(cast(set[OfCrowd], place.fronts), now + number * defaults.API_UNREAD_ANSWER_S)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.reader.readexactly(MIB // 2)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await rests(place)
    assert len(place.fronts) == 1


class Transport:
    """A client's transport with so much waiting in it."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.aborted = self.closing = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, name: str) -> Any:
        return None

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


class Slow:
    """A client of which only the crowd's view exists."""

    def __init__(self, waiting: int, patient: bool) -> None:
        self.transport = cast(asyncio.Transport, Transport(waiting))
        self.patient = patient
        self.idle_since = 0.0
        self.idle = False

    @property
    def aborted(self) -> bool:
        return cast(Transport, self.transport).aborted


def test_when_all_together_leave_too_much_unread_those_that_stopped_first_go() -> None:
    unread, part = Unread(), defaults.API_UNREAD_BYTES_MAX // 10
    clients = [Slow(part, patient=True) for _ in range(15)]
    for client in clients:
        unread.slow(client)
    assert [client.aborted for client in clients] == [True] * 5 + [False] * 10


def test_who_has_read_since_is_not_among_the_first_to_go() -> None:
    unread, part = Unread(), defaults.API_UNREAD_BYTES_MAX // 10
    clients = [Slow(part, patient=True) for _ in range(11)]
    for client in clients[:10]:
        unread.slow(client)
    unread.fast(clients[0])
    unread.slow(clients[0])
    unread.slow(clients[10])
    assert [number for number, client in enumerate(clients) if client.aborted] == [1]


def test_one_answer_alone_may_be_as_large_as_it_is() -> None:
    unread, client = Unread(), Slow(2 * defaults.API_UNREAD_BYTES_MAX, patient=False)
    unread.slow(client)
    assert not client.aborted


@pytest.mark.parametrize(
    ("patient", "limit_s"), [(True, defaults.API_UNREAD_REST_S), (False, defaults.API_UNREAD_ANSWER_S)]
)
def test_the_rest_of_a_stream_may_wait_longer_than_another_answer(patient: bool, limit_s: float) -> None:
    unread, client = Unread(), Slow(1000, patient)
    cast(Transport, client.transport).closing = True
    for now in (0.0, limit_s):
        unread.sweep([client], now)
    assert not client.aborted
    unread.sweep([client], limit_s + 1)
    assert client.aborted


def test_a_client_that_is_idle_but_has_not_read_its_last_answer_makes_room_at_once() -> None:
    old, new = Slow(1000, patient=False), Slow(0, patient=False)
    old.idle = True
    assert make_room({old, new}, new)
    assert old.aborted
