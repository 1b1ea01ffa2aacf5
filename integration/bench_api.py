"""The benchmark of the API and of service creation: sideswarmd, the bare engine and stock swarm mode in one run.

    python -m integration.bench_api [--rounds 5] [--idle-s 20] [--output FILE.json]

Four hosts: two with sideswarmd, two with their engine's own swarm mode. What is compared is measured in turns, so that
both sides see the same noise of the machine; every figure is a median. Needs root; takes two to four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec

from integration.lab import Host, Lab, LabError
from integration.measure import Client, children, cpu_s, quantile, resident_mib, stopwatch

P = ParamSpec("P")
LISTED_CONTAINERS = 30
REPLICAS = 10
SERVICES = 200
TASKS_PER_SERVICE = 5
PING_REQUESTS = 300
LIST_REQUESTS = 60
LONG_LIST_REQUESTS = 10
SETTLE_S = 3.0
DEADLINE_S = 90.0
RSS_MIB_MAX = 90.0


@dataclass
class Figure:
    """One line of the table. ``other`` is stock's value or the bare engine's; ``goal`` is the ratio or value wanted."""

    name: str
    unit: str
    ours: float
    other: float | None = None
    beside: str = "stock"
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours divided by the other's, where that says something."""
        return self.ours / self.other if self.other else None


@dataclass
class Side:
    """A swarm of one kind: its two hosts and a client for each."""

    first: Host
    second: Host

    def __post_init__(self) -> None:
        self.api = Client(self.first.api)
        self.engine = Client(self.first.engine)


class Bench:
    """One run: the lab, both sides, and the figures so far."""

    def __init__(self, lab: Lab, rounds: int, idle_s: float) -> None:
        self.ours = Side(lab.hosts[0], lab.hosts[1])
        self.stock = Side(lab.hosts[2], lab.hosts[3])
        self.rounds = rounds
        self.idle_s = idle_s
        self.figures: list[Figure] = []
        self._stock_rss_mib = 0.0

    @property
    def sides(self) -> tuple[Side, Side]:
        """Ours, then stock."""
        return self.ours, self.stock

    def add(self, name: str, unit: str, ours: float, other: float | None = None, goal: str = "", **more: str) -> None:
        """Keep a figure, and show it at once."""
        figure = Figure(name, unit, ours, other, goal=goal, **more)
        self.figures.append(figure)
        print(
            f"    {name}: ours {_number(ours)} {unit}"
            + (f", {figure.beside} {_number(other)}" if other is not None else "")
        )

    def run(self) -> None:
        """Everything, in an order in which one part prepares the next."""
        for title, part in (
            ("requests that pass through", self.pass_through),
            ("swarm init", self.init),
            (f"service create --replicas {REPLICAS}, service rm", self.services),
            ("idle: not in a swarm, and one-node manager", self.idle_manager),
            ("swarm join", self.join),
            ("idle: worker", self.idle_worker),
            (f"lists with {SERVICES} services and {SERVICES * TASKS_PER_SERVICE} tasks", self.lists),
        ):
            print(f"==> {title}", flush=True)
            part()

    # --- requests that pass through --------------------------------------------------------------------------------

    def pass_through(self) -> None:
        """_ping and containers/json: ours, its engine without us, and a stock engine."""
        for side in self.sides:
            for _ in range(LISTED_CONTAINERS):
                side.engine.raw("POST", "/containers/create", {"Image": "busybox:latest", "Cmd": ["sleep", "1d"]})
        ours = self.ours.first
        targets = {
            "ours": (self.ours.api, ours.pid),
            "bare": (self.ours.engine, ours.engine_pid),
            "stock": (self.stock.api, self.stock.first.engine_pid),
        }
        for path, count in (("/_ping", PING_REQUESTS), ("/containers/json?all=1", LIST_REQUESTS)):
            wall: dict[str, list[float]] = {name: [] for name in targets}
            cpu: dict[str, list[float]] = {name: [] for name in targets}
            for number in range(self.rounds + 1):
                for name, (client, pid) in targets.items():
                    before = cpu_s(pid)
                    times = _requests(client, path, count)
                    if number:  # the first round warms up
                        wall[name] += times
                        cpu[name].append((cpu_s(pid) - before) / count)
            name = path.partition("?")[0].lstrip("/")
            for share in (0.5, 0.99):
                at = {key: quantile(values, share) * 1000 for key, values in wall.items()}
                self.add(f"{name} p{share * 100:.0f}", "ms", at["ours"], at["bare"], beside="bare engine")
                self.add(f"{name} p{share * 100:.0f}", "ms", at["ours"], at["stock"])
            per = {key: quantile(values, 0.5) * 1e6 for key, values in cpu.items()}
            self.add(f"{name} CPU of the process asked", "us", per["ours"], per["bare"], beside="bare engine")
        for side in self.sides:
            for container in side.engine.call("GET", "/containers/json?all=1"):
                side.engine.raw("DELETE", f"/containers/{container['Id']}?force=1")

    # --- swarm ------------------------------------------------------------------------------------------------------

    def init(self) -> None:
        """POST /swarm/init until it answers; the last swarm stays."""
        times: list[list[float]] = [[], []]
        before = resident_mib(self.stock.first.engine_pid)
        for number in range(self.rounds):
            for side, kept in zip(self.sides, times, strict=True):
                if number:
                    side.api.raw("POST", "/swarm/leave?force=1")
                kept.append(_timed(_init, side))
        self._stock_rss_mib = resident_mib(self.stock.first.engine_pid) - before
        self._both("swarm init", times)

    def join(self) -> None:
        """POST /swarm/join as a worker until the manager shows the node ready."""
        times: list[list[float]] = [[], []]
        for number in range(self.rounds):
            for side, kept in zip(self.sides, times, strict=True):
                if number:
                    Client(side.second.api).raw("POST", "/swarm/leave?force=1")
                token = side.api.call("GET", "/swarm")["JoinTokens"]["Worker"]
                ready = _ready(side)
                kept.append(_timed(_join, side, token, ready + 1))
        self._both("swarm join (worker) to ready", times)

    def services(self) -> None:
        """Ten replicas from the call until all run, and from the removal until no container is left."""
        made: list[list[float]] = [[], []]
        gone: list[list[float]] = [[], []]
        for number in range(self.rounds):
            for side, create, remove in zip(self.sides, made, gone, strict=True):
                name = f"bench{number}"
                create.append(_timed(_create_and_wait, side, name))
                remove.append(_timed(_remove_and_wait, side, name))
        self._both(f"service create --replicas {REPLICAS} to all running", made, "<= 1.2")
        self._both(f"service rm, {REPLICAS} replicas, to no container", gone)

    def lists(self) -> None:
        """GET of long lists. The tasks wait for a node that does not exist."""
        for side in self.sides:
            for number in range(SERVICES):
                spec = _service(f"list{number}", TASKS_PER_SERVICE)
                spec["TaskTemplate"]["Placement"] = {"Constraints": ["node.labels.nowhere==1"]}
                side.api.raw("POST", "/services/create", spec)
            _wait(partial(_has_tasks, side, SERVICES * TASKS_PER_SERVICE))
        for path in ("/services", "/tasks", "/nodes"):
            times: list[list[float]] = [[], []]
            cpu: list[list[float]] = [[], []]
            for _ in range(self.rounds + 1):
                for side, kept, used in zip(self.sides, times, cpu, strict=True):
                    before = cpu_s(side.first.pid)
                    kept += _requests(side.api, path, LONG_LIST_REQUESTS)
                    used.append((cpu_s(side.first.pid) - before) / LONG_LIST_REQUESTS)
            self._both(f"GET {path} p50", times, unit="ms")
            self._both(f"GET {path} CPU", cpu, unit="ms")

    def _both(self, name: str, times: list[list[float]], goal: str = "", unit: str = "s") -> None:
        scale = 1000 if unit == "ms" else 1
        ours, stock = (quantile(values, 0.5) * scale for values in times)
        self.add(name, unit, ours, stock, goal=goal)

    # --- idle -------------------------------------------------------------------------------------------------------

    def idle_manager(self) -> None:
        """Nothing happens for a while: host 1 is a manager of an empty swarm, host 2 outside any."""
        used = self._idle(self.ours.first, self.ours.second, self.stock.first, self.stock.second)
        manager, outside, stock_manager, stock_outside = used
        self.add("idle CPU, not in a swarm: sideswarmd", "ms/s", outside.cpu, goal="< 10")
        all_outside = outside.cpu + outside.engine_cpu
        self.add("idle CPU, not in a swarm: all daemons", "ms/s", all_outside, stock_outside.engine_cpu)
        self.add("idle CPU, manager: sideswarmd", "ms/s", manager.cpu, goal="< 10")
        self.add("idle CPU, manager: all daemons", "ms/s", manager.cpu + manager.engine_cpu, stock_manager.engine_cpu)
        limit = f"< {RSS_MIB_MAX:.0f}"
        self.add("RSS, not in a swarm: sideswarmd", "MiB", outside.rss, goal=limit)
        name = "RSS, manager: sideswarmd; stock: what init adds"
        self.add(name, "MiB", manager.rss, self._stock_rss_mib, goal=limit)

    def idle_worker(self) -> None:
        """The same with host 2 as a worker."""
        used = self._idle(self.ours.second, self.stock.second)
        self.add("idle CPU, worker: sideswarmd", "ms/s", used[0].cpu, goal="< 10")
        self.add("idle CPU, worker: all daemons", "ms/s", used[0].cpu + used[0].engine_cpu, used[1].engine_cpu)
        self.add("RSS, worker: sideswarmd", "MiB", used[0].rss, goal=f"< {RSS_MIB_MAX:.0f}")

    def _idle(self, *hosts: Host) -> list[Used]:
        time.sleep(SETTLE_S)
        before = [(_daemon_cpu(host), _engine_cpu(host)) for host in hosts]
        time.sleep(self.idle_s)
        used = []
        for host, (daemon, engine) in zip(hosts, before, strict=True):
            used.append(
                Used(
                    cpu=(_daemon_cpu(host) - daemon) * 1000 / self.idle_s,
                    engine_cpu=(_engine_cpu(host) - engine) * 1000 / self.idle_s,
                    rss=0.0 if host.stock else resident_mib(host.pid),
                )
            )
        return used

    # --- output -----------------------------------------------------------------------------------------------------

    def table(self) -> str:
        """The figures as a Markdown table that also reads well in a terminal."""
        rows = [("figure", "unit", "other", "beside", "ours", "ratio", "wanted")]
        for figure in self.figures:
            ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
            other = "" if figure.other is None else _number(figure.other)
            beside = figure.beside if figure.other is not None else ""
            rows.append((figure.name, figure.unit, other, beside, _number(figure.ours), ratio, figure.goal))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything for the JSON file."""
        return {
            "command": "python -m integration.bench_api",
            "when": time.strftime("%Y-%m-%d %H:%M"),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "rounds": self.rounds,
            "figures": [{**asdict(figure), "ratio": figure.ratio} for figure in self.figures],
        }


@dataclass(frozen=True)
class Used:
    """What a host used while idle: CPU of sideswarmd and of the engine in ms per second, sideswarmd's memory in MiB."""

    cpu: float
    engine_cpu: float
    rss: float


def _daemon_cpu(host: Host) -> float:
    return 0.0 if host.stock else cpu_s(host.pid)


def _engine_cpu(host: Host) -> float:
    return cpu_s(host.engine_pid, *children(host.engine_pid))


def _requests(client: Client, path: str, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = stopwatch()
        client.raw("GET", path)
        times.append(stopwatch() - began)
    return times


def _timed(action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> float:
    began = stopwatch()
    action(*args, **kwargs)
    return stopwatch() - began


def _wait(condition: Callable[[], bool]) -> None:
    deadline = stopwatch() + DEADLINE_S
    while not condition():
        if stopwatch() > deadline:
            raise LabError(f"the benchmark waited {DEADLINE_S:.0f} s in vain")
        time.sleep(0.02)


def _init(side: Side) -> None:
    host = side.first
    side.api.call("POST", "/swarm/init", {"ListenAddr": f"{host.ip}:2377", "AdvertiseAddr": host.ip})


def _ready(side: Side) -> int:
    return sum(node["Status"]["State"] == "ready" for node in side.api.call("GET", "/nodes"))


def _join(side: Side, token: str, wanted: int) -> None:
    first, second = side.first, side.second
    body = {
        "ListenAddr": f"{second.ip}:2377",
        "AdvertiseAddr": second.ip,
        "RemoteAddrs": [f"{first.ip}:2377"],
        "JoinToken": token,
    }
    Client(second.api).raw("POST", "/swarm/join", body)
    _wait(lambda: _ready(side) >= wanted)


def _has_tasks(side: Side, wanted: int) -> bool:
    return len(side.api.call("GET", "/tasks")) >= wanted


def _service(name: str, replicas: int) -> dict[str, Any]:
    container = {"Image": "busybox:latest", "Command": ["sleep", "1d"], "StopGracePeriod": 0}
    return {
        "Name": name,
        "Mode": {"Replicated": {"Replicas": replicas}},
        "TaskTemplate": {"ContainerSpec": container, "RestartPolicy": {"Condition": "any", "Delay": 0}},
    }


def _create_and_wait(side: Side, name: str) -> None:
    side.api.raw("POST", "/services/create", _service(name, REPLICAS))

    def running() -> bool:
        tasks = side.api.call("GET", "/tasks", service=name)
        return len([task for task in tasks if task["Status"]["State"] == "running"]) >= REPLICAS

    _wait(running)


def _remove_and_wait(side: Side, name: str) -> None:
    side.api.raw("DELETE", f"/services/{name}")
    label = f"com.docker.swarm.service.name={name}"
    _wait(lambda: not side.engine.call("GET", "/containers/json?all=1", label=label))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 1 when the benchmark could not be run."""
    parser = argparse.ArgumentParser(prog="python -m integration.bench_api")
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken (default: 5)")
    parser.add_argument("--idle-s", type=float, default=20.0, help="how long idle daemons are watched (default: 20)")
    parser.add_argument("--output", type=Path, default=Path("build/bench-api.json"), help="where the figures go")
    args = parser.parse_args(argv)
    lab = Lab("bench")
    began = stopwatch()
    try:
        lab.up(2, stock=2)
        bench = Bench(lab, args.rounds, args.idle_s)
        bench.run()
    except (LabError, RuntimeError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        lab.down()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(bench.record(), indent=1) + "\n")
    print(f"\n{bench.table()}\n\n{stopwatch() - began:.0f} s; the same as JSON: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
