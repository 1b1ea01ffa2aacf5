"""The lab: N hosts on one bridge, each with a stock dockerd and a sideswarmd of its own. Needs root.

    python -m integration.lab up 3                 three hosts, no swarm yet; prints one JSON object per host
    python -m integration.lab up 3 --managers 1    the same, and a swarm made with the docker CLI
    python -m integration.lab up 3 --stock 2       ... and two more hosts that use their engine's own swarm mode
    python -m integration.lab ls | down | heal
    python -m integration.lab kill|stop|start|restart HOST [daemon|engine]
    python -m integration.lab cut HOST [HOST]      drop all packets of a host, or only those between two

A host is a network namespace with eth0 (10.99.0.N/24) on a bridge that lives in a namespace of its own, so several
labs (--name) never meet, and nothing happens in the root namespace. Nothing is left behind after ``down``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from integration import images, processes

ROOT = Path(os.environ.get("SIDESWARM_LAB_ROOT", "/var/lib/sideswarm-lab"))
NETNS = Path("/run/netns")
PLUGINS = Path("/run/docker/plugins")
PROJECT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
OUTRUN = "update out of sequence"


class LabError(Exception):
    """Something the person at the keyboard can put right; the text says how."""


@dataclass
class Host:
    """One host of a lab. api and engine are DOCKER_HOST values; pid is the daemon's (the engine's on a stock host)."""

    name: str
    ip: str
    netns: str
    api: str
    engine: str
    state: str
    pid: int = 0
    engine_pid: int = 0
    stock: bool = False
    extra: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """Where everything of this host lives."""
        return Path(self.state)

    def row(self) -> dict[str, object]:
        """The object printed for this host."""
        return {key: getattr(self, key) for key in ("name", "ip", "netns", "api", "engine", "state", "pid")}

    def docker(self, *args: str, check: bool = True, engine: bool = False, timeout_s: float = 120.0) -> str:
        """Run the docker CLI against this host; returns its standard output, raises LabError with its error text."""
        done = self.docker_run(*args, engine=engine, timeout_s=timeout_s)
        while check and OUTRUN in done.stderr:  # what the CLI had read was older than a node's latest report: again
            done = self.docker_run(*args, engine=engine, timeout_s=timeout_s)
        if check and done.returncode:
            raise LabError(f"docker {' '.join(args)} on {self.name}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def docker_run(
        self, *args: str, engine: bool = False, timeout_s: float = 120.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """As docker(), but returns everything and never raises for a failing command."""
        target = self.engine if engine else self.api
        environment = {**os.environ, "DOCKER_HOST": target, "DOCKER_CONFIG": str(self.directory.parent / "cli")}
        return subprocess.run(
            ["docker", *args],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
        )

    def inside(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command in the host's network namespace."""
        return subprocess.run(
            ["nsenter", f"--net={NETNS / self.netns}", *command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )


class Lab:
    """Drives dockerd and sideswarmd on all hosts. A lab is found by its name, with ``lab.json`` in its directory."""

    def __init__(self, name: str = "lab") -> None:
        self.name = name
        self.directory = ROOT / name
        self._file = self.directory / "lab.json"
        self.hosts: list[Host] = []
        if self._file.exists():
            self.hosts = [Host(**row) for row in json.loads(self._file.read_text())]

    # --- life cycle ------------------------------------------------------------------------------------------------

    def up(self, count: int, stock: int = 0, managers: int = 0, flags: list[str] | None = None) -> list[Host]:
        """Make the hosts and start everything; on failure nothing is left. ``flags`` go to every sideswarmd."""
        if self.hosts:
            raise LabError(f"lab {self.name} is already up; end it with: python -m integration.lab down")
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it makes network namespaces and starts engines")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            for number in range(1, count + stock + 1):
                self.hosts.append(self._host(number, number > count, flags or []))
            self._save()  # first, so that ``down`` finds what is made next
            self._network(count + stock)
            archive = images.busybox(self.directory)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda host: self._boot(host, archive), self.hosts))
            self._save()
            if managers:
                self.swarm(managers)
        except BaseException:
            self.down()
            raise
        return self.hosts

    def _boot(self, host: Host, archive: Path) -> None:
        self._start_engine(host)
        images.load(host, archive)
        if not host.stock:
            start_daemon(host)

    def swarm(self, managers: int) -> None:
        """A swarm over all hosts: init on the first, then join with the tokens it prints."""
        first = self.hosts[0]
        first.docker("swarm", "init", "--advertise-addr", first.ip)
        tokens = {role: first.docker("swarm", "join-token", "-q", role).strip() for role in ("manager", "worker")}
        for number, host in enumerate(self.hosts[1:], 2):
            role = "manager" if number <= managers else "worker"
            host.docker("swarm", "join", "--token", tokens[role], "--advertise-addr", host.ip, f"{first.ip}:2377")

    def down(self) -> None:
        """End every process, take down namespaces and mounts, delete all files."""
        for host in self.hosts:
            if not host.stock:
                processes.stop(host.pid)
        for host in self.hosts:
            processes.kill(host.engine_pid)
        # containerd, its shims, and their children: the containers
        processes.kill_mentioning(self.directory)
        for host in self.hosts:
            (PLUGINS / f"{driver_of(host)}.sock").unlink(missing_ok=True)
            processes.unmount_below(host.directory)
            processes.forget_containers(host.directory / "exec/containerd/daemon/io.containerd.runtime.v2.task/moby")
        for namespace in (*(host.netns for host in self.hosts), f"{self.name}-net"):
            if (NETNS / namespace).exists():
                _run("ip", "netns", "del", namespace)
        processes.remove_tree(self.directory)
        self.hosts = []

    # --- hosts -----------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name. Raises LabError."""
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts) or "none: the lab is down"
        raise LabError(f"no host {name!r} in lab {self.name} (there are: {names})")

    def kill(self, host: Host, part: str = "daemon") -> None:
        """SIGKILL sideswarmd, or dockerd (its containers go on)."""
        processes.kill(self._pid(host, part))
        self._forget(host, part)

    def stop(self, host: Host, part: str = "daemon") -> None:
        """SIGTERM and wait."""
        processes.stop(self._pid(host, part))
        self._forget(host, part)

    @contextlib.contextmanager
    def paused(self, host: Host, part: str = "daemon") -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end: it neither runs nor hangs up."""
        pid = self._pid(host, part)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def start(self, host: Host, part: str = "daemon") -> None:
        """Start what was killed or stopped, and wait until it answers."""
        if processes.alive(self._pid(host, part)):
            raise LabError(f"the {part} of {host.name} is running")
        if part == "engine" or host.stock:
            self._start_engine(host)
        else:
            start_daemon(host)
        self._save()

    def ensure(self, host: Host, part: str) -> None:
        """Start a part of a host unless it runs."""
        if part == "daemon" and host.stock:
            return
        if not processes.alive(self._pid(host, part)):
            self.start(host, part)

    def cut(self, host: Host, other: Host | None = None) -> None:
        """Drop all packets from and to a host, or only those between two hosts."""
        peers = [(host, other.ip), (other, host.ip)] if other else [(host, None)]
        for target, address in peers:
            match = ("ip saddr {} drop", "ip daddr {} drop") if address else ("iif != lo drop", "oif != lo drop")
            rules = "".join(
                f"add chain inet lab {hook} {{ type filter hook {hook} priority -300; }}\n"
                f"add rule inet lab {hook} {text.format(address)}\n"
                for hook, text in zip(("input", "output"), match, strict=True)
            )
            _nft(target, "add table inet lab\n" + rules)

    def heal(self) -> None:
        """Undo every cut."""
        for host in self.hosts:
            _nft(host, "add table inet lab\ndelete table inet lab\n")

    # --- inside ----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps([asdict(host) for host in self.hosts], indent=1))
        temporary.replace(self._file)

    def _network(self, count: int) -> None:
        hub = f"{self.name}-net"
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "set", "lo", "up")
        _run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            namespace, port = f"{self.name}-{number}", f"p{number}"
            _run("ip", "netns", "add", namespace)
            _run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _run("ip", "-n", hub, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            _run("ip", "-n", namespace, "address", "add", f"10.99.0.{number}/24", "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")

    def _host(self, number: int, stock: bool, flags: list[str]) -> Host:
        directory = self.directory / f"node{number}"
        directory.mkdir()
        engine = f"unix://{directory}/docker.sock"
        return Host(
            name=f"node{number}",
            ip=f"10.99.0.{number}",
            netns=f"{self.name}-{number}",
            api=engine if stock else f"unix://{directory}/sideswarm.sock",
            engine=engine,
            state=str(directory),
            stock=stock,
            extra=flags,
        )

    def _start_engine(self, host: Host) -> None:
        directory = host.directory
        (directory / "docker.pid").unlink(missing_ok=True)
        # a killed dockerd leaves its containerd behind, which the next one fails to take over every other time
        processes.kill_from_file(directory / "exec" / "containerd" / "containerd.pid")
        if not (directory / "daemon.json").exists():
            (directory / "daemon.json").write_text("{}")
        command = ["dockerd", "--config-file", f"{directory}/daemon.json", "--data-root", f"{directory}/engine"]
        command += ["--exec-root", f"{directory}/exec", "-p", f"{directory}/docker.pid", "-H", host.engine]
        command += ["--label", f"rack=r{host.name.removeprefix('node')}"]
        host.engine_pid = _spawn(host, command, directory / "engine.log")
        _wait_answer(host.engine, host.engine_pid, directory / "engine.log")
        if host.stock:
            host.pid = host.engine_pid

    def _pid(self, host: Host, part: str) -> int:
        if part not in ("daemon", "engine"):
            raise LabError(f"{part!r} is neither daemon nor engine")
        return host.engine_pid if part == "engine" or host.stock else host.pid

    def _forget(self, host: Host, part: str) -> None:
        if part == "engine" or host.stock:
            host.engine_pid = 0
            (host.directory / "docker.sock").unlink(missing_ok=True)
        if part == "daemon" or host.stock:
            host.pid = 0
        self._save()


def driver_of(host: Host) -> str:
    """The name of a host's driver of networks: the engines of all labs share one directory of plugins."""
    return "-".join(("sideswarm", *host.directory.parts[-3:]))


def start_daemon(host: Host) -> None:
    """Start a host's sideswarmd and wait until it answers; sets host.pid. Raises LabError."""
    directory = host.directory
    command = [sys.executable, "-m", "engine_api.daemon", "--engine", host.engine, "-H", host.api]
    command += ["--data-root", f"{directory}/swarm", "--exec-root", f"{directory}/run"]
    command += ["--pidfile", f"{directory}/sideswarm.pid", "--log-level", "debug"]
    command += ["--network-driver", driver_of(host), *host.extra]
    host.pid = _spawn(host, command, directory / "daemon.log")
    _wait_answer(host.api, host.pid, directory / "daemon.log")


def _spawn(host: Host, command: list[str], log: Path) -> int:
    """Start a daemon in the host's network namespace, if it has one, under its host name; returns the daemon's pid."""
    # nsenter, not "ip netns exec": that one remounts /sys, and dockerd then finds no cgroups
    wrapper = ["nsenter", f"--net={NETNS / host.netns}", "unshare", "--uts", "sh", "-c"] if host.netns else []
    script = ['hostname "$0" && exec "$@"', host.name] if host.netns else []
    environment = {**os.environ, "DOCKER_SERVICE_PREFER_OFFLINE_IMAGE": "1", "PYTHONPATH": str(PROJECT)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*wrapper, *script, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    processes.adopt(process)
    return process.pid


def _wait_answer(target: str, pid: int, log: Path) -> None:
    """Wait until GET /_ping on a unix socket says OK. Raises LabError with the end of the log."""
    path = target.removeprefix("unix://")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and processes.alive(pid):
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(path)
                client.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
                if b" 200 " in client.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    raise LabError(f"{target} does not answer; the end of {log}:\n{tail}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")


def _nft(host: Host, rules: str) -> None:
    command = ["nsenter", f"--net={NETNS / host.netns}", "nft", "-f", "-"]
    done = subprocess.run(command, input=rules, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"nft in {host.netns}: {done.stderr.strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m integration.lab", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--name", default="lab", help="which lab (default: lab)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="make hosts and start everything")
    up.add_argument("count", type=int, nargs="?", default=0, help="hosts with sideswarmd")
    up.add_argument("--stock", type=int, default=0, metavar="N", help="hosts with their engine's own swarm mode")
    up.add_argument("--managers", type=int, default=0, metavar="M", help="also make a swarm with M managers")
    commands.add_parser("down", help="end everything, leave nothing")
    commands.add_parser("ls", help="print the hosts")
    commands.add_parser("heal", help="undo every cut")
    for verb in ("kill", "stop", "start", "restart"):
        one = commands.add_parser(verb)
        one.add_argument("host")
        one.add_argument("part", nargs="?", default="daemon", choices=("daemon", "engine"))
    cut = commands.add_parser("cut", help="drop packets")
    cut.add_argument("host")
    cut.add_argument("other", nargs="?")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = _parser().parse_args(argv)
    lab = Lab(args.name)
    try:
        match args.command:
            case "up":
                lab.up(args.count, args.stock, args.managers)
            case "down":
                lab.down()
            case "heal":
                lab.heal()
            case "cut":
                lab.cut(lab.host(args.host), lab.host(args.other) if args.other else None)
            case "restart":
                lab.stop(lab.host(args.host), args.part)
                lab.start(lab.host(args.host), args.part)
            case "kill" | "stop" | "start":
                getattr(lab, args.command)(lab.host(args.host), args.part)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    if args.command in ("up", "ls"):
        for host in lab.hosts:
            print(json.dumps(host.row()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
