"""What the store says of a network, as the records that nodes are told: a pure function of the store.

A network has four kinds of records: itself, the nodes that take part (peers), the services and the endpoints. A record
is a NetworkChange that says what is; the key names it, and ``removal`` makes the change that says it is no more.

(libnetwork: agent.go, EndpointRecord and PeerRecord; its gossip spreads what is told here)
"""

from __future__ import annotations

from collections.abc import Iterator

from swarm import api, defaults
from swarm.address import host_of
from swarm.manager.networks import is_ingress, is_node_local, needs_ingress
from swarm.manager.node_networks import NodeNetworks
from swarm.manager.tasks import is_wanted
from swarm.store.store import View

Key = tuple[str, str]
"""Kind of the record ("network", "peer", "service", "endpoint") and ID; of the network itself, the ID is empty."""

NETWORK: Key = ("network", "")
KINDS = ("network", "peer", "service", "endpoint")

_VNIS = "com.docker.network.driver.overlay.vxlanid_list"
_MTU = "com.docker.network.driver.mtu"
_ENCRYPTED = "encrypted"
_STICKY, _LOCAL_FIRST = "sideswarm.sticky", "sideswarm.local-first"
_AS_SEEN = "0.0.0.0"
_PROTOCOLS = {api.PortConfig.TCP: "tcp", api.PortConfig.UDP: "udp", api.PortConfig.SCTP: "sctp"}


def record_of(view: View, network_id: str, key: Key, nodes: NodeNetworks) -> api.NetworkChange | None:
    """One record as it is now; None: there is none. nodes: which node takes part in which network."""
    network = view.get(api.Network, network_id)
    if network is None or not is_told(network):
        return None
    kind, object_id = key
    change = api.NetworkChange(network_id=network_id)
    if kind == "network":
        change.network.CopyFrom(_network(network))
        return change
    if kind == "peer":
        node = view.get(api.Node, object_id)
        if node is None or not takes_part(network, node, nodes) or not (peer := _peer(node, network_id)).address:
            return None
        change.peer.CopyFrom(peer)
        return change
    if kind == "service":
        service = view.get(api.Service, object_id)
        if service is None or network_id not in networks_of_service(view, service):
            return None
        change.service.CopyFrom(_service(service, network))
        return change
    endpoint = _endpoint(view, network_id, object_id)
    if endpoint is None:
        return None
    change.endpoint.CopyFrom(endpoint)
    return change


def removal(network_id: str, key: Key) -> api.NetworkChange:
    """The change that says that a record is no more."""
    kind, object_id = key
    match kind:
        case "network":
            return api.NetworkChange(network_id=network_id, network_removed=True)
        case "peer":
            return api.NetworkChange(network_id=network_id, peer_removed=object_id)
        case "service":
            return api.NetworkChange(network_id=network_id, service_removed=object_id)
    return api.NetworkChange(network_id=network_id, endpoint_removed=object_id)


def is_told(network: api.Network) -> bool:
    """Whether nodes are told of this network: it is an overlay that has its subnets."""
    if is_node_local(network) or not network.HasField("driver_state"):
        return False
    return bool(network.ipam.configs) and all(config.subnet for config in network.ipam.configs)


def takes_part(network: api.Network, node: api.Node, nodes: NodeNetworks) -> bool:
    """Whether the node's tasks use the network. Every node with an address in it takes part in the ingress network."""
    if network.id in nodes.networks(node.id):
        return True
    return is_ingress(network) and any(one.network.id == network.id for one in node.attachments)


def local_record(node: api.Node, cluster: api.Cluster | None) -> api.LocalNodeRecord:
    """What a node is told of itself."""
    port = (cluster.VXLANUDPPort if cluster is not None else 0) or defaults.VXLAN_PORT
    return api.LocalNodeRecord(node_id=node.id, address=data_address(node), vxlan_port=port)


def data_address(node: api.Node) -> str:
    """Where packets for the node's containers go: what the node says, or where the managers see it."""
    said = node.description.data_path_address
    return said if said not in ("", _AS_SEEN) else host_of(node.status.addr) or node.status.addr


def endpoint_keys(task: api.Task) -> Iterator[tuple[str, Key]]:
    """(network ID, key) of each endpoint that a task may have. The second one in a network is called <task>/1."""
    count: dict[str, int] = {}
    for attachment in task.networks:
        network_id = attachment.network.id
        if is_node_local(attachment.network) or not attachment.addresses:
            continue
        number = count[network_id] = count.get(network_id, -1) + 1
        yield network_id, ("endpoint", f"{task.id}/{number}" if number else task.id)


def networks_of_service(view: View, service: api.Service) -> list[str]:
    """IDs of the networks in which a service is known."""
    found = dict.fromkeys(vip.network_id for vip in service.endpoint.virtual_ips)
    found.update(dict.fromkeys(config.target for config in service.spec.task.networks or service.spec.networks))
    if needs_ingress(service.spec):
        found.update(dict.fromkeys(network.id for network in view.all(api.Network) if is_ingress(network)))
    return list(found)


def _network(network: api.Network) -> api.NetworkRecord:
    options = network.driver_state.options
    vnis = [int(vni) for vni in options.get(_VNIS, "").split(",") if vni.isdecimal()]
    configs = [config for config in network.ipam.configs if config.family != api.IPAMConfig.IPV6]
    mtu = options.get(_MTU, "")
    return api.NetworkRecord(
        name=network.spec.annotations.name,
        subnets=[
            api.SubnetRecord(pool=config.subnet, gateway=config.gateway.partition("/")[0], vni=vni)
            for config, vni in zip(configs, vnis, strict=False)
        ],
        underlay_mtu=int(mtu) if mtu.isdecimal() else 0,
        ingress=is_ingress(network),
        internal=network.spec.internal,
        encrypted=_ENCRYPTED in options,
    )


def _peer(node: api.Node, network_id: str) -> api.PeerRecord:
    own = next((one for one in node.attachments if one.network.id == network_id and one.addresses), None)
    return api.PeerRecord(
        node_id=node.id,
        hostname=node.description.hostname,
        address=data_address(node),
        load_balancer=own.addresses[0].partition("/")[0] if own is not None else "",
        suspected=node.status.state != api.NodeStatus.READY,
        stock=not node.description.data_path_address,
    )


def _service(service: api.Service, network: api.Network) -> api.ServiceRecord:
    spec = service.spec
    vips = {vip.network_id: vip.addr.partition("/")[0] for vip in service.endpoint.virtual_ips}
    configs = spec.task.networks or spec.networks
    labels = spec.annotations.labels
    record = api.ServiceRecord(
        service_id=service.id,
        name=spec.annotations.name,
        virtual_ip=vips.get(network.id, ""),
        aliases=dict.fromkeys(alias for one in configs if one.target == network.id for alias in one.aliases),
        sticky=labels.get(_STICKY) == "true",
        local_first=labels.get(_LOCAL_FIRST) == "true",
    )
    if is_ingress(network):
        record.ports.extend(
            api.PublishedPort(
                protocol=_PROTOCOLS[port.protocol], published=port.published_port, target=port.target_port
            )
            for port in service.endpoint.ports
            if port.publish_mode == api.PortConfig.INGRESS and port.published_port and port.protocol in _PROTOCOLS
        )
    return record


def _endpoint(view: View, network_id: str, endpoint_id: str) -> api.EndpointRecord | None:
    task_id, _, number = endpoint_id.partition("/")
    task = view.get(api.Task, task_id)
    if task is None or not task.node_id or not api.ASSIGNED <= task.status.state <= api.RUNNING:
        return None
    own = [one for one in task.networks if one.network.id == network_id and one.addresses]
    position = int(number or 0)
    if position >= len(own):
        return None
    return api.EndpointRecord(
        endpoint_id=endpoint_id,
        node_id=task.node_id,
        address=own[position].addresses[0].partition("/")[0],
        readiness=_readiness(task),
        service_id=task.service_id,
        name=_container_name(task),
        aliases=own[position].aliases if not task.service_id else (),
    )


def _readiness(task: api.Task) -> api.EndpointRecord.Readiness:
    if not is_wanted(task):
        return api.EndpointRecord.DRAINING
    return api.EndpointRecord.READY if task.status.state == api.RUNNING else api.EndpointRecord.STARTING


def _container_name(task: api.Task) -> str:
    """As the executor of a node calls it; a plain container has none that managers know."""
    if not task.service_id:
        return task.annotations.name
    slot = str(task.slot) if task.slot else task.node_id
    return task.annotations.name or f"{task.service_annotations.name}.{slot}.{task.id}"
