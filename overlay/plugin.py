"""What the engine asks of its network driver and address driver, and what it is answered.

For the engine, a network of the swarm is one of a "remote" driver. The engine makes and keeps containers' sandboxes;
the driver makes one interface for each. Addresses are the swarm's: the engine brings those of tasks, and asks for one
where a plain container starts. A network that the engine has carries in its options all that is needed to build it.

Each call may come twice, and after a restart of either side; the answers stay the same.

(libnetwork: drivers/remote/api/api.go, ipams/remote/api/api.go; docs/remote.md, docs/ipam.md)
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, Protocol

from overlay.errors import OverlayError
from overlay.model import Network, Subnet, mac_of

Json = dict[str, Any]

ID_OPTION = "sideswarm.id"
NETWORK_OPTION = "sideswarm.network"
_GENERIC = "com.docker.network.generic"
_PORTS = "com.docker.network.portmap"
_GATEWAY = "com.docker.network.gateway"
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
# what Python raises where JSON has another shape than expected; infinity is a number of Python's JSON
_MISSHAPEN = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
_OURS_ALONE = "networks of this driver are made by sideswarm alone: use docker network create -d overlay"


@dataclass(frozen=True, slots=True)
class Joined:
    """source: the name of the interface that the engine moves into the container. gateway: its default route."""

    source: str
    gateway: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of this host that leads to one container. host_port 0: none was asked for."""

    protocol: str
    host_port: int
    container_port: int


class PluginBackend(Protocol):
    """What performs the calls. Every method may be repeated, and raises OverlayError."""

    async def join(self, network: Network, endpoint_id: str, address: IPv4Address, mac: str) -> Joined:
        """Make the interface of a container."""
        ...

    async def leave(self, network_id: str, endpoint_id: str) -> None:
        """Take it away."""
        ...

    async def publish(self, network_id: str, endpoint_id: str, address: IPv4Address, ports: Sequence[HostPort]) -> None:
        """Lead ports of this host to a container on the ingress network; an empty list: no longer."""
        ...

    async def network_gone(self, network_id: str) -> None:
        """The engine has the network no more."""
        ...

    async def request_address(self, network_id: str, wanted: str) -> str:
        """An address for a container that starts. wanted: the only one that will do; empty: any."""
        ...

    async def release_address(self, network_id: str, address: str) -> None:
        """No container uses the address any more."""
        ...


@dataclass(slots=True)
class _Endpoint:
    network_id: str  # of the engine
    address: IPv4Interface
    mac: str


@dataclass
class _Known:
    """What the engine has. Networks and endpoints are keyed by the engine's IDs."""

    networks: dict[str, Network] = field(default_factory=dict)
    endpoints: dict[str, _Endpoint] = field(default_factory=dict)


def network_options(network: Network) -> dict[str, str]:
    """The options with which the engine's network of a swarm's network is created."""
    subnets = [[str(one.pool), str(one.gateway), one.vni] for one in network.subnets]
    flags = [name for name in ("ingress", "internal", "encrypted") if getattr(network, name)]
    said = {"name": network.name, "subnets": subnets, "underlay_mtu": network.underlay_mtu, "flags": flags}
    return {ID_OPTION: network.id, NETWORK_OPTION: json.dumps(said, separators=(",", ":"))}


def network_of(options: Mapping[str, str]) -> Network:
    """The network that such options describe. Raises OverlayError."""
    try:
        said = json.loads(options[NETWORK_OPTION])
        subnets = [Subnet(IPv4Network(pool), IPv4Address(gateway), int(vni)) for pool, gateway, vni in said["subnets"]]
        flags = {str(name): True for name in said["flags"]}
        return Network(options[ID_OPTION], said["name"], tuple(subnets), int(said["underlay_mtu"]), **flags)
    except _MISSHAPEN as error:
        raise OverlayError(_OURS_ALONE) from error


class Plugin:
    """See the module. on_change: what dump() gives is another now."""

    def __init__(self, backend: PluginBackend, on_change: Callable[[], None] = lambda: None) -> None:
        self._backend = backend
        self._on_change = on_change
        self._known = _Known()
        self._calls: dict[str, Callable[[Json], Awaitable[Json]]] = {
            "/Plugin.Activate": self._activate,
            "/NetworkDriver.GetCapabilities": self._network_capabilities,
            "/NetworkDriver.CreateNetwork": self._create_network,
            "/NetworkDriver.DeleteNetwork": self._delete_network,
            "/NetworkDriver.CreateEndpoint": self._create_endpoint,
            "/NetworkDriver.DeleteEndpoint": self._delete_endpoint,
            "/NetworkDriver.EndpointOperInfo": self._endpoint_info,
            "/NetworkDriver.Join": self._join,
            "/NetworkDriver.Leave": self._leave,
            "/NetworkDriver.ProgramExternalConnectivity": self._publish,
            "/NetworkDriver.RevokeExternalConnectivity": self._unpublish,
            "/NetworkDriver.DiscoverNew": self._nothing,
            "/NetworkDriver.DiscoverDelete": self._nothing,
            "/IpamDriver.GetCapabilities": self._address_capabilities,
            "/IpamDriver.GetDefaultAddressSpaces": self._address_spaces,
            "/IpamDriver.RequestPool": self._request_pool,
            "/IpamDriver.ReleasePool": self._nothing,
            "/IpamDriver.RequestAddress": self._request_address,
            "/IpamDriver.ReleaseAddress": self._release_address,
        }

    async def handle(self, path: str, request: Json) -> Json:
        """The answer to one call. An error is ``{"Err": text}``, which the engine shows to its user."""
        call = self._calls.get(path)
        if call is None:
            return {"Err": f"sideswarm does not know {path.removeprefix('/')}"}
        try:
            _check_ids(request)
            return await call(request)
        except OverlayError as error:
            return {"Err": str(error)}
        except _MISSHAPEN as error:
            return {"Err": f"sideswarm does not understand {path.removeprefix('/')}: {type(error).__name__} {error}"}

    # --- what outlives this process --------------------------------------------------------------------------------

    def dump(self) -> Json:
        """What load() takes, as JSON."""
        networks = {engine_id: network_options(network) for engine_id, network in self._known.networks.items()}
        endpoints = {
            engine_id: [one.network_id, str(one.address), one.mac] for engine_id, one in self._known.endpoints.items()
        }
        return {"networks": networks, "endpoints": endpoints}

    def load(self, dumped: Json) -> None:
        """What an earlier process knew. Raises OverlayError if it is damaged, and keeps what was known."""
        known = _Known()
        try:
            for engine_id, options in dumped["networks"].items():
                known.networks[engine_id] = network_of(options)
            for engine_id, (network_id, address, mac) in dumped["endpoints"].items():
                known.endpoints[engine_id] = _Endpoint(network_id, IPv4Interface(address), mac)
        except _MISSHAPEN as error:
            raise OverlayError(f"the record of the engine's networks is damaged: {error!r}") from error
        self._known = known

    @property
    def networks(self) -> dict[str, Network]:
        """The engine's networks, by the engine's IDs."""
        return dict(self._known.networks)

    # --- the driver ------------------------------------------------------------------------------------------------

    async def _activate(self, _: Json) -> Json:
        return {"Implements": ["NetworkDriver", "IpamDriver"]}

    async def _network_capabilities(self, _: Json) -> Json:
        return {"Scope": "local", "ConnectivityScope": "global"}

    async def _nothing(self, _: Json) -> Json:
        return {}

    async def _create_network(self, request: Json) -> Json:
        options = request.get("Options") or {}
        self._known.networks[request["NetworkID"]] = network_of(options.get(_GENERIC) or {})
        self._on_change()
        return {}

    async def _delete_network(self, request: Json) -> Json:
        engine_id = request["NetworkID"]
        network = self._known.networks.get(engine_id)
        if network is None:
            return {}
        # forgotten after it is gone: if that fails, the engine calls again
        if all(one.id != network.id for other, one in self._known.networks.items() if other != engine_id):
            await self._backend.network_gone(network.id)
        self._known.networks.pop(engine_id, None)
        for endpoint_id in [one for one, known in self._known.endpoints.items() if known.network_id == engine_id]:
            del self._known.endpoints[endpoint_id]
        self._on_change()
        return {}

    async def _create_endpoint(self, request: Json) -> Json:
        self._network(request)
        interface = request["Interface"]
        address = IPv4Interface(interface["Address"])
        given = interface.get("MacAddress") or ""
        if not isinstance(given, str):
            raise OverlayError("the MAC address is no text")
        mac = given or mac_of(address.ip)
        self._known.endpoints[request["EndpointID"]] = _Endpoint(request["NetworkID"], address, mac)
        self._on_change()
        # an address that was given may not be answered: the engine takes that for a change
        return {"Interface": {} if given else {"MacAddress": mac}}

    async def _delete_endpoint(self, request: Json) -> Json:
        if request["EndpointID"] in self._known.endpoints:
            await self._leave(request)  # an engine that died did not say so before
            self._known.endpoints.pop(request["EndpointID"], None)
            self._on_change()
        return {}

    async def _endpoint_info(self, _: Json) -> Json:
        return {"Value": {}}

    async def _join(self, request: Json) -> Json:
        network, endpoint_id = self._network(request), request["EndpointID"]
        endpoint = self._known.endpoints.get(endpoint_id)
        if endpoint is None:
            raise OverlayError(f"endpoint {endpoint_id} of network {network.name} was never created")
        joined = await self._backend.join(network, endpoint_id, endpoint.address.ip, endpoint.mac)
        answer: Json = {"InterfaceName": {"SrcName": joined.source, "DstPrefix": "eth"}}
        if joined.gateway is not None:
            answer["Gateway"] = str(joined.gateway)
        return answer

    async def _leave(self, request: Json) -> Json:
        network = self._known.networks.get(request["NetworkID"])
        if network is not None:
            await self._backend.leave(network.id, request["EndpointID"])
        return {}

    async def _publish(self, request: Json) -> Json:
        network, endpoint = self._network(request), self._known.endpoints.get(request["EndpointID"])
        if endpoint is not None:
            ports = [_host_port(one) for one in (request.get("Options") or {}).get(_PORTS) or ()]
            await self._backend.publish(network.id, request["EndpointID"], endpoint.address.ip, ports)
        return {}

    async def _unpublish(self, request: Json) -> Json:
        network, endpoint = self._known.networks.get(request["NetworkID"]), request["EndpointID"]
        known = self._known.endpoints.get(endpoint)
        if network is not None and known is not None:
            await self._backend.publish(network.id, endpoint, known.address.ip, [])
        return {}

    def _network(self, request: Json) -> Network:
        network = self._known.networks.get(request["NetworkID"])
        if network is None:
            raise OverlayError(f"the engine's network {request['NetworkID']} is not known to sideswarm")
        return network

    # --- addresses -------------------------------------------------------------------------------------------------

    async def _address_capabilities(self, _: Json) -> Json:
        return {"RequiresMACAddress": False, "RequiresRequestReplay": False}

    async def _address_spaces(self, _: Json) -> Json:
        return {"LocalDefaultAddressSpace": "sideswarm", "GlobalDefaultAddressSpace": "sideswarm"}

    async def _request_pool(self, request: Json) -> Json:
        network_id = (request.get("Options") or {}).get(ID_OPTION)
        if not network_id or not request.get("Pool") or request.get("V6"):
            raise OverlayError(_OURS_ALONE)
        return {"PoolID": f"{network_id}/{request['Pool']}", "Pool": request["Pool"], "Data": {}}

    async def _request_address(self, request: Json) -> Json:
        network_id, pool = _pool(request)
        wanted = request.get("Address") or ""
        if (request.get("Options") or {}).get("RequestAddressType") == _GATEWAY:
            return {"Address": f"{wanted or pool[1]}/{pool.prefixlen}", "Data": {}}
        address = await self._backend.request_address(network_id, wanted)
        return {"Address": f"{address}/{pool.prefixlen}", "Data": {}}

    async def _release_address(self, request: Json) -> Json:
        network_id, _ = _pool(request)
        await self._backend.release_address(network_id, request["Address"])
        return {}


def _check_ids(request: Json) -> None:
    for name in ("NetworkID", "EndpointID"):
        if not isinstance(request.get(name, ""), str):
            raise OverlayError(f"{name} is no text")


def _pool(request: Json) -> tuple[str, IPv4Network]:
    network_id, _, pool = request["PoolID"].partition("/")
    return network_id, IPv4Network(pool)


def _host_port(binding: Json) -> HostPort:
    protocol = _PROTOCOLS.get(binding["Proto"])
    if protocol is None:
        raise OverlayError(f"ports of IP protocol {binding['Proto']} can not be published")
    return HostPort(protocol, int(binding.get("HostPort") or 0), int(binding["Port"]))
