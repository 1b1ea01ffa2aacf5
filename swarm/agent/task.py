"""One task on its node: which step comes next, and what the end of a step means for its status.

Theory of operation. A task has an observed state (its status) and a desired state. MOVES gives for each state the next
step, if one is needed, and the state after it. States never decrease. A task pauses at its desired state, but from
PREPARING, STARTING and RUNNING it always goes on. A desired state of SHUTDOWN or higher stops it. At most one step runs
at a time: to start another one, the task first cancels the running step and waits for its end. After a temporary error
the task keeps its state and tries the same step again, with growing delays. Any other error ends the task: REJECTED
before STARTING, else FAILED. A task that is no longer assigned is shut down and removed; nothing is reported about
that.

The registry login that comes with a task is never journaled. After a restart, a task that still needs its image waits
until the managers send the login again, as it waits for secrets.

(swarmkit: agent/exec/controller.go, agent/task.go)
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from google.protobuf.message import DecodeError

from swarm import api, defaults
from swarm.agent.dependencies import Dependencies
from swarm.agent.events import CancelStep, Execute, Executed, Observed, Step
from swarm.api.equality import same_task
from swarm.api.timestamps import stamp
from swarm.store.store import copy_of


@dataclass(frozen=True, slots=True)
class Move:
    """The transition out of a state: after ``step`` succeeded (None: no step needed), the state is ``then``."""

    step: Step | None
    then: api.TaskState
    message: str


_ACCEPT = Move(None, api.ACCEPTED, "accepted")

MOVES: dict[int, Move] = {
    api.NEW: _ACCEPT,
    api.PENDING: _ACCEPT,
    api.ASSIGNED: _ACCEPT,
    api.ACCEPTED: Move(None, api.PREPARING, "preparing"),
    api.PREPARING: Move(Step.PREPARE, api.READY, "prepared"),
    api.READY: Move(None, api.STARTING, "starting"),
    api.STARTING: Move(Step.START, api.RUNNING, "started"),
    api.RUNNING: Move(Step.WAIT, api.COMPLETE, "finished"),
}
STOP = Move(Step.SHUTDOWN, api.SHUTDOWN, "shutdown")

_ASSIGNED, _HAD_LOGIN = 1, 2  # bits of a record's first byte

_UNINTERRUPTED = (Step.SHUTDOWN, Step.REMOVE)
_NEED_DEPENDENCIES = (Step.PREPARE, Step.START)


def next_move(state: int, desired: int) -> Move | None:
    """The move that brings a task nearer to its desired state; None: nothing to do until either state changes."""
    if desired >= api.SHUTDOWN:
        return STOP if state < api.COMPLETE else None
    move = MOVES.get(state)
    if move is None or state > desired:
        return None
    if move.step is None and state == desired:
        return None
    return move


def exit_error(code: int, cause: str = "") -> str:
    """The error of a task whose container exited with a code other than 0, as users know it from SwarmKit."""
    text = f"task: non-zero exit ({code})"
    return f"{text}: {cause}" if cause else text


class TaskRun:
    """A task that was assigned to this node. The worker passes it events and calls advance().

    ``task`` is the assigned definition, with the status that this node knows. ``dirty``: its journal record is out of
    date. ``news``: the status changed since the worker last read it.
    """

    def __init__(self, task: api.Task, assigned: bool = True) -> None:
        self.task = copy_of(task)
        self.assigned = assigned
        self.gone = False
        self.again: api.Task | None = None
        self.dirty = True
        self.news = assigned
        self._move: Move | None = None
        self._step: Step | None = None
        self._interrupt = False
        self._cancel_by: float | None = None
        self._retry_at: float | None = None
        self._retries = 0
        self._refresh = False
        self._stopped = False
        self._lacks_login = False

    # --- the journal -----------------------------------------------------------------------------------------------

    def record(self) -> bytes:
        """The journal record with which the task can continue after a restart of this process."""
        task = self.task
        had_login = bool(task.spec.container.pull_options.registry_auth)
        if had_login:
            task = copy_of(task)
            task.spec.container.pull_options.ClearField("registry_auth")
        first = _ASSIGNED * self.assigned | _HAD_LOGIN * (had_login or self._lacks_login)
        return bytes([first]) + task.SerializeToString()

    @classmethod
    def from_record(cls, record: bytes) -> TaskRun | None:
        """The task of a journal record; None when the record cannot be read."""
        task = api.Task()
        try:
            task.ParseFromString(record[1:])
        except DecodeError:
            return None
        if not task.id or record[0] > _ASSIGNED | _HAD_LOGIN:
            return None
        run = cls(task, assigned=bool(record[0] & _ASSIGNED))
        run._lacks_login = bool(record[0] & _HAD_LOGIN)
        run.dirty = False
        return run

    # --- events ----------------------------------------------------------------------------------------------------

    def assign(self, task: api.Task) -> None:
        """The manager sent this task (again). This node decides its status; the desired state never decreases."""
        if not self.assigned:
            self.again = copy_of(task)
            return
        if self._lacks_login:
            self._lacks_login = False
            self.task.spec.container.pull_options.registry_auth = task.spec.container.pull_options.registry_auth
        if task.desired_state < self.task.desired_state or same_task(task, self.task):
            return
        stopping = task.desired_state >= api.SHUTDOWN
        before, self.task = self.task, copy_of(task)
        self.task.status.CopyFrom(before.status)
        before.desired_state = task.desired_state
        changed = not same_task(before, task)
        self.dirty = True
        self._reset_retry()
        if changed and self.task.status.state >= api.STARTING:
            self._refresh = True
        if stopping:
            self._interrupt = self._interruptible()
        elif changed:
            self._interrupt = self._step in (Step.PREPARE, Step.WAIT)

    def unassign(self) -> None:
        """The manager no longer knows this task: stop it and remove everything made for it."""
        self.again = None
        if not self.assigned:
            return
        self.assigned = False
        self.dirty = True
        self._interrupt = self._interruptible()
        self._reset_retry()

    def observed(self, event: Observed, now: float) -> None:
        """Facts about the container of a running step."""
        self._note_facts(event.container, event.ports, now)

    def executed(self, event: Executed, now: float, rng: Random) -> None:
        """A step ended. If it is not the running step, the event is late and ignored."""
        if event.step is not self._step:
            return
        move, interrupted = self._move, self._cancel_by is not None
        self._forget_step()
        self._note_facts(event.container, event.ports, now)
        error = event.error
        if event.container is not None and event.step in (Step.WAIT, Step.START) and not error and not event.cancelled:
            error = exit_error(event.container.exit_code) if event.container.exit_code else ""
        if event.cancelled:
            if not interrupted:
                self._retry(now, rng)
        elif event.step is Step.REMOVE:
            self._removed(error, now, rng)
        elif not self.assigned:
            self._stopping(event.step, error, now, rng)
        elif event.step is Step.UPDATE:
            self._refresh = bool(error) and event.temporary and self._retry(now, rng)
        elif not error:
            assert move is not None
            self._reset_retry()
            self._set_status(move.then, move.message, "", now)
        elif event.temporary:
            self._set_status(self.task.status.state, self.task.status.message, error, now)
            if not interrupted:
                self._retry(now, rng)
        else:
            failed = api.REJECTED if self.task.status.state < api.STARTING else api.FAILED
            self._set_status(failed, self.task.status.message, error, now)

    # --- what to do ------------------------------------------------------------------------------------------------

    def advance(self, now: float, dependencies: Dependencies, synced: bool) -> list[Execute | CancelStep]:
        """Change the state as far as possible without a step, then start or cancel one.

        synced: the manager has sent all secrets and configs, so a missing one will not come.
        """
        if self._step is not None and not self._give_up_step(now):
            return self._cancel(now)
        if self.gone or (self._retry_at is not None and now < self._retry_at):
            return []
        self._retry_at = None
        if not self.assigned:
            return self._execute(Step.REMOVE if self._stopped else Step.SHUTDOWN, None, dependencies)
        if self._refresh and self.task.status.state == api.RUNNING and self.task.desired_state < api.SHUTDOWN:
            return self._execute(Step.UPDATE, None, dependencies)
        while (move := next_move(self.task.status.state, self.task.desired_state)) is not None:
            if move.step is None:
                self._set_status(move.then, move.message, "", now)
                continue
            if move.step is Step.PREPARE and self._lacks_login:
                return []
            missing = dependencies.missing(self.task) if move.step in _NEED_DEPENDENCIES else ""
            if not missing:
                return self._execute(move.step, move, dependencies)
            if not synced:
                return []
            failed = api.REJECTED if self.task.status.state < api.STARTING else api.FAILED
            self._set_status(failed, self.task.status.message, missing, now)
        return []

    def deadline(self) -> float | None:
        """When advance() has something to do without an event, in seconds since the epoch."""
        return self._cancel_by if self._step is not None else self._retry_at

    # --- inside ----------------------------------------------------------------------------------------------------

    def _execute(self, step: Step, move: Move | None, dependencies: Dependencies) -> list[Execute | CancelStep]:
        self._move, self._step = move, step
        if step in (Step.SHUTDOWN, Step.REMOVE):
            return [Execute(self.task.id, step, copy_of(self.task))]
        secrets, configs = dependencies.secrets_of(self.task), dependencies.configs_of(self.task)
        return [Execute(self.task.id, step, copy_of(self.task), secrets, configs)]

    def _cancel(self, now: float) -> list[Execute | CancelStep]:
        if not self._interrupt or self._cancel_by is not None:
            return []
        self._cancel_by = now + defaults.CANCEL_WAIT_S
        return [CancelStep(self.task.id)]

    def _interruptible(self) -> bool:
        return self._step is not None and self._step not in _UNINTERRUPTED

    def _give_up_step(self, now: float) -> bool:
        """Whether the running step was cancelled so long ago that the task no longer waits for its end."""
        if self._cancel_by is None or now < self._cancel_by:
            return False
        self._forget_step()
        return True

    def _forget_step(self) -> None:
        self._step = self._move = None
        self._interrupt = False
        self._cancel_by = None

    def _retry(self, now: float, rng: Random) -> bool:
        """Plan another attempt. Returns False when a task that is being removed has used all its attempts."""
        self._retries += 1
        if not self.assigned and self._retries >= defaults.TASK_REMOVE_ATTEMPTS_MAX:
            return False
        delay_s = min(defaults.TASK_RETRY_BASE_S * 2 ** min(self._retries - 1, 16), defaults.TASK_RETRY_MAX_S)
        self._retry_at = now + delay_s * rng.uniform(0.5, 1.0)
        return True

    def _reset_retry(self) -> None:
        self._retry_at, self._retries = None, 0

    def _stopping(self, step: Step, error: str, now: float, rng: Random) -> None:
        """A step of a task that is being removed ended. Only the end of SHUTDOWN matters."""
        if step is Step.SHUTDOWN and (not error or not self._retry(now, rng)):
            self._stopped = True
            self._reset_retry()

    def _removed(self, error: str, now: float, rng: Random) -> None:
        self.gone = not error or not self._retry(now, rng)

    def _note_facts(self, container: api.ContainerStatus | None, ports: api.PortStatus | None, now: float) -> None:
        status = copy_of(self.task.status)
        if container is not None:
            status.container.CopyFrom(container)
        if ports is not None:
            status.port_status.CopyFrom(ports)
        if status != self.task.status:
            stamp(status.timestamp, now)
            self.task.status.CopyFrom(status)
            self._changed()

    def _set_status(self, state: int, message: str, error: str, now: float) -> None:
        status = self.task.status
        assert state >= status.state, f"task {self.task.id} may not go from {status.state} back to {state}"
        if (status.state, status.message, status.err) == (state, message, error):
            return
        status.state = state  # type: ignore[assignment]
        status.message, status.err = message, error
        stamp(status.timestamp, now)
        self._changed()

    def _changed(self) -> None:
        self.dirty = True
        self.news = self.assigned
