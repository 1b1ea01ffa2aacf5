"""A listener's policy is asked for every request before anything is forwarded."""

from __future__ import annotations

from engine_api.front.http1 import Head
from engine_api.front.policy import Refused
from tests.engine_api.front_place import Place


class NoWrites:
    """Only GET and HEAD, and nothing under /secret."""

    def check(self, head: Head) -> None:
        if head.method not in (b"GET", b"HEAD") or head.target.startswith(b"/secret"):
            raise Refused("this listener only reads")


async def test_a_refused_request_reaches_neither_the_application_nor_the_engine(place: Place) -> None:
    place.policy = NoWrites()
    for line in ("POST /swarm/init HTTP/1.1", "POST /containers/create HTTP/1.1", "GET /secret HTTP/1.1"):
        client = await place.client()
        status, body = await client.ask(line, "Host: x", "Content-Length: 2", body=b"{}")
        assert (status, body) == (403, b'{"message": "this listener only reads"}\n')
        assert await client.is_closed()
    assert place.connections == 0
    client = await place.client()
    assert (await client.ask("GET /swarm HTTP/1.1", "Host: x"))[0] == 200
    assert (await client.ask("GET /images/json HTTP/1.1", "Host: x"))[0] == 200
    assert place.connections == 1


async def test_requests_behind_an_allowed_one_are_asked_about_too(place: Place) -> None:
    place.policy = NoWrites()
    client = await place.client()
    client.send(b"GET /images/json HTTP/1.1\r\nHost: x\r\n\r\nDELETE /images/a HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await client.answer() == (200, b"GET /images/json HTTP/1.1")
    assert (await client.answer())[0] == 403
    assert await client.is_closed()


async def test_a_refused_head_request_is_told_in_the_reason(place: Place) -> None:
    place.policy = NoWrites()
    client = await place.client()
    client.send(b"HEAD /secret HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.head()).startswith(b"HTTP/1.1 403 this listener only reads\r\n")


class Nothing:
    """Nothing at all."""

    def check(self, head: Head) -> None:
        raise Refused("nothing is allowed here", 401)


async def test_even_a_ping_can_be_refused(place: Place) -> None:
    place.policy = Nothing()
    client = await place.client()
    assert (await client.ask("GET /_ping HTTP/1.1", "Host: x"))[0] == 401
