"""The Raft group as swarm.manager.controlapi sees it (its protocol Members), without Raft."""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm import api


@dataclass
class FakeMembers:
    """members: node ID -> status. removable: who can leave without loss of the quorum. full: the group may not grow."""

    members: dict[str, api.ManagerStatus] = field(default_factory=dict)
    removable: list[str] = field(default_factory=list)
    full: bool = False

    def may_grow(self) -> bool:
        return not self.full

    def is_member(self, node_id: str) -> bool:
        return node_id in self.members

    def can_remove(self, node_id: str) -> bool:
        return node_id in self.removable

    def can_spare(self, node_id: str) -> bool:
        return node_id in self.removable

    def member_of(self, node_id: str) -> api.ManagerStatus | None:
        return self.members.get(node_id)
