"""Services on the networks that every engine has, named as the CLI names them."""

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
