"""What goes wrong in a simulated cluster: processes, machines, links, clocks, engines and disks.

Each act hits one node or the whole network. Some are rare, and only some worlds know them: a machine whose disk is
lost comes back as a new node, for which an operator removes the old one (operators.py), and after the loss of all
managers but one the cluster is forced to go on from that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm.api import raftpb
from swarm.errors import SwarmError
from swarm.node.steps import Phase
from swarm.raft import events
from swarm.rpc import MANAGER_ROLE
from tests.sim import ailments
from tests.sim.kernel import Script
from tests.sim.network import PORT

if TYPE_CHECKING:
    from tests.sim.world import Node, World

FAULTS = (
    ("crash", 13),
    ("power", 13),
    ("stop", 4),
    ("cut", 15),
    ("heal", 15),
    ("stall", 10),
    ("pause", 5),
    ("clock", 7),
    ("engine", 10),
    ("disk", 5),
    ("transfer", 8),
    ("lose", 6),
    ("move", 3),
    ("usurp", 4),
    ("disguise", 4),
)
KINDS = (*(kind for kind, _ in FAULTS), "catastrophe", *ailments.KINDS)


class Nature:
    """Acts on a world while that is faulty."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kernel = world.kernel
        self.rng = world.rng
        self.loses_disks = self.rng.random() < 0.25
        self.catastrophe_at = self.rng.uniform(5.0, 50.0) if self.rng.random() < 0.06 and not world.mixed else None
        self.lost = 0
        self.moved = 0
        self.catastrophes = 0

    def start(self) -> None:
        """From now on things go wrong."""
        self.kernel.at(self.rng.expovariate(0.5), self._fault)
        if self.catastrophe_at is not None:
            self.kernel.at(self.catastrophe_at, self.catastrophe)

    def _fault(self) -> None:
        """One random act of nature."""
        if not self.world.faulty:
            return
        alive = self.world.alive()
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
                self.world.scope.run(self.stop(node))
            case "cut":
                self.partition()
            case "heal":
                self.world.network.cut.clear()
                self.world.network.disguised.clear()
                self.kernel.say("heal")
            case "stall":
                self.stall(node)
            case "pause":
                self.pause(node, self.rng.uniform(5.0, 30.0))
            case "clock":
                self.clock_jump(node)
            case "engine":
                self.engine_dies(node)
            case "disk":
                self.disk_trouble(node)
            case "transfer":
                self.transfer()
            case "usurp":
                self.usurp()
            case "move":
                if node.process is not None and node.node_id and self._may_move(node):
                    self.move(node)
            case "disguise":
                self.disguise(node)
            case "catastrophe":
                self.catastrophe()
            case _ if kind in ailments.KINDS:
                self.world.ailments.inflict(kind, node)
            case "lose":
                if self.loses_disks and self.can_do_without(node):
                    self.lose(node)

    # --- processes and machines ------------------------------------------------------------------------------------

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
        self.kernel.at(delay_s, lambda: self.world.restart(node))

    def stop(self, node: Node) -> Script:
        """The daemon is stopped as it should be, and started again."""
        process = node.process
        assert process is not None
        self.kernel.say("stop", node.name)
        yield self.world.scope.run(process.stop())
        yield self.kernel.sleep(self.rng.choice((0.01, 3.0)) * self.rng.random())
        self.world.restart(node)

    def stall(self, node: Node) -> None:
        """The process does not run for a while, but nobody hangs up."""
        assert node.process is not None
        node.process.stalled_until = self.kernel.now + self.rng.choice((0.3, 2.0, 8.0))
        self.kernel.say("stall", node.name)

    def pause(self, node: Node, seconds: float) -> None:
        """It is stopped (SIGSTOP): what others send waits in its sockets, and its deadlines pass meanwhile."""
        assert node.process is not None
        node.process.stalled_until = self.kernel.now + seconds
        self.kernel.say("pause", node.name, seconds)

    def clock_jump(self, node: Node) -> None:
        """Its clock goes forward, or back: that is seen by the process that starts there next."""
        assert node.process is not None
        seconds = self.rng.choice((1.0, 7.0, 60.0, -7.0, -60.0))
        self.kernel.say("clock", node.name, seconds)
        node.clock_offset += seconds
        if seconds > 0.0:
            node.process.jump(seconds)

    def partition(self) -> None:
        """Cut the network in two, in both directions or one, or cut one node off."""
        rng, nodes = self.rng, self.world.nodes
        lonely = rng.choice(nodes) if rng.random() < 0.4 else None
        side = {node.host: node is lonely if lonely is not None else rng.random() < 0.5 for node in nodes}
        one_way = rng.random() < 0.3
        self.kernel.say("partition", *side.values(), one_way)
        for a in side:
            for b in side:
                if side[a] != side[b] and not (one_way and side[a]):
                    self.world.network.cut[a, b] = True

    def transfer(self) -> None:
        """Leadership is handed over."""
        leader = self.world.leader()
        if leader is not None and leader.manager is not None:
            self.kernel.say("transfer from", leader.name)
            leader.manager.put(events.TransferLeadership())

    def _may_move(self, node: Node) -> bool:
        """Whether the others will hear where it is: no manager is asked to find two others that moved at once."""
        manager = node.disk.raft.raft_id or node.manager is not None or node.process.identity.role == MANAGER_ROLE  # type: ignore[union-attr]
        leader = self.world.leader()
        if not manager:
            return True
        if leader is None or leader.manager is None or leader.manager.manager is None:
            return False
        hosts = {other.node_id: other.host for other in self.world.nodes if not other.gone}
        members = leader.manager.manager.group.members.values()
        return len(members) > 2 and all(m.addr == f"{hosts.get(m.node_id)}:{PORT}" for m in members)

    def move(self, node: Node) -> None:
        """Its machine gets another address, perhaps one that another machine had, and starts anew."""
        self.moved += 1
        self.crash(node, power=True)
        vacant = self.world.network.vacant
        free, left = list(vacant), node.host
        node.host = f"10.1.{self.moved}.{node.number}"
        if free and self.rng.random() < 0.5:
            node.host = self.rng.choice(free)
            del vacant[node.host]
        vacant[left] = None
        self.kernel.say("move", node.name, node.host)

    def disguise(self, node: Node) -> None:
        """For a while its calls come from where it is not to be found, and its own address may be out of reach."""
        network, hosts = self.world.network, [other.host for other in self.world.nodes if other is not node]
        elsewhere = self.rng.choice([*hosts, *network.vacant, f"10.2.0.{node.number}"])
        hidden = self.rng.random() < 0.7
        self.kernel.say("disguise", node.name, elsewhere, hidden)
        network.disguised[node.host] = elsewhere
        if hidden:
            for host in hosts:
                network.cut[host, node.host] = True

    def usurp(self) -> None:
        """Who leads is cut off, and another comes to lead at once; clients ask both of them (workload.py)."""
        leader = self.world.leader()
        others = [node for node in self.world.managing() if node is not leader]
        if leader is None or not others:
            return
        self.kernel.say("usurp", leader.name)
        for other in self.world.nodes:
            if other is not leader:
                self.world.network.cut[leader.host, other.host] = self.world.network.cut[other.host, leader.host] = True
        self.world.usurped, self.world.usurped_until = leader, self.kernel.now + 2.0
        manager = self.rng.choice(others).manager
        if manager is not None and manager.driver is not None:
            manager.driver.put(events.Campaign(force=True))  # type: ignore[arg-type]

    # --- engines ---------------------------------------------------------------------------------------------------

    def engine_dies(self, node: Node) -> None:
        """The engine crashes with its containers; the daemon notices soon, and when it is back."""
        if not node.engine.alive:
            return
        self.kernel.say("engine dies", node.name)
        node.engine.die()
        self.kernel.at(self.rng.uniform(0.0, 2.0), lambda: self._able(node))
        self.kernel.at(self.rng.choice((0.5, 10.0)) * self.rng.random(), lambda: self.engine_back(node))

    def engine_back(self, node: Node) -> None:
        """It is started again, if it was dead."""
        if not node.engine.alive:
            self.kernel.say("engine back", node.name)
            node.engine.revive()
            self.kernel.at(self.rng.uniform(0.0, 2.0), lambda: self._able(node))

    def _able(self, node: Node) -> None:
        if node.process is not None and node.process.alive:
            node.process.engine_is(node.engine.alive, certain=self.rng.random() < 0.5)

    # --- disks -----------------------------------------------------------------------------------------------------

    def disk_trouble(self, node: Node) -> None:
        """Its disk is slow, or full, for a while."""
        self.kernel.say("disk trouble", node.name)
        node.disk_factor = self.rng.choice((5.0, 40.0))
        files = node.disk.files
        if node.manager is not None and self.rng.random() < 0.4:
            files.full = True

        def over() -> None:
            node.disk_factor = 1.0
            files.full = False

        self.kernel.at(self.rng.uniform(0.5, 10.0), over)

    def can_do_without(self, node: Node) -> bool:
        """Whether the cluster goes on if this machine's disk is lost; no other loss is being repaired."""
        leader = self.world.leader()
        if leader is None or leader.manager is None or leader.manager.manager is None or not node.node_id:
            return False
        manager = leader.manager.manager
        present = {other.node_id: None for other in self.world.nodes if not other.gone}
        members = [member.node_id for member in manager.group.members.values()]
        is_member = node.node_id in members
        ails = any(other.ailing and not other.gone for other in self.world.nodes)
        all_there = not ails and all(member in present for member in members)
        return len(members) > 2 and is_member and not node.stock and all_there

    def lose(self, node: Node) -> None:
        """Its disk is gone with all that ran there: the machine comes back as a new node in the place of the old."""
        self.kernel.say("lost", node.name)
        self.lost += 1
        self.world.bury(node)
        token = self.world.tokens[0 if self.rng.random() < 0.7 else 1]
        self.kernel.at(self.rng.uniform(0.1, 5.0), lambda: self.world.join(token, node.host))

    def catastrophe(self) -> None:
        """The disks of all managers are lost but one that has everything: the cluster must go on from there."""
        world = self.world
        managers = [node for node in world.nodes if not node.gone and (node.disk.raft.raft_id or node.manager)]
        survivors = [node for node in managers if self._has_all(node)]
        if not world.faulty or not survivors:
            return
        survivor = self.rng.choice(survivors)
        self.kernel.say("catastrophe, left is", survivor.name)
        self.catastrophes += 1
        world.checkers.made_anew(survivor.disk.raft.raft_id)
        for node in managers:
            if node is not survivor:
                self.lose(node)
        if survivor.process is not None and survivor.process.alive:
            survivor.process.die(torn=self.rng.random() < 0.5, silent=True)
        world.scope.run(self._force(survivor))

    def _has_all(self, node: Node) -> bool:
        """Whether what was decided is on its disk."""
        decided, image = self.world.checkers.decided, node.disk.raft
        if image.hard_state is None or node.ailing or node.disk.raft_id != image.raft_id or not node.disk.saved:
            return False
        last = max(decided, default=0)
        terms = {index: raftpb.Entry.FromString(data).Term for index, data in image.entries if index in decided}
        return last in terms and all(decided[index][0] == term for index, term in terms.items())

    def _force(self, node: Node) -> Script:
        """An operator starts the daemon as the only manager, until it leads or there is another catastrophe."""
        node.forced, number = True, self.catastrophes
        while number == self.catastrophes:
            process = self.world.start(node)
            self.world.ailments.perhaps_interrupt(process)
            while process.alive:
                while process.alive and process.machine.status().phase is Phase.LOCKED:
                    yield self.kernel.sleep(0.05)
                try:
                    yield process.docker.force_new_cluster()
                    node.forced = False
                    return
                except (SwarmError, OSError) as error:
                    self.kernel.say(process.name, "not forced:", error)
                yield self.kernel.sleep(0.05)
            yield self.kernel.sleep(0.5)
