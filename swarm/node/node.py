"""One node of a swarm, or of none yet, as a machine: its membership, its role, its certificate, its description.

The daemon has one Node for as long as it runs. Requests of users, outcomes of effects, and what agent, manager and
engine tell come in as events; a driver performs the effects (swarm/io/node/node_process.py, and the simulator). After
each event all parts decide what is due: they look at facts, not at what led to them.

    Membership    procedures: boot, init, join, leave, unlock, force a new cluster, stop
    ManagerRole   runs a manager while the certificate says so
    Certificates  renewal, roots
    Description   what managers are told of this node
    StateFile     state.json follows what is known

(swarmkit: node/node.go; moby: daemon/cluster/cluster.go)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import structlog

from swarm.agent import events as agent_events
from swarm.errors import SwarmError, Unavailable
from swarm.node.certificates import Certificates
from swarm.node.description import Description
from swarm.node.events import (
    Answer,
    Boot,
    Done,
    Effect,
    Event,
    Failed,
    ForceNewCluster,
    Init,
    Join,
    Leave,
    ManagerEnded,
    Refusal,
    Refused,
    RenewCertificateNow,
    Request,
    Stop,
    Unlock,
)
from swarm.node.membership import Membership
from swarm.node.outbox import Outbox
from swarm.node.record import Record, StateFile
from swarm.node.remotes import Manager
from swarm.node.roles import ManagerRole
from swarm.node.state import NodeState
from swarm.node.steps import Phase, Procedure, Wait

log = structlog.get_logger()


@dataclass(frozen=True)
class Status:
    """What others may know of this node.

    error: why it is in Phase.ERROR. trouble: why managers do not accept it or its manager does not run; empty: neither.
    certificate_trouble: the part of it that concerns its certificate or clocks. managers: (node ID, "ip:port").
    """

    phase: Phase
    state: NodeState | None
    node_id: str
    role: str
    ready: bool
    manager_running: bool
    managers: tuple[Manager, ...]
    error: Exception | None
    trouble: str
    certificate_trouble: str


class Node:
    """See the module."""

    def __init__(self, rng: Random) -> None:
        self._out = Outbox()
        self._record = Record()
        self._file = StateFile(self._record, self._out)
        self._roles = ManagerRole(self._record, self._file, self._out)
        self._certificates = Certificates(self._record, self._out, rng)
        self._description = Description(self._record, self._out)
        self._membership = Membership(
            self._record, self._file, self._roles, self._certificates, self._out, self._answer, self._stop_parts
        )
        self._procedure: Procedure | None = None
        self._wait: Wait | None = None
        self._expected = 0
        self._requests: deque[Request] = deque()
        self._open: dict[int, None] = {}
        """Tickets of requests that are not answered yet."""
        self._at_end: list[int] = []
        """Tickets that are answered when the procedure that runs has ended."""

    # --- machine ---------------------------------------------------------------------------------------------------

    def handle(self, event: Event | None, now: float) -> list[Effect]:
        """See Machine.handle."""
        self._record.now = now
        match event:
            case Done() | Failed():
                self._out.settle(event)
            case Boot():
                self._open[event.ticket] = None
                self._begin(self._membership.boot(event))
            case Init() | Join() | Leave() | Unlock() | ForceNewCluster() | Stop():
                self._request(event)
            case ManagerEnded():
                self._roles.ended(event)
            case RenewCertificateNow():
                self._certificates.renew_now()
            case agent_events.EngineGone() | agent_events.EngineBack():
                self._engine(event)
            case agent_events.SessionState(error=error):
                self._session(error)
            case agent_events.SessionUpdate():
                self._update(event)
            case agent_events.Left():
                self._membership.left = True
            case None:
                pass
        self._decide()
        return self._out.take()

    def deadline(self) -> float | None:
        """See Machine.deadline."""
        parts = (self._file, self._roles, self._certificates, self._description)
        candidates = [part.deadline() for part in parts]
        candidates.append(self._wait.until if self._wait is not None else None)
        candidates.append(self._membership.waiting[1] if self._membership.waiting is not None else None)
        return min((due for due in candidates if due is not None), default=None)

    # --- what others ask -------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """The present state, for users and for the driver."""
        record, membership = self._record, self._membership
        known = tuple(record.remotes.managers()) if record.agent_runs else ()
        return Status(
            phase=membership.phase,
            state=record.state,
            node_id=record.node_id,
            role=record.role,
            ready=record.ready,
            manager_running=self._roles.running,
            managers=known or (record.state.managers if record.state is not None else ()),
            error=membership.error,
            trouble=membership.trouble or self._roles.trouble or self._certificates.trouble,
            certificate_trouble=self._certificates.trouble,
        )

    @property
    def record(self) -> Record:
        """For the driver to read: what an agent or a connection of this node is made of."""
        return self._record

    def why_not_connect(self, connect: agent_events.Connect) -> SwarmError | None:
        """Why the agent's session must not be opened now; None: it may. An empty address is this node's own manager."""
        if self._record.engine_error:
            return Unavailable(self._record.engine_error)
        if not connect.manager_addr and not self._roles.running:
            return Unavailable("this node's manager is not running")
        return None

    # --- events ----------------------------------------------------------------------------------------------------

    def _engine(self, event: agent_events.EngineGone | agent_events.EngineBack) -> None:
        before = self._record.engine_error
        self._record.engine_error = event.error if isinstance(event, agent_events.EngineGone) else ""
        if bool(before) != bool(self._record.engine_error) and self._record.agent_runs:
            self._out.tell_agent(event)
        if not self._record.engine_error:
            self._membership.clean_up()

    def _session(self, error: str) -> None:
        if error:
            log.warning("session.failed", error=error)
            self._certificates.session_failed(error)
        elif self._record.agent_runs:
            log.info("session.established")
            self._certificates.accepted()
            self._record.ready = True

    def _update(self, update: agent_events.SessionUpdate) -> None:
        if not self._record.agent_runs or self._record.state is None:
            return
        if update.managers and self._file.following:
            self._record.state = self._record.state.with_managers(update.managers)
        self._certificates.heard(update)

    # --- requests --------------------------------------------------------------------------------------------------

    def _request(self, request: Request) -> None:
        membership = self._membership
        self._open[request.ticket] = None
        match request:
            case Stop() if membership.phase is Phase.STOPPED and self._procedure is not None:
                self._at_end.append(request.ticket)
            case Stop():
                self._stop(request)
            case _ if membership.phase is Phase.STOPPED:
                self._answer(request.ticket, Refused(Refusal.STOPPING))
            case Init() | Join() if membership.phase is not Phase.INACTIVE:
                self._answer(request.ticket, Refused(Refusal.IN_SWARM))  # at once: what is under way may take long
            case Leave() if membership.is_ended_by(request):
                self._at_end.append(request.ticket)
                self._throw(Refused(Refusal.LEFT))
            case Leave() if membership.joining:
                self._answer(request.ticket, Refused(Refusal.MANAGER))
            case Unlock() if membership.joining:
                self._answer(request.ticket, Refused(Refusal.NOT_LOCKED))
            case ForceNewCluster() if membership.joining:
                self._answer(request.ticket, Refused(Refusal.NO_MANAGER))
            case _:
                self._requests.append(request)

    def _stop(self, request: Stop) -> None:
        """Whatever is under way ends where it is; the next start goes on from the disk."""
        if self._procedure is not None:
            self._procedure.close()
            self._procedure = self._wait = None
        self._membership.answer_join(Refused(Refusal.STOPPING))
        for ticket in [ticket for ticket in self._open if ticket != request.ticket]:
            self._answer(ticket, Refused(Refusal.STOPPING))
        self._requests.clear()
        self._at_end.clear()
        self._begin(self._membership.stop(request))

    def _answer(self, ticket: int, error: Exception | None) -> None:
        self._open.pop(ticket, None)
        self._out.put(Answer(ticket, error))

    def _stop_parts(self) -> None:
        """Roles are about to be stopped: nothing that was asked for counts any more."""
        self._out.forget()
        self._membership.stopped()
        self._roles.stop()
        self._certificates.stop()
        self._description.stop()
        self._file.stop()
        self._record.stop()

    # --- the procedure that runs -----------------------------------------------------------------------------------

    def _begin(self, procedure: Procedure) -> None:
        assert self._procedure is None, "one procedure at a time"
        self._procedure = procedure
        self._advance(lambda: next(procedure))

    def _throw(self, error: Exception) -> None:
        procedure = self._procedure
        assert procedure is not None
        self._wait, self._expected = None, 0
        self._advance(lambda: procedure.throw(error))

    def _advance(self, resume: Callable[[], object]) -> None:
        """Run the procedure to its next step, and begin that."""
        procedure = self._procedure
        assert procedure is not None
        try:
            step = resume()
        except StopIteration:
            self._procedure = self._wait = None
            tickets, self._at_end = self._at_end, []
            for ticket in tickets:
                self._answer(ticket, None)
            return
        if isinstance(step, Wait):
            self._wait = step
            return
        assert callable(step)
        self._wait = None
        self._expected = self._out.perform(step, self._stepped)

    def _stepped(self, outcome: Done | Failed) -> None:
        procedure = self._procedure
        if procedure is None or outcome.tag != self._expected:
            return
        self._expected = 0
        if isinstance(outcome, Done):
            self._advance(lambda: procedure.send(outcome))
        else:
            self._advance(lambda: procedure.throw(outcome.error))

    # --- what is due -----------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        membership = self._membership
        if membership.waiting is not None and self._record.now >= membership.waiting[1]:
            membership.answer_join(Refused(Refusal.STILL_JOINING))
        self._decide_parts()
        while self._go_on():
            self._decide_parts()

    def _decide_parts(self) -> None:
        self._roles.decide()
        if self._roles.expelled_now:
            self._roles.expelled_now = False
            self._certificates.renew_now()
        self._certificates.decide()
        if self._certificates.changed:
            self._certificates.changed = False
            self._roles.certificate_changed()
            self._description.changed()
        self._roles.decide()
        self._description.decide()
        self._file.decide()

    def _go_on(self) -> bool:
        """Whether the procedure made a step, or the next one began."""
        procedure, wait = self._procedure, self._wait
        if procedure is not None and wait is not None:
            if wait.condition():
                self._wait = None
                self._advance(lambda: procedure.send(Done(0)))
                return True
            if wait.until is not None and self._record.now >= wait.until:
                self._wait = None
                self._advance(lambda: procedure.throw(TimeoutError("it took too long")))
                return True
        if procedure is None and self._requests:
            self._begin(self._procedure_of(self._requests.popleft()))
            return True
        return False

    def _procedure_of(self, request: Request) -> Procedure:
        match request:
            case Init():
                return self._membership.init(request)
            case Join():
                return self._membership.join(request)
            case Leave():
                return self._membership.leave(request)
            case Unlock():
                return self._membership.unlock(request)
            case ForceNewCluster():
                return self._membership.force_new_cluster(request)
            case Stop():
                return self._membership.stop(request)
