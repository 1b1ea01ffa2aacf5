"""Stage: N slots per replicated service.

Missing slots are filled, lowest number first; surplus slots get desired state REMOVE. This stage only counts slots: the
restart stage replaces tasks that fail, the update stage replaces tasks that are out of date.

The stage remembers which tasks fill which slot and updates that task by task as notes come in, so that a service with
70,000 tasks is not read again in every pass. A slot is *live* while one of its tasks is meant to run,
*held* when its newest task ended and the restart policy leaves it at that, else *dead*.

(swarmkit: manager/orchestrator/replicated/{replicated,services,slot}.go)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from swarm import api, defaults
from swarm.manager import tasks as t
from swarm.manager.backlog import Backlog
from swarm.store.store import View
from swarm.store.tx import Tx

log = structlog.get_logger()

_Ids = dict[str, None]


@dataclass(slots=True)
class _Slots:
    """Slots of one service: IDs of tasks by slot number. ``ended`` tasks are those not meant to run any more."""

    live: dict[int, _Ids] = field(default_factory=dict)
    ended: dict[int, _Ids] = field(default_factory=dict)
    held: dict[int, None] = field(default_factory=dict)
    unsorted: dict[int, None] = field(default_factory=dict)  # without a live task, held or dead
    next_free: int = 1  # no lower slot is free
    surplus: list[int] = field(default_factory=list)  # slots to remove, from the end of the list
    version: int | None = None  # of the spec that was last reconciled

    def occupied(self, slot: int) -> bool:
        return slot in self.live or slot in self.held


class ReplicatedStage:
    """See the module; a Stage."""

    def __init__(self, strict: bool = False, replicas_max: int = defaults.SERVICE_REPLICAS_MAX) -> None:
        """strict: see Backlog. replicas_max: no more tasks are made of a service, whoever stored its spec."""
        self._strict = strict
        self._replicas_max = replicas_max
        self._reset()

    def _reset(self) -> None:
        self._services: dict[str, _Slots] = {}
        self._seen: dict[str, tuple[str, int, bool]] = {}  # task ID -> service ID, slot, live
        self._noted: dict[str, None] = {}
        self._backlog = Backlog("replicated", self._strict)

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._reset()
        for service in view.all(api.Service):
            self.note("service", service.id)
        for task in view.all(api.Task):
            self.note("task", task.id)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        if kind == "task":
            self._noted[object_id] = None
        elif kind == "service":
            slots = self._services.get(object_id)
            if slots is not None:
                slots.surplus = []
                slots.unsorted.update(slots.held)  # the policy may have changed
            self._backlog.mark(object_id)

    def run(self, tx: Tx) -> None:
        """See Stage."""
        noted, self._noted = self._noted, {}
        for task_id in noted:
            self._reconcile_task(tx, task_id)
        self._backlog.work(tx, self._reconcile)

    def deadline(self) -> float | None:
        """See Stage."""
        return self._backlog.deadline()

    def _reconcile_task(self, tx: Tx, task_id: str) -> None:
        """Forget where the task was counted and look where it is now."""
        task = tx.get(api.Task, task_id)
        before = self._seen.get(task_id)
        after = None
        if task is not None and task.slot and task.service_id:
            after = (task.service_id, task.slot, task.desired_state <= api.RUNNING)
        if before == after:
            if after is not None and not after[2]:
                self._services[after[0]].unsorted[after[1]] = None  # its state may matter: held or dead
                self._backlog.mark(after[0])
            return
        if before is not None:
            del self._seen[task_id]
            self._drop(task_id, *before)
        if after is not None:
            service_id, slot, live = self._seen[task_id] = after
            slots = self._services.setdefault(service_id, _Slots())
            (slots.live if live else slots.ended).setdefault(slot, {})[task_id] = None
            slots.held.pop(slot, None)
            if slot not in slots.live:
                slots.unsorted[slot] = None
                self._backlog.mark(service_id)

    def _drop(self, task_id: str, service_id: str, slot: int, live: bool) -> None:
        slots = self._services[service_id]
        table = slots.live if live else slots.ended
        ids = table[slot]
        del ids[task_id]
        if not ids:
            del table[slot]
        if slot not in slots.live:
            slots.held.pop(slot, None)
            slots.next_free = min(slots.next_free, slot)
            if slot in slots.ended:
                slots.unsorted[slot] = None
            self._backlog.mark(service_id)
        if not slots.live and not slots.ended:
            del self._services[service_id]

    def _sort_slots(self, tx: Tx, service: api.Service, slots: _Slots) -> None:
        """Decide which slots without a live task are held by an ended one."""
        for slot in slots.unsorted:
            slots.held.pop(slot, None)
            if slot in slots.live or slot not in slots.ended:
                continue
            present = [task for i in slots.ended[slot] if (task := tx.get(api.Task, i)) is not None]
            if t.updatable_tasks(service, [x for x in present if x.desired_state < api.REMOVE], tx.now):
                slots.held[slot] = None
            else:
                slots.next_free = min(slots.next_free, slot)
        slots.unsorted = {}

    def _reconcile(self, tx: Tx, service_id: str) -> bool:
        service = tx.get(api.Service, service_id)
        if service is None or t.mode_of(service) != t.REPLICATED:
            return True  # the reaper removes tasks of services that are gone
        slots = self._services.get(service_id)
        if slots is None:
            slots = self._services[service_id] = _Slots()
        try:
            return self._reconcile_slots(tx, service, slots)
        except Exception:
            for ids in (*slots.live.values(), *slots.ended.values()):
                self._noted.update(ids)  # the savepoint takes back what was counted in this pass
            raise

    def _reconcile_slots(self, tx: Tx, service: api.Service, slots: _Slots) -> bool:
        self._sort_slots(tx, service, slots)
        # What scaling down left behind stays as history until the service is changed again.
        changed = slots.version not in (None, service.spec_version.index)
        dead = [slot for slot in slots.ended if not slots.occupied(slot)] if changed else []
        missing = service.spec.replicated.replicas - len(slots.live) - len(slots.held)
        room = max(0, self._replicas_max - len(slots.live) - len(slots.held))
        if missing > 0 and not self._fill(tx, service, slots, min(missing, room)):
            return False
        if missing < 0 and not self._shrink(tx, service, slots, -missing):
            return False
        for slot in dead:
            if slot not in slots.live and not self._remove(tx, slots, slot):
                return False
        if missing > room and slots.version != service.spec_version.index:
            log.warning("service.replicas_limited", service=service.id, limit=self._replicas_max)
        slots.version = service.spec_version.index
        return True

    def _fill(self, tx: Tx, service: api.Service, slots: _Slots, missing: int) -> bool:
        template = t.task_template(tx, service)
        for _ in range(missing):
            if not tx.room():
                return False
            while slots.occupied(slots.next_free):
                slots.next_free += 1
            task = t.new_task(tx, service, slots.next_free, template=template)
            self._reconcile_task(tx, task.id)
        return True

    def _shrink(self, tx: Tx, service: api.Service, slots: _Slots, surplus: int) -> bool:
        if not slots.surplus:
            slots.surplus = self._ranked(tx, slots)[-surplus:]
        while surplus and slots.surplus:
            slot = slots.surplus[-1]
            if slots.occupied(slot):
                if not self._remove(tx, slots, slot):
                    return False
                surplus -= 1
            slots.surplus.pop()
        return surplus == 0

    def _remove(self, tx: Tx, slots: _Slots, slot: int) -> bool:
        """Set desired state REMOVE for the tasks that represent the slot: its live ones, or else its ended ones."""
        ids = slots.live.get(slot) or slots.ended.get(slot) or {}
        for task_id in list(ids):
            if not tx.room():
                return False
            t.lower(tx, task_id, api.REMOVE)
            self._reconcile_task(tx, task_id)
        slots.held.pop(slot, None)
        return True

    def _ranked(self, tx: Tx, slots: _Slots) -> list[int]:
        """Occupied slots, those to keep first.

        Running ones before others and low numbers before high ones; counted off on each node, so that the first copies
        on every node come before the second ones. Slots without a node, or with several tasks, go first.
        """
        entries = []
        for table in (slots.live, {slot: slots.ended[slot] for slot in slots.held}):
            for slot, ids in table.items():
                present = [task for i in ids if (task := tx.get(api.Task, i)) is not None]
                running = any(task.status.state == api.RUNNING for task in present)
                node_id = present[0].node_id if len(present) == 1 else ""
                entries.append((not running, slot, node_id))
        copies: dict[str, int] = {}
        ranked = []
        for idle, slot, node_id in sorted(entries):
            copies[node_id] = copies.get(node_id, 0) + 1
            ranked.append((not node_id, copies[node_id] if node_id else 0, idle, slot))
        return [entry[-1] for entry in sorted(ranked)]
