"""Stage: evicts tasks that no longer fit their node.

When labels or resources of an active node change, tasks that no longer meet the constraints of their service, or for
which the resources do not suffice, become REJECTED; the orchestrators then replace them on other nodes. The stage sets
the observed state and not the desired one, so that the restart policy applies.

(swarmkit: manager/orchestrator/constraintenforcer/constraint_enforcer.go)
"""

from __future__ import annotations

from swarm import api, defaults
from swarm.api.timestamps import stamp
from swarm.manager import tasks as t
from swarm.manager.backlog import Backlog
from swarm.manager.constraint import node_matches, parse_stored
from swarm.manager.genericresource import Remaining
from swarm.store.store import View
from swarm.store.tx import Tx

MESSAGE = "task rejected by constraint enforcer"
ERROR = "assigned node no longer meets constraints"


class EnforcerStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self._nodes = Backlog("enforcer", self._strict)
        self._checked: dict[str, bytes] = {}  # node ID -> what the last check depended on

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for node in view.all(api.Node):
            self.note("node", node.id)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind == "node":
            self._nodes.mark(object_id)

    def run(self, tx: Tx) -> None:
        """See Stage."""
        self._nodes.work(tx, self._check, limit=defaults.ENFORCER_NODES_PER_PASS)

    def deadline(self) -> float | None:
        """See Stage."""
        return self._nodes.deadline()

    def _check(self, tx: Tx, node_id: str) -> bool:
        node = tx.get(api.Node, node_id)
        if node is None:
            self._checked.pop(node_id, None)
            return True
        facts = _facts(node)
        if self._checked.get(node_id) == facts:
            return True
        if node.spec.availability == api.NodeSpec.ACTIVE:  # a drained node loses all its tasks, a paused one none
            for task_id in self._misfits(tx, node):
                if not tx.room():
                    return False
                status = tx.edit(api.Task, task_id).status
                status.state = api.REJECTED
                status.message = MESSAGE
                status.err = ERROR
                stamp(status.timestamp, tx.now)
        self._checked[node_id] = facts
        return True

    @staticmethod
    def _misfits(tx: Tx, node: api.Node) -> list[str]:
        """IDs of the tasks to reject. Tasks get the node's resources in the order of their creation."""
        tasks = [
            task
            for task in tx.find(api.Task, "node", node.id)
            if t.is_wanted(task) and api.ASSIGNED <= task.status.state < api.COMPLETE
        ]
        resources = node.description.resources
        cpus, memory = resources.nano_cpus, resources.memory_bytes
        generic = Remaining(resources.generic)
        out = []
        for task in sorted(tasks, key=lambda x: (t.created_at(x, tx.now), x.slot, x.id)):
            service = tx.get(api.Service, task.service_id) if task.service_id else None
            # The service's constraints may have changed without making this task out of date.
            placement = task.spec.placement if service is None else service.spec.task.placement
            reserved = task.spec.resources.reservations
            if (
                not node_matches(parse_stored(placement.constraints), node)
                or reserved.memory_bytes > memory
                or reserved.nano_cpus > cpus
                or not generic.take(task.assigned_generic_resources)
            ):
                out.append(task.id)
                continue
            cpus -= reserved.nano_cpus
            memory -= reserved.memory_bytes
        return out


def _facts(node: api.Node) -> bytes:
    """Everything of the node that a check depends on."""
    copy = api.Node(id=node.id, role=node.role)
    copy.spec.CopyFrom(node.spec)
    copy.description.CopyFrom(node.description)
    copy.status.addr = node.status.addr
    return copy.SerializeToString(deterministic=True)
