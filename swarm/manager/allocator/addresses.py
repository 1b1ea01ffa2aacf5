"""Addresses in the cluster's networks: who holds which, and which are free.

The table follows from the objects of the store alone, holder by holder, so that no address can leak: what a task, a
service or a node holds is what the present object says, and nothing once the object is gone or the task has ended.

(moby: daemon/libnetwork/ipams/defaultipam)
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from swarm import api
from swarm.manager.allocator.subnets import NotAllocated, subnet_in

Holder = tuple[str, str]
"""Kind and ID of an object: "network" (gateway and reserved addresses), "service", "task" or "node"."""

NO_ADDRESS_LEFT = "could not find an available IP"
_KINDS = ("task", "service", "node", "network")


def address_in(text: str) -> int | None:
    """The number of an IPv4 address, with or without a prefix length; None: it is none."""
    try:
        return int(IPv4Address(text.partition("/")[0]))
    except AddressValueError:
        return None


class AddressTable:
    """See the module. Addresses are numbers."""

    def __init__(self) -> None:
        self._holders: dict[str, dict[int, dict[Holder, None]]] = {}  # by network ID
        self._held: dict[Holder, tuple[tuple[str, int], ...]] = {}
        self._last: dict[str, int] = {}  # by network ID; a preference only: a freed address comes back late

    def hold(self, holder: Holder, addresses: Iterable[tuple[str, str]]) -> list[str]:
        """Replace what the holder has: (network ID, address). Returns the networks in which addresses became free."""
        found = ((network_id, address_in(text)) for network_id, text in addresses)
        now = tuple(dict.fromkeys((network_id, address) for network_id, address in found if address is not None))
        before = self._held.get(holder, ())
        if now == before:
            return []
        for network_id, address in now:
            self._holders.setdefault(network_id, {}).setdefault(address, {})[holder] = None
            self._last[network_id] = address
        freed = [self._drop(holder, *held) for held in before if held not in now]
        if now:
            self._held[holder] = now
        else:
            self._held.pop(holder, None)
        return [network_id for network_id in freed if network_id]

    def _drop(self, holder: Holder, network_id: str, address: int) -> str:
        holders = self._holders[network_id]
        holders[address].pop(holder, None)
        if holders[address]:
            return ""
        del holders[address]
        if not holders:
            del self._holders[network_id]
            self._last.pop(network_id, None)
        return network_id

    def state(self) -> dict[Holder, tuple[tuple[str, int], ...]]:
        """For the audit."""
        return {holder: self._held[holder] for holder in sorted(self._held)}

    def in_use(self, network_id: str) -> int:
        """How many addresses of a network are held."""
        return len(self._holders.get(network_id, ()))

    def shared(self) -> list[tuple[str, str, list[Holder]]]:
        """Addresses that several hold, which must not be: network ID, address, holders."""
        return [
            (network_id, str(IPv4Address(address)), sorted(holders))
            for network_id, addresses in sorted(self._holders.items())
            for address, holders in sorted(addresses.items())
            if len(holders) > 1
        ]

    def choose(self, network: api.Network, requested: str = "", besides: Iterable[int] = ()) -> str:
        """A free address of the network with its prefix length. requested: this one and no other. Raises NotAllocated.

        besides: addresses that are chosen, but not held yet.
        """
        taken = self._holders.get(network.id, {})
        chosen = dict.fromkeys(besides)
        wanted = address_in(requested) if requested else None
        if requested and wanted is None:
            raise NotAllocated(f"could not parse address string {requested}")
        for config in network.ipam.configs:
            subnet = subnet_in(config.subnet)
            if subnet is None:
                continue
            if wanted is not None:
                if IPv4Address(wanted) not in subnet:
                    continue
                if wanted in taken or wanted in chosen or wanted not in _usable(subnet):
                    raise NotAllocated(f"could not allocate IP from IPAM: Address already in use: {requested}")
                return _text(wanted, subnet)
            found = _next(_usable(subnet, subnet_in(config.range)), taken, chosen, self._last.get(network.id, 0))
            if found is not None:
                return _text(found, subnet)
        if wanted is not None:
            raise NotAllocated(f"{NO_ADDRESS_LEFT}: {requested} is in no subnet of network {_name(network)}")
        raise NotAllocated(self._exhausted(network), network.id)

    def _exhausted(self, network: api.Network) -> str:
        ranges = [config.range or config.subnet for config in network.ipam.configs]
        holders = [kind for row in self._holders.get(network.id, {}).values() for kind, _ in row]
        counts = ", ".join(f"{holders.count(kind)} {kind}s" for kind in _KINDS if kind != "network")
        where = f"network {_name(network)} ({', '.join(ranges)})"
        return (
            f"{NO_ADDRESS_LEFT}: {where} has no free address; {counts} hold them; "
            "remove some, or create a network with a larger subnet"
        )


def _name(network: api.Network) -> str:
    return network.spec.annotations.name or network.id


def _usable(subnet: IPv4Network, part: IPv4Network | None = None) -> range:
    """The addresses of a subnet that hosts can have, or those in a part of it."""
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    if subnet.prefixlen < 31:
        first, last = first + 1, last - 1
    if part is not None:
        first, last = max(first, int(part.network_address)), min(last, int(part.broadcast_address))
    return range(first, last + 1)


def _next(usable: range, taken: dict[int, dict[Holder, None]], chosen: dict[int, None], after: int) -> int | None:
    """The first free address behind ``after``, or else from the beginning."""
    start = after + 1 if after + 1 in usable else usable.start
    for addresses in (range(start, usable.stop), range(usable.start, start)):
        for address in addresses:
            if address not in taken and address not in chosen:
                return address
    return None


def _text(address: int, subnet: IPv4Network) -> str:
    return f"{IPv4Address(address)}/{subnet.prefixlen}"
