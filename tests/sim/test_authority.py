"""Who was cut off while all other managers were replaced catches up; a thief of their certificates gets nowhere."""

from __future__ import annotations

import pytest

from swarm import api
from swarm.errors import SwarmError
from tests.sim.intruder import Intruder
from tests.sim.kernel import Script
from tests.sim.world import Node, World

LIMIT_S = 120.0


class Story:
    """Three managers and two workers."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, managers=3, workers=2)
        self.world.mixed = False
        self.world.build()
        leader = self.world.leader()
        managers = self.world.managing()
        self.lagging = next(node for node in managers if node is not leader)
        self.old = [node for node in managers if node is not self.lagging]
        self.workers = [node for node in self.world.nodes if node not in managers]

    def isolate(self) -> None:
        """Nothing reaches one follower, and it reaches nobody."""
        for node in self.world.nodes:
            if node is not self.lagging:
                self.world.network.cut[node.host, self.lagging.host] = True
                self.world.network.cut[self.lagging.host, node.host] = True

    def set_role(self, node: Node, role: api.NodeRole) -> None:
        """An operator changes a role through whoever leads, and waits until it is so."""
        self.world.scope.run(self._set_role(node, role))
        wanted = role == api.MANAGER
        self.world.until(
            lambda: (node.manager is not None and node.manager.manager is not None) is wanted, node.name, LIMIT_S
        )

    def _set_role(self, node: Node, role: api.NodeRole) -> Script:
        while True:
            leader = next((n for n in self.world.managing() if n.manager and n.manager.leadership.leading), None)
            if leader is not None and leader.manager is not None and leader is not self.lagging:
                try:
                    manager = leader.manager
                    answer = yield from manager.call("Control/GetNode", api.GetNodeRequest(node_id=node.node_id), 10.0)
                    spec, version = answer.node.spec, answer.node.meta.version
                    spec.desired_role = role
                    request = api.UpdateNodeRequest(node_id=node.node_id, node_version=version, spec=spec)
                    yield from manager.call("Control/UpdateNode", request, 10.0)
                    return
                except SwarmError as error:
                    self.world.kernel.say("role not changed:", error)
            yield self.world.kernel.sleep(0.5)

    def catches_up(self) -> None:
        """The follower is heard again: it must come to what the leader has."""
        self.world.network.cut.clear()
        self.world.until(self._is_level, "the follower stays behind", LIMIT_S)

    def _is_level(self) -> bool:
        leader, manager = self.world.leader(), self.lagging.manager
        if leader is None or leader.manager is None or manager is None or manager.manager is None:
            return False
        return manager.store.index >= leader.manager.store.index


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_member_that_was_cut_off_while_all_others_were_replaced_catches_up(seed: int) -> None:
    story = Story(seed)
    thief = Intruder(story.world)
    thief.start()
    story.isolate()
    for worker in story.workers:
        story.set_role(worker, api.MANAGER)
    for manager in story.old:
        story.set_role(manager, api.WORKER)
    story.catches_up()
    for node in story.old:
        assert story.lagging.manager is not None
        found = story.lagging.manager.store.get(api.Node, node.node_id)
        assert found is not None
        assert found.role == api.WORKER
    before = thief.attacks
    story.world.kernel.advance(story.world.kernel.now + 30.0)
    assert thief.attacks > before + 50


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_member_that_was_cut_off_while_the_others_left_and_came_back_catches_up(seed: int) -> None:
    story = Story(seed)
    thief = Intruder(story.world)
    thief.start()
    story.isolate()
    for worker in story.workers:
        story.set_role(worker, api.MANAGER)
    for manager in story.old:
        story.set_role(manager, api.WORKER)
        story.set_role(manager, api.MANAGER)
    for worker in story.workers:
        story.set_role(worker, api.WORKER)
    story.catches_up()
    before = thief.attacks
    story.world.kernel.advance(story.world.kernel.now + 30.0)
    assert thief.attacks > before + 50
