"""A front over real unix sockets, between an engine that plays a script and a small application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from engine_api.front.backends import Backends
from engine_api.front.front import Front
from engine_api.front.http1 import Head
from engine_api.front.policy import FullAccess, Policy

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
MIB = 1 << 20


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """200 with the request line as body, for every request without a body."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        line = head.split(b"\r\n", 1)[0]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(line), line))


class Place:
    """Drives a Front, between an engine and an application. script: what the engine does with a connection."""

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "front.sock")
        self.engine = str(directory / "engine.sock")
        self.script: Script = answer_all
        self.connections = 0
        self.scripts: list[asyncio.Task[None]] = []
        self.clients: list[Client] = []
        self.fronts: set[Front] = set()
        self.backends: Backends
        self.policy: Policy = FullAccess()
        self.stream_ended = asyncio.Event()
        self.body_bytes = 0

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.scripts.append(asyncio.create_task(self._run_script(reader, writer)))

    async def _run_script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.script(reader, writer)
        finally:
            writer.close()

    async def local(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read(), headers={"X-Path": request.rel_url.raw_path})

    async def refuse(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=413, text="too large")

    async def large(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(32 * MIB)})
        await response.prepare(request)
        for _ in range(32):
            await response.write(b"x" * MIB)
            self.body_bytes += MIB
        return response

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await response.write(b"begin")
            await asyncio.Event().wait()
        finally:
            self.stream_ended.set()
        return response

    async def client(self) -> Client:
        self.clients.append(Client(*await asyncio.open_unix_connection(self.socket)))
        return self.clients[-1]


class Client:
    """The other side of a front."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, *lines: str, body: bytes = b"") -> tuple[int, bytes]:
        self.send("\r\n".join((*lines, "", "")).encode() + body)
        return await self.answer()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, method: str = "GET") -> tuple[int, bytes]:
        """Status and body of the next response, which has a length."""
        head = await self.head()
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = b"" if method == "HEAD" else await self.reader.readexactly(length)
        return int(head.split(b" ")[1]), body

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def is_closed(self) -> bool:
        return await self.reader.read() == b""


def quick(head: Head) -> bytes | None:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong" if head.target == b"/_ping" else None


async def close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
