"""Whatever clients, nodes and tasks do: the harness's invariants hold, and when it stops, the cluster converges."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm import api
from swarm.manager import tasks as t
from swarm.manager.allocator.allocator import AllocatorStage
from swarm.manager.scheduler.nodes import NodeSet
from swarm.manager.scheduler.scheduler import SchedulerStage
from swarm.manager.stages import task_stages
from swarm.store.tx import Tx
from tests.swarm.manager import commands
from tests.swarm.manager.leader_harness import LeaderHarness, report

pytestmark = pytest.mark.timeout(120)

ENDS = (api.FAILED, api.COMPLETE, api.REJECTED)
SERVICES = ("web", "db", "agent", "batch")
NODES = ("n1", "n2", "n3", "n4")
NETWORKS = ("front", "back")

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("scale", "update", "rollback", "remove", "fail", "down", "availability", "label", "gone", "tick"),
                *("elect", "network", "network"),
            )
        ),
        st.integers(0, 10**6),
    ),
    max_size=14,
)


class Workload:
    """Drives a LeaderHarness with random operations on a small cluster."""

    def __init__(self, seed: int, start_first: bool) -> None:
        self.harness = LeaderHarness(seed)
        self.harness.agents = True
        self.harness.start_first = start_first
        self.order = "start-first" if start_first else "stop-first"
        for name in NODES:
            commands.node(self.harness, "add", name, {"cpus": "4", "label.zone": name[-1]})
        for name in ("ingress", *NETWORKS):
            self.add_network(name)
        self.create("web")
        self.create("agent")

    def create(self, name: str) -> None:
        settings = {"image": "x", "cpus": "0.5", "restart": "any", "restart.delay": "1s"}
        if name == "agent":
            settings |= {"mode": "global"}
        elif name == "batch":
            settings |= {"mode": "replicated_job", "completions": "5", "concurrent": "2"}
        else:
            settings |= {"replicas": "3", "update.order": self.order, "update.monitor": "1s"}
            settings |= {"network": "back"} if name == "db" else {"network": "front", "port": "80"}
        commands.service(self.harness, "create", name, settings)

    def add_network(self, name: str) -> None:
        """A network of the cluster; front has room for 29 holders of addresses."""
        network = api.Network(id=name)
        network.spec.annotations.name = name
        network.spec.ingress = name == "ingress"
        if name == "front":
            network.spec.ipam.configs.add(subnet="10.20.0.0/27")
        self.harness.write(lambda tx: tx.create(network))

    def change_network(self, rng: Random) -> None:
        """Create a network that is missing, remove one as no user could, or move a service to another."""
        name = rng.choice(NETWORKS)
        store = self.harness.store
        service = store.get(api.Service, rng.choice(SERVICES))
        if store.get(api.Network, name) is None:
            self.add_network(name)
        elif service is not None and not t.is_job(service.spec) and rng.random() < 0.7:
            service_id, networks = service.id, rng.sample(NETWORKS, rng.randrange(3))

            def move(tx: Tx) -> None:
                spec = tx.edit(api.Service, service_id).spec
                del spec.task.networks[:]
                for target in networks:
                    spec.task.networks.add(target=target)

            self.harness.write(move)
        elif not any(service.spec.task.networks for service in store.all(api.Service)):
            self.harness.write(lambda tx: tx.remove(api.Network, name))

    def service(self, pick: int) -> api.Service | None:
        return self.harness.store.get(api.Service, SERVICES[pick % len(SERVICES)])

    def perform(self, operation: str, pick: int) -> None:
        harness, rng = self.harness, Random(pick)
        service = self.service(pick)
        node = harness.store.get(api.Node, NODES[pick % len(NODES)])
        if operation in ("scale", "update", "rollback", "remove") and service is None:
            self.create(SERVICES[pick % len(SERVICES)])
        elif operation == "scale" and service is not None and t.mode_of(service) == t.REPLICATED:
            commands.service(harness, "update", service.id, {"replicas": str(rng.randrange(7))})
        elif operation == "update" and service is not None:
            change = {"image": f"v{rng.randrange(3)}", "cpus": rng.choice(("0.5", "1"))}
            if t.mode_of(service) == t.REPLICATED and rng.random() < 0.5:
                change |= {"update.failure": rng.choice(("pause", "continue", "rollback"))}
            commands.service(harness, "update", service.id, change)
        elif operation == "rollback" and service is not None and service.HasField("previous_spec"):
            if not t.is_job(service.spec):
                commands.service(harness, "rollback", service.id, {})
        elif operation == "remove" and service is not None:
            commands.service(harness, "rm", service.id, {})
        elif operation == "fail":
            self.fail(rng)
        elif operation == "network":
            self.change_network(rng)
        elif operation in ("down", "availability", "label", "gone"):
            self.change_node(operation, node, rng, NODES[pick % len(NODES)])
        elif operation == "tick":
            harness.tick(rng.choice((0.3, 1.0, 6.0, 70.0)))
        elif operation == "elect":
            harness.elect()
            harness.settle()

    def change_node(self, operation: str, node: api.Node | None, rng: Random, name: str) -> None:
        harness = self.harness
        if node is None:
            commands.node(harness, "add", name, {"cpus": "4", "label.zone": name[-1]})
        elif operation == "down":
            verb = "up" if node.status.state == api.NodeStatus.DOWN else "down"
            commands.node(harness, verb, name, {})
        elif operation == "availability":
            commands.node(harness, "set", name, {"availability": rng.choice(("active", "pause", "drain"))})
        elif operation == "label":
            commands.node(harness, "set", name, {"label.zone": rng.choice("123"), "cpus": rng.choice("34")})
        else:
            commands.node(harness, "rm", name, {})

    def fail(self, rng: Random) -> None:
        running = [task for task in self.harness.store.all(api.Task) if task.status.state == api.RUNNING]
        if running:
            task_id = rng.choice(running).id
            self.harness.write(lambda tx: report(tx, task_id, rng.choice(ENDS), "test"))

    def recover(self) -> None:
        """All nodes are well again, all networks are there, updates are resumed, and time passes."""
        for name in NETWORKS:
            if self.harness.store.get(api.Network, name) is None:
                self.add_network(name)
        for name in NODES:
            node = self.harness.store.get(api.Node, name)
            if node is None:
                commands.node(self.harness, "add", name, {"cpus": "8"})
            else:
                commands.node(self.harness, "up", name, {"availability": "active", "cpus": "8"})
        for service in list(self.harness.store.all(api.Service)):
            if not t.is_job(service.spec):
                commands.service(self.harness, "update", service.id, {"image": "last"})
        self.harness.tick(600.0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), start_first=st.booleans(), operations=OPERATIONS)
def test_the_cluster_converges_after_any_history(
    seed: int, start_first: bool, operations: list[tuple[str, int]]
) -> None:
    work = Workload(seed, start_first)
    for operation, pick in operations:
        work.perform(operation, pick)
    work.recover()
    store = work.harness.store
    for service in store.all(api.Service):
        tasks = list(store.find(api.Task, "service", service.id))
        running = [task for task in tasks if task.status.state == api.RUNNING]
        if t.is_job(service.spec):
            iteration = service.job_status.job_iteration.index
            done = {x.slot for x in tasks if x.status.state == api.COMPLETE and x.job_iteration.index == iteration}
            assert len(done) == 5
        else:
            wanted = service.spec.replicated.replicas if t.mode_of(service) == t.REPLICATED else len(NODES)
            assert len(running) == wanted, (service.id, [commands.state_of(x) for x in tasks])
            assert all(x.spec.container.image == "last" for x in running)
            ended = service.update_status.state
            assert ended in (api.UpdateStatus.UNKNOWN, api.UpdateStatus.COMPLETED)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), operations=OPERATIONS)
def test_running_the_stages_again_changes_nothing(seed: int, operations: list[tuple[str, int]]) -> None:
    work = Workload(seed, start_first=False)
    for operation, pick in operations:
        work.perform(operation, pick)
    harness = work.harness
    harness.tick(0.01)  # groups that wait for a node try again after a tiny pause
    for _, stage in task_stages(strict=True):
        tx = Tx(harness.store, harness.now, harness.rng)
        stage.rebuild(harness.store, harness.now)
        names = [("service", x.id) for x in harness.store.all(api.Service)]
        names += [("node", x.id) for x in harness.store.all(api.Node)]
        names += [("task", x.id) for x in harness.store.all(api.Task)]
        names += [("network", x.id) for x in harness.store.all(api.Network)]
        for kind, object_id in names * 2:
            stage.note(kind, object_id)
        stage.run(tx)
        assert not tx.actions(), type(stage).__name__


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), operations=OPERATIONS)
def test_what_stages_keep_beside_the_store_is_what_the_store_says(seed: int, operations: list[tuple[str, int]]) -> None:
    work = Workload(seed, start_first=False)
    for operation, pick in operations:
        work.perform(operation, pick)
    store, stages = work.harness.store, work.harness.stages
    allocator, scheduler = stages["allocator"], stages["scheduler"]
    assert isinstance(allocator, AllocatorStage)
    assert isinstance(scheduler, SchedulerStage)
    fresh = NodeSet()
    for node in store.all(api.Node):
        fresh.set_node(node.id, node)
    for task in store.all(api.Task):
        fresh.account(task.id, task)
    assert _sums(scheduler.nodes) == _sums(fresh)
    assert allocator.audit(store)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), operations=OPERATIONS)
def test_nothing_is_held_when_everything_is_removed(seed: int, operations: list[tuple[str, int]]) -> None:
    work = Workload(seed, start_first=False)
    for operation, pick in operations:
        work.perform(operation, pick)
    work.recover()
    harness = work.harness
    for service in list(harness.store.all(api.Service)):
        commands.service(harness, "rm", service.id, {})
    harness.tick(600.0)
    for network in list(harness.store.all(api.Network)):
        network_id = network.id
        harness.write(lambda tx, network_id=network_id: tx.remove(api.Network, network_id))  # type: ignore[misc]
    allocator = harness.stages["allocator"]
    assert isinstance(allocator, AllocatorStage)
    assert allocator.holdings.state() == ({}, {}, {})
    assert allocator.ports.state() == {}
    assert not any(node.attachments for node in harness.store.all(api.Node))


def _sums(nodes: NodeSet) -> dict[str, tuple[object, ...]]:
    return {
        info.node_id: (
            info.node is not None,
            info.tasks,
            info.active,
            list(info.taken),
            nodes.counts("web").get(name, 0),
        )
        for name, info in sorted(nodes.infos.items())
    }
