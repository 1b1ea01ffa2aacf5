"""What benchmarks measure with: a keep-alive client on a unix socket, CPU and memory of a process, quantiles."""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

API_VERSION = "v1.41"


class Client(http.client.HTTPConnection):
    """The Engine API over one kept-alive connection to a ``unix://`` DOCKER_HOST."""

    def __init__(self, target: str, timeout_s: float = 60.0) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = target.removeprefix("unix://")

    def connect(self) -> None:
        """See http.client."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def raw(self, method: str, path: str, body: object = None) -> bytes:
        """One request; the answer's bytes. Raises RuntimeError with the engine's text for any status from 400 on."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        # the CLI's first question, which tells it the version, has none in its path
        prefix = "" if path == "/_ping" else f"/{API_VERSION}"
        self.request(method, prefix + path, json.dumps(body) if body is not None else None, headers)
        answer = self.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {data.decode(errors='replace')[:300]}")
        return data

    def call(self, method: str, path: str, body: object = None, **filters: str) -> Any:
        """As raw(), but the parsed JSON (None when there is no body); ``filters`` go into the query."""
        if filters:
            listed = {key.replace("_", "-"): [value] for key, value in filters.items()}
            path += f"{'&' if '?' in path else '?'}filters={urllib.parse.quote(json.dumps(listed))}"
        data = self.raw(method, path, body)
        return json.loads(data) if data.strip() else None


def cpu_s(*pids: int) -> float:
    """CPU time used so far by all threads of these processes, in seconds (the scheduler's count, in nanoseconds)."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_mib(pid: int) -> float:
    """Resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    """The direct children of a process (dockerd's is its containerd)."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0..1) of the values lie; the median for 0.5."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def stopwatch() -> float:
    """A clock for durations, in seconds."""
    return time.perf_counter()
