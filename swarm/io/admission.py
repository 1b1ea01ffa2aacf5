"""Who may connect to a port that strangers reach, and how much of us each may keep busy, by address and by node.

Theory of operation. Whoever connects is a stranger until a certificate says which node it is. The strangers of one
address share a few places and a few calls and arrivals per second. A newcomer takes the place of the oldest stranger
when there is none left: places that are only held keep nobody out, and a node needs one no longer than its handshake
takes, even when it shares its address with an attacker. Nodes are counted by their ID: connections, and bytes of
requests that are not complete. An address of IPv6 stands for its network of 64 bits, which is what one user gets.

(grpc-go has no such limits; sshd: MaxStartups)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache

from swarm import defaults
from swarm.rpc import MANAGER_ROLE, Peer


class Guest:
    """One connection, from TCP on. abort ends it at once."""

    __slots__ = ("abort", "address", "node", "stranger", "unfinished_bytes", "unfinished_bytes_max")

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort
        self.stranger = True
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


class Admission:
    """All connections of one server."""

    def __init__(self) -> None:
        self.connections = 0
        """TCP connections, those included that still shake hands."""
        self._addresses: dict[str, _Account] = {}
        self._nodes: dict[str, _Account] = {}
        self._strangers: dict[Guest, None] = {}

    def enter(self, guest: Guest, host: str, now: float) -> str:
        """Count a connection that begins. Returns "", or why it must not."""
        key = place_of(host)
        address = self._addresses.setdefault(key, _Account(key))
        address.turn(now)
        if address.connections >= defaults.RPC_CONNECTIONS_PER_ADDRESS_MAX:
            return "too many connections from this address"
        if address.arrivals >= defaults.RPC_STRANGERS_PER_ADDRESS_PER_S_MAX:
            return "too many strangers from this address in a second"
        if len(address.strangers) >= defaults.RPC_ANONYMOUS_PER_ADDRESS_MAX:
            self._displace(next(iter(address.strangers)))
        elif self.connections >= defaults.RPC_CONNECTIONS_MAX or len(self._strangers) >= defaults.RPC_ANONYMOUS_MAX:
            if not self._strangers:
                return "too many connections"
            self._displace(next(iter(self._strangers)))
        guest.address = address
        address.connections += 1
        address.arrivals += 1
        address.strangers[guest] = None
        self._strangers[guest] = None
        self.connections += 1
        return ""

    def _displace(self, guest: Guest) -> None:
        self.leave(guest)
        guest.abort()

    def identify(self, guest: Guest, peer: Peer, trusted: bool = False) -> str:
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
        guest.stranger = False
        manager = trusted or peer.role == MANAGER_ROLE
        guest.unfinished_bytes_max = (
            defaults.RPC_UNFINISHED_MANAGER_BYTES_MAX if manager else defaults.RPC_UNFINISHED_WORKER_BYTES_MAX
        )
        address.arrivals = max(0, address.arrivals - 1)
        del address.strangers[guest], self._strangers[guest]
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
        if node is not None:
            node.connections -= 1
            if not node.connections:
                del self._nodes[node.key]

    def sweep(self, now: float) -> None:
        """Forget addresses that are gone; they are remembered for a second, for what they did in it."""
        gone = [key for key, it in self._addresses.items() if not it.connections and now - it.second >= 1.0]
        for key in gone:
            del self._addresses[key]

    def may_call(self, guest: Guest, now: float) -> bool:
        """Count a call of a stranger; False for one too many of its address in this second."""
        address = guest.address
        if address is None or not guest.stranger:
            return address is not None
        address.turn(now)
        address.calls += 1
        return address.calls <= defaults.RPC_ANONYMOUS_CALLS_PER_ADDRESS_PER_S_MAX

    def hold(self, guest: Guest, difference: int) -> bool:
        """Note bytes of incomplete requests, or that they are gone; False when those are too many now."""
        account = guest.node or guest.address
        if account is None:
            return False
        guest.unfinished_bytes += difference
        account.unfinished_bytes += difference
        return difference <= 0 or account.unfinished_bytes <= guest.unfinished_bytes_max


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
