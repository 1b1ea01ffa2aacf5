"""How one becomes a member of the group, as the manager that is asked sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from swarm import api
from swarm.api import raftpb
from swarm.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NoLeader,
    NotLeader,
    NotTaken,
    PermissionDenied,
    SwarmError,
    Unavailable,
)
from swarm.manager import assemble
from swarm.manager.events import CheckPeer, ManagerEffect, PeerChecked
from swarm.manager.group.changes import NO_STOCK_FOLLOWERS
from swarm.manager.group.members import UNREACHABLE_TEXT, RaftGroup, is_join_undecided
from swarm.manager.manager import Manager
from swarm.manager.service import Write
from swarm.raft import events
from swarm.raft.membership import bootstrap_entries, force_new_cluster
from swarm.raft.raft import Raft
from swarm.rpc import MANAGER_ROLE, Call, Peer, Reply, StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx

JOINER = Peer("n2", MANAGER_ROLE, "c1", "10.0.0.2:40000")
OTHER = Peer("n3", MANAGER_ROLE, "c1", "10.0.0.3:40000")


class Lab:
    """The first manager of a group, whose disk answers at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stream = 0
        self.written: list[events.Persist] = []
        member = api.RaftMember(raft_id=1, node_id="n1", addr="10.0.0.1:2377")
        entries = bootstrap_entries(1, member.SerializeToString())
        self.begin(None, entries)
        self.tell(Write(promote("n1", "n2", "n3", "n4")))

    def begin(self, hard_state: raftpb.HardState | None, entries: tuple[raftpb.Entry, ...]) -> list[ManagerEffect]:
        """Start from this log; what is done at once."""
        raft = Raft(events.Config(1), Random(1), hard_state, None, entries, 0, self.now)
        parts = assemble.parts("n1", "c1", assemble.Group(lambda: self.manager))
        self.manager = Manager(raft, Store(), parts, Random(1), strict=True)
        effects = self.tell(None)
        assert self.manager.leading
        return effects

    def tell(self, event: object) -> list[ManagerEffect]:
        """Give an event, and do what is written on disk; what is left for others."""
        out: list[ManagerEffect] = []
        waiting = [event]
        while waiting:
            for effect in self.manager.handle(waiting.pop(0), self.now):  # type: ignore[arg-type]
                if isinstance(effect, events.Persist):
                    self.written.append(effect)
                    waiting.append(events.Persisted(effect.token))
                else:
                    out.append(effect)
        return out

    def join(self, peer: Peer = JOINER, addr: str = "10.0.0.2:2377") -> list[ManagerEffect]:
        """RaftMembership/Join."""
        self.stream += 1
        return self.tell(Call(self.stream, "RaftMembership/Join", api.JoinRequest(addr=addr), peer))

    def joined(self) -> int:
        """A first join goes through; the raft ID."""
        assert [effect for effect in self.join() if isinstance(effect, CheckPeer)]
        return raft_id(self.tell(PeerChecked(self.stream, "", True)))

    def lose_leadership(self) -> None:
        """The group needs the joiner's vote, which does not come."""
        while self.manager.leading:
            self.now += 1.0
            self.tell(None)


def promote(*node_ids: str) -> Callable[[Tx], None]:
    """A write: these nodes are managers."""

    def run(tx: Tx) -> None:
        for node_id in node_ids:
            node = tx.get(api.Node, node_id)
            node = tx.create(api.Node(id=node_id)) if node is None else tx.edit(api.Node, node_id)
            node.role = node.spec.desired_role = api.MANAGER

    return run


def demote(tx: Tx, node_id: str) -> None:
    """A node is a worker, as after its demotion."""
    node = tx.edit(api.Node, node_id)
    node.role = node.spec.desired_role = api.WORKER


def raft_id(effects: list[ManagerEffect]) -> int:
    replies = [effect.message for effect in effects if isinstance(effect, Reply)]
    assert len(replies) == 1
    assert isinstance(replies[0], api.JoinResponse)
    assert [member.raft_id for member in replies[0].members] == sorted([1, replies[0].raft_id])
    return replies[0].raft_id


def test_a_joiner_that_serves_becomes_a_member() -> None:
    assert Lab().joined() > 1


def test_a_joiner_that_does_not_serve_is_refused() -> None:
    lab = Lab()
    lab.join()
    (refusal,) = [effect for effect in lab.tell(PeerChecked(lab.stream, "refused")) if isinstance(effect, StreamEnd)]
    assert "advertised address: refused" in str(refusal.error)


@pytest.mark.parametrize(
    ("error", "undecided"),
    [
        (NotLeader(), True),
        (Unavailable("connection error: desc = EOF"), True),
        (DeadlineExceeded("context deadline exceeded"), True),
        (NotTaken(), False),
        (NoLeader(), False),
        (FailedPrecondition(NO_STOCK_FOLLOWERS), False),
        (Unavailable(UNREACHABLE_TEXT + "connection refused"), False),
    ],
)
def test_a_joiner_may_go_away_only_if_it_was_certainly_not_taken_in(error: SwarmError, undecided: bool) -> None:
    assert is_join_undecided(error) == undecided


def test_who_is_a_member_already_is_told_again_even_without_a_leader() -> None:
    lab = Lab()
    first = lab.joined()
    assert raft_id(lab.join()) == first
    lab.lose_leadership()
    assert raft_id(lab.join()) == first


def test_without_a_leader_nobody_else_is_let_in() -> None:
    lab = Lab()
    lab.joined()
    lab.lose_leadership()
    for effects in (lab.join(OTHER), lab.join(JOINER, "10.0.0.9:2377")):
        assert [effect for effect in effects if isinstance(effect, Reply | CheckPeer)] == []


def test_a_node_that_asks_twice_becomes_one_member() -> None:
    group = RaftGroup(1)
    for stream, addr in ((5, "10.0.0.2:2377"), (6, "10.0.0.2:2378")):
        group.add("n2", addr, stream, Random(stream), ours=True)
    first = group.next_change()
    assert first is not None
    group.apply(first.change)
    first.index = 7
    assert group.decided(7) is first
    second = group.next_change()
    assert second is not None
    assert (second.stream, second.change.node_id) == (6, first.change.node_id)
    group.apply(second.change)
    assert [member.addr for member in group.members.values()] == ["10.0.0.2:2378"]


def test_newcomers_of_a_forced_new_cluster_never_read_that_its_first_member_was_removed() -> None:
    """They would say so to it, between that entry of the log and the one that takes it back, and it would go."""
    lab = Lab()
    member = api.RaftMember(raft_id=1, node_id="n1", addr="10.0.0.1:2377").SerializeToString()
    removal = raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=1).SerializeToString()
    log = (*bootstrap_entries(1, member), raftpb.Entry(Type=raftpb.EntryConfChange, Term=1, Index=2, Data=removal))
    state, added = force_new_cluster(1, member, raftpb.HardState(term=1, commit=1), None, log)
    lab.written.clear()
    lab.begin(state, (*log, *added))
    (snapshot,) = [write for write in lab.written if write.snapshot is not None]
    assert snapshot.compact_to == added[0].Index
    assert not lab.manager.group.removed
    assert lab.manager.raft.log.first_index > added[0].Index


def leave(lab: Lab, raft_id: int, peer: Peer) -> list[ManagerEffect]:
    """RaftMembership/Leave, as the node that was this member asks for it."""
    lab.stream += 1
    member = api.RaftMember(raft_id=raft_id, node_id=peer.node_id)
    return lab.tell(Call(lab.stream, "RaftMembership/Leave", api.LeaveRequest(node=member), peer))


def test_a_node_that_gave_its_log_up_may_have_that_member_removed() -> None:
    lab = Lab()
    first = lab.joined()
    leave(lab, first, JOINER)
    pending = lab.manager.group.proposed
    assert pending is not None
    assert (pending.change.type, pending.change.node_id) == (raftpb.ConfChangeRemoveNode, first)


def test_of_two_managers_a_demoted_one_is_removed_by_force_only_after_it_has_left() -> None:
    """Its vote is needed for its own removal, and of a removed node the group hears none."""
    lab = Lab()
    lab.joined()
    group = lab.manager.group
    assert group.can_remove("n2"), "it may be demoted: it agrees to its own removal"
    assert not group.can_spare("n2")
    three = RaftGroup(1)
    for number in (1, 2, 3):
        member = api.RaftMember(raft_id=number, node_id=f"n{number}", addr=f"10.0.0.{number}:2377")
        three.apply(raftpb.ConfChange(node_id=number, context=member.SerializeToString()))
    assert three.can_spare("n3")
    three.lost(2)
    assert not three.can_spare("n3")
    assert three.can_spare("n2")


def test_nobody_else_can_have_a_member_removed() -> None:
    lab = Lab()
    first = lab.joined()
    (refusal,) = [effect for effect in leave(lab, first, OTHER) if isinstance(effect, StreamEnd)]
    assert isinstance(refusal.error, PermissionDenied)
    assert lab.manager.group.proposed is None


def test_a_member_that_is_gone_already_is_removed() -> None:
    lab = Lab()
    lab.joined()
    assert [effect.message for effect in leave(lab, 12345, JOINER) if isinstance(effect, Reply)] == [
        api.LeaveResponse()
    ]
    assert lab.manager.group.proposed is None


def elect_again(lab: Lab, voter: int) -> list[ManagerEffect]:
    """The other member says yes to all; what the manager does besides speaking with it."""
    out: list[ManagerEffect] = []
    while not lab.manager.leading:
        lab.now += 1.0
        effects = lab.tell(None)
        while effects:
            effect = effects.pop(0)
            if not isinstance(effect, events.Send):
                out.append(effect)
            elif (answer := yes(effect.message, voter)) is not None:
                effects += lab.tell(events.Received(answer))
    return out


def yes(message: raftpb.Message, voter: int) -> raftpb.Message | None:
    kinds = {
        raftpb.MsgPreVote: raftpb.MsgPreVoteResp,
        raftpb.MsgVote: raftpb.MsgVoteResp,
        raftpb.MsgApp: raftpb.MsgAppResp,
    }
    if message.type not in kinds:
        return None
    index = message.index + len(message.entries)
    answer = raftpb.Message(type=kinds[message.type], to=1, term=message.term, index=index)
    setattr(answer, "from", voter)
    return answer


def test_a_demoted_manager_that_waited_for_a_leader_is_not_let_in_by_the_one_that_knows() -> None:
    lab = Lab()
    lab.tell(Write(lambda tx: demote(tx, OTHER.node_id)))
    voter = lab.joined()
    lab.lose_leadership()
    lab.join(OTHER, "10.0.0.3:2377")
    demoted = lab.stream
    newcomer = Peer("n4", MANAGER_ROLE, "c1", "10.0.0.4:40000")
    lab.join(newcomer, "10.0.0.4:2377")
    found = [effect for effect in elect_again(lab, voter) if isinstance(effect, CheckPeer | StreamEnd)]
    assert [(effect.stream, type(effect)) for effect in found] == [(demoted, StreamEnd), (lab.stream, CheckPeer)]


def test_nobody_speaks_for_a_member_on_another_node() -> None:
    lab = Lab()
    voter = lab.joined()
    message = raftpb.Message(type=raftpb.MsgHeartbeat, to=1, term=lab.manager.raft.term + 1)
    setattr(message, "from", voter)
    for peer, taken in ((OTHER, False), (JOINER, True)):
        lab.stream += 1
        request = api.ProcessRaftMessageRequest(message=message)
        (answer,) = [
            effect
            for effect in lab.tell(Call(lab.stream, "Raft/ProcessRaftMessage", request, peer))
            if isinstance(effect, Reply | StreamEnd) and effect.stream == lab.stream
        ]
        assert isinstance(answer, Reply) is taken
        assert lab.manager.leading is not taken, "a leader of a later term exists"
        if isinstance(answer, StreamEnd):
            assert isinstance(answer.error, PermissionDenied)


def test_the_status_of_a_manager_tells_what_it_knows_and_how_often_what_happened() -> None:
    lab = Lab()
    status = lab.manager.status()
    assert (status.raft_id, status.leading, status.leader) == (1, True, 1)
    (member,) = status.members
    assert (member.node_id, member.addr, member.found_at, member.leads) == (
        "n1",
        "10.0.0.1:2377",
        "10.0.0.1:2377",
        True,
    )
    assert status.others == ()
    assert not status.undetermined
    assert status.elections_won == 1
    assert status.entries_applied == status.applied_index == status.commit_index == status.store_index
    lab.manager.recall({}, [api.RaftMember(raft_id=2, node_id="n2", addr="10.0.0.2:2377")])
    assert lab.manager.status().undetermined
    lab.manager.recall({2: False}, ())
    (other,) = lab.manager.status().others
    assert other.ours is False
    assert not lab.manager.status().undetermined


def test_a_join_shows_the_key_of_the_joiner_and_an_older_copy_of_it_cannot_join_or_move_it() -> None:
    lab = Lab()

    def known(tx: Tx) -> None:
        node = api.Node(id="n2", role=api.MANAGER)
        node.spec.desired_role = api.MANAGER
        node.authority.key = b"old"
        node.authority.issued.append(b"new")
        node.authority.certified_from.FromSeconds(500)
        tx.create(node)

    lab.tell(Write(known))
    old, new = (replace(JOINER, key=key, not_before=500.0) for key in (b"old", b"new"))
    lab.join(new)
    raft_id(lab.tell(PeerChecked(lab.stream, "", True)))
    node = lab.manager.store.get(api.Node, "n2")
    assert node is not None
    assert (node.authority.key, list(node.authority.issued)) == (b"new", [])
    effects = lab.join(old, "10.0.0.66:2377")
    assert not any(isinstance(effect, CheckPeer) for effect in effects)
    (refusal,) = (effect for effect in effects if isinstance(effect, StreamEnd))
    assert "the certificate is superseded" in str(refusal.error)
    assert [member.addr for member in lab.manager.group.members.values()] == ["10.0.0.1:2377", "10.0.0.2:2377"]
