"""What networks, services, tasks and nodes get of the cluster's networks.

Node-local networks (host, bridge, macvlan, ipvlan) need nothing from the cluster: the attachment is a copy of the
network. For other networks the cluster chooses subnets, VXLAN network identifiers and addresses. The functions choose
what is free by ``holdings`` and take nothing: that is done by the object which the caller writes.

(swarmkit: manager/allocator/network.go; moby: daemon/libnetwork/cnmallocator)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network

from swarm import api
from swarm.manager.allocator.addresses import address_in
from swarm.manager.allocator.holdings import Holdings
from swarm.manager.allocator.subnets import VNI_OPTION, NotAllocated, pools_of, subnet_in, vnis_of
from swarm.manager.networks import driver_of, ingress_network, is_node_local, needs_ingress
from swarm.store.store import View

INGRESS_MISSING = "ingress network is missing"
_DEFAULT_IPAM = "default"


def configs_of(task_spec: api.TaskSpec, service: api.Service | None) -> Sequence[api.NetworkAttachmentConfig]:
    """The networks that a task asks for. The deprecated list of the service spec counts if the task spec has none."""
    if task_spec.networks or service is None:
        return task_spec.networks
    return service.spec.networks


# --- networks ------------------------------------------------------------------------------------------------------


def is_allocated(network: api.Network) -> bool:
    """Whether a network has all that the cluster gives it."""
    if not network.HasField("driver_state"):
        return False
    return is_node_local(network) or bool(network.ipam.configs and all(c.subnet for c in network.ipam.configs))


def allocate(network: api.Network, cluster: api.Cluster | None, holdings: Holdings) -> None:
    """Give this network its subnets, gateways and VNIs, and keep what it has already. Raises NotAllocated."""
    driver = driver_of(network)
    if is_node_local(network):
        network.driver_state.name = driver
        network.ipam.driver.SetInParent()  # old engines expect it to be there
        return
    if not network.ipam.configs:
        network.ipam.CopyFrom(network.spec.ipam)
    network.ipam.driver.name = network.ipam.driver.name or _DEFAULT_IPAM
    configs = network.ipam.configs
    if not configs:
        configs.add(family=api.IPAMConfig.IPV4)
    own: list[IPv4Network] = []
    for config in configs:
        if config.family != api.IPAMConfig.IPV6:
            own.append(_allocate_pool(network, config, cluster, holdings, own))
    options = {**network.spec.driver_config.options, **network.driver_state.options}
    vnis = holdings.vnis.choose(vnis_of(options), len(own))
    options[VNI_OPTION] = ",".join(map(str, vnis))
    network.driver_state.name = driver
    network.driver_state.options.update(options)


def _allocate_pool(
    network: api.Network,
    config: api.IPAMConfig,
    cluster: api.Cluster | None,
    holdings: Holdings,
    own: Sequence[IPv4Network],
) -> IPv4Network:
    subnet = subnet_in(config.subnet) if config.subnet else holdings.subnets.free(pools_of(cluster))
    if subnet is None:
        raise NotAllocated(f"invalid pool request: {config.subnet} is no subnet of IPv4")
    if config.subnet:
        for held, network_id in holdings.subnets.overlaps(subnet):
            if network_id != network.id:
                raise NotAllocated(
                    "invalid pool request: Pool overlaps with other one on this address space: "
                    f"{subnet} overlaps with {held} of network {network_id}"
                )
    if any(subnet.overlaps(other) for other in own):
        raise NotAllocated(f"invalid pool request: Pool overlaps with other one on this address space: {subnet}")
    config.subnet = str(subnet)
    if not config.gateway:
        trial = api.Network(id=network.id, spec=network.spec)
        trial.ipam.configs.add(subnet=config.subnet, range=config.range)
        reserved = (address_in(address) for address in config.reserved.values())
        chosen = holdings.addresses.choose(trial, besides=[address for address in reserved if address is not None])
        config.gateway = chosen.partition("/")[0]
    return subnet


def _usable(view: View, network_id: str) -> api.Network:
    """A network of which addresses can be had. Raises NotAllocated."""
    network = view.get(api.Network, network_id)
    if network is None:
        raise NotAllocated(f"network {network_id} not found")
    if not is_allocated(network):
        raise NotAllocated(f"network {network.spec.annotations.name} not allocated yet")
    return network


# --- services, tasks and nodes -------------------------------------------------------------------------------------


def virtual_ips(view: View, service: api.Service, holdings: Holdings) -> list[api.Endpoint.VirtualIP]:
    """The service's virtual IPs: those it has, without the networks that it left, then new ones. Raises NotAllocated.

    A node-local network is listed without an address, as stock nodes expect it.
    """
    spec = service.spec
    if spec.endpoint.mode != api.EndpointSpec.VIP:
        return []
    wanted: dict[str, None] = {}
    ingress = ingress_network(view) if needs_ingress(spec) else None
    if ingress is not None:
        wanted[ingress.id] = None
    wanted.update(dict.fromkeys(config.target for config in configs_of(spec.task, service)))
    present = {vip.network_id: vip for vip in service.endpoint.virtual_ips if view.get(api.Network, vip.network_id)}
    kept = [vip for network_id, vip in present.items() if network_id in wanted]
    new = [_virtual_ip(view, network_id, holdings) for network_id in wanted if network_id not in present]
    return [*kept, *(vip for vip in new if vip is not None)]


def _virtual_ip(view: View, network_id: str, holdings: Holdings) -> api.Endpoint.VirtualIP | None:
    network = view.get(api.Network, network_id)
    if network is None:
        return None  # the tasks say so
    if is_node_local(network):
        return api.Endpoint.VirtualIP(network_id=network_id)
    return api.Endpoint.VirtualIP(network_id=network_id, addr=holdings.addresses.choose(_usable(view, network_id)))


def attachments(
    view: View, service: api.Service | None, task: api.Task, holdings: Holdings
) -> list[api.NetworkAttachment]:
    """What the task is attached to: ingress first, then its networks in the order of the spec. Raises NotAllocated."""
    configs: list[api.NetworkAttachmentConfig] = []
    if service is not None and needs_ingress(service.spec):
        ingress = ingress_network(view)
        if ingress is None:
            raise NotAllocated(INGRESS_MISSING)
        configs.append(api.NetworkAttachmentConfig(target=ingress.id))
    configs += configs_of(task.spec, service)
    out: list[api.NetworkAttachment] = []
    for config in configs:
        out.append(_attach(_usable(view, config.target), config, holdings, out))
    return out


def _attach(
    network: api.Network,
    config: api.NetworkAttachmentConfig,
    holdings: Holdings,
    others: Sequence[api.NetworkAttachment],
) -> api.NetworkAttachment:
    attachment = api.NetworkAttachment(aliases=config.aliases, addresses=config.addresses)
    attachment.network.CopyFrom(network)
    attachment.driver_attachment_opts.update(config.driver_attachment_opts)
    if not is_node_local(network):
        chosen = [address for other in others if other.network.id == network.id for address in other.addresses]
        attachment.addresses[:] = _addresses(network, config.addresses, chosen, holdings)
    return attachment


def _addresses(network: api.Network, requested: Sequence[str], chosen: Iterable[str], holdings: Holdings) -> list[str]:
    besides = [number for number in map(address_in, chosen) if number is not None]
    return [holdings.addresses.choose(network, next(iter(requested), ""), besides)]


def node_attachments(
    view: View, node: api.Node, wanted: Iterable[str], holdings: Holdings
) -> list[api.NetworkAttachment]:
    """One address for the load balancer of this node in each network that it takes part in, those it has first.

    wanted: network IDs. Raises NotAllocated if none is to be had of one of them.
    """
    needed = dict.fromkeys(wanted)
    out = [attachment for attachment in node.attachments if attachment.network.id in needed and attachment.addresses]
    present = {attachment.network.id: None for attachment in out}
    for network_id in needed:
        if network_id not in present:
            network = _usable(view, network_id)
            attachment = api.NetworkAttachment(addresses=[holdings.addresses.choose(network)])
            attachment.network.CopyFrom(network)
            out.append(attachment)
    return out
