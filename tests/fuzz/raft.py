"""Fuzz target: messages that no member would send, into a manager that leads, follows, or is about to.

Checked: nothing is raised but the two errors that end a member on purpose (a leader that names entries we never had, a
second leader of the same term: a disk is lost or the group is broken); the log keeps its own rules; what is to be
written can be written, and a member restarted from it stands where this one stood; a manager that has the only vote
answers and writes again when the noise is over.
"""

from __future__ import annotations

from dataclasses import replace

from swarm import api
from swarm.api import raftpb
from swarm.errors import Code
from swarm.raft import events
from swarm.raft.election import TRANSFER
from swarm.raft.events import LogConflict, LogLost
from swarm.rpc import MANAGER_ROLE, Peer, Reply, StreamData, StreamEnd
from tests.fuzz import house
from tests.fuzz.feed import Feed
from tests.fuzz.house import CLUSTER, House
from tests.fuzz.messages import Words, change, parsed

STEPS_MAX = 30
SENDER = Peer("n3", MANAGER_ROLE, CLUSTER, "10.0.0.3:4000")
REFUSED = (Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED)
SQLITE_INTEGER_MAX = (1 << 63) - 1
KINDS = (
    raftpb.MsgApp,
    raftpb.MsgHeartbeat,
    raftpb.MsgSnap,
    raftpb.MsgVote,
    raftpb.MsgPreVote,
    raftpb.MsgAppResp,
    raftpb.MsgHeartbeatResp,
    raftpb.MsgVoteResp,
    raftpb.MsgPreVoteResp,
    raftpb.MsgTransferLeader,
    raftpb.MsgTimeoutNow,
    raftpb.MsgProp,
    raftpb.MsgReadIndex,
)


def message(feed: Feed, place: House) -> raftpb.Message:
    """Mostly one that fits the moment."""
    raft, log = place.manager.raft, place.manager.raft.log
    if feed.byte() < 20:
        return parsed(feed, raftpb.Message) or raftpb.Message()  # type: ignore[return-value]
    out = raftpb.Message(type=feed.choice(KINDS), to=1)
    setattr(out, "from", feed.choice((2, 3, 4, 1, 0)))
    out.term = feed.choice((raft.term, raft.term + 1, raft.term + 7, max(raft.term - 1, 0), feed.number(64)))
    out.index = feed.choice((log.last_index, log.committed, log.last_index + 3, log.first_index, 0, feed.number(64)))
    out.logTerm = feed.choice((log.last_term, raft.term, feed.number(64)))
    out.commit = feed.choice((log.committed, log.last_index, out.index, log.last_index + 2, feed.number(64)))
    out.reject = feed.flag()
    if feed.byte() < 20:
        out.context = feed.choice((TRANSFER, (1).to_bytes(8, "big"), b"farewell", feed.some()))
    if out.type == raftpb.MsgApp:
        for number in range(1, 1 + feed.byte() % 4):
            out.entries.append(entry(feed, place, out.index + number, feed.choice((out.term, out.logTerm))))
    elif out.type == raftpb.MsgSnap:
        snapshot(feed, place, out.snapshot)
    if feed.byte() < 60:
        change(feed, out, Words(("",), (b"", TRANSFER), (0, 1, 2, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)))
    return out


def entry(feed: Feed, place: House, index: int, term: int) -> raftpb.Entry:
    """One that could be committed."""
    out = raftpb.Entry(Index=index % (1 << 64), Term=term)
    kind = feed.below(4)
    if kind == 0:
        out.Data = feed.some()
    elif kind == 1:
        out.Type = raftpb.EntryConfChange
        member = api.RaftMember(raft_id=feed.choice((2, 3, 1)), node_id="n3", addr="10.0.0.3:2377")
        context = feed.choice((member.SerializeToString(), b"", b"\xff\xff\xff"))
        verb = feed.choice((raftpb.ConfChangeAddNode, raftpb.ConfChangeRemoveNode, raftpb.ConfChangeUpdateNode))
        out.Data = raftpb.ConfChange(type=verb, node_id=member.raft_id, context=context).SerializeToString()
        if feed.byte() == 0xFF:
            out.Data = feed.some()
    elif kind == 2:
        request = api.InternalRaftRequest(id=1)
        change(feed, request, place.words())
        out.Data = request.SerializeToString()
    else:
        out.Type = feed.below(3)  # type: ignore[assignment]
    return out


def snapshot(feed: Feed, place: House, out: raftpb.Snapshot) -> None:
    """The group as somebody else says it is."""
    out.CopyFrom(_START)
    log = place.manager.raft.log
    out.metadata.index = feed.choice((log.last_index + 5, log.committed + 1, feed.number(64)))
    out.metadata.term = feed.choice((place.manager.raft.term, feed.number(64)))
    if feed.flag():
        out.metadata.conf_state.voters.extend((2, 3))
    if feed.byte() < 60:
        out.data = feed.some()


def one(data: bytes) -> None:
    """The whole of one input."""
    feed = Feed(data)
    place = House(_START, strict=False, seed=feed.byte())
    place.manager.recall({}, [api.RaftMember(raft_id=2, node_id="n3", addr="10.0.0.3:2377")])
    flows: list[int] = []
    try:
        for _ in range(STEPS_MAX):
            if not feed:
                break
            step(feed, place, flows)
            check(place)
    except (LogLost, LogConflict):
        return
    again(place)
    serves(place)


def step(feed: Feed, place: House, flows: list[int]) -> None:
    """A message, a piece of one, or time."""
    action = feed.byte()
    if action < 40:
        place.now += feed.choice((0.05, 1.0, 3.0, 30.0))
        place.settle()
    elif action < 90:
        pieces(feed, place, flows)
    else:
        request = api.ProcessRaftMessageRequest(message=message(feed, place))
        answers = place.call("Raft/ProcessRaftMessage", request, sender_of(place, request.message))
        assert len(answers) == 1, answers
        assert isinstance(answers[0], Reply | StreamEnd)
        if isinstance(answers[0], StreamEnd):
            assert answers[0].error is not None
            assert Code(answers[0].error.code) in REFUSED


def sender_of(place: House, message: raftpb.Message) -> Peer:
    """The node on which the member is that a message says it is of: others are refused, as pieces of messages show."""
    member = place.manager.group.members.get(events.sender(message))
    return SENDER if member is None else replace(SENDER, node_id=member.node_id)


def pieces(feed: Feed, place: House, flows: list[int]) -> None:
    """Raft/StreamRaftMessage: a large message, or our own managers' flow."""
    action = feed.below(4)
    if action == 0 or not flows:
        assert place.call("Raft/StreamRaftMessage", None, SENDER) == []
        flows.append(place.stream)
    elif action == 1:
        stream = feed.choice(flows)
        flows.remove(stream)
        place.tell(StreamEnd(stream))
    else:
        request = api.StreamRaftMessageRequest()
        if action == 2:
            request.message.CopyFrom(message(feed, place))
        elif parsed_request := parsed(feed, api.StreamRaftMessageRequest):
            request = parsed_request  # type: ignore[assignment]
        place.tell(StreamData(feed.choice(flows), request))
    place.settle()


def check(place: House) -> None:
    """Rules of the log, and what the disk is asked to keep."""
    raft = place.manager.raft
    raft.log.check()
    due = raft.deadline()
    assert due is None or due > place.now - 1
    for persist in place.written:
        numbers = [number for e in persist.entries for number in (e.Index, e.Term)]
        if persist.hard_state is not None:
            state = persist.hard_state
            numbers += [state.term, state.commit]
        if persist.snapshot is not None:
            numbers += [persist.snapshot.metadata.index, persist.snapshot.metadata.term]
        assert all(number <= SQLITE_INTEGER_MAX for number in numbers), "the disk cannot keep that"
    place.written.clear()


def again(place: House) -> None:
    """The content can be read as a restart reads it."""
    manager = place.manager
    content = api.Snapshot(membership=manager.group.save(), store=manager.store.save())
    copy = api.Snapshot.FromString(content.SerializeToString())
    place.manager.group.restore(copy.membership)
    assert all(raft_id == member.raft_id for raft_id, member in manager.group.members.items())


def serves(place: House) -> None:
    """If it is alone now, this member can lead: it must, and then a good call is answered."""
    for _ in range(5):
        place.now += 30.0
        place.settle()
    if place.manager.raft.membership.voters != (1,):
        return
    assert place.manager.leading, place.manager.raft.role
    answers = place.call("Control/ListNodes", api.ListNodesRequest())
    assert isinstance(answers[-1], Reply), answers


_START = house.furnish(("n3",))
assert events.NO_ONE == 0


def seeds() -> list[bytes]:
    """Inputs to begin with: every kind of message at a leader, a follower and a candidate."""
    out = []
    follow = bytes((200, 100, 0, 0, 1, 0, 0, 0, 0, 100, 0, 100))
    for kind in range(len(KINDS)):
        for term in range(4):
            body = bytes((200, 100, kind, 0, term, 0, 0, 0, 0, 100, 2, 0, 3, 120, 1, 0, 120, 100))
            out += [b"\1" + body, b"\2" + follow + body + bytes((10, 2)) + body]
    out.append(b"\3" + bytes((50, 0)) + bytes((60, 2)) + follow[1:] + bytes((60, 1)))
    return out
