"""Compares assigned with present tasks: what this node must start, update, stop and remove, and write to its journal.

Theory of operation. An assignments message first changes secrets and configs, then tasks; a complete message also
removes everything that it does not contain. Each task then proceeds by itself (task.py). settle() collects the results:
the steps, their journal records (which come before them), and the statuses to report. After a restart, the tasks come
back from the journal and repeat their steps; steps that need secrets or configs wait for the first message.

(swarmkit: agent/worker.go, agent/storage.go)
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from swarm import api
from swarm.agent.dependencies import Dependencies
from swarm.agent.discovery import JOURNAL_PREFIX
from swarm.agent.events import CancelStep, Execute, Executed, Journal, Observed
from swarm.agent.task import TaskRun
from swarm.store.store import copy_of

WorkerEffect = Execute | CancelStep | Journal


def selects(selector: api.LogSelector, task: api.Task) -> bool:
    """Whether a log subscription wants the output of this task."""
    return task.id in selector.task_ids or task.service_id in selector.service_ids or task.node_id in selector.node_ids


class Worker:
    """All tasks of this node."""

    def __init__(self, rng: Random, journal: Mapping[str, bytes]) -> None:
        self._rng = rng
        self._dependencies = Dependencies()
        self._synced = False
        self._runs: dict[str, TaskRun] = {}
        self._marked: dict[str, None] = {}
        self._timers: dict[str, float] = {}
        self._drops: dict[str, None] = {}
        self._news: dict[str, None] = {}
        self._started: dict[str, None] = {}
        self._volumes: dict[str, None] = {}
        for task_id, record in journal.items():
            if task_id.startswith(JOURNAL_PREFIX):
                continue
            run = TaskRun.from_record(record)
            if run is None or run.task.id != task_id:
                self._drops[task_id] = None
            else:
                self._runs[task_id] = run
                self._marked[task_id] = None

    @property
    def empty(self) -> bool:
        """Whether nothing is left of any task."""
        return not self._runs

    # --- events ----------------------------------------------------------------------------------------------------

    def apply(self, message: api.AssignmentsMessage) -> None:
        """Apply an assignments message of either type. The caller has checked that no message is missing before it."""
        complete = message.type == api.AssignmentsMessage.COMPLETE
        named: dict[str, None] = {}
        if complete:
            self._dependencies.clear()
        for change in message.changes:
            self._apply_dependency(change)
        for change in message.changes:
            if change.assignment.WhichOneof("item") != "task":
                continue
            task = change.assignment.task
            if change.action == api.AssignmentChange.UPDATE:
                named[task.id] = None
                self._assign(task)
            else:
                self._unassign(task.id)
        if complete:
            for task_id in [i for i in self._runs if i not in named]:
                self._unassign(task_id)
        self._synced = True
        self._marked.update(dict.fromkeys(self._runs))

    def observed(self, event: Observed, now: float) -> None:
        """Facts about a container."""
        run = self._runs.get(event.task_id)
        if run is not None:
            run.observed(event, now)
            self._marked[event.task_id] = None

    def executed(self, event: Executed, now: float) -> None:
        """A step ended."""
        run = self._runs.get(event.task_id)
        if run is not None:
            run.executed(event, now, self._rng)
            self._marked[event.task_id] = None

    def leave(self) -> None:
        """This node leaves the cluster: remove all tasks."""
        self._dependencies.clear()
        self._volumes.clear()
        for task_id in self._runs:
            self._unassign(task_id)

    # --- results ---------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> list[WorkerEffect]:
        """The effects of all events since the last call, and of timers that are due."""
        for task_id, due in self._timers.items():
            if due <= now:
                self._marked[task_id] = None
        puts: dict[str, bytes] = {}
        steps: list[WorkerEffect] = []
        marked, self._marked = self._marked, {}
        for task_id in marked:
            run = self._runs.get(task_id)
            if run is None:
                continue
            steps.extend(run.advance(now, self._dependencies, self._synced))
            if run.gone:
                run = self._bury(task_id, run)
                if run is None:
                    continue
                steps.extend(run.advance(now, self._dependencies, self._synced))
            if run.dirty:
                puts[task_id] = run.record()
                run.dirty = False
            if run.news:
                self._news[task_id] = None
                run.news = False
            self._set_timer(task_id, run.deadline())
        drops, self._drops = tuple(i for i in self._drops if i not in puts), {}
        return [Journal(puts, drops), *steps] if puts or drops else steps

    def deadline(self) -> float | None:
        """When settle() has something to do without an event, in seconds since the epoch."""
        return min(self._timers.values(), default=None)

    def take_changed(self) -> list[str]:
        """IDs of tasks whose status changed since the last call."""
        news, self._news = self._news, {}
        return list(news)

    def take_started(self) -> list[api.Task]:
        """Tasks that were assigned to this node since the last call."""
        started, self._started = self._started, {}
        return [copy_of(run.task) for i in started if (run := self._runs.get(i)) is not None and run.assigned]

    def take_unpublished_volumes(self) -> list[str]:
        """IDs of cluster volumes that the manager wants unpublished. We never publish any, so they already are."""
        volumes, self._volumes = self._volumes, {}
        return list(volumes)

    def status(self, task_id: str) -> api.TaskStatus | None:
        """A copy of the status of an assigned task; None when the task no longer exists."""
        run = self._runs.get(task_id)
        return copy_of(run.task.status) if run is not None and run.assigned else None

    def known(self) -> tuple[str, ...]:
        """IDs of all tasks, including those that are being removed."""
        return tuple(self._runs)

    def assigned(self) -> list[str]:
        """IDs of all assigned tasks."""
        return [task_id for task_id, run in self._runs.items() if run.assigned]

    def selected(self, selector: api.LogSelector) -> tuple[api.Task, ...]:
        """The assigned tasks whose output a log subscription wants."""
        return tuple(copy_of(r.task) for r in self._runs.values() if r.assigned and selects(selector, r.task))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _apply_dependency(self, change: api.AssignmentChange) -> None:
        kind = change.assignment.WhichOneof("item")
        removed = change.action == api.AssignmentChange.REMOVE
        if kind == "volume" and removed:
            self._volumes[change.assignment.volume.id] = None
        if kind not in ("secret", "config"):
            return
        item = change.assignment.secret if kind == "secret" else change.assignment.config
        if removed:
            self._dependencies.drop(item)
        else:
            self._dependencies.put(item)

    def _assign(self, task: api.Task) -> None:
        run = self._runs.get(task.id)
        if run is not None:
            run.assign(task)
        else:
            self._runs[task.id] = TaskRun(task)
            self._started[task.id] = None
        self._marked[task.id] = None

    def _unassign(self, task_id: str) -> None:
        run = self._runs.get(task_id)
        if run is not None:
            run.unassign()
            self._marked[task_id] = None

    def _bury(self, task_id: str, run: TaskRun) -> TaskRun | None:
        """Forget a removed task. If it was assigned again meanwhile, start it over."""
        del self._runs[task_id]
        self._timers.pop(task_id, None)
        self._drops[task_id] = None
        if run.again is None:
            return None
        self._started[task_id] = None
        fresh = self._runs[task_id] = TaskRun(run.again)
        return fresh

    def _set_timer(self, task_id: str, due: float | None) -> None:
        if due is None:
            self._timers.pop(task_id, None)
        else:
            self._timers[task_id] = due
