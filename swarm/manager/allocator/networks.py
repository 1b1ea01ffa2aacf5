"""Which networks a task attaches to, and its addresses there.

Node-local networks (host, bridge, macvlan, ipvlan) need nothing from the cluster: the attachment is a copy of the
network. For other networks the cluster chooses the addresses; only address_of gives them out.

(swarmkit: manager/allocator/network.go; moby: daemon/libnetwork/cnmallocator)
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm import api
from swarm.manager.networks import ingress_network, is_node_local, needs_ingress
from swarm.store.store import View


class NotAllocated(Exception):
    """The task cannot have a network it needs, for now; the text is for the user."""


def configs_of(task_spec: api.TaskSpec, service: api.Service | None) -> Sequence[api.NetworkAttachmentConfig]:
    """The networks that a task asks for. The deprecated list of the service spec counts if the task spec has none."""
    if task_spec.networks or service is None:
        return task_spec.networks
    return service.spec.networks


def virtual_ips(view: View, service: api.Service) -> list[api.Endpoint.VirtualIP]:
    """The service's virtual IPs: those it has, without the node-local networks that it left.

    A node-local network that it is attached to is listed without an address, as stock nodes expect it.
    """
    attached: dict[str, None] = {}
    if service.spec.endpoint.mode == api.EndpointSpec.VIP:
        attached = {config.target: None for config in configs_of(service.spec.task, service)}
    out = []
    for vip in service.endpoint.virtual_ips:
        network = view.get(api.Network, vip.network_id)
        if network is not None and (vip.network_id in attached or not is_node_local(network)):
            out.append(vip)
    present = [vip.network_id for vip in out]
    for network_id in attached:
        network = view.get(api.Network, network_id)
        if network is not None and is_node_local(network) and network_id not in present:
            out.append(api.Endpoint.VirtualIP(network_id=network_id))
    return out


def attachments(view: View, service: api.Service | None, task: api.Task) -> list[api.NetworkAttachment]:
    """What the task is attached to: ingress first, then its networks in the order of the spec.

    Raises NotAllocated.
    """
    out = []
    if service is not None and needs_ingress(service.spec):
        ingress = ingress_network(view)
        if ingress is None:
            raise NotAllocated("ingress network is missing")
        out.append(_attach(ingress, api.NetworkAttachmentConfig(target=ingress.id)))
    for config in configs_of(task.spec, service):
        network = view.get(api.Network, config.target)
        if network is None:
            raise NotAllocated(f"network {config.target} not found")
        out.append(_attach(network, config))
    return out


def _attach(network: api.Network, config: api.NetworkAttachmentConfig) -> api.NetworkAttachment:
    attachment = api.NetworkAttachment(aliases=config.aliases, addresses=config.addresses)
    attachment.network.CopyFrom(network)
    attachment.driver_attachment_opts.update(config.driver_attachment_opts)
    if not is_node_local(network):
        attachment.addresses[:] = [address_of(network)]
    return attachment


def address_of(network: api.Network) -> str:
    """A free address in a network whose addresses the cluster gives out. Raises NotAllocated."""
    raise NotAllocated(f"network {network.spec.annotations.name} not allocated yet")
