"""Nodes with real machines on one virtual clock, an evil network, disks that forget, clocks that jump.

    build -> suffer (workload and faults) -> heal -> converge (liveness) -> rest (nothing moves any more)

Everything is drawn from the seed, and nothing depends on Python's hashes: the same seed gives the same trace.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from random import Random

from certs.errors import CertsError
from certs.files import is_temporary
from swarm import api
from swarm.errors import Code, SwarmError
from swarm.node.events import Refused
from swarm.node.steps import Phase
from tests.sim.ailments import USUAL, Ailments
from tests.sim.authority import ExternalAuthority
from tests.sim.checkers import Checkers
from tests.sim.disk import Disk
from tests.sim.engine import SimEngine
from tests.sim.kernel import Future, Kernel, Scope, Script
from tests.sim.keys import EPOCH, Requests
from tests.sim.manager_driver import ManagerDriver
from tests.sim.nature import Nature
from tests.sim.network import PORT, Network
from tests.sim.process import Process
from tests.sim.thief import Holders, Thief

NANO_CPUS = (4_000_000_000, 16_000_000_000, 16_000_000_000)
MEMORY = Path("/dev/shm")  # files of simulated disks need not survive anything
BUILD_LIMIT_S = 300.0
JOIN_LOOKS = 15  # an operator looks after a join in the background, every other second


class Node:
    """A machine: its disk, its engine, and the daemon while it runs."""

    def __init__(self, world: World, number: int, host: str = "") -> None:
        """host: the address of a machine that was there before; empty: a new one."""
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.host = host or f"10.0.0.{number}"
        self.disk = world.new_disk()
        self.engine = SimEngine(Random(f"{world.kernel.seed}/{self.name}/engine"), world.kernel.at)
        self.process: Process | None = None
        self.runs = 0
        self.gone = False  # left, removed or without its disk: never started again
        self.acknowledged_id = ""  # as which node an operator was told that it is in the cluster
        self.leaving = False  # an operator has asked it to leave
        self.ailing = False  # its disk was damaged or has lost something, and an operator has yet to do something
        self.token = ""  # an operator wants it to join anew with this
        self.forced = False  # an operator makes a new cluster of it, and starts it
        self.buried_id = ""  # which node it was before its disk was lost
        self.clock_rate = world.kernel.rng.choice((1.0, 1.0, 0.998, 1.002))
        self.clock_offset = world.kernel.rng.choice((0.0, 0.0, -2.0, 5.0))
        self.disk_factor = 1.0
        self.stock = False  # its manager keeps SwarmKit's time and is taken for a stock one
        self.cpus = world.nano_cpus

    def wall_clock(self) -> float:
        """What a process that starts now takes for the time."""
        return EPOCH + self.clock_offset + self.world.kernel.now

    def description(self) -> api.NodeDescription:
        """What its agent tells the managers."""
        description = api.NodeDescription(hostname=self.name)
        description.platform.os, description.platform.architecture = "linux", "x86_64"
        description.resources.nano_cpus = self.cpus
        description.resources.memory_bytes = 8 << 30
        description.engine.engine_version = "20.10.24"
        return description

    @property
    def acknowledged(self) -> bool:
        """Whether an operator was told that it is in the cluster."""
        return bool(self.acknowledged_id)

    @property
    def node_id(self) -> str:
        """Its ID in the cluster, empty before it has one."""
        return self.process.node_id if self.process is not None else ""

    @property
    def manager(self) -> ManagerDriver | None:
        """Its running manager."""
        return self.process.manager if self.process is not None and self.process.alive else None


class World:
    """See the module."""

    def __init__(
        self,
        seed: int,
        managers: int | None = None,
        workers: int | None = None,
        ailments: frozenset[str] = USUAL,
    ) -> None:
        """managers, workers: how many; None: the seed says it. ailments: of ailments.KINDS."""
        self.kernel = Kernel(seed)
        self.rng = self.kernel.rng
        self.network = Network(self.kernel)
        self.checkers = Checkers(self.kernel)
        self.requests = Requests(self.kernel)
        self.authority = ExternalAuthority()
        self.scope = Scope()
        self.nodes: list[Node] = []
        self.faulty = False
        self.usurped: Node | None = None  # who was cut off while it led
        self.usurped_until = 0.0
        self._disk_s = 0.001
        self._disks = 0
        self._directory = Path(tempfile.mkdtemp(prefix="sideswarm-sim-", dir=MEMORY if MEMORY.is_dir() else None))
        weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        rng = self.rng
        self.nano_cpus = rng.choice(NANO_CPUS)
        self.managers = managers or rng.choice((1, 3, 3, 3, 5))
        self.workers = rng.choice((0, 1, 2, 3)) if workers is None else workers
        self.snapshot_interval = rng.choice((10, 40, 10_000))
        self.keep_entries = rng.choice((1, 10, 500))
        self._evil = {
            "delay_s": rng.choice((0.001, 0.01, 0.05)),
            "loss": rng.choice((0.0, 0.01, 0.1)),
            "duplication": rng.choice((0.0, 0.05)),
            "disk_s": rng.choice((0.0005, 0.005, 0.05)),
        }
        self.tokens = ("", "")
        self.mixed = self.managers > 1 and rng.random() < 0.2
        self.nature = Nature(self)
        self.ailments = Ailments(self, ailments)
        self.holders = Holders()
        self.thief = Thief(self)

    def new_disk(self) -> Disk:
        """An empty one."""
        self._disks += 1
        return Disk(self._directory / f"disk{self._disks}")

    # --- what the processes ask ------------------------------------------------------------------------------------

    def disk_s(self, node: Node) -> float:
        """How long a write takes on average."""
        return self._disk_s * node.disk_factor

    # --- looking ---------------------------------------------------------------------------------------------------

    def alive(self) -> list[Node]:
        """Nodes whose daemon runs."""
        return [node for node in self.nodes if node.process is not None and node.process.alive]

    def managing(self) -> list[Node]:
        """Nodes with a running manager."""
        return [node for node in self.nodes if node.manager is not None]

    def leader(self) -> Node | None:
        """Who believes to lead, in the newest term."""
        leading = [node for node in self.managing() if node.manager is not None and node.manager.leadership.leading]
        return max(leading, key=lambda n: n.manager.leadership.term if n.manager else 0, default=None)

    # --- building --------------------------------------------------------------------------------------------------

    def add_node(self, host: str = "") -> Node:
        """A machine that is no node yet."""
        node = Node(self, len(self.nodes) + 1, host)
        self.nodes.append(node)
        return node

    def start(self, node: Node) -> Process:
        """Start the daemon; what it does then is up to the caller, unless its disk says that it is a node."""
        node.runs += 1
        process = node.process = Process(self, node, node.runs)
        self.kernel.say("start", node.name)
        booted = process.boot()
        if node.ailing:
            self.scope.run(self.ailments.care(node))
        self.scope.run(self._unlock(process, booted))
        return process

    def _unlock(self, process: Process, booted: Future) -> Script:
        """An operator unlocks a node that was found locked, with one of the keys that the cluster had."""
        try:
            yield booted
        except (SwarmError, OSError):
            return
        if self.faulty and process.machine.status().phase is Phase.LOCKED:
            self.ailments.perhaps_interrupt(process)
        while process.alive and process.machine.status().phase is Phase.LOCKED:
            for key in reversed(self.checkers.unlock_keys):
                try:
                    yield process.docker.unlock(key)
                    self.kernel.say(process.name, "is unlocked")
                    return
                except (SwarmError, CertsError, OSError) as error:
                    self.kernel.say(process.name, "is not unlocked:", error)
            yield self.kernel.sleep(0.5)

    def build(self) -> None:
        """From nothing to a cluster of the wanted size, over a good network."""
        first = self.add_node()
        first.stock = self.mixed
        self.start(first)
        spec = api.ClusterSpec()
        spec.raft.snapshot_interval = self.snapshot_interval
        spec.raft.log_entries_for_slow_followers = self.keep_entries
        spec.orchestration.task_history_retention_limit = self.rng.choice((1, 5))
        spec.dispatcher.heartbeat_period.FromSeconds(self.rng.choice((1, 5)))
        made = self.scope.run(self._create(first, spec))
        self.until(lambda: made.done, "no cluster was made")
        process = made.value
        tokens = next(process.manager.store.all(api.Cluster)).root_ca.join_tokens
        self.tokens = (tokens.manager, tokens.worker)
        for number in range(self.managers - 1 + self.workers):
            node = self.join(self.tokens[0] if number < self.managers - 1 else self.tokens[1])
            node.stock = self.mixed and self.rng.random() < 0.4
        self.until(self._all_ready, "nodes do not become ready")

    def _create(self, node: Node, spec: api.ClusterSpec) -> Script:
        """A cluster is made, whoever interrupts; either there is one or nothing of it is left. Returns the process."""
        node.forced = True
        while True:
            process = node.process
            if process is None or not process.alive:
                process = self.start(node)
                yield self.kernel.sleep(1.0)
            if process.machine.status().ready:
                node.forced = False
                node.acknowledged_id, node.leaving = process.node_id, False
                return process
            if not process.in_swarm:
                left = [path for path in node.disk.files.paths() if not is_temporary(path.name)]
                assert not left, f"what is left of an init: {left}"
                self.ailments.perhaps_interrupt(process)
                self.checkers = Checkers(self.kernel)  # of an attempt that came to nothing nothing counts
                try:
                    yield process.docker.create(spec)
                except (SwarmError, OSError) as error:
                    self.kernel.say(process.name, "makes no cluster:", error)
            yield self.kernel.sleep(0.1)

    def join(self, token: str, host: str = "") -> Node:
        """A new machine joins, as often as it takes; or one that was there before and has lost its disk."""
        node = self.add_node(host)
        process = self.start(node)
        if self.faulty:
            self.ailments.perhaps_interrupt(process)
        self.join_again(process, token)
        return node

    def join_again(self, process: Process, token: str) -> None:
        """A machine that is no node joins, as often as it takes."""
        self.scope.run(self._join(process, token))

    def _join(self, process: Process, token: str) -> Script:
        while process.alive:
            try:
                remotes = [f"{other.host}:{PORT}" for other in self.managing()]
                yield process.docker.join(remotes, token)
                return
            except Refused as error:
                failed = process.machine.status().phase is Phase.ERROR
                self.kernel.say(process.name, "does not join:", error.refusal.name)
                if process.machine.record.ready and not failed:
                    return
                if not failed and (yield self.scope.run(self._watch_join(process))):
                    return
            except SwarmError as error:
                self.kernel.say(process.name, "does not join:", error)
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    process.node.gone = True
                    process.die(torn=False, silent=False)
                    return
            except OSError as error:
                self.kernel.say(process.name, "does not join:", error)
            yield self.kernel.sleep(2.0)
            if process.alive and process.machine.status().phase is Phase.ERROR:  # what was begun could not be deleted
                with contextlib.suppress(SwarmError, OSError):
                    yield process.docker.leave(force=True)

    def _watch_join(self, process: Process) -> Script:
        """Whether a join in the background succeeds. Its managers may be gone: an operator ends it after a while."""
        for _ in range(JOIN_LOOKS):
            if not process.alive or not process.in_swarm:
                return False
            if process.machine.record.ready:
                return True
            yield self.kernel.sleep(2.0)
        try:
            yield process.docker.leave()
        except (SwarmError, OSError) as error:
            self.kernel.say(process.name, "goes on joining:", error)
        return False

    def _all_ready(self) -> bool:
        leader = self.leader()
        if leader is None or leader.manager is None:
            return False
        nodes = list(leader.manager.store.all(api.Node))
        return len(nodes) == len(self.nodes) and all(n.status.state == api.NodeStatus.READY for n in nodes)

    def until(self, condition: Callable[[], bool], failure: str, limit_s: float = BUILD_LIMIT_S) -> None:
        """Let time pass until it holds."""
        end = self.kernel.now + limit_s
        while not condition():
            assert self.kernel.now < end, failure
            self.kernel.advance(self.kernel.now + 0.25)

    # --- faults ----------------------------------------------------------------------------------------------------

    def suffer(self) -> None:
        """From now on things go wrong."""
        self.faulty = True
        network = self.network
        network.delay_s, network.loss = self._evil["delay_s"], self._evil["loss"]
        network.duplication, self._disk_s = self._evil["duplication"], self._evil["disk_s"]
        for node in self.nodes:
            node.engine.chaos = self.rng.choice((0.0, 0.05, 0.2))
        self.nature.start()
        self.ailments.start()
        self.thief.start()

    def restart(self, node: Node) -> None:
        """The daemon starts again if it does not run; a machine that is no node yet stays out."""
        if not (node.gone or node.forced) and (node.process is None or not node.process.alive):
            self.checkers.promises.comes_back(node)
            if node.disk.saved or node.ailing or node.token:
                process = self.start(node)
                if node.token:
                    self.join_again(process, node.token)
            else:
                node.gone = True

    def bury(self, node: Node) -> None:
        """A machine's disk is gone, and what ran there; nobody will ever hear of this node again."""
        node.gone, node.buried_id = True, node.node_id
        if node.process is not None and node.process.alive:
            node.process.die(torn=False, silent=True)
        node.engine.die()
        node.disk = self.new_disk()

    # --- the end of the faults -----------------------------------------------------------------------------------

    def heal(self) -> None:
        """Faults stop, everything that belongs to the cluster runs."""
        self.kernel.say("faults stop")
        self.faulty = False
        network = self.network
        network.cut.clear()
        network.disguised.clear()
        network.delay_s, network.loss, network.duplication, self._disk_s = 0.002, 0.0, 0.0, 0.001
        for node in self.nodes:
            node.engine.chaos = 0.0
            node.disk_factor = 1.0
            node.disk.files.full = False
            node.disk.files.trouble = node.disk.log_trouble = None
            self.nature.engine_back(node)
            self.restart(node)

    def rescue(self) -> None:
        """Tell nodes where the managers are that were away while all they knew were replaced.

        Nobody else can, in stock swarms neither: there one has to leave and to join again.
        """
        leader = self.leader()
        if leader is None or leader.manager is None or leader.manager.manager is None:
            return
        members = [(member.node_id, member.addr) for member in leader.manager.manager.group.members.values()]
        for node in self.alive():
            known = node.process.known_managers() if node.process is not None and node.node_id else members
            if not any(manager in members for manager in known):
                self.kernel.say("rescue", node.name)
                assert node.process is not None
                node.process.die(torn=False, silent=False)
                node.disk.set_managers(tuple(members))
                self.restart(node)
