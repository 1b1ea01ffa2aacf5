"""After everything: the log of the only manager is damaged, and there is nobody to get it back from.

Either the damage took nothing, or the manager says what is lost, keeps every file and waits. An operator who was told
forces a new cluster and so accepts the loss. What the manager goes on with must be what it once was, up to some entry:
the checkers compare the stores. Where nothing can be read, the operator lets it leave by force.
"""

from __future__ import annotations

from random import Random

from swarm import api
from swarm.errors import SwarmError
from swarm.node.steps import Phase
from swarm.raft.events import LogLost
from tests.sim.clear_text import PAYLOAD, clear_text
from tests.sim.kernel import Script
from tests.sim.process import Process
from tests.sim.world import Node, World

LIMIT_S = 120.0
_CALL_S = 5.0


def damage(world: World) -> None:
    """In worlds with one manager: all of the above, twice."""
    rng = Random(f"{world.kernel.seed}/last log")
    kinds = sorted(world.ailments.kinds & {"flip", "vanish"})
    managers = world.managing()
    if len(managers) != 1 or not kinds:
        return
    for _ in range(2):
        if not _damage_once(world, rng, managers[0], rng.choice(kinds)):
            return


def _damage_once(world: World, rng: Random, node: Node, kind: str) -> bool:
    """Returns whether there is still a cluster."""
    world.scope.run(_write(node, "before"))
    world.kernel.advance(world.kernel.now + rng.uniform(0.0, 3.0))
    leader, image = node.manager, node.disk.raft
    assert leader is not None
    last, raft_id = leader.store.index, image.raft_id
    what = image.flip(rng) if kind == "flip" else image.vanish(rng)
    world.kernel.say(kind, node.name, what)
    node.ailing = True  # nobody else looks after it
    world.ailments.leave_alone(node)
    world.nature.crash(node, power=rng.random() < 0.5)
    world.until(lambda: _has_come_up(node), f"{node.name} comes up neither with its log nor without", LIMIT_S)
    process = node.process
    assert process is not None
    if process.machine.status().phase is not Phase.ERROR:
        assert _decided(node) >= last, f"{node.name} lost entries and leads: {_decided(node)} after {last}"
        return True
    _says_so(node, process, raft_id)
    forced = world.scope.run(_force(process))
    world.until(lambda: forced.done, f"{node.name} does not answer", LIMIT_S)
    if forced.value is not None:
        _gives_up(world, process, forced.value)
        return False
    world.kernel.say(node.name, "goes on from", _decided(node), "of", last)
    written = world.scope.run(_write(node, "after"))
    world.until(lambda: written.done, f"{node.name} takes no writes after it was forced", LIMIT_S)
    assert not (found := clear_text(world)), f"after a loss that was accepted: {found}"
    return True


def _has_come_up(node: Node) -> bool:
    process = node.process
    if process is None or not process.alive:
        return False
    return process.machine.status().phase is Phase.ERROR or (process.leads and process.machine.status().ready)


def _decided(node: Node) -> int:
    return node.manager.store.index if node.manager is not None else 0


def _says_so(node: Node, process: Process, raft_id: int) -> None:
    error = str(process.machine.status().error)
    assert "raft.db" in error, f"{node.name} does not say what it lost: {error}"
    assert "--force-new-cluster" in error, f"{node.name} does not say how to go on: {error}"
    assert node.disk.raft_id == raft_id, f"{node.name} forgot whose log it had"


def _force(process: Process) -> Script:
    """Returns the error if it cannot go on from what is left."""
    try:
        yield process.docker.force_new_cluster()
    except SwarmError as error:
        return error
    return None


def _gives_up(world: World, process: Process, error: SwarmError) -> None:
    assert isinstance(error, LogLost), f"a loss cannot be accepted: {error}"
    assert "docker swarm leave --force" in error.message, f"nobody is told what is left to do: {error}"
    world.kernel.say(process.name, "gives up:", error)
    left = process.docker.leave(force=True)
    world.until(lambda: left.done, "it does not leave", LIMIT_S)
    assert not process.node.disk.files.paths(), f"left, and keeps {process.node.disk.files.paths()}"


def _write(node: Node, name: str) -> Script:
    """A write; as often as it takes."""
    spec = api.SecretSpec(annotations=api.Annotations(name=f"last-{name}-{node.runs}"), data=PAYLOAD + b"the last")
    while True:
        try:
            if node.manager is not None:
                yield from node.manager.call("Control/CreateSecret", api.CreateSecretRequest(spec=spec), _CALL_S)
                return
        except SwarmError as error:
            if error.code.name == "ALREADY_EXISTS":
                return
        yield node.world.kernel.sleep(0.5)
