"""Plain containers on attachable networks of the swarm, on real engines: on any node, through restarts."""

from __future__ import annotations

import json
from functools import partial

from integration import stacks
from integration.lab import Host, Lab
from integration.stacks import service
from integration.test_overlay import ask
from integration.waiting import until

SHARED = {"shared": {"attachable": True}}


def address_of(host: Host, container: str) -> str:
    """The address that a container has on the network."""
    shown = json.loads(host.docker("inspect", container))[0]
    return str(shown["NetworkSettings"]["Networks"]["shop_shared"]["IPAddress"])


def _saw(answer: str) -> bool:
    return " saw " in answer


def run(host: Host, name: str, *words: str) -> None:
    """A web server as a plain container on the attachable network."""
    host.docker("run", "-d", "--name", name, *words, "busybox:latest", *stacks.web_command())


def test_plain_containers_on_any_node_talk_to_services_and_come_back(lab: Lab, swarm: list[Host]) -> None:
    manager, worker, other = swarm
    stacks.deploy(manager, "shop", {"web": service(["shared"], 2)}, SHARED)
    stacks.running(manager, "shop_web", 2)
    for host, name in ((worker, "plain1"), (manager, "plain2"), (other, "plain3")):
        run(host, name, "--network", "shop_shared", "--restart", "always")
    for host, name in ((worker, "plain1"), (manager, "plain2")):
        enter = stacks.inside(host, name)
        until(partial(ask, enter, "http://web/cgi-bin/who"), _saw, what=name)
        assert ask(enter, "http://web/cgi-bin/who").split()[2] == address_of(host, name)
        until(partial(ask, enter, f"http://{address_of(other, 'plain3')}/cgi-bin/who"), _saw, what="plain3")

    before = address_of(worker, "plain1")
    worker.docker("restart", "-t", "1", "plain1")
    assert address_of(worker, "plain1") == before
    lab.kill(worker)
    lab.start(worker)
    until(lambda: ask(stacks.inside(worker, "plain1"), "http://web/cgi-bin/who"), _saw, what="the daemon")
    lab.kill(worker, "engine")
    lab.start(worker, "engine")
    running = ("ps", "-q", "--filter", "name=plain1")
    until(lambda: worker.docker(*running, engine=True).strip(), what="plain1 after its engine's restart")
    until(lambda: ask(stacks.inside(worker, "plain1"), "http://web/cgi-bin/who"), _saw, what="the engine")

    refused = manager.docker_run("network", "rm", "shop_shared")
    assert "in use" in refused.stderr or "active" in refused.stderr
    for host, name in ((worker, "plain1"), (manager, "plain2"), (other, "plain3")):
        host.docker("rm", "-f", name)
    until(lambda: manager.docker_run("stack", "rm", "shop").returncode == 0, what="a removed stack")
    until(lambda: manager.docker("network", "ls", "-q", "--filter", "name=shop_").strip() == "", what="no network")


def test_a_running_container_is_connected_and_disconnected(swarm: list[Host]) -> None:
    manager, worker, _ = swarm
    stacks.deploy(manager, "shop", {"web": service(["shared"], 2)}, {**SHARED, "closed": {}})
    manager.docker("network", "create", "-d", "overlay", "closed")
    stacks.running(manager, "shop_web", 2)
    run(worker, "plain1")
    worker.docker("network", "connect", "shop_shared", "plain1")
    shown = json.loads(manager.docker("service", "inspect", "shop_web"))[0]
    virtual = next(one["Addr"] for one in shown["Endpoint"]["VirtualIPs"]).partition("/")[0]
    until(lambda: ask(stacks.inside(worker, "plain1"), f"http://{virtual}/cgi-bin/who"), _saw, what="the network")
    seen = ask(stacks.inside(worker, "plain1"), f"http://{virtual}/cgi-bin/who")
    assert seen.split()[2] == address_of(worker, "plain1")
    worker.docker("network", "disconnect", "shop_shared", "plain1")
    assert not _saw(ask(stacks.inside(worker, "plain1"), f"http://{virtual}/cgi-bin/who"))
    for host in (manager, worker):
        refused = host.docker_run("run", "-d", "--network", "closed", "busybox:latest")
        assert refused.returncode
        assert "network closed not manually attachable" in refused.stderr
        assert (
            host.docker_run("run", "-d", "--network", "nosuch", "busybox:latest")
            .stderr.strip()
            .endswith(
                (
                    "network nosuch not found.",
                    "network nosuch not found",
                    "See 'docker run --help'.",
                    "for more information",
                )
            )
        )
    worker.docker("rm", "-f", "plain1")
    until(lambda: manager.docker_run("stack", "rm", "shop").returncode == 0, what="a removed stack")
    manager.docker("network", "rm", "closed")
