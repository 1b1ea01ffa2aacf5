"""Before anything fails: a manager is cut off from the group while two others leave it and come back.

The manager that lags takes both for the members that they were. If they came back as those members, with empty logs,
then three of five would follow the one that lags, and undo what the group decided meanwhile.
"""

from __future__ import annotations

from random import Random

from swarm import api
from tests.sim.calm import set_role, steps_down, takes_part
from tests.sim.world import Node, World

_MANAGERS = 5
_LISTEN_S = 20.0  # long enough for several elections by the manager that lags


def swap_two_behind(world: World) -> None:
    """In some worlds of five managers, demote two and promote them again while a third hears nothing from the rest."""
    rng = Random(f"{world.kernel.seed}/laggard")
    if len(world.managing()) != _MANAGERS or world.mixed or rng.random() > 0.5:
        return
    leader = world.leader()
    assert leader is not None
    swapped = rng.sample([node for node in world.managing() if node is not leader], 2)
    lagging = _first_asked(world, swapped)
    if lagging is leader:
        return
    others = [node for node in world.managing() if node not in (*swapped, lagging)]
    world.kernel.say(lagging.name, "lags while", *(node.name for node in swapped), "are swapped")
    for other in others:
        world.network.cut[lagging.host, other.host] = world.network.cut[other.host, lagging.host] = True
    for node in swapped:
        world.scope.run(set_role(leader, node.node_id, api.WORKER))
        steps_down(world, node)
    for node in swapped:
        world.scope.run(set_role(leader, node.node_id, api.MANAGER))
        takes_part(world, node)
    world.kernel.advance(world.kernel.now + _LISTEN_S)
    world.network.cut.clear()
    world.kernel.advance(world.kernel.now + _LISTEN_S)


def _first_asked(world: World, swapped: list[Node]) -> Node:
    """The manager that a demoted node asks first when it joins again: the first of those that it knows."""
    process = swapped[0].process
    assert process is not None
    state = process.machine.record.state
    assert state is not None
    staying = {node.node_id: node for node in world.managing() if node not in swapped}
    return next(staying[node_id] for node_id, _ in state.managers if node_id in staying)
