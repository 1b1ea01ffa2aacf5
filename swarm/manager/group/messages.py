"""What other members send and ask: messages of the log, alone or as streams, and where a member is to be found.

(swarmkit: manager/state/raft/raft.go ProcessRaftMessage, StreamRaftMessage, ResolveAddress)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from swarm import api
from swarm.api import extensions, raftpb, rpc
from swarm.errors import InvalidArgument, NotFound, SwarmError
from swarm.manager.events import ManagerEffect
from swarm.manager.group.consensus import Consensus
from swarm.manager.group.members import REMOVED_TEXT, RaftGroup
from swarm.manager.group.senders import Senders
from swarm.manager.group.streams import MessageStreams, is_readable
from swarm.raft import events
from swarm.rpc import Call, Peer, Reply, StreamData, StreamEnd

log = structlog.get_logger()


class Messages:
    """See the module. now: seconds since the epoch."""

    def __init__(
        self,
        group: RaftGroup,
        senders: Senders,
        consensus: Consensus,
        leads: Callable[[], bool],
        out: list[ManagerEffect],
    ) -> None:
        """leads: whether this manager leads, and its store lacks nothing."""
        self.streams = MessageStreams()
        self._senders = senders
        self._leads = leads
        self._group = group
        self._consensus = consensus
        self._out = out

    def process(self, call: Call, now: float) -> None:
        """Raft/ProcessRaftMessage: one message."""
        request = rpc.PROCESS_RAFT_MESSAGE.checked_request(call.request)
        if self._receive(call.stream, request.message, call.peer, now):
            self._out.append(Reply(call.stream, api.ProcessRaftMessageResponse()))

    def begin(self, call: Call, now: float) -> None:
        """Raft/StreamRaftMessage: a message in pieces, or a flow of messages."""
        self._out += self.streams.begin(call, now)

    def more(self, event: StreamData | StreamEnd, now: float) -> None:
        """A word of a stream of messages."""
        stream, streams = event.stream, self.streams
        sender = streams.sender(stream)
        try:
            self._judge_piece(event, sender, now)
            message = streams.take(stream, event, now)
        except SwarmError as error:
            streams.end(stream)
            self._refuse(stream, sender, error, now)
            return
        self._out += streams.supersede(stream)
        taken = message is None or self._receive(stream, message, sender, now)
        if not taken or isinstance(event, StreamEnd):
            streams.end(stream)
            if taken:
                self._out.append(Reply(stream, api.StreamRaftMessageResponse()))

    def _judge_piece(self, event: StreamData | StreamEnd, sender: Peer, now: float) -> None:
        """Nothing is kept of who may not send it. Raises NotFound, PermissionDenied."""
        if not isinstance(event, StreamData):
            return
        assert isinstance(event.message, api.StreamRaftMessageRequest)
        if event.message.HasField("message"):
            raft_id = events.sender(event.message.message)
            if (refusal := self._senders.refusal(raft_id, sender, now, self._leads())) is not None:
                raise refusal

    def resolve(self, call: Call) -> None:
        """Raft/ResolveAddress: where a member is. Who was removed hears of it, whatever it may ask."""
        raft_id = rpc.RESOLVE_ADDRESS.checked_request(call.request).raft_id
        if raft_id in self._group.removed:
            self._out.append(StreamEnd(call.stream, NotFound(REMOVED_TEXT)))
        elif (refusal := self._senders.of_node(call.peer, self._leads())) is not None:
            self._out.append(StreamEnd(call.stream, refusal))
        elif (member := self._group.resolve(raft_id, self._shown_by(call.peer))) is None:
            self._out.append(StreamEnd(call.stream, NotFound(f"member {raft_id:x} not found")))
        else:
            answer, moved = api.ResolveAddressResponse(addr=member.addr), member != self._group.members[raft_id]
            self._out.append(
                Reply(call.stream, extensions.with_extension(answer, extensions.MOVED) if moved else answer)
            )

    def _shown_by(self, asker: Peer) -> Peer:
        """Who asks; one with an old copy of a certificate shows nothing of where its node is."""
        return replace(asker, node_id="") if self._senders.is_superseded(asker) else asker

    def _receive(self, stream: int, message: raftpb.Message, sender: Peer, now: float) -> bool:
        """Take a message, unless its sender is not, or no more, the member that it says."""
        raft_id = events.sender(message)
        refusal: SwarmError | None = self._senders.refusal(raft_id, sender, now, self._leads())
        if refusal is None and message.type == raftpb.MsgSnap and not is_readable(message.snapshot):
            refusal = InvalidArgument("raft: the snapshot cannot be read")
        if refusal is not None:
            self._refuse(stream, sender, refusal, now)
            return False
        self._senders.believed(raft_id, sender)
        if not self._senders.is_superseded(sender):
            self._group.heard(raft_id, sender)
        if message.to == self._group.raft_id and message.type != raftpb.MsgProp:
            self._consensus.step(events.Received(message), now)
        return True

    def _refuse(self, stream: int, sender: Peer, error: SwarmError, now: float) -> None:
        self._out.append(StreamEnd(stream, error))
        if not isinstance(error, NotFound) and (times := self.streams.refused.times(sender.node_id, now)):
            log.warning("raft.message_refused", node=sender.node_id, error=str(error), times=times)
