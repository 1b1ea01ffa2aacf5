"""A service under load while all around it changes: ``python -m integration.overlay_load --updates 10``, as root.

Three hosts, all managers. Clients ask by name from a container and by the published port from outside. Meanwhile:
rolling updates, scaling up and down, a drained node, a killed leader, a restarted daemon and a restarted engine with
live-restore. It prints what failed, and ends with 1 if anything did.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from integration import stacks
from integration.lab import Host, Lab
from integration.stacks import service
from integration.test_overlay import RESOLVER, from_host
from integration.traffic import traffic


def leader_of(hosts: list[Host]) -> Host:
    """The host whose manager leads."""
    for host in hosts:
        shown = host.docker_run("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}")
        for line in shown.stdout.splitlines():
            if line.endswith("Leader"):
                return next(one for one in hosts if one.name == line.split()[0])
    raise AssertionError("there is no leader")


def disturb(lab: Lab, updates: int) -> None:
    """Everything that happens during the load."""
    first, second, third = lab.hosts

    def step(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    for number in range(updates):
        step(f"update {number + 1}")
        update = ("service", "update", "--quiet", "--env-add", f"WORD={number}", "shop_web")
        first.docker(*update, timeout_s=180)
    step("scale to 6 and back")
    first.docker("service", "scale", "shop_web=6")
    first.docker("service", "scale", "shop_web=3")
    step("drain node2")
    first.docker("node", "update", "--availability", "drain", "node2")
    stacks.running(first, "shop_web", 3)
    first.docker("node", "update", "--availability", "active", "node2")
    step("kill the leader")
    leader = leader_of(lab.hosts)
    lab.kill(leader)
    lab.start(leader)
    stacks.running(second, "shop_web", 3)
    step("restart the daemon of node3")
    lab.stop(third)
    lab.start(third)
    step("restart the engine of node3")
    lab.stop(third, "engine")
    time.sleep(2)
    lab.start(third, "engine")
    time.sleep(5)
    stacks.running(second, "shop_web", 3)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m integration.overlay_load")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second of each client")
    args = parser.parse_args()
    lab = Lab("load")
    lab.up(3)
    try:
        for host in lab.hosts:
            (host.directory / "daemon.json").write_text(json.dumps({"live-restore": True}))
            lab.stop(host, "engine")
            lab.start(host, "engine")
        lab.swarm(3)
        first, second, third = lab.hosts
        update = {"update_config": {"parallelism": 1, "order": "start-first"}}
        on_first = {"placement": {"constraints": ["node.hostname==node1"]}}
        services = {
            "web": service(["front"], 3, ports=["8080:80"], deploy=update),
            "client": service(["front"], 1, deploy=on_first),
        }
        stacks.deploy(first, "shop", services, {"front": {}})
        stacks.running(first, "shop_web", 3)
        stacks.running(first, "shop_client", 1)
        [(client, _)] = stacks.containers([first], "shop_client").items()
        with (
            traffic(stacks.inside(first, client), "http://web/cgi-bin/who", RESOLVER, args.rate) as by_name,
            traffic(from_host(third), f"http://{second.ip}:8080/cgi-bin/who", rate=args.rate) as by_port,
        ):
            try:
                disturb(lab, args.updates)
            finally:
                tallies = {"by name": by_name.end(), "by port": by_port.end()}
                for way, tally in tallies.items():
                    print(f"{way}: {tally.requests:,} requests, {len(tally.failures)} failed {tally.failures[:8]}")
    finally:
        lab.down()
    return int(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
