"""One seed of a whole cluster from the beginning to the end."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim import calm, clear_text, convergence, laggard, last_log, pauses
from tests.sim.ailments import USUAL
from tests.sim.intruder import Intruder
from tests.sim.outcome import Outcome
from tests.sim.workload import Workload
from tests.sim.world import World

FAULTS_S = 60.0


def simulate(
    seed: int,
    faults_s: float = FAULTS_S,
    echo: Callable[[str], None] | None = None,
    ailments: frozenset[str] = USUAL,
) -> Outcome:
    """Build, change roles in calm, suffer, heal, converge, rest. Raises AssertionError with the story."""
    world = World(seed, ailments=ailments)
    kernel = world.kernel
    kernel.echo = echo
    try:
        world.build()
        intruder = Intruder(world)
        if seed % 2:
            intruder.start()
        calm.change_roles(world)
        laggard.swap_two_behind(world)
        pauses.pause_some(world)
        workload = Workload(world)
        world.suffer()
        workload.start()
        clear_text.watch(world)
        kernel.advance(kernel.now + faults_s)
        world.heal()
        healed = kernel.now
        workload.finish()
        convergence.converge(world)
        converged_s = kernel.now - healed
        thief = world.scope.run(world.thief.gets_nothing())
        world.until(lambda: thief.done, "the thief waits")
        intruder.active = False
        convergence.nothing_lost(world, workload.history)
        convergence.rest(world)
        last_log.damage(world)
    except Exception as error:
        error.add_note(f"seed {seed}: python -m tests.sim --seed {seed} --trace\n" + "\n".join(kernel.story))
        raise
    history = workload.history
    return Outcome(
        seed,
        kernel.trace,
        kernel.now,
        kernel.events,
        world.checkers.last_decided,
        history.acknowledged,
        history.reads,
        converged_s,
        world.nature.lost,
        world.nature.catastrophes,
        world.nature.moved,
        world.mixed,
        workload.readers.complete,
        world.ailments.counts,
        world.ailments.replaced,
    )
