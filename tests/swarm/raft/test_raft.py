"""What the consensus core refuses, survives, and never does too early."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from swarm import errors
from swarm.api import raftpb
from swarm.raft import events
from swarm.raft.membership import bootstrap_entries, force_new_cluster
from swarm.raft.raft import Raft

CONFIG = events.Config(1, tick_s=0.1)


def metadata(index: int, term: int, *voters: int) -> raftpb.SnapshotMetadata:
    return raftpb.SnapshotMetadata(index=index, term=term, conf_state=raftpb.ConfState(voters=voters))


def entry(index: int, term: int, data: bytes = b"x") -> raftpb.Entry:
    return raftpb.Entry(Type=raftpb.EntryNormal, Term=term, Index=index, Data=data)


def message(kind: str, sender: int, term: int, **fields: object) -> events.Received:
    made = raftpb.Message(type=kind, to=1, term=term, **fields)  # type: ignore[arg-type]
    setattr(made, "from", sender)
    return events.Received(made)


def restart(
    *voters: int, entries: tuple[raftpb.Entry, ...] = (), commit: int = 1, now: float = 0.0, snapshot_index: int = 1
) -> Raft:
    """A member whose disk has a snapshot up to entry 1 of term 1, and these entries."""
    snapshot = raftpb.Snapshot(data=b"state", metadata=metadata(snapshot_index, 1, *voters))
    term = entries[-1].Term if entries else 1
    state = raftpb.HardState(term=term, commit=commit)
    return Raft(CONFIG, Random(1), state, snapshot, entries, snapshot_index, now)


def play(raft: Raft, event: events.Event | None, now: float = 0.0) -> list[events.Effect]:
    """Handle the event on a disk that is done at once; returns all effects but the writes."""
    effects: list[events.Effect] = []
    queue = [event]
    while queue:
        for effect in raft.handle(queue.pop(0), now):
            if isinstance(effect, events.Persist):
                queue.append(events.Persisted(effect.token))
            else:
                effects.append(effect)
        raft.check()
    return effects


def new_leader() -> Raft:
    raft = Raft(CONFIG, Random(1), None, None, bootstrap_entries(1, b"me"), 0, 0.0)
    play(raft, None)
    assert raft.status().role is events.Role.LEADER
    return raft


@pytest.mark.parametrize(
    "settings",
    [
        {"raft_id": 0},
        {"tick_s": 0},
        {"heartbeat_ticks": 0},
        {"election_ticks": 1},
        {"message_bytes_max": 0},
        {"inflight_messages_max": 0},
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument):
        events.Config(**{"raft_id": 1, **settings})


def test_a_disk_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(events.LogConflict):
        restart(1, 2, commit=5)
    with pytest.raises(events.LogConflict):
        restart(1, 2, entries=(entry(3, 1),))
    with pytest.raises(events.LogConflict):
        restart(1, 2, entries=(entry(2, 1), entry(4, 1)))
    with pytest.raises(events.LogConflict):
        restart(1, 2, entries=(entry(1, 7), entry(2, 7), entry(3, 7)), snapshot_index=2)


def test_a_member_that_lost_what_it_confirmed_says_so_instead_of_voting() -> None:
    raft = restart(1, 2, 3)
    play(raft, None)
    with pytest.raises(events.LogLost, match="must leave and join again"):
        raft.handle(message("MsgHeartbeat", 2, 2, commit=7), 0.0)


def test_a_second_leader_of_the_same_term_is_never_followed() -> None:
    raft = new_leader()
    with pytest.raises(events.LogConflict, match="two leaders"):
        raft.handle(message("MsgHeartbeat", 2, raft.term), 0.0)


@pytest.mark.parametrize(
    "numbers",
    [
        {"term": (1 << 64) - 1},
        {"term": 2 + (1 << 32)},
        {"term": 1, "index": 1 << 63},
        {"term": 1, "commit": (1 << 63) - 1},
        {"term": 1, "logTerm": (1 << 64) - 1},
    ],
)
def test_numbers_that_no_group_comes_to_are_dropped(numbers: dict[str, int]) -> None:
    raft = restart(1, 2, 3)
    play(raft, None)
    for kind in ("MsgHeartbeat", "MsgApp", "MsgVote", "MsgAppResp"):
        assert play(raft, message(kind, 2, **numbers)) == []
    assert raft.status().term == 1


def test_a_new_member_may_come_to_a_group_of_any_age() -> None:
    raft = Raft(events.Config(1), Random(1), None, None, (), 0, 0.0)
    raft.handle(None, 0.0)
    raft.handle(message("MsgHeartbeat", 2, 1 << 40), 0.0)
    assert raft.status().term == 1 << 40


def test_messages_for_somebody_else_are_dropped() -> None:
    raft = restart(1, 2, 3)
    play(raft, None)
    wrong = message("MsgHeartbeat", 2, 9)
    wrong.message.to = 3
    assert play(raft, wrong) == []
    assert raft.status().term == 1


def test_time_never_goes_back() -> None:
    raft = restart(1, 2, 3, now=100.0)
    play(raft, None, 100.0)
    deadline = raft.deadline()
    assert deadline is not None
    assert 101.0 <= deadline < 102.0
    play(raft, message("MsgHeartbeat", 2, 1), 50.0)
    later = raft.deadline()
    assert later is not None
    assert later >= 101.0


def test_a_member_that_belongs_to_no_group_waits_for_ever() -> None:
    raft = Raft(CONFIG, Random(1), None, None, (), 0, 5.0)
    assert raft.deadline() == 5.0
    play(raft, None, 5.0)
    assert raft.deadline() is None
    assert play(raft, events.Campaign(force=True), 6.0) == []


def test_everything_waits_while_a_leaders_snapshot_is_written() -> None:
    raft = Raft(CONFIG, Random(1), None, None, (), 0, 0.0)
    play(raft, None)
    snapshot = raftpb.Snapshot(data=b"state", metadata=metadata(5, 2, 1, 2))
    (persist,) = (e for e in raft.handle(message("MsgSnap", 2, 2, snapshot=snapshot), 0.0) if type(e) is events.Persist)
    assert persist.replaces_log
    assert persist.snapshot == snapshot
    assert raft.handle(events.Campaign(force=True), 0.0) == []
    effects = raft.handle(events.Persisted(persist.token), 0.0)
    assert events.Restore(snapshot) in effects
    assert [type(effect) for effect in effects] == [events.Send, events.Restore, events.MembershipChanged]


def test_a_snapshot_of_a_term_that_its_sender_has_not_come_to_is_dropped() -> None:
    raft = Raft(CONFIG, Random(1), None, None, (), 0, 0.0)
    play(raft, None)
    for term, taken in ((3, 0), (2, 1)):
        snapshot = raftpb.Snapshot(data=b"state", metadata=metadata(5, term, 1, 2))
        effects = raft.handle(message("MsgSnap", 2, 2, snapshot=snapshot), 0.0)
        assert sum(type(effect) is events.Persist for effect in effects) == taken
    raft.log.check()


@pytest.mark.parametrize(("voters", "role"), [((1,), events.Role.LEADER), ((1, 2), events.Role.CANDIDATE)])
def test_who_was_removed_is_a_member_again_when_the_leaders_snapshot_says_so(
    voters: tuple[int, ...], role: events.Role
) -> None:
    raft = restart(1, 2)
    removal = raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=1).SerializeToString()
    removes = raftpb.Entry(Type=raftpb.EntryConfChange, Term=2, Index=2, Data=removal)
    effects = play(raft, message("MsgApp", 2, 2, index=1, logTerm=1, entries=[removes], commit=2))
    assert [effect for effect in effects if isinstance(effect, events.Removed)]
    play(raft, None, now=1000.0)
    assert raft.status().role is events.Role.FOLLOWER  # no more than that
    snapshot = raftpb.Snapshot(data=b"state", metadata=metadata(9, 2, *voters))
    play(raft, message("MsgSnap", 2, 2, snapshot=snapshot), now=1000.0)
    effects = play(raft, None, now=2000.0)
    effects += play(raft, None, now=2000.0 + 2 * CONFIG.election_s)  # a member that was stalled waits once more
    assert raft.status().role is role
    assert not [effect for effect in effects if isinstance(effect, events.Removed)]


def test_a_stale_report_of_the_disk_is_ignored() -> None:
    raft = new_leader()
    raft.handle(events.Propose(1, b"a"), 0.0)
    assert raft.handle(events.Persisted(99), 0.0) == []
    assert raft.status().applied == 2


def test_an_own_snapshot_gets_its_term_and_members_and_frees_the_log() -> None:
    raft = new_leader()
    for tag in range(10):
        play(raft, events.Propose(tag, b"a"))
    snapshot = raftpb.Snapshot(data=b"state", metadata=raftpb.SnapshotMetadata(index=10))
    (persist,) = (e for e in raft.handle(events.SnapshotTaken(snapshot, 3), 0.0) if type(e) is events.Persist)
    assert persist.snapshot is not None
    assert persist.snapshot.metadata == metadata(10, 2, 1)
    assert persist.compact_to == 7
    assert raft.log.first_index == 8
    raft.handle(events.Persisted(persist.token), 0.0)
    assert raft.handle(events.SnapshotTaken(snapshot, 3), 0.0) == []  # taken twice


def test_a_snapshot_of_the_future_is_a_bug() -> None:
    raft = new_leader()
    with pytest.raises(events.LogConflict, match="only 2 is applied"):
        raft.handle(events.SnapshotTaken(raftpb.Snapshot(metadata=metadata(9, 2, 1)), 3), 0.0)


def test_a_member_that_finds_its_removal_at_a_restart_stays_to_vote() -> None:
    change = raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=1)
    removal = raftpb.Entry(Type=raftpb.EntryConfChange, Term=1, Index=2, Data=change.SerializeToString())
    raft = restart(1, 2, entries=(removal,), commit=2)
    assert events.Removed() not in play(raft, None)
    (answer,) = (e for e in play(raft, message("MsgVote", 2, 5, index=2, logTerm=1)) if type(e) is events.Send)
    assert not answer.message.reject
    deadline = raft.deadline()
    assert deadline == pytest.approx(30.0)
    assert events.Removed() in play(raft, None, 30.0)
    assert raft.deadline() is None


def test_a_running_member_that_is_removed_hears_of_it_at_once() -> None:
    raft = restart(1, 2)
    play(raft, None)
    change = raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=1)
    removal = raftpb.Entry(Type=raftpb.EntryConfChange, Term=1, Index=2, Data=change.SerializeToString())
    assert events.Removed() in play(raft, message("MsgApp", 2, 1, index=1, logTerm=1, entries=[removal], commit=2))
    assert raft.deadline() is None


def test_a_snapshot_is_asked_for_again_if_nobody_takes_it() -> None:
    raft = new_leader()
    play(raft, events.SnapshotTaken(raftpb.Snapshot(metadata=raftpb.SnapshotMetadata(index=2)), 0))
    play(raft, events.ProposeMembership(1, raftpb.ConfChange(type=raftpb.ConfChangeAddNode, node_id=2)))
    rejection = message("MsgAppResp", 2, 2, index=3, reject=True, rejectHint=0)
    assert events.NeedSnapshot(2) in play(raft, rejection)
    assert events.NeedSnapshot(2) not in play(raft, message("MsgHeartbeatResp", 2, 2), 0.5)
    assert events.NeedSnapshot(2) in play(raft, message("MsgHeartbeatResp", 2, 2), 1.5)


def test_a_leader_without_followers_owes_no_heartbeats() -> None:
    raft = new_leader()
    now, wakes = 0.0, 0
    while now < 100 * CONFIG.election_s:
        play(raft, None, now)
        deadline = raft.deadline()
        assert deadline is not None
        assert deadline > now
        now, wakes = deadline, wakes + 1
    assert wakes <= 101
    assert raft.status().role is events.Role.LEADER


def test_new_settings_take_effect_at_once() -> None:
    raft = new_leader()
    play(raft, events.ProposeMembership(1, raftpb.ConfChange(type=raftpb.ConfChangeAddNode, node_id=2)))
    play(raft, events.Configure(events.Config(1, tick_s=0.01)))
    deadline = raft.deadline()
    assert deadline is not None
    assert deadline <= 0.01
    follower = restart(1, 2, 3)
    play(follower, None)
    play(follower, events.Configure(events.Config(1, tick_s=1.0)))
    assert (follower.deadline() or 0) >= 10.0


def test_a_forced_new_cluster_keeps_the_whole_log_and_leads_alone() -> None:
    entries = (entry(2, 3, b"committed"), entry(3, 3, b"acknowledged, but the commit index is not on this disk"))
    snapshot = raftpb.Snapshot(data=b"state", metadata=metadata(1, 1, 1, 2, 3))
    state = raftpb.HardState(term=4, vote=2, commit=2)
    new_state, added = force_new_cluster(1, b"new address", state, snapshot, entries)
    raft = Raft(CONFIG, Random(1), new_state, snapshot, entries + added, 1, 0.0)
    committed = [e for effect in play(raft, None) if type(effect) is events.Committed for e in effect.entries]
    assert [e.Data for e in committed[:2]] == [e.Data for e in entries]
    update = raftpb.ConfChange.FromString(committed[2].Data)
    assert (update.type, update.node_id, update.context) == (raftpb.ConfChangeUpdateNode, 1, b"new address")
    assert raft.membership.voters == (1,)
    assert raft.status().role is events.Role.LEADER


def test_a_forced_new_cluster_takes_back_a_member_whose_removal_its_log_holds() -> None:
    removal = raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=1).SerializeToString()
    entries = (raftpb.Entry(Type=raftpb.EntryConfChange, Term=1, Index=2, Data=removal),)
    snapshot = raftpb.Snapshot(data=b"state", metadata=metadata(1, 1, 1, 2, 3))
    state, added = force_new_cluster(1, b"me", raftpb.HardState(term=1, commit=1), snapshot, entries)
    raft = Raft(CONFIG, Random(1), state, snapshot, entries + added, 1, 0.0)
    effects = play(raft, None)
    assert raft.status().role is events.Role.LEADER
    assert events.Removed() not in effects + play(raft, None, 100 * CONFIG.election_s)
    assert raft.membership.voters == (1,)


def test_the_last_member_leads_even_if_it_only_follows() -> None:
    follower = restart(1, 2, 3)
    play(follower, events.Configure(events.Config(1, tick_s=0.1, campaigns=False)))
    play(follower, message("MsgHeartbeat", 2, 1))
    for index, gone in ((2, 3), (3, 2)):
        removal = raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=gone).SerializeToString()
        change = raftpb.Entry(Type=raftpb.EntryConfChange, Term=1, Index=index, Data=removal)
        play(follower, message("MsgApp", 2, 1, index=index - 1, logTerm=1, entries=[change], commit=index))
    assert follower.status().leader == 2
    due = follower.deadline()
    assert due is not None
    play(follower, None, due)
    assert follower.status().role is events.Role.LEADER


def test_a_forced_new_cluster_adds_a_member_that_was_missing() -> None:
    state, added = force_new_cluster(7, b"me", raftpb.HardState(), None, bootstrap_entries(1, b"other"))
    raft = Raft(events.Config(7), Random(1), state, None, (*bootstrap_entries(1, b"other"), *added), 0, 0.0)
    play(raft, None)
    assert raft.membership.voters == (7,)
