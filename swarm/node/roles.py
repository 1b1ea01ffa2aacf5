"""Whether this node's manager runs: while, and only while, its certificate says so.

    absent --wanted--> starting --up--> running --role lost, removed, failed--> stopping
      ^                   |                                                       |  |
      +------pause--------+<-----------------------failed-------------------------+  | role lost or removed
      +<------------------------forgotten---- forgetting the log <----------------------+

A manager that lost its role forgets its log: first state.json is written without it, then the log is deleted, so that a
log that state.json names exists. A manager that was removed although its certificate still says manager is *expelled*:
it starts none before it has another certificate. That one may have been under way since before the demotion; joining
again with it could cost a stock leader its quorum, so a worker's certificate is waited for first.

A manager whose log does not hold what it confirmed never runs with it. Other managers let it join again, as another
member; the log stays until then, because it may be the best that is left.

(swarmkit: node/node.go superviseManager, runManager)
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from functools import partial

import structlog

from swarm import defaults
from swarm.agent.events import LocalManager
from swarm.node.events import (
    Done,
    Failed,
    ForgetLog,
    ManagerDown,
    ManagerEnded,
    ManagerUp,
    OnLoss,
    StartManager,
    StopManager,
)
from swarm.node.outbox import Outbox
from swarm.node.record import Record, StateFile
from swarm.raft.events import LogLost
from swarm.rpc import MANAGER_ROLE

log = structlog.get_logger()

_DOUBLINGS_MAX = 20


class Phase(Enum):
    """Of the manager of this node."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FORGETTING = "forgetting"


class ManagerRole:
    """See the module. trouble: why no manager runs although one should; empty otherwise."""

    def __init__(self, record: Record, file: StateFile, out: Outbox) -> None:
        self.phase = Phase.ABSENT
        self.trouble = ""
        self.log_lost: LogLost | None = None
        """Why this manager must not go on as the member it was."""
        self.expelled_now = False
        """Set when this manager was expelled; whoever renews the certificate takes it back."""
        self._record = record
        self._file = file
        self._out = out
        self._supervised = False
        self._expelled = False
        self._tag = 0
        self._raft_id = 0
        self._started_at = 0.0
        self._ended: ManagerEnded | None = None
        self._removed = False
        self._failures = 0
        self._not_before: float | None = None
        self._asked = False

    @property
    def running(self) -> bool:
        """Whether a manager of this node can be called."""
        return self.phase is Phase.RUNNING

    # --- what happens ----------------------------------------------------------------------------------------------

    def supervise(self) -> None:
        """From now on the manager follows the role."""
        self._supervised = True

    def stop(self) -> None:
        """Everything was stopped; nothing is supervised."""
        self.phase, self.trouble = Phase.ABSENT, ""
        self.expelled_now = self._expelled = self._supervised = self._removed = self._asked = False
        self._ended = self._not_before = self.log_lost = None
        self._failures = 0

    def lost(self, error: LogLost) -> None:
        """The manager could not be started: its log does not hold what it confirmed."""
        self._back_off(error)

    def pause(self) -> None:
        """Supervise no more, but let the manager run: this node is about to leave."""
        self._supervised = False

    def certificate_changed(self) -> None:
        """There is another certificate, which may say manager again."""
        self._expelled = False

    def started(self, tag: int, up: ManagerUp) -> None:
        """A manager runs; ManagerEnded with this tag is about it."""
        record = self._record
        assert record.state is not None
        self.phase, self._tag, self._raft_id, self._started_at = Phase.RUNNING, tag, up.raft_id, record.now
        self._ended, self._removed, self.trouble, self.log_lost = None, False, "", None
        state = record.state
        if state.raft_id not in (0, up.raft_id):  # it joined again
            log.info("manager.joined_again", was=f"{state.raft_id:x}", now=f"{up.raft_id:x}")
            state = state.without_log(state.raft_id, ())
        record.state = replace(state, raft_id=up.raft_id)
        self._out.tell_agent(LocalManager(running=True))

    def ended(self, event: ManagerEnded) -> None:
        """The manager is of no use any more; of an earlier one that is old news."""
        if event.tag == self._tag and self.phase in (Phase.RUNNING, Phase.STOPPING):
            self._removed = self._removed or event.removed
            self._ended = event if self._ended is None or event.removed else self._ended

    # --- what follows from it --------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Take the next step, if one is due."""
        if not self._supervised:
            return
        if self._not_before is not None and self._record.now >= self._not_before:
            self._not_before = None
        wanted = self._record.role == MANAGER_ROLE
        if self.phase is Phase.ABSENT and wanted and not self._expelled and self._not_before is None:
            self._start()
        elif self.phase is Phase.RUNNING and (self._ended is not None or not wanted):
            self._stop()
        elif self.phase is Phase.FORGETTING and not self._asked and self._file.saved and self._not_before is None:
            self._asked = True
            self._out.perform(ForgetLog, self._forgotten)

    def deadline(self) -> float | None:
        """When a pause ends."""
        waits = self.phase is Phase.FORGETTING or (self.phase is Phase.ABSENT and self._record.role == MANAGER_ROLE)
        return self._not_before if waits and self._supervised else None

    def _start(self) -> None:
        assert self._record.state is not None
        self.phase, self._not_before = Phase.STARTING, None
        rejoins = self.log_lost is not None and self._record.state.other_managers()
        on_loss = OnLoss.REJOIN if rejoins else OnLoss.REFUSE
        self._out.perform(partial(StartManager, state=self._record.state, on_loss=on_loss), self._start_ended)

    def _start_ended(self, outcome: Done | Failed) -> None:
        if isinstance(outcome, Done):
            assert isinstance(outcome.value, ManagerUp)
            self.started(outcome.tag, outcome.value)
        else:
            self._back_off(outcome.error)

    def _stop(self) -> None:
        self.phase = Phase.STOPPING
        self._out.tell_agent(LocalManager(running=False))
        self._out.perform(StopManager, self._stopped)

    def _stopped(self, outcome: Done | Failed) -> None:
        down = ManagerDown(self._raft_id, ())
        if isinstance(outcome, Done) and isinstance(outcome.value, ManagerDown):
            down = outcome.value
            self._removed = self._removed or down.removed
        if self._record.now - self._started_at > defaults.ROLE_START_PAUSE_MAX_S:
            self._failures = 0
        record, ended = self._record, self._ended
        if record.role != MANAGER_ROLE or self._removed:
            assert record.state is not None
            log.info("manager.stopped", role=record.role, removed=self._removed)
            record.state = record.state.without_log(down.raft_id, down.others)
            record.remotes.learn(record.state.managers)
            self.phase, self._not_before, self._asked = Phase.FORGETTING, None, False
        elif ended is not None and ended.error is not None:
            self._back_off(ended.error)
        else:
            self.phase = Phase.ABSENT

    def _forgotten(self, outcome: Done | Failed) -> None:
        self._asked = False
        if isinstance(outcome, Failed):
            self._back_off(outcome.error, Phase.FORGETTING)
            return
        self.phase = Phase.ABSENT
        if self._record.role == MANAGER_ROLE:
            self._expelled = self.expelled_now = True
            self._not_before = self._record.now + defaults.ROLE_CHANGE_WAIT_S

    def _back_off(self, error: Exception, phase: Phase = Phase.ABSENT) -> None:
        if isinstance(error, LogLost):
            self.log_lost = error
        self._failures = min(self._failures + 1, _DOUBLINGS_MAX)
        pause_s = min(defaults.ROLE_START_PAUSE_MAX_S, defaults.ROLE_START_PAUSE_S * 2**self._failures)
        self.phase, self._not_before = phase, self._record.now + pause_s
        lost = f" ({self.log_lost})" if self.log_lost not in (None, error) else ""
        self.trouble = f"manager stopped: {error}{lost}"
        log.error("manager.stopped", error=str(error), retry_s=pause_s)
