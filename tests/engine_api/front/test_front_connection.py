"""One client of the front: which requests go where, what is refused, what is said without an engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine_api.front.backends import engine_connector
from tests.engine_api.front_place import MIB, OK, Place, answer_all


async def test_requests_of_one_connection_go_where_each_belongs(place: Place) -> None:
    client = await place.client()
    for _ in range(3):
        assert await client.ask("GET /containers/json HTTP/1.1") == (200, b"GET /containers/json HTTP/1.1")
        assert await client.ask("POST /swarm HTTP/1.1", "Host: x", "Content-Length: 2", body=b"ab") == (200, b"ab")
        assert await client.ask("GET /_ping HTTP/1.1") == (200, b"pong")
    assert place.connections == 1


async def test_pipelined_requests_are_answered_in_order(place: Place) -> None:
    client = await place.client()
    client.send(b"GET /a HTTP/1.1\r\n\r\nGET /swarm HTTP/1.1\r\nHost: x\r\n\r\nGET /_ping HTTP/1.1\r\n\r\n")
    client.send(b"GET /b HTTP/1.1\r\n\r\n")
    assert [(await client.answer())[1] for _ in range(4)] == [b"GET /a HTTP/1.1", b"", b"pong", b"GET /b HTTP/1.1"]


async def test_ten_thousand_pings_in_one_write_are_ten_thousand_answers(place: Place) -> None:
    client = await place.client()
    client.send(b"GET /_ping HTTP/1.1\r\n\r\n" * 10_000)
    for _ in range(10_000):
        assert (await client.answer())[1] == b"pong"


async def test_a_head_that_comes_byte_by_byte_is_one_request(place: Place) -> None:
    client = await place.client()
    for byte in b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n":
        client.send(bytes([byte]))
        await client.writer.drain()
        await asyncio.sleep(0)
    assert (await client.answer())[1] == b"GET /slow HTTP/1.1"


async def test_swarm_paths_are_ours_however_they_are_written(place: Place) -> None:
    for target in ("/swarm", "/v1.41/swarm", "/%73warm", "http://docker/swarm", "//swarm", "/v1.41%2Fswarm", "/swarm/"):
        client = await place.client()
        await client.ask(f"GET {target} HTTP/1.1", "Host: x")
        client.writer.close()
    assert place.connections == 0


async def test_the_application_is_asked_for_the_path_that_was_judged(place: Place) -> None:
    client = await place.client()
    for target in ("/%73warm", "http://docker:2375/sw%61rm", "/swarm?a=%2f"):
        client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await client.head()
        assert (b" 200 " in head, b"X-Path: /swarm\r\n" in head) == (True, True), head


@pytest.mark.parametrize("target", ["http:/v1.41/swarm", "x:/swarm", "swarm", "/containers/json#/swarm", "/swarm%zz"])
async def test_a_target_that_the_engine_could_read_in_another_way_reaches_nobody(place: Place, target: str) -> None:
    client = await place.client()
    status, body = await client.ask(f"GET {target} HTTP/1.1", "Host: x")
    assert (status, place.connections) == (400, 0), body
    assert await client.is_closed()


async def test_what_only_looks_like_a_swarm_path_is_the_engines(place: Place) -> None:
    client = await place.client()
    for target in ("/swarms", "/containers/swarm/json", "/images/events/json", "/containers%2Fjson", "/x?/swarm"):
        assert (await client.ask(f"GET {target} HTTP/1.1"))[1] == f"GET {target} HTTP/1.1".encode()


async def test_lists_of_containers_are_the_engines_unless_tasks_are_asked_for(place: Place) -> None:
    client = await place.client()
    assert (await client.ask("GET /v1.41/containers/json?all=1 HTTP/1.1"))[0] == 200
    status, _ = await client.ask('GET /v1.41/containers/json?filters={"is-task":["true"]} HTTP/1.1', "Host: x")
    assert status == 404  # of the application here, which has no such route


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /a HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET /a HTTP/3\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /swarm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloworld\r\n",
    ],
)
async def test_a_message_that_is_none_is_answered_and_the_connection_closed(place: Place, request_text: bytes) -> None:
    client = await place.client()
    client.send(request_text)
    status, body = await client.answer()
    assert status == 400
    assert json.loads(body)["message"]
    assert await client.is_closed()
    assert place.connections == 0


async def test_a_bad_chunk_in_the_middle_of_a_body_ends_the_request_at_the_engine(place: Place) -> None:
    seen = asyncio.Event()
    ended = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"hello\r\n")
        seen.set()
        assert await reader.read() == b""
        ended.set()

    place.script = engine
    client = await place.client()
    client.send(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await seen.wait()
    client.send(b"nonsense\r\n")
    assert (await client.answer())[0] == 400
    await ended.wait()


async def test_a_refused_head_request_gets_no_body_wherever_the_fault_was_found(place: Place) -> None:
    head, body = b"HEAD /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"x\r\n"
    for pieces in ([head, body], [head + body]):
        client = await place.client()
        for piece in pieces:
            client.send(piece)
            await asyncio.sleep(0)
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 400 malformed chunk size\r\n")
        assert answer.endswith(b"\r\n\r\n")


async def test_a_head_that_is_too_large_is_refused(place: Place) -> None:
    client = await place.client()
    client.send(b"GET /a HTTP/1.1\r\nA: " + b"a" * (MIB + MIB // 2))
    assert (await client.answer())[0] == 431


async def test_a_head_of_half_a_mebibyte_reaches_either_side(place: Place) -> None:
    client = await place.client()
    big = "X-Registry-Auth: " + "a" * (MIB // 2)
    assert (await client.ask("GET /swarm HTTP/1.1", "Host: x", big))[0] == 200
    place.script = lambda reader, writer: _big_head(reader, writer)
    assert (await client.ask("GET /a HTTP/1.1", "Host: x", big))[0] == 200


async def _big_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        got += await reader.read(MIB)
    writer.write(OK)
    await writer.drain()


async def test_a_head_that_does_not_arrive_in_time_is_given_up(place: Place) -> None:
    place.backends = replace(place.backends, head_read_s=0.02)
    client = await place.client()
    assert await client.ask("GET /_ping HTTP/1.1") == (200, b"pong")  # an idle connection may stay idle
    client.send(b"GET /swarm HT")
    status, body = await client.answer()
    assert (status, json.loads(body)) == (408, {"message": "the head of the request did not arrive in time"})
    assert await client.is_closed()


async def test_without_an_engine_there_is_an_answer_that_says_so(place: Place, tmp_path: Path) -> None:
    place.backends = replace(place.backends, connect=engine_connector(f"unix://{tmp_path}/none", 5))
    client = await place.client()
    status, body = await client.ask("POST /containers/prune HTTP/1.1", "Content-Length: 2", body=b"{}")
    text = "Cannot connect to the Docker Engine at unix:///engine. Is it running? (No such file or directory)"
    assert (status, json.loads(body)) == (503, {"message": text})
    assert await client.is_closed()


async def test_a_head_request_without_an_engine_carries_the_text_in_its_status_line(
    place: Place, tmp_path: Path
) -> None:
    place.backends = replace(place.backends, connect=engine_connector(f"unix://{tmp_path}/none", 5))
    client = await place.client()
    client.send(b"HEAD /containers/a/archive HTTP/1.1\r\n\r\n")
    answer = await client.reader.read()
    assert answer.startswith(b"HTTP/1.1 503 Cannot connect to the Docker Engine")
    assert answer.endswith(b"\r\n\r\n")


async def test_an_engine_that_does_not_take_the_connection_is_given_up(place: Place) -> None:
    async def never(upstream: object) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    place.backends = replace(place.backends, connect=never)
    client = await place.client()
    status, body = await client.ask("GET /a HTTP/1.1")
    assert status == 503
    assert b"timed out" in body


async def test_an_engine_that_hangs_up_without_an_answer_is_a_bad_gateway(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    place.script = engine
    client = await place.client()
    assert (await client.ask("GET /a HTTP/1.1"))[0] == 502


async def test_interim_answers_pass_and_the_real_one_ends_the_request(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(4)
        writer.write(OK)
        await writer.drain()
        await answer_all(reader, writer)

    place.script = engine
    client = await place.client()
    client.send(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
    assert b"100 Continue" in await client.head()
    client.send(b"body")
    assert await client.answer() == (200, b"hi")
    assert (await client.ask("GET /next HTTP/1.1"))[1] == b"GET /next HTTP/1.1"


async def test_answers_to_head_requests_and_empty_ones_have_no_body(place: Place) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()

    place.script = engine
    client = await place.client()
    client.send(b"HEAD /a HTTP/1.1\r\n\r\nPOST /start HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n")
    await client.head()
    await client.head()
    assert await client.answer() == (200, b"hi")


async def test_what_a_client_sends_wrong_is_answered_and_leaves_no_traceback(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for line, headers in (("get /swarm HTTP/1.1", ("Host: x",)), ("GET /swarm HTTP/1.1", ())):
        client = await place.client()
        assert (await client.ask(line, *headers))[0] == 400
    assert [record for record in caplog.records if record.exc_info] == []
