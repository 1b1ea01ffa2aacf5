"""Messages of the log in pieces: what is whole is taken, and what never becomes whole takes no memory without end."""

from __future__ import annotations

from itertools import count

import pytest

from swarm import api, defaults
from swarm.api import extensions, raftpb
from swarm.errors import Aborted, InvalidArgument, ResourceExhausted
from swarm.manager.group.streams import MessageStreams
from swarm.rpc import MANAGER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from tests.fuzz.house import CLUSTER, House, furnish
from tests.swarm.manager.group.test_changes import promote

NOW = 1_795_359_300.0
PIECE_BYTES = defaults.RAFT_SNAPSHOT_CHUNK_BYTES


def member(number: int) -> Peer:
    return Peer(f"n{number}", MANAGER_ROLE, CLUSTER, f"10.0.0.{number}:4000")


def piece(data: bytes, index: int = 7, kind: raftpb.MessageType = raftpb.MsgSnap) -> api.StreamRaftMessageRequest:
    request = api.StreamRaftMessageRequest()
    request.message.type, request.message.index, request.message.snapshot.data = kind, index, data
    return request


class Streams:
    """Streams of members, as a manager serves them."""

    def __init__(self) -> None:
        self.incoming = MessageStreams()
        self.now = NOW
        self.ended: dict[int, type] = {}
        self._numbers = count(1)

    def open(self, number: int) -> int:
        stream = next(self._numbers)
        self._note(self.incoming.begin(Call(stream, "Raft/StreamRaftMessage", None, member(number)), self.now))
        return stream

    def say(self, stream: int, request: api.StreamRaftMessageRequest) -> raftpb.Message | None:
        whole = self.incoming.take(stream, StreamData(stream, request), self.now)
        self._note(self.incoming.supersede(stream))
        return whole

    def finish(self, stream: int) -> raftpb.Message | None:
        whole = self.incoming.take(stream, StreamEnd(stream), self.now)
        self.incoming.end(stream)
        return whole

    def _note(self, ends: list[StreamEnd]) -> None:
        self.ended.update({end.stream: type(end.error) for end in ends})


def test_a_snapshot_of_many_pieces_comes_whole_and_leaves_nothing() -> None:
    streams = Streams()
    stream = streams.open(2)
    pieces = [bytes([number]) * PIECE_BYTES for number in range(20)]
    assert [streams.say(stream, piece(data)) for data in pieces] == [None] * 20
    assert streams.incoming.waiting_bytes >= 20 * PIECE_BYTES
    whole = streams.finish(stream)
    assert whole is not None
    assert whole.snapshot.data == b"".join(pieces)
    assert streams.incoming.waiting_bytes == 0


def test_the_store_of_seventy_thousand_tasks_fits_twice() -> None:
    task = api.Task(id="x" * 25, service_id="x" * 25, node_id="x" * 25, slot=70_000)
    container = task.spec.container
    container.image = "registry.example.com/team/application:2026-11-22@sha256:" + "0" * 64
    container.env.extend(f"VARIABLE_{number}=" + "v" * 60 for number in range(20))
    task.annotations.name, task.service_annotations.name = "application.70000." + "x" * 25, "application"
    task.status.message, task.status.container.container_id = "started", "0" * 64
    task.networks.add().network.spec.annotations.name = "n" * 600  # networks are repeated in each task
    assert task.ByteSize() > 2_000
    assert 2 * 70_000 * task.ByteSize() < defaults.RAFT_INCOMING_BYTES_MAX


def test_what_all_members_leave_incomplete_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RAFT_INCOMING_BYTES_MAX", 10_000)
    streams = Streams()
    first, second = streams.open(2), streams.open(3)
    streams.say(first, piece(b"a" * 6_000))
    streams.say(second, piece(b"b" * 3_000))
    with pytest.raises(ResourceExhausted, match="does not fit"):
        streams.say(second, piece(b"b" * 2_000))
    assert streams.incoming.waiting_bytes < 10_000
    streams.incoming.end(second)
    streams.say(first, piece(b"a" * 3_000))
    assert streams.finish(first) is not None
    again = streams.open(3)
    streams.say(again, piece(b"b" * 9_900))
    assert streams.finish(again) is not None
    assert streams.incoming.waiting_bytes == 0


def test_messages_that_are_no_snapshots_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RAFT_INCOMING_BYTES_MAX", 10_000)
    streams = Streams()
    request = api.StreamRaftMessageRequest()
    request.message.entries.add(Data=b"x" * 1_000)
    for _ in range(9):
        streams.say(streams.open(2), request)
    last = streams.open(2)
    with pytest.raises(ResourceExhausted):
        streams.say(last, request)
    assert streams.incoming.waiting_bytes <= 10_000


def test_another_snapshot_of_a_member_ends_the_one_that_it_had_begun() -> None:
    streams = Streams()
    old, others = streams.open(2), streams.open(3)
    streams.say(old, piece(b"old"))
    streams.say(old, piece(b"old"))
    streams.say(others, piece(b"other"))
    new = streams.open(2)
    streams.say(new, piece(b"new", index=8))
    assert streams.ended == {old: Aborted}
    assert old not in streams.incoming
    for stream, data in ((new, b"new"), (others, b"other")):
        whole = streams.finish(stream)
        assert whole is not None
        assert whole.snapshot.data == data
    assert streams.incoming.waiting_bytes == 0


def test_a_member_opens_only_so_many_streams() -> None:
    streams = Streams()
    mine = [streams.open(2) for _ in range(defaults.RAFT_INCOMING_STREAMS_PER_MEMBER_MAX)]
    refused = streams.open(2)
    assert streams.ended == {refused: ResourceExhausted}
    assert refused not in streams.incoming
    assert streams.open(3) in streams.incoming
    streams.finish(mine[0])
    assert streams.open(2) in streams.incoming


def test_a_message_whose_rest_does_not_come_is_forgotten_and_a_flow_is_not() -> None:
    streams = Streams()
    flow, silent, slow = streams.open(2), streams.open(2), streams.open(3)
    streams.say(flow, extensions.with_extension(api.StreamRaftMessageRequest(), extensions.FLOW))
    streams.say(silent, piece(b"x"))
    streams.say(slow, piece(b"x"))
    streams.now += defaults.RAFT_INCOMING_SILENCE_S - 1
    streams.say(slow, piece(b"x"))
    streams.now += 2
    streams.open(3)
    assert streams.ended == {silent: Aborted}
    assert streams.finish(slow) is not None
    assert streams.say(flow, piece(b"", kind=raftpb.MsgHeartbeat)) is not None


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (piece(b"x"), piece(b"x", index=8)),
        (piece(b"x"), piece(b"x", kind=raftpb.MsgApp)),
        (piece(b"x", kind=raftpb.MsgApp), piece(b"x", kind=raftpb.MsgApp)),
        (piece(b"x", kind=raftpb.MsgApp), piece(b"x")),
    ],
)
def test_pieces_that_do_not_belong_together_are_refused(
    first: api.StreamRaftMessageRequest, then: api.StreamRaftMessageRequest
) -> None:
    streams = Streams()
    stream = streams.open(2)
    streams.say(stream, first)
    with pytest.raises(InvalidArgument):
        streams.say(stream, then)


def test_a_manager_refuses_what_is_too_much_and_takes_the_next_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    start = furnish()
    house = House(start)
    house.write(promote("n1", "n2"))
    house.manager.recall({}, [api.RaftMember(raft_id=2, node_id="n2", addr="10.0.0.2:2377")])
    raft = house.manager.raft
    monkeypatch.setattr(defaults, "RAFT_INCOMING_BYTES_MAX", 3 * len(start.data))

    def send(times: int) -> list[Reply | StreamData | StreamEnd]:
        """The snapshot in two pieces, as a leader of the next term, and before it that often its first half."""
        message = raftpb.Message(type=raftpb.MsgSnap, to=1, term=raft.term + 1, index=9)
        setattr(message, "from", 2)
        message.snapshot.CopyFrom(start)
        message.snapshot.metadata.index += 100
        half = len(start.data) // 2
        assert house.call("Raft/StreamRaftMessage", None, member(2)) == []
        answers = []
        for data in (*[start.data[:half]] * times, start.data[half:]):
            message.snapshot.data = data
            word = StreamData(house.stream, api.StreamRaftMessageRequest(message=message))
            answers += house.tell(word) + house.settle()
        answers += house.tell(StreamEnd(house.stream)) + house.settle()
        return [it for it in answers if isinstance(it, Reply | StreamEnd) and it.stream == house.stream]

    (refused,) = send(10)
    assert isinstance(refused, StreamEnd)
    assert isinstance(refused.error, ResourceExhausted)
    assert house.store.index < start.metadata.index + 100
    (taken,) = send(1)
    assert isinstance(taken, Reply)
    assert house.store.index == start.metadata.index + 100
