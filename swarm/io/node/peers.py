"""Connections to the other members of the Raft group: messages of the log, forwarded calls, health checks.

Each member has its link (peer_link.py). A member whose log lags behind may have to answer a leader that the log has not
told of yet; the address of such a stranger is asked of the managers that are known.

(swarmkit: manager/state/raft/transport)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from certs.errors import CertsError
from certs.tls import ClientTls
from swarm import api, defaults
from swarm.api import extensions, raftpb
from swarm.errors import Code, NotTaken, SwarmError, Unavailable
from swarm.grpc.authorize import forwarding_metadata
from swarm.io.grpc import client
from swarm.io.node.peer_link import News, PeerLink, Report
from swarm.manager.events import Forward, FoundAt
from swarm.manager.group.health import is_ours
from swarm.manager.group.members import REMOVED_TEXT
from swarm.raft import events
from swarm.rpc import Call, Reply, StreamData, StreamEnd

log = structlog.get_logger()

Answer = Reply | StreamData | StreamEnd


class Peers:
    """All other members of the group."""

    def __init__(
        self,
        tls: Callable[[], ClientTls],
        report: Report,
        reads: Container[str],
        is_ours: Callable[[int], bool],
        managers: Sequence[str] = (),
    ) -> None:
        """report: hears of what was not delivered, and Removed when another member says that we are none any more.

        reads: names of the calls that change nothing, so that another leader may be asked again. is_ours: whether
        a member is known to be a manager of ours. managers: addresses of managers that this node has heard of.
        """
        self._tls = tls
        self._is_ours = is_ours
        self._managers = managers
        self._strangers: dict[int, api.RaftMember] = {}
        self._searches: dict[int, asyncio.Task[None]] = {}
        self._report = report
        self._reads = reads
        self._leaderless: asyncio.TimerHandle | None = None
        self._again: dict[int, asyncio.TimerHandle] = {}
        self._links: dict[int, PeerLink] = {}
        self._forwarded: dict[int, _Forwarded] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self, message: raftpb.Message, members: Mapping[int, api.RaftMember], callers: Mapping[int, api.RaftMember]
    ) -> None:
        """Send a message to ``message.to``; while nobody knows where that is, it is lost.

        callers: where others may be that sent messages. Those who were members with them, and could tell, may be gone.
        """
        member = members.get(message.to) or self._strangers.get(message.to)
        if member is None:
            self._search(message.to, [member.addr for member in members.values()])
            member = callers.get(message.to)
        if member is None:
            self._report(events.Unreachable(message.to))
        else:
            self._link(member).send(message)

    def ask_for_us(self, raft_id: int, addresses: Sequence[str]) -> None:
        """See where the others find this member, and whether it is one still.

        Who was removed before it had a log hears of that in no other way.
        """
        self._search(raft_id, addresses, ours=True)

    def _search(self, raft_id: int, addresses: Sequence[str], ours: bool = False) -> None:
        """Ask for the address of a member that the log has not told of, at most once at a time."""
        if raft_id not in self._searches:
            task = asyncio.create_task(self._resolve(raft_id, dict.fromkeys([*addresses, *self._managers]), ours))
            self._searches[raft_id] = task
            task.add_done_callback(lambda _: self._searches.pop(raft_id, None))

    async def _resolve(self, raft_id: int, addresses: dict[str, None], ours: bool) -> None:
        request = api.ResolveAddressRequest(raft_id=raft_id)
        for addr in addresses:
            try:
                connection = await client.connect(addr, self._tls(), defaults.RAFT_DIAL_TIMEOUT_S)
                try:
                    timeout_s = defaults.RAFT_SEND_TIMEOUT_S
                    answer = await connection.unary("Raft/ResolveAddress", request, timeout_s=timeout_s)
                finally:
                    connection.close()
            except (SwarmError, CertsError, OSError, TimeoutError) as error:
                log.debug("raft.not_resolved", peer=f"{raft_id:x}", addr=addr, error=str(error))
                if ours and isinstance(error, SwarmError) and error.message == REMOVED_TEXT:
                    self._report(events.Removed())
                    return
                continue
            assert isinstance(answer, api.ResolveAddressResponse)
            if ours:
                self._report(FoundAt(answer.addr, extensions.has_mark(answer, extensions.MOVED)))
                return
            if answer.addr:
                log.info("raft.peer_resolved", peer=f"{raft_id:x}", addr=answer.addr)
                self._strangers[raft_id] = api.RaftMember(raft_id=raft_id, addr=answer.addr)
                break
        await asyncio.sleep(defaults.PEER_CHECK_SOON_S)

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
            self._strangers.pop(news.raft_id, None)
        self._report(news)

    def keep_only(self, members: dict[int, api.RaftMember]) -> None:
        """Forget the connections to members that are gone, and what was asked about those that are known now."""
        self._strangers = {key: found for key, found in self._strangers.items() if key not in members}
        for raft_id in [raft_id for raft_id in self._links if raft_id not in members]:
            self._spawn(self._links.pop(raft_id).close())

    def renew_connections(self) -> None:
        """This node has a new certificate."""
        for link in self._links.values():
            link.drop_connection()

    async def close(self) -> None:
        """Drop everything."""
        for timer in (*self._again.values(), *((self._leaderless,) if self._leaderless else ())):
            timer.cancel()
        for link in list(self._links.values()):
            await link.close()
        tasks = [*self._tasks, *self._searches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- calls that the leader answers -----------------------------------------------------------------------------

    def forward(self, effect: Forward, deliver: Callable[[Answer], None], again: Callable[[Call], None]) -> None:
        """Give a call to the leader and its answers to ``deliver``.

        again: takes a call back that may go to another leader: this one certainly did not take it (it could not be
        reached, or leads no more), or the call changes nothing.
        """
        call = effect.call
        forwarded = _Forwarded(call, effect.leader.raft_id, deliver, again)
        self._forwarded[call.stream] = forwarded
        link = self._link(effect.leader)
        if (connection := link.open_connection) is not None:
            self._begin(forwarded, connection)
        else:
            self._spawn(self._forward(link, forwarded))

    async def _forward(self, link: PeerLink, forwarded: _Forwarded) -> None:
        call = forwarded.call
        try:
            connection = await link.connection()
        except (CertsError, OSError, TimeoutError, Unavailable):
            if self._forwarded.pop(call.stream, None) is not None:
                self._retry(forwarded)
            return
        except SwarmError as error:
            self._answered(forwarded, StreamEnd(call.stream, error))
            return
        if self._forwarded.get(call.stream) is forwarded:
            self._begin(forwarded, connection)

    def _begin(self, forwarded: _Forwarded, connection: client.ClientConnection) -> None:
        call = forwarded.call
        metadata = () if call.peer.local else forwarding_metadata(call.peer)
        connection.open(call, lambda answer: self._answered(forwarded, answer), metadata=metadata)
        forwarded.connection = connection
        for word in forwarded.early:
            connection.send(word)
        forwarded.early.clear()

    def _answered(self, forwarded: _Forwarded, answer: Answer) -> None:
        """The leader's answer, or the end of the connection to it."""
        call = forwarded.call
        if self._forwarded.get(call.stream) is not forwarded:
            return
        if isinstance(answer, StreamData):
            forwarded.deliver(answer)
            return
        del self._forwarded[call.stream]
        error = answer.error if isinstance(answer, StreamEnd) else None
        if _not_taken(error) or (isinstance(error, Unavailable) and call.method in self._reads):
            self._retry(forwarded)
        else:
            forwarded.deliver(answer)

    def _retry(self, forwarded: _Forwarded) -> None:
        """Hand a call back in a moment."""
        stream = forwarded.call.stream

        def again() -> None:
            del self._again[stream]
            forwarded.again(forwarded.call)

        self._again[stream] = asyncio.get_running_loop().call_later(defaults.FORWARD_RETRY_S, again)

    def leader_is(self, raft_id: int) -> None:
        """This member leads now (0: nobody is known to). Who waits for the answer of another one waits in vain."""
        if self._leaderless is not None:
            self._leaderless.cancel()
            self._leaderless = None
        if raft_id:
            self._abandon(raft_id)
        else:
            loop = asyncio.get_running_loop()
            self._leaderless = loop.call_later(defaults.LEADER_GONE_S, self._abandon, 0)

    def _abandon(self, leader: int) -> None:
        """End the calls that went to any other member."""
        text = "the leader of the swarm was lost before it answered; the request may have been carried out"
        for forwarded in [item for item in self._forwarded.values() if item.leader != leader]:
            call = forwarded.call
            error = Unavailable(text)
            if forwarded.connection is not None:
                forwarded.connection.send(StreamEnd(call.stream, error))
            self._answered(forwarded, StreamEnd(call.stream, error))

    def more(self, word: StreamData | StreamEnd) -> bool:
        """What else the caller sends; False when the call is not one that was forwarded."""
        if isinstance(word, StreamEnd) and (timer := self._again.pop(word.stream, None)) is not None:
            timer.cancel()
            return True
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

    def waiting_bytes(self, stream: int) -> int:
        """What the leader has not taken yet of a call that was passed on to it; 0 for any other call."""
        forwarded = self._forwarded.get(stream)
        if forwarded is None:
            return 0
        if forwarded.connection is None:
            return sum(word.message.ByteSize() for word in forwarded.early if isinstance(word, StreamData))
        return forwarded.connection.buffered(stream)

    # --- health ----------------------------------------------------------------------------------------------------

    async def check(self, addr: str, node_id: str = "") -> tuple[str, bool]:
        """("" or why no manager serves at ``addr``, whether it is one of ours) (swarmkit: raft.go checkHealth).

        node_id: of the only node that counts; empty: any manager of the cluster does.
        """
        tls = replace(self._tls(), node_id=node_id)
        try:
            async with asyncio.timeout(defaults.RPC_DIAL_TIMEOUT_S):
                connection = await client.connect(addr, tls, defaults.RPC_DIAL_TIMEOUT_S)
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

    def __init__(
        self, call: Call, leader: int, deliver: Callable[[Answer], None], again: Callable[[Call], None]
    ) -> None:
        self.call = call
        self.leader = leader
        self.deliver = deliver
        self.again = again
        self.connection: client.ClientConnection | None = None
        self.early: list[StreamData | StreamEnd] = []


def _not_taken(error: SwarmError | None) -> bool:
    """Whether the other manager says that it did nothing, since it does not lead."""
    return error is not None and error.code == Code.FAILED_PRECONDITION and error.message == NotTaken().message
