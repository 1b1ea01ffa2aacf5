"""The demo: one engine, one sideswarmd, and the commands of every swarm course, typed by a program.

python -m integration.demo up [--engine unix:///run/docker.sock]
python -m integration.demo down

Alone it makes a lab of one host: an engine and sideswarmd in a network namespace. With --engine it starts sideswarmd
beside that engine, reachable from this machine only, and takes away afterwards what it brought.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from integration import images, processes
from integration.lab import ROOT, Host, Lab, LabError, start_daemon

NAME = "demo"
SERVICE = "web"
IMAGES = ("busybox:latest", "busybox:1.35")
SWARM_PORT = 2377
CONVERGE_S = 60.0


def up(engine: str | None) -> None:
    """Make the host, then show init, create, ps, scale and rm. Raises LabError."""
    lab = Lab(NAME)
    if lab.hosts or _own_file().exists():
        raise LabError("the demo is already up; take it down first: make clean-demo")
    began = time.monotonic()
    try:
        if engine:
            _say(f"starting sideswarmd beside {engine}")
            host = _beside(engine)
        else:
            _say("starting a private Docker Engine and sideswarmd in a network namespace of their own")
            host = lab.up(1)[0]
        _course(host)
    except BaseException:
        down()
        raise
    _say(f"done in {time.monotonic() - began:.0f} s. The swarm is yours:")
    print(f"\n    export DOCKER_HOST={host.api}\n    docker node ls")
    print(f"    docker service create --replicas 2 --name {SERVICE} busybox:latest sleep 1d\n")
    print(f"sideswarmd's log: {host.directory}/daemon.log      take it down: make clean-demo")


def _course(host: Host) -> None:
    where = ("--advertise-addr", host.ip) if host.ip else _this_machine_only()
    _docker(host, "swarm", "init", *where)
    _docker(host, "node", "ls")
    # the image is in the engine already: nothing to look up in a registry
    create = ("service", "create", "--name", SERVICE, "--replicas", "3", "--no-resolve-image")
    _docker(host, *create, "busybox:latest", "sleep", "1d")
    _docker(host, "service", "ps", SERVICE)
    _docker(host, "service", "scale", f"{SERVICE}=5")
    _converge(host, "5/5")
    _docker(host, "service", "ls")
    _docker(host, "service", "rm", SERVICE)


def _docker(host: Host, *args: str) -> None:
    """Type a command and show what it prints. Progress bars are for terminals; a pipe would get hundreds of lines."""
    print(f"$ docker {' '.join(args)}", flush=True)
    quieter = {"create": ("--quiet",), "scale": ("--detach",)}
    extra = () if sys.stdout.isatty() or args[0] != "service" else quieter.get(args[1], ())
    done = subprocess.run(
        ["docker", *args[:2], *extra, *args[2:]], env=_environment(host), check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise LabError(f"docker {' '.join(args)} failed with {done.returncode}")


def _environment(host: Host) -> dict[str, str]:
    return {**os.environ, "DOCKER_HOST": host.api, "DOCKER_CONFIG": str(host.directory / "cli")}


def _converge(host: Host, replicas: str) -> None:
    """Wait until ``service ls`` shows this count."""
    deadline = time.monotonic() + CONVERGE_S
    while host.docker("service", "ls", "--format", "{{.Replicas}}").strip() != replicas:
        if time.monotonic() > deadline:
            raise LabError(f"the service did not come to {replicas} replicas: docker service ps {SERVICE}")
        time.sleep(0.1)


def _this_machine_only() -> tuple[str, ...]:
    """Flags for a swarm that listens on the loopback interface, on the usual port if that is free."""
    for wanted in (SWARM_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port = probe.getsockname()[1]
            return "--advertise-addr", f"127.0.0.1:{port}", "--listen-addr", f"127.0.0.1:{port}"
    raise LabError("no free port on 127.0.0.1")


# --- beside an engine that runs already -------------------------------------------------------------------------------


def _beside(engine: str) -> Host:
    """A sideswarmd in this network namespace beside an engine that runs already; remembers what it brought."""
    directory = ROOT / NAME / "node1"
    directory.mkdir(parents=True)
    api = f"unix://{directory}/sideswarm.sock"
    host = Host(name="node1", ip="", netns="", api=api, engine=engine, state=str(directory))
    there = host.docker("images", "--format", "{{.Repository}}:{{.Tag}}", engine=True).split()
    row = {"pid": 0, "api": api, "engine": engine, "images": [image for image in IMAGES if image not in there]}
    _own_file().write_text(json.dumps(row))
    images.load(host, images.busybox(directory))
    try:
        start_daemon(host)
    finally:
        _own_file().write_text(json.dumps({**row, "pid": host.pid}))
    return host


def down() -> None:
    """End the demo's daemon and engine and delete its files; an engine of yours is left as it was found."""
    own = _own_file()
    if own.exists():
        row = json.loads(own.read_text())
        host = Host("node1", "", "", row["api"], row["engine"], str(own.parent / "node1"))
        if processes.alive(row["pid"]):
            _empty(host)
            host.docker_run("swarm", "leave", "--force")
            processes.stop(row["pid"])
        if row["images"]:
            host.docker_run("rmi", *row["images"], engine=True)
    else:
        Lab(NAME).down()
    processes.remove_tree(ROOT / NAME)
    with contextlib.suppress(OSError):
        ROOT.rmdir()  # unless there are other labs
    _say("the demo is gone")


def _empty(host: Host) -> None:
    """Remove the swarm's services, and their containers without waiting for them to stop."""
    services = host.docker_run("service", "ls", "-q").stdout.split()
    if services:
        host.docker_run("service", "rm", *services)
    node_id = host.docker_run("info", "--format", "{{.Swarm.NodeID}}").stdout.strip()
    ours = ("ps", "-aq", "--filter", f"label=com.docker.swarm.node.id={node_id}")
    containers = host.docker_run(*ours, engine=True).stdout.split() if node_id else []
    if containers:
        host.docker_run("rm", "-f", *containers, engine=True)


def _own_file() -> Path:
    return ROOT / NAME / "beside.json"


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m integration.demo")
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--engine", help="use this engine instead of a private one")
    args = parser.parse_args(argv)
    try:
        up(args.engine) if args.command == "up" else down()
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
