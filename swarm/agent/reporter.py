"""Reports statuses to the managers: collects them briefly, sends them in one call, keeps them until acknowledged.

(swarmkit: agent/reporter.go)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import AnyMethod
from swarm.errors import Code, SwarmError


class Reporter:
    """The statuses that the managers have not acknowledged. One call runs at a time; its answer comes back here.

    When a call fails, everything is kept for the next session. When a manager permanently refuses one status (the task
    now belongs to another node), it refuses the whole call. The reporter then sends the statuses one by one and drops
    the refused ones.
    """

    def __init__(self, status: Callable[[str], api.TaskStatus | None]) -> None:
        self._status = status
        self._pending: dict[str, None] = {}
        self._volumes: dict[str, None] = {}
        self._sent: dict[str, api.TaskStatus] = {}
        self._sent_volumes: tuple[str, ...] = ()
        self._due: float | None = None
        self._updates_max = defaults.STATUS_UPDATES_PER_CALL_MAX

    def add(self, task_ids: Iterable[str], now: float) -> None:
        """The statuses of these tasks changed, or must be reported again."""
        self._pending.update(dict.fromkeys(task_ids))
        self._plan(now)

    def add_volumes(self, volume_ids: Iterable[str], now: float) -> None:
        """These volumes are unpublished."""
        self._volumes.update(dict.fromkeys(volume_ids))
        self._plan(now)

    def restart(self, task_ids: Iterable[str], now: float) -> None:
        """A new session began: everything is unacknowledged again."""
        self._sent.clear()
        self._sent_volumes = ()
        self._updates_max = defaults.STATUS_UPDATES_PER_CALL_MAX
        self._due = None
        self.add(task_ids, now)

    def deadline(self) -> float | None:
        """When take() has something to send; None while a call is running or nothing is pending."""
        return None if self._sent or self._sent_volumes else self._due

    def take(self, session_id: str, now: float) -> tuple[AnyMethod, Message] | None:
        """The next call (its method and request) if one is due."""
        due = self.deadline()
        if due is None or now < due:
            return None
        request = api.UpdateTaskStatusRequest(session_id=session_id)
        for task_id in list(self._pending):
            status = self._status(task_id)
            if status is None:
                del self._pending[task_id]
                continue
            self._sent[task_id] = status
            request.updates.add(task_id=task_id, status=status)
            if len(request.updates) == self._updates_max:
                break
        if self._sent:
            return rpc.UPDATE_TASK_STATUS, request
        if not self._volumes:
            self._due = None
            return None
        self._sent_volumes = tuple(self._volumes)
        volumes = api.UpdateVolumeStatusRequest(session_id=session_id)
        for volume_id in self._sent_volumes:
            volumes.updates.add(id=volume_id, unpublished=True)
        return rpc.UPDATE_VOLUME_STATUS, volumes

    def acknowledged(self, now: float) -> None:
        """The running call succeeded. What changed since it was sent stays pending."""
        for task_id, status in self._sent.items():
            if self._status(task_id) in (None, status):
                self._pending.pop(task_id, None)
        for volume_id in self._sent_volumes:
            self._volumes.pop(volume_id, None)
        self._next(now)

    def refused(self, error: SwarmError, now: float) -> bool:
        """The running call failed. Returns whether the session may continue."""
        if self._sent_volumes and error.code == Code.UNIMPLEMENTED:
            self.acknowledged(now)
            return True
        if self._sent_volumes or error.code != Code.PERMISSION_DENIED:
            return False
        if len(self._sent) == 1:
            self._pending.pop(next(iter(self._sent)), None)
        self._updates_max = 1
        self._next(now)
        return True

    def _next(self, now: float) -> None:
        self._sent.clear()
        self._sent_volumes = ()
        self._due = now if self._pending or self._volumes else None

    def _plan(self, now: float) -> None:
        if self._due is None and (self._pending or self._volumes):
            self._due = now + defaults.STATUS_BATCH_S
