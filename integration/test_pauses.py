"""A daemon that stood still (SIGSTOP) declares nobody down who went on, and moves no task."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

from integration import calls
from integration.lab import Host, Lab
from integration.waiting import until

IDLE = ("busybox:latest", "sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")
WATCH_S = 25.0
"""After a pause: longer than a silence that is tolerated."""


def serve(manager: Host, nodes: int) -> dict[str, str]:
    """A task on each node; task ID -> node name."""
    manager.docker("service", "create", "--detach", "--name", "paused", "--mode", "global", *IDLE)
    until(lambda: len(calls.running(manager, "paused")), lambda count: count == nodes, what="a task on each node")
    return placed(manager)


def placed(manager: Host) -> dict[str, str]:
    """Task ID -> node name, of the running tasks."""
    names = {node["ID"]: node["Description"]["Hostname"] for node in calls.get(manager, "/nodes")}
    return {task["ID"]: names[task["NodeID"]] for task in calls.running(manager, "paused")}


def watch(manager: Host, spared: Sequence[Host], before: dict[str, str]) -> None:
    """For a while nobody but ``spared`` is down, and the others' tasks stay."""
    excused = {host.name for host in spared}
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        down = {name for name, state in calls.node_states(manager).items() if state == "down"}
        assert down <= excused
        now = placed(manager)
        gone = {task: name for task, name in before.items() if name not in excused and task not in now}
        assert gone == {}
        time.sleep(0.2)


@pytest.fixture
def clean(lab: Lab) -> Iterator[Lab]:
    yield lab
    for host in lab.hosts:
        host.docker_run("service", "rm", "paused")


def test_the_only_manager_stands_still_for_20_seconds(clean: Lab) -> None:
    clean.swarm(1)
    manager = clean.hosts[0]
    before = serve(manager, len(clean.hosts))
    with clean.paused(manager):
        time.sleep(20.0)
    watch(manager, [], before)
    until(lambda: set(calls.node_states(manager).values()), lambda states: states == {"ready"})


@pytest.mark.parametrize("seconds", [5.0, 20.0, 30.0])
def test_the_leader_of_three_stands_still(clean: Lab, seconds: float) -> None:
    clean.swarm(3)
    leader, *others = clean.hosts
    before = serve(leader, len(clean.hosts))
    with clean.paused(leader):
        time.sleep(seconds)
        assert leader.name in calls.node_states(others[0])
    watch(others[0], [leader], before)
    until(lambda: set(calls.node_states(others[0]).values()), lambda states: states == {"ready"})
