"""A client that asks a web server again and again, and counts what it gets. Runs in any network namespace.

    python -m integration.traffic http://web/cgi-bin/who --resolver 127.0.0.11 --rate 200 --seconds 60

Each request is a connection of its own, and asks for the name anew. At the end, or at SIGTERM, one JSON object is
printed: how many requests there were, which answers came how often, and every failure with the time since the start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

PROJECT = Path(__file__).resolve().parent.parent
REQUEST_TIMEOUT_S = 10.0  # without the name
RESOLVE_PAUSE_S = 5.0  # libc asks again after so long (resolv.conf(5))
RESOLVE_ATTEMPTS_MAX = 6  # a daemon that starts on a busy machine answers late; what may never be is a wrong answer
_TYPE_A = 1


class TrafficError(Exception):
    """A request failed; the text says how."""


@dataclass
class Tally:
    """What came of the requests."""

    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, str]] = field(default_factory=list)


def query(name: str, kind: int = _TYPE_A, number: int | None = None) -> bytes:
    """A DNS query for one name."""
    number = secrets.randbelow(1 << 16) if number is None else number
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def addresses_in(answer: bytes) -> list[str]:
    """The addresses in a DNS answer. Raises TrafficError with the code if it is none."""
    flags, _, answers = struct.unpack_from(">HHH", answer, 2)
    if flags & 15:
        raise TrafficError(f"DNS error {flags & 15}")
    place = answer.index(b"\0", 12) + 5
    found = []
    for _ in range(answers):
        place += 2 if answer[place] & 0xC0 else answer.index(b"\0", place) + 1 - place
        kind, _, _, length = struct.unpack_from(">HHIH", answer, place)
        place += 10
        if kind == _TYPE_A and length == 4:
            found.append(str(IPv4Address(answer[place : place + 4])))
        place += length
    return found


async def resolve(name: str, resolver: str) -> list[str]:
    """Ask a resolver over UDP, as libc does: again after a while if nothing comes."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.setblocking(False)
        link.connect((resolver, 53))
        for _ in range(RESOLVE_ATTEMPTS_MAX):
            await loop.sock_sendall(link, query(name))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESOLVE_PAUSE_S):
                    return addresses_in(await loop.sock_recv(link, 4096))
    raise TrafficError(f"no answer about {name}")


async def fetch(url: str, resolver: str = "") -> str:
    """GET over a connection of its own; the body. Raises TrafficError, OSError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if resolver and not host.replace(".", "").isdigit():
        found = await resolve(host, resolver)
        if not found:
            raise TrafficError(f"{host} has no address")
        host = found[0]
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        return await _get(host, parts)


async def _get(host: str, parts: SplitResult) -> str:
    reader, writer = await asyncio.open_connection(host, parts.port or 80)
    try:
        writer.write(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.hostname}\r\n\r\n".encode())
        answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0]
    if b" 200 " not in status + b" ":
        raise TrafficError(f"answered {status.decode(errors='replace')!r}")
    return body.decode(errors="replace").strip()


async def generate(url: str, resolver: str, rate: float, seconds: float) -> Tally:
    """Requests at a rate, whatever becomes of those before."""
    tally, began, running = Tally(), time.monotonic(), set[asyncio.Task[None]]()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def one() -> None:
        at = time.monotonic() - began
        try:
            tally.answers[await fetch(url, resolver)] += 1
        except (OSError, TrafficError) as error:
            tally.failures.append((round(at, 3), f"{type(error).__name__}: {error}"))

    while not stop.is_set() and time.monotonic() - began < seconds:
        tally.requests += 1
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
        pause = began + tally.requests / rate - time.monotonic()
        await asyncio.sleep(max(0.0, pause))
    await asyncio.gather(*running)
    return tally


class Traffic:
    """Requests from a network namespace while something else happens."""

    def __init__(self, enter: Sequence[str], url: str, resolver: str = "", rate: float = 50.0) -> None:
        """enter: the words of a command that enters the namespace (nsenter...)."""
        self._command = [*enter, sys.executable, "-m", "integration.traffic", url, "--rate", str(rate)]
        self._command += ["--seconds", "600"] + (["--resolver", resolver] if resolver else [])
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)

    def end(self) -> Tally:
        """Stop asking; what came of it."""
        assert self._process is not None
        self._process.terminate()
        said = json.loads(self._process.communicate(timeout=90)[0])
        failures = [(at, text) for at, text in said["failures"]]
        return Tally(said["requests"], Counter(said["answers"]), failures)


@contextlib.contextmanager
def traffic(enter: Sequence[str], url: str, resolver: str = "", rate: float = 50.0) -> Iterator[Traffic]:
    """As Traffic; never left running."""
    client = Traffic(enter, url, resolver, rate)
    client.start()
    try:
        yield client
    finally:
        if client._process is not None and client._process.poll() is None:
            client._process.kill()
            client._process.wait()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m integration.traffic")
    parser.add_argument("url")
    parser.add_argument("--resolver", default="")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    tally = asyncio.run(generate(args.url, args.resolver, args.rate, args.seconds))
    print(json.dumps({"requests": tally.requests, "answers": tally.answers, "failures": tally.failures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
