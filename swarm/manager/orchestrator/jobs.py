"""Stage: jobs, whose tasks run to completion.

A replicated job works through the slots 0 to TotalCompletions - 1, at most MaxConcurrent at a time; a slot is done when
one of its tasks is complete. A global job runs once on every node that fits, including nodes that join later. An update
of the service starts a new iteration and removes what is left of older ones. The restart stage replaces failed tasks; a
slot whose task the policy does not restart counts as done, so that a job never runs in a tight loop.

(swarmkit: manager/orchestrator/jobs)
"""

from __future__ import annotations

from swarm import api, defaults
from swarm.manager import tasks as t
from swarm.manager.backlog import Backlog
from swarm.store.store import View
from swarm.store.tx import Tx


class JobsStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False, replicas_max: int = defaults.SERVICE_REPLICAS_MAX) -> None:
        """strict: see Backlog. replicas_max: no more tasks are made of a service, whoever stored its spec."""
        self._strict = strict
        self._replicas_max = replicas_max
        self._reset()

    def _reset(self) -> None:
        self._noted: dict[str, dict[str, None]] = {"service": {}, "node": {}, "task": {}}
        self._global: dict[str, None] = {}  # global jobs that exist
        self._jobs = Backlog("jobs", self._strict)

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
            service = tx.get(api.Service, service_id)
            if t.mode_of(service) == t.GLOBAL_JOB:
                self._global[service_id] = None
            else:
                self._global.pop(service_id, None)
            if service is not None and t.is_job(service.spec):
                self._jobs.mark(service_id)
        if noted["node"]:
            for service_id in self._global:
                self._jobs.mark(service_id)
        for task_id in noted["task"]:
            task = tx.get(api.Task, task_id)
            if task is not None and task.HasField("job_iteration") and task.status.state > api.RUNNING:
                self._jobs.mark(task.service_id)
        self._jobs.work(tx, self._reconcile)

    def deadline(self) -> float | None:
        """See Stage."""
        return self._jobs.deadline()

    def _reconcile(self, tx: Tx, service_id: str) -> bool:
        service = tx.get(api.Service, service_id)
        if service is None or not t.is_job(service.spec):
            return True
        iteration = service.job_status.job_iteration.index
        current: list[api.Task] = []
        older: list[api.Task] = []
        for task in tx.find(api.Task, "service", service_id):
            (current if task.job_iteration.index == iteration else older).append(task)
        replicated = t.mode_of(service) == t.REPLICATED_JOB
        for task in older:
            # A global job leaves nothing of an older run; a replicated one keeps what has ended.
            if task.desired_state < api.REMOVE and (not replicated or task.status.state <= api.RUNNING):
                if not tx.room():
                    return False
                t.lower(tx, task.id, api.REMOVE)
        return self._fill(tx, service, current) if replicated else self._cover(tx, service, current)

    def _fill(self, tx: Tx, service: api.Service, tasks: list[api.Task]) -> bool:
        job = service.spec.replicated_job
        used = {task.slot: None for task in tasks}
        working = {task.slot: None for task in tasks if t.is_wanted(task) and task.status.state != api.COMPLETE}
        template = t.task_template(tx, service)
        slot = 0
        wanted = min(job.total_completions, self._replicas_max)
        for _ in range(min(job.max_concurrent - len(working), wanted - len(used))):
            while slot in used:
                slot += 1
            if not tx.room():
                return False
            t.new_task(tx, service, slot, template=template)
            slot += 1
        return True

    @staticmethod
    def _cover(tx: Tx, service: api.Service, tasks: list[api.Task]) -> bool:
        covered: dict[str, None] = {}
        for task in tasks:
            node = tx.get(api.Node, task.node_id)
            if t.is_wanted(task) and task.status.state <= api.RUNNING and t.invalid_node(node):
                if not tx.room():
                    return False
                t.lower(tx, task.id, api.SHUTDOWN if node is not None else api.REMOVE)
            elif not t.invalid_node(node) and _stands(service, task, tasks, tx.now):
                covered[task.node_id] = None
        template = t.task_template(tx, service)
        for node in tx.all(api.Node):
            ready = node.status.state == api.NodeStatus.READY and node.spec.availability == api.NodeSpec.ACTIVE
            if ready and node.id not in covered and t.constraints_match(service, node):
                if not tx.room():
                    return False
                t.new_task(tx, service, node_id=node.id, template=template)
        return True


def _stands(service: api.Service, task: api.Task, tasks: list[api.Task], now: float) -> bool:
    """Whether the task is the node's share of the job: it works, is done, or failed for good."""
    if t.is_wanted(task):
        return True
    siblings = [other for other in tasks if other.node_id == task.node_id]
    return task.status.state > api.RUNNING and not t.should_restart(service, task, siblings, now)
