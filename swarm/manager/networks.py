"""Which kind of network one is: ingress, predefined, or local to each node.

(swarmkit: manager/allocator/allocator.go, manager/allocator/networkallocator; moby: daemon/libnetwork/cnmallocator)
"""

from __future__ import annotations

from swarm import api
from swarm.store.store import View

PREDEFINED_LABEL = "com.docker.swarm.predefined"
DEFAULT_DRIVER = "overlay"
NODE_LOCAL_DRIVERS = ("bridge", "host", "ipvlan", "macvlan")

_INTERNAL_LABEL = "com.docker.swarm.internal"


def is_ingress(network: api.Network) -> bool:
    """Whether this is the network of the routing mesh. The first releases of SwarmKit marked it by a label only."""
    annotations = network.spec.annotations
    return network.spec.ingress or (annotations.name == "ingress" and _INTERNAL_LABEL in annotations.labels)


def ingress_network(view: View) -> api.Network | None:
    """The network of the routing mesh; None when there is none, because users can remove it."""
    found = (network for network in view.all(api.Network) if is_ingress(network))
    return min(found, key=lambda network: network.id, default=None)


def needs_ingress(spec: api.ServiceSpec) -> bool:
    """Whether the service publishes a port through the routing mesh."""
    return any(port.publish_mode == api.PortConfig.INGRESS for port in spec.endpoint.ports)


def is_predefined(network: api.Network) -> bool:
    """Whether this stands for a network that every engine has by itself: "bridge" or "host"."""
    return network.spec.annotations.labels.get(PREDEFINED_LABEL) == "true"


def driver_of(network: api.Network) -> str:
    """Name of the network's driver."""
    return network.driver_state.name or network.spec.driver_config.name or DEFAULT_DRIVER


def is_node_local(network: api.Network) -> bool:
    """Whether every node makes the network by itself, without addresses from the cluster."""
    return driver_of(network) in NODE_LOCAL_DRIVERS
