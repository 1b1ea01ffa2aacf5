"""Name servers of a host, as they are and as they should not be. They listen on loopback addresses only."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import cast

Answers = Callable[[bytes], list[bytes]]


class Upstream(asyncio.DatagramProtocol):
    """One server; `answers` says which datagrams a query gets. Without it the server is silent."""

    def __init__(self, answers: Answers | None) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.was_asked = asyncio.Event()
        self.sources: list[tuple[str, int]] = []
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        self.asked.append(data)
        self.was_asked.set()
        self.sources.append(source)
        assert self._transport is not None
        for answer in self.answers(data) if self.answers is not None else []:
            self._transport.sendto(answer, source)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(EOFError, OSError):
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            query = await reader.readexactly(length)
            self.asked.append(query)
            for answer in self.answers(query) if self.answers is not None else []:
                writer.write(struct.pack(">H", len(answer)) + answer)
            await writer.drain()
            if self.answers is None:
                await reader.read()
        writer.close()


@contextmanager
def sockets_of(addresses: list[str]) -> Iterator[tuple[int, list[tuple[socket.socket, socket.socket]]]]:
    """UDP and TCP sockets at the addresses, all with the same port."""
    for _ in range(50):
        opened: list[socket.socket] = []
        try:
            port = 0
            for address in addresses:
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    sock = socket.socket(socket.AF_INET, kind)
                    opened.append(sock)
                    sock.bind((address, port))
                    port = sock.getsockname()[1]
        except OSError:
            for sock in opened:
                sock.close()
            continue
        break
    else:
        raise AssertionError("no port is free")
    try:
        yield port, list(zip(opened[::2], opened[1::2], strict=True))
    finally:
        for sock in opened:
            sock.close()


def _same(server: Upstream) -> Upstream:
    return server


class Servers:
    """Servers at 127.0.0.1, 127.0.0.2, ... with one port."""

    def __init__(self, *answers: Answers | None) -> None:
        self.servers = [Upstream(one) for one in answers]
        self.port = 0

    @property
    def resolv_conf(self) -> str:
        return "".join(f"nameserver 127.0.0.{number}\n" for number in range(1, len(self.servers) + 1))

    async def __aenter__(self) -> Servers:
        self._sockets = sockets_of([f"127.0.0.{number}" for number in range(1, len(self.servers) + 1)])
        self.port, opened = self._sockets.__enter__()
        loop = asyncio.get_running_loop()
        self._closing: list[asyncio.BaseTransport | asyncio.Server] = []
        for server, (udp, tcp) in zip(self.servers, opened, strict=True):
            udp.setblocking(False)
            transport, _ = await loop.create_datagram_endpoint(partial(_same, server), sock=udp)
            self._closing += [transport, await asyncio.start_server(server.serve_stream, sock=tcp)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in self._closing:
            one.close()
        await asyncio.sleep(0)
        self._sockets.__exit__(None, None, None)
