"""Clients that take their time or their share of memory: what is cut, and what never is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from swarm import defaults
from tests.engine_api.front_place import MIB, OK, Client, Place

SOON_S = 0.02


async def settled(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is so that no event tells of."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


async def refusal(client: Client, status: int) -> str:
    """The text of the front's own answer, after which it closes."""
    answer = await client.answer()
    assert answer[0] == status, answer
    assert await client.is_closed()
    text: str = json.loads(answer[1])["message"]
    return text


async def test_who_connects_and_says_nothing_is_cut_off_and_who_has_asked_may_be_idle(place: Place) -> None:
    idle = await place.client()
    assert await idle.ask("GET /_ping HTTP/1.1") == (200, b"pong")
    (front,) = place.fronts
    assert front._timer is None  # nothing is going to end it
    place.backends = replace(place.backends, silence_s=SOON_S)
    silent = await place.client()
    assert await silent.is_closed()
    assert await idle.ask("GET /_ping HTTP/1.1") == (200, b"pong")


async def test_a_head_that_comes_drop_by_drop_is_given_up(place: Place) -> None:
    place.backends = replace(place.backends, head_read_s=SOON_S)
    client = await place.client()

    async def drip() -> None:
        client.send(b"GET /swarm HTTP/1.1\r\n")
        while not client.writer.is_closing():
            client.send(b"A: b\r\n")
            await asyncio.sleep(SOON_S / 10)

    dripping = asyncio.create_task(drip())
    assert await refusal(client, 408) == "the head of the request did not arrive in time"
    dripping.cancel()


async def test_a_body_for_us_that_comes_drop_by_drop_is_given_up(place: Place) -> None:
    place.backends = replace(place.backends, body_read_s=SOON_S)
    for framing in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
        client = await place.client()
        client.send(f"POST /swarm HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n1".encode())
        assert await refusal(client, 408) == "the body of the request did not arrive in time"
    client = await place.client()
    assert (await client.ask("POST /swarm HTTP/1.1", "Host: x", "Content-Length: 3", body=b"abc"))[1] == b"abc"


async def test_a_body_for_the_engine_takes_as_long_as_it_likes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.backends = replace(place.backends, head_read_s=SOON_S, body_read_s=SOON_S)
    monkeypatch.setattr(defaults, "API_UNFINISHED_BYTES_MAX", 1000)
    came = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(5000)
        came.set()
        await reader.readexactly(5000)
        writer.write(OK)
        await writer.drain()

    place.script = engine
    builder = await place.client()
    builder.send(b"POST /build HTTP/1.1\r\nContent-Length: 10000\r\n\r\n" + b"x" * 5000)
    await came.wait()
    late = await place.client()  # the time of all limits goes by
    late.send(b"GET /swarm HT")
    await refusal(late, 408)
    builder.send(b"x" * 5000)
    assert await builder.answer() == (200, b"hi")


async def test_streams_of_ours_and_of_the_engine_last(place: Place) -> None:
    go_on = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello")
        await go_on.wait()
        writer.write(await reader.read(100))
        await writer.drain()

    place.script = engine
    attached, events, odd = await place.client(), await place.client(), await place.client()
    attached.send(b"POST /containers/a/attach HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
    assert b" 101 " in await attached.head()
    for client, more in ((events, b""), (odd, b"Content-Length: 5\r\n")):  # one never sends its body
        client.send(b"GET /events HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
        await client.head()
        await client.reader.readuntil(b"begin")
    (limited,) = [front for front in place.fronts if front._timer is not None]
    limited._body_late()  # its time is over
    assert not place.stream_ended.is_set()
    attached.send(b"still here")
    go_on.set()
    assert await attached.reader.read() == b"hello" + b"still here"
    assert limited in place.fronts


@pytest.mark.parametrize(
    "start", [b"GET /a HTTP/1.1\r\nA: ", b"POST /swarm HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"]
)
async def test_what_all_clients_leave_unfinished_is_limited(
    place: Place, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(defaults, "API_UNFINISHED_BYTES_MAX", 2 * MIB)
    load = place.backends.load
    clients = []
    for number in range(1, 5):
        client = await place.client()
        client.send(start + b"x" * (MIB // 2 - len(start)))
        await settled(lambda so_far=number * MIB // 2: load.unfinished_bytes >= so_far)  # type: ignore[misc]
        clients.append(client)
    one_more = await place.client()
    one_more.send(start)
    assert await refusal(one_more, 503) == "too many large requests at the same time"
    for client in clients:
        client.writer.transport.abort()
    await settled(lambda: not place.fronts)
    assert load.unfinished_bytes == 0
    client = await place.client()
    body = b"x" * MIB
    assert await client.ask("POST /swarm HTTP/1.1", "Host: x", f"Content-Length: {MIB}", body=body) == (200, body)
    assert load.unfinished_bytes == 0


async def test_a_new_connection_takes_the_place_of_the_one_that_is_idle_for_longest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "API_CONNECTIONS_MAX", 4)
    events, first, second, third = [await place.client() for _ in range(4)]
    events.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    await events.reader.readuntil(b"begin")
    for client in (second, third, first):
        assert await client.ask("GET /_ping HTTP/1.1") == (200, b"pong")
    new = await place.client()
    assert await new.ask("GET /_ping HTTP/1.1") == (200, b"pong")
    assert await second.is_closed()
    for client in (third, first, new):
        assert await client.ask("GET /_ping HTTP/1.1") == (200, b"pong")
    assert not place.stream_ended.is_set()


async def test_when_all_connections_are_busy_a_new_one_is_told_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "API_CONNECTIONS_MAX", 2)
    for _ in range(2):
        busy = await place.client()
        busy.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await busy.reader.readuntil(b"begin")
    assert await refusal(await place.client(), 503) == "too many connections to the API"
    assert not place.stream_ended.is_set()
    await settled(lambda: len(place.fronts) == 2)
    busy.writer.transport.abort()
    await settled(lambda: len(place.fronts) == 1)
    assert await (await place.client()).ask("GET /_ping HTTP/1.1") == (200, b"pong")


async def test_a_body_that_turns_bad_after_its_answer_has_begun_gets_no_second_answer(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad")
        await reader.read()

    place.script = engine
    client = await place.client()
    client.send(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert await client.answer() == (400, b"bad")
    client.send(b"no size\r\n")
    assert await client.is_closed()
