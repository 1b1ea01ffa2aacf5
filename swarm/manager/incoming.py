"""Messages of the log that come as streams: a snapshot in pieces, or a flow of whole messages from one of ours.

A large message comes in pieces of its snapshot's data, the rest of it repeated with each, and is complete when the
stream ends. A flow says what it is in its first word, and each further one is a message.

(swarmkit: manager/state/raft/raft.go StreamRaftMessage)
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm import api
from swarm.api import marks, raftpb
from swarm.rpc import Call, Peer, StreamData, StreamEnd


@dataclass(slots=True)
class _Stream:
    sender: Peer
    whole: raftpb.Message | None = None
    flows: bool = False


class Incoming:
    """The open streams, by their numbers."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def __contains__(self, stream: int) -> bool:
        return stream in self._streams

    def begin(self, call: Call) -> None:
        """A stream is opened."""
        self._streams[call.stream] = _Stream(call.peer)

    def sender(self, stream: int) -> Peer:
        """Who opened it."""
        return self._streams[stream].sender

    def end(self, stream: int) -> None:
        """Nothing more is taken of it."""
        del self._streams[stream]

    def take(self, stream: int, event: StreamData | StreamEnd) -> raftpb.Message | None:
        """The message that is complete with this word, if one is."""
        state = self._streams[stream]
        if isinstance(event, StreamEnd):
            return state.whole if event.error is None else None
        assert isinstance(event.message, api.StreamRaftMessageRequest)
        part = event.message.message
        if state.flows:
            return part
        if not event.message.HasField("message"):
            state.flows = marks.has_mark(event.message, marks.FLOW)
        elif state.whole is None:
            state.whole = part
        else:
            state.whole.snapshot.data += part.snapshot.data
        return None
