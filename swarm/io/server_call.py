"""One call to our gRPC server, and what each kind of client may cost."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from swarm import defaults
from swarm.api.methods import Method
from swarm.io.grpc_wire import MessageReader
from swarm.io.http2_flow import Limits, Stream
from swarm.rpc import Peer

if TYPE_CHECKING:
    from swarm.io.rpc_connection import ServerConnection

ANONYMOUS_LIMITS = Limits(
    streams_max=defaults.RPC_STREAMS_ANONYMOUS_MAX, message_bytes_max=defaults.RPC_MESSAGE_ANONYMOUS_BYTES_MAX
)
WORKER_LIMITS = Limits(streams_max=defaults.RPC_STREAMS_WORKER_MAX)
MANAGER_LIMITS = Limits(
    streams_max=defaults.RPC_STREAMS_MANAGER_MAX,
    stream_window_bytes=defaults.RPC_MANAGER_STREAM_WINDOW_BYTES,
    resets_per_s_max=defaults.RPC_RESETS_MANAGER_PER_S_MAX,
    control_frames_per_s_max=defaults.RPC_RESETS_MANAGER_PER_S_MAX,
)


class ServerCall:
    """One call. ``stream`` is its number in swarm/rpc.py's words, ``h2`` its HTTP/2 stream."""

    __slots__ = (
        "answered",
        "connection",
        "end_told",
        "h2",
        "half_closed",
        "method",
        "opened_at",
        "paused",
        "peer",
        "reader",
        "ready",
        "started",
        "stream",
        "taking",
        "timeout_s",
        "timer",
        "unfinished_bytes",
    )

    def __init__(
        self, connection: ServerConnection, h2: Stream, stream: int, method: Method, peer: Peer, now: float
    ) -> None:
        self.connection = connection
        self.h2 = h2
        self.stream = stream
        self.method = method
        self.peer = peer
        self.opened_at = now
        self.reader = MessageReader(connection.limits.message_bytes_max)
        self.timeout_s: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.started = False  # the handler knows of it
        self.answered = False  # the response's headers are sent
        self.half_closed = False
        self.end_told = not method.client_streaming  # of others the one message tells it
        self.paused = False
        self.ready: deque[bytes] = deque()  # messages that are complete, and go to the handler next
        self.taking = False  # they are being delivered
        self.unfinished_bytes = 0  # of its request, that wait for the rest or for resume
