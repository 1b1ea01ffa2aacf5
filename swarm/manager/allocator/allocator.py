"""Stage: allocates what a task needs of the cluster before a node can be chosen: NEW to PENDING.

Networks get subnets and VXLAN network identifiers; services get their endpoint (published ports, virtual IPs); tasks
get a copy of it and their network attachments; nodes get an address in each network that their tasks use. A task that
cannot get what it needs stays NEW and says why in Status.err. It is tried again when that may have changed.

(swarmkit: manager/allocator/{allocator,network}.go)
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from swarm import api
from swarm.api.timestamps import stamp
from swarm.manager.allocator import networks
from swarm.manager.allocator.holdings import Holdings
from swarm.manager.allocator.ports import PortsExhausted, PortTable
from swarm.manager.allocator.subnets import NotAllocated
from swarm.manager.allocator.waiting import ANY_NETWORK, Waiting
from swarm.manager.backlog import Backlog, earliest
from swarm.manager.networks import ingress_network
from swarm.manager.node_networks import NodeNetworks
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx

log = structlog.get_logger()

PENDING_MESSAGE = "pending task scheduling"
_READ_ORDER = ("network", "service", "node", "task")


class AllocatorStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self.ports = PortTable()
        self.holdings = Holdings()
        self.node_networks = NodeNetworks()
        self._noted: dict[str, dict[str, None]] = {kind: {} for kind in _READ_ORDER}
        self._networks = Backlog("allocator/networks", self._strict)
        self._services = Backlog("allocator/services", self._strict)
        self._tasks = Backlog("allocator/tasks", self._strict)
        self._nodes = Backlog("allocator/nodes", self._strict)
        self._not_allocated: dict[str, str] = {}  # network ID -> why
        self._refused: dict[str, str] = {}  # service ID -> why it has no endpoint
        self._short: dict[str, None] = {}  # nodes that lack an address
        self._ingress_id = ""
        self._waiting = Waiting()  # tasks that stay NEW

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for network in view.all(api.Network):
            self.note("network", network.id)
        for service in view.all(api.Service):
            self.note("service", service.id)
        for node in view.all(api.Node):
            self.note("node", node.id)
        for task in view.all(api.Task):
            self.note("task", task.id)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind in self._noted:
            self._noted[kind][object_id] = None

    def run(self, tx: Tx) -> None:
        """See Stage."""
        self._read(tx)
        self._networks.work(tx, self._allocate_network, staged=api.Network)
        self._services.work(tx, self._allocate_service, staged=api.Service)
        self._tasks.work(tx, self._allocate_task, staged=api.Task)
        self._nodes.work(tx, self._allocate_node, staged=api.Node)

    def deadline(self) -> float | None:
        """See Stage."""
        backlogs = (self._networks, self._services, self._tasks, self._nodes)
        return earliest(*(backlog.deadline() for backlog in backlogs))

    # --- what changed ----------------------------------------------------------------------------------------------

    def _read(self, tx: Tx) -> None:
        """Account for all that changed, then mark what has to be looked at for it."""
        noted, self._noted = self._noted, {kind: {} for kind in _READ_ORDER}
        for kind in _READ_ORDER:
            for object_id in noted[kind]:
                self.holdings.read(tx, kind, object_id)
        for network_id in noted["network"]:
            self._network_changed(network_id)
        self._read_ingress(tx, noted["network"])
        for service_id in noted["service"]:
            self.ports.account(service_id, tx.get(api.Service, service_id))
            self._services.mark(service_id)
            for task_id in self._waiting.on(service_id):
                self._tasks.mark(task_id)
        for node_id in noted["node"]:
            self._nodes.mark(node_id)
        for network_id in self.holdings.take_freed():
            self._network_changed(network_id)  # before new tasks: who waited is first
        for task_id in noted["task"]:
            self._task_changed(tx, task_id)
        if noted["network"] or noted["service"]:
            for service_id in self._refused:
                self._services.mark(service_id)

    def _read_ingress(self, tx: Tx, noted: Iterable[str]) -> None:
        """Every node takes part in the network of the routing mesh."""
        if not noted:
            return
        ingress = ingress_network(tx)
        ingress_id = ingress.id if ingress is not None else ""
        if ingress_id != self._ingress_id or ingress_id in noted:
            self._ingress_id = ingress_id
            for node in tx.all(api.Node):
                self._nodes.mark(node.id)

    def _network_changed(self, network_id: str) -> None:
        """A network came, changed or went, or some of its addresses became free."""
        self._networks.mark(network_id)
        for other in self._not_allocated:
            self._networks.mark(other)
        for service_id in self._refused:
            self._services.mark(service_id)
        for task_id in (*self._waiting.on(network_id), *self._waiting.on(ANY_NETWORK)):
            self._tasks.mark(task_id)
        for node_id in (*self._short, *self.node_networks.nodes(network_id)):
            self._nodes.mark(node_id)

    def _task_changed(self, tx: Tx, task_id: str) -> None:
        task = tx.get(api.Task, task_id)
        for node_id in self.node_networks.account(task_id, task):
            self._nodes.mark(node_id)
        if task is not None and task.status.state == api.NEW and task.desired_state <= api.COMPLETE:
            self._tasks.mark(task_id)
        else:
            self._waiting.remove(task_id)
            self._tasks.forget(task_id)

    # --- allocation ------------------------------------------------------------------------------------------------

    def _allocate_network(self, tx: Tx, network_id: str) -> bool:
        network = tx.get(api.Network, network_id)
        self._not_allocated.pop(network_id, None)
        if network is None or networks.is_allocated(network):
            return True
        draft = copy_of(network)
        try:
            networks.allocate(draft, next(tx.all(api.Cluster), None), self.holdings)
        except NotAllocated as error:
            self._not_allocated[network_id] = str(error)
            log.warning("network.not_allocated", network=network_id, reason=str(error))
            return True
        tx.edit(api.Network, network_id).CopyFrom(draft)
        self.holdings.read(tx, "network", network_id)
        return True

    def _allocate_service(self, tx: Tx, service_id: str) -> bool:
        service = tx.get(api.Service, service_id)
        self._refused.pop(service_id, None)
        if service is None:
            return True
        try:
            endpoint = self._endpoint_of(tx, service)
        except (PortsExhausted, NotAllocated) as error:
            self._refused[service_id] = str(error)
            for task_id in self._waiting.on(service_id):
                self._tasks.mark(task_id)
            return True
        if endpoint is not None and endpoint != service.endpoint:
            service = tx.edit(api.Service, service_id)
            service.endpoint.CopyFrom(endpoint)
            self.ports.account(service_id, service)
            self.holdings.read(tx, "service", service_id)
        return True

    def _endpoint_of(self, view: View, service: api.Service) -> api.Endpoint | None:
        """The endpoint that the service should have; None while it never needed one."""
        spec = service.spec
        attached = networks.configs_of(spec.task, service) and spec.endpoint.mode == api.EndpointSpec.VIP
        if not service.HasField("endpoint") and not attached and not spec.endpoint.ports:
            return None
        virtual_ips = networks.virtual_ips(view, service, self.holdings)
        endpoint = api.Endpoint(ports=self.ports.choose(service), virtual_ips=virtual_ips)
        if spec.HasField("endpoint"):
            endpoint.spec.CopyFrom(spec.endpoint)
        return endpoint

    def _allocate_task(self, tx: Tx, task_id: str) -> bool:
        task = tx.get(api.Task, task_id)
        self._waiting.remove(task_id)
        if task is None or task.status.state != api.NEW or task.desired_state > api.COMPLETE:
            return True
        service = tx.get(api.Service, task.service_id) if task.service_id else None
        if task.service_id and service is None:
            return True  # the reaper removes it
        try:
            if service is not None and service.id in self._refused:
                raise NotAllocated(self._refused[service.id])
            attached = networks.attachments(tx, service, task, self.holdings)
        except NotAllocated as error:
            self._wait(tx, task, service, error)
            return True
        task = tx.edit(api.Task, task_id)
        if service is not None and service.HasField("endpoint"):
            task.endpoint.CopyFrom(service.endpoint)
        del task.networks[:]
        task.networks.extend(attached)
        task.status.Clear()
        task.status.state = api.PENDING
        task.status.message = PENDING_MESSAGE
        stamp(task.status.timestamp, tx.now)
        self.holdings.read(tx, "task", task_id)
        return True

    def _wait(self, tx: Tx, task: api.Task, service: api.Service | None, error: NotAllocated) -> None:
        targets = [config.target for config in networks.configs_of(task.spec, service)]
        reasons = [self._not_allocated[target] for target in targets if target in self._not_allocated]
        text = ": ".join([str(error), *reasons[:1]])
        self._waiting.add(task.id, [task.service_id or task.id, *targets, error.network_id])
        if task.status.err != text:
            task = tx.edit(api.Task, task.id)
            task.status.err = text
            stamp(task.status.timestamp, tx.now)

    def _allocate_node(self, tx: Tx, node_id: str) -> bool:
        """Addresses for the node's load balancers."""
        node = tx.get(api.Node, node_id)
        self._short.pop(node_id, None)
        if node is None:
            return True
        try:
            wanted = self.node_networks.of(tx, node_id, self._ingress_id)
            attached = networks.node_attachments(tx, node, wanted, self.holdings)
        except NotAllocated as error:
            self._short[node_id] = None
            log.warning("node.not_attached", node=node_id, reason=str(error))
            return True
        if attached != list(node.attachments):
            node = tx.edit(api.Node, node_id)
            del node.attachments[:]
            node.attachments.extend(attached)
            self.holdings.read(tx, "node", node_id)
        return True

    # --- audit -----------------------------------------------------------------------------------------------------

    def audit(self, view: View) -> bool:
        """Whether the tables equal those that are made anew from the store; for tests."""
        ports, holdings, node_networks = PortTable(), Holdings(), NodeNetworks()
        for network in view.all(api.Network):
            holdings.read(view, "network", network.id)
        for service in view.all(api.Service):
            ports.account(service.id, copy_of(service))
            holdings.read(view, "service", service.id)
        for node in view.all(api.Node):
            holdings.read(view, "node", node.id)
        for task in view.all(api.Task):
            holdings.read(view, "task", task.id)
            node_networks.account(task.id, task)
        same = (ports.state(), holdings.state()) == (self.ports.state(), self.holdings.state())
        return same and node_networks.state() == self.node_networks.state()
