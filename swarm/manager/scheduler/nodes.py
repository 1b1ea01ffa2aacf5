"""What each node has left: resources, host ports, tasks by service, recent failures.

Bookings are kept by task ID: account() takes back what was booked for a task before and books what it needs now, so
repeated or spurious notes do no harm. Ready nodes are kept in buckets by their number of active tasks, so that the
emptiest ones are found without looking at all nodes.

(swarmkit: manager/scheduler/{nodeinfo,nodeset}.go)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from swarm import api, defaults
from swarm.manager.genericresource import GenericValues, values_of
from swarm.manager.tasks import status_at

Ports = tuple[tuple[int, int], ...]  # protocol, published port
_Run = tuple[str, int]  # service ID, spec version


class Holding(NamedTuple):
    """What one task takes from one node. active: it counts as a task of its service, because it is meant to run."""

    node_id: str
    service_id: str
    active: bool
    nano_cpus: int
    memory_bytes: int
    ports: Ports
    generic: GenericValues


def host_ports(task: api.Task) -> Ports:
    """Ports that the task publishes on its own node with a number chosen by the user."""
    return tuple(
        (port.protocol, port.published_port)
        for port in task.endpoint.ports
        if port.publish_mode == api.PortConfig.HOST and port.published_port
    )


def holding_of(task: api.Task) -> Holding | None:
    """What the task takes from its node; None when it has none yet, or none any more."""
    if not task.node_id or not api.ASSIGNED <= task.status.state <= api.RUNNING:
        return None
    cpus = memory = 0
    if task.spec.HasField("resources"):
        reserved = task.spec.resources.reservations
        cpus, memory = reserved.nano_cpus, reserved.memory_bytes
    ports = host_ports(task) if task.endpoint.ports else ()
    generic = values_of(task.assigned_generic_resources) if task.assigned_generic_resources else ()
    return Holding(task.node_id, task.service_id, task.desired_state <= api.COMPLETE, cpus, memory, ports, generic)


class NodeInfo:
    """One node: the object, and the sum of what its tasks take. ``node`` is None while only tasks know of it."""

    __slots__ = ("active", "failures", "generic", "node", "node_id", "order", "ports", "taken", "tasks")

    def __init__(self, node_id: str, order: int) -> None:
        self.node_id = node_id
        self.order = order
        self.node: api.Node | None = None
        self.tasks = 0
        self.active = 0
        self.taken = [0, 0]  # nano CPUs, bytes of memory
        self.ports: dict[tuple[int, int], int] = {}
        self.generic: dict[tuple[str, str], int] = {}
        self.failures: dict[_Run, dict[str, float]] = {}

    def ready(self) -> bool:
        """Whether the node takes new tasks at all."""
        node = self.node
        return (
            node is not None
            and node.status.state == api.NodeStatus.READY
            and node.spec.availability == api.NodeSpec.ACTIVE
        )

    def book(self, holding: Holding, sign: int) -> None:
        """Add (1) or take back (-1) what a task takes."""
        self.tasks += sign
        self.active += sign * holding.active
        self.taken[0] += sign * holding.nano_cpus
        self.taken[1] += sign * holding.memory_bytes
        for port in holding.ports:
            self.ports[port] = self.ports.get(port, 0) + sign
        for kind, value, amount in holding.generic:
            self.generic[kind, value] = self.generic.get((kind, value), 0) + sign * amount

    def fits(self, nano_cpus: int, memory_bytes: int) -> bool:
        """Whether that much is free."""
        if self.node is None:
            return False
        have = self.node.description.resources
        return have.nano_cpus - self.taken[0] >= nano_cpus and have.memory_bytes - self.taken[1] >= memory_bytes

    def free_generic(self, kind: str) -> tuple[list[str], int]:
        """Free generic resources of a kind: values of named ones, amount of a discrete one."""
        named: list[str] = []
        amount = 0
        if self.node is not None:
            for name, value, count in values_of(self.node.description.resources.generic):
                if name == kind and value:
                    if not self.generic.get((kind, value)):
                        named.append(value)
                elif name == kind:
                    amount += count
        return named, amount - self.generic.get((kind, ""), 0) if amount else 0

    def claim(self, reservations: Iterable[api.GenericResource]) -> list[api.GenericResource]:
        """Free resources that satisfy the reservations, which were checked to fit; nothing is booked yet."""
        out = []
        for kind, _, amount in values_of(reservations):
            named, _ = self.free_generic(kind)
            if named:
                out += [
                    api.GenericResource(named_resource_spec=api.NamedGenericResource(kind=kind, value=value))
                    for value in named[:amount]
                ]
            elif amount:
                spec = api.DiscreteGenericResource(kind=kind, value=amount)
                out.append(api.GenericResource(discrete_resource_spec=spec))
        return out

    def recent_failures(self, run: _Run, now: float) -> int:
        """How many tasks of this service and spec version failed here within FAILURE_WINDOW_S."""
        failures = self.failures.get(run)
        if not failures:
            return 0
        for task_id in [i for i, at in failures.items() if now - at > defaults.FAILURE_WINDOW_S]:
            del failures[task_id]
        if not failures:
            del self.failures[run]
        return len(failures)


class NodeSet:
    """All nodes. ``generation`` grows whenever something may fit that did not fit before."""

    def __init__(self) -> None:
        self.infos: dict[str, NodeInfo] = {}
        self.generation = 0
        self._orders = 0
        self._holdings: dict[str, Holding] = {}
        self._by_service: dict[str, dict[str, int]] = {}
        self._buckets: dict[int, dict[str, NodeInfo]] = {}
        self._bucket_of: dict[str, int] = {}

    # --- reconciling -------------------------------------------------------------------------------------------------

    def set_node(self, node_id: str, node: api.Node | None) -> None:
        """Take over a node as it is now. None: it is gone."""
        info = self.infos.get(node_id)
        if node is None:
            if info is not None:
                info.node = None
                self._place(info)
            return
        if info is None:
            info = self._new_info(node_id)
        info.node = node
        self.generation += 1
        self._place(info)

    def account(self, task_id: str, task: api.Task | None) -> None:
        """Take back what was booked for this task and book what it takes now. None: it is gone."""
        before = self._holdings.get(task_id)
        after = None if task is None else holding_of(task)
        if before == after:
            return
        if before is not None:
            del self._holdings[task_id]
            self._book(before, -1)
            self.generation += 1
        if after is not None:
            self._holdings[task_id] = after
            self._book(after, 1)

    def failed(self, task: api.Task) -> None:
        """A task that this scheduler placed failed; counted once per task."""
        info = self.infos.get(task.node_id)
        if info is not None:
            run = (task.service_id, task.spec_version.index)
            info.failures.setdefault(run, {}).setdefault(task.id, status_at(task))

    def holding(self, task_id: str) -> Holding | None:
        """What is booked for a task."""
        return self._holdings.get(task_id)

    def _new_info(self, node_id: str) -> NodeInfo:
        self._orders += 1
        info = self.infos[node_id] = NodeInfo(node_id, self._orders)
        return info

    def _book(self, holding: Holding, sign: int) -> None:
        info = self.infos.get(holding.node_id)
        if info is None:
            info = self._new_info(holding.node_id)
        info.book(holding, sign)
        if holding.active:
            counts = self._by_service.setdefault(holding.service_id, {})
            counts[holding.node_id] = counts.get(holding.node_id, 0) + sign
            if not counts[holding.node_id]:
                del counts[holding.node_id]
                if not counts:
                    del self._by_service[holding.service_id]
        self._place(info)

    def _place(self, info: NodeInfo) -> None:
        """Put the node into the bucket where it belongs; drop nodes that neither exist nor hold anything."""
        bucket = info.active if info.ready() else None
        old = self._bucket_of.get(info.node_id)
        if old != bucket:
            if old is not None:
                del self._buckets[old][info.node_id]
                if not self._buckets[old]:
                    del self._buckets[old]
                del self._bucket_of[info.node_id]
            if bucket is not None:
                self._buckets.setdefault(bucket, {})[info.node_id] = info
                self._bucket_of[info.node_id] = bucket
        if info.node is None and not info.tasks:
            self.infos.pop(info.node_id, None)

    # --- reading -----------------------------------------------------------------------------------------------------

    def counts(self, service_id: str) -> dict[str, int]:
        """Active tasks of a service by node ID; nodes without any are absent. Not to be changed."""
        return self._by_service.get(service_id, {})

    def emptiest(self) -> Iterator[NodeInfo]:
        """Ready nodes, those with the fewest active tasks first. Book nothing while iterating."""
        for active in sorted(self._buckets):
            yield from self._buckets[active].values()

    def known(self) -> Iterator[NodeInfo]:
        """All nodes that exist, ready or not."""
        return (info for info in self.infos.values() if info.node is not None)
