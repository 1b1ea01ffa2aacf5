"""Whose messages of the log count: each is judged anew by the group and the store as this manager knows them.

    the raft ID was removed                  it is told so, and stops (the exact text counts)
    the raft ID is a member                  it counts from the node of this member alone, if that is a manager
    nobody is known to have the raft ID      it counts only if this manager must lag behind

The store says who is a manager. A demoted node leaves the group before its role changes, so a member is never a worker
in a store that is complete, and a manager certificate that the last demotion has made void is worth nothing.

A member that was cut off may find that the others are gone, and be told of the group's decisions by a leader that it
has never heard of. It must believe that leader, or it stays behind for ever. But it believes nobody while it leads or
hears a leader that it believes already, and only a node whose certificate shows that the store lags:

    the store does not know the node         it joined since (who was removed is remembered)
    it is a worker                           it was promoted since: its certificate is newer than the one on record
    it is a manager without a member         it joined the group since
    it is another member                     it left and joined again since, and got a newer certificate for that

(In SwarmKit every manager certificate is believed whatever raft ID it names: raft.go ProcessRaftMessage.)
"""

from __future__ import annotations

from swarm import api, defaults
from swarm.errors import NotFound, PermissionDenied
from swarm.manager.group.members import RaftGroup
from swarm.manager.node_keys import is_superseded
from swarm.manager.standing import is_newer, is_removed, why_no_manager
from swarm.raft.raft import Raft
from swarm.rpc import Peer
from swarm.store.store import Store


class Senders:
    """See the module. now: seconds since the epoch."""

    def __init__(self, group: RaftGroup, raft: Raft, store: Store) -> None:
        self._group = group
        self._raft = raft
        self._store = store
        self._believed: dict[int, str] = {}  # node IDs, by raft IDs that are not known to be members

    def believed(self, raft_id: int, sender: Peer) -> None:
        """A message was taken: while the log does not tell of this raft ID, it belongs to this node."""
        if raft_id in self._group.members:
            self._believed.pop(raft_id, None)
            return
        if len(self._believed) >= defaults.MANAGERS_MAX:
            self._believed.clear()
        self._believed[raft_id] = sender.node_id

    def refusal(self, raft_id: int, sender: Peer, now: float, leading: bool) -> NotFound | PermissionDenied | None:
        """Why a message of this raft ID, that came from this node, does not count; None: it does.

        leading: this manager leads, and its store lacks nothing.
        """
        refusal = self._group.refusal(raft_id, sender)
        if refusal is not None:
            return refusal
        if is_removed(self._store, sender.node_id):
            return PermissionDenied(f"raft: node {sender.node_id} was removed from the swarm")
        if reason := why_no_manager(self._store, sender, leading):
            return PermissionDenied(f"raft: {reason}")
        if raft_id in self._group.members:
            return None
        return self._of_unknown(raft_id, sender, now)

    def is_superseded(self, sender: Peer) -> bool:
        """Whether it has an old copy of its node's certificate, which does not show where the node is."""
        return is_superseded(self._store, sender)

    def of_node(self, sender: Peer, leading: bool) -> PermissionDenied | None:
        """Why this node may not ask as a manager; None: it may."""
        if is_removed(self._store, sender.node_id):
            return PermissionDenied(f"raft: node {sender.node_id} was removed from the swarm")
        reason = why_no_manager(self._store, sender, leading)
        return PermissionDenied(f"raft: {reason}") if reason else None

    def _of_unknown(self, raft_id: int, sender: Peer, now: float) -> PermissionDenied | None:
        node_id = self._believed.get(raft_id, "")
        if node_id not in ("", sender.node_id):
            return PermissionDenied(f"raft: member {raft_id:x} is not on node {sender.node_id}")
        if self._raft.hears_leader(now) and not (node_id and self._raft.leader == raft_id):
            return PermissionDenied(f"raft: {raft_id:x} is no member of the group, which has a leader")
        other, node = self._group.by_node(sender.node_id), self._store.get(api.Node, sender.node_id)
        if other is not None and (node is None or not is_newer(node, sender)):
            return PermissionDenied(f"raft: node {sender.node_id} is member {other.raft_id:x}, not {raft_id:x}")
        return None
