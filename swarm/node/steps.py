"""Steps that the ways into a swarm and out of it have in common; see membership.py for what a procedure is.

(swarmkit: node/node.go; moby: daemon/cluster/noderunner.go)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from functools import partial

import structlog

from certs.keys import identity_of
from swarm.agent import events as agent_events
from swarm.agent.events import LocalManager
from swarm.node import own_certificate
from swarm.node.certificates import Certificates
from swarm.node.events import (
    AwaitLeadership,
    Done,
    DropState,
    Erase,
    ForgetLog,
    Identity,
    ManagerUp,
    OnLoss,
    OpenIdentity,
    StartAgent,
    StartManager,
    StopRoles,
)
from swarm.node.outbox import Make, Outbox
from swarm.node.record import Record, StateFile
from swarm.node.remotes import Remotes
from swarm.node.roles import ManagerRole
from swarm.node.state import StateDamaged
from swarm.raft.events import LogLost
from swarm.rpc import MANAGER_ROLE

log = structlog.get_logger()


class Phase(Enum):
    """Of this node in a swarm; PENDING includes active nodes: Record.ready tells them apart."""

    INACTIVE = "inactive"
    PENDING = "pending"
    LOCKED = "locked"
    ERROR = "error"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Wait:
    """A step that is over when ``condition`` holds. until: when it fails with TimeoutError; None: never."""

    condition: Callable[[], bool]
    until: float | None = None


Procedure = Generator[Make | Wait, Done, None]


class Steps:
    """phase, error: what procedures leave. lost_id: this node's ID when its state cannot be read, else empty."""

    def __init__(
        self,
        record: Record,
        file: StateFile,
        roles: ManagerRole,
        certificates: Certificates,
        out: Outbox,
        stop_parts: Callable[[], None],
    ) -> None:
        """stop_parts: forgets everything that only counts while roles run."""
        self.phase = Phase.INACTIVE
        self.error: Exception | None = None
        self.lost_id = ""
        self._record = record
        self._file = file
        self._roles = roles
        self._certificates = certificates
        self._out = out
        self._stop_parts = stop_parts

    def resume(
        self, open_identity: Make = OpenIdentity, force_new_cluster: bool = False, on_loss: OnLoss = OnLoss.REFUSE
    ) -> Procedure:
        identity = identity_of_outcome((yield open_identity))
        state = self._record.state
        assert state is not None
        found = identity_of(identity.certificate_pem)
        if (found.node_id, found.org) != (state.node_id, state.cluster_id):
            raise StateDamaged(
                f"state.json belongs to node {state.node_id} of cluster {state.cluster_id}, but the certificate to "
                f"node {found.node_id} of cluster {found.org}. Nothing was changed"
            )
        own_certificate.check(identity)
        self._certificates.adopt(identity)
        if self._record.role != MANAGER_ROLE:  # perhaps killed after its demotion, before the log was gone
            if state.raft_id:
                self._record.state = state.without_log(state.raft_id, ())
                yield from self.save()
            yield ForgetLog
        if self._record.role == MANAGER_ROLE and state.raft_id:
            # a member without a log yet joins its group when others can be reached (ManagerRole)
            try:
                yield from self.start_manager(force_new_cluster=force_new_cluster, on_loss=on_loss)
            except LogLost as error:
                if force_new_cluster or not state.other_managers():
                    raise
                self._roles.lost(error)  # the others let it join again, and the agent can go on meanwhile
        if force_new_cluster:
            yield AwaitLeadership
            yield from self.save()
        yield from self.start_agent()

    def start_manager(
        self, create: bool = False, force_new_cluster: bool = False, on_loss: OnLoss = OnLoss.REFUSE
    ) -> Procedure:
        state = self._record.state
        assert state is not None
        done = yield partial(
            StartManager, state=state, create=create, force_new_cluster=force_new_cluster, on_loss=on_loss
        )
        assert isinstance(done.value, ManagerUp)
        self._roles.started(done.tag, done.value)
        if not create:
            yield from self.save()

    def start_agent(self) -> Procedure:
        """The last step of every way in; from here on roles and certificates look after themselves."""
        record = self._record
        assert record.state is not None
        record.remotes = Remotes(record.state.managers)
        yield partial(StartAgent, node_id=record.node_id)
        record.agent_runs = True
        self._out.tell_agent(LocalManager(running=self._roles.running))
        if record.engine_error:
            self._out.tell_agent(agent_events.EngineGone(record.engine_error, certain=False))
        self._certificates.start()
        self._roles.supervise()
        self._file.follow()

    def save(self) -> Procedure:
        """Wait until state.json says what the record does. Raises what the attempt to write it raised."""
        self._file.follow()
        yield Wait(lambda: self._file.saved or self._file.error is not None)
        if self._file.error is not None and not self._file.saved:
            raise self._file.error

    def pause(self, delay_s: float) -> Procedure:
        try:
            yield Wait(lambda: False, self._record.now + delay_s)
        except TimeoutError:
            return

    def stop_roles(self) -> Procedure:
        self._stop_parts()
        try:
            yield StopRoles
        except Exception as error:
            log.error("swarm.roles_not_stopped", error=str(error))

    def give_up(self) -> Procedure:
        """Nothing stays of this node; a kill from here on changes nothing about that."""
        self._file.stop()
        try:
            yield DropState
        except Exception as error:
            log.error("swarm.leave_not_recorded", error=str(error))
        yield from self.stop_roles()
        yield from self.erase()

    def erase(self) -> Procedure:
        """Delete everything. What cannot be deleted is deleted by the next start, or by the next leave."""
        self.lost_id = self._record.node_id or self.lost_id
        self._file.forget()
        self._record.clear()
        try:
            yield Erase
        except Exception as error:
            self.fail(error)
            return
        self.phase, self.error, self.lost_id = Phase.INACTIVE, None, ""

    def fail(self, error: Exception) -> None:
        self.phase, self.error = Phase.ERROR, error


def identity_of_outcome(done: Done) -> Identity:
    """Of an effect whose outcome is an Identity."""
    assert isinstance(done.value, Identity)
    return done.value
