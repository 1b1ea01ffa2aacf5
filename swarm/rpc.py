"""All of gRPC as values: the events of calls between machines and their peers, independent of the transport.

A server receives Call, then StreamData and StreamEnd for what else the client sends, and answers with Reply (unary,
client streams) or StreamData and StreamEnd (server streams). A client uses the same events in the other direction.
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
    manager that forwarded the call, else empty. certificate_error: why the certificate is not valid now, as a text for
    its owner; empty when it is valid. renewable: whether an invalid certificate may still be renewed.
    key: SHA-256 of the certificate's public key. not_before: when the certificate's validity begins, in seconds since
    the epoch. Both are empty (b"", 0) where nobody knows: without a certificate, or when a stock manager forwards the
    call.
    """

    node_id: str = ""
    role: str = ""
    org: str = ""
    addr: str = ""
    local: bool = False
    forwarder: str = ""
    certificate_error: str = ""
    renewable: bool = False
    key: bytes = b""
    not_before: float = 0.0

    @property
    def certified(self) -> bool:
        """Whether a certificate that is valid now proves who it is."""
        return bool(self.node_id) and not self.certificate_error

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
