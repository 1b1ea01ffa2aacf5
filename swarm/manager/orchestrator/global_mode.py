"""Stage: one task per fitting node of each global service.

The stage works on pairs of a service and a node. A node fits when it exists, is not down, is active and meets the
constraints. A paused node keeps its tasks. The restart stage replaces ended tasks, the update stage replaces tasks that
are out of date. One case is left to this stage: a node that did not fit while the service was updated gets its new task
at once, because the rolling update is over.

(swarmkit: manager/orchestrator/global/global.go)
"""

from __future__ import annotations

from swarm import api
from swarm.manager import tasks as t
from swarm.manager.backlog import Backlog
from swarm.store.store import View
from swarm.store.tx import Tx

_UNDECIDED = (  # the update stage is at work, or it stopped so that the user can have a look
    api.UpdateStatus.UPDATING,
    api.UpdateStatus.PAUSED,
    api.UpdateStatus.ROLLBACK_STARTED,
    api.UpdateStatus.ROLLBACK_PAUSED,
)


class GlobalStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self._services: dict[str, None] = {}  # the global ones that exist
        self._noted: dict[str, dict[str, None]] = {"service": {}, "node": {}, "task": {}}
        self._pairs = Backlog("global", self._strict)  # "<service> <node>"
        self._changed_nodes: dict[str, None] = {}  # pairs whose node changed while their service did not

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for service in view.all(api.Service):
            self.note("service", service.id)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind in self._noted:
            self._noted[kind][object_id] = None

    def run(self, tx: Tx) -> None:
        """See Stage."""
        noted, self._noted = self._noted, {"service": {}, "node": {}, "task": {}}
        for service_id in noted["service"]:
            self._mark_service(tx, service_id)
        if not self._services:
            return
        for node_id in noted["node"]:
            for service_id in self._services:
                pair = f"{service_id} {node_id}"
                self._pairs.mark(pair)
                if service_id not in noted["service"]:
                    self._changed_nodes[pair] = None
        for task_id in noted["task"]:
            task = tx.get(api.Task, task_id)
            if task is not None and task.service_id in self._services and task.node_id:
                self._mark_task(tx, task)
        self._pairs.work(tx, self._reconcile)

    def deadline(self) -> float | None:
        """See Stage."""
        return self._pairs.deadline()

    def _mark_service(self, tx: Tx, service_id: str) -> None:
        if t.mode_of(tx.get(api.Service, service_id)) != t.GLOBAL:
            self._services.pop(service_id, None)
            return
        self._services[service_id] = None
        nodes = dict.fromkeys(node.id for node in tx.all(api.Node))
        nodes.update(dict.fromkeys(task.node_id for task in tx.find(api.Task, "service", service_id)))
        for node_id in nodes:
            self._pairs.mark(f"{service_id} {node_id}")

    def _mark_task(self, tx: Tx, task: api.Task) -> None:
        """Mark the pair of a task that ends or whose node does not fit any more."""
        if task.desired_state > api.RUNNING or t.invalid_node(tx.get(api.Node, task.node_id)):
            self._pairs.mark(f"{task.service_id} {task.node_id}")

    def _reconcile(self, tx: Tx, pair: str) -> bool:
        service_id, node_id = pair.split(" ", 1)
        service = tx.get(api.Service, service_id)
        if service is None or t.mode_of(service) != t.GLOBAL:
            self._changed_nodes.pop(pair, None)
            return True
        node = tx.get(api.Node, node_id)
        tasks = [task for task in tx.find(api.Task, "node", node_id) if task.service_id == service_id]
        live = [task for task in tasks if task.desired_state <= api.RUNNING]
        done = True
        if node is None:
            done = self._end(tx, tasks, api.REMOVE)
        elif t.invalid_node(node) or not t.constraints_match(service, node):
            done = self._end(tx, live, api.SHUTDOWN)
        elif node.spec.availability == api.NodeSpec.PAUSE:
            pass  # running tasks stay, ended ones are not replaced
        elif live and pair in self._changed_nodes and service.update_status.state not in _UNDECIDED:
            done = self._bring_up_to_date(tx, service, node, live)
        elif not t.updatable_tasks(service, [task for task in tasks if task.desired_state < api.REMOVE], tx.now):
            t.new_task(tx, service, node_id=node_id)
        if done:
            self._changed_nodes.pop(pair, None)
        return done

    def _bring_up_to_date(self, tx: Tx, service: api.Service, node: api.Node, live: list[api.Task]) -> bool:
        """Replace tasks that are out of date: the node may have missed an update while it did not fit."""
        clean = [task for task in live if not t.is_task_dirty(service, task, node)]
        if not clean:
            t.new_task(tx, service, node_id=node.id)
        return self._end(tx, [task for task in live if task not in clean[:1]], api.SHUTDOWN)

    @staticmethod
    def _end(tx: Tx, tasks: list[api.Task], desired: api.TaskState) -> bool:
        for task in tasks:
            if not tx.room():
                return False
            t.lower(tx, task.id, desired)
        return True
