"""Whole clusters under faults: nothing is lost, and they recover. ``make sim`` runs more seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.sim import convergence, nature, operators
from tests.sim.simulation import simulate
from tests.sim.workload import Workload
from tests.sim.world import World

SEEDS = range(10, 28)  # rare things happen in them
GROUPS = 6
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Logs of a thousand elections help nobody; the story of a failing seed does."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    yield
    structlog.configure(**before)


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


@pytest.mark.timeout(300)
@pytest.mark.parametrize("group", range(GROUPS))
def test_clusters_survive_faults_and_converge(group: int) -> None:
    outcomes = [simulate(seed) for seed in SEEDS[group::GROUPS]]
    assert all(outcome.decided and outcome.acknowledged and outcome.reads for outcome in outcomes)
    assert sum(outcome.logs for outcome in outcomes)


def test_rare_things_happen() -> None:
    worlds = [World(seed) for seed in SEEDS]
    assert any(world.mixed for world in worlds)
    assert any(world.nature.loses_disks for world in worlds)
    assert any(world.nature.catastrophe_at for world in worlds)


@pytest.mark.timeout(300)
@settings(
    max_examples=15, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink], derandomize=True
)
@given(
    seed=st.integers(0, 999),
    managers=st.sampled_from([1, 3, 5]),
    workers=st.integers(0, 2),
    acts=st.lists(
        st.tuples(
            st.sampled_from([*nature.KINDS, *operators.KINDS]), st.integers(0, 6), st.sampled_from([0.05, 0.5, 3.0])
        ),
        max_size=12,
    ),
)
def test_any_schedule_is_survived(seed: int, managers: int, workers: int, acts: list[tuple[str, int, float]]) -> None:
    """Drawn by hypothesis, so that a schedule that breaks something shrinks to what matters in it."""
    world = World(seed, managers, workers)
    world.nature.loses_disks = any(kind == "lose" for kind, _, _ in acts)
    world.build()
    workload = Workload(world)
    world.faulty = True
    workload.start()
    for kind, which, pause_s in acts:
        nodes = world.alive() if kind in nature.KINDS else world.managing()
        if nodes and kind in nature.KINDS:
            world.nature.inflict(kind, nodes[which % len(nodes)])
        elif nodes:
            workload.spawn(workload.operators.do(kind, nodes[which % len(nodes)]))
        world.kernel.advance(world.kernel.now + pause_s)
    world.heal()
    workload.finish()
    convergence.converge(world)
    convergence.nothing_lost(world, workload.history)


def trace_of(seed: int, hash_seed: str) -> str:
    """The digest of a seed in a process of its own."""
    program = f"from tests.sim.simulation import simulate; print(simulate({seed}, 10.0).trace)"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.timeout(120)
def test_a_seed_gives_the_same_trace_whatever_the_hashes() -> None:
    first = trace_of(3, "1")
    assert first == trace_of(3, "2")
    assert first == simulate(3, 10.0).trace
    assert first != simulate(4, 10.0).trace
