"""Connections to the other members of the Raft group: messages of the log, forwarded calls, health checks.

Messages may be lost, so each member has a short queue and the newest wins; what cannot be delivered is reported to the
core as Unreachable. A snapshot goes out in pieces.

(swarmkit: manager/state/raft/transport)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import structlog
from google.protobuf.message import Message

from certs.errors import CertsError
from certs.tls import ClientTls
from swarm import api, defaults
from swarm.api import raftpb
from swarm.errors import Code, NotTaken, SwarmError, Unavailable
from swarm.io import rpc_client
from swarm.io.authorize import forwarding_metadata
from swarm.manager.group import REMOVED_TEXT
from swarm.manager.health import is_ours
from swarm.manager.words import Forward
from swarm.raft import words
from swarm.rpc import Call, Reply, StreamData, StreamEnd

log = structlog.get_logger()

Report = Callable[[words.Unreachable | words.SnapshotSent | words.Removed], None]
Answer = Reply | StreamData | StreamEnd


class PeerLink:
    """One member: its connection is made when there is something to send."""

    def __init__(self, raft_id: int, addr: str, tls: Callable[[], ClientTls], report: Report) -> None:
        self.addr = addr
        self._raft_id = raft_id
        self._tls = tls
        self._report = report
        self._connection: rpc_client.Connection | None = None
        self._queue: deque[raftpb.Message] = deque(maxlen=defaults.RAFT_PEER_QUEUE_MESSAGES_MAX)
        self._wake = asyncio.Event()
        self._dialing = asyncio.Lock()
        self._task = asyncio.create_task(self._run(), name=f"peer-{raft_id:x}")

    def send(self, message: raftpb.Message) -> None:
        """Queue a message; when the queue is full the oldest is lost."""
        self._queue.append(message)
        self._wake.set()

    async def connection(self) -> rpc_client.Connection:
        """An open connection. Raises SwarmError, CertsError or OSError."""
        async with self._dialing:
            current = self._connection
            if current is None or current.closed.done() or current.draining:
                self._connection = await rpc_client.connect(self.addr, self._tls(), defaults.RAFT_DIAL_TIMEOUT_S)
            assert self._connection is not None
            return self._connection

    async def close(self) -> None:
        """Drop the connection and what is queued."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()

    def drop_connection(self) -> None:
        """Use the next certificate: the next message dials anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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

    async def _deliver(self, connection: rpc_client.Connection, message: raftpb.Message) -> None:
        try:
            if message.type == raftpb.MsgSnap:
                await connection.client_stream("Raft/StreamRaftMessage", _pieces(message))
                self._report(words.SnapshotSent(self._raft_id, ok=True))
            else:
                request = api.ProcessRaftMessageRequest(message=message)
                await connection.unary("Raft/ProcessRaftMessage", request, timeout_s=defaults.RAFT_SEND_TIMEOUT_S)
        except (SwarmError, OSError, TimeoutError) as error:
            self._failed(message, error)

    def _failed(self, message: raftpb.Message, error: Exception) -> None:
        log.debug("raft.not_sent", to=f"{self._raft_id:x}", addr=self.addr, error=str(error))
        if message.type == raftpb.MsgSnap:
            self._report(words.SnapshotSent(self._raft_id, ok=False))
        if isinstance(error, SwarmError) and error.message == REMOVED_TEXT:
            self._report(words.Removed())
            return
        self._report(words.Unreachable(self._raft_id))


async def _pieces(message: raftpb.Message) -> AsyncIterator[Message]:
    """The message once for each piece of its snapshot (WIRE: chunks of at most 4 MiB)."""
    data = message.snapshot.data
    size = defaults.RAFT_SNAPSHOT_PIECE_BYTES
    for start in range(0, max(len(data), 1), size):
        piece = raftpb.Message()
        piece.CopyFrom(message)
        piece.snapshot.data = data[start : start + size]
        yield api.StreamRaftMessageRequest(message=piece)


class Peers:
    """All other members of the group."""

    def __init__(self, tls: Callable[[], ClientTls], report: Report) -> None:
        """report: hears of what was not delivered, and Removed when another member says that we are none any more."""
        self._tls = tls
        self._report = report
        self._links: dict[int, PeerLink] = {}
        self._forwarded: dict[int, _Forwarded] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: raftpb.Message, members: dict[int, api.RaftMember]) -> None:
        """Send a message to ``message.to``; a member nobody knows is not reached."""
        member = members.get(message.to)
        if member is None:
            self._report(words.Unreachable(message.to))
            return
        self._link(member).send(message)

    def _link(self, member: api.RaftMember) -> PeerLink:
        link = self._links.get(member.raft_id)
        if link is not None and link.addr != member.addr:
            self._spawn(link.close())
            link = None
        if link is None:
            link = self._links[member.raft_id] = PeerLink(member.raft_id, member.addr, self._tls, self._report)
        return link

    def keep_only(self, members: dict[int, api.RaftMember]) -> None:
        """Forget the connections to members that are gone."""
        for raft_id in [raft_id for raft_id in self._links if raft_id not in members]:
            self._spawn(self._links.pop(raft_id).close())

    def renew_connections(self) -> None:
        """This node has a new certificate."""
        for link in self._links.values():
            link.drop_connection()

    async def close(self) -> None:
        """Drop everything."""
        for link in list(self._links.values()):
            await link.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- calls that the leader answers -----------------------------------------------------------------------------

    def forward(self, effect: Forward, deliver: Callable[[Answer], None], again: Callable[[Call], None]) -> None:
        """Give a call to the leader and its answers to ``deliver``.

        again: takes a call back that the leader certainly did not take: it could not be reached, or leads no more.
        """
        call = effect.call
        forwarded = _Forwarded()
        self._forwarded[call.stream] = forwarded

        def listen(answer: Answer) -> None:
            if isinstance(answer, StreamData):
                deliver(answer)
                return
            self._forwarded.pop(call.stream, None)
            if isinstance(answer, StreamEnd) and _not_taken(answer.error):
                asyncio.get_running_loop().call_later(defaults.FORWARD_RETRY_S, again, call)
            else:
                deliver(answer)

        self._spawn(self._forward(effect, forwarded, listen, again))

    async def _forward(
        self, effect: Forward, forwarded: _Forwarded, listen: Callable[[Answer], None], again: Callable[[Call], None]
    ) -> None:
        call = effect.call
        try:
            metadata = () if call.peer.local else forwarding_metadata(call.peer)
            connection = await self._link(effect.leader).connection()
        except (CertsError, OSError, TimeoutError, Unavailable):
            if self._forwarded.pop(call.stream, None) is not None:
                asyncio.get_running_loop().call_later(defaults.FORWARD_RETRY_S, again, call)
            return
        except SwarmError as error:
            listen(StreamEnd(call.stream, error))
            return
        if call.stream not in self._forwarded:
            return
        connection.open(call, listen, metadata=metadata)
        forwarded.connection = connection
        for word in forwarded.early:
            connection.send(word)
        forwarded.early.clear()

    def more(self, word: StreamData | StreamEnd) -> bool:
        """What else the caller sends; False when the call is not one that was forwarded."""
        forwarded = self._forwarded.get(word.stream)
        if forwarded is None:
            return False
        if isinstance(word, StreamEnd) and word.error is not None:
            del self._forwarded[word.stream]
        if forwarded.connection is None:
            forwarded.early.append(word)
        else:
            forwarded.connection.send(word)
        return True

    # --- health ----------------------------------------------------------------------------------------------------

    async def check(self, addr: str) -> tuple[str, bool]:
        """("" or why no manager serves at ``addr``, whether it is one of ours) (swarmkit: raft.go checkHealth)."""
        try:
            async with asyncio.timeout(defaults.RPC_DIAL_TIMEOUT_S):
                connection = await rpc_client.connect(addr, self._tls(), defaults.RPC_DIAL_TIMEOUT_S)
                try:
                    answer = await connection.unary("Health/Check", api.HealthCheckRequest(service="Raft"))
                finally:
                    connection.close()
        except (SwarmError, CertsError, OSError, TimeoutError) as error:
            return str(error) or "no answer in time", False
        assert isinstance(answer, api.HealthCheckResponse)
        if answer.status != api.HealthCheckResponse.SERVING:
            return "it does not serve", False
        return "", is_ours(answer)


class _Forwarded:
    """One forwarded call; what comes before its connection is open waits."""

    def __init__(self) -> None:
        self.connection: rpc_client.Connection | None = None
        self.early: list[StreamData | StreamEnd] = []


def _not_taken(error: SwarmError | None) -> bool:
    """Whether the other manager says that it did nothing, since it does not lead."""
    return error is not None and error.code == Code.FAILED_PRECONDITION and error.message == NotTaken().message
