"""Stage: makes the role of each node what its spec asks for; the Raft group goes first when a manager steps down.

    promotion: Node.role = MANAGER at once; the node renews its certificate, starts its manager and joins the group
    demotion:  ask the group to remove the member, until it is gone; only then Node.role = WORKER, and the manager
               certificates that the node ever got are void

A manager whose removal would cost the quorum stays one until that has changed; the stage tries again. A member whose
node is none that should manage, or is gone, is removed as well: it joined with a certificate of before its demotion, or
was taken in while that was decided. The only member manages whatever its node says: a new cluster was forced there.

(swarmkit: manager/role_manager.go)
"""

from __future__ import annotations

from typing import Protocol

import structlog

from swarm import api, defaults
from swarm.api.enums import enum_name
from swarm.manager.service import RemoveMember
from swarm.manager.stage import DUE_NOW
from swarm.manager.standing import note_demotion
from swarm.store.store import View
from swarm.store.tx import Tx

log = structlog.get_logger()


class Members(Protocol):
    """What the stage needs of the Raft group."""

    def addresses(self) -> list[tuple[str, str]]:
        """(node ID, "ip:port") of every member."""
        ...

    def is_member(self, node_id: str) -> bool:
        """Whether this node is in the group."""
        ...

    def can_remove(self, node_id: str) -> bool:
        """Whether the group keeps its quorum without this node."""
        ...


class RolesStage:
    """See the module."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._dirty: dict[str, None] = {}
        self._stepping_down: dict[str, None] = {}
        self._retry_at: float | None = None

    def rebuild(self, view: View, now: float) -> None:
        """See Stage.rebuild."""
        self._dirty = {node.id: None for node in view.all(api.Node)}
        self._stepping_down = {}
        self._retry_at = None

    def note(self, kind: str, object_id: str) -> None:
        """See Stage.note."""
        if kind == "node":
            self._dirty[object_id] = None

    def run(self, tx: Tx) -> None:
        """See Stage.run."""
        self._dirty.update(self._stepping_down)
        self._dirty.update(self._intruders(tx))
        self._retry_at = None
        for node_id in list(self._dirty):
            if not tx.room():
                return
            del self._dirty[node_id]
            self._stepping_down.pop(node_id, None)
            self._change(tx, node_id)
        if self._stepping_down:
            self._retry_at = tx.now + defaults.ROLE_RETRY_S

    def _intruders(self, tx: Tx) -> dict[str, None]:
        """Members that should not be; a group changes without a note. The first member is older than its node."""
        if not tx.count(api.Node):
            return {}
        return {node_id: None for node_id, _ in self._members.addresses() if not _manages(tx.get(api.Node, node_id))}

    def _change(self, tx: Tx, node_id: str) -> None:
        node = tx.get(api.Node, node_id)
        if not _manages(node) and self._members.is_member(node_id):
            if node is not None and len(self._members.addresses()) == 1:
                _reinstate(tx.edit(api.Node, node_id))
                return
            self._stepping_down[node_id] = None
            if self._members.can_remove(node_id):
                tx.after_commit(RemoveMember(node_id))
            else:
                log.warning("role.demotion_waits", node=node_id, reason="the group would lose its quorum")
        elif node is not None and node.role != node.spec.desired_role:
            _change_role(tx.edit(api.Node, node_id))
            log.info("role.changed", node=node_id, role=enum_name(api.NodeRole, node.spec.desired_role))

    def deadline(self) -> float | None:
        """See Stage.deadline."""
        return DUE_NOW if self._dirty else self._retry_at


def _manages(node: api.Node | None) -> bool:
    """Whether the node is meant to be a manager."""
    return node is not None and node.spec.desired_role == api.MANAGER


def _change_role(node: api.Node) -> None:
    if node.spec.desired_role == api.WORKER:
        note_demotion(node)
    node.role = node.spec.desired_role
    issued = node.certificate.status.state == api.IssuanceStatus.ISSUED
    if node.role == api.MANAGER and issued and node.certificate.role == api.MANAGER:
        # it has not noticed its demotion, and would come with a certificate that is void
        node.certificate.status.state = api.IssuanceStatus.ROTATE


def _reinstate(node: api.Node) -> None:
    node.role = node.spec.desired_role = api.MANAGER
    node.authority.ClearField("void_until")
    log.warning("role.reinstated", node=node.id, reason="it is the only member of the group")
