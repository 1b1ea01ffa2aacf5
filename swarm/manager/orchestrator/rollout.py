"""One service on its way from one spec to another; see update.py for the theory of operation.

(swarmkit: manager/orchestrator/update/updater.go, Updater)
"""

from __future__ import annotations

import struct

from swarm import api, defaults
from swarm.api.timestamps import seconds, stamp
from swarm.manager import tasks as t
from swarm.manager.backlog import earliest
from swarm.store.tx import Tx

_UPDATING, _ROLLING_BACK = api.UpdateStatus.UPDATING, api.UpdateStatus.ROLLBACK_STARTED
_BACKWARDS = (_ROLLING_BACK, api.UpdateStatus.ROLLBACK_PAUSED)
PAUSED = (api.UpdateStatus.PAUSED, api.UpdateStatus.ROLLBACK_PAUSED)


def _single(number: float) -> float:
    """Rounded to single precision, as the ratio in the spec is."""
    (rounded,) = struct.unpack("f", struct.pack("f", number))
    return float(rounded)


class Rollout:
    """Which slots are still to do, which are at work and which rest; which tasks were made, and which of them failed.

    over: the rollout was completed, paused or turned into a rollback, and can be dropped.
    """

    def __init__(self, service: api.Service) -> None:
        self.over = False
        self._paused = service.update_status.state in PAUSED
        self._rolling_back = rolling_back = service.update_status.state in _BACKWARDS
        self._service_id = service.id
        self._version = service.spec_version.index
        spec = service.spec
        part = "rollback" if rolling_back else "update"
        self._has_config = spec.HasField("rollback" if rolling_back else "update")
        self._config: api.UpdateConfig = getattr(spec, part)
        self._todo: dict[str, api.Task] = {}  # slot key -> one of its tasks
        self._busy: dict[str, api.Task] = {}
        self._resting: dict[str, float] = {}  # slot key -> when its worker is free again
        self._made: dict[str, float | None] = {}  # task ID -> since when it runs
        self._failed: dict[str, None] = {}
        self._noted: dict[str, None] = {}  # made tasks that changed
        self._touched: dict[str, None] = {}  # slots at work in which something changed
        self._by_node = t.mode_of(service) == t.GLOBAL
        self._total = 0
        self._idle_since: float | None = None

    # --- settings ----------------------------------------------------------------------------------------------------

    @property
    def _delay_s(self) -> float:
        return seconds(self._config.delay)

    @property
    def _monitor_s(self) -> float:
        return seconds(self._config.monitor) if self._config.HasField("monitor") else defaults.UPDATE_MONITOR_S

    def _workers(self) -> int:
        parallelism = self._config.parallelism if self._has_config else defaults.UPDATE_PARALLELISM
        return parallelism or len(self._todo) + len(self._busy) + len(self._resting)

    def is_for(self, service: api.Service) -> bool:
        """Whether the service still wants this rollout."""
        state = service.update_status.state
        same_way = self._rolling_back == (state in _BACKWARDS) and self._paused == (state in PAUSED)
        return self._version == service.spec_version.index and same_way

    # --- begin -------------------------------------------------------------------------------------------------------

    @classmethod
    def begin(cls, tx: Tx, service: api.Service, inherited: bool) -> Rollout | None:
        """A rollout of all dirty slots; None when there are none and no update was under way.

        inherited: a former leader may have begun it.
        """
        state = service.update_status.state
        under_way = state in (_UPDATING, _ROLLING_BACK)
        if not under_way and not service.HasField("previous_spec") and not service.HasField("update_status"):
            return None  # never updated
        rollout = cls(service)
        is_dirty = t.DirtyCheck(service)
        for key, slot in sorted(rollout._slots(tx, service).items()):
            if len(slot) > 1 or is_dirty(slot[0], tx.get(api.Node, slot[0].node_id)):
                rollout._todo[key] = slot[0]
            if under_way and (inherited or rollout._rolling_back):
                rollout._take_over(tx, service, key, slot)
        if not rollout._todo and not under_way:
            return None
        rollout._total = len(rollout._todo) + len(rollout._made) or 1
        if not service.HasField("update_status"):
            status = tx.edit(api.Service, service.id).update_status
            status.state = _UPDATING
            status.message = "update in progress"
            stamp(status.started_at, tx.now)
        return rollout

    @classmethod
    def finish(cls, tx: Tx, service: api.Service) -> Rollout | None:
        """A rollout for a paused service: it finishes slots in which the new task starts first, and begins no others.

        Nodes that take no updates are included; otherwise their slots would keep two tasks until they do again.
        """
        rollout = cls(service)
        for key, slot in sorted(rollout._slots(tx, service, everywhere=True).items()):
            if len(slot) > 1:
                rollout._busy[key] = slot[0]
                rollout._touched[key] = None
        return rollout if rollout._busy else None

    def _take_over(self, tx: Tx, service: api.Service, key: str, slot: list[api.Task]) -> None:
        """Count tasks of the new spec that were created since the update began as made by this rollout.

        Either a former leader made them, or the restart stage replaced the task whose failure began the rollback.
        """
        started = seconds(service.update_status.started_at)
        for task in slot:
            made = task.spec_version.index == self._version and t.created_at(task, tx.now) >= started
            if not made or task.status.state > api.RUNNING:
                continue
            if task.status.state == api.RUNNING:
                since = self._made[task.id] = t.status_at(task)
                self._idle_since = max(since, self._idle_since or 0.0)
                if since + self._delay_s > tx.now and key not in self._todo:
                    self._resting[key] = since + self._delay_s
            else:
                self._made[task.id] = None
                if key not in self._todo:
                    self._busy[key] = task
                    self._touched[key] = None

    # --- advance -----------------------------------------------------------------------------------------------------

    def note(self, task: api.Task) -> None:
        """A task of the service changed."""
        if task.id in self._made:
            self._noted[task.id] = None
        key = self._key(task)
        if key in self._busy:
            self._touched[key] = None

    def _key(self, task: api.Task) -> str:
        """Key of the task's slot; keys sort as slot numbers do."""
        return task.node_id if self._by_node else f"{task.slot:020d}"

    def deadline(self) -> float | None:
        """When advance must be called although nothing changed."""
        end = None if self._idle_since is None or self._todo or self._busy else self._idle_since + self._watch_s()
        return earliest(min(self._resting.values(), default=None), None if self._resting else end)

    def _watch_s(self) -> float:
        """How long after the last slot failures still count."""
        return self._delay_s + 1.0 if self._delay_s >= self._monitor_s else self._monitor_s

    def advance(self, tx: Tx) -> bool:
        """Do what is due. False: the transaction is full."""
        service = tx.need(api.Service, self._service_id)
        for task_id in list(self._noted):
            if self._observe(tx, service, task_id):
                return True
            del self._noted[task_id]
        for key in list(self._touched):
            if not tx.room():
                return False
            del self._touched[key]
            if key in self._busy:
                self._work_on(tx, service, key)
        for key, at in list(self._resting.items()):
            if at <= tx.now:
                del self._resting[key]
        while self._todo and len(self._busy) + len(self._resting) < self._workers():
            if not tx.room():
                return False
            key, example = next(iter(self._todo.items()))
            del self._todo[key]
            self._busy[key] = example
            self._work_on(tx, service, key)
        if self._paused:
            self.over = not self._busy
        elif not self._todo and not self._busy and not self._resting:
            if self._idle_since is None:
                self._idle_since = tx.now if self._made else tx.now - self._watch_s()
            if tx.now >= self._idle_since + self._watch_s():
                self._complete(tx)
        return True

    def _work_on(self, tx: Tx, service: api.Service, key: str) -> None:
        """Bring one slot as far as it can be brought now."""
        slot = [x for x in t.slot_tasks(tx, service, self._busy[key]) if x.desired_state < api.REMOVE]
        live = t.updatable_tasks(service, slot, tx.now)
        fit = [x for x in live if t.is_wanted(x) and not t.is_task_dirty(service, x, tx.get(api.Node, x.node_id))]
        others = [x for x in live if t.is_wanted(x)]
        if not fit and self._paused and len(others) > 1:  # begun for a spec in between: keep its newest task
            fit = [max(others, key=lambda x: (x.spec_version.index, t.created_at(x, tx.now)))]
        if not fit:
            mine = next((x for x in slot if x.id in self._made and x.status.state > api.RUNNING), None)
            if mine is not None or not live or self._paused:
                self._rest(tx, key)  # it failed and is not to be restarted, or the slot was removed
                return
            old = live[0]
            node_id = old.node_id if self._by_node else ""
            made = t.new_task(tx, service, old.slot, node_id, ready=True)
            self._made[made.id] = None
            self._busy[key] = made
            if self._config.order == api.UpdateConfig.STOP_FIRST:
                self._shut_down(tx, others, besides=made)
            return
        best = max(fit, key=lambda x: (x.status.state == api.RUNNING, x.desired_state, -t.created_at(x, tx.now)))
        runs = best.status.state == api.RUNNING
        ended = best.status.state > api.RUNNING
        if runs or self._config.order == api.UpdateConfig.STOP_FIRST:
            self._shut_down(tx, others, besides=best)
        if runs or ended or any(x.id in self._made and x.status.state > api.RUNNING for x in slot):
            self._rest(tx, key)

    @staticmethod
    def _shut_down(tx: Tx, tasks: list[api.Task], besides: api.Task) -> None:
        for task in tasks:
            if task.id != besides.id:
                t.lower(tx, task.id, api.SHUTDOWN)

    def _rest(self, tx: Tx, key: str) -> None:
        del self._busy[key]
        if self._delay_s:
            self._resting[key] = tx.now + self._delay_s
        self._idle_since = tx.now + self._delay_s

    # --- outcome -----------------------------------------------------------------------------------------------------

    def _observe(self, tx: Tx, service: api.Service, task_id: str) -> bool:
        """Look at a task that this rollout made. True: the task failed, and that ended the rollout."""
        task = tx.get(api.Task, task_id)
        if task is None or task.status.state < api.RUNNING:
            return False
        since = self._made[task_id]
        if task.status.state == api.RUNNING:
            self._made[task_id] = tx.now if since is None else since
            return False
        if self._config.failure_action == api.UpdateConfig.CONTINUE or task_id in self._failed:
            return False
        if task.desired_state == api.REMOVE or (since is not None and tx.now - since > self._monitor_s):
            return False
        self._failed[task_id] = None
        if _single(len(self._failed) / self._total) <= self._config.max_failure_ratio:
            return False
        self._fail(tx, service, task_id)
        return True

    def _fail(self, tx: Tx, service: api.Service, task_id: str) -> None:
        reason = f"due to failure or early termination of task {task_id}"
        status = tx.edit(api.Service, self._service_id).update_status
        back = self._config.failure_action == api.UpdateConfig.ROLLBACK
        self.over = True
        if back and not self._rolling_back and service.HasField("previous_spec"):
            service = tx.edit(api.Service, self._service_id)
            service.spec.CopyFrom(service.previous_spec)
            service.spec_version.CopyFrom(service.previous_spec_version)
            service.ClearField("previous_spec")
            service.ClearField("previous_spec_version")
            status.state = _ROLLING_BACK
            status.message = f"update rolled back {reason}"
            return
        status.state = api.UpdateStatus.ROLLBACK_PAUSED if self._rolling_back else api.UpdateStatus.PAUSED
        status.message = f"rollback paused {reason}" if back and self._rolling_back else f"update paused {reason}"

    def _complete(self, tx: Tx) -> None:
        self.over = True
        status = tx.edit(api.Service, self._service_id).update_status
        status.state = api.UpdateStatus.ROLLBACK_COMPLETED if self._rolling_back else api.UpdateStatus.COMPLETED
        status.message = "rollback completed" if self._rolling_back else "update completed"
        stamp(status.completed_at, tx.now)

    def _slots(self, tx: Tx, service: api.Service, everywhere: bool = False) -> dict[str, list[api.Task]]:
        """The tasks that represent each slot to update. everywhere: also slots on nodes that take no updates now."""
        groups: dict[str, list[api.Task]] = {}
        for task in tx.find(api.Task, "service", service.id):
            if task.desired_state < api.REMOVE:
                groups.setdefault(self._key(task), []).append(task)
        out = {}
        for key, tasks in groups.items():
            if self._by_node and not everywhere and not _takes_updates(tx, service, key):
                continue
            standing = t.updatable_tasks(service, tasks, tx.now)
            if standing:
                out[key] = standing
        return out


def _takes_updates(tx: Tx, service: api.Service, node_id: str) -> bool:
    """Whether a global service is to be updated on this node now."""
    node = tx.get(api.Node, node_id)
    if node is None or t.invalid_node(node) or node.spec.availability == api.NodeSpec.PAUSE:
        return False
    return t.constraints_match(service, node)
