"""The log against the plainest model of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.api import raftpb
from swarm.raft.events import LogConflict
from swarm.raft.following import take_append
from swarm.raft.log import Log

terms = st.lists(st.integers(1, 4), max_size=12).map(sorted)


def make(log_terms: list[int], first: int = 1) -> list[raftpb.Entry]:
    return [raftpb.Entry(Term=term, Index=first + i, Data=b"%d" % term) for i, term in enumerate(log_terms)]


def content(log: Log) -> list[int]:
    return [entry.Term for entry in log.between(1, log.last_index)]


@given(ours=terms, theirs=terms, data=st.data())
def test_merging_a_leaders_entries_gives_the_leaders_log(
    ours: list[int], theirs: list[int], data: st.DataObject
) -> None:
    log = Log(None, make(ours))
    common = 0
    while common < min(len(ours), len(theirs)) and ours[common] == theirs[common]:
        common += 1
    before = data.draw(st.integers(0, common))
    sent = make(theirs)[before:]
    message = raftpb.Message(index=before, logTerm=theirs[before - 1] if before else 0, term=9, entries=sent)
    answer = take_append(log, message)
    assert answer == {"index": len(theirs)}
    kept = ours[len(theirs) :] if common == len(theirs) else []
    assert content(log) == theirs + kept
    log.check()


@given(
    common=terms,
    ours=st.lists(st.sampled_from((5, 7, 9)), max_size=8).map(sorted),
    theirs=st.lists(st.sampled_from((6, 8)), max_size=8).map(sorted),
)
def test_hints_lead_to_the_common_prefix_in_few_rounds(common: list[int], ours: list[int], theirs: list[int]) -> None:
    ours, theirs = common + ours, common + theirs  # terms are never shared after the logs part
    log, leader = Log(None, make(ours)), Log(None, make(theirs))
    probe, rounds = leader.last_index, 0
    while True:
        term = leader.term_at(probe)
        answer = take_append(log, raftpb.Message(index=probe, logTerm=term, term=9))
        assert answer is not None
        if not answer.get("reject"):
            break
        probe, _ = leader.conflict_hint(answer["rejectHint"], answer["logTerm"])
        rounds += 1
        assert rounds <= 3, "a round per term at most"
    assert ours[:probe] == theirs[:probe]


@given(log_terms=terms.filter(bool), data=st.data())
def test_a_compacted_log_answers_as_before_for_what_is_left(log_terms: list[int], data: st.DataObject) -> None:
    log = Log(None, make(log_terms))
    log.commit_to(len(log_terms))
    log.applied = len(log_terms)
    at = data.draw(st.integers(0, len(log_terms)))
    log.compact(at)
    log.check()
    assert log.last_index == len(log_terms)
    assert [log.term_at(index) for index in range(max(at, 1), log.last_index + 1)] == log_terms[max(at, 1) - 1 :]
    assert at < 2 or log.term_at(at - 1) is None


@given(log_terms=terms, limit=st.integers(1, 200))
def test_batches_fit_or_hold_a_single_entry(log_terms: list[int], limit: int) -> None:
    log = Log(None, make(log_terms))
    position, sizes = 1, []
    while batch := log.batch(position, limit):
        sizes.append(sum(len(entry.Data) + 24 for entry in batch))
        assert sizes[-1] <= limit or len(batch) == 1
        position += len(batch)
    assert position == len(log_terms) + 1


def test_what_is_committed_is_never_replaced() -> None:
    log = Log(None, make([1, 1, 1]))
    log.commit_to(2)
    with pytest.raises(LogConflict):
        log.append(make([2], first=2))
    log.append(make([2], first=3))
    assert content(log) == [1, 1, 2]


def test_replaced_entries_are_not_on_disk_any_more() -> None:
    log = Log(None, make([1, 1, 1]))
    assert log.stable == 3
    log.append(make([2], first=2))
    assert (log.stable, log.submitted) == (1, 1)
    assert [entry.Index for entry in log.unsubmitted()] == [2]


def test_entries_before_the_snapshots_end_are_kept_for_slow_followers() -> None:
    log = Log(raftpb.SnapshotMetadata(index=4, term=2), make([1, 1, 2, 2, 3]))
    assert (log.first_index, log.last_index, log.applied) == (2, 5, 4)
    assert log.term_at(1) == 1


def test_a_log_that_ends_before_the_snapshot_is_dropped() -> None:
    log = Log(raftpb.SnapshotMetadata(index=9, term=3), make([1, 1]))
    assert (log.first_index, log.last_index, log.last_term) == (10, 9, 3)
