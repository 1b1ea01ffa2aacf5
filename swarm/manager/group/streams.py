"""Messages of the log that come as streams: a snapshot in pieces, or a flow of whole messages from one of ours.

A large message comes in pieces of its snapshot's data, the rest of it repeated with each, and is complete when the
stream ends. A flow says what it is in its first word, and each further one is a message.

What is not complete is kept in memory, so there are limits, also for a manager that has gone wrong: all bytes together,
the streams of one member, and one snapshot of each, because who sends another one has given up the first. A stream that
has begun a message and says nothing more is forgotten, before somebody else is refused for it.

(swarmkit: manager/state/raft/raft.go StreamRaftMessage)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from swarm import api, defaults
from swarm.api import extensions, raftpb
from swarm.errors import Aborted, InvalidArgument, ResourceExhausted
from swarm.log_limiter import LogLimiter
from swarm.rpc import Call, Peer, StreamData, StreamEnd


@dataclass(slots=True)
class _Stream:
    sender: Peer
    heard_at: float
    whole: raftpb.Message | None = None
    pieces: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    flows: bool = False

    @property
    def is_snapshot(self) -> bool:
        return self.whole is not None and self.whole.type == raftpb.MsgSnap


class MessageStreams:
    """The open streams, by their numbers. now: seconds since the epoch."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._counts: dict[str, int] = {}  # of streams, by member
        self.waiting_bytes = 0
        """Of messages that are not complete."""
        self.refused = LogLimiter()

    def __contains__(self, stream: int) -> bool:
        return stream in self._streams

    def begin(self, call: Call, now: float) -> list[StreamEnd]:
        """A stream is opened; the streams that this ends, which may be itself."""
        ended = self._forget_silent(now)
        count = self._counts.get(call.peer.node_id, 0)
        if count >= defaults.RAFT_INCOMING_STREAMS_PER_MEMBER_MAX:
            text = f"raft: {call.peer.node_id} has {count} streams of messages open already"
            return [*ended, StreamEnd(call.stream, ResourceExhausted(text))]
        self._streams[call.stream] = _Stream(call.peer, now)
        self._counts[call.peer.node_id] = count + 1
        return ended

    def sender(self, stream: int) -> Peer:
        """Who opened it."""
        return self._streams[stream].sender

    def end(self, stream: int) -> None:
        """Nothing more is taken of it."""
        state = self._streams.pop(stream)
        self.waiting_bytes -= state.size_bytes
        node_id = state.sender.node_id
        self._counts[node_id] -= 1
        if not self._counts[node_id]:
            del self._counts[node_id]

    def supersede(self, stream: int) -> list[StreamEnd]:
        """The snapshots that the member which sends one here had begun before."""
        state = self._streams[stream]
        if not state.is_snapshot:
            return []
        older = [
            number
            for number, other in self._streams.items()
            if other.is_snapshot and number != stream and other.sender.node_id == state.sender.node_id
        ]
        return self._drop(older, "raft: the same member sends a newer snapshot")

    def stalled(self, missed_s: float) -> None:
        """This process stood still for so long (swarm/attention.py): no sender was silent then."""
        for state in self._streams.values():
            state.heard_at += missed_s

    def take(self, stream: int, event: StreamData | StreamEnd, now: float) -> raftpb.Message | None:
        """The message that is complete with this word, if one is.

        Raises InvalidArgument, and ResourceExhausted when too much is incomplete: the stream is to be ended then.
        """
        state = self._streams[stream]
        state.heard_at = now
        if isinstance(event, StreamEnd):
            return _assembled(state) if event.error is None else None
        assert isinstance(event.message, api.StreamRaftMessageRequest)
        part = event.message.message
        if state.flows:
            return part
        if not event.message.HasField("message"):
            state.flows = state.whole is None and extensions.has_extension(event.message, extensions.FLOW)
            return None
        if state.whole is None:
            self._count(state, event.message.ByteSize())
            state.whole = part
        else:
            _check_piece(state.whole, part)
            self._count(state, len(part.snapshot.data))
        state.pieces.append(part.snapshot.data)
        return None

    def _count(self, state: _Stream, size_bytes: int) -> None:
        most = defaults.RAFT_INCOMING_BYTES_MAX
        if self.waiting_bytes + size_bytes > most:
            raise ResourceExhausted(
                f"raft: a message of {state.size_bytes + size_bytes} bytes or more does not fit: "
                f"{self.waiting_bytes} of {most} bytes wait for the rest of their messages"
            )
        self.waiting_bytes += size_bytes
        state.size_bytes += size_bytes

    def _forget_silent(self, now: float) -> list[StreamEnd]:
        since = now - defaults.RAFT_INCOMING_SILENCE_S
        silent = [number for number, it in self._streams.items() if not it.flows and it.heard_at < since]
        return self._drop(silent, "raft: the rest of the message did not come in time")

    def _drop(self, streams: list[int], text: str) -> list[StreamEnd]:
        for stream in streams:
            self.end(stream)
        return [StreamEnd(stream, Aborted(text)) for stream in streams]


def _check_piece(whole: raftpb.Message, part: raftpb.Message) -> None:
    if whole.type != raftpb.MsgSnap or part.type != raftpb.MsgSnap:
        raise InvalidArgument("raft: only snapshots may come in pieces")
    if part.index != whole.index:
        raise InvalidArgument(f"raft: a piece of message {part.index} in the stream of message {whole.index}")


def _assembled(state: _Stream) -> raftpb.Message | None:
    if state.whole is not None and len(state.pieces) > 1:
        state.whole.snapshot.data = b"".join(state.pieces)
        state.pieces.clear()
    return state.whole


def is_readable(snapshot: raftpb.Snapshot) -> bool:
    """Whether the store could be restored from it; asked before consensus takes it, because then it is too late."""
    try:
        api.Snapshot.FromString(snapshot.data)
    except DecodeError:
        return False
    return True
