"""Connections to the other members of the Raft group: messages of the log, forwarded calls, health checks.

Each member has its link (peer_link.py). A member whose log lags behind may have to answer a leader that the log has not
told of yet; the address of such a stranger is asked of the managers that are known.

(swarmkit: manager/state/raft/transport)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from certs.errors import CertsError
from certs.tls import ClientTls
from swarm import api, defaults
from swarm.api import raftpb, rpc
from swarm.errors import SwarmError, Unavailable
from swarm.grpc.authorize import forwarding_metadata
from swarm.grpc.peer import peer_of
from swarm.io.grpc import client
from swarm.io.node.peer_link import News, PeerLink, Report
from swarm.manager.events import Forward, ForwardAnswered, ForwardFailed, ForwardMore, ForwardOpened
from swarm.manager.group import dialogues
from swarm.manager.group.locating import Locator
from swarm.raft import events
from swarm.rpc import Peer, Reply, StreamData, StreamEnd

log = structlog.get_logger()

Answer = Reply | StreamData | StreamEnd


class Peers:
    """All other members of the group."""

    def __init__(
        self,
        tls: Callable[[], ClientTls],
        report: Report,
        is_ours: Callable[[int], bool],
        managers: Sequence[str] = (),
        is_superseded: Callable[[Peer], bool] = lambda peer: False,
    ) -> None:
        """report: hears of what was not delivered, and Removed when another member says that we are none any more.

        is_ours: whether a member is known to be a manager of ours. managers: addresses of managers that this node has
        heard of. is_superseded: whether a certificate is an old copy, whose owner is not looked for where it is shown.
        """
        self._is_superseded = is_superseded
        self._tls = tls
        self._dialler = dialler(tls)
        self._is_ours = is_ours
        self._report = report
        self._links: dict[int, PeerLink] = {}
        self._forwarded: dict[int, _Forwarded] = {}  # by tag
        self._uploads: dict[int, client.ClientConnection] = {}  # of client streams
        self._readings: dict[int, client.ClientConnection] = {}  # of logs, by readers of this process
        self._tasks: set[asyncio.Task[None]] = set()
        self._locator = Locator(managers, self._dialler, asyncio.sleep, self._spawn, report)

    def send(
        self, message: raftpb.Message, members: Mapping[int, api.RaftMember], callers: Mapping[int, api.RaftMember]
    ) -> None:
        """Send a message to ``message.to``; while nobody knows where that is, it is lost.

        callers: where others may be that sent messages. Those who were members with them, and could tell, may be gone.
        """
        member = self._locator.member(message.to, members, callers)
        if member is None:
            self._report(events.Unreachable(message.to))
        else:
            self._link(member).send(message)

    def ask_for_us(self, raft_id: int, addresses: Sequence[str]) -> None:
        """See where the others find this member, and whether it is one still."""
        self._locator.ask_for_us(raft_id, addresses)

    def _link(self, member: api.RaftMember) -> PeerLink:
        link = self._links.get(member.raft_id)
        if link is not None and (link.addr, link.node_id) != (member.addr, member.node_id):
            self._spawn(link.close())
            link = None
        if link is None:
            link = self._links[member.raft_id] = PeerLink(member, self._tls, self._hear)
        link.ours = self._is_ours(member.raft_id)
        return link

    def _hear(self, news: News) -> None:
        """What a link tells; a stranger that cannot be reached may have moved since its address was asked for."""
        if isinstance(news, events.Unreachable):
            self._locator.lost(news.raft_id)
        self._report(news)

    def keep_only(self, members: Mapping[int, api.RaftMember]) -> None:
        """Forget the connections to members that are gone, and what was asked about those that are known now."""
        self._locator.keep_unknown(members)
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
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- calls that the leader answers -----------------------------------------------------------------------------

    def forward(self, effect: Forward) -> None:
        """Open a call on the connection to the leader."""
        link = self._link(effect.leader)
        self._forwarded[effect.tag] = forwarded = _Forwarded(effect)
        if (connection := link.open_connection) is not None:
            self._open(forwarded, connection)
        else:
            self._spawn(self._dial(link, forwarded))

    async def _dial(self, link: PeerLink, forwarded: _Forwarded) -> None:
        tag = forwarded.effect.tag
        try:
            connection = await link.connection()
        except (SwarmError, CertsError, OSError, TimeoutError) as error:
            if self._forwarded.pop(tag, None) is not None:
                failure = error if isinstance(error, SwarmError) else Unavailable(str(error))
                self._report(ForwardFailed(tag, failure))
            return
        if tag in self._forwarded:
            self._open(forwarded, connection)

    def _open(self, forwarded: _Forwarded, connection: client.ClientConnection) -> None:
        call, tag = forwarded.effect.call, forwarded.effect.tag
        metadata = () if call.peer.local else forwarding_metadata(call.peer)
        forwarded.connection = connection
        held = call.peer.local and call.method == rpc.SUBSCRIBE_LOGS.name
        listener = partial(self._answered, tag)
        connection.open(call, listener, metadata=metadata, consume_at_once=not held)
        if held:
            self._readings[call.stream] = connection
        if call.request is None:
            self._uploads[call.stream] = connection
            self._report(ForwardOpened(tag))

    def _answered(self, tag: int, answer: Answer) -> None:
        """The leader's answer, or the end of the connection to it."""
        if tag not in self._forwarded:
            return
        if not isinstance(answer, StreamData):
            self._forget(tag)
        self._report(ForwardAnswered(tag, answer))

    def more(self, effect: ForwardMore) -> None:
        """What else the client of a forwarded call sends."""
        forwarded = self._forwarded.get(effect.tag)
        if forwarded is None:
            return
        if isinstance(effect.word, StreamEnd) and effect.word.error is not None:
            self._forget(effect.tag)
        if forwarded.connection is not None:
            forwarded.connection.send(effect.word)

    def _forget(self, tag: int) -> None:
        stream = self._forwarded.pop(tag).effect.call.stream
        self._uploads.pop(stream, None)
        self._readings.pop(stream, None)

    def taken(self, stream: int) -> None:
        """A reader of this process has taken a message that the leader sent: there may be another one."""
        connection = self._readings.get(stream)
        if connection is not None:
            connection.consume_next(stream)

    def waiting_bytes(self, stream: int) -> int:
        """What the leader has not taken yet of a client stream that was passed on to it; 0 for any other call."""
        connection = self._uploads.get(stream)
        return 0 if connection is None else connection.buffered(stream)

    # --- health ----------------------------------------------------------------------------------------------------

    async def check(self, addr: str, node_id: str = "") -> tuple[str, bool]:
        """See dialogues.check. An old copy of the node's certificate is not the node."""
        try:
            async with asyncio.timeout(defaults.RPC_DIAL_TIMEOUT_S):
                return await dialogues.check(addr, node_id, self._dial_current)
        except TimeoutError:
            return "no answer in time", False

    async def _dial_current(self, addr: str, node_id: str, timeout_s: float) -> client.ClientConnection:
        """See dialogues.Dial."""
        connection = await client.connect(addr, replace(self._tls(), node_id=node_id), timeout_s)
        chain = connection.peer_chain_der
        if chain and self._is_superseded(peer_of(chain[0])):
            connection.close()
            raise Unavailable(f"the manager at {addr} has an old copy of its certificate")
        return connection


def dialler(tls: Callable[[], ClientTls]) -> dialogues.Dial:
    """Connections to managers with this node's certificate, as dialogues need them."""

    async def dial(addr: str, node_id: str, timeout_s: float) -> client.ClientConnection:
        return await client.connect(addr, replace(tls(), node_id=node_id), timeout_s)

    return dial


@dataclass(slots=True)
class _Forwarded:
    """connection: None while it is being made."""

    effect: Forward
    connection: client.ClientConnection | None = None
