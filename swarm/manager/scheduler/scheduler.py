"""Stage: chooses a node for every task that waits for one: PENDING to ASSIGNED.

Tasks of one service and spec version are placed as one group. Which tasks wait follows from the store, task by task: a
task waits as long as it is PENDING and meant to run, whatever happens to its service. A group that finds no node says
so in Status.err of its tasks, and is tried again when something may fit that did not fit before (NodeSet.generation).

Tasks of global services already have their node; the scheduler only checks that they can run there.

(swarmkit: manager/scheduler/scheduler.go)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from swarm import api, defaults
from swarm.api.timestamps import stamp
from swarm.manager.backlog import Backlog, Timers, earliest
from swarm.manager.scheduler.filters import Pipeline
from swarm.manager.scheduler.nodes import NodeInfo, NodeSet
from swarm.manager.scheduler.placement import Memory, Placement, place_on
from swarm.manager.tasks import GLOBAL, GLOBAL_JOB, mode_of, status_at
from swarm.store.store import View
from swarm.store.tx import Tx

ASSIGNED_MESSAGE = "scheduler assigned task to node"
CONFIRMED_MESSAGE = "scheduler confirmed task can run on preassigned node"


@dataclass(slots=True)
class _Group:
    """Identical tasks. After a failed attempt: when it was, why it failed, and which tasks do not say so yet."""

    tasks: dict[str, None] = field(default_factory=dict)
    tried: int = -1  # generation
    tried_at: float = 0.0
    explanation: str = ""
    untold: dict[str, None] = field(default_factory=dict)


class SchedulerStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self.nodes = NodeSet()
        self._noted: dict[str, dict[str, None]] = {"task": {}, "node": {}}
        self._groups: dict[str, _Group] = {}
        self._group_of: dict[str, str] = {}
        self._preassigned: dict[str, int] = {}  # task ID -> generation of the last try
        self._work = Backlog("scheduler/groups", self._strict)
        self._confirm = Backlog("scheduler/preassigned", self._strict)
        self._retry = Timers()
        self._memories: dict[str, tuple[int, Memory]] = {}  # group key -> generation, nodes in order of preference
        self._generation = 0
        self._checks = 0

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for node in view.all(api.Node):
            self.note("node", node.id)
        for task in view.all(api.Task):
            self.note("task", task.id)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind in self._noted:
            self._noted[kind][object_id] = None

    def run(self, tx: Tx) -> None:
        """See Stage."""
        noted, self._noted = self._noted, {"task": {}, "node": {}}
        for node_id in noted["node"]:
            self.nodes.set_node(node_id, tx.get(api.Node, node_id))
        for task_id in noted["task"]:
            self._reconcile_task(tx, task_id)
        self._mark_retries()
        for key in self._retry.due(tx.now):
            if key in self._groups:
                self._work.mark(key)
        self._checks = 0
        self._confirm.work(tx, self._confirm_preassigned, staged=api.Task)
        self._work.work(tx, self._schedule_group, fits=lambda key: self._has_staged(tx, key))

    def deadline(self) -> float | None:
        """See Stage."""
        return earliest(self._work.deadline(), self._confirm.deadline(), self._retry.deadline())

    # --- what is there -----------------------------------------------------------------------------------------------

    def _reconcile_task(self, tx: Tx, task_id: str) -> None:
        task = tx.get(api.Task, task_id)
        if task is not None and task.status.state in (api.FAILED, api.REJECTED) and task.node_id:
            self._count_failure(tx, task)
        self.nodes.account(task_id, task)
        waits = task is not None and task.status.state == api.PENDING and task.desired_state <= api.COMPLETE
        key = _group_key(task) if waits and task is not None and not task.node_id else None
        old = self._group_of.get(task_id)
        if old is not None and old != key:
            self._leave(task_id)
        if key is not None and old != key:
            self._group_of[task_id] = key
            group = self._groups.setdefault(key, _Group())
            group.tasks[task_id] = None
            group.untold[task_id] = None
            group.tried = -1
            self._work.mark(key)
        if waits and task is not None and task.node_id:
            self._preassigned.setdefault(task_id, -1)
            self._confirm.mark(task_id)
        elif task_id in self._preassigned:
            del self._preassigned[task_id]
            self._confirm.forget(task_id)

    def _count_failure(self, tx: Tx, task: api.Task) -> None:
        if tx.now - status_at(task) > defaults.FAILURE_WINDOW_S:
            return
        if mode_of(tx.get(api.Service, task.service_id)) not in (GLOBAL, GLOBAL_JOB):  # placed by the orchestrator
            self.nodes.failed(task)

    def _leave(self, task_id: str) -> None:
        key = self._group_of.pop(task_id)
        group = self._groups[key]
        del group.tasks[task_id]
        group.untold.pop(task_id, None)
        if not group.tasks:
            del self._groups[key]
            self._work.forget(key)
            self._retry.cancel(key)

    def _mark_retries(self) -> None:
        """Try again when something may fit now; the more nodes there are, the longer the pause between attempts."""
        if self._generation == self.nodes.generation:
            return
        self._generation = self.nodes.generation
        pause_s = defaults.SCHEDULER_RETRY_PAUSE_PER_NODE_S * len(self.nodes.infos)
        for key, group in self._groups.items():
            if group.tried not in (-1, self._generation) and self._retry.get(key) is None:
                self._retry.set(key, group.tried_at + pause_s)
        for task_id, tried in self._preassigned.items():
            if tried != self._generation:
                self._confirm.mark(task_id)

    # --- tasks with a node -------------------------------------------------------------------------------------------

    def _confirm_preassigned(self, tx: Tx, task_id: str) -> bool:
        task = tx.get(api.Task, task_id)
        if task is None or task_id not in self._preassigned:
            return True
        if self._checks > defaults.SCHEDULER_NODE_CHECKS_PER_PASS:
            return False
        self._checks += 1
        self._preassigned[task_id] = self.nodes.generation
        info = self.nodes.infos.get(task.node_id)
        obstacle = place_on(self._pipeline(task), info)
        if obstacle is None and info is not None:
            del self._preassigned[task_id]
            self._assign(tx, task_id, info, CONFIRMED_MESSAGE)
        elif obstacle:
            self._tell(tx, task_id, obstacle)
        return True

    # --- groups ------------------------------------------------------------------------------------------------------

    def _has_staged(self, tx: Tx, key: str) -> bool:
        """Whether a task of the group was touched in this pass; that can only be its oldest or its newest one."""
        group = self._groups.get(key)
        if group is None:
            return True
        return any(tx.staged(api.Task, task_id) for task_id in (next(iter(group.tasks)), next(reversed(group.tasks))))

    def _schedule_group(self, tx: Tx, key: str) -> bool:
        group = self._groups.get(key)
        if group is None:
            return True
        if group.tried == self.nodes.generation:
            return self._tell_group(tx, group)
        if self._checks > defaults.SCHEDULER_NODE_CHECKS_PER_PASS:
            return False
        batch = list(islice(group.tasks, defaults.ENTRY_CHANGES_MAX))
        try:
            return self._place(tx, key, group, batch)
        except Exception:
            for task_id in batch:  # their bookings are undone with the savepoint
                self.note("task", task_id)
            raise

    def _place(self, tx: Tx, key: str, group: _Group, batch: list[str]) -> bool:
        example = tx.need(api.Task, batch[0])
        pipeline = self._pipeline(example)
        todo = iter(batch)

        def assign(info: NodeInfo) -> bool:
            for task_id in todo:
                if tx.room() or tx.staged(api.Task, task_id):
                    self._leave(task_id)
                    self._assign(tx, task_id, info, ASSIGNED_MESSAGE)
                    return True
            return False

        generation, memory = self._memories.pop(key, (-1, None))
        if generation != self.nodes.generation:
            memory = None
        placement = Placement(self.nodes, pipeline, example, tx.now, assign, memory)
        roomy = placement.place(len(batch))
        self._remember(key, placement.memory)
        self._checks += placement.checks
        if key not in self._groups:
            return True
        if not roomy or not any(task_id in group.tasks for task_id in batch):
            return False  # the pass is full, or only this batch of the group is done
        explanation = pipeline.explain(self.nodes.known())
        self._checks += len(self.nodes.infos)
        text = f"no suitable node ({explanation})" if explanation else "no suitable node"
        if text != group.explanation:
            group.untold = dict(group.tasks)
        group.explanation, group.tried, group.tried_at = text, self.nodes.generation, tx.now
        return self._tell_group(tx, group)

    def _remember(self, key: str, memory: Memory | None) -> None:
        """Keep the order of nodes for the next pass, which continues a large service. Only the last few are kept."""
        if memory is not None:
            self._memories[key] = (self.nodes.generation, memory)
            while len(self._memories) > defaults.SCHEDULER_MEMORIES_KEPT:
                del self._memories[next(iter(self._memories))]

    def _tell_group(self, tx: Tx, group: _Group) -> bool:
        """Write into the tasks why they have no node. False: the pass had no room for all of them."""
        for task_id in list(group.untold):
            if not tx.room() and not tx.staged(api.Task, task_id):
                return False
            del group.untold[task_id]
            self._tell(tx, task_id, group.explanation)
        return True

    def _pipeline(self, task: api.Task) -> Pipeline:
        service_id = task.service_id
        return Pipeline(task, lambda: self.nodes.counts(service_id))

    @staticmethod
    def _tell(tx: Tx, task_id: str, text: str) -> None:
        if tx.need(api.Task, task_id).status.err != text:
            task = tx.edit(api.Task, task_id)
            task.status.err = text
            stamp(task.status.timestamp, tx.now)

    def _assign(self, tx: Tx, task_id: str, info: NodeInfo, message: str) -> None:
        task = tx.edit(api.Task, task_id)
        task.node_id = info.node_id
        if task.spec.resources.reservations.generic:
            del task.assigned_generic_resources[:]
            task.assigned_generic_resources.extend(info.claim(task.spec.resources.reservations.generic))
        status = task.status
        status.Clear()
        status.state = api.ASSIGNED
        status.message = message
        stamp(status.timestamp, tx.now)
        self.nodes.account(task_id, task)


def _group_key(task: api.Task) -> str:
    """Tasks with the same key pass the same checks: same service and spec version, or else the same contents."""
    if task.service_id and task.HasField("spec_version"):
        return f"{task.service_id}/{task.spec_version.index}"
    parts = [task.spec.SerializeToString(deterministic=True), task.endpoint.SerializeToString(deterministic=True)]
    drivers = ",".join(attachment.network.driver_state.name for attachment in task.networks)
    return f"{task.service_id}?{drivers}?" + b"?".join(parts).decode("latin-1")
