"""Before anything fails: operators change roles while certificates are being renewed. Here more must hold than later.

Nothing is lost, and no way is longer than between continents, so a manager that is demoted gets its certificate as a
worker in time, and must not join the group again with the one that was under way: a stock leader, which judges by the
certificate alone, would let it.
"""

from __future__ import annotations

from random import Random

from swarm import api
from swarm.errors import SwarmError
from swarm.node.events import RenewCertificateNow
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE
from tests.sim.kernel import Script
from tests.sim.world import Node, World

LIMIT_S = 60.0


def change_roles(world: World) -> None:
    """Demote managers of a fresh cluster during a renewal, and promote them again; in some worlds."""
    rng = Random(f"{world.kernel.seed}/calm")
    if len(world.managing()) < 3 or (rng.random() > 0.4 and not world.mixed):
        return
    world.checkers.calm = True
    usual_s, world.network.delay_s = world.network.delay_s, rng.choice((0.002, 0.02, 0.05))
    for _ in range(rng.randint(1, 3)):
        leader = world.leader()
        assert leader is not None
        node = rng.choice([one for one in world.managing() if one is not leader and not one.stock] or [None])
        if node is not None:
            _swap(world, rng, leader, node)
    world.checkers.calm = False
    world.network.delay_s = usual_s


def _swap(world: World, rng: Random, leader: Node, node: Node) -> None:
    process = node.process
    assert process is not None
    process.driver.put(RenewCertificateNow())
    world.kernel.advance(world.kernel.now + rng.uniform(0.3, 1.0))
    world.scope.run(set_role(leader, node.node_id, api.WORKER))
    steps_down(world, node)
    world.kernel.advance(world.kernel.now + rng.choice((0.0, 6.0)))
    world.scope.run(set_role(leader, node.node_id, api.MANAGER))
    takes_part(world, node)


def steps_down(world: World, node: Node) -> None:
    """Wait until a demoted node is a worker."""
    process = node.process
    assert process is not None
    world.until(
        lambda: process.identity.role == WORKER_ROLE and process.manager is None,
        f"{node.name} does not step down",
        LIMIT_S,
    )


def takes_part(world: World, node: Node) -> None:
    """Wait until a promoted node runs a manager."""
    process = node.process
    assert process is not None
    world.until(
        lambda: process.identity.role == MANAGER_ROLE and process.manager is not None,
        f"{node.name} does not become a manager",
        LIMIT_S,
    )


def set_role(leader: Node, node_id: str, role: api.NodeRole) -> Script:
    """Through the leader; again when a report of the node came between."""
    manager = leader.manager
    assert manager is not None
    while True:
        answer = yield from manager.call("Control/GetNode", api.GetNodeRequest(node_id=node_id), LIMIT_S)
        request = api.UpdateNodeRequest(node_id=node_id, node_version=answer.node.meta.version, spec=answer.node.spec)
        request.spec.desired_role = role
        try:
            yield from manager.call("Control/UpdateNode", request, LIMIT_S)
            return
        except SwarmError as error:
            manager.kernel.say("role not changed:", error)
        yield manager.kernel.sleep(0.05)
