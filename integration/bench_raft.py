"""The benchmark of consensus: three managers of ours beside three stock engines, in one run.

    python -m integration.bench_raft [--rounds 3] [--failovers 10] [--stock-failovers 1] [--output FILE.json]

Two swarms of three managers and a worker each. Writes are measured in turns, so that both sides see the same noise;
then leaders are killed, then the engines of workers. Needs root; takes about three minutes.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import socket
import statistics
import sys
import threading
import time
from base64 import b64encode
from dataclasses import asdict, dataclass, field
from pathlib import Path

from integration import calls
from integration.lab import Host, Lab, LabError
from integration.measure import cpu_s, quantile, stopwatch

SECONDS_PER_ROUND = 4.0
CONFIG_BYTES = 1000
DEADLINE_S = 120.0
REPLICAS = 8
COMMAND = ["sh", "-c", "trap exit TERM; while sleep 0.2; do :; done"]
_names = itertools.count(1)


class Connection:
    """A kept-alive connection that creates configs, with as little work of its own as possible."""

    def __init__(self, host: Host) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30.0)
        self._socket.connect(host.api.removeprefix("unix://"))

    def create(self) -> bool:
        """POST /configs/create of CONFIG_BYTES; whether it was acknowledged. Raises OSError."""
        body = json.dumps({"Name": f"c{next(_names)}", "Data": b64encode(b"x" * CONFIG_BYTES).decode()}).encode()
        head = "POST /v1.41/configs/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        header, _, rest = answer.partition(b"\r\n\r\n")
        length = next(
            int(v)
            for k, _, v in (line.partition(b":") for line in header.split(b"\r\n"))
            if k.lower() == b"content-length"
        )
        while len(rest) < length:
            rest += self._receive()
        return header.split(b" ", 2)[1] == b"201"

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the daemon closed the connection")
        return data


@dataclass
class Writes:
    """What one round of writes gave."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float


@dataclass
class Side:
    """A swarm of three managers and a worker."""

    name: str
    lab: Lab
    hosts: list[Host]
    failover_s: list[float] = field(default_factory=list)
    down_s: list[float] = field(default_factory=list)
    moved_s: list[float] = field(default_factory=list)

    @property
    def managers(self) -> list[Host]:
        """The three."""
        return self.hosts[:3]

    def make(self) -> None:
        """The swarm, all nodes ready."""
        first = self.hosts[0]
        first.docker("swarm", "init", "--advertise-addr", first.ip)
        tokens = {role: first.docker("swarm", "join-token", "-q", role).strip() for role in ("manager", "worker")}
        for number, host in enumerate(self.hosts[1:], 1):
            token = tokens["manager" if number < 3 else "worker"]
            host.docker("swarm", "join", "--token", token, "--advertise-addr", host.ip, f"{first.ip}:2377")
        self.whole()

    def whole(self) -> None:
        """Wait until all managers are reachable and all nodes ready."""
        _wait(self._is_whole, f"{self.name}: all managers and nodes")

    def _is_whole(self) -> bool:
        for host in self.managers:
            status, nodes = calls.call(host, "GET", "/nodes")
            if status != 200:
                return False
            reachable = [node for node in nodes if node.get("ManagerStatus", {}).get("Reachability") == "reachable"]
            if len(reachable) != 3 or any(node["Status"]["State"] != "ready" for node in nodes):
                return False
        return True

    def leader(self) -> Host:
        """Who leads."""
        for node in calls.get(self.managers[0], "/nodes"):
            if node.get("ManagerStatus", {}).get("Leader"):
                return self.lab.host(node["Description"]["Hostname"])
        raise LabError(f"{self.name}: nobody leads")

    def write(self, concurrency: int) -> Writes:
        """Configs of 1.0 kB for some seconds, the connections spread over all three managers."""
        connections = [Connection(self.managers[i % 3]) for i in range(max(concurrency, 3))]
        groups = [connections[i::concurrency] for i in range(concurrency)]
        took: list[list[float]] = [[] for _ in groups]
        pids = [pid for host in self.managers for pid in {host.pid, host.engine_pid}]
        end = stopwatch() + SECONDS_PER_ROUND

        def work(mine: list[Connection], durations: list[float]) -> None:
            for connection in itertools.cycle(mine):
                began = stopwatch()
                if began >= end:
                    return
                assert connection.create(), "a write was refused"
                durations.append(stopwatch() - began)

        before, began = cpu_s(*pids), stopwatch()
        threads = [threading.Thread(target=work, args=pair) for pair in zip(groups, took, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed, used = stopwatch() - began, cpu_s(*pids) - before
        durations = [duration for some in took for duration in some]
        p50, p99 = quantile(durations, 0.5), quantile(durations, 0.99)
        return Writes(len(durations) / elapsed, p50 * 1e3, p99 * 1e3, used / len(durations) * 1e3)

    def fail_over(self) -> None:
        """SIGKILL of the leader; until a survivor acknowledges a write."""
        victim = self.leader()
        survivors = [host for host in self.managers if host.name != victim.name]
        self.lab.kill(victim)
        began = stopwatch()
        for host in itertools.cycle(survivors):
            try:
                body = {"Name": f"f{next(_names)}", "Data": b64encode(b"x" * CONFIG_BYTES).decode()}
                status, _ = calls.call(host, "POST", "/configs/create", body, timeout_s=1.0)
            except (OSError, http.client.HTTPException):
                status = 0
            if status == 201:
                break
            if stopwatch() - began > DEADLINE_S:
                raise LabError(f"{self.name}: no failover")
            time.sleep(0.02)
        self.failover_s.append(stopwatch() - began)
        self.lab.start(victim)
        self.whole()

    def lose_worker(self) -> None:
        """SIGKILL of the worker's engine; until the node shows down, and until all its tasks run elsewhere."""
        first, worker = self.hosts[0], self.hosts[3]
        first.docker(
            "service", "create", "-q", "-d", "--name", "moves", "--replicas", str(REPLICAS), "busybox:latest", *COMMAND
        )
        _wait(lambda: len(calls.running(first, "moves")) == REPLICAS, "all tasks running")
        gone = calls.node_of(first, worker)["ID"]
        self.lab.kill(worker, "engine")
        began = stopwatch()
        _wait(lambda: calls.node_of(first, worker)["Status"]["State"] == "down", "the node down")
        self.down_s.append(stopwatch() - began)

        def moved() -> bool:
            nodes = [task["NodeID"] for task in calls.running(first, "moves")]
            return len(nodes) == REPLICAS and gone not in nodes

        _wait(moved, "all tasks elsewhere")
        self.moved_s.append(stopwatch() - began)
        first.docker("service", "rm", "moves")
        self.lab.start(worker, "engine")
        self.whole()
        for host in self.hosts:
            _wait(lambda host=host: not calls.containers(host), "no containers")


def _wait(check: object, what: str) -> None:
    assert callable(check)
    end = stopwatch() + DEADLINE_S
    while True:
        try:
            if check():
                return
        except (OSError, http.client.HTTPException, AssertionError):
            pass
        if stopwatch() > end:
            raise LabError(f"waited {DEADLINE_S:.0f} s in vain for: {what}")
        time.sleep(0.05)


def run(lab: Lab, rounds: int, failovers: int, stock_failovers: int) -> dict[str, object]:
    """Everything; prints as it goes, returns the figures."""
    ours, stock = Side("ours", lab, lab.hosts[:4]), Side("stock", lab, lab.hosts[4:])
    for side in (ours, stock):
        side.make()
    writes: dict[tuple[str, int], list[Writes]] = {}
    for _ in range(rounds):
        for concurrency in (1, 16):
            for side in (ours, stock):
                found = side.write(concurrency)
                writes.setdefault((side.name, concurrency), []).append(found)
                print(
                    f"    {side.name}, {concurrency} at once: {found.rate:.0f}/s, p50 {found.p50_ms:.2f} ms, "
                    f"p99 {found.p99_ms:.1f} ms, CPU {found.cpu_ms:.2f} ms a write",
                    flush=True,
                )
    for side, count in ((ours, failovers), (stock, stock_failovers)):
        for _ in range(count):
            side.fail_over()
        print(f"    {side.name}, failover: {', '.join(f'{s:.2f}' for s in side.failover_s)} s", flush=True)
    for side, count in ((ours, 3), (stock, max(stock_failovers, 1))):
        for _ in range(count):
            side.lose_worker()
        pairs = ", ".join(f"{down:.1f}/{moved:.1f}" for down, moved in zip(side.down_s, side.moved_s, strict=True))
        print(f"    {side.name}, engine of a worker killed: down/elsewhere {pairs} s", flush=True)
    return {
        "writes": {f"{name}, {c} at once": [asdict(w) for w in found] for (name, c), found in writes.items()},
        "failover_s": {side.name: side.failover_s for side in (ours, stock)},
        "down_s": {side.name: side.down_s for side in (ours, stock)},
        "moved_s": {side.name: side.moved_s for side in (ours, stock)},
        "table": table(writes, ours, stock),
    }


def table(writes: dict[tuple[str, int], list[Writes]], ours: Side, stock: Side) -> list[str]:
    """Rows in Markdown, medians of the rounds."""
    rows = ["| figure | stock | ours | ratio | wanted |", "|---|---|---|---|---|"]

    def row(name: str, of_stock: float, of_ours: float, wanted: str) -> None:
        rows.append(f"| {name} | {of_stock:.3g} | {of_ours:.3g} | {of_ours / of_stock:.2f} | {wanted} |")

    for concurrency, rate_wanted in ((1, ">= 1"), (16, ">= 3")):
        for what, attribute, wanted in (
            ("writes/s", "rate", rate_wanted),
            ("p50, ms", "p50_ms", ""),
            ("CPU of three daemons per write, ms", "cpu_ms", "<= 1"),
        ):
            of_stock, of_ours = (
                statistics.median(getattr(w, attribute) for w in writes[side.name, concurrency])
                for side in (stock, ours)
            )
            name = f"1.0 kB configs through three managers, {concurrency} at once: {what}"
            row(name, of_stock, of_ours, wanted)
    median = statistics.median
    row("SIGKILL of the leader to the next write, s", median(stock.failover_s), median(ours.failover_s), "<= 2.0 s")
    row("engine of a worker killed to node down, s", median(stock.down_s), median(ours.down_s), "")
    row("... to its tasks running elsewhere, s", median(stock.moved_s), median(ours.moved_s), "<= 0.5")
    return rows


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m integration.bench_raft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--failovers", type=int, default=10)
    parser.add_argument("--stock-failovers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("build/bench-raft.json"))
    args = parser.parse_args(argv)
    lab = Lab(f"br{os.getpid()}")
    try:
        print("==> two swarms of three managers and a worker", flush=True)
        lab.up(4, stock=4)
        found = run(lab, args.rounds, args.failovers, args.stock_failovers)
    except LabError as error:
        print(f"bench_raft: {error}", file=sys.stderr)
        return 1
    finally:
        lab.down()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1))
    rows = found["table"]
    assert isinstance(rows, list)
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
