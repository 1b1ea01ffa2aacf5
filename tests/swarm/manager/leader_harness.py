"""Drives swarm.manager.leader.Leader with all stages of orchestration on a store, without Raft or real agents.

Every stage is watched: a task may only make the transitions that swarmkit's design/tla/Tasks.tla allows this component,
no node may be oversubscribed, and a slot may hold one live task (two while an update starts first). Addresses, subnets
and VXLAN network identifiers have one holder.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from random import Random

from google.protobuf.message import Message

from swarm import api
from swarm.api.timestamps import stamp
from swarm.manager.allocator.subnets import VNI_OPTION, subnets_of
from swarm.manager.leader import Leader
from swarm.manager.service import Write
from swarm.manager.stage import Stage
from swarm.manager.stages import task_stages
from swarm.store.store import Change, Store, View
from swarm.store.tx import Tx

GONE = -1
ENDED = (api.COMPLETE, api.SHUTDOWN, api.FAILED, api.REJECTED, api.ORPHANED)
ON_NODE = (api.ASSIGNED, api.ACCEPTED, api.PREPARING, api.READY, api.STARTING, api.RUNNING)
ORCHESTRATOR = frozenset({(GONE, api.NEW)})
ALLOWED: dict[str, frozenset[tuple[int, int]]] = {
    "enforcer": frozenset((state, api.REJECTED) for state in ON_NODE),  # speaks for the agent
    "replicated": ORCHESTRATOR,
    "global": ORCHESTRATOR,
    "jobs": ORCHESTRATOR,
    "update": ORCHESTRATOR,
    "restart": ORCHESTRATOR,
    "allocator": frozenset({(api.NEW, api.PENDING)}),
    "scheduler": frozenset({(api.PENDING, api.ASSIGNED)}),
    "reaper": frozenset(
        {(state, GONE) for state in (api.NEW, api.PENDING, *ENDED)} | {(state, api.ORPHANED) for state in ON_NODE}
    ),
}


class Watched:
    """A stage whose transitions are checked; ``log`` of the transaction tells what it touched."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self.stage = stage

    def rebuild(self, view: View, now: float) -> None:
        self.stage.rebuild(view, now)

    def note(self, kind: str, object_id: str) -> None:
        self.stage.note(kind, object_id)

    def deadline(self) -> float | None:
        return self.stage.deadline()

    def run(self, tx: Tx) -> None:
        before = {task.id: (task.status.state, task.desired_state, task.node_id) for task in tx.all(api.Task)}
        self.stage.run(tx)
        for task in tx.all(api.Task):
            state, desired, _ = before.pop(task.id, (GONE, 0, ""))
            change = (int(state), int(task.status.state))
            assert change[0] == change[1] or change in ALLOWED[self.name], f"{self.name}: {change} of {task.id}"
            assert task.desired_state >= desired, f"{self.name}: desired state of {task.id} goes back"
            assert task.node_id or task.status.state < api.ASSIGNED
        for task_id, (state, _, node_id) in before.items():
            orphaned = tx.get(api.Node, node_id) is None and state in ON_NODE  # and removed in the same pass
            assert orphaned or (state, GONE) in ALLOWED[self.name], f"{self.name}: removed {task_id} in {state}"


class LeaderHarness:
    """Drives a Leader. now: seconds since the epoch. changes: called with what every pass committed."""

    def __init__(self, seed: int = 1, changes: Callable[[list[Change]], None] | None = None) -> None:
        self.now = 1000.0
        self.rng = Random(seed)
        self.store = Store()
        self.index = 0
        self.agents = False
        self.start_first = False
        self.shrunk: dict[str, None] = {}  # nodes with less than they once had: tasks there are on their way out
        self.on_changes = changes
        cluster = api.Cluster(id="cluster")
        cluster.spec.orchestration.task_history_retention_limit = 5
        self.apply(lambda tx: tx.create(cluster))
        self.elect()

    # --- the leader ------------------------------------------------------------------------------------------------

    def elect(self) -> None:
        """A new leader, which knows nothing but the store."""
        made = task_stages(strict=True)
        self.stages = dict(made)
        stages = [(name, Watched(name, stage)) for name, stage in made]
        self.leader = Leader(self.store, stages, self.rng, self.now, strict=True)

    def apply(self, change: Callable[[Tx], object]) -> None:
        """Change the store directly; only before the first election."""
        tx = Tx(self.store, self.now, self.rng)
        change(tx)
        self.commit(tx.actions())

    def commit(self, actions: list[api.StoreAction]) -> None:
        self.index += 1
        changes = self.store.apply(actions, self.index)
        self.check()
        if self.on_changes is not None:
            self.on_changes(changes)

    def write(self, change: Callable[[Tx], object]) -> None:
        """A client's write, and passes until all is quiet."""

        def run(tx: Tx) -> Message | None:
            change(tx)
            return None

        self.leader.submit(Write(run))
        self.settle()

    def settle(self) -> None:
        """Passes, and agents if they are on, until nothing is to be done at this moment."""
        for _ in range(1000):
            due = self.leader.deadline()
            if due is not None and due <= self.now:
                entry, _ = self.leader.next_pass(self.now)
                if entry is not None:
                    self.commit(list(api.InternalRaftRequest.FromString(entry).action))
                    self.leader.committed()
            elif not (self.agents and self.act()):
                return
        raise AssertionError("never quiet")

    def tick(self, seconds: float) -> None:
        """Let time pass, stopping at every deadline on the way."""
        end = self.now + seconds
        self.settle()
        while (due := self.leader.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.settle()
        self.now = end
        self.settle()

    # --- agents ------------------------------------------------------------------------------------------------------

    def act(self) -> bool:
        """Every agent of a node that is up brings its tasks one step further; whether there was anything to do."""
        steps = {}
        for task in self.store.all(api.Task):
            node = self.store.get(api.Node, task.node_id)
            if (
                node is not None
                and node.status.state == api.NodeStatus.READY
                and (step := next_state(task)) is not None
            ):
                steps[task.id] = step
        if steps:
            self.leader.submit(Write(lambda tx: self._report(tx, steps)))
        return bool(steps)

    def _report(self, tx: Tx, steps: dict[str, api.TaskState]) -> None:
        for task_id, state in steps.items():
            report(tx, task_id, state)

    # --- invariants --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """No node holds more than it has; no slot has two live tasks unless an update starts first."""
        cpus: dict[str, int] = {}
        live: dict[tuple[str, int, str], int] = {}
        for task in self.store.all(api.Task):
            if task.node_id and api.ASSIGNED <= task.status.state <= api.RUNNING:
                cpus[task.node_id] = cpus.get(task.node_id, 0) + task.spec.resources.reservations.nano_cpus
            job = task.HasField("job_iteration")
            if task.desired_state <= api.RUNNING or (job and task.desired_state == api.COMPLETE > task.status.state):
                key = (task.service_id, task.slot, task.node_id if not task.slot else "")
                if not job or task.slot:
                    live[key] = live.get(key, 0) + 1
        for node in self.store.all(api.Node):
            taken, have = cpus.get(node.id, 0), node.description.resources.nano_cpus
            assert taken <= have or node.id in self.shrunk, f"{node.id}: {taken} of {have} nano CPUs"
        if not self.start_first:
            assert all(number == 1 for number in live.values()), live
        self._check_networks()

    def _check_networks(self) -> None:
        """No address has two holders, and no two networks share addresses or a VXLAN network identifier."""
        held = [(n.id, c.gateway) for n in self.store.all(api.Network) for c in n.ipam.configs if c.gateway]
        held += [(v.network_id, v.addr) for s in self.store.all(api.Service) for v in s.endpoint.virtual_ips if v.addr]
        attached = [a for node in self.store.all(api.Node) for a in node.attachments]
        attached += [a for x in self.store.all(api.Task) if x.status.state <= api.RUNNING for a in x.networks]
        held += [(a.network.id, address) for a in attached for address in a.addresses]
        numbers = [(network_id, address.partition("/")[0]) for network_id, address in held]
        assert len(numbers) == len(set(numbers)), sorted(numbers)
        networks = {a.network.id: a.network for a in attached} | {n.id: n for n in self.store.all(api.Network)}
        subnets = [subnet for n in networks.values() for subnet in subnets_of(n)]
        assert not any(one.overlaps(other) for one, other in combinations(subnets, 2)), subnets
        vnis = [n.driver_state.options[VNI_OPTION] for n in networks.values() if VNI_OPTION in n.driver_state.options]
        assert len(vnis) == len(set(vnis)), vnis


def next_state(task: api.Task) -> api.TaskState | None:
    """What a well-behaved agent reports next; its containers never end by themselves."""
    state, desired = task.status.state, task.desired_state
    if state not in ON_NODE:
        return None
    if desired >= api.SHUTDOWN:
        return api.SHUTDOWN
    if state == api.RUNNING:
        return api.COMPLETE if desired == api.COMPLETE else None
    following = ON_NODE[ON_NODE.index(state) + 1]
    return following if following <= desired else None


def report(tx: Tx, task_id: str, state: api.TaskState, err: str = "") -> None:
    """An agent's status report, as the dispatcher applies it."""
    task = tx.get(api.Task, task_id)
    if task is None or task.status.state >= state:
        return
    status = tx.edit(api.Task, task_id).status
    status.state = state
    status.message = api.TaskState.Name(state).lower()
    status.err = err
    stamp(status.timestamp, tx.now)
    stamp(status.applied_at, tx.now)
