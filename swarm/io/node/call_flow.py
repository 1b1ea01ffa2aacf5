"""What Backpressure acts on: the calls of a manager's server, those of its own process, and those at the leader."""

from __future__ import annotations

from swarm import defaults
from swarm.io.grpc.server import RpcServer
from swarm.io.node.local_calls import LocalCalls
from swarm.io.node.peers import Peers
from swarm.manager.manager import Manager


class CallFlow:
    """The calls of one manager. manager and peers: set once it has begun."""

    def __init__(self, server: RpcServer, local: LocalCalls) -> None:
        self._server = server
        self._local = local
        self.manager: Manager | None = None
        self.peers: Peers | None = None

    def pause(self, stream: int) -> None:
        """Take nothing more of a client stream."""
        self._server.pause(stream)
        self._local.pause(stream)

    def resume(self, stream: int) -> None:
        """Go on after pause."""
        self._server.resume(stream)
        self._local.resume(stream)

    def taken(self, stream: int) -> None:
        """A reader of this process has taken a message."""
        if self.peers is not None:
            self.peers.taken(stream)

    def waiting_bytes(self, stream: int) -> int:
        """See Backpressure. What waits for a reader of logs counts as RPC_STREAM_FORWARDED_BYTES_MAX when it is enough.

        That is LOG_READER_BYTES or, with many readers in this process, half of what one of them may have.
        """
        if self.manager is None or self.peers is None:
            return 0
        waiting = self.manager.waiting_bytes(stream) + self.peers.waiting_bytes(stream)
        reader = self.manager.reader_of(stream)
        if reader is None:
            return waiting
        unread = self._local.waiting_bytes(reader) + self._server.buffered(reader)
        enough = min(defaults.LOG_READER_BYTES, self._local.fair_share_bytes // 2)
        return waiting + unread * defaults.RPC_STREAM_FORWARDED_BYTES_MAX // enough
