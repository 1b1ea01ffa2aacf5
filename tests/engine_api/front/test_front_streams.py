"""One client of the front: tunnels, half-closes, early ends, and who waits for whom."""

from __future__ import annotations

import asyncio

from tests.engine_api.front_place import MIB, OK, Place, answer_all


async def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()

    place.script = engine
    client = await place.client()
    client.send(b"GET /a HTTP/1.1\r\n\r\n")
    assert (await client.reader.read()).endswith(b"\r\n\r\nhalf")


async def test_an_early_answer_arrives_while_the_body_is_still_being_sent(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbad")
        await writer.drain()

    place.script = engine
    client = await place.client()
    client.send(b"POST /images/load HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + b"g" * (4 * MIB))
    assert await client.answer() == (400, b"bad")
    assert await client.is_closed()


async def test_an_early_answer_of_ours_arrives_while_the_body_is_still_being_sent(place: Place) -> None:
    client = await place.client()
    client.send(b"POST /swarm/refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"g" * (4 * MIB))
    assert await client.answer() == (413, b"too large")


async def test_an_upgrade_becomes_a_tunnel_with_half_closes_both_ways(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly ")
        data = await reader.read()  # to the client's half-close
        writer.write(b"got " + data)
        await writer.drain()

    place.script = engine
    client = await place.client()
    client.send(b"POST /exec/a/start HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nimpatient ")
    assert b" 101 " in await client.head()
    client.send(b"GET /_ping HTTP/1.1\r\n\r\n")
    client.writer.write_eof()
    assert await client.reader.read() == b"early got impatient GET /_ping HTTP/1.1\r\n\r\n"


async def test_a_half_close_before_the_upgrade_waits_for_the_tunnel(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not reader.at_eof()
        writer.write(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
        assert await reader.read() == b"input"
        writer.write(b"output")
        await writer.drain()

    place.script = engine
    client = await place.client()
    client.send(b"POST /exec/a/start HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\ninput")
    client.writer.write_eof()
    assert (await client.reader.read()).endswith(b"\r\n\r\noutput")


async def test_an_answer_without_a_length_is_the_old_hijack(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n")
        writer.write(b"you said " + await reader.readexactly(3))
        await writer.drain()

    place.script = engine
    client = await place.client()
    client.send(b"POST /containers/a/attach HTTP/1.1\r\n\r\n")
    await client.head()
    client.send(b"abc")
    assert await client.reader.read() == b"you said abc"


async def test_a_client_that_half_closes_still_gets_its_answers(place: Place) -> None:
    client = await place.client()
    client.send(b"GET /a HTTP/1.1\r\n\r\nGET /swarm HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /half")
    client.writer.write_eof()
    answers = await client.reader.read()
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.endswith(b"GET /b HTTP/1.1")


async def test_the_engine_sees_that_its_client_has_gone(place: Place) -> None:
    gone = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        assert await reader.read() == b""
        gone.set()

    place.script = engine
    client = await place.client()
    client.send(b"GET /containers/a/logs?follow=1 HTTP/1.1\r\n\r\n")
    await client.head()
    client.writer.close()
    await gone.wait()


async def test_a_stream_of_ours_ends_when_its_reader_leaves(place: Place) -> None:
    client = await place.client()
    client.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    await client.head()
    client.writer.write_eof()
    await place.stream_ended.wait()


async def test_a_stream_of_ours_is_not_begun_for_a_reader_that_has_left(place: Place) -> None:
    client = await place.client()
    client.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    client.writer.write_eof()
    await place.stream_ended.wait()


async def test_half_a_body_for_us_and_then_nothing_is_dropped(place: Place) -> None:
    client = await place.client()
    client.send(b"POST /swarm HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    client.writer.write_eof()
    assert await client.is_closed()


async def test_a_slow_reader_holds_the_engine(place: Place) -> None:
    sent = 0

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        for _ in range(64):
            writer.write(b"x" * MIB)
            await writer.drain()
            sent += 1
        await answer_all(reader, writer)

    place.script = engine
    client = await place.client()
    client.send(b"GET /images/a/get HTTP/1.1\r\n\r\n")
    head = await client.head()
    before = -1
    while before != sent:  # until it stands still
        before = sent
        for _ in range(200):
            await asyncio.sleep(0)
    assert sent < 16
    assert len(await client.reader.readexactly(64 * MIB)) == 64 * MIB
    assert b"200 OK" in head
    assert (await client.ask("GET /next HTTP/1.1"))[1] == b"GET /next HTTP/1.1"


async def test_a_slow_reader_holds_us_and_later_requests_are_not_stuck(place: Place) -> None:
    client = await place.client()
    client.send(b"GET /swarm/large HTTP/1.1\r\nHost: x\r\n\r\nGET /engine HTTP/1.1\r\n\r\n" * 2)
    before = -1
    while before != place.body_bytes:
        before = place.body_bytes
        for _ in range(200):
            await asyncio.sleep(0)
    assert place.body_bytes < 8 * MIB
    for _ in range(2):
        assert len((await client.answer())[1]) == 32 * MIB
        assert (await client.answer())[1] == b"GET /engine HTTP/1.1"


async def test_a_slow_engine_holds_the_client(place: Place) -> None:
    go_on = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        await reader.readexactly(64 * MIB)
        writer.write(OK)
        await writer.drain()

    place.script = engine
    client = await place.client()
    client.writer.transport.set_write_buffer_limits(high=MIB)
    client.send(b"POST /images/load HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
    written = 0

    async def upload() -> None:
        nonlocal written
        for _ in range(64):
            client.send(b"x" * MIB)
            await client.writer.drain()
            written += 1

    task = asyncio.create_task(upload())
    before = -1
    while before != written:
        before = written
        for _ in range(200):
            await asyncio.sleep(0)
    assert written < 16
    go_on.set()
    await task
    assert await client.answer() == (200, b"hi")


async def test_closing_when_idle_lets_the_request_in_progress_end(place: Place) -> None:
    go_on = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        go_on.set()
        await reader.readexactly(1)
        writer.write(OK)
        await writer.drain()

    place.script = engine
    idle, busy = await place.client(), await place.client()
    assert await idle.ask("GET /_ping HTTP/1.1") == (200, b"pong")
    busy.send(b"POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
    await go_on.wait()
    for front in list(place.fronts):
        front.close_when_idle()
    assert await idle.is_closed()
    busy.send(b"x")
    assert await busy.answer() == (200, b"hi")
    assert await busy.is_closed()
