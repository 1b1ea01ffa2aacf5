"""Services on the networks that every engine has, and networks of the engine beside those of the swarm."""

from __future__ import annotations

import json

import pytest

from integration.lab import Host
from integration.waiting import until

IDLE = ("sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")


@pytest.mark.parametrize("network", ["host", "bridge"])
def test_a_service_runs_on_a_network_of_the_engine(swarm: list[Host], network: str) -> None:
    manager = swarm[0]
    create = ("service", "create", "--quiet", "--no-resolve-image", "--network", network, "--name", "web")
    manager.docker(*create, "--constraint", "node.hostname==node2", "busybox:latest", *IDLE)
    listed = ("ps", "-q", "--filter", "label=com.docker.swarm.service.name=web")
    [container] = until(lambda: swarm[1].docker(*listed, engine=True).split(), what="a container")
    settings = json.loads(swarm[1].docker("inspect", container, engine=True))[0]
    assert list(settings["NetworkSettings"]["Networks"]) == [network]
    assert network in manager.docker("service", "inspect", "--pretty", "web")


def test_an_unknown_network_is_reported_before_anything_is_created(swarm: list[Host]) -> None:
    manager = swarm[0]
    failed = manager.docker_run("service", "create", "--network", "nosuch", "busybox:latest")
    assert failed.returncode == 1
    assert failed.stderr.strip().endswith(("network nosuch not found", "No such network: nosuch"))  # CLI 28, CLI 20.10
    assert manager.docker("service", "ls", "-q") == ""


def test_networks_of_the_engine_are_made_and_used_as_without_us(swarm: list[Host]) -> None:
    manager = swarm[0]
    manager.docker("network", "create", "--label", "a=b", "mine")
    manager.docker("run", "-d", "--name", "c1", "busybox:latest", *IDLE)
    manager.docker("network", "connect", "--alias", "friend", "mine", "c1")
    settings = json.loads(manager.docker("inspect", "c1", engine=True))[0]
    assert sorted(settings["NetworkSettings"]["Networks"]) == ["bridge", "mine"]
    assert "already exists" in manager.docker_run("network", "create", "mine").stderr
    assert "nosuch not found" in manager.docker_run("network", "connect", "nosuch", "c1").stderr
    manager.docker("rm", "-f", "c1")
    manager.docker("network", "rm", "mine")
