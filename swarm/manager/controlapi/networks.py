"""Networks of the cluster: create, read, remove. A network never changes; the allocator completes it.

(swarmkit: manager/controlapi/network.go, manager/allocator/networkallocator; moby: libnetwork/cnmallocator)
"""

from __future__ import annotations

import ipaddress

from swarm import api
from swarm.errors import AlreadyExists, FailedPrecondition, InvalidArgument, PermissionDenied, Unimplemented
from swarm.manager.controlapi.common import (
    annotation_tests,
    find_one,
    in_order,
    require,
    select,
    spec_labels,
    spec_name,
)
from swarm.manager.controlapi.validate import check_annotations, check_present
from swarm.manager.networks import (
    DEFAULT_DRIVER,
    NODE_LOCAL_DRIVERS,
    PREDEFINED_LABEL,
    ingress_network,
    is_ingress,
    is_predefined,
    needs_ingress,
)
from swarm.store.store import View
from swarm.store.tx import Tx

_DEFAULT_IPAM = "default"

_Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


def get_network(view: View, request: api.GetNetworkRequest) -> api.GetNetworkResponse:
    """GetNetwork; only the ID counts."""
    return api.GetNetworkResponse(network=find_one(view, api.Network, request.network_id))


def list_networks(view: View, request: api.ListNetworksRequest) -> api.ListNetworksResponse:
    """ListNetworks."""
    tests = annotation_tests(request.filters, spec_name, spec_labels)
    return api.ListNetworksResponse(networks=select(view.all(api.Network), tests))


def remove_network(tx: Tx, request: api.RemoveNetworkRequest) -> api.RemoveNetworkResponse:
    """RemoveNetwork: refused while a service or a task that still may run uses it."""
    network = find_one(tx, api.Network, request.network_id)
    if is_predefined(network):
        name = network.spec.annotations.name
        raise FailedPrecondition(f"network {network.id} ({name}) is a swarm predefined network and cannot be removed")
    if is_ingress(network):
        _check_ingress_unused(tx)
    else:
        _check_unused(tx, network.id)
    tx.remove(api.Network, network.id)
    return api.RemoveNetworkResponse()


def _check_unused(view: View, network_id: str) -> None:
    for service in in_order(view.find(api.Service, "network", network_id)):
        raise FailedPrecondition(f"network {network_id} is in use by service {service.id}")
    for task in in_order(view.find(api.Task, "network", network_id)):
        if task.desired_state <= api.RUNNING and task.status.state <= api.RUNNING:
            raise FailedPrecondition(f"network {network_id} is in use by task {task.id}")


def _check_ingress_unused(view: View) -> None:
    for service in in_order(view.all(api.Service)):
        if needs_ingress(service.spec):
            raise FailedPrecondition(f"ingress network cannot be removed because service {service.id} depends on it")


def create_network(tx: Tx, request: api.CreateNetworkRequest) -> api.CreateNetworkResponse:
    """CreateNetwork: the network as the user wants it; the allocator gives it subnets and the rest."""
    check_present(request.HasField("spec"))
    spec = request.spec
    check_network(spec)
    present = ingress_network(tx) if spec.ingress else None
    if present is not None:
        raise AlreadyExists(f"ingress network ({present.id}) is already present")
    name = spec.annotations.name
    if next(tx.find(api.Network, "name", name.lower()), None) is not None:
        raise AlreadyExists(f"name conflicts with an existing object: network {name} already exists")
    network = api.Network(id=tx.new_id(), spec=spec)
    return api.CreateNetworkResponse(network=tx.stamped(tx.create(network)))


# --- checks --------------------------------------------------------------------------------------------------------


def check_network(spec: api.NetworkSpec) -> None:
    """A new network: name, drivers and addresses."""
    require(not (spec.attachable and spec.ingress), "ingress network cannot be attachable")
    check_annotations(spec.annotations)
    if PREDEFINED_LABEL in spec.annotations.labels:
        raise PermissionDenied(
            f"label {PREDEFINED_LABEL} is for internally created predefined networks and cannot be applied by users"
        )
    if spec.HasField("driver_config"):
        driver = spec.driver_config.name
        if spec.ingress and driver != "overlay":
            raise Unimplemented("only overlay driver is currently supported for ingress network")
        _check_driver(driver, driver == DEFAULT_DRIVER or driver in NODE_LOCAL_DRIVERS)
    if spec.ipam.HasField("driver"):
        _check_driver(spec.ipam.driver.name, spec.ipam.driver.name.lower() == _DEFAULT_IPAM)
    for config in spec.ipam.configs:
        _check_addresses(config)


def _check_driver(name: str, known: bool) -> None:
    require(name, "driver name: if driver is specified name is required")
    require(known, f"error during lookup of plugin {name}")


def _check_addresses(config: api.IPAMConfig) -> None:
    subnet = _prefix(config.subnet)
    if subnet is None:
        raise InvalidArgument(f"ipam configuration: invalid subnet {config.subnet}")
    if subnet.version != 4:
        # Stock accepts it, and the network is never of use.
        raise InvalidArgument(
            f"ipam configuration: subnet {config.subnet} is none of IPv4, and networks have only these"
        )
    if config.range:
        if _prefix(config.range) is None:
            raise InvalidArgument(f"ipam configuration: invalid range {config.range}")
        if ipaddress.ip_address(config.range.partition("/")[0]) not in subnet:
            raise InvalidArgument(f"ipam configuration: subnet {config.subnet} does not contain range {config.range}")
    if config.gateway:
        try:
            gateway = ipaddress.ip_address(config.gateway)
        except ValueError:
            raise InvalidArgument(f"ipam configuration: invalid gateway {config.gateway}") from None
        if gateway not in subnet:
            raise InvalidArgument(
                f"ipam configuration: subnet {config.subnet} does not contain gateway {config.gateway}"
            )


def _prefix(text: str) -> _Prefix | None:
    """A subnet with its prefix length in digits, as Go demands it; host bits may be set."""
    if not text.partition("/")[2].isdecimal():
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
