"""Which networks a node takes part in: those of its tasks that have not ended, and the network of the routing mesh.

(swarmkit: manager/allocator/network.go getNodeNetworks)
"""

from __future__ import annotations

from swarm import api
from swarm.manager.networks import is_node_local
from swarm.store.store import View


class NodeNetworks:
    """Follows from the tasks alone."""

    def __init__(self) -> None:
        self._of_task: dict[str, tuple[str, tuple[str, ...]]] = {}  # task ID -> node ID, network IDs
        self._tasks: dict[str, dict[str, dict[str, None]]] = {}  # node ID -> network ID -> task IDs
        self._nodes: dict[str, dict[str, None]] = {}  # network ID -> node IDs

    def account(self, task_id: str, task: api.Task | None) -> list[str]:
        """Replace what is known of this task; None: it is gone. Returns the nodes whose networks are others now."""
        now = _use_of(task)
        before = self._of_task.get(task_id)
        if now == before:
            return []
        changed: dict[str, None] = {}
        if before is not None:
            del self._of_task[task_id]
            self._remove(task_id, *before, changed)
        if now is not None:
            self._of_task[task_id] = now
            self._add(task_id, *now, changed)
        return list(changed)

    def _add(self, task_id: str, node_id: str, network_ids: tuple[str, ...], changed: dict[str, None]) -> None:
        rows = self._tasks.setdefault(node_id, {})
        for network_id in network_ids:
            if network_id not in rows:
                changed[node_id] = None
                self._nodes.setdefault(network_id, {})[node_id] = None
            rows.setdefault(network_id, {})[task_id] = None

    def _remove(self, task_id: str, node_id: str, network_ids: tuple[str, ...], changed: dict[str, None]) -> None:
        rows = self._tasks[node_id]
        for network_id in network_ids:
            del rows[network_id][task_id]
            if not rows[network_id]:
                del rows[network_id]
                changed[node_id] = None
                del self._nodes[network_id][node_id]
                if not self._nodes[network_id]:
                    del self._nodes[network_id]
        if not rows:
            del self._tasks[node_id]

    def nodes(self, network_id: str) -> list[str]:
        """Nodes with tasks in this network."""
        return list(self._nodes.get(network_id, ()))

    def networks(self, node_id: str) -> list[str]:
        """The networks of the node's tasks, the oldest use first."""
        return list(self._tasks.get(node_id, ()))

    def of(self, view: View, node_id: str, ingress_id: str) -> list[str]:
        """The IDs of the networks in which the node takes part, the oldest use first and the ingress network last."""
        found = dict.fromkeys((*self._tasks.get(node_id, ()), ingress_id))
        return [network_id for network_id in found if view.get(api.Network, network_id) is not None]

    def state(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """For the audit."""
        return {task_id: self._of_task[task_id] for task_id in sorted(self._of_task)}


def _use_of(task: api.Task | None) -> tuple[str, tuple[str, ...]] | None:
    if task is None or not task.node_id or task.status.state > api.RUNNING:
        return None
    found = tuple(
        dict.fromkeys(attachment.network.id for attachment in task.networks if not is_node_local(attachment.network))
    )
    return (task.node_id, found) if found else None
