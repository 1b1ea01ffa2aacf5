"""How many clients may be in a TLS handshake, from one address and altogether, and how often they may try.

A client that has not shown a certificate may connect and begin a handshake, nothing else. Handshakes under way are
limited for each address and for all together; when there are too many, the oldest is dropped. New connections that fail
to authenticate are limited per second, for each address and for all together; half of that is reserved for addresses
that have not tried in this second. Addresses from which a client was accepted before are not held up by others.
Each kind of refusal is logged at most once a minute for each address.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import structlog

from swarm import defaults
from swarm.grpc.admission import network_of

log = structlog.get_logger()

_LOGGED_MAX = 1024  # addresses and kinds of refusals for which the time of the last line is kept


class Connection(Protocol):
    """A connection whose handshake is under way."""

    def abort(self) -> None:
        """End it at once."""
        ...


class Admission:
    """One count of handshakes; listeners may share it. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._handshakes: dict[Connection, str] = {}  # under way, with their addresses, the oldest first
        self._second = 0.0
        self._tries: dict[str, int] = {}  # in this second, from each address, without those that were accepted
        self._tries_of_unknown = 0  # the same, from all addresses that are not in _known
        self._known: dict[str, None] = {}  # addresses from which a client was accepted, the latest last
        self._log_again_at: dict[tuple[str, str], float] = {}

    @property
    def handshakes(self) -> int:
        """How many handshakes are under way."""
        return len(self._handshakes)

    def begin(self, connection: Connection, host: str) -> bool:
        """Count a handshake; False when this connection has to be refused."""
        address, now = network_of(host), self._clock()
        if now - self._second >= 1.0:
            self._second, self._tries_of_unknown = now, 0
            self._tries.clear()
        tries = self._tries.get(address, 0)
        unknown = address not in self._known
        most = defaults.API_ANONYMOUS_CONNECTIONS_PER_S_MAX // (2 if tries else 1)
        if (
            unknown and self._tries_of_unknown >= most
        ) or tries >= defaults.API_ANONYMOUS_CONNECTIONS_PER_ADDRESS_PER_S_MAX:
            self._log("api.too_many_handshakes", host, in_this_second=tries)
            return False
        own = [other for other, its in self._handshakes.items() if its == address]
        if len(own) >= defaults.API_HANDSHAKES_PER_ADDRESS_MAX:
            self._drop(own[0])
        elif len(self._handshakes) >= defaults.API_HANDSHAKES_MAX:
            self._drop(next(iter(self._handshakes)))
        self._tries[address] = tries + 1
        self._tries_of_unknown += unknown
        self._handshakes[connection] = address
        return True

    def _drop(self, connection: Connection) -> None:
        del self._handshakes[connection]
        connection.abort()

    def succeeded(self, connection: Connection) -> None:
        """The client was accepted: its address is known from now on."""
        address = self._handshakes.pop(connection)
        self._tries[address] = max(0, self._tries.get(address, 0) - 1)
        if address not in self._known:
            self._tries_of_unknown = max(0, self._tries_of_unknown - 1)
        self._known.pop(address, None)
        self._known[address] = None
        if len(self._known) > defaults.API_KNOWN_ADDRESSES_MAX:
            del self._known[next(iter(self._known))]

    def failed(self, connection: Connection, host: str, reason: str) -> None:
        """The handshake has ended without success, perhaps because it was dropped for another one."""
        dropped = self._handshakes.pop(connection, None) is None
        self._log("api.tls_refused", host, error="too many handshakes" if dropped else reason)

    def _log(self, event: str, host: str, **more: object) -> None:
        now = self._clock()
        if now < self._log_again_at.get((event, host), now):
            return
        if len(self._log_again_at) >= _LOGGED_MAX:
            self._log_again_at.clear()
        self._log_again_at[event, host] = now + defaults.API_REFUSAL_LOG_S
        log.warning(event, peer=host, **more)
