"""How a leader's messages change the log of a follower. (etcd/raft: raft.go handleAppendEntries, restore)"""

from __future__ import annotations

from typing import Any

from swarm.api import raftpb
from swarm.raft.events import LogLost
from swarm.raft.log import Log


def take_append(log: Log, message: raftpb.Message) -> dict[str, Any] | None:
    """Merge the entries of a MsgApp. Returns the fields of the answer; None: the message makes no sense.

    Raises LogConflict if an entry contradicts a committed one.
    """
    entries = list(message.entries)
    term = message.logTerm
    for position, entry in enumerate(entries, 1):
        if entry.Index != message.index + position or not term <= entry.Term <= message.term:
            return None
        term = entry.Term
    if message.index < log.committed:
        return {"index": log.committed}
    if log.term_at(message.index) == message.logTerm:
        log.merge(entries)
        last = message.index + len(entries)
        log.commit_to(min(message.commit, last))
        return {"index": last}
    hint, hint_term = log.conflict_hint(min(message.index, log.last_index), message.logTerm)
    return {"index": message.index, "reject": True, "rejectHint": hint, "logTerm": hint_term}


def take_heartbeat(log: Log, message: raftpb.Message) -> None:
    """Take over the commit index. Raises LogLost if we do not have it: a leader names only what we confirmed."""
    if message.commit > log.last_index:
        raise LogLost(
            f"raft: the leader has this member's confirmation up to entry {message.commit}, but its log ends at "
            f"{log.last_index}: the disk was lost or is an old copy; this member must leave and join again"
        )
    log.commit_to(message.commit)


def take_snapshot(log: Log, message: raftpb.Message, raft_id: int) -> raftpb.Snapshot | None:
    """Replace the log by the snapshot of a MsgSnap; None if it is not needed or not for us."""
    metadata = message.snapshot.metadata
    if metadata.index <= log.committed or raft_id not in metadata.conf_state.voters:
        return None
    if log.term_at(metadata.index) == metadata.term:
        log.commit_to(metadata.index)
        return None
    snapshot = raftpb.Snapshot()
    snapshot.CopyFrom(message.snapshot)
    log.restore(metadata)
    return snapshot
