"""The demo: one engine, one sideswarmd, and the commands of every swarm course, typed by a program.

python -m integration.demo up [--engine unix:///run/docker.sock]
python -m integration.demo down
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from integration import images, processes
from integration.lab import ROOT, Host, Lab, LabError, start_daemon

NAME = "demo"
SERVICE = "web"


def up(engine: str | None) -> None:
    """Make the host, then show init, create, ps, scale and rm. Raises LabError."""
    lab = Lab(NAME)
    if lab.hosts or _own_file().exists():
        raise LabError("the demo is already up; take it down first: make clean-demo")
    began = time.monotonic()
    if engine:
        host = _beside(engine)
    else:
        _say("starting a private Docker Engine and sideswarmd in a network namespace of their own")
        host = lab.up(1)[0]
    try:
        _course(host)
    except BaseException:
        down()
        raise
    _say(f"done in {time.monotonic() - began:.0f} s. The swarm is yours:")
    print(f"\n    export DOCKER_HOST={host.api}\n    docker node ls")
    print(f"    docker service create --replicas 2 --name {SERVICE} busybox:latest sleep 1d\n")
    print(f"sideswarmd's log: {host.directory}/daemon.log      take it down: make clean-demo")


def _course(host: Host) -> None:
    _docker(host, "swarm", "init", *(("--advertise-addr", host.ip) if host.ip else ()))
    _docker(host, "node", "ls")
    _docker(host, "service", "create", "--name", SERVICE, "--replicas", "3", "busybox:latest", "sleep", "1d")
    _docker(host, "service", "ps", SERVICE)
    _docker(host, "service", "scale", f"{SERVICE}=5")
    _docker(host, "service", "ls")
    _docker(host, "service", "rm", SERVICE)


def _docker(host: Host, *args: str) -> None:
    """Type a command and show what it prints. Progress bars are for terminals: a pipe gets them line by line."""
    print(f"$ docker {' '.join(args)}", flush=True)
    quiet = ("--quiet",) if args[:2] == ("service", "create") and not sys.stdout.isatty() else ()
    environment = {**os.environ, "DOCKER_HOST": host.api, "DOCKER_CONFIG": str(host.directory / "cli")}
    command = ["docker", *args[:2], *quiet, *args[2:]]
    done = subprocess.run(command, env=environment, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise LabError(f"docker {' '.join(args)} failed with {done.returncode}")


def _beside(engine: str) -> Host:
    """A sideswarmd in this network namespace beside an engine that runs already."""
    directory = ROOT / NAME / "node1"
    directory.mkdir(parents=True)
    _say(f"starting sideswarmd beside {engine}")
    host = Host(
        name="node1",
        ip="",
        netns="",
        api=f"unix://{directory}/sideswarm.sock",
        engine=engine,
        state=str(directory),
    )
    try:
        images.load(host, images.busybox(directory))
        start_daemon(host)
    except BaseException:
        processes.remove_tree(directory.parent)
        raise
    _own_file().write_text(json.dumps({"pid": host.pid, "api": host.api}))
    return host


def down() -> None:
    """End the demo's daemon and engine and delete its files; with an engine of yours, leave the swarm first."""
    own = _own_file()
    if own.exists():
        row = json.loads(own.read_text())
        environment = {**os.environ, "DOCKER_HOST": row["api"]}
        subprocess.run(["docker", "swarm", "leave", "--force"], env=environment, check=False, capture_output=True)
        processes.stop(int(row["pid"]))
        processes.remove_tree(own.parent)
        return
    Lab(NAME).down()


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
