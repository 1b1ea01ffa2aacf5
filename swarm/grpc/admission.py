"""Who may connect to a port that strangers reach, and how much of us each may keep busy, by address and by node.

Theory of operation. Whoever connects is a stranger until a certificate says which node it is. The strangers of one
address share a few places and a few calls and arrivals per second. A newcomer takes the place of the oldest stranger
when there is none left: places that are only held keep nobody out, and a node needs one no longer than its handshake
takes, even when it shares its address with an attacker. Nodes are counted by their ID: connections, and bytes of
requests that are not complete. An address of IPv6 stands for its network of 64 bits, which is what one user gets.

Who attacks from many addresses meets limits for all strangers together: arrivals and calls in a second, places, and
bytes of incomplete requests, of which who has held some for the longest time loses his connection. Half of a second's
arrivals are kept for addresses from which nobody came in it. Addresses where nodes of the cluster live do not count
for these limits, and are not held up by them: where a node was let in last, within the hour, and when it becomes
crowded also where the store says that nodes and managers are.

(grpc-go has no such limits; sshd: MaxStartups)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache

from swarm import defaults
from swarm.rpc import MANAGER_ROLE, Peer


class Guest:
    """One connection, from TCP on. abort ends it at once."""

    __slots__ = ("abort", "address", "node", "stranger", "unexpected", "unfinished_bytes", "unfinished_bytes_max")

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort
        self.stranger = True
        self.unexpected = False  # a stranger whose address is no node's: one of many, perhaps
        self.address: _Account | None = None  # set while it is counted
        self.node: _Account | None = None
        self.unfinished_bytes = 0
        self.unfinished_bytes_max = defaults.RPC_UNFINISHED_ANONYMOUS_BYTES_MAX


class _Account:
    """What an address, or a node, has of us."""

    __slots__ = ("arrivals", "calls", "connections", "key", "second", "strangers", "unfinished_bytes")

    def __init__(self, key: str) -> None:
        self.key = key
        self.connections = 0
        self.strangers: dict[Guest, None] = {}
        self.unfinished_bytes = 0
        self.second = 0.0
        self.arrivals = 0
        self.calls = 0

    def turn(self, now: float) -> None:
        """Begin another second, if the last one is over."""
        if now - self.second >= 1.0:
            self.second, self.arrivals, self.calls = now, 0, 0


class _Homes:
    """From where nodes were let in last: one address each, so that one stolen certificate makes only one known."""

    def __init__(self) -> None:
        self._of_node: dict[str, tuple[str, float]] = {}
        self._nodes_at: dict[str, int] = {}

    def __contains__(self, place: str) -> bool:
        return place in self._nodes_at

    def note(self, node_id: str, place: str, now: float) -> None:
        """The node was let in from there, or is still here."""
        self._forget(node_id)
        self._of_node[node_id] = (place, now)
        self._nodes_at[place] = self._nodes_at.get(place, 0) + 1

    def sweep(self, present: Iterable[str], now: float) -> None:
        """Forget nodes that have been away for long."""
        for node_id in present:
            if node_id in self._of_node:
                self._of_node[node_id] = (self._of_node[node_id][0], now)
        for node_id in [it for it, (_, at) in self._of_node.items() if now - at > defaults.RPC_HOME_S]:
            self._forget(node_id)

    def _forget(self, node_id: str) -> None:
        place, _ = self._of_node.pop(node_id, ("", 0.0))
        if not place:
            return
        self._nodes_at[place] -= 1
        if not self._nodes_at[place]:
            del self._nodes_at[place]


class Admission:
    """All connections of one server. now: any clock in seconds that never goes back."""

    def __init__(self, hosts_of_members: Callable[[], Iterable[str]] = tuple) -> None:
        """hosts_of_members: IP addresses of nodes, whether they were ever here or not."""
        self.connections = 0
        """TCP connections, those included that still shake hands."""
        self._addresses: dict[str, _Account] = {}
        self._nodes: dict[str, _Account] = {}
        self._strangers: dict[Guest, None] = {}
        self._unexpected = _Account("")  # all of them together
        self._holding: dict[Guest, None] = {}  # those of them with incomplete requests
        self._homes = _Homes()
        self._hosts_of_members = hosts_of_members
        self._registered: frozenset[str] = frozenset()
        self._registered_at: float | None = None

    def enter(self, guest: Guest, host: str, now: float) -> str:
        """Count a connection that begins. Returns "", or why it must not."""
        key = place_of(host)
        address = self._addresses.setdefault(key, _Account(key))
        address.turn(now)
        self._unexpected.turn(now)
        unexpected = not self._expects(key, now)
        if address.connections >= defaults.RPC_CONNECTIONS_PER_ADDRESS_MAX:
            return "too many connections from this address"
        if address.arrivals >= defaults.RPC_STRANGERS_PER_ADDRESS_PER_S_MAX:
            return "too many strangers from this address in a second"
        if unexpected and self._unexpected.arrivals >= defaults.RPC_STRANGERS_PER_S_MAX // (
            2 if address.arrivals else 1
        ):
            return "too many strangers in a second"
        full = self.connections >= defaults.RPC_CONNECTIONS_MAX
        if len(address.strangers) >= defaults.RPC_ANONYMOUS_PER_ADDRESS_MAX:
            self._displace(next(iter(address.strangers)))
        elif full or (unexpected and len(self._strangers) >= defaults.RPC_ANONYMOUS_MAX):
            if not self._strangers:
                return "too many connections"
            self._displace(next(iter(self._strangers)))
        guest.address = address
        guest.unexpected = unexpected
        address.connections += 1
        address.arrivals += 1
        address.strangers[guest] = None
        if unexpected:
            self._unexpected.arrivals += 1
            self._strangers[guest] = None
        self.connections += 1
        return ""

    def _expects(self, place: str, now: float) -> bool:
        """Whether nodes live there. The store is asked only when it matters, and once in a while."""
        if not place or place in self._homes:
            return True
        arrivals, strangers = self._unexpected.arrivals, len(self._strangers)
        if arrivals < defaults.RPC_STRANGERS_PER_S_MAX // 2 and strangers < defaults.RPC_ANONYMOUS_MAX // 2:
            return False
        if self._registered_at is None or now - self._registered_at >= defaults.RPC_HOMES_REFRESH_S:
            self._registered = frozenset(map(place_of, self._hosts_of_members()))
            self._registered_at = now
        return place in self._registered

    def _displace(self, guest: Guest) -> None:
        self.leave(guest)
        guest.abort()

    def identify(self, guest: Guest, peer: Peer, now: float, trusted: bool = False) -> str:
        """The handshake is done; who has no certificate that counts stays a stranger. Returns "", or why it must go.

        trusted: it came where only friends come, and needs no certificate.
        """
        address = guest.address
        if address is None:
            return "its place was taken by a newer connection"
        if not (peer.certified or trusted):
            return ""
        if peer.certified:
            node = self._nodes.setdefault(peer.node_id, _Account(peer.node_id))
            if node.connections >= defaults.RPC_CONNECTIONS_PER_NODE_MAX:
                return "too many connections of this node"
            node.connections += 1
            guest.node = node
            self._homes.note(peer.node_id, address.key, now)
        guest.stranger = False
        manager = trusted or peer.role == MANAGER_ROLE
        guest.unfinished_bytes_max = (
            defaults.RPC_UNFINISHED_MANAGER_BYTES_MAX if manager else defaults.RPC_UNFINISHED_WORKER_BYTES_MAX
        )
        address.arrivals = max(0, address.arrivals - 1)
        if guest.unexpected:
            self._unexpected.arrivals = max(0, self._unexpected.arrivals - 1)
            guest.unexpected = False
        address.strangers.pop(guest, None)
        self._strangers.pop(guest, None)
        return ""

    def leave(self, guest: Guest) -> None:
        """The connection is over; it may be said again."""
        address, guest.address = guest.address, None
        if address is None:
            return
        self.connections -= 1
        address.connections -= 1
        address.strangers.pop(guest, None)
        self._strangers.pop(guest, None)
        node, guest.node = guest.node, None
        (node or address).unfinished_bytes -= guest.unfinished_bytes
        if guest in self._holding:
            del self._holding[guest]
            self._unexpected.unfinished_bytes -= guest.unfinished_bytes
        if node is not None:
            node.connections -= 1
            if not node.connections:
                del self._nodes[node.key]

    def sweep(self, now: float) -> None:
        """Forget addresses that are gone; they are remembered for a second, for what they did in it."""
        gone = [key for key, it in self._addresses.items() if not it.connections and now - it.second >= 1.0]
        for key in gone:
            del self._addresses[key]
        self._homes.sweep(self._nodes, now)

    def may_call(self, guest: Guest, now: float) -> bool:
        """Count a call of a stranger; False for one too many of its address, or of all of them, in this second."""
        address, everyone = guest.address, self._unexpected
        if address is None or not guest.stranger:
            return address is not None
        address.turn(now)
        address.calls += 1
        if guest.unexpected:
            everyone.turn(now)
            everyone.calls += 1
            if everyone.calls > defaults.RPC_ANONYMOUS_CALLS_PER_S_MAX:
                return False
        return address.calls <= defaults.RPC_ANONYMOUS_CALLS_PER_ADDRESS_PER_S_MAX

    def hold(self, guest: Guest, difference: int) -> bool:
        """Note bytes of incomplete requests, or that they are gone; False when those are too many now."""
        account = guest.node or guest.address
        if account is None:
            return False
        guest.unfinished_bytes += difference
        account.unfinished_bytes += difference
        if guest.unexpected:
            self._hold_of_all(guest, difference)
        return difference <= 0 or account.unfinished_bytes <= guest.unfinished_bytes_max

    def _hold_of_all(self, guest: Guest, difference: int) -> None:
        self._unexpected.unfinished_bytes += difference
        if not guest.unfinished_bytes:
            self._holding.pop(guest, None)
            return
        self._holding[guest] = None
        while self._unexpected.unfinished_bytes > defaults.RPC_UNFINISHED_STRANGERS_BYTES_MAX:
            oldest = next(iter(self._holding))
            if oldest is guest:  # alone it cannot be too much
                break
            self._displace(oldest)


@lru_cache(maxsize=4096)
def place_of(host: str) -> str:
    """Whose address this is: itself for IPv4, its /64 for IPv6, empty for what is no address (a unix socket)."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
