"""What members and nodes were relied on for: it must hold after every restart, whatever their disks did.

A vote that was granted is the only one of its term. What a member told a leader to have in its log is there when it
starts again. What belongs to a node that was told to be in the cluster goes only when somebody lets it go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.api import raftpb
from swarm.io.disk.raft_disk import Loaded
from swarm.raft import events

if TYPE_CHECKING:
    from tests.sim.world import Node


class Promises:
    """Of all members that there ever were, by their Raft IDs."""

    def __init__(self) -> None:
        self._votes: dict[tuple[int, int], int] = {}
        self._appended: dict[int, tuple[int, int]] = {}

    # --- members ---------------------------------------------------------------------------------------------------

    def sends(self, raft_id: int, message: raftpb.Message) -> None:
        """A member says something to another: votes and accepted entries are promises."""
        if message.type == raftpb.MsgVote:
            self._votes_for(raft_id, message.term, raft_id)
        elif message.type == raftpb.MsgVoteResp and not message.reject:
            self._votes_for(raft_id, message.term, message.to)
        elif message.type == raftpb.MsgAppResp and not message.reject:
            self._appended[raft_id] = max(self._appended.get(raft_id, (0, 0)), (message.term, message.index))

    def _votes_for(self, raft_id: int, term: int, candidate: int) -> None:
        holder = self._votes.setdefault((raft_id, term), candidate)
        assert holder == candidate, f"{raft_id:x} votes for {holder:x} and {candidate:x} in term {term}"

    def replaces(self, raft_id: int, persist: events.Persist) -> None:
        """A member is told to write other entries in the place of what it has."""
        if persist.replaces_log or persist.entries:
            first = 1 if persist.replaces_log else persist.entries[0].Index
            term, index = self._appended.get(raft_id, (0, 0))
            self._appended[raft_id] = term, min(index, first - 1)

    def starts(self, raft_id: int, loaded: Loaded) -> None:
        """A member starts with this content of its disk."""
        term, index = self._appended.get(raft_id, (0, 0))
        has = _last_index(loaded.entries, loaded.applied_index)
        assert has >= index, f"{raft_id:x} starts with entries up to {has}, and had accepted {index}"
        voted = max((in_term for member, in_term in self._votes if member == raft_id), default=0)
        known = loaded.hard_state.term if loaded.hard_state is not None else 0
        assert known >= max(term, voted), f"{raft_id:x} starts in term {known} after {max(term, voted)}"

    def accepts_loss(self, raft_id: int) -> None:
        """An operator was told that this member has lost something, and goes on with it alone."""
        self._appended.pop(raft_id, None)
        self._votes = {key: candidate for key, candidate in self._votes.items() if key[0] != raft_id}

    # --- nodes -----------------------------------------------------------------------------------------------------

    def erases(self, node: Node) -> None:
        """Everything of this node is deleted."""
        assert node.leaving or not node.acknowledged, f"{node.name} was told to be in the cluster, and erases its disk"

    def forgets_log(self, node: Node) -> None:
        """The log is deleted."""
        assert not node.disk.raft_id, f"{node.name} deletes the log that its state names"

    def comes_back(self, node: Node) -> None:
        """Its machine is about to start the daemon."""
        kept = node.disk.saved or node.leaving or node.ailing or not node.acknowledged
        assert kept, f"the state of {node.name} vanished"


def _last_index(entries: Sequence[raftpb.Entry], snapshot_index: int) -> int:
    return max(entries[-1].Index if entries else 0, snapshot_index)
