"""Fixtures of the integration tests: labs, driven through pytest-docker where one is enough for all tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.lab import Host, Lab

HERE = Path(__file__).parent
TEST_TIMEOUT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root and engines, and more time than a unit test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def _needs() -> None:
    """A test that cannot run here must say so, loudly: nothing is skipped."""
    if os.geteuid() != 0:
        pytest.exit("the integration tests need root: they make network namespaces and start engines", 1)
    for command in ("dockerd", "docker", "nft", "ip", "busybox"):
        if shutil.which(command) is None:
            pytest.exit(f"{command} is missing: run scripts/setup", 1)


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    """pytest-docker: use the lab instead of docker compose."""
    return f"{sys.executable} -m integration.compose"


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    """pytest-docker: the hosts of the shared lab."""
    return str(HERE / "docker-compose.json")


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    """pytest-docker: the shared lab's name."""
    return f"it{os.getpid()}"


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    """pytest-docker: how to begin."""
    return ["up"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    """pytest-docker: how to end."""
    return ["down"]


@pytest.fixture
def lab(docker_services: object, docker_compose_project_name: str) -> Iterator[Lab]:
    """The shared lab of three hosts, outside any swarm before and after the test, all daemons and engines running."""
    shared = Lab(docker_compose_project_name)
    _reset(shared)
    yield shared
    _reset(shared)


def _reset(lab: Lab) -> None:
    lab.heal()
    for host in lab.hosts:
        for part in ("engine", "daemon"):
            lab.ensure(host, part)
        host.docker_run("swarm", "leave", "--force")
        left = host.docker("ps", "-aq", engine=True).split()
        if left:
            host.docker("rm", "-f", *left, engine=True)


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes a lab of its own: ``make_lab(count, stock=0, managers=0, flags=[...])``; taken down after the test."""
    made: list[Lab] = []

    def make(count: int, stock: int = 0, managers: int = 0, flags: list[str] | None = None) -> Lab:
        lab = Lab(f"it{os.getpid()}x{len(made)}")
        made.append(lab)
        lab.up(count, stock, managers, flags)
        return lab

    yield make
    for lab in made:
        lab.down()


@pytest.fixture(scope="session")
def side() -> Iterator[Host]:
    """One host in no swarm, for tests of a daemon beside its engine; they clean up after themselves."""
    lab = Lab(f"it{os.getpid()}side")
    lab.up(1)
    yield lab.hosts[0]
    log = (lab.hosts[0].directory / "daemon.log").read_text()
    lab.down()
    assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:3000]


@pytest.fixture
def swarm(lab: Lab) -> list[Host]:
    """The shared lab as a swarm: node1 is the manager, the others workers."""
    lab.swarm(1)
    return lab.hosts
