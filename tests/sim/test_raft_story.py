"""Many groups in a bad world: safe while it lasts, alive when it ends (tests/sim/raft_story.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.raft_story import Story

SEEDS = 120
GROUPS = 5


@pytest.mark.timeout(120)
@pytest.mark.parametrize("group", range(GROUPS))
def test_groups_stay_safe_and_recover(group: int) -> None:
    for seed in range(group, SEEDS, GROUPS):
        Story(seed).run()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_every_size_of_group_recovers(size: int) -> None:
    world = Story(1000 + size, size)
    world.run()
    assert world.acknowledged


def test_the_world_really_is_bad() -> None:
    worlds = [Story(seed, 5) for seed in range(25)]
    for world in worlds:
        world.run()
    assert sum(world.reads_answered for world in worlds) > 20
    assert sum(world.catastrophes for world in worlds) > 0
    assert sum(len(world.lost) for world in worlds) > 5
    assert sum(len(world.removed) for world in worlds) > 5
    assert sum(member.run > 2 for world in worlds for member in world.members.values()) > 20


def test_the_same_seed_gives_the_same_trace() -> None:
    traces = []
    for _ in range(2):
        world = Story(5)
        world.run()
        traces.append(world.trace.hexdigest())
    assert traces[0] == traces[1]


def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    code = "from tests.sim.raft_story import Story; w = Story(7); w.run(); print(w.trace.hexdigest())"
    root = Path(__file__).parents[2]
    outputs = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", code]
        outputs.append(subprocess.run(command, env=environment, cwd=root, capture_output=True, check=True).stdout)
    assert outputs[0] == outputs[1]
