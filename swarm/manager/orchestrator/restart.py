"""Stage: replaces tasks that ended or lost their node, and starts tasks that wait in READY.

Theory of operation. A task that is meant to run but ended (or whose node is gone, down or drained) gets desired state
SHUTDOWN; if the restart policy wants another one, a replacement with desired state READY is created in the same entry.
READY means: choose a node, pull, create, then wait. The update stage makes such tasks as well. A waiting task may start
(desired state RUNNING; COMPLETE for jobs) when its delay is over *and* the tasks before it in its slot have stopped; it
waits for them at most 60 s. A waiting task that fails is not replaced before its own delay is over, so that an
image that does not exist is not tried in a tight loop.

The stage remembers none of this: the delay runs from the task's creation, and the store has the tasks before it. So a
new leader waits exactly as long as the old one would have.

(swarmkit: manager/orchestrator/restart/restart.go, replicated/tasks.go, taskinit/init.go)
"""

from __future__ import annotations

from swarm import api, defaults
from swarm.manager import tasks as t
from swarm.manager.backlog import Backlog, Timers, earliest
from swarm.store.store import View
from swarm.store.tx import Tx

_BY_ITSELF = (api.COMPLETE, api.FAILED, api.REJECTED, api.ORPHANED)


class RestartStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self._tasks: dict[str, None] = {}
        self._nodes: dict[str, None] = {}
        self._work = Backlog("restart", self._strict)
        self._starts = Timers()
        self._waiting: dict[str, dict[str, None]] = {}  # slot key -> READY tasks in it
        self._slot_of: dict[str, str] = {}  # of the waiting tasks

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for task in view.all(api.Task):
            self.note("task", task.id)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind == "task":
            self._tasks[object_id] = None
        elif kind == "node":
            self._nodes[object_id] = None

    def run(self, tx: Tx) -> None:
        """See Stage."""
        for node_id in self._nodes:
            if t.invalid_node(tx.get(api.Node, node_id)):
                self._tasks.update(dict.fromkeys(task.id for task in tx.find(api.Task, "node", node_id)))
        self._nodes = {}
        noted, self._tasks = self._tasks, {}
        for task_id in noted:
            self._look(tx, task_id)
        for task_id in self._starts.due(tx.now):
            self._work.mark(task_id)
        self._work.work(tx, self._advance)

    def deadline(self) -> float | None:
        """See Stage."""
        return earliest(self._work.deadline(), self._starts.deadline())

    def _look(self, tx: Tx, task_id: str) -> None:
        """Mark the task if it needs anything, and those in its slot that may wait for it."""
        task = tx.get(api.Task, task_id)
        if task is None or task.desired_state != api.READY:
            self._forget(task_id)
        if task is None or not task.service_id:
            return
        if t.is_wanted(task):
            if task.desired_state == api.READY or self._is_lost(tx, task):
                self._work.mark(task_id)
        elif self._waiting:
            service = tx.get(api.Service, task.service_id)
            if service is not None:
                for waiting_id in self._waiting.get(t.slot_of(service, task), ()):
                    self._work.mark(waiting_id)

    def _forget(self, task_id: str) -> None:
        key = self._slot_of.pop(task_id, None)
        if key is not None:
            del self._waiting[key][task_id]
            if not self._waiting[key]:
                del self._waiting[key]
        self._starts.cancel(task_id)

    @staticmethod
    def _is_lost(tx: Tx, task: api.Task) -> bool:
        """Whether the task ended, or cannot go on where it is. A complete task of a job is not lost.

        Global services end the tasks on a node that does not fit any more; those are not lost either.
        """
        if task.status.state > api.RUNNING:
            return task.status.state > t.last_wanted(task)
        if not task.node_id or not t.invalid_node(tx.get(api.Node, task.node_id)):
            return False
        return t.mode_of(tx.get(api.Service, task.service_id)) in (t.REPLICATED, t.REPLICATED_JOB)

    def _advance(self, tx: Tx, task_id: str) -> bool:
        task = tx.get(api.Task, task_id)
        service = None if task is None else tx.get(api.Service, task.service_id)
        if task is None or service is None or not t.is_wanted(task):
            self._forget(task_id)
            return True
        siblings = t.slot_tasks(tx, service, task)
        if task.desired_state == api.READY:
            start = _start_at(tx, service, task, siblings)
            if start > tx.now:
                self._forget(task_id)
                key = self._slot_of[task_id] = t.slot_of(service, task)
                self._waiting.setdefault(key, {})[task_id] = None
                self._starts.set(task_id, start)
                return True
        self._forget(task_id)
        if self._is_lost(tx, task):
            self._replace(tx, service, task, siblings)
        elif task.desired_state < api.RUNNING:
            tx.edit(api.Task, task_id).desired_state = t.last_wanted(task)
        return True

    def _replace(self, tx: Tx, service: api.Service, task: api.Task, siblings: list[api.Task]) -> None:
        """Take the task out of service, and create its replacement where the policy and the mode want one."""
        wanted = t.should_restart(service, task, siblings, tx.now)
        t.lower(tx, task.id, api.SHUTDOWN)
        mode = t.mode_of(service)
        if not wanted or mode is None:
            return
        if mode in (t.REPLICATED_JOB, t.GLOBAL_JOB) and (
            task.job_iteration.index != service.job_status.job_iteration.index
        ):
            return
        if any(other.id != task.id and t.is_wanted(other) for other in siblings):
            return  # the slot has another live task already, for example one that an update started first
        if mode in (t.REPLICATED, t.REPLICATED_JOB):
            t.new_task(tx, service, task.slot, ready=True)
            return
        node = tx.get(api.Node, task.node_id)
        if (
            node is not None
            and not t.invalid_node(node)
            and node.spec.availability == api.NodeSpec.ACTIVE
            and t.constraints_match(service, node)
        ):
            t.new_task(tx, service, node_id=task.node_id, ready=True)


def _start_at(tx: Tx, service: api.Service, task: api.Task, siblings: list[api.Task]) -> float:
    """When a READY task may start, in seconds since the epoch; a time in the past means now."""
    created = t.created_at(task, tx.now)
    older = [other for other in siblings if other.id != task.id and t.created_at(other, tx.now) <= created]
    start = created
    stopping = [
        other
        for other in siblings
        if not t.is_wanted(other) and api.ASSIGNED <= other.status.state <= api.RUNNING and not _node_lost(tx, other)
    ]
    if older:
        # Of tasks created at the same moment, take the one that changed last.
        before = max(older, key=lambda other: (t.created_at(other, tx.now), other.meta.version.index, other.id))
        start += _delay_s(tx, service, task, before, siblings)
    if stopping:
        start = max(start, created + defaults.OLD_TASK_STOP_WAIT_S)
    return start


def _node_lost(tx: Tx, task: api.Task) -> bool:
    """Whether the task's node is gone or down."""
    node = tx.get(api.Node, task.node_id)
    return node is None or node.status.state == api.NodeStatus.DOWN


def _delay_s(tx: Tx, service: api.Service, task: api.Task, before: api.Task, siblings: list[api.Task]) -> float:
    """How long ``task`` waits after its creation because it replaces ``before``.

    A restart waits for the policy's delay, except when the node is drained. An update does not wait. It was an update
    if the spec changed and one of these holds: the task before had neither ended by itself nor lost its node, the
    policy would not have restarted it, or the service is rolled back because such tasks fail.
    """
    node = tx.get(api.Node, before.node_id) if before.node_id else None
    if node is not None and node.spec.availability == api.NodeSpec.DRAIN:
        return 0.0
    if before.spec_version.index != task.spec_version.index:
        if service.update_status.state == api.UpdateStatus.ROLLBACK_STARTED:
            return 0.0
        ended = before.status.state in _BY_ITSELF and t.status_at(before) <= t.created_at(task, tx.now)
        if not ended and not (before.node_id and _node_lost(tx, before)):
            return 0.0
        if not t.should_restart(service, before, [s for s in siblings if s.id != task.id], tx.now):
            return 0.0
    return t.restart_delay_s(before)
