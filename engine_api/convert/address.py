"""Docker's rules for the addresses of init and join, ``<ip|interface>[:port]``, and for the address pools of networks.

The interfaces of this machine are given as values. swarm/address.py takes "host:port" apart.

(moby: daemon/cluster/listen_addr.go)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_address, ip_interface, ip_network

from engine_api.errors import ApiError, BadParameter
from swarm import defaults
from swarm.address import is_unspecified, join_host_port, split_host_port

Address = IPv4Address | IPv6Address

NO_SYSTEM_ADDRESS = "could not find the system's IP address"
_BAD_LISTEN = "listen address must be an IP address or network interface (with optional port number)"
_BAD_ADVERTISE = "advertise address must be a non-zero IP address or network interface (with optional port number)"
_BAD_DATA_PATH = "data path address must be a non-zero IP address or network interface (without a port number)"
_BAD_DEFAULT_ADVERTISE = (
    "default advertise address must be a non-zero IP address or network interface (without a port number)"
)
_MUST_LISTEN = (
    "must specify a listening address because the address to advertise is not recognized as a system address, "
    "and a system's IP address to use could not be uniquely identified"
)


@dataclass(frozen=True)
class Interface:
    """A network interface. addresses: in the kernel's order. device: a real NIC (netlink type "device")."""

    name: str
    addresses: tuple[Address, ...] = ()
    up: bool = True
    loopback: bool = False
    device: bool = False


@dataclass(frozen=True)
class Endpoints:
    """Where a node listens, what it tells others, and the local address that /info shows; all resolved."""

    listen_host: str
    listen_port: str
    advertise_host: str
    advertise_port: str
    data_path_addr: str
    local_addr: str


# --- text -------------------------------------------------------------------------------------------------------------


def with_port(addr: str, port: int = defaults.REMOTE_PORT) -> str:
    """An address as users type it, without ``tcp://`` and with the default port if they left it out."""
    rest = addr.removeprefix("tcp://")
    found = split_host_port(rest)
    if found is None:
        host = rest.strip("[]")
        return join_host_port(host, str(port)) if host and "/" not in host else addr
    host, given = found
    return join_host_port(host, given or str(port))


def check_listen_addr(addr: str) -> str:
    """ListenAddr of init and join with its port. Raises BadParameter."""
    if not addr:
        raise BadParameter('invalid ListenAddr "": invalid empty address')
    return with_port(addr)


def check_remote_addrs(addrs: Sequence[str]) -> tuple[str, ...]:
    """RemoteAddrs of join with their ports. Raises BadParameter."""
    if not addrs:
        raise BadParameter("at least 1 RemoteAddr is required to join")
    if not all(addrs):
        raise BadParameter('invalid remoteAddr "": invalid empty address')
    return tuple(with_port(addr) for addr in addrs)


# --- numbers and pools ------------------------------------------------------------------------------------------------


def check_data_path_port(port: int) -> int:
    """The VXLAN port, 0 meaning the default. Raises ApiError."""
    if port == 0:
        return defaults.VXLAN_PORT
    if not 1024 <= port <= 49151:
        raise ApiError(f"Datapath port number is not in valid range (1024-49151) : {port}")
    return port


def check_address_pool(pool: Sequence[str] | None, subnet_size: int) -> None:
    """Default address pool (None: not given) and the prefix length of the subnets cut from it. Raises ApiError."""
    if pool is None:
        return
    size = subnet_size or defaults.SUBNET_SIZE_BITS
    if size > 29:
        raise ApiError(f"subnet size is out of range: {size}")
    for entry in pool:
        base = entry.strip()
        try:
            network = ip_network(base, strict=False) if "/" in base else None
        except ValueError:
            network = None
        if network is None:
            raise ApiError(f"invalid base pool {base}: invalid CIDR address: {base}")
        if size < network.prefixlen:
            raise ApiError(f'invalid CIDR: "{base}". Subnet size is too small for pool: {size}')


# --- resolution -------------------------------------------------------------------------------------------------------


def _is_docker_managed(address: Address, managed: Sequence[str]) -> bool:
    return any(address in ip_network(subnet, strict=False) for subnet in managed if _same_family(address, subnet))


def _same_family(address: Address, subnet: str) -> bool:
    return isinstance(ip_interface(subnet), IPv6Interface) == isinstance(address, IPv6Address)


def _of_interface(interface: Interface) -> Address:
    """The only address of an interface, IPv4 before IPv6. Raises BadParameter when there are several or none."""
    found: dict[int, Address] = {}
    for address in interface.addresses:
        other = found.setdefault(address.version, address)
        if other != address:
            raise BadParameter(
                f"interface {interface.name} has more than one IPv{address.version} address ({other} and {address})"
            )
    if not found:
        raise BadParameter(f"interface {interface.name} has no usable IPv4 or IPv6 address")
    return found.get(4) or found[6]


def _resolve(word: str, interfaces: Mapping[str, Interface], refuse: str, unspecified: bool = False) -> Address:
    """An interface name or an IP address. Raises BadParameter(refuse) when it is neither."""
    if word in interfaces:
        return _of_interface(interfaces[word])
    try:
        address = ip_address(word)
    except ValueError:
        raise BadParameter(refuse) from None
    if address.is_unspecified and not unspecified:
        raise BadParameter(refuse)
    return address


def system_address(interfaces: Sequence[Interface], managed_subnets: Sequence[str]) -> Address:
    """The address to advertise when the user named none. Raises BadParameter when there is none or more than one.

    If real NICs have addresses, only they count. Otherwise (in containers) all interfaces that are up count, except
    those with an address of a network that the engine manages.
    """
    devices = [interface for interface in interfaces if interface.device and interface.up and not interface.loopback]
    chosen = _only_address(devices, ())
    if chosen is None:
        others = [interface for interface in interfaces if interface.up and not interface.loopback]
        chosen = _only_address(others, managed_subnets)
    if chosen is None:
        raise BadParameter(NO_SYSTEM_ADDRESS)
    return chosen


def _only_address(interfaces: Sequence[Interface], managed_subnets: Sequence[str]) -> Address | None:
    best: tuple[str, Address] | None = None
    for interface in interfaces:
        usable = [a for a in interface.addresses if not (a.is_link_local or a.is_loopback or a.is_multicast)]
        if any(_is_docker_managed(address, managed_subnets) for address in usable):
            continue
        found: dict[int, Address] = {}
        for address in usable:
            other = found.setdefault(address.version, address)
            if other != address:
                raise _several(interface.name, interface.name, other, address)
        mine = found.get(4) or found.get(6)
        if mine is not None and best is not None:
            raise _several(best[0], interface.name, best[1], mine)
        if mine is not None:
            best = (interface.name, mine)
    return best[1] if best else None


def _several(name_a: str, name_b: str, a: Address, b: Address) -> BadParameter:
    start = "could not choose an IP address to advertise since this system has multiple addresses on "
    if name_a == name_b:
        return BadParameter(f"{start}interface {name_a} ({a} and {b})")
    return BadParameter(f"{start}different interfaces ({a} on {name_a} and {b} on {name_b})")


def resolve_listen(addr: str, interfaces: Mapping[str, Interface]) -> tuple[str, str]:
    """Host and port to listen on. Raises BadParameter, but not for a bad port, which only binding it refuses."""
    found = split_host_port(addr)
    if found is None:
        raise BadParameter(f"could not parse listen address {addr}")
    return str(_resolve(found[0], interfaces, _BAD_LISTEN, unspecified=True)), found[1]


def resolve_advertise(addr: str, listen_port: str, interfaces: Mapping[str, Interface]) -> tuple[str, str]:
    """Host and port of a given AdvertiseAddr. Raises BadParameter."""
    host, port = split_host_port(addr) or (addr, listen_port)
    return str(_resolve(host, interfaces, _BAD_ADVERTISE)), port


def resolve_data_path(addr: str, interfaces: Mapping[str, Interface]) -> str:
    """The data path address, empty when not given. Raises BadParameter."""
    return str(_resolve(addr, interfaces, _BAD_DATA_PATH)) if addr else ""


def resolve_init(
    listen_addr: str,
    advertise_addr: str,
    data_path_addr: str,
    interfaces: Sequence[Interface],
    managed_subnets: Callable[[], Sequence[str]],
    default_advertise_addr: str = "",
) -> Endpoints:
    """All addresses of an init request, in the order in which stock engines look at them. Raises BadParameter.

    managed_subnets: CIDRs of the engine's own networks; called only when an address must be guessed.
    """
    by_name = {interface.name: interface for interface in interfaces}
    listen_host, listen_port = resolve_listen(listen_addr, by_name)
    if advertise_addr:
        advertise_host, advertise_port = resolve_advertise(advertise_addr, listen_port, by_name)
    elif default_advertise_addr:
        advertise_host = str(_resolve(default_advertise_addr, by_name, _BAD_DEFAULT_ADVERTISE))
        advertise_port = listen_port
    else:
        advertise_host, advertise_port = str(system_address(interfaces, managed_subnets())), listen_port
    data_path = resolve_data_path(data_path_addr, by_name)
    local = listen_host
    if is_unspecified(listen_host):
        local = advertise_host
        if not any(str(address) == advertise_host for i in interfaces for address in i.addresses):
            try:
                local = str(system_address(interfaces, managed_subnets()))
            except BadParameter:
                raise BadParameter(_MUST_LISTEN) from None
    return Endpoints(listen_host, listen_port, advertise_host, advertise_port, data_path, local)


def resolve_join(
    listen_addr: str, advertise_addr: str, data_path_addr: str, interfaces: Sequence[Interface]
) -> Endpoints:
    """As resolve_init, for join. An AdvertiseAddr that does not resolve is dropped: managers see where we call from."""
    by_name = {interface.name: interface for interface in interfaces}
    listen_host, listen_port = resolve_listen(listen_addr, by_name)
    host, port = "", ""
    if advertise_addr:
        try:
            host, port = resolve_advertise(advertise_addr, listen_port, by_name)
        except BadParameter:
            host, port = "", ""
    local = "" if is_unspecified(listen_host) else listen_host
    return Endpoints(listen_host, listen_port, host, port, resolve_data_path(data_path_addr, by_name), host or local)
