"""Stacks on overlay networks of ours, on real engines: names, virtual addresses, ports, and changes under load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from integration import stacks
from integration.lab import Host, Lab
from integration.stacks import service
from integration.traffic import PROJECT, traffic
from integration.waiting import until

RESOLVER = "127.0.0.11"
OVERLAYS: dict[str, dict[str, str]] = {"front": {}, "back": {}}


def ask(enter: Sequence[str], url: str) -> str:
    """One request from inside a namespace; what came back, or the error."""
    script = "import asyncio, sys; from integration.traffic import fetch; print(asyncio.run(fetch(*sys.argv[1:])))"
    words = [*enter, sys.executable, "-c", script, url, RESOLVER]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def from_host(host: Host) -> list[str]:
    """The words that enter the network of a host."""
    return ["nsenter", f"--net=/run/netns/{host.netns}"]


def test_a_stack_answers_by_name_by_virtual_address_and_by_port_on_every_node(swarm: list[Host]) -> None:
    manager = swarm[0]
    services = {
        "web": service(["front"], 3, ports=["8080:80"], deploy={"placement": {"max_replicas_per_node": 1}}),
        "api": service(["front", "back"], 2, word="api"),
        "db": service(["back"], 1, word="db"),
    }
    stacks.deploy(manager, "shop", services, OVERLAYS)
    for name, count in (("web", 3), ("api", 2), ("db", 1)):
        stacks.running(manager, f"shop_{name}", count)

    [(db, db_host)] = stacks.containers(swarm, "shop_db").items()
    apis = stacks.containers(swarm, "shop_api")
    webs = {container[:12]: host for container, host in stacks.containers(swarm, "shop_web").items()}
    for api, host in apis.items():
        enter = stacks.inside(host, api)
        assert ask(enter, "http://db/cgi-bin/who").startswith(db[:12])
        assert ask(enter, "http://shop_db/cgi-bin/who").endswith("db")
        seen = {ask(enter, "http://web/cgi-bin/who").split()[0] for _ in range(24)}
        assert seen == set(webs)
        assert {ask(enter, "http://tasks.web/cgi-bin/who").split()[0] for _ in range(24)} == set(webs)
    assert "TrafficError: DNS error" in ask(stacks.inside(db_host, db), "http://web/")  # not on its networks
    for asked in swarm:
        for client in swarm:
            if client is asked:
                continue
            answers = [ask(from_host(client), f"http://{asked.ip}:8080/cgi-bin/who").split() for _ in range(12)]
            assert {answer[2] for answer in answers} == {client.ip}
            assert len({answer[0] for answer in answers}) > 1

    manager.docker("stack", "rm", "shop")
    until(lambda: not stacks.containers(swarm, "shop_web"), what="no containers")
    for host in swarm:
        until(partial(_networks, host, False), wanted=lambda left: not left, what=f"no networks on {host.name}")
        until(partial(_networks, host, True), wanted=lambda left: not left, what=f"no networks in {host.name}'s engine")


def _networks(host: Host, engine: bool) -> list[str]:
    return host.docker("network", "ls", "-q", "--filter", "name=shop_", engine=engine).split()


def test_a_rolling_update_loses_no_request(swarm: list[Host]) -> None:
    manager = swarm[0]
    update = {"update_config": {"parallelism": 1, "order": "start-first"}}
    services = {
        "web": service(["front"], 3, word="1", ports=["8080:80"], deploy=update),
        "client": service(["front"], 1),
    }
    stacks.deploy(manager, "shop", services, {"front": {}})
    stacks.running(manager, "shop_web", 3)
    stacks.running(manager, "shop_client", 1)
    [(client, host)] = stacks.containers(swarm, "shop_client").items()
    with (
        traffic(stacks.inside(host, client), "http://web/cgi-bin/who", RESOLVER) as by_name,
        traffic(from_host(swarm[2]), f"http://{swarm[1].ip}:8080/cgi-bin/who") as by_port,
    ):
        for word in ("2", "3"):
            manager.docker("service", "update", "--quiet", "--env-add", f"WORD={word}", "shop_web")
        tallies = [by_name.end(), by_port.end()]
    manager.docker("stack", "rm", "shop")
    for tally in tallies:
        assert tally.failures == [], tally.failures[:5]
        assert {answer.split()[-1] for answer in tally.answers} == {"1", "2", "3"}


def test_what_happens_to_daemons_does_not_reach_the_traffic(lab: Lab, swarm: list[Host]) -> None:
    manager, second, third = swarm
    on_second = {"placement": {"constraints": ["node.hostname==node2"]}}
    services = {"web": service(["front"], 3, ports=["8080:80"]), "client": service(["front"], 1, deploy=on_second)}
    stacks.deploy(manager, "shop", services, {"front": {}})
    stacks.running(manager, "shop_web", 3)
    stacks.running(manager, "shop_client", 1)
    [(client, _)] = stacks.containers([second], "shop_client").items()
    with (
        traffic(stacks.inside(second, client), "http://web/cgi-bin/who", RESOLVER) as by_name,
        traffic(from_host(third), f"http://{second.ip}:8080/cgi-bin/who") as by_port,
    ):
        for host in (second, manager):
            lab.kill(host)
            lab.start(host)
        until(lambda: manager.docker("service", "ls", "-q").strip(), what="a leader")
        stacks.running(manager, "shop_web", 3)
        tallies = [by_name.end(), by_port.end()]
    manager.docker("stack", "rm", "shop")
    for tally in tallies:
        assert tally.requests > 0
        assert tally.failures == [], tally.failures[:5]
