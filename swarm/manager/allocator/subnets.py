"""Subnets and VXLAN network identifiers (VNIs): which network holds which, and which are free.

Both follow from what the store says. A network that was removed holds what it had until the last task that uses it has
ended, because a subnet or VNI that came back earlier would reach containers that still run.

(moby: daemon/libnetwork/ipams/defaultipam, daemon/libnetwork/drivers/overlay/ovmanager)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from swarm import api, defaults

VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
NO_SUBNET_LEFT = (
    "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
)


class NotAllocated(Exception):
    """The cluster has not what is asked for, for now; the text is for the user.

    network_id: of the network whose addresses are all in use; empty for other reasons.
    """

    def __init__(self, text: str, network_id: str = "") -> None:
        super().__init__(text)
        self.network_id = network_id


@dataclass(frozen=True)
class Pools:
    """The cluster's address pools, and the prefix length of the subnets that are cut from them."""

    subnets: tuple[IPv4Network, ...]
    prefix_length: int


def pools_of(cluster: api.Cluster | None) -> Pools:
    """What the cluster was created with (``docker swarm init --default-addr-pool``), or the defaults."""
    texts: Sequence[str] = cluster.defaultAddressPool if cluster is not None else ()
    bits = cluster.subnetSize if cluster is not None else 0
    subnets = tuple(IPv4Network(text, strict=False) for text in (texts or (defaults.DEFAULT_ADDRESS_POOL,)))
    return Pools(subnets, bits or defaults.SUBNET_SIZE_BITS)


def subnets_of(network: api.Network) -> tuple[IPv4Network, ...]:
    """The IPv4 subnets that a network got, in the order of its configuration; a stock leader may store others too."""
    found = (subnet_in(config.subnet) for config in network.ipam.configs if config.family != api.IPAMConfig.IPV6)
    return tuple(subnet for subnet in found if subnet is not None)


def subnet_in(text: str) -> IPv4Network | None:
    """The IPv4 subnet in CIDR form, host bits may be set; None: it is none."""
    try:
        return IPv4Network(text, strict=False) if text else None
    except ValueError:
        return None


def vnis_of(options: dict[str, str]) -> tuple[int, ...]:
    """The VNIs in a driver's options, one per IPv4 subnet. Raises NotAllocated if the text is no list of VNIs."""
    text = options.get(VNI_OPTION, "")
    vnis = []
    for part in text.split(",") if text else ():
        if not (part.isascii() and part.isdecimal()) or not 0 <= int(part) <= defaults.VNI_LAST:
            raise NotAllocated(f"invalid value {text!r} of option {VNI_OPTION}: {part!r} is no VXLAN ID")
        vnis.append(int(part))
    return tuple(vnis)


class SubnetTable:
    """Subnets by the network that holds them, in order of their first address."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[IPv4Network, ...]] = {}
        self._sorted: list[tuple[int, int, str]] = []  # first address, last address, network ID
        self._longest = 0

    def hold(self, network_id: str, subnets: tuple[IPv4Network, ...]) -> None:
        """Replace what this network holds."""
        if self._held.get(network_id, ()) == subnets:
            return
        for subnet in self._held.pop(network_id, ()):
            row = (*_bounds(subnet), network_id)
            del self._sorted[bisect_left(self._sorted, row)]
        if subnets:
            self._held[network_id] = subnets
        for subnet in subnets:
            insort(self._sorted, (*_bounds(subnet), network_id))
            self._longest = max(self._longest, subnet.num_addresses)

    def state(self) -> dict[str, tuple[IPv4Network, ...]]:
        """For the audit."""
        return {network_id: self._held[network_id] for network_id in sorted(self._held)}

    def overlaps(self, subnet: IPv4Network) -> Iterator[tuple[IPv4Network, str]]:
        """What is held of this subnet, with the IDs of the holders."""
        for first, last, network_id in self._overlapping(*_bounds(subnet)):
            for held in self._held[network_id]:
                if _bounds(held) == (first, last):
                    yield held, network_id

    def _overlapping(self, first: int, last: int) -> Iterator[tuple[int, int, str]]:
        start = bisect_left(self._sorted, (first - self._longest,))
        for row in self._sorted[start : bisect_right(self._sorted, (last + 1,))]:
            if row[0] <= last and row[1] >= first:
                yield row

    def free(self, pools: Pools) -> IPv4Network:
        """The lowest subnet of the pools that overlaps with none that is held. Raises NotAllocated."""
        size = 1 << (32 - pools.prefix_length)
        for pool in pools.subnets:
            first, end = _bounds(pool)
            while first + size - 1 <= end:
                taken = max((last for _, last, _ in self._overlapping(first, first + size - 1)), default=None)
                if taken is None:
                    return IPv4Network((IPv4Address(first), pools.prefix_length))
                first = (taken // size + 1) * size
        shown = ", ".join(map(str, pools.subnets))
        raise NotAllocated(
            f"{NO_SUBNET_LEFT}: every /{pools.prefix_length} in {shown} is in use, by {len(self._held)} networks; "
            "remove a network, or create this one with --subnet"
        )


def _bounds(subnet: IPv4Network) -> tuple[int, int]:
    return int(subnet.network_address), int(subnet.broadcast_address)


class VniTable:
    """VNIs by the network that holds them."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, ...]] = {}
        self._holders: dict[int, dict[str, None]] = {}
        self._last = defaults.VNI_FIRST - 1  # a preference only: what was freed just now comes back last

    def hold(self, network_id: str, vnis: tuple[int, ...]) -> None:
        """Replace what this network holds."""
        for vni in self._held.pop(network_id, ()):
            self._holders[vni].pop(network_id, None)
            if not self._holders[vni]:
                del self._holders[vni]
        if vnis:
            self._held[network_id] = vnis
        for vni in vnis:
            self._holders.setdefault(vni, {})[network_id] = None
            self._last = max(self._last, vni)

    def state(self) -> dict[str, tuple[int, ...]]:
        """For the audit."""
        return {network_id: self._held[network_id] for network_id in sorted(self._held)}

    def choose(self, wanted: tuple[int, ...], count: int) -> tuple[int, ...]:
        """``count`` VNIs: first those that the user wants, then free ones. Raises NotAllocated."""
        chosen: dict[int, None] = {}
        for vni in wanted[:count]:
            if vni in self._holders or vni in chosen:
                raise NotAllocated(f"VXLAN ID {vni} is already in use")
            chosen[vni] = None
        while len(chosen) < count:
            chosen[self._free(chosen)] = None
        return tuple(chosen)

    def _free(self, besides: dict[int, None]) -> int:
        size = defaults.VNI_LAST - defaults.VNI_FIRST + 1
        for step in range(1, size + 1):
            vni = defaults.VNI_FIRST + (self._last - defaults.VNI_FIRST + step) % size
            if vni not in self._holders and vni not in besides:
                return vni
        raise NotAllocated(f"all {size} VXLAN IDs are in use")
