"""All of gRPC as values: the words in which machines speak with peers, whatever carries them.

A server receives Call, then StreamData and StreamEnd for what else the client sends, and answers with Reply (unary,
client streams) or StreamData and StreamEnd (server streams). A client uses the same words the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message

from swarm.address import host_of
from swarm.errors import SwarmError

MANAGER_ROLE = "swarm-manager"
WORKER_ROLE = "swarm-worker"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a call.

    node_id, role and org come from the certificate (CN, OU, O) and are empty without one. ``local`` marks calls of
    this process itself (its API front, its control socket); they need no certificate. ``forwarder`` is the ID of the
    manager that passed the call on, else empty. lapse: why the certificate does not count at this moment, as a text for
    its owner; empty: it counts. renewable: it may be exchanged for another one all the same.
    """

    node_id: str = ""
    role: str = ""
    org: str = ""
    addr: str = ""
    local: bool = False
    forwarder: str = ""
    lapse: str = ""
    renewable: bool = False

    @property
    def certified(self) -> bool:
        """Whether it proved who it is by a certificate that counts."""
        return bool(self.node_id) and not self.lapse

    @property
    def host(self) -> str:
        """The IP address of ``addr`` without its port."""
        return host_of(self.addr)


LOCAL = Peer(local=True, role=MANAGER_ROLE)


@dataclass(frozen=True, slots=True)
class Call:
    """Opening of a call. ``method`` is "Service/Method"; request is None for client streams.

    since: when the caller began to wait, in seconds since the epoch; None: just now.
    """

    stream: int
    method: str
    request: Message | None
    peer: Peer = LOCAL
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The single answer of a unary or client-stream call; ends it."""

    stream: int
    message: Message


@dataclass(frozen=True, slots=True)
class StreamData:
    """One message of a stream, in either direction."""

    stream: int
    message: Message


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """End of a call: from a client half-close or cancel, from a server the status (None is OK)."""

    stream: int
    error: SwarmError | None = None
