"""Who may connect to a port that the whole network reaches, and how many resources each client may use.

Every connection is anonymous until a certificate shows which node it belongs to. Anonymous connections are limited by
address: how many are open, how many are opened per second, and their calls per second. When an address has used up its
connections, a new one displaces its oldest anonymous one. So an idle connection keeps nobody out, and a node needs no
more time than its handshake takes, even when it shares its address with an attacker. Nodes are limited by ID:
connections, and bytes of incomplete requests. An IPv6 address stands for its /64 network, because that is what one user
gets.

Attackers with many addresses meet limits for all unknown addresses together: new connections and calls per second, open
connections, and bytes of incomplete requests. If there are too many bytes, the anonymous connection that has held some
for the longest time is closed. Half of the new connections of a second are reserved for addresses that have opened no
other in that second. Known addresses do not count towards these limits and are not held up by them: those from which a
node was admitted within the last hour and, when anonymous connections become many, those that the store has for nodes
and managers.

(grpc-go has no such limits; the vocabulary is that of sshd's MaxStartups)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache

from swarm import defaults
from swarm.rpc import MANAGER_ROLE, Peer


class TrackedConnection:
    """One connection, from its TCP handshake on. abort: ends it at once."""

    __slots__ = ("abort", "address", "anonymous", "from_unknown", "node", "unfinished_bytes", "unfinished_bytes_max")

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort
        self.anonymous = True
        self.from_unknown = False  # anonymous, and its address is not known to be that of a node
        self.address: _Account | None = None  # set while it is counted
        self.node: _Account | None = None
        self.unfinished_bytes = 0
        self.unfinished_bytes_max = defaults.RPC_UNFINISHED_ANONYMOUS_BYTES_MAX


class _Account:
    """What one address, or one node, uses."""

    __slots__ = ("anonymous", "arrivals", "calls", "connections", "key", "second", "unfinished_bytes")

    def __init__(self, key: str) -> None:
        self.key = key
        self.connections = 0
        self.anonymous: dict[TrackedConnection, None] = {}
        self.unfinished_bytes = 0
        self.second = 0.0
        self.arrivals = 0
        self.calls = 0

    def advance(self, now: float) -> None:
        """Start a new second if the last one is over."""
        if now - self.second >= 1.0:
            self.second, self.arrivals, self.calls = now, 0, 0


class _KnownAddresses:
    """Where each node was admitted last: one address per node, so that a stolen certificate adds only one."""

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
        """Forget the nodes that disconnected long ago. present: those that are connected now."""
        for node_id in present:
            if node_id in self._of_node:
                self._of_node[node_id] = (self._of_node[node_id][0], now)
        for node_id in [it for it, (_, at) in self._of_node.items() if now - at > defaults.RPC_KNOWN_ADDRESS_TTL_S]:
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

    def __init__(self, registered_hosts: Callable[[], Iterable[str]] = tuple) -> None:
        """registered_hosts: IP addresses of all nodes in the store, including those that never connected."""
        self.connections = 0
        """TCP connections, including those in their TLS handshake."""
        self._addresses: dict[str, _Account] = {}
        self._nodes: dict[str, _Account] = {}
        self._anonymous: dict[TrackedConnection, None] = {}  # from unknown addresses, the oldest first
        self._unknown = _Account("")  # all anonymous connections from unknown addresses together
        self._holding: dict[TrackedConnection, None] = {}  # those with incomplete requests, the oldest first
        self._known = _KnownAddresses()
        self._registered_hosts = registered_hosts
        self._registered: frozenset[str] = frozenset()
        self._registered_at: float | None = None

    def accept(self, tracked: TrackedConnection, host: str, now: float) -> str:
        """Count a new connection. Returns "", or why it is refused."""
        key = network_of(host)
        address = self._addresses.setdefault(key, _Account(key))
        address.advance(now)
        self._unknown.advance(now)
        unknown = not self._is_known(key, now)
        if address.connections >= defaults.RPC_CONNECTIONS_PER_ADDRESS_MAX:
            return "too many connections from this address"
        if address.arrivals >= defaults.RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_PER_S_MAX:
            return "too many anonymous connections from this address in a second"
        if unknown and self._unknown.arrivals >= defaults.RPC_ANONYMOUS_CONNECTIONS_PER_S_MAX // (
            2 if address.arrivals else 1
        ):
            return "too many anonymous connections in a second"
        full = self.connections >= defaults.RPC_CONNECTIONS_MAX
        if len(address.anonymous) >= defaults.RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_MAX:
            self._displace(next(iter(address.anonymous)))
        elif full or (unknown and len(self._anonymous) >= defaults.RPC_ANONYMOUS_CONNECTIONS_MAX):
            if not self._anonymous:
                return "too many connections"
            self._displace(next(iter(self._anonymous)))
        tracked.address = address
        tracked.from_unknown = unknown
        address.connections += 1
        address.arrivals += 1
        address.anonymous[tracked] = None
        if unknown:
            self._unknown.arrivals += 1
            self._anonymous[tracked] = None
        self.connections += 1
        return ""

    def _is_known(self, network: str, now: float) -> bool:
        """Whether this is a node's address. The store is read only when there are many anonymous connections."""
        if not network or network in self._known:
            return True
        arrivals, anonymous = self._unknown.arrivals, len(self._anonymous)
        if (
            arrivals < defaults.RPC_ANONYMOUS_CONNECTIONS_PER_S_MAX // 2
            and anonymous < defaults.RPC_ANONYMOUS_CONNECTIONS_MAX // 2
        ):
            return False
        if self._registered_at is None or now - self._registered_at >= defaults.RPC_KNOWN_ADDRESSES_REFRESH_S:
            self._registered = frozenset(map(network_of, self._registered_hosts()))
            self._registered_at = now
        return network in self._registered

    def _displace(self, tracked: TrackedConnection) -> None:
        self.release(tracked)
        tracked.abort()

    def identify(self, tracked: TrackedConnection, peer: Peer, now: float, trusted: bool = False) -> str:
        """The TLS handshake is done; without a valid certificate the connection stays anonymous.

        Returns "", or why the connection must end. trusted: no certificate is needed (a unix socket).
        """
        address = tracked.address
        if address is None:
            return "displaced by a newer connection"
        if not (peer.certified or trusted):
            return ""
        if peer.certified:
            node = self._nodes.setdefault(peer.node_id, _Account(peer.node_id))
            if node.connections >= defaults.RPC_CONNECTIONS_PER_NODE_MAX:
                return "too many connections of this node"
            node.connections += 1
            tracked.node = node
            self._known.note(peer.node_id, address.key, now)
        tracked.anonymous = False
        manager = trusted or peer.role == MANAGER_ROLE
        tracked.unfinished_bytes_max = (
            defaults.RPC_UNFINISHED_MANAGER_BYTES_MAX if manager else defaults.RPC_UNFINISHED_WORKER_BYTES_MAX
        )
        address.arrivals = max(0, address.arrivals - 1)
        if tracked.from_unknown:
            self._unknown.arrivals = max(0, self._unknown.arrivals - 1)
            tracked.from_unknown = False
        address.anonymous.pop(tracked, None)
        self._anonymous.pop(tracked, None)
        return ""

    def release(self, tracked: TrackedConnection) -> None:
        """The connection has ended. A second call does nothing."""
        address, tracked.address = tracked.address, None
        if address is None:
            return
        self.connections -= 1
        address.connections -= 1
        address.anonymous.pop(tracked, None)
        self._anonymous.pop(tracked, None)
        node, tracked.node = tracked.node, None
        (node or address).unfinished_bytes -= tracked.unfinished_bytes
        if tracked in self._holding:
            del self._holding[tracked]
            self._unknown.unfinished_bytes -= tracked.unfinished_bytes
        if node is not None:
            node.connections -= 1
            if not node.connections:
                del self._nodes[node.key]

    def sweep(self, now: float) -> None:
        """Forget addresses without connections, but not what they did in the last second."""
        gone = [key for key, it in self._addresses.items() if not it.connections and now - it.second >= 1.0]
        for key in gone:
            del self._addresses[key]
        self._known.sweep(self._nodes, now)

    def may_call(self, tracked: TrackedConnection, now: float) -> bool:
        """Count a call; False if its address, or all unknown addresses together, made too many this second."""
        address, unknown = tracked.address, self._unknown
        if address is None or not tracked.anonymous:
            return address is not None
        address.advance(now)
        address.calls += 1
        if tracked.from_unknown:
            unknown.advance(now)
            unknown.calls += 1
            if unknown.calls > defaults.RPC_ANONYMOUS_CALLS_PER_S_MAX:
                return False
        return address.calls <= defaults.RPC_ANONYMOUS_CALLS_PER_ADDRESS_PER_S_MAX

    def hold(self, tracked: TrackedConnection, difference: int) -> bool:
        """Count bytes of incomplete requests, or with a negative difference that they are gone; False: too many."""
        account = tracked.node or tracked.address
        if account is None:
            return False
        tracked.unfinished_bytes += difference
        account.unfinished_bytes += difference
        if tracked.from_unknown:
            self._hold_from_unknown(tracked, difference)
        return difference <= 0 or account.unfinished_bytes <= tracked.unfinished_bytes_max

    def _hold_from_unknown(self, tracked: TrackedConnection, difference: int) -> None:
        self._unknown.unfinished_bytes += difference
        if not tracked.unfinished_bytes:
            self._holding.pop(tracked, None)
            return
        self._holding[tracked] = None
        while self._unknown.unfinished_bytes > defaults.RPC_UNFINISHED_UNKNOWN_ADDRESSES_BYTES_MAX:
            oldest = next(iter(self._holding))
            if oldest is tracked:  # one connection alone is limited by its account
                break
            self._displace(oldest)


@lru_cache(maxsize=4096)
def network_of(host: str) -> str:
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
