"""What disks and operators' impatience do to single machines, and what operators do for a machine that cannot go on.

Disks say that something failed which happened all the same, lose names that nobody synchronised, and turn bits over in
any file. Processes are killed, stopped and left alone by their clients at any step of what they were asked to do. Bits
turn over only on machines that the cluster can do without, one at a time: an operator who finds such a node in error
restarts it, and if that does not help lets it leave by force and join anew (operators.py removes what it was before).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from swarm.errors import SwarmError
from swarm.node.events import RenewCertificateNow
from swarm.node.steps import Phase
from swarm.rpc import MANAGER_ROLE
from tests.sim.files import Trouble
from tests.sim.kernel import Script

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import Node, World

KINDS = ("errors", "interrupt", "flip", "vanish")
USUAL = frozenset(KINDS)
"""Those that every world may have. Fewer: python -m tests.sim --ailments flip."""
DAMAGE = frozenset(("flip", "vanish"))
LOOKS = 3
"""How often an operator restarts a node that is in error before it is replaced."""


class Ailments:
    """Of one world. kinds: which of KINDS there are. counts: how often each happened."""

    def __init__(self, world: World, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self.counts = dict.fromkeys(KINDS, 0)
        self.replaced = 0
        self._cared_for: list[Node] = []
        self._world = world
        self._kernel = world.kernel
        self._rng = Random(f"{world.kernel.seed}/ailments")
        self.many = bool(kinds) and self._rng.random() < (0.7 if world.kernel.seed % 2 else 0.3)
        """Whether this is a world of bad disks, whose operators change locks and roles all the time."""
        if self.many and not kinds.isdisjoint(DAMAGE):
            world.nature.loses_disks = True

    def start(self) -> None:
        """From now on things go wrong, in some worlds."""
        if self.many:
            self._kernel.at(self._rng.expovariate(0.3), self._act)

    def _act(self) -> None:
        if not self._world.faulty:
            return
        kind = self._rng.choice(sorted(self.kinds))
        alive = [node for node in self._world.alive() if kind not in DAMAGE or self._may_damage(node)]
        if alive:
            self.inflict(kind, self._rng.choice(alive))
        self._kernel.at(self._rng.expovariate(0.3), self._act)

    def inflict(self, kind: str, node: Node) -> None:
        """An act of this kind on this node, if there are any in this world."""
        if kind not in self.kinds or node.process is None:
            return
        match kind:
            case "errors":
                self._errors(node)
            case "interrupt":
                self.interrupt(node.process)
            case "flip" | "vanish" if self._may_damage(node):
                self._damage(node, kind)
            case _:
                return
        self.counts[kind] += 1

    # --- disks -----------------------------------------------------------------------------------------------------

    def _errors(self, node: Node) -> None:
        """For a while some of what is written fails, or says so."""
        rng, where = self._rng, self._rng.choice(("files", "log", "both"))
        trouble = Trouble(rng, rng.choice((0.1, 0.5, 1.0)), rng.choice((1, 2, 5)))
        if where != "log":
            node.disk.files.trouble = trouble
        if where != "files":
            node.disk.log_trouble = trouble
        self._kernel.say("errors", node.name, where)
        if where != "log" and rng.random() < 0.5 and node.process is not None and node.acknowledged:
            node.process.driver.put(RenewCertificateNow())  # so that there is something to write
        if where != "log" and rng.random() < 0.4:  # before what failed is tried again
            self._kernel.at(rng.uniform(0.05, 1.5), lambda: self._crash(node))

    def _crash(self, node: Node) -> None:
        if self._world.faulty:
            self._world.nature.crash(node, power=self._rng.random() < 0.5)

    def _may_damage(self, node: Node) -> bool:
        """Workers, and a minority of managers in worlds where all others stay."""
        nature = self._world.nature
        if node.gone or node.ailing or not node.acknowledged or node.leaving or node.forced:
            return False
        if node.process is not None and node.process.identity.role != MANAGER_ROLE and not node.disk.raft.raft_id:
            return True
        return nature.loses_disks and nature.can_do_without(node)

    def _damage(self, node: Node, kind: str) -> None:
        """A bit turns over, or a file is gone; what is seen of it is what the next process reads."""
        rng, disk = self._rng, node.disk
        paths = disk.files.paths()
        if not paths:
            return
        node.ailing = True
        if disk.raft.raft_id and rng.random() < 0.7:
            what = disk.raft.flip(rng) if kind == "flip" else disk.raft.vanish(rng)
        elif kind == "vanish":
            path = rng.choice(paths)
            path.unlink()
            what = path.name
        else:
            path = rng.choice(paths)
            disk.files.flip(path, rng)
            what = path.name
        self._kernel.say(kind, node.name, what)
        self._world.nature.crash(node, power=rng.random() < 0.5)

    # --- interrupted requests --------------------------------------------------------------------------------------

    def interrupt(self, process: Process) -> None:
        """It dies, is stopped or is left alone by its clients at one of its next steps."""
        rng = self._rng
        how = rng.choice(("kill", "kill", "write", "stop", "hang up"))
        process.fate = Fate(process, how, rng.randint(1, 6), rng.choice((0.0, 0.0, 0.001, 0.1)))
        self._kernel.say("fate", process.name, how)

    def perhaps_interrupt(self, process: Process, probability: float = 0.15) -> None:
        """At the beginning of a way into a swarm or out of it."""
        if "interrupt" in self.kinds and self._rng.random() < probability:
            self.interrupt(process)
            self.counts["interrupt"] += 1

    # --- operators -------------------------------------------------------------------------------------------------

    def care(self, node: Node) -> Script:
        """An operator looks after a node that may not come up again; ends when it has, or when it is given up."""
        looks = 0
        if node in self._cared_for:
            return
        self._cared_for.append(node)
        while not node.gone and node.ailing:
            yield self._kernel.sleep(2.0)
            process = node.process
            if process is None or not process.alive:
                continue
            status = process.machine.status()
            if status.phase is Phase.PENDING and status.ready and not status.trouble:
                break
            looks += 1
            if looks == LOOKS:
                self._kernel.say("restarts", node.name, status.error or status.trouble)
                yield self._world.scope.run(process.stop())
                self._world.restart(node)
            elif looks > 2 * LOOKS and (status.phase in (Phase.ERROR, Phase.LOCKED, Phase.INACTIVE) or status.trouble):
                yield self._world.scope.run(self._replace(node, process))
                break
        node.ailing = False
        self._cared_for.remove(node)

    def leave_alone(self, node: Node) -> None:
        """From now on no operator of this module looks after it."""
        self._cared_for.append(node)

    def _replace(self, node: Node, process: Process) -> Script:
        """It leaves by force and joins anew; what it was before is removed."""
        status = process.machine.status()
        self._kernel.say("replaces", node.name, status.phase.value, status.error or status.trouble)
        was = node.acknowledged_id
        while process.alive and process.in_swarm:
            try:
                yield process.docker.leave(force=True)
            except (SwarmError, OSError) as error:
                self._kernel.say(process.name, "does not leave:", error)
                yield self._kernel.sleep(1.0)
        self.replaced += 1
        node.buried_id = was
        node.token = self._world.tokens[0 if process.identity.role == MANAGER_ROLE else 1]
        if node.process is not None and node.process.alive:  # another one by now, if it was stopped on the way
            self._world.join_again(node.process, node.token)


class Fate:
    """What will become of a process after so many more of its effects."""

    def __init__(self, process: Process, how: str, effects: int, delay_s: float) -> None:
        """how: see strike()."""
        self._process = process
        self._how = how
        self._left = effects
        self._delay_s = delay_s

    def step(self) -> None:
        """An effect of the Node machine or of its lock is about to be performed."""
        self._left -= 1
        if self._left == 0:
            process = self._process
            if self._how == "write":
                process.disk.files.kill_in = process.kernel.rng.randint(0, 3)
                process.disk.files.killed = lambda: process.kernel.at(0.0, self._kill)
            else:
                process.kernel.at(self._delay_s, self._strike)

    def _strike(self) -> None:
        process = self._process
        if not process.alive:
            return
        nature = process.world.nature
        match self._how:
            case "stop":
                process.world.scope.run(nature.stop(process.node))
            case "hang up":
                process.hang_up()
            case _:
                self._kill()

    def _kill(self) -> None:
        if self._process.alive:
            self._process.world.nature.crash(self._process.node, power=self._process.kernel.rng.random() < 0.5)
