"""Queries for the host's resolvers. They are sent from the host's namespace, so its loopback servers work too."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import random
import socket
import struct
import time
from pathlib import Path

from overlay import dns
from overlay.defaults import (
    DNS_FORWARD_S,
    DNS_FORWARDS_MAX,
    DNS_FORWARDS_PER_CLIENT_MAX,
    DNS_HOST_CHECK_S,
    DNS_NEXT_SERVER_S,
    DNS_SERVERS_MAX,
)
from overlay.places import Places

_NOT_ANSWERS_BEFORE_GIVING_UP = 64
_LENGTH = struct.Struct(">H")


def servers_of(text: str) -> tuple[str, ...]:
    """The servers of a resolv.conf (resolv.conf(5)); without any, the host's own, as in glibc."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(words[1])
                servers.append(words[1])
    return tuple(dict.fromkeys(servers[:DNS_SERVERS_MAX])) or ("127.0.0.1",)


class HostResolvers:
    """The servers of the host's resolv.conf, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._servers: tuple[str, ...] = ()
        self._stamp: object = None
        self._checked = float("-inf")

    def servers(self, now: float) -> tuple[str, ...]:
        """The addresses to ask, in their order. now: seconds. A file that can not be read leaves what was known."""
        if now - self._checked >= DNS_HOST_CHECK_S:
            self._checked = now
            with contextlib.suppress(OSError):
                found = os.stat(self._path)
                stamp = (found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size)
                if stamp != self._stamp:
                    self._servers = servers_of(self._path.read_text(errors="replace"))
                    self._stamp = stamp
        return self._servers


class Forwarding:
    """Asks the host's resolvers. places: of queries that wait."""

    def __init__(self, resolvers: HostResolvers, port: int = 53) -> None:
        self._resolvers = resolvers
        self._port = port
        self._random = random.SystemRandom()
        self.places = Places(DNS_FORWARDS_MAX, DNS_FORWARDS_PER_CLIENT_MAX)

    async def ask(self, query: dns.Query, *, tcp: bool) -> bytes:
        """The first useful answer of a server, for the client; "server failure" if none has one in time."""
        try:
            async with asyncio.timeout(DNS_FORWARD_S):
                found = await self._first(query, tcp=tcp)
        except TimeoutError:
            found = None
        if found is None:
            return dns.empty(query, dns.SERVER_FAILURE)
        return dns.passed_on(query, found, dns.MESSAGE_BYTES_MAX if tcp else query.udp_bytes)

    async def _first(self, query: dns.Query, *, tcp: bool) -> bytes | None:
        """Ask one server after the other; one that is silent goes on in the background."""
        running: set[asyncio.Task[bytes | None]] = set()
        left = list(self._resolvers.servers(time.monotonic()))
        try:
            while left or running:
                if left:
                    running.add(asyncio.create_task(self._ask_one(left.pop(0), query, tcp=tcp)))
                wait_s = DNS_NEXT_SERVER_S if left else None
                done, running = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (answer := task.result()) is not None:
                        return answer
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return None

    async def _ask_one(self, server: str, query: dns.Query, *, tcp: bool) -> bytes | None:
        """A useful answer of one server, else None."""
        sent = dns.upstream_query(query, self._random.getrandbits(16))
        try:
            answer = await (self._by_tcp if tcp else self._by_udp)(server, sent)
        except (OSError, EOFError):
            return None
        return answer if answer is not None and dns.code_of(answer) in (dns.NO_ERROR, dns.NAME_ERROR) else None

    async def _by_udp(self, server: str, sent: bytes) -> bytes | None:
        """From a port of its own, which the kernel chooses at random. What is not the answer is passed over."""
        loop = asyncio.get_running_loop()
        family, *_, address = socket.getaddrinfo(server, self._port, type=socket.SOCK_DGRAM, flags=_NUMERIC)[0]
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            await loop.sock_sendall(sock, sent)
            for _ in range(_NOT_ANSWERS_BEFORE_GIVING_UP):
                received = await loop.sock_recv(sock, dns.MESSAGE_BYTES_MAX)
                if dns.answers(sent, received):
                    return received
        return None

    async def _by_tcp(self, server: str, sent: bytes) -> bytes | None:
        reader, writer = await asyncio.open_connection(server, self._port, flags=_NUMERIC)
        try:
            writer.write(_LENGTH.pack(len(sent)) + sent)
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            received = await reader.readexactly(length)
        finally:
            writer.transport.abort()
        return received if dns.answers(sent, received) else None


_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
