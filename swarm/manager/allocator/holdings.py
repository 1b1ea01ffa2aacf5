"""What the objects of the store hold of the cluster's networks: subnets, VXLAN network identifiers and addresses.

Everything follows from the objects, one by one, so a table that is made anew equals the live one. Nothing has to be
given back, so nothing can be lost. (swarmkit: manager/allocator/network.go; moby: daemon/libnetwork/cnmallocator)
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from swarm import api
from swarm.manager.allocator.addresses import AddressTable
from swarm.manager.allocator.subnets import NotAllocated, SubnetTable, VniTable, subnets_of, vnis_of
from swarm.manager.networks import is_node_local
from swarm.store.store import View

log = structlog.get_logger()


class Holdings:
    """See the module. freed: networks in which addresses became free, or which went away, since the last take_freed."""

    def __init__(self) -> None:
        self.subnets = SubnetTable()
        self.vnis = VniTable()
        self.addresses = AddressTable()
        self._freed: dict[str, None] = {}
        self._leaving: dict[str, None] = {}  # removed networks that are still in use

    def read(self, view: View, kind: str, object_id: str) -> None:
        """Account for one object as it is in ``view``. Networks have to be read before what is attached to them."""
        if kind == "network":
            self.network(object_id, view.get(api.Network, object_id))
        elif kind == "service":
            self.service(object_id, view.get(api.Service, object_id))
        elif kind == "node":
            self.node(object_id, view.get(api.Node, object_id))
        elif kind == "task":
            self.task(view, object_id, view.get(api.Task, object_id))

    def network(self, network_id: str, network: api.Network | None) -> None:
        """A network as it is now; None: it was removed."""
        self._leaving.pop(network_id, None)
        if network is not None:
            self._hold(network)
        else:
            self._release("network", network_id, ())
            self._leaving[network_id] = None
            self._settle(network_id)

    def _hold(self, network: api.Network) -> None:
        if is_node_local(network):
            return
        self.subnets.hold(network.id, subnets_of(network))
        try:
            self.vnis.hold(network.id, vnis_of(dict(network.driver_state.options)))
        except NotAllocated as error:
            log.error("network.options_unreadable", network=network.id, error=str(error))
        own = [address for config in network.ipam.configs for address in (config.gateway, *config.reserved.values())]
        self._release("network", network.id, [(network.id, address) for address in own])

    def service(self, service_id: str, service: api.Service | None) -> None:
        """A service as it is now; None: it was removed."""
        vips = service.endpoint.virtual_ips if service is not None else ()
        self._release("service", service_id, [(vip.network_id, vip.addr) for vip in vips])

    def node(self, node_id: str, node: api.Node | None) -> None:
        """A node as it is now; None: it was removed."""
        attachments = [*node.attachments, node.attachment] if node is not None else ()
        self._release("node", node_id, _addresses(attachments))

    def task(self, view: View, task_id: str, task: api.Task | None) -> None:
        """A task as it is now; None: it was removed. It holds its addresses until it has ended."""
        attachments = task.networks if task is not None and task.status.state <= api.RUNNING else ()
        self._release("task", task_id, _addresses(attachments))
        for attachment in attachments:
            network = attachment.network
            if network.id not in self._leaving and view.get(api.Network, network.id) is None:
                self._hold(network)  # removed before this table was made: what the task has is all that is left of it
                self._release("network", network.id, ())
                self._leaving[network.id] = None

    def _release(self, kind: str, object_id: str, addresses: Iterable[tuple[str, str]]) -> None:
        for network_id in self.addresses.hold((kind, object_id), addresses):
            self._freed[network_id] = None
            self._settle(network_id)

    def _settle(self, network_id: str) -> None:
        """Forget a removed network that nobody uses any more."""
        if network_id in self._leaving and not self.addresses.in_use(network_id):
            del self._leaving[network_id]
            self.subnets.hold(network_id, ())
            self.vnis.hold(network_id, ())
            self._freed[network_id] = None

    def take_freed(self) -> list[str]:
        """See the class."""
        freed, self._freed = list(self._freed), {}
        return freed

    def state(self) -> tuple[object, object, object]:
        """For the audit."""
        return self.subnets.state(), self.vnis.state(), self.addresses.state()


def _addresses(attachments: Iterable[api.NetworkAttachment]) -> list[tuple[str, str]]:
    return [
        (attachment.network.id, address)
        for attachment in attachments
        if not is_node_local(attachment.network)
        for address in attachment.addresses
    ]
