"""The name server in a network's namespace, asked from a container's; without engines."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from integration.overlay_client import Bridged
from overlay.io.namespaces import in_namespace
from overlay.io.resolver import Resolver
from tests.overlay.book import network, service, task
from tests.overlay.dns_messages import AAAA, PTR, A, answer_to, question, read
from tests.overlay.io.upstream import Servers

GATEWAY, SECOND = "10.0.1.1", "10.0.1.2"
CLIENT, OTHER = "10.0.1.11", "10.0.1.12"
GATEWAYS = [IPv4Address(GATEWAY), IPv4Address(SECOND)]
MANY = [task(f"m{number}", f"10.0.1.{number}", "many") for number in range(20, 220)]
BOOK = {
    "net": network("net", service("web", "10.0.1.5"), service("many"), *MANY, task("t1", CLIENT), name="front"),
    "back": network("back", service("db", "10.0.9.5"), task("t1", "10.0.9.11")),
}
NOT_THERE, REFUSED = 3, 5


@pytest.fixture
def bridged() -> Iterator[Bridged]:
    made = Bridged(f"names{os.getpid()}", [f"{GATEWAY}/24", f"{SECOND}/24"], [f"{CLIENT}/24", f"{OTHER}/24"])
    yield made
    made.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Servers]:
    def answer(query: bytes) -> list[bytes]:
        known = b"\7example" in query.lower()
        return [answer_to(query, ["192.0.2.1"] if known else [], code=0 if known else NOT_THERE)]

    async with Servers(answer) as servers:
        yield servers


@pytest.fixture
async def resolver(tmp_path: Path, upstream: Servers) -> AsyncIterator[Resolver]:
    path = tmp_path / "resolv.conf"
    path.write_text(upstream.resolv_conf)
    made = Resolver(path, upstream_port=upstream.port)
    yield made
    await made.close()


async def test_a_container_resolves_by_udp_and_tcp(bridged: Bridged, resolver: Resolver) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    for gateway in (GATEWAY, SECOND):
        web = read(await bridged.by_udp(question("Web"), gateway))
        assert (web.addresses, web.question) == (["10.0.1.5"], question("Web")[12:])
    few = read(await bridged.by_udp(question("many"), GATEWAY))
    more = read(await bridged.by_udp(question("many", udp_bytes=4_096), GATEWAY))
    assert (len(few.addresses), len(more.addresses)) == (30, 74)
    assert few.truncated
    assert more.truncated
    wires = [
        question("many"),
        question("web", AAAA),
        question(f"{'.'.join(reversed(CLIENT.split('.')))}.in-addr.arpa", PTR),
    ]
    whole, empty, pointer = map(read, await bridged.by_tcp(wires, GATEWAY))
    assert sorted(whole.addresses) == sorted(str(one.address) for one in MANY)
    assert (empty.code, empty.addresses) == (0, [])
    assert pointer.pointers == ["c.1.t1.front"]


async def test_the_client_is_known_by_its_address(bridged: Bridged, resolver: Resolver) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    assert read(await bridged.by_udp(question("db"), GATEWAY, source=CLIENT)).addresses == ["10.0.9.5"]
    assert read(await bridged.by_udp(question("db"), GATEWAY, source=OTHER)).code == NOT_THERE


async def test_foreign_names_are_asked_of_the_hosts_resolver(bridged: Bridged, resolver: Resolver) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    assert read(await bridged.by_udp(question("Example.org"), GATEWAY)).addresses == ["192.0.2.1"]
    answers = await bridged.by_tcp([question("example.org"), question("nothing.org"), question("web")], GATEWAY)
    assert [read(one).code for one in answers] == [0, NOT_THERE, 0]


async def test_before_the_managers_have_told_nothing_is_said_of_names_that_may_be_ours(
    bridged: Bridged, resolver: Resolver
) -> None:
    await resolver.open("net", bridged.overlay, GATEWAYS)
    assert read(await bridged.by_udp(question("example.org"), GATEWAY)).addresses == ["192.0.2.1"]
    for name in ("web", "tasks.web", "web.front"):
        with pytest.raises(TimeoutError):
            await bridged.by_udp(question(name), GATEWAY, timeout_s=0.5)
        assert await bridged.by_tcp([question(name)], GATEWAY) == []
    resolver.know(BOOK)
    assert read(await bridged.by_udp(question("web"), GATEWAY)).addresses == ["10.0.1.5"]
    assert read(await bridged.by_udp(question("web.other"), GATEWAY)).code == NOT_THERE


async def test_no_question_leaves_an_internal_network(bridged: Bridged, resolver: Resolver, upstream: Servers) -> None:
    await resolver.open("net", bridged.overlay, GATEWAYS, internal=True)
    for known in (False, True):
        if known:
            resolver.know({"net": network("net", service("web", "10.0.1.5"), internal=True)})
        assert read(await bridged.by_udp(question("secret.example.org"), GATEWAY)).code == REFUSED
        assert [read(one).code for one in await bridged.by_tcp([question("example.org")], GATEWAY)] == [REFUSED]
    assert read(await bridged.by_udp(question("web"), GATEWAY)).addresses == ["10.0.1.5"]
    assert upstream.servers[0].asked == []


async def test_opening_again_changes_nothing_and_closing_closes(bridged: Bridged, resolver: Resolver) -> None:
    resolver.know(BOOK)
    await asyncio.gather(*(resolver.open("net", bridged.overlay, GATEWAYS) for _ in range(3)))
    connection = await bridged.inside(lambda: socket.create_connection((GATEWAY, 53), 5.0))
    await resolver.open("net", bridged.overlay, GATEWAYS[:1])
    with connection:
        wire = question("web")
        await bridged.inside(lambda: connection.sendall(struct.pack(">H", len(wire)) + wire))
        assert len(await bridged.inside(lambda: connection.recv(1_000))) > 2
        with pytest.raises(ConnectionRefusedError):
            await bridged.by_udp(question("web"), SECOND)
        await resolver.close_network("net")
        assert await bridged.inside(lambda: _ended(connection)), "its connections end with the network"
    for gateway in (GATEWAY, SECOND):
        with pytest.raises(ConnectionRefusedError):
            await bridged.by_udp(question("web"), gateway)
        with pytest.raises(ConnectionRefusedError):
            await bridged.by_tcp([question("web")], gateway)
    await resolver.close_network("net")
    await resolver.open("net", bridged.overlay, GATEWAYS)
    assert read(await bridged.by_udp(question("web"), SECOND)).addresses == ["10.0.1.5"]


async def test_nothing_of_a_closed_network_stays_open(bridged: Bridged, resolver: Resolver) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    await bridged.by_tcp([question("web")], GATEWAY)
    await resolver.close_network("net")
    before = descriptors()
    await resolver.open("net", bridged.overlay, GATEWAYS)
    connections = await bridged.inside(lambda: [socket.create_connection((GATEWAY, 53), 5.0) for _ in range(5)])
    wire = question("web")
    for connection in connections[:3]:
        connection.sendall(struct.pack(">H", len(wire)) + wire)
        assert len(await asyncio.to_thread(connection.recv, 1_000)) > 2
    await resolver.close_network("net")
    for connection in connections:
        connection.close()
    assert descriptors() == before, "an open socket would keep the namespace alive"


async def test_a_connection_that_comes_while_its_network_closes_ends(bridged: Bridged, resolver: Resolver) -> None:
    before = descriptors()
    for rounds in range(8):
        await resolver.open("net", bridged.overlay, GATEWAYS)
        connection = in_namespace(bridged.container, lambda: socket.create_connection((GATEWAY, 53), 5.0))
        for _ in range(rounds):
            await asyncio.sleep(0)
        await resolver.close_network("net")
        connection.close()
        assert descriptors() == before


async def test_a_connection_waits_while_the_process_has_no_descriptors_left(
    bridged: Bridged, resolver: Resolver
) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    connection = await bridged.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    connection.settimeout(30.0)
    wire = question("web")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(bridged.overlay))
        await asyncio.to_thread(connection.connect, (GATEWAY, 53))
        await asyncio.to_thread(connection.sendall, struct.pack(">H", len(wire)) + wire)
        await asyncio.sleep(0.1)
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert read((await asyncio.to_thread(connection.recv, 1_000))[2:]).addresses == ["10.0.1.5"]
    connection.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_namespace_that_was_made_anew_is_served(bridged: Bridged, resolver: Resolver) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.container, GATEWAYS)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    assert read(await bridged.by_udp(question("web"), GATEWAY)).addresses == ["10.0.1.5"]


async def test_a_port_that_is_taken_is_an_error_and_is_opened_when_it_is_free(
    bridged: Bridged, resolver: Resolver, tmp_path: Path
) -> None:
    resolver.know(BOOK)
    first = Resolver(tmp_path / "none")
    await first.open("net", bridged.overlay, GATEWAYS[1:])
    with pytest.raises(OSError, match="in use"):
        await resolver.open("net", bridged.overlay, GATEWAYS)
    await first.close()
    await resolver.open("net", bridged.overlay, GATEWAYS)
    for gateway in (GATEWAY, SECOND):
        assert read(await bridged.by_udp(question("web"), gateway)).addresses == ["10.0.1.5"]


async def test_a_client_that_floods_leaves_room_for_others(
    bridged: Bridged, resolver: Resolver, upstream: Servers
) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    upstream.servers[0].answers = lambda query: [answer_to(query, ["192.0.2.1"])] if b"example" in query else []

    def flood() -> list[socket.socket]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((CLIENT, 0))
            for number in range(1_000):
                sock.sendto(question(f"x{number}.org", A), (GATEWAY, 53))
        return [socket.create_connection((GATEWAY, 53), 5.0, (CLIENT, 0)) for _ in range(40)]

    connections = await bridged.inside(flood)
    try:
        assert read(await bridged.by_udp(question("example.org"), GATEWAY, source=OTHER)).addresses == ["192.0.2.1"]
        assert len(await bridged.by_tcp([question("web")], GATEWAY, source=OTHER)) == 1
        assert await bridged.by_tcp([question("web")], GATEWAY, source=CLIENT) == []
        assert 0 < len([query for query in upstream.servers[0].asked if b"example" not in query]) <= 128
    finally:
        for connection in connections:
            connection.close()


async def test_a_broken_stream_ends_its_connection_alone(bridged: Bridged, resolver: Resolver) -> None:
    resolver.know(BOOK)
    await resolver.open("net", bridged.overlay, GATEWAYS)
    assert await bridged.by_tcp([b"", question("web")], GATEWAY) == []
    assert await bridged.by_tcp([b"x" * 5_000, question("web")], GATEWAY) == []
    broken, good = await bridged.by_tcp([question("web") + b"x", question("web")], GATEWAY)
    assert (read(broken).code, read(good).addresses) == (1, ["10.0.1.5"])


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1_000) == b""
    except ConnectionResetError:
        return True
