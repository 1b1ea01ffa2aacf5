"""Facts about tasks that all stages share: times, slots, creation, whether one is up to date, whether one restarts.

A *slot* holds the tasks that replace one another: those with one slot number of a replicated service or job, or those
on one node of a global one. Its key is a string, ``<service>/<number>`` or ``<service>@<node>``. Restarts of a slot are
counted from the tasks that the store still has (the reaper keeps as many as the policy needs), so every leader counts
the same.

(swarmkit: manager/orchestrator/{task,slot,service}.go, taskinit/init.go, restart/restart.go, api/naming/naming.go)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api.objects import slot_key
from swarm.api.timestamps import seconds, stamp
from swarm.manager.constraint import node_matches, parse_stored
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx

REPLICATED, GLOBAL, REPLICATED_JOB, GLOBAL_JOB = "replicated", "global", "replicated_job", "global_job"
_UP_TO_READY = range(api.READY, api.RUNNING + 1)


# --- times --------------------------------------------------------------------------------------------------------


def created_at(task: api.Task, now: float) -> float:
    """When the task was created, in seconds since the epoch; ``now`` for tasks of the pass in progress."""
    return seconds(task.meta.created_at) if task.meta.HasField("created_at") else now


def status_at(task: api.Task) -> float:
    """When the task reached its state, in seconds since the epoch: by a manager's clock, or else by the agent's."""
    status = task.status
    return seconds(status.applied_at if status.HasField("applied_at") else status.timestamp)


# --- services and slots -------------------------------------------------------------------------------------------


def mode_of(service: api.Service | None) -> str | None:
    """REPLICATED, GLOBAL, REPLICATED_JOB or GLOBAL_JOB; None for a service that is gone or has no mode."""
    return None if service is None else service.spec.WhichOneof("mode")


def is_job(spec: api.ServiceSpec) -> bool:
    """Whether the service's tasks run to completion."""
    return spec.WhichOneof("mode") in (REPLICATED_JOB, GLOBAL_JOB)


def last_wanted(task: api.Task) -> api.TaskState:
    """The last state in which the task has not failed: COMPLETE for jobs, RUNNING for others."""
    return api.COMPLETE if task.HasField("job_iteration") else api.RUNNING


def is_wanted(task: api.Task) -> bool:
    """Whether the task is meant to run, now or later."""
    return task.desired_state <= last_wanted(task)


def slot_of(service: api.Service, task: api.Task) -> str:
    """Key of the task's slot."""
    if mode_of(service) in (GLOBAL, GLOBAL_JOB):
        return f"{task.service_id}@{task.node_id}"
    return slot_key(task.service_id, task.slot)


def slot_tasks(view: View, service: api.Service, task: api.Task) -> list[api.Task]:
    """All tasks of the task's slot that the store has, whatever their state."""
    if mode_of(service) in (GLOBAL, GLOBAL_JOB):
        return [t for t in view.find(api.Task, "node", task.node_id) if t.service_id == task.service_id]
    if task.slot:
        return list(view.find(api.Task, "slot", slot_key(task.service_id, task.slot)))
    return [t for t in view.find(api.Task, "service", task.service_id) if not t.slot]


def invalid_node(node: api.Node | None) -> bool:
    """Whether nothing can or should run there: gone, down or drained."""
    return node is None or node.status.state == api.NodeStatus.DOWN or node.spec.availability == api.NodeSpec.DRAIN


def constraints_match(service: api.Service, node: api.Node) -> bool:
    """Whether the node satisfies the constraints that the service has now."""
    return node_matches(parse_stored(service.spec.task.placement.constraints), node)


# --- tasks --------------------------------------------------------------------------------------------------------


def task_name(task: api.Task) -> str:
    """``service.slot.id``, with the node ID in the place of a slot that is 0."""
    return task.annotations.name or f"{task.service_annotations.name}.{task.slot or task.node_id}.{task.id}"


def task_template(tx: Tx, service: api.Service) -> api.Task:
    """A task without identity for the service as it is now; see new_task."""
    task = api.Task(service_id=service.id, desired_state=api.RUNNING)
    task.service_annotations.CopyFrom(service.spec.annotations)
    task.spec.CopyFrom(service.spec.task)
    if service.HasField("spec_version"):
        task.spec_version.CopyFrom(service.spec_version)
    task.endpoint.SetInParent()
    if service.spec.HasField("endpoint"):
        task.endpoint.spec.CopyFrom(service.spec.endpoint)
    if service.spec.task.HasField("log_driver"):
        task.log_driver.CopyFrom(service.spec.task.log_driver)
    else:
        cluster = next(iter(tx.all(api.Cluster)), None)
        if cluster is not None and cluster.spec.task_defaults.HasField("log_driver"):
            task.log_driver.CopyFrom(cluster.spec.task_defaults.log_driver)
    if is_job(service.spec):
        task.job_iteration.CopyFrom(service.job_status.job_iteration)
        task.desired_state = api.COMPLETE
    task.status.state = api.NEW
    task.status.message = "created"
    stamp(task.status.timestamp, tx.now)
    return task


def new_task(
    tx: Tx,
    service: api.Service,
    slot: int = 0,
    node_id: str = "",
    ready: bool = False,
    template: api.Task | None = None,
) -> api.Task:
    """Stage a new task. ready: the task prepares and then waits for its start. template: see task_template."""
    task = task_template(tx, service) if template is None else copy_of(template)
    task.id = tx.new_id()
    task.slot = slot
    task.node_id = node_id
    if ready:
        task.desired_state = api.READY
    return tx.create(task)


def lower(tx: Tx, task_id: str, desired: api.TaskState) -> bool:
    """Set desired state SHUTDOWN or REMOVE, unless the task has that or a later one already.

    Returns whether anything changed.
    """
    task = tx.get(api.Task, task_id)
    if task is None or task.desired_state >= desired:
        return False
    tx.edit(api.Task, task_id).desired_state = desired
    return True


def _same(a: Message, b: Message, name: str, other: str = "") -> bool:
    """Whether an optional part is the same in both: absent in both, or equal."""
    other = other or name
    there = a.HasField(name)
    return there == b.HasField(other) and (not there or bool(getattr(a, name) == getattr(b, other)))


def is_task_dirty(service: api.Service, task: api.Task, node: api.Node | None) -> bool:
    """Whether the service's spec asks for another task than this one.

    Not dirty: an equal spec; a different placement alone while ``node`` (the task's) meets the new constraints; and
    different registry credentials alone, once the image is there.
    """
    versioned = task.HasField("spec_version") and service.HasField("spec_version")
    if versioned and task.spec_version.index == service.spec_version.index:
        return False
    wanted = service.spec.task
    if not _same(wanted, task.spec, "placement"):
        moved = copy_of(wanted)
        moved.ClearField("placement")
        if task.spec.HasField("placement"):
            moved.placement.CopyFrom(task.spec.placement)
        if moved == task.spec and node is not None and constraints_match(service, node):
            return False
    has_image = task.desired_state <= api.RUNNING and task.status.state in _UP_TO_READY
    containers = wanted.HasField("container") and task.spec.HasField("container")
    if has_image and containers and not _same(wanted.container, task.spec.container, "pull_options"):
        wanted = copy_of(wanted)
        wanted.container.ClearField("pull_options")
        if task.spec.container.HasField("pull_options"):
            wanted.container.pull_options.CopyFrom(task.spec.container.pull_options)
    if wanted != task.spec:
        return True
    return task.HasField("endpoint") and not _same(service.spec, task.endpoint, "endpoint", "spec")


class DirtyCheck:
    """is_task_dirty for many tasks of one service; what depends on the spec version alone is compared only once."""

    def __init__(self, service: api.Service) -> None:
        self._service = service
        self._by_version: dict[int, bool] = {}

    def __call__(self, task: api.Task, node: api.Node | None) -> bool:
        """See is_task_dirty."""
        if not task.HasField("spec_version"):
            return is_task_dirty(self._service, task, node)
        version = task.spec_version.index
        known = self._by_version.get(version)
        if known is None:
            if not self._depends_on_task(task):
                known = self._by_version[version] = is_task_dirty(self._service, task, node)
            else:
                known = is_task_dirty(self._service, task, node)
        return known

    def _depends_on_task(self, task: api.Task) -> bool:
        """Whether the answer may differ among tasks of this version, by their node or by having their image already."""
        wanted, spec = self._service.spec.task, task.spec
        return not (_same(wanted, spec, "placement") and _same(wanted.container, spec.container, "pull_options"))


# --- restart policy -----------------------------------------------------------------------------------------------


def restart_delay_s(task: api.Task) -> float:
    """How long the replacement of this task waits before it starts."""
    if task.spec.restart.HasField("delay"):
        return seconds(task.spec.restart.delay)
    return defaults.RESTART_DELAY_S


def _restarts(task: api.Task, siblings: Iterable[api.Task], now: float) -> list[float]:
    """When tasks of this slot and this spec version were created as replacements, oldest first.

    Only the unbroken run of the version up to this task counts: after a rollback to a version that failed long ago, the
    count begins again.
    """
    history = sorted(siblings, key=lambda t: (created_at(t, now), t.id == task.id, t.meta.version.index, t.id))
    while history and history[-1].id != task.id:
        history.pop()
    run: list[float] = []
    for sibling in reversed(history):
        if sibling.spec_version.index != task.spec_version.index:
            break
        run.append(created_at(sibling, now))
    return run[::-1][1:]


def should_restart(service: api.Service, task: api.Task, siblings: Iterable[api.Task], now: float) -> bool:
    """Whether the restart policy wants a replacement for this task, which ended or lost its node.

    siblings: the tasks of its slot, itself included. Attempts count per slot and spec version; with a window, only
    those within the window (seconds) before the task ended.
    """
    policy = task.spec.restart
    condition = policy.condition if task.spec.HasField("restart") else api.RestartPolicy.ANY
    if condition == api.RestartPolicy.NONE:
        return False
    if task.status.state == api.COMPLETE and (condition == api.RestartPolicy.ON_FAILURE or is_job(service.spec)):
        return False
    if not policy.max_attempts:
        return True
    restarts = _restarts(task, siblings, now)
    window_s = seconds(policy.window)
    if window_s:
        end = status_at(task)
        restarts = [at for at in restarts if end - window_s < at < end]
    return len(restarts) < policy.max_attempts


def updatable_tasks(service: api.Service, tasks: Sequence[api.Task], now: float) -> list[api.Task]:
    """The tasks that represent a slot: its live ones, or else its newest one if the policy does not restart it.

    During a rollback, ended tasks do not count, so that the rollback fills all slots again.
    """
    live = [task for task in tasks if is_wanted(task)]
    if live or not tasks:
        return live
    if service.update_status.state == api.UpdateStatus.ROLLBACK_STARTED:
        return []
    newest = max(tasks, key=lambda t: (status_at(t), created_at(t, now), t.meta.version.index, t.id))
    return [] if should_restart(service, newest, tasks, now) else [newest]
