"""Stage: rolling updates and rollbacks.

Theory of operation. A service whose slots hold tasks of an older spec is *rolled out*: up to ``parallelism`` slots are
worked on at a time, each until its new task has run (or failed) and the delay is over. Stop-first: the new task is
created READY and the old one shut down in the same entry; the restart stage lets the new one go when the old one has
stopped. Start-first: the old one is shut down when the new one runs. A task made by the rollout that ends before it ran
for the monitoring period is a failure; more of them than the ratio allows pause the rollout or turn it into a rollback.
Slots that were begun before a pause are finished nevertheless, so that no slot keeps two tasks.
After the last slot the rollout is watched for one more period, then it is complete.

The store tells which tasks are dirty, made and running. The stage remembers since when a task runs, which failures
counted and when a delay ends; a new leader derives these from the tasks' times.

(swarmkit: manager/orchestrator/update/updater.go)
"""

from __future__ import annotations

from swarm import api
from swarm.manager import tasks as t
from swarm.manager.backlog import Backlog, Timers, earliest
from swarm.manager.orchestrator.rollout import PAUSED, Rollout
from swarm.store.store import View
from swarm.store.tx import Tx


class UpdateStage:
    """See the module; a Stage. It has a Rollout for each service that is being updated."""

    def __init__(self, strict: bool = False) -> None:
        """strict: see Backlog."""
        self._strict = strict
        self._reset()

    def _reset(self) -> None:
        self._noted: dict[str, None] = {}
        self._work = Backlog("update", self._strict)
        self._rollouts: dict[str, Rollout] = {}
        self._settled: dict[str, tuple[int, int]] = {}  # service ID -> spec version and update state found clean
        self._inherited: dict[str, None] = {}  # services that a former leader may have been updating
        self._timers = Timers()

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for service in view.all(api.Service):
            self.note("service", service.id)
            self._inherited[service.id] = None

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind == "service":
            self._work.mark(object_id)
        elif kind == "task":
            self._noted[object_id] = None

    def run(self, tx: Tx) -> None:
        """See Stage."""
        noted, self._noted = self._noted, {}
        if self._rollouts:
            for task_id in noted:
                task = tx.get(api.Task, task_id)
                rollout = None if task is None else self._rollouts.get(task.service_id)
                if rollout is not None and task is not None:
                    rollout.note(task)
                    self._work.mark(task.service_id)
        for service_id in self._timers.due(tx.now):
            self._work.mark(service_id)
        self._work.work(tx, self._advance)

    def deadline(self) -> float | None:
        """See Stage."""
        return earliest(self._work.deadline(), self._timers.deadline())

    def _advance(self, tx: Tx, service_id: str) -> bool:
        service = tx.get(api.Service, service_id)
        if t.mode_of(service) not in (t.REPLICATED, t.GLOBAL) or service is None:
            self._drop(service_id)
            self._settled.pop(service_id, None)
            self._inherited.pop(service_id, None)
            return True
        rollout = self._rollouts.get(service_id)
        if rollout is not None and not rollout.is_for(service):
            self._drop(service_id)
            rollout = None
        if rollout is None:
            rollout = self._begin(tx, service)
            if rollout is None:
                return True
        try:
            done = rollout.advance(tx)
        except Exception:
            self._drop(service_id)  # the pass may be undone, so derive the rollout again from the store
            raise
        if rollout.over:
            self._drop(service_id)
        else:
            self._set_timer(service_id, rollout)
        return done

    def _begin(self, tx: Tx, service: api.Service) -> Rollout | None:
        """A rollout for the service if it needs one."""
        state = service.update_status.state
        if self._settled.get(service.id) == (service.spec_version.index, state):
            return None
        inherited = service.id in self._inherited
        rollout = Rollout.finish(tx, service) if state in PAUSED else Rollout.begin(tx, service, inherited)
        self._inherited.pop(service.id, None)
        if rollout is None:
            self._settled[service.id] = (service.spec_version.index, state)
            return None
        self._settled.pop(service.id, None)
        self._rollouts[service.id] = rollout
        return rollout

    def _drop(self, service_id: str) -> None:
        self._rollouts.pop(service_id, None)
        self._timers.cancel(service_id)

    def _set_timer(self, service_id: str, rollout: Rollout) -> None:
        at = rollout.deadline()
        if at is None:
            self._timers.cancel(service_id)
        else:
            self._timers.set(service_id, at)
