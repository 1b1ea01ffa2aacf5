"""Nodes with real machines on one virtual clock, an evil network, disks that forget, clocks that jump.

    build -> suffer (workload and faults) -> heal -> converge (liveness) -> rest (nothing moves any more)

Everything is drawn from the seed, and nothing depends on Python's hashes: the same seed gives the same trace.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from swarm import api
from swarm.errors import Code, SwarmError
from swarm.manager.backlog import Backlog
from swarm.raft import words
from tests.sim.authority import ExternalAuthority
from tests.sim.checkers import Checkers
from tests.sim.disk import Disk
from tests.sim.engine import SimEngine
from tests.sim.kernel import Kernel, Scope, Script
from tests.sim.keys import EPOCH, Requests
from tests.sim.manager_driver import ManagerDriver
from tests.sim.network import PORT, Network
from tests.sim.process import Process

NANO_CPUS = (4_000_000_000, 16_000_000_000, 16_000_000_000)
BUILD_LIMIT_S = 300.0
FAULTS = (
    ("crash", 13),
    ("power", 13),
    ("stop", 4),
    ("cut", 15),
    ("heal", 15),
    ("stall", 10),
    ("clock", 7),
    ("engine", 10),
    ("disk", 5),
    ("transfer", 8),
)

Backlog.reraise = True  # an exception in a stage is a failure of the simulation


class Node:
    """A machine: its disk, its engine, and the daemon while it runs."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.host = f"10.0.0.{number}"
        self.disk = Disk()
        self.engine = SimEngine(Random(f"{world.kernel.seed}/{self.name}/engine"), world.kernel.at)
        self.process: Process | None = None
        self.runs = 0
        self.gone = False  # left or removed: never started again
        self.clock_rate = world.kernel.rng.choice((1.0, 1.0, 0.998, 1.002))
        self.clock_offset = world.kernel.rng.choice((0.0, 0.0, -2.0, 5.0))
        self.disk_factor = 1.0
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
    def node_id(self) -> str:
        """Its ID in the cluster, empty before it has one."""
        return self.process.node_id if self.process is not None else ""

    @property
    def manager(self) -> ManagerDriver | None:
        """Its running manager."""
        return self.process.manager if self.process is not None and self.process.alive else None


class World:
    """See the module."""

    def __init__(self, seed: int, managers: int | None = None, workers: int | None = None) -> None:
        self.kernel = Kernel(seed)
        self.rng = self.kernel.rng
        self.network = Network(self.kernel)
        self.checkers = Checkers(self.kernel)
        self.requests = Requests(self.kernel)
        self.authority = ExternalAuthority()
        self.scope = Scope()
        self.nodes: list[Node] = []
        self.faulty = False
        self._disk_s = 0.001
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

    # --- what the processes ask ------------------------------------------------------------------------------------

    def disk_s(self, host: str) -> float:
        """How long a write takes on average."""
        node = next(node for node in self.nodes if node.host == host)
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

    def add_node(self) -> Node:
        """A machine that is no node yet."""
        node = Node(self, len(self.nodes) + 1)
        self.nodes.append(node)
        return node

    def start(self, node: Node) -> Process:
        """Start the daemon; what it does then is up to the caller, unless its disk says that it is a node."""
        node.runs += 1
        if not node.disk.saved:
            node.disk = Disk()  # what an init or join left that was not acknowledged
        process = node.process = Process(self, node, node.runs)
        self.kernel.say("start", node.name)
        if node.disk.saved:
            process.run(process.resume())
        return process

    def build(self) -> None:
        """From nothing to a cluster of the wanted size, over a good network."""
        first = self.add_node()
        process = self.start(first)
        spec = api.ClusterSpec()
        spec.raft.snapshot_interval = self.snapshot_interval
        spec.raft.log_entries_for_slow_followers = self.keep_entries
        spec.orchestration.task_history_retention_limit = self.rng.choice((1, 5))
        spec.dispatcher.heartbeat_period.FromSeconds(self.rng.choice((1, 5)))
        process.run(process.create(spec))
        self.until(lambda: process.machine is not None, "no cluster was made")
        assert process.manager is not None
        tokens = next(process.manager.store.all(api.Cluster)).root_ca.join_tokens
        self.tokens = (tokens.manager, tokens.worker)
        for number in range(self.managers - 1 + self.workers):
            self.join(self.tokens[0] if number < self.managers - 1 else self.tokens[1])
        self.until(self._all_ready, "nodes do not become ready")

    def join(self, token: str) -> Node:
        """A new machine joins, as often as it takes."""
        node = self.add_node()
        process = self.start(node)
        remotes = [f"{other.host}:{PORT}" for other in self.managing()]
        self.scope.run(self._join(process, remotes, token))
        return node

    def _join(self, process: Process, remotes: list[str], token: str) -> Script:
        while process.alive:
            try:
                yield process.run(process.join(list(remotes), token))
                return
            except SwarmError as error:
                self.kernel.say(process.name, "does not join:", error)
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    process.node.gone = True
                    process.die(torn=False, silent=False)
                    return
            yield self.kernel.sleep(2.0)

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
        self.kernel.at(self.rng.expovariate(0.5), self._fault)

    def _fault(self) -> None:
        """One random act of nature."""
        if not self.faulty:
            return
        alive = self.alive()
        if alive:
            kinds, weights = zip(*FAULTS, strict=True)
            self.inflict(self.rng.choices(kinds, weights)[0], self.rng.choice(alive))
        self.kernel.at(self.rng.expovariate(0.35), self._fault)

    def inflict(self, kind: str, node: Node) -> None:
        """One act of nature, on this node where it is on one."""
        match kind:
            case "crash" | "power":
                self.crash(node, power=kind == "power")
            case "stop":
                self.scope.run(self._stop(node))
            case "cut":
                self.partition()
            case "heal":
                self.network.cut.clear()
                self.kernel.say("heal")
            case "stall":
                self.stall(node)
            case "clock":
                self.clock_jump(node)
            case "engine":
                self.engine_dies(node)
            case "disk":
                self.disk_trouble(node)
            case "transfer":
                self.transfer()

    def crash(self, node: Node, power: bool = False) -> None:
        """The daemon dies, or its whole machine; it comes back after a while."""
        process = node.process
        if process is None or not process.alive:
            return
        self.kernel.say("power" if power else "crash", node.name)
        process.die(torn=self.rng.random() < 0.5, silent=power)
        if power:
            node.engine.die()
            node.engine.revive()
            node.disk.lose_power(self.rng)
            node.clock_offset += self.rng.choice((0.0, 0.0, -3.0, 10.0))
        else:
            node.disk.synced()
        delay_s = self.rng.choice((0.01, 0.5, 3.0, 20.0)) * self.rng.random()
        self.kernel.at(delay_s, lambda: self.restart(node))

    def _stop(self, node: Node) -> Script:
        """The daemon is stopped as it should be, and started again."""
        process = node.process
        assert process is not None
        self.kernel.say("stop", node.name)
        yield self.scope.run(process.stop())
        yield self.kernel.sleep(self.rng.choice((0.01, 3.0)) * self.rng.random())
        self.restart(node)

    def restart(self, node: Node) -> None:
        """The daemon starts again if it does not run; a machine that is no node yet stays out."""
        if not node.gone and (node.process is None or not node.process.alive):
            if node.disk.saved:
                self.start(node)
            else:
                node.gone = True

    def partition(self) -> None:
        """Cut the network in two, in both directions or one, or cut one node off."""
        rng = self.rng
        lonely = rng.choice(self.nodes) if rng.random() < 0.4 else None
        side = {node.host: node is lonely if lonely is not None else rng.random() < 0.5 for node in self.nodes}
        one_way = rng.random() < 0.3
        self.kernel.say("partition", *side.values(), one_way)
        for a in side:
            for b in side:
                if side[a] != side[b] and not (one_way and side[a]):
                    self.network.cut[a, b] = True

    def stall(self, node: Node) -> None:
        """The process does not run for a while, but nobody hangs up."""
        assert node.process is not None
        node.process.stalled_until = self.kernel.now + self.rng.choice((0.3, 2.0, 8.0))
        self.kernel.say("stall", node.name)

    def clock_jump(self, node: Node) -> None:
        """Its clock goes forward."""
        assert node.process is not None
        seconds = self.rng.choice((1.0, 7.0, 60.0))
        self.kernel.say("clock", node.name, seconds)
        node.clock_offset += seconds
        node.process.jump(seconds)

    def engine_dies(self, node: Node) -> None:
        """The engine crashes with its containers; the daemon notices soon, and when it is back."""
        if not node.engine.alive:
            return
        self.kernel.say("engine dies", node.name)
        node.engine.die()
        self.kernel.at(self.rng.uniform(0.0, 2.0), lambda: self._able(node))
        self.kernel.at(self.rng.choice((0.5, 10.0)) * self.rng.random(), lambda: self._engine_back(node))

    def _engine_back(self, node: Node) -> None:
        if not node.engine.alive:
            self.kernel.say("engine back", node.name)
            node.engine.revive()
            self.kernel.at(self.rng.uniform(0.0, 2.0), lambda: self._able(node))

    def _able(self, node: Node) -> None:
        if node.process is not None and node.process.alive:
            node.process.set_able(node.engine.alive)

    def disk_trouble(self, node: Node) -> None:
        """Its disk is slow, or full, for a while."""
        self.kernel.say("disk trouble", node.name)
        node.disk_factor = self.rng.choice((5.0, 40.0))
        manager = node.manager
        if manager is not None and self.rng.random() < 0.4:
            manager.disk_fails = True

        def over() -> None:
            node.disk_factor = 1.0
            if manager is not None:
                manager.disk_fails = False

        self.kernel.at(self.rng.uniform(0.5, 10.0), over)

    def transfer(self) -> None:
        """Leadership is handed over."""
        leader = self.leader()
        if leader is not None and leader.manager is not None:
            self.kernel.say("transfer from", leader.name)
            leader.manager.put(words.TransferLeadership())

    def heal(self) -> None:
        """Faults stop, everything that belongs to the cluster runs."""
        self.kernel.say("faults stop")
        self.faulty = False
        network = self.network
        network.cut.clear()
        network.delay_s, network.loss, network.duplication, self._disk_s = 0.002, 0.0, 0.0, 0.001
        for node in self.nodes:
            node.engine.chaos = 0.0
            node.disk_factor = 1.0
            if node.manager is not None:
                node.manager.disk_fails = False
            self._engine_back(node)
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
                node.disk.managers = tuple(members)
                self.restart(node)
