"""The name server of the overlay networks: port 53 of every network's gateways, served by the daemon's loop.

The sockets are opened by a thread that has entered the network's namespace. They belong to it from then on, and keep it
alive: close a network here before its namespace is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import struct
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from overlay.defaults import (
    DNS_ACCEPT_PAUSE_S,
    DNS_BATCH_QUERIES,
    DNS_CONNECTIONS_MAX,
    DNS_CONNECTIONS_PER_CLIENT_MAX,
    DNS_IDLE_S,
    DNS_QUERY_BYTES_MAX,
)
from overlay.dns import NAME_ERROR, code_of
from overlay.dns_answers import Forward, respond
from overlay.io.dns_forwarding import Forwarding, HostResolvers
from overlay.io.keeper import Keeper
from overlay.io.namespaces import in_namespace
from overlay.model import NetworkState
from overlay.names import Names
from overlay.places import Places

log = structlog.get_logger(__name__)

_LENGTH = struct.Struct(">H")
_FREE_BIND = 15  # IP_FREEBIND: the gateway's address may come a moment later
_BACKLOG = 128
_KEPT_PREFIX = "dns/"
_SIOCGSKNS = 0x894C  # linux/sockios.h: the namespace of a socket


@dataclass(frozen=True, slots=True)
class _Listening:
    """The sockets of one address in one namespace."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        for sock in (self.udp, self.tcp):
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()


@dataclass(slots=True)
class _Opened:
    """A network that is served. identity: of its namespace (device and inode)."""

    identity: tuple[int, int]
    internal: bool
    listening: dict[IPv4Address, _Listening] = field(default_factory=dict)


class Resolver:
    """Answers for the names of all networks. port and upstream_port are 53 but in tests.

    keeper: holds the sockets while no daemon is there, so that queries wait a moment and are answered by the next one.
    """

    def __init__(
        self,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        *,
        port: int = 53,
        upstream_port: int = 53,
        keeper: Keeper | None = None,
    ) -> None:
        self._port = port
        self._keeper = keeper
        self._kept: dict[str, socket.socket] = {}
        self._names = Names()
        self._random = random.Random()
        self._forwarding = Forwarding(HostResolvers(resolv_conf), upstream_port)
        self._opened: dict[str, _Opened] = {}
        self._connections: dict[asyncio.Task[None], tuple[str, str]] = {}
        self._places = Places(DNS_CONNECTIONS_MAX, DNS_CONNECTIONS_PER_CLIENT_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()

    async def adopt(self) -> None:
        """Take over what an earlier daemon had open. Raises OSError."""
        if self._keeper is not None:
            found = await asyncio.to_thread(self._keeper.get)
            self._kept = {name: one for name, one in found.items() if name.startswith(_KEPT_PREFIX)}
            for name in found.keys() - self._kept.keys():
                found[name].close()

    def know(self, states: Mapping[str, NetworkState]) -> None:
        """Replace what names mean, in one step. Until the first call nothing is said about names that may be ours."""
        self._names.replace(states)

    async def open(
        self, network_id: str, namespace: int, addresses: Collection[IPv4Address], *, internal: bool = False
    ) -> None:
        """Serve these addresses of a network. What is open in the same namespace stays; raises OSError.

        namespace: a file descriptor, needed only during the call. internal: whether the network is, as far as its
        engine knows; once the managers have told of the network, their word counts.
        """
        async with self._opening:
            found = os.fstat(namespace)
            identity = (found.st_dev, found.st_ino)
            if network_id in self._opened and self._opened[network_id].identity != identity:
                await self._close_sockets(network_id)
            opened = self._opened.setdefault(network_id, _Opened(identity, internal))
            opened.internal = internal
            for address in opened.listening.keys() - set(addresses):
                opened.listening.pop(address).close()
                await self._let_go(network_id, address)
            for address in sorted(set(addresses) - opened.listening.keys()):
                opened.listening[address] = await self._listen(network_id, namespace, address)

    async def close_network(self, network_id: str) -> None:
        """Close the ports of a network, and its clients' connections; one that is not open is no error.

        Then nothing here holds the namespace any more.
        """
        async with self._opening:
            listening = self._opened[network_id].listening if network_id in self._opened else {}
            for address in listening:
                await self._let_go(network_id, address)
            for name in [name for name in self._kept if name.startswith(f"{_KEPT_PREFIX}{network_id}/")]:
                self._kept.pop(name).close()
                await self._drop(name)
            await self._close_sockets(network_id)

    async def close(self) -> None:
        """Close everything."""
        async with self._opening:
            for network_id in list(self._opened):
                await self._close_sockets(network_id)
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self._kept.values():
            one.close()
        self._kept.clear()

    async def _close_sockets(self, network_id: str) -> None:
        if (opened := self._opened.pop(network_id, None)) is None:
            return
        for one in opened.listening.values():
            one.close()
        ending = [task for task, (network, _) in self._connections.items() if network == network_id]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _listen(self, network_id: str, namespace: int, address: IPv4Address) -> _Listening:
        names = _kept_names(network_id, address)
        if all(name in self._kept and _is_of(self._kept[name], namespace) for name in names):
            udp, tcp = (self._kept.pop(name) for name in names)
            for one in (udp, tcp):
                one.setblocking(False)
        else:
            udp, tcp = await asyncio.to_thread(in_namespace, namespace, lambda: _sockets(str(address), self._port))
            await self._keep(names, (udp, tcp))
        asyncio.get_running_loop().add_reader(udp, self._read, network_id, udp)
        self._wait_for_connections(network_id, tcp)
        return _Listening(udp, tcp)

    async def _keep(self, names: tuple[str, str], sockets: tuple[socket.socket, socket.socket]) -> None:
        for name, one in zip(names, sockets, strict=True):
            if (stale := self._kept.pop(name, None)) is not None:
                stale.close()
            if self._keeper is not None:
                try:
                    await asyncio.to_thread(self._keeper.put, name, one)
                except OSError as error:
                    log.warning("resolver.not_kept", name=name, error=str(error))

    async def _let_go(self, network_id: str, address: IPv4Address) -> None:
        for name in _kept_names(network_id, address):
            await self._drop(name)

    async def _drop(self, name: str) -> None:
        if self._keeper is not None:
            try:
                await asyncio.to_thread(self._keeper.drop, name)
            except OSError as error:
                log.warning("resolver.not_dropped", name=name, error=str(error))

    def _wait_for_connections(self, network_id: str, tcp: socket.socket) -> None:
        if tcp.fileno() >= 0:
            asyncio.get_running_loop().add_reader(tcp, self._accept, network_id, tcp)

    def _read(self, network_id: str, udp: socket.socket) -> None:
        """Answer what has come by UDP."""
        for _ in range(DNS_BATCH_QUERIES):
            try:
                wire, source = udp.recvfrom(DNS_QUERY_BYTES_MAX)
            except OSError:  # nothing more, or an ICMP error of an earlier answer
                return
            answer = self._respond(wire, network_id, source[0], tcp=False)
            if isinstance(answer, Forward):
                self._forward(answer, network_id, udp, source)
            elif answer is not None:
                _send(udp, answer, source)

    def _respond(self, wire: bytes, network_id: str, client: str, *, tcp: bool) -> bytes | Forward | None:
        opened = self._opened.get(network_id)
        internal = opened is None or opened.internal
        return respond(wire, network_id, IPv4Address(client), self._names, self._random, tcp=tcp, internal=internal)

    def _forward(self, forward: Forward, network_id: str, udp: socket.socket, source: tuple[str, int]) -> None:
        """Pass a query on. One that is too many is dropped: its client asks again."""
        client = (network_id, source[0])
        if not self._forwarding.places.take(client):
            return

        async def run() -> None:
            try:
                answer = await self._forwarding.ask(forward.query, tcp=False)
            finally:
                self._forwarding.places.give_back(client)
            if _may_be_said(forward, answer):
                _send(udp, answer, source)

        self._start(run())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, network_id: str, tcp: socket.socket) -> None:
        """Take the connections that have come; one that is too many for its client is closed."""
        for _ in range(_BACKLOG):
            try:
                sock, source = tcp.accept()
            except BlockingIOError:
                return
            except OSError:  # the process has no descriptors left: connections wait
                loop = asyncio.get_running_loop()
                loop.remove_reader(tcp)
                loop.call_later(DNS_ACCEPT_PAUSE_S, self._wait_for_connections, network_id, tcp)
                return
            client = (network_id, str(source[0]))
            if not self._places.take(client):
                sock.close()
                continue
            sock.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._serve_connection(client, sock))
            self._connections[task] = client
            task.add_done_callback(partial(self._ended, sock))

    def _ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        """A connection is over, if it ever began."""
        self._places.give_back(self._connections.pop(task))
        sock.close()

    async def _serve_connection(self, client: tuple[str, str], sock: socket.socket) -> None:
        """Serve a TCP connection until it ends, or is silent."""
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            reader, writer = await asyncio.open_connection(sock=sock, limit=DNS_QUERY_BYTES_MAX)
            try:
                await self._serve(client, reader, writer)
            finally:
                writer.transport.abort()

    async def _serve(self, client: tuple[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(DNS_IDLE_S):
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > DNS_QUERY_BYTES_MAX:
                    return
                wire = await reader.readexactly(length)
            answer = self._respond(wire, *client, tcp=True)
            if isinstance(answer, Forward):
                answer = await self._forwarded(client, answer)
            if answer is None:
                return
            writer.write(_LENGTH.pack(len(answer)) + answer)
            async with asyncio.timeout(DNS_IDLE_S):
                await writer.drain()

    async def _forwarded(self, client: tuple[str, str], forward: Forward) -> bytes | None:
        if not self._forwarding.places.take(client):
            return None
        try:
            answer = await self._forwarding.ask(forward.query, tcp=True)
        finally:
            self._forwarding.places.give_back(client)
        return answer if _may_be_said(forward, answer) else None


def _may_be_said(forward: Forward, answer: bytes) -> bool:
    """While we do not know the client's names, nobody else's "no such name" is true for it."""
    return forward.book or code_of(answer) != NAME_ERROR


def _send(udp: socket.socket, answer: bytes, source: tuple[str, int]) -> None:
    """Send or drop: a client that gets no answer asks again."""
    with contextlib.suppress(OSError):
        udp.sendto(answer, source)


def _kept_names(network_id: str, address: IPv4Address) -> tuple[str, str]:
    """Under which names the keeper has the sockets of an address: for UDP and TCP."""
    return f"{_KEPT_PREFIX}{network_id}/{address}/udp", f"{_KEPT_PREFIX}{network_id}/{address}/tcp"


def _is_of(one: socket.socket, namespace: int) -> bool:
    """Whether a socket belongs to this network namespace."""
    own = fcntl.ioctl(one, _SIOCGSKNS)
    try:
        return os.path.sameopenfile(own, namespace)
    finally:
        os.close(own)


def _sockets(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Sockets for UDP and TCP in the namespace of the thread; raises OSError."""
    with contextlib.ExitStack() as undo:
        opened = []
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            undo.callback(sock.close)
            sock.setsockopt(socket.IPPROTO_IP, _FREE_BIND, 1)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            opened.append(sock)
        opened[1].listen(_BACKLOG)
        undo.pop_all()
    return opened[0], opened[1]
