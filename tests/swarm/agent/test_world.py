"""Agents and dispatcher together, under faults."""

from __future__ import annotations

from functools import partial

import pytest

from swarm import api
from swarm.store.tx import Tx
from tests.swarm.agent.agent_world import AgentWorld, Node, make_task


def assigned(world: AgentWorld, node: Node) -> list[api.Task]:
    return list(world.store.find(api.Task, "node", node.node_id))


class Workload:
    """Drives an AgentWorld with random changes of the cluster and random faults."""

    def __init__(self, world: AgentWorld) -> None:
        self.world = world
        self.count = 0
        for i in range(4):
            secret = api.Secret(id=f"secret{i}")
            secret.spec.annotations.name = secret.id
            secret.spec.data = b"payload"
            world.write(partial(Tx.create, obj=secret))

    def create(self) -> None:
        world, rng = self.world, self.world.rng
        self.count += 1
        secrets = [f"secret{i}" for i in range(4) if rng.random() < 0.3]
        task = make_task(f"t{self.count}", rng.choice(world.nodes).node_id, secrets)
        if rng.random() < 0.3:
            task.desired_state = api.READY
        world.write(lambda tx: tx.create(task))

    def change(self) -> None:
        world, rng = self.world, self.world.rng
        tasks = list(world.store.all(api.Task))
        if not tasks:
            return
        task = rng.choice(tasks)

        def run(tx: Tx) -> None:
            edited = tx.edit(api.Task, task.id)
            kind = rng.random()
            if kind < 0.3:
                edited.desired_state = max(edited.desired_state, api.RUNNING)
            elif kind < 0.7:
                edited.desired_state = api.SHUTDOWN
            elif kind < 0.8:
                edited.networks.add(addresses=["10.0.0.5/24"])
            else:
                tx.remove(api.Task, task.id)

        world.write(run)

    def fault(self) -> None:
        world, rng = self.world, self.world.rng
        node = rng.choice(world.nodes)
        kind = rng.random()
        if kind < 0.4:
            world.cut(node)
        elif kind < 0.6:
            node.plugged = not node.plugged
            world.cut(node)
        elif kind < 0.85 and node.agent is not None:
            world.crash(node)
            world.after(rng.uniform(0.1, 5.0), lambda: world.start(node) if node.agent is None else None)
        elif kind < 0.9:
            world.elect()
        else:
            node.hostname += "x"
            world.describe(node)

    def run(self, steps: int) -> None:
        world, rng = self.world, self.world.rng
        for node in world.nodes:
            node.engine.chaos = 0.2
            world.start(node)
        for _ in range(steps):
            world.run(rng.expovariate(4.0))
            action = rng.random()
            if action < 0.4:
                self.create()
            elif action < 0.75:
                self.change()
            elif action < 0.95:
                self.fault()
            elif containers := rng.choice(world.nodes).engine.running():
                node = rng.choice(world.nodes)
                node.engine.exit(rng.choice(containers), rng.choice([0, 7]))

    def calm(self) -> None:
        """Faults stop; everything must come to rest."""
        for node in self.world.nodes:
            node.engine.chaos = 0.0
            node.plugged = True
            if node.agent is None:
                self.world.start(node)
        self.world.run(120.0)


def check_converged(world: AgentWorld) -> None:
    for node in world.nodes:
        tasks = assigned(world, node)
        for task in tasks:
            state, desired = task.status.state, task.desired_state
            assert "secret" not in task.status.err
            assert state >= min(desired, api.COMPLETE) or state in (api.READY, api.RUNNING), task
            assert state not in (api.ASSIGNED, api.ACCEPTED, api.PREPARING, api.STARTING), task
            if desired >= api.SHUTDOWN:
                assert state >= api.COMPLETE, task
        running = sorted(t.id for t in tasks if t.status.state == api.RUNNING)
        assert node.engine.running() == running
        known = sorted(t.id for t in tasks)
        assert sorted(i for i in node.engine.containers if i not in known) == []
        assert sorted(node.journal) == known
        stored = world.store.get(api.Node, node.node_id)
        assert stored is not None
        assert stored.status.state == api.NodeStatus.READY
        assert stored.description.hostname == node.hostname
        assert stored.status.addr == f"10.0.1.{node.node_id[1:]}"


def simulate(seed: int, steps: int = 120) -> AgentWorld:
    world = AgentWorld(seed, nodes=3)
    workload = Workload(world)
    workload.run(steps)
    workload.calm()
    return world


@pytest.mark.parametrize("seed", range(12))
def test_agents_end_up_running_exactly_what_is_assigned(seed: int) -> None:
    check_converged(simulate(seed))


def test_the_same_seed_gives_the_same_trace() -> None:
    assert simulate(7, 60).trace == simulate(7, 60).trace
    assert simulate(7, 60).trace != simulate(8, 60).trace


def test_a_quiet_cluster_writes_nothing() -> None:
    world = AgentWorld(1, nodes=3)
    for node in world.nodes:
        world.start(node)
    world.write(lambda tx: tx.create(make_task("t1", "n0")))
    world.run(30.0)
    index = world.store.index
    for node in world.nodes:
        world.describe(node)
    world.run(300.0)
    assert world.store.index == index
