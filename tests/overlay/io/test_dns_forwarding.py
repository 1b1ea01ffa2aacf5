"""Queries for the host's resolvers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from overlay import dns
from overlay.io.dns_forwarding import Forwarding, HostResolvers, servers_of
from tests.overlay.dns_messages import Answer, answer_to, question, read
from tests.overlay.io.upstream import Answers, Servers

FOUND = ["192.0.2.1"]


def found(query: bytes) -> list[bytes]:
    return [answer_to(query, FOUND)]


def fails(code: int) -> Answers:
    return lambda query: [answer_to(query, [], code=code)]


def forwarding_to(servers: Servers, path: Path) -> Forwarding:
    path.write_text(servers.resolv_conf)
    return Forwarding(HostResolvers(path), servers.port)


async def ask(servers: Servers, path: Path, wire: bytes = question("Example.org"), *, tcp: bool = False) -> Answer:
    forwarding = forwarding_to(servers, path)
    return read(await forwarding.ask(dns.parse_query(wire), tcp=tcp))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_hosts_resolver_is_asked(path: Path, tcp: bool) -> None:
    async with Servers(found) as servers:
        answer = await ask(servers, path, tcp=tcp)
    assert (answer.number, answer.addresses, answer.authoritative) == (7, FOUND, False)
    assert answer.question == question("Example.org")[12:]


async def test_each_query_has_an_id_and_a_port_of_its_own(path: Path) -> None:
    async with Servers(found) as servers:
        for _ in range(20):
            await ask(servers, path)
        (server,) = servers.servers
    assert len({query[:2] for query in server.asked}) > 15
    assert len({port for _, port in server.sources}) > 15


@pytest.mark.parametrize("code", [1, 2, 4, 5])
@pytest.mark.parametrize("tcp", [False, True])
async def test_after_a_server_that_fails_the_next_one_is_asked(path: Path, code: int, tcp: bool) -> None:
    async with Servers(fails(code), found) as servers:
        assert (await ask(servers, path, tcp=tcp)).addresses == FOUND


async def test_no_such_name_is_an_answer(path: Path) -> None:
    async with Servers(fails(3), found) as servers:
        assert (await ask(servers, path)).code == 3
        assert servers.servers[1].asked == []


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_silent_server_does_not_keep_the_next_one_from_answering(path: Path, tcp: bool) -> None:
    async with Servers(None, found) as servers:
        assert (await ask(servers, path, tcp=tcp)).addresses == FOUND


async def test_a_slow_server_still_answers_when_the_next_one_is_silent(path: Path) -> None:
    async with Servers(None, None) as servers:
        asked = asyncio.create_task(ask(servers, path))
        await servers.servers[1].was_asked.wait()
        first = servers.servers[0]
        first.answers = found
        first.datagram_received(first.asked[0], first.sources[0])
        assert (await asked).addresses == FOUND


@pytest.mark.parametrize("tcp", [False, True])
async def test_without_any_answer_the_client_is_told_of_the_failure(path: Path, tcp: bool) -> None:
    async with Servers(None) as servers:
        assert (await ask(servers, path, tcp=tcp)).code == 2
    async with Servers(fails(5), fails(2)) as servers:
        assert (await ask(servers, path, tcp=tcp)).code == 2


async def test_a_host_where_nobody_listens_is_a_failure(path: Path) -> None:
    async with Servers(found) as servers:
        pass
    for tcp in (False, True):
        assert (await ask(servers, path, tcp=tcp)).code == 2


async def test_what_does_not_answer_the_question_is_passed_over(path: Path) -> None:
    def spoofed(query: bytes) -> list[bytes]:
        wrong = bytes([query[0] ^ 1]) + query[1:]
        other = answer_to(question("Example.com"), ["203.0.113.9"])
        return [
            answer_to(wrong, ["203.0.113.9"]),
            query[:2] + other[2:],
            answer_to(query, ["203.0.113.9"])[:-1],
            b"",
            answer_to(query, FOUND),
        ]

    async with Servers(spoofed) as servers:
        assert (await ask(servers, path)).addresses == FOUND


async def test_a_server_that_sends_only_rubbish_is_given_up(path: Path) -> None:
    async with Servers(lambda query: [b"x" * 20] * 70, found) as servers:
        assert (await ask(servers, path)).addresses == FOUND


async def test_a_long_answer_by_udp_asks_for_tcp_and_comes_whole_by_tcp(path: Path) -> None:
    many = [f"192.0.2.{last}" for last in range(60)]
    async with Servers(lambda query: [answer_to(query, many)]) as servers:
        assert (await ask(servers, path)).truncated
        assert (await ask(servers, path, question("Example.org", udp_bytes=4_096))).addresses == many
        assert (await ask(servers, path, tcp=True)).addresses == many


def test_a_new_list_of_servers_is_read(path: Path) -> None:
    path.write_text("nameserver 192.0.2.1\n")
    resolvers = HostResolvers(path)
    assert resolvers.servers(now=0.0) == ("192.0.2.1",)
    new = path.with_suffix(".new")
    new.write_text("nameserver 192.0.2.2\n")
    os.replace(new, path)
    assert resolvers.servers(now=0.5) == ("192.0.2.1",), "the file is not looked at for each query"
    assert resolvers.servers(now=1.0) == ("192.0.2.2",)
    path.unlink()
    assert resolvers.servers(now=2.0) == ("192.0.2.2",), "a file that is away leaves what was known"
    path.write_text("nameserver 192.0.2.3\n")
    assert resolvers.servers(now=3.0) == ("192.0.2.3",)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", ("192.0.2.1", "2001:db8::1")),
        ("# nameserver 192.0.2.9\n;nameserver 192.0.2.8\nsearch x\n  nameserver\t192.0.2.1 # ours\n", ("192.0.2.1",)),
        ("nameserver fe80::1%eth0\noptions ndots:2\n", ("fe80::1%eth0",)),
        ("nameserver\nnameserver example.org\nnameserver 1.2.3\n", ("127.0.0.1",)),
        ("", ("127.0.0.1",)),
        ("nameserver 192.0.2.1\n" * 3 + "nameserver 192.0.2.2", ("192.0.2.1",)),
        ("".join(f"nameserver 192.0.2.{last}\n" for last in range(1, 6)), ("192.0.2.1", "192.0.2.2", "192.0.2.3")),
    ],
)
def test_a_resolv_conf_names_up_to_three_servers(text: str, servers: tuple[str, ...]) -> None:
    assert servers_of(text) == servers
