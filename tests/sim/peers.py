"""What swarm/io/node/peers.py does, on the simulated network: messages of the log, forwarded calls, health checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from swarm import api, defaults
from swarm.api import raftpb
from swarm.errors import SwarmError
from swarm.grpc.authorize import forwarding_metadata
from swarm.manager.events import (
    Forward,
    ForwardAnswered,
    ForwardFailed,
    ForwardMore,
    ForwardOpened,
    FoundAt,
    PeerAnswered,
)
from swarm.manager.group import dialogues
from swarm.manager.group.locating import Locator, undelivered
from swarm.raft import events
from swarm.rpc import Call, StreamData, StreamEnd
from tests.sim.kernel import Future, Kernel, Runnable, Scope, Script
from tests.sim.network import REFUSED, Answer, Connection, Listener, Network, settle

if TYPE_CHECKING:
    from tests.sim.manager_driver import ManagerDriver
    from tests.sim.process import Process

PIECE_BYTES = 3000

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


class Peers:
    """See swarm.io.node.peers.Peers."""

    def __init__(self, owner: ManagerDriver, report: Report, managers: Sequence[str]) -> None:
        self._owner = owner
        self._process = owner.process
        self._kernel: Kernel = owner.process.kernel
        self._network: Network = owner.process.world.network
        self._report = report
        self._scope = Scope()
        self._links: dict[tuple[str, str], Connection] = {}
        self._locator = Locator(managers, self.dial, self._kernel.sleep, self.run, report)
        self._forwarded: dict[int, Connection | None] = {}  # by tag; None: it is being connected
        self._streams = itertools.count(1 << 40)
        self._measured: dict[int, float] = {}  # when the round trip to a member was measured last

    def run(self, script: Runnable) -> Future:
        """A script that ends with these."""
        return self._scope.run(script)

    def close(self) -> None:
        """Drop everything."""
        for connection in self._links.values():
            connection.close()
        self.die()

    def die(self) -> None:
        """The process is gone."""
        self._scope.close()

    # --- messages of the log -----------------------------------------------------------------------------------------

    def send(
        self, message: raftpb.Message, members: Mapping[int, api.RaftMember], callers: Mapping[int, api.RaftMember]
    ) -> None:
        """See Peers.send; the link keeps no promises."""
        member = self._locator.member(message.to, members, callers)
        if member is None:
            self._report(events.Unreachable(message.to))
        elif message.type == raftpb.MsgSnap:
            self.run(self._send_snapshot(message, member))
        else:
            wire = message.SerializeToString()
            caller = self._network.seen(self._process)

            def arrive(server: ManagerDriver, listener: Listener) -> None:
                server.raft_message(raftpb.Message.FromString(wire), caller, listener)

            began = self._kernel.now
            limit_s = defaults.RAFT_SEND_TIMEOUT_S
            future = self._network.message(self._process, member.addr, limit_s, arrive, member.node_id)
            future.then(lambda: self._sent(message, future.error, began))

    def _sent(self, message: raftpb.Message, error: Exception | None, began: float) -> None:
        if self._scope.closed:
            return
        if error is None:
            if self._owner.is_ours(message.to) and began >= self._measured.get(message.to, 0.0) + 1.0:
                self._measured[message.to] = began
                self._report(PeerAnswered(message.to, self._kernel.now - began))
            return
        self._locator.lost(message.to)
        if isinstance(error, SwarmError) and error.message.startswith(REFUSED):
            self._report(events.Gone(message.to))
        else:
            self._report(undelivered(message.to, error))

    def _send_snapshot(self, message: raftpb.Message, member: api.RaftMember) -> Script:
        try:
            connection = yield from self._link(member)
            future, stream = Future(), next(self._streams)
            connection.open(Call(stream, "Raft/StreamRaftMessage", None), lambda answer: settle(future, answer))
            data = message.snapshot.data
            for start in range(0, max(len(data), 1), PIECE_BYTES):
                piece = raftpb.Message()
                piece.CopyFrom(message)
                piece.snapshot.data = data[start : start + PIECE_BYTES]
                connection.send(StreamData(stream, api.StreamRaftMessageRequest(message=piece)))
            connection.send(StreamEnd(stream))
            yield future
        except SwarmError as error:
            self._report(events.SnapshotSent(member.raft_id, ok=False))
            self._sent(message, error, self._kernel.now)
            return
        self._report(events.SnapshotSent(member.raft_id, ok=True))

    def ask_for_us(self, raft_id: int, addresses: Sequence[str]) -> None:
        """See Locator."""
        self._locator.ask_for_us(raft_id, addresses)

    async def dial(self, addr: str, node_id: str, timeout_s: float) -> Connection:
        """See dialogues.Dial."""
        return await dial(self._network, self._process, addr, node_id, timeout_s)

    def keep_only(self, members: Mapping[int, api.RaftMember]) -> None:
        """See Peers.keep_only."""
        self._locator.keep_unknown(members)
        known = {(member.addr, member.node_id): None for member in members.values()}
        for key in [key for key in self._links if key not in known]:
            self._links.pop(key).close()

    def _link(self, member: api.RaftMember) -> Script:
        key = member.addr, member.node_id
        link = self._links.get(key)
        if link is None or link.closed.done:
            limit_s = defaults.RAFT_DIAL_TIMEOUT_S
            link = yield self._network.dial(self._process, member.addr, limit_s, member.node_id)
            self._links[key] = link
        return link

    async def check(self, addr: str, node_id: str = "") -> tuple[str, bool]:
        """See Peers.check. Stock managers are taken for such, and take nobody for one of ours."""
        error, ours = await dialogues.check(addr, node_id, self.dial)
        server = self._network.listeners.get(addr)
        stock = self._process.node.stock or (server is not None and server.process.node.stock)
        return error, ours and not stock

    # --- calls that the leader answers -------------------------------------------------------------------------------

    def forward(self, effect: Forward) -> None:
        """See Peers.forward."""
        self._forwarded[effect.tag] = None
        self.run(self._forward(effect))

    def _forward(self, effect: Forward) -> Script:
        call, tag = effect.call, effect.tag
        try:
            connection: Connection = yield from self._link(effect.leader)
        except SwarmError as error:
            if tag in self._forwarded:
                del self._forwarded[tag]
                self._report(ForwardFailed(tag, error))
            return
        if tag in self._forwarded:
            self._forwarded[tag] = connection
            metadata = () if call.peer.local else forwarding_metadata(call.peer)
            connection.open(call, lambda answer: self._answered(tag, answer), metadata)
            if call.request is None:
                self._report(ForwardOpened(tag))

    def _answered(self, tag: int, answer: Answer) -> None:
        if self._scope.closed or tag not in self._forwarded:
            return
        if not isinstance(answer, StreamData):
            del self._forwarded[tag]
        self._report(ForwardAnswered(tag, answer))

    def more(self, effect: ForwardMore) -> None:
        """See Peers.more."""
        connection = self._forwarded.get(effect.tag)
        if isinstance(effect.word, StreamEnd) and effect.word.error is not None:
            self._forwarded.pop(effect.tag, None)
        if connection is not None:
            connection.send(effect.word)


async def dial(network: Network, process: Process, addr: str, node_id: str, timeout_s: float) -> Connection:
    """See dialogues.Dial."""
    connection: Connection = await network.dial(process, addr, timeout_s, node_id)
    return connection
