"""Who may connect to a port that the whole network reaches, and how many resources each client may keep busy.

Every connection begins anonymous, as a *stranger*, until a certificate shows which node it is. Strangers are limited by
address: connections, arrivals and calls per second. When the connections of an address are used up, a new stranger
replaces the oldest one: an idle connection keeps nobody out, and a node needs no more time than its handshake takes,
even when it shares its address with an attacker. Nodes are limited by ID: connections, and bytes of incomplete
requests. An IPv6 address stands for its /64 network, because that is what one user gets.

Attackers with many addresses meet limits for all strangers together: arrivals and calls per second, connections, and
bytes of incomplete requests; if those are too many, the stranger that has held some for the longest time loses its
connection. Half of the arrivals of a second are kept for addresses from which nobody else came in that second.
Addresses of nodes of the cluster do not count for these limits and are not held up by them: those from which a node was
admitted within the last hour and, when strangers become many, those that the store has for nodes and managers.

(grpc-go has no such limits; sshd: MaxStartups)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache

from swarm import defaults
from swarm.rpc import MANAGER_ROLE, Peer


class Guest:
    """One connection, from its TCP handshake on. abort: ends it at once."""

    __slots__ = ("abort", "address", "node", "stranger", "unexpected", "unfinished_bytes", "unfinished_bytes_max")

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort
        self.stranger = True
        self.unexpected = False  # a stranger whose address is not known to be that of a node
        self.address: _Account | None = None  # set while it is counted
        self.node: _Account | None = None
        self.unfinished_bytes = 0
        self.unfinished_bytes_max = defaults.RPC_UNFINISHED_ANONYMOUS_BYTES_MAX


class _Account:
    """What one address, or one node, uses."""

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
        """Start counting anew if the last second is over."""
        if now - self.second >= 1.0:
            self.second, self.arrivals, self.calls = now, 0, 0


class _NodeAddresses:
    """Where nodes were admitted last: one address each, so that a stolen certificate makes no more than one known."""

    def __init__(self) -> None:
        self._of_node: dict[str, tuple[str, float]] = {}
        self._nodes_at: dict[str, int] = {}

    def __contains__(self, network: str) -> bool:
        return network in self._nodes_at

    def note(self, node_id: str, network: str, now: float) -> None:
        """The node was admitted from this address."""
        self._forget(node_id)
        self._of_node[node_id] = (network, now)
        self._nodes_at[network] = self._nodes_at.get(network, 0) + 1

    def sweep(self, present: Iterable[str], now: float) -> None:
        """Forget nodes that have not been connected for long. present: those that are connected now."""
        for node_id in present:
            if node_id in self._of_node:
                self._of_node[node_id] = (self._of_node[node_id][0], now)
        for node_id in [it for it, (_, at) in self._of_node.items() if now - at > defaults.RPC_HOME_S]:
            self._forget(node_id)

    def _forget(self, node_id: str) -> None:
        network, _ = self._of_node.pop(node_id, ("", 0.0))
        if not network:
            return
        self._nodes_at[network] -= 1
        if not self._nodes_at[network]:
            del self._nodes_at[network]


class Admission:
    """All connections of one server. now: any clock in seconds that never goes back."""

    def __init__(self, hosts_of_members: Callable[[], Iterable[str]] = tuple) -> None:
        """hosts_of_members: IP addresses of all nodes, those included that never connected."""
        self.connections = 0
        """TCP connections, including those in their TLS handshake."""
        self._addresses: dict[str, _Account] = {}
        self._nodes: dict[str, _Account] = {}
        self._strangers: dict[Guest, None] = {}
        self._unexpected = _Account("")  # all unexpected strangers together
        self._holding: dict[Guest, None] = {}  # unexpected strangers with incomplete requests, the oldest first
        self._node_addresses = _NodeAddresses()
        self._hosts_of_members = hosts_of_members
        self._registered: frozenset[str] = frozenset()
        self._registered_at: float | None = None

    def enter(self, guest: Guest, host: str, now: float) -> str:
        """Count a new connection. Returns "", or why it is refused."""
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
            self._replace(next(iter(address.strangers)))
        elif full or (unexpected and len(self._strangers) >= defaults.RPC_ANONYMOUS_MAX):
            if not self._strangers:
                return "too many connections"
            self._replace(next(iter(self._strangers)))
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

    def _expects(self, network: str, now: float) -> bool:
        """Whether this is a node's address. The store is asked only when strangers are many, and not often."""
        if not network or network in self._node_addresses:
            return True
        arrivals, strangers = self._unexpected.arrivals, len(self._strangers)
        if arrivals < defaults.RPC_STRANGERS_PER_S_MAX // 2 and strangers < defaults.RPC_ANONYMOUS_MAX // 2:
            return False
        if self._registered_at is None or now - self._registered_at >= defaults.RPC_HOMES_REFRESH_S:
            self._registered = frozenset(map(place_of, self._hosts_of_members()))
            self._registered_at = now
        return network in self._registered

    def _replace(self, guest: Guest) -> None:
        self.leave(guest)
        guest.abort()

    def identify(self, guest: Guest, peer: Peer, now: float, trusted: bool = False) -> str:
        """The TLS handshake is done; without a valid certificate the client stays a stranger.

        Returns "", or why the connection must end. trusted: it came by a way that needs no certificate (a unix socket).
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
            self._node_addresses.note(peer.node_id, address.key, now)
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
        """The connection is over. Does nothing if that is known already."""
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
        """Forget addresses without connections, but not what they did in the last second."""
        gone = [key for key, it in self._addresses.items() if not it.connections and now - it.second >= 1.0]
        for key in gone:
            del self._addresses[key]
        self._node_addresses.sweep(self._nodes, now)

    def may_call(self, guest: Guest, now: float) -> bool:
        """Count a call; False if its address, or all strangers together, made too many in this second."""
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
        """Count bytes of incomplete requests, or with a negative difference that they are gone; False: too many."""
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
            if oldest is guest:  # one connection alone is limited by its account
                break
            self._replace(oldest)


@lru_cache(maxsize=4096)
def place_of(host: str) -> str:
    """The network of one user: the IPv4 address itself, the /64 of an IPv6 address, "" for a unix socket."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
