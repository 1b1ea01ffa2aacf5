"""The connection to one other member of the Raft group, and the messages that go over it.

Messages may be lost, so there is a short queue and the newest wins; what cannot be delivered is reported to the core as
Unreachable. A snapshot goes out in pieces. Each message is a call of its own, as stock managers want it; a manager of
ours takes a flow of them as well, one call for as long as the connection lives, at a third of the cost. Once a second a
message goes by itself all the same: its answer says that there is still somebody who takes messages, and how far away.

(swarmkit: manager/state/raft/transport/peer.go)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import structlog

from certs.errors import CertsError
from certs.tls import ClientTls
from swarm import api, defaults
from swarm.api import extensions, raftpb, rpc
from swarm.errors import SwarmError, Unavailable
from swarm.io.grpc import client
from swarm.manager.events import ForwardAnswered, ForwardFailed, ForwardOpened, FoundAt, PeerAnswered
from swarm.manager.group.locating import undelivered
from swarm.manager.group.members import REMOVED_TEXT
from swarm.raft import events
from swarm.rpc import Call, Reply, StreamData, StreamEnd

log = structlog.get_logger()

News = (
    events.Unreachable
    | events.Gone
    | events.SnapshotSent
    | events.Removed
    | PeerAnswered
    | FoundAt
    | ForwardOpened
    | ForwardFailed
    | ForwardAnswered
)
Report = Callable[[News], None]

_FLOW = 0  # the number of the flow's call: forwarded calls have numbers from 1 on
_LOOKS = 10
_LOOK_PAUSE_S = 0.05


class PeerLink:
    """One member: its connection is made when there is something to send. ours: it takes a flow of messages.

    Another node than ``member`` names, if it does, is not talked to: the address may be somebody else's by now.
    """

    def __init__(self, member: api.RaftMember, tls: Callable[[], ClientTls], report: Report) -> None:
        raft_id, self.addr, self.node_id = member.raft_id, member.addr, member.node_id
        self.ours = False
        self._raft_id = raft_id
        self._tls = tls
        self._report = report
        self._connection: client.ClientConnection | None = None
        self._queue: deque[raftpb.Message] = deque(maxlen=defaults.RAFT_PEER_QUEUE_MESSAGES_MAX)
        self._wake = asyncio.Event()
        self._dialing: asyncio.Task[client.ClientConnection] | None = None
        self._look: asyncio.Task[None] | None = None
        self._failing = False
        self._flow: client.ClientConnection | None = None
        self._checked_at = 0.0
        self._task = asyncio.create_task(self._run(), name=f"peer-{raft_id:x}")

    def send(self, message: raftpb.Message) -> None:
        """Let a message go, or queue it; when the queue is full the oldest is lost."""
        if not self._flows(message):
            self._queue.append(message)
            self._wake.set()

    # --- the flow of messages to a manager of ours ------------------------------------------------------------------

    def _flows(self, message: raftpb.Message) -> bool:
        """Send a message down the flow, if there is one and it may take it."""
        flow, now = self._flow, asyncio.get_running_loop().time()
        if flow is None or self._queue or message.type == raftpb.MsgSnap:
            return False
        if now - self._checked_at >= defaults.RAFT_FLOW_CHECK_S:
            self._checked_at = now
            return False  # a call of its own, whose answer says that somebody is there who takes messages
        if flow.buffered(_FLOW) > defaults.RAFT_FLOW_BYTES_MAX:
            self._report(events.Unreachable(self._raft_id))
        else:
            flow.send(StreamData(_FLOW, api.StreamRaftMessageRequest(message=message)))
        return True

    def _open_flow(self, connection: client.ClientConnection) -> None:
        if self._flow is not connection and self.ours and not connection.closed.done():
            self._flow = connection
            connection.open(Call(_FLOW, rpc.STREAM_RAFT_MESSAGE.name, None), self._flow_over)
            connection.send(
                StreamData(_FLOW, extensions.with_extension(api.StreamRaftMessageRequest(), extensions.FLOW))
            )

    def _flow_over(self, answer: Reply | StreamData | StreamEnd) -> None:
        self._flow = None
        error = answer.error if isinstance(answer, StreamEnd) else None
        if self._connection is not None or error is None or error.message == REMOVED_TEXT:
            self._failed(None, error or Unavailable("the peer ended the flow of messages"))
        else:
            self._report(events.Unreachable(self._raft_id))

    # --- the connection --------------------------------------------------------------------------------------------

    @property
    def open_connection(self) -> client.ClientConnection | None:
        """The connection, if there is one that takes calls."""
        current = self._connection
        return None if current is None or current.closed.done() or current.draining else current

    async def connection(self) -> client.ClientConnection:
        """An open connection; who asks while it is being made shares its fate. Raises SwarmError."""
        if (current := self.open_connection) is not None:
            return current
        if self._dialing is None or self._dialing.done():
            self._dialing = asyncio.create_task(self._dial(), name=f"dial-{self._raft_id:x}")
            self._dialing.add_done_callback(_heed)
        return await asyncio.shield(self._dialing)

    async def _dial(self) -> client.ClientConnection:
        """Raises Unavailable."""
        tls, silence_s = replace(self._tls(), node_id=self.node_id), defaults.RAFT_SILENCE_S
        connection = await client.connect(self.addr, tls, defaults.RAFT_DIAL_TIMEOUT_S, silence_s=silence_s)
        self._connection = connection
        connection.closed.add_done_callback(lambda _: self._lost(connection))
        return connection

    def _lost(self, connection: client.ClientConnection) -> None:
        """A connection ended; when it was not our doing, see whether the process at the other end is gone."""
        if self._connection is connection and not self._task.done():
            self._connection = None
            self._look = asyncio.create_task(self._look_again(), name=f"look-{self._raft_id:x}")

    async def _look_again(self) -> None:
        for _ in range(_LOOKS):
            try:
                await self.connection()
                return
            except SwarmError as error:
                if isinstance(error.__cause__, ConnectionRefusedError):
                    self._report(events.Gone(self._raft_id))
                    return
            await asyncio.sleep(_LOOK_PAUSE_S)  # a dying process may accept, and reset, once more

    async def close(self) -> None:
        """Drop the connection and what is queued."""
        tasks = [task for task in (self._task, self._dialing, self._look) if task is not None]
        for task in tasks:
            task.cancel()
        self.drop_connection()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drop_connection(self) -> None:
        """Use the next certificate: the next message dials anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _run(self) -> None:
        inflight: set[asyncio.Task[None]] = set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                message = self._queue.popleft()
                try:
                    connection = await self.connection()
                except (SwarmError, CertsError, OSError, TimeoutError) as error:
                    self._failed(message, error)
                    self._queue.clear()
                    continue
                # order matters to the log's speed, not to its safety: calls go out in order and overlap
                task = asyncio.create_task(self._deliver(connection, message))
                inflight.add(task)
                task.add_done_callback(inflight.discard)
                if len(inflight) >= defaults.RAFT_PEER_CALLS_MAX:
                    await asyncio.wait(inflight, return_when=asyncio.FIRST_COMPLETED)

    async def _deliver(self, connection: client.ClientConnection, message: raftpb.Message) -> None:
        try:
            if message.type == raftpb.MsgSnap:
                await connection.client_stream(rpc.STREAM_RAFT_MESSAGE, _pieces(message))
                self._report(events.SnapshotSent(self._raft_id, ok=True))
            else:
                request = api.ProcessRaftMessageRequest(message=message)
                began = asyncio.get_running_loop().time()
                await connection.unary(rpc.PROCESS_RAFT_MESSAGE, request, timeout_s=defaults.RAFT_SEND_TIMEOUT_S)
                if self.ours:
                    self._report(PeerAnswered(self._raft_id, asyncio.get_running_loop().time() - began))
            self._open_flow(connection)
            if self._failing:
                self._failing = False
                log.info("raft.peer_back", peer=f"{self._raft_id:x}", addr=self.addr)
        except (SwarmError, OSError, TimeoutError) as error:
            self._failed(message, error)

    def _failed(self, message: raftpb.Message | None, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            log.info("raft.peer_lost", peer=f"{self._raft_id:x}", addr=self.addr, error=str(error))
        if message is not None and message.type == raftpb.MsgSnap:
            self._report(events.SnapshotSent(self._raft_id, ok=False))
        self._report(undelivered(self._raft_id, error))


async def _pieces(message: raftpb.Message) -> AsyncIterator[api.StreamRaftMessageRequest]:
    """The message once for each piece of its snapshot (WIRE: chunks of at most 4 MiB)."""
    data = message.snapshot.data
    size = defaults.RAFT_SNAPSHOT_CHUNK_BYTES
    for start in range(0, max(len(data), 1), size):
        piece = raftpb.Message()
        piece.CopyFrom(message)
        piece.snapshot.data = data[start : start + size]
        yield api.StreamRaftMessageRequest(message=piece)


def _heed(task: asyncio.Task[client.ClientConnection]) -> None:
    """Nobody may be waiting for a dial any more when it fails; that is no mistake."""
    if not task.cancelled():
        task.exception()
