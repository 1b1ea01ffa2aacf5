"""Stage: allocates what a task needs of the cluster before a node can be chosen: NEW to PENDING.

Services get their endpoint (published ports); tasks get a copy of it and their network attachments. A task that cannot
get what it needs stays NEW and says why in Status.err. It is tried again when a service or a network changes.

(swarmkit: manager/allocator/{allocator,network}.go)
"""

from __future__ import annotations

from swarm import api
from swarm.api.timestamps import stamp
from swarm.manager.allocator import networks
from swarm.manager.allocator.networks import NotAllocated
from swarm.manager.allocator.ports import PortsExhausted, PortTable
from swarm.manager.backlog import Backlog, earliest
from swarm.manager.networks import is_node_local
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx

PENDING_MESSAGE = "pending task scheduling"


class AllocatorStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self.ports = PortTable()
        self._unread: dict[str, None] = {}  # services whose ports are to be read again
        self._noted: dict[str, None] = {}  # tasks
        self._networks = Backlog("allocator/networks", self._strict)
        self._services = Backlog("allocator/services", self._strict)
        self._tasks = Backlog("allocator/tasks", self._strict)
        self._refused: dict[str, str] = {}  # service ID -> why it has no ports
        self._waiting: dict[str, None] = {}  # tasks that stay NEW

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for network in view.all(api.Network):
            self.note("network", network.id)
        for service in view.all(api.Service):
            self.note("service", service.id)
        for task in view.all(api.Task):
            self.note("task", task.id)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind == "task":
            self._noted[object_id] = None
        elif kind == "service":
            self._unread[object_id] = None
            self._services.mark(object_id)
        elif kind == "network":
            self._networks.mark(object_id)
        if kind in ("service", "network"):
            for service_id in self._refused:
                self._services.mark(service_id)
            for task_id in self._waiting:
                self._tasks.mark(task_id)

    def run(self, tx: Tx) -> None:
        """See Stage."""
        for service_id in self._unread:
            self.ports.account(service_id, tx.get(api.Service, service_id))
        self._unread = {}
        self._networks.work(tx, self._allocate_network, staged=api.Network)
        self._services.work(tx, self._allocate_service, staged=api.Service)
        for task_id in self._noted:
            task = tx.get(api.Task, task_id)
            if task is not None and task.status.state == api.NEW and task.desired_state <= api.COMPLETE:
                self._tasks.mark(task_id)
            else:
                self._waiting.pop(task_id, None)
                self._tasks.forget(task_id)
        self._noted = {}
        self._tasks.work(tx, self._allocate_task, staged=api.Task)

    def deadline(self) -> float | None:
        """See Stage."""
        return earliest(self._networks.deadline(), self._services.deadline(), self._tasks.deadline())

    def _allocate_network(self, tx: Tx, network_id: str) -> bool:
        """Mark a node-local network as allocated; it needs nothing else."""
        network = tx.get(api.Network, network_id)
        if network is None or not is_node_local(network) or network.HasField("driver_state"):
            return True
        network = tx.edit(api.Network, network_id)
        network.driver_state.name = network.spec.driver_config.name
        network.ipam.driver.SetInParent()  # old engines expect it to be there
        return True

    def _allocate_service(self, tx: Tx, service_id: str) -> bool:
        service = tx.get(api.Service, service_id)
        if service is None:
            self._refused.pop(service_id, None)
            return True
        try:
            endpoint = self._endpoint_of(tx, service)
        except PortsExhausted as error:
            self._refused[service_id] = str(error)
            return True
        self._refused.pop(service_id, None)
        if endpoint is not None and endpoint != service.endpoint:
            service = tx.edit(api.Service, service_id)
            service.endpoint.CopyFrom(endpoint)
            self.ports.account(service_id, service)
        return True

    def _endpoint_of(self, view: View, service: api.Service) -> api.Endpoint | None:
        """The endpoint that the service should have; None while it never needed one."""
        spec = service.spec
        attached = networks.configs_of(spec.task, service) and spec.endpoint.mode == api.EndpointSpec.VIP
        if not service.HasField("endpoint") and not attached and not spec.endpoint.ports:
            return None
        virtual_ips = networks.virtual_ips(view, service)
        endpoint = api.Endpoint(ports=self.ports.choose(service), virtual_ips=virtual_ips)
        if spec.HasField("endpoint"):
            endpoint.spec.CopyFrom(spec.endpoint)
        return endpoint

    def _allocate_task(self, tx: Tx, task_id: str) -> bool:
        task = tx.get(api.Task, task_id)
        if task is None or task.status.state != api.NEW or task.desired_state > api.COMPLETE:
            self._waiting.pop(task_id, None)
            return True
        service = tx.get(api.Service, task.service_id) if task.service_id else None
        if task.service_id and service is None:
            return True  # the reaper removes it
        try:
            if service is not None and service.id in self._refused:
                raise NotAllocated(self._refused[service.id])
            attached = networks.attachments(tx, service, task)
        except NotAllocated as error:
            self._waiting[task_id] = None
            if task.status.err != str(error):
                task = tx.edit(api.Task, task_id)
                task.status.err = str(error)
                stamp(task.status.timestamp, tx.now)
            return True
        self._waiting.pop(task_id, None)
        task = tx.edit(api.Task, task_id)
        if service is not None and service.HasField("endpoint"):
            task.endpoint.CopyFrom(service.endpoint)
        del task.networks[:]
        task.networks.extend(attached)
        task.status.Clear()
        task.status.state = api.PENDING
        task.status.message = PENDING_MESSAGE
        stamp(task.status.timestamp, tx.now)
        return True

    def audit(self, view: View) -> bool:
        """Whether the port table equals one that is made anew from the store; for tests."""
        fresh = PortTable()
        for service in view.all(api.Service):
            fresh.account(service.id, copy_of(service))
        return fresh.state() == self.ports.state()
