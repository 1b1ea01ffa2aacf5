"""How this node comes into a swarm and out of it: boot, init, join, leave, unlock, force a new cluster, stop.

    inactive --init, join--> pending --first session--> active --leave--> inactive
    boot: inactive | pending | locked --unlock--> pending | error

Each way is a *procedure*: a generator that yields one step at a time and is resumed with its outcome, so that a step is
the only place where a process can die in it, and each reads from top to bottom. The Node runs one at a time.

Each begins by recording what it is about to do (swarm/node/state.py), so that the next start knows what a kill left:
it forgets an init, goes on with a join, and finishes a leave. Nothing else is ever deleted. To be stopped is not to
fail: a stop keeps the disk, and a join that nobody waits for goes on until it is refused.

(moby: daemon/cluster/swarm.go, noderunner.go; swarmkit: node/node.go)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog

from certs.errors import CertsError
from certs.keys import identity_of
from swarm import defaults
from swarm.agent import events as agent_events
from swarm.errors import Code, JoinUndecided, NodeLocked, SwarmError
from swarm.node.certificates import Certificates
from swarm.node.events import (
    Boot,
    Done,
    DropState,
    ForceNewCluster,
    Identity,
    Init,
    Join,
    Leave,
    MakeIdentity,
    OnLoss,
    OpenIdentity,
    Refusal,
    Refused,
    RequestIdentity,
    Stop,
    Unlock,
    WriteFirstObjects,
)
from swarm.node.left_behind import LeftBehind
from swarm.node.outbox import Make, Outbox
from swarm.node.record import Record, StateFile
from swarm.node.roles import ManagerRole
from swarm.node.state import NodeState, Pending, StateLost
from swarm.node.steps import Phase, Procedure, Steps, Wait, identity_of_outcome
from swarm.raft.events import LogLost
from swarm.rpc import MANAGER_ROLE

log = structlog.get_logger()

T = TypeVar("T")

_REFUSALS = (
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.PERMISSION_DENIED,
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
    Code.UNAUTHENTICATED,
)
"""Answers that no repetition changes: a join that nobody waits for ends with one."""
LEAVING = "this node was told to leave the swarm, and deletes what it has of it"


class Membership:
    """The procedures. answer: ends a request, see Node.

    trouble: why a join in the background goes on, or what else takes its time; empty otherwise.
    """

    def __init__(
        self,
        record: Record,
        file: StateFile,
        roles: ManagerRole,
        certificates: Certificates,
        out: Outbox,
        answer: Callable[[int, Exception | None], None],
        stop_parts: Callable[[], None],
    ) -> None:
        """stop_parts: forgets everything that only counts while roles run."""
        self.left = False
        self.waiting: tuple[int, float] | None = None
        """The join request that is still to be answered, and until when."""
        self.joining = False
        self.trouble = ""
        self._record = record
        self._file = file
        self._roles = roles
        self._certificates = certificates
        self._out = out
        self._answer = answer
        self._steps = Steps(record, file, roles, certificates, out, stop_parts)
        self._left_behind = LeftBehind(record, out, lambda: self.phase is Phase.INACTIVE)

    @property
    def phase(self) -> Phase:
        """Where this node stands."""
        return self._steps.phase

    @property
    def error(self) -> Exception | None:
        """Why it is in Phase.ERROR."""
        return self._steps.error

    def stopped(self) -> None:
        """Roles are being stopped: what was asked for does not count any more."""
        self._left_behind.stop()

    # --- start and stop --------------------------------------------------------------------------------------------

    def boot(self, event: Boot) -> Procedure:
        """Go on with what this node was or was about to be; an error shows in its status and ends nothing."""
        state = event.state
        self._steps.lost_id = event.node_id
        if event.error is not None:
            self._steps.fail(event.error)
        elif event.leaving:
            self._answer(event.ticket, None)  # nobody should wait for that
            yield from self._finish_leave(state)
            return
        elif state is None and event.others:
            self._steps.fail(StateLost(event.others))
        elif state is not None and state.pending is not None:
            self._file.found(state)
            self._answer(event.ticket, None)
            yield from self._go_on(state, state.pending)
            return
        elif state is not None:
            yield from self._resume(state)
        self._answer(event.ticket, None)

    def _resume(self, state: NodeState) -> Procedure:
        self._file.found(state)
        self._record.state, self._steps.phase = state, Phase.PENDING
        try:
            yield from self._steps.resume()
        except NodeLocked:
            log.info("swarm.locked")
            self._steps.phase = Phase.LOCKED
            yield from self._steps.stop_roles()
        except Exception as error:
            self._steps.fail(error)
            yield from self._steps.stop_roles()

    def _go_on(self, state: NodeState, pending: Pending) -> Procedure:
        """An init or join was cut off here."""
        if pending.token:
            log.info("swarm.join_goes_on", remotes=_addresses(state))
            yield from self._join(state)
        else:
            log.info("swarm.init_forgotten")  # nobody was told that it succeeded
            self._record.state, self._steps.phase = state, Phase.PENDING
            yield from self._steps.give_up()

    def _finish_leave(self, state: NodeState | None) -> Procedure:
        log.info("swarm.leave_goes_on")
        self._steps.phase, self.trouble = Phase.PENDING, LEAVING
        yield from self._left_behind.remove(state.node_id if state is not None else self._steps.lost_id)
        yield from self._steps.give_up()
        self.trouble = ""

    def stop(self, request: Stop) -> Procedure:
        """Stop everything; the disk keeps it all."""
        self._steps.phase = Phase.STOPPED  # whatever is asked from here on is refused
        yield from self._steps.stop_roles()
        self._answer(request.ticket, None)

    # --- init ------------------------------------------------------------------------------------------------------

    def init(self, request: Init) -> Procedure:
        """Make a cluster; nothing is left of it if that fails."""
        if self.phase is not Phase.INACTIVE:
            self._answer(request.ticket, Refused(Refusal.IN_SWARM))
            return
        try:
            yield from self._create(request)
            yield Wait(lambda: self._record.ready, self._record.now + defaults.JOIN_WAIT_S)
        except Exception as error:
            yield from self._steps.give_up()
            self._answer(request.ticket, error)
        else:
            self._answer(request.ticket, None)

    def _create(self, request: Init) -> Procedure:
        state, spec, details = request.state, request.spec, request.details
        yield from self._begin(state.begun(Pending()))
        make = partial(MakeIdentity, state=state, spec=spec, unlock_key=details.unlock_key)
        self._certificates.adopt(identity_of_outcome((yield make)))
        yield from self._steps.start_manager(create=True)
        yield partial(WriteFirstObjects, state=state, spec=spec, details=details)
        assert self._record.state is not None
        self._record.state = self._record.state.begun(None)
        yield from self._steps.save()
        yield from self._steps.start_agent()

    def _begin(self, state: NodeState) -> Procedure:
        """Record that an init or join is under way, before anything of it is on disk."""
        self._record.state, self._steps.phase = state, Phase.PENDING
        yield from self._steps.save()
        self._file.stop()

    # --- join ------------------------------------------------------------------------------------------------------

    def join(self, request: Join) -> Procedure:
        """Join; while somebody waits for it a failure ends it, later it goes on until it is refused."""
        if self.phase is not Phase.INACTIVE:
            self._answer(request.ticket, Refused(Refusal.IN_SWARM))
            return
        self.waiting = request.ticket, self._record.now + defaults.JOIN_WAIT_S
        yield from self._join(request.state.begun(Pending(request.token, request.availability)))

    def _join(self, state: NodeState) -> Procedure:
        self.joining = True
        failures = 0
        try:
            yield from self._begin(state)
            while not (yield from self._attempt(state)):
                failures += 1
                pause_s = min(defaults.JOIN_RETRY_BASE_S * 2**failures, defaults.JOIN_RETRY_MAX_S)
                yield from self._steps.pause(pause_s)
        except Exception as error:
            self.joining = False  # it is over: a request to leave waits its turn from here on
            log.warning("swarm.not_joined", remotes=_addresses(state), error=str(error))
            yield from self._steps.give_up()
            self.answer_join(error)
        else:
            self.answer_join(None)
        finally:
            self.joining, self.trouble = False, ""

    def _attempt(self, state: NodeState) -> Generator[Make | Wait, Done, bool]:
        """Whether this node is ready. Raises what ends the join."""
        try:
            if self._record.state == state:
                yield from self._join_once(state)
            else:  # it is a node already, whatever failed after that
                yield from self._steps.resume(partial(OpenIdentity, reuse_key=True))
            yield Wait(lambda: self._record.ready)
            return True
        except Exception as error:
            if _is_refusal(error) or (self.waiting is not None and not _is_counted_on(self._record)):
                raise
            log.warning("swarm.join_goes_on", remotes=_addresses(state), error=str(error))
            self.trouble = str(error)
        yield from self._steps.stop_roles()
        return False

    def _join_once(self, state: NodeState) -> Procedure:
        assert state.pending is not None
        managers, pending = _addresses(state), state.pending
        identity = identity_of_outcome(
            (yield partial(RequestIdentity, managers=managers, token=pending.token, availability=pending.availability))
        )
        self._certificates.adopt(identity)
        self._record.state = _named(state, identity)
        yield from self._steps.save()
        if self._record.role == MANAGER_ROLE:
            try:
                yield from self._steps.start_manager()
            except JoinUndecided as error:
                # the group may count on this member already: to give up could cost it the quorum, so roles go on asking
                log.warning("manager.join_undecided", error=str(error))
        yield from self._steps.start_agent()

    def answer_join(self, error: Exception | None) -> None:
        """Tell who waits for the join, if somebody still does."""
        if self.waiting is not None:
            ticket, self.waiting = self.waiting[0], None
            self._answer(ticket, error)

    # --- leave -----------------------------------------------------------------------------------------------------

    def leave(self, request: Leave) -> Procedure:
        """Stop all tasks, remove what was made for them, and forget everything."""
        if (refusal := self._why_not_leave(request.force)) is not None:
            self._answer(request.ticket, Refused(refusal))
            return
        runs = self.phase is Phase.PENDING
        node_id = self._record.node_id or self._steps.lost_id
        self._roles.pause()
        self._file.stop()
        try:
            yield DropState
        except Exception as error:
            if runs:
                self._file.follow()
                self._roles.supervise()
            self._answer(request.ticket, error)
            return
        if runs and self._record.agent_runs and not self._record.engine_error:
            yield from self._end_tasks()
        yield from self._left_behind.remove(node_id)
        yield from self._steps.stop_roles()
        yield from self._steps.erase()
        self._answer(request.ticket, self.error)

    def is_ended_by(self, request: Leave) -> bool:
        """Whether this request ends the join under way at once; not one of a manager that the group may count on."""
        state = self._record.state
        pending = state is None or state.pending is not None or self._record.role != MANAGER_ROLE
        return self.joining and (request.force or pending)

    def _why_not_leave(self, force: bool) -> Refusal | None:
        if self.phase is Phase.LOCKED and not force:
            return Refusal.LOCKED
        if self.phase is Phase.INACTIVE:
            return Refusal.NOT_IN_SWARM
        if self.phase is Phase.PENDING and self._record.role == MANAGER_ROLE and not force:
            return Refusal.MANAGER
        return None

    def _end_tasks(self) -> Procedure:
        self.left = False
        self._out.tell_agent(agent_events.Leave())
        try:
            yield Wait(lambda: self.left, self._record.now + defaults.LEAVE_WAIT_S)
        except TimeoutError:
            log.warning("swarm.tasks_not_ended", wait_s=defaults.LEAVE_WAIT_S)

    def clean_up(self) -> None:
        """The engine answers."""
        if self.phase is not Phase.STOPPED:
            self._left_behind.clean_up()

    # --- unlock and force ------------------------------------------------------------------------------------------

    def unlock(self, request: Unlock) -> Procedure:
        """Go on from the disk with this key; with a wrong one the node stays locked, without its log it is in error."""
        if self.phase is not Phase.LOCKED:
            self._answer(request.ticket, Refused(Refusal.NOT_LOCKED))
            return
        try:
            yield from self._steps.resume(partial(OpenIdentity, unlock_key=request.key))
        except Exception as error:
            if isinstance(error, LogLost):  # the key is right, and who is not locked any more may accept the loss
                self._steps.fail(error)
            yield from self._steps.stop_roles()
            self._answer(request.ticket, error)
            return
        self._steps.phase = Phase.PENDING
        try:
            # the first of several managers has no quorum before the next is unlocked: it is unlocked all the same
            yield Wait(lambda: self._record.ready, self._record.now + defaults.NO_LEADER_WAIT_S)
        except TimeoutError:
            log.info("swarm.unlocked_without_leader")
        self._answer(request.ticket, None)

    def force_new_cluster(self, request: ForceNewCluster) -> Procedure:
        """Become the only manager of this cluster; if that fails the node is in error and may try again."""
        if (refusal := self._why_not_force()) is not None:
            self._answer(request.ticket, Refused(refusal))
            return
        # a loss is accepted only by who was told of it
        told = isinstance(self.error, LogLost) or self._roles.log_lost is not None
        on_loss = OnLoss.ACCEPT if told else OnLoss.REFUSE
        yield from self._steps.stop_roles()
        assert self._record.state is not None
        self._record.state = request.addresses.of(self._record.state).with_self()
        self._steps.phase, self._steps.error = Phase.PENDING, None
        try:
            yield from self._steps.resume(partial(OpenIdentity, reuse_key=True), True, on_loss)
            yield Wait(lambda: self._record.ready, self._record.now + defaults.JOIN_WAIT_S)
        except Exception as error:
            self._steps.fail(error)
            yield from self._steps.stop_roles()
            self._answer(request.ticket, error)
        else:
            self._answer(request.ticket, None)

    def _why_not_force(self) -> Refusal | None:
        if self.phase is Phase.LOCKED:
            return Refusal.LOCKED
        if self.phase is Phase.INACTIVE:
            return Refusal.NOT_IN_SWARM
        if self._record.state is None or not self._record.state.raft_id:
            return Refusal.NO_MANAGER
        return None


def _is_counted_on(record: Record) -> bool:
    """Whether this node is a member of the group, which could lose its quorum if that were given up."""
    return record.state is not None and bool(record.state.raft_id) and record.role == MANAGER_ROLE


def _addresses(state: NodeState) -> tuple[str, ...]:
    return tuple(addr for _, addr in state.managers)


def _is_refusal(error: Exception) -> bool:
    """Whether repeating the join cannot help."""
    return isinstance(error, CertsError | Refused) or (isinstance(error, SwarmError) and error.code in _REFUSALS)


def _named(state: NodeState, identity: Identity) -> NodeState:
    """With the IDs that the certificate gives this node and its cluster; it is a node from here on."""
    found = identity_of(identity.certificate_pem)
    return replace(state, node_id=found.node_id, cluster_id=found.org, pending=None)
