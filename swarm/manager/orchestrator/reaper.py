"""Stage: limits the task history, removes tasks, and gives up tasks whose service or node is gone.

* A task with desired state REMOVE that no agent has to stop any more is deleted.
* When a service is gone, its tasks get desired state REMOVE. When a node is gone, its assigned tasks become ORPHANED.
* A slot keeps at most TaskHistoryRetentionLimit tasks, live ones included; the oldest ended ones are deleted first.
  If restarts are limited, it keeps one task more than that limit instead, because restarts are counted from them. An
  ended task that the policy does not replace stays, because its slot would look empty without it. Jobs keep all tasks.

(swarmkit: manager/orchestrator/taskreaper/task_reaper.go, manager/orchestrator/service.go,
manager/controlapi/node.go orphanNodeTasks)
"""

from __future__ import annotations

from swarm import api, defaults
from swarm.api.timestamps import stamp
from swarm.manager import tasks as t
from swarm.manager.backlog import Backlog, Timers, earliest
from swarm.manager.stage import DUE_NOW
from swarm.store.store import View
from swarm.store.tx import Tx

ORPHANED_MESSAGE = "Task belonged to a node that has been deleted"


def _may_go(task: api.Task) -> bool:
    """Whether no agent has anything to stop: it never got a node, or it ended."""
    return task.status.state < api.ASSIGNED or task.status.state >= api.COMPLETE


class ReaperStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self._tasks: dict[str, None] = {}
        self._objects: dict[str, None] = {}  # "service <id>", "node <id>" that may be gone
        self._doomed: dict[str, str] = {}  # task ID -> what became of it: "service" or "node" is gone
        self._slots = Backlog("reaper", self._strict)  # slot keys of _examples whose history is to be checked
        self._examples: dict[str, str] = {}  # slot key -> ID of one of its tasks
        self._batch = Timers()
        self._limit: int | None = None
        self._recheck = True

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for task in view.all(api.Task):
            self.note("task", task.id)
        self._recheck = True

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind == "task":
            self._tasks[object_id] = None
        elif kind in ("service", "node"):
            self._objects[f"{kind} {object_id}"] = None
        elif kind == "cluster":
            self._recheck = True

    def run(self, tx: Tx) -> None:
        """See Stage."""
        if self._recheck:
            self._read_limit(tx)
        for name in list(self._objects):
            kind, object_id = name.split(" ", 1)
            if tx.get(api.Service if kind == "service" else api.Node, object_id) is None:
                for task in tx.find(api.Task, kind, object_id):
                    self._doomed[task.id] = kind
            del self._objects[name]
        for task_id in list(self._doomed):
            if not tx.room():
                return
            self._let_go(tx, task_id, self._doomed.pop(task_id))
        for task_id in list(self._tasks)[: defaults.TASK_REAPER_DIRTY_MAX]:
            if not self._look(tx, task_id):
                return
            del self._tasks[task_id]
        for key in self._batch.due(tx.now):
            self._slots.mark(key)
        self._slots.work(tx, self._trim, defaults.TASK_REAPER_SLOTS_PER_PASS)

    def deadline(self) -> float | None:
        """See Stage."""
        if self._tasks or self._objects or self._doomed:
            return DUE_NOW
        return earliest(self._batch.deadline(), self._slots.deadline())

    def _read_limit(self, tx: Tx) -> None:
        cluster = next(iter(tx.all(api.Cluster)), None)
        limit = defaults.TASK_HISTORY_RETENTION_LIMIT
        if cluster is not None and cluster.spec.HasField("orchestration"):
            limit = cluster.spec.orchestration.task_history_retention_limit
        lowered = self._limit is not None and limit >= 0 and (self._limit < 0 or limit < self._limit)
        self._limit = limit
        self._recheck = False
        if lowered:
            for task in tx.all(api.Task):
                self._tasks[task.id] = None

    def _let_go(self, tx: Tx, task_id: str, missing: str) -> None:
        task = tx.get(api.Task, task_id)
        if task is None:
            return
        if missing == "service":
            t.lower(tx, task_id, api.REMOVE)
        elif missing == "node" and api.ASSIGNED <= task.status.state < api.COMPLETE:
            orphan = tx.edit(api.Task, task_id)
            orphan.status.Clear()
            orphan.status.state = api.ORPHANED
            orphan.status.message = ORPHANED_MESSAGE
            stamp(orphan.status.timestamp, tx.now)
        self._tasks[task_id] = None

    def _look(self, tx: Tx, task_id: str) -> bool:
        """Delete one task if it is due, else mark its slot for a check. False: the transaction has no room."""
        task = tx.get(api.Task, task_id)
        if task is None:
            return True
        room = tx.room() or tx.staged(api.Task, task_id)
        if not task.service_id:
            if task.status.state < api.ORPHANED and not (task.desired_state == api.REMOVE and _may_go(task)):
                return True
            if room:
                tx.remove(api.Task, task_id)
            return room
        service = tx.get(api.Service, task.service_id)
        if service is None and task.desired_state < api.REMOVE:
            if not room:
                return False
            t.lower(tx, task_id, api.REMOVE)
            task = tx.need(api.Task, task_id)
        if task.desired_state == api.REMOVE:
            if _may_go(task) and room:
                tx.remove(api.Task, task_id)
            return room or not _may_go(task)
        if service is not None and not t.is_job(service.spec) and self._ends_or_begins(task):
            key = t.slot_of(service, task)
            self._examples[key] = task_id
            if self._batch.get(key) is None and key not in self._slots:
                self._batch.set(key, tx.now + defaults.TASK_REAPER_PERIOD_S)
        return True

    @staticmethod
    def _ends_or_begins(task: api.Task) -> bool:
        return not api.ASSIGNED < task.status.state <= api.RUNNING

    def _trim(self, tx: Tx, key: str) -> bool:
        """Delete the oldest ended tasks of a slot that has more than its limit."""
        task = tx.get(api.Task, self._examples.get(key, ""))
        service = None if task is None else tx.get(api.Service, task.service_id)
        if task is None or service is None:
            self._examples.pop(key, None)
            return True
        limit = defaults.TASK_HISTORY_RETENTION_LIMIT if self._limit is None else self._limit
        attempts = service.spec.task.restart.max_attempts
        if attempts:
            limit = attempts + 1
        siblings = t.slot_tasks(tx, service, task)
        surplus = len(siblings) - limit
        if limit >= 0 and surplus > 0:
            kept = {x.id: None for x in t.updatable_tasks(service, siblings, tx.now)}  # what represents the slot
            for old in sorted(siblings, key=lambda x: (t.status_at(x), x.id)):
                never_ran = old.status.state < api.ASSIGNED and old.desired_state > api.RUNNING
                if surplus == 0:
                    break
                if old.id not in kept and (old.status.state > api.RUNNING or never_ran):
                    if not tx.room():
                        return False
                    tx.remove(api.Task, old.id)
                    surplus -= 1
        self._examples.pop(key, None)
        return True
