"""Before anything fails: processes stand still, and clocks jump. Who went on meanwhile must not suffer from it.

A process that is stopped (SIGSTOP, a suspended machine) neither reads nor hangs up: what others send waits in its
sockets, and when it goes on, its deadlines are due before that is read. The nodes that went on are not declared down,
their tasks stay where they are, and the cluster takes writes again soon after.
"""

from __future__ import annotations

from random import Random

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.errors import SwarmError
from tests.sim.history import Known
from tests.sim.kernel import Script
from tests.sim.linearizability import NEVER, Kind, explain
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
    alone, seen = len(world.managing()) == 1, None
    spared = [] if alone and node is leader else [node.node_id]
    spared += _cannot_notice(world, node) if node is not leader else []
    if rng.random() < 0.25:
        _jump(world, node, rng.choice((5.0, 20.0, 90.0, -5.0, -90.0, -7200.0)))
    else:
        seconds = rng.uniform(5.0, 30.0)
        others = [other for other in world.managing() if other is not node]
        seen = Seen(world)
        if node is leader and others:
            world.scope.run(seen.create(node))
            world.kernel.advance(world.kernel.now + 1.0)
            world.scope.run(seen.ask_both(rng.choice(others), node, seconds))
        world.nature.pause(node, seconds)
        world.kernel.advance(world.kernel.now + seconds)
    world.kernel.advance(world.kernel.now + STEADY_S)
    told = "\n".join(map(str, seen.config.operations if seen is not None else []))
    assert seen is None or explain(seen.config.operations) is not None, f"no order explains this:\n{told}"
    guilty = {node_id: why for node_id, why in checkers.downs.items() if node_id not in spared}
    assert not guilty, f"declared down because {node.name} stood still: {guilty}"
    after = dict(_placed(world))
    moved = [task for task, on in before.items() if on not in spared and after.get(task) != on]
    assert not moved, f"moved or ended because {node.name} stood still: {moved}"
    world.until(lambda: _all_ready(world), "nodes do not become ready after a pause", LIMIT_S)


def _cannot_notice(world: World, follower: Node) -> list[str]:
    """Nodes that this follower forwards, if they are down for the leader before they have missed its answers."""
    leader = world.leader()
    assert leader is not None
    assert leader.manager is not None
    period_s = next(leader.manager.store.all(api.Cluster)).spec.dispatcher.heartbeat_period.ToSeconds()
    if period_s * defaults.HEARTBEAT_GRACE_PERIODS > 2 * defaults.HEARTBEAT_PERIOD_S:
        return []
    processes = [(other.node_id, other.process) for other in world.alive() if other.process is not None]
    manager = follower.manager
    return [
        node_id
        for node_id, process in processes
        if any(connection.server is manager for connection in process.connections.values())
    ]


class Seen:
    """A config that is changed through another manager while its leader stands still, and then read through that."""

    def __init__(self, world: World) -> None:
        self._kernel = world.kernel
        self.config = Known("config", "", f"of {world.kernel.now}")

    def create(self, node: Node) -> Script:
        """Make it; if that fails, nothing is seen."""
        request = api.CreateConfigRequest()
        request.spec.annotations.name, request.spec.data = self.config.name.replace(" ", "-"), b"x"
        called = self._kernel.now
        answer = yield from self._call(node, "CreateConfig", request)
        if answer is not None:
            self.config.object_id, self.config.version = answer.config.id, answer.config.meta.version.index
            self.config.note(Kind.CREATE, called, self._kernel.now, version=self.config.version)

    def ask_both(self, other: Node, stopped: Node, seconds: float) -> Script:
        """Shortly before the other one goes on."""
        yield self._kernel.sleep(max(0.7 * seconds, seconds - 5.0))
        if not self.config.object_id:
            return
        object_id, base, called = self.config.object_id, self.config.version, self._kernel.now
        update = api.UpdateConfigRequest(config_id=object_id)
        update.config_version.index = base
        update.spec.annotations.name = self.config.name.replace(" ", "-")
        update.spec.annotations.labels["changed"] = "yes"
        answer = yield from self._call(other, "UpdateConfig", update)
        if answer is None:
            self.config.note(Kind.UPDATE, called, NEVER, base=base)
        else:
            version = answer.config.meta.version.index
            self.config.note(Kind.UPDATE, called, self._kernel.now, base=base, version=version)
        yield self._kernel.sleep(0.01)
        called = self._kernel.now
        answer = yield from self._call(stopped, "GetConfig", api.GetConfigRequest(config_id=object_id))
        if answer is not None:
            self.config.note(Kind.READ, called, self._kernel.now, version=answer.config.meta.version.index)

    def _call(self, node: Node, method: str, request: Message) -> Script:
        """The answer, or None."""
        if node.manager is None:
            return None
        try:
            return (yield from node.manager.call(f"Control/{method}", request, LIMIT_S))
        except SwarmError as error:
            self._kernel.say("not seen during a pause:", error)
            return None


def _jump(world: World, node: Node, seconds: float) -> None:
    assert node.process is not None
    world.kernel.say("clock", node.name, seconds)
    node.clock_offset += seconds
    if seconds > 0.0:  # a process that runs sees no clock go back (swarm/io/process.py Clock); the next one there does
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
