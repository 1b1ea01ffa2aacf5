"""Before anything fails: processes stand still, and clocks jump. Who went on meanwhile must not suffer from it.

A process that is stopped (SIGSTOP, a suspended machine) neither reads nor hangs up: what others send waits in its
sockets, and when it goes on, its deadlines are due before that is read. The nodes that went on are not declared down,
their tasks stay where they are, and the cluster takes writes again soon after.
"""

from __future__ import annotations

from random import Random

from swarm import api
from swarm.errors import SwarmError
from tests.sim.kernel import Script
from tests.sim.world import Node, World

SHARE = 0.3
"""Of the worlds in which this happens."""
LIMIT_S = 60.0
STEADY_S = 40.0
"""How long after a pause nobody may be declared down because of it: longer than any grace."""


def pause_some(world: World) -> None:
    """Pause managers of a fresh cluster, the leader most of the time, or let a clock jump; in some worlds."""
    rng = Random(f"{world.kernel.seed}/pauses")
    if rng.random() < SHARE:
        for _ in range(rng.randint(1, 3)):
            pause_one(world, rng)


def pause_one(world: World, rng: Random) -> None:
    """One pause of 5 to 30 s, or one jump of a clock, and what must hold after it."""
    _with_tasks(world)
    leader = world.leader()
    node = leader if leader is not None and rng.random() < 0.7 else rng.choice(world.alive())
    checkers = world.checkers
    before, checkers.downs = dict(_placed(world)), {}
    alone = len(world.managing()) == 1
    if rng.random() < 0.25:
        _jump(world, node, rng.choice((5.0, 20.0, 90.0)))
    else:
        seconds = rng.uniform(5.0, 30.0)
        world.nature.pause(node, seconds)
        world.kernel.advance(world.kernel.now + seconds)
    world.kernel.advance(world.kernel.now + STEADY_S)
    spared = [] if alone and node is leader else [node.node_id]
    guilty = {node_id: why for node_id, why in checkers.downs.items() if node_id not in spared}
    assert not guilty, f"declared down because {node.name} stood still: {guilty}"
    after = dict(_placed(world))
    moved = [task for task, on in before.items() if on not in spared and after.get(task) != on]
    assert not moved, f"moved or ended because {node.name} stood still: {moved}"
    world.until(lambda: _all_ready(world), "nodes do not become ready after a pause", LIMIT_S)


def _jump(world: World, node: Node, seconds: float) -> None:
    assert node.process is not None
    world.kernel.say("clock", node.name, seconds)
    node.clock_offset += seconds
    node.process.jump(seconds)


def _placed(world: World) -> list[tuple[str, str]]:
    """(task, node) of the running tasks, as the leader has them."""
    leader = world.leader()
    assert leader is not None
    assert leader.manager is not None
    tasks = [task for task in leader.manager.store.all(api.Task) if task.status.state == api.RUNNING]
    return [(task.id, task.node_id) for task in tasks if task.desired_state == api.RUNNING]


def _all_ready(world: World) -> bool:
    leader = world.leader()
    if leader is None or leader.manager is None:
        return False
    return all(node.status.state == api.NodeStatus.READY for node in leader.manager.store.all(api.Node))


def _with_tasks(world: World) -> None:
    """A global service: one task on each node, which runs."""
    leader = world.leader()
    assert leader is not None
    if _placed(world):
        return
    world.scope.run(_create_service(leader))
    count = len(world.nodes)
    world.until(lambda: len(_placed(world)) == count, "the tasks do not run", LIMIT_S)


def _create_service(leader: Node) -> Script:
    request = api.CreateServiceRequest()
    request.spec.annotations.name = "paused"
    request.spec.task.container.image = "app:1"
    getattr(request.spec, "global").SetInParent()
    assert leader.manager is not None
    try:
        yield from leader.manager.call("Control/CreateService", request, LIMIT_S)
    except SwarmError as error:
        leader.manager.kernel.say("no service to pause with:", error)
