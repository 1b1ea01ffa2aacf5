"""A network's namespace with a bridge, and a container's namespace on it; without engines."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from overlay.io.namespaces import in_namespace

T = TypeVar("T")
CLIENT_TIMEOUT_S = 10.0


class Bridged:
    """Namespaces NAME-ov (bridge with the gateways' addresses) and NAME-c (eth0 with the clients' addresses)."""

    def __init__(self, name: str, gateways: list[str], clients: list[str]) -> None:
        self._names = (f"{name}-ov", f"{name}-c")
        overlay, container = self._names
        try:
            for one in self._names:
                _run("ip", "netns", "add", one)
            self.overlay, self.container = (os.open(f"/run/netns/{one}", os.O_RDONLY) for one in self._names)
            _run("ip", "-n", overlay, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            peer = ["type", "veth", "peer", "name", "eth0", "netns", container]
            _run("ip", "-n", overlay, "link", "add", "v0", "master", "br0", *peer)
            for address in gateways:
                _run("ip", "-n", overlay, "address", "add", address, "dev", "br0")
            for address in clients:
                _run("ip", "-n", container, "address", "add", address, "dev", "eth0")
            for namespace, links in ((overlay, ("lo", "br0", "v0")), (container, ("lo", "eth0"))):
                for link in links:
                    _run("ip", "-n", namespace, "link", "set", link, "up")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove both."""
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        for fd in (getattr(self, "overlay", -1), getattr(self, "container", -1)):
            if fd >= 0:
                os.close(fd)

    async def by_udp(self, wire: bytes, server: str, *, source: str = "", timeout_s: float = CLIENT_TIMEOUT_S) -> bytes:
        """The answer to one datagram; raises OSError, TimeoutError."""
        return await self.inside(lambda: _by_udp(wire, server, source, timeout_s))

    async def by_tcp(self, wires: list[bytes], server: str, *, source: str = "") -> list[bytes]:
        """The answers on one connection; fewer when it was closed; raises OSError."""
        return await self.inside(lambda: _by_tcp(wires, server, source))

    async def inside(self, function: Callable[[], T]) -> T:
        """Call it in the container's namespace, beside the loop."""
        return await asyncio.to_thread(in_namespace, self.container, function)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _by_udp(wire: bytes, server: str, source: str, timeout_s: float) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.bind((source, 0))
        sock.connect((server, 53))
        sock.send(wire)
        return sock.recv(65_535)


def _by_tcp(wires: list[bytes], server: str, source: str) -> list[bytes]:
    answers: list[bytes] = []
    with (
        socket.create_connection((server, 53), CLIENT_TIMEOUT_S, (source, 0)) as sock,
        sock.makefile("rb") as stream,
        suppress(ConnectionResetError, BrokenPipeError),
    ):
        for wire in wires:
            sock.sendall(struct.pack(">H", len(wire)) + wire)
        for _ in wires:
            if len(length := stream.read(2)) < 2:
                break
            answers.append(stream.read(*struct.unpack(">H", length)))
    return answers
