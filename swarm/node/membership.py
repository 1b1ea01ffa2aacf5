"""How this node comes into a swarm and out of it: boot, init, join, leave, unlock, force a new cluster, stop.

    inactive --init, join--> pending --first session--> active --leave--> inactive
    boot: inactive | pending | locked --unlock--> pending | error

Each way is a *procedure*: a generator that yields one step at a time and is resumed with its outcome, so that a step is
the only place where a process can die in it, and each reads from top to bottom. The Node runs one at a time. state.json
is the commit point: what a procedure left that never wrote it is erased at the next start.

(moby: daemon/cluster/swarm.go, noderunner.go; swarmkit: node/node.go)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog

from certs.keys import identity_of
from swarm import defaults
from swarm.agent import events as agent_events
from swarm.errors import Code, JoinUndecided, NodeLocked, SwarmError
from swarm.node.certificates import Certificates
from swarm.node.events import (
    Boot,
    Done,
    DropState,
    Failed,
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
    RemoveContainers,
    RequestIdentity,
    Stop,
    Unlock,
    WriteFirstObjects,
)
from swarm.node.outbox import Outbox
from swarm.node.record import Record, StateFile
from swarm.node.roles import ManagerRole
from swarm.node.state import NodeState
from swarm.node.steps import Phase, Procedure, Steps, Wait, identity_of_outcome
from swarm.raft.events import LogLost
from swarm.rpc import MANAGER_ROLE

log = structlog.get_logger()

T = TypeVar("T")


class Membership:
    """The procedures. answer: ends a request, see Node.

    left_behind: IDs of nodes whose containers could not be removed when they left.
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
        self.left_behind: dict[str, None] = {}
        self.waiting: tuple[int, float] | None = None
        """The join request that is still to be answered, and until when."""
        self.joining = False
        self._record = record
        self._file = file
        self._roles = roles
        self._certificates = certificates
        self._out = out
        self._answer = answer
        self._steps = Steps(record, file, roles, certificates, out, stop_parts)
        self._cleaning: str | None = None

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
        self._cleaning = None

    # --- start and stop --------------------------------------------------------------------------------------------

    def boot(self, event: Boot) -> Procedure:
        """Go on with the swarm this node was in; an error shows in its status and does not end the daemon."""
        yield from self._boot(event)
        self._answer(event.ticket, None)

    def _boot(self, event: Boot) -> Procedure:
        if event.error is not None:
            self._steps.lost_id = event.node_id
            self._steps.fail(event.error)
            return
        if event.state is None:
            yield from self._steps.erase()  # an init or join was killed here before it was acknowledged
            return
        self._file.found(event.state)
        self._record.state, self._steps.phase = event.state, Phase.PENDING
        try:
            yield from self._steps.resume()
        except NodeLocked:
            log.info("swarm.locked")
            self._steps.phase = Phase.LOCKED
            yield from self._steps.stop_roles()
        except Exception as error:
            self._steps.fail(error)
            yield from self._steps.stop_roles()

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
        self._record.state, self._steps.phase = request.state, Phase.PENDING
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
        make = partial(MakeIdentity, state=state, spec=spec, unlock_key=details.unlock_key)
        self._certificates.adopt(identity_of_outcome((yield make)))
        yield from self._steps.start_manager(create=True)
        yield partial(WriteFirstObjects, state=state, spec=spec, details=details)
        yield from self._steps.save()
        yield from self._steps.start_agent()

    # --- join ------------------------------------------------------------------------------------------------------

    def join(self, request: Join) -> Procedure:
        """Join; while somebody waits for it a failure ends it, later it goes on until it is refused."""
        if self.phase is not Phase.INACTIVE:
            self._answer(request.ticket, Refused(Refusal.IN_SWARM))
            return
        self._record.state, self._steps.phase, self.joining = request.state, Phase.PENDING, True
        self.waiting = request.ticket, self._record.now + defaults.JOIN_WAIT_S
        failures = 0
        try:
            while True:
                try:
                    yield from self._join_once(request)
                    yield Wait(lambda: self._record.ready)
                    break
                except SwarmError as error:
                    if self.waiting is not None or error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                        raise
                    log.warning("swarm.join_goes_on", remotes=_addresses(request.state), error=str(error))
                yield from self._steps.stop_roles()
                self._record.state = request.state
                failures += 1
                pause_s = min(defaults.JOIN_RETRY_BASE_S * 2**failures, defaults.JOIN_RETRY_MAX_S)
                yield from self._steps.pause(pause_s)
        except Exception as error:
            self.joining = False  # it is over: a request to leave waits its turn from here on
            log.warning("swarm.not_joined", remotes=_addresses(request.state), error=str(error))
            yield from self._steps.give_up()
            self.answer_join(error)
        else:
            self.answer_join(None)
        finally:
            self.joining = False

    def _join_once(self, request: Join) -> Procedure:
        managers = _addresses(request.state)
        identity = identity_of_outcome(
            (yield partial(RequestIdentity, managers=managers, token=request.token, availability=request.availability))
        )
        self._certificates.adopt(identity)
        self._record.state = _named(request.state, identity)
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
        try:
            yield partial(RemoveContainers, node_id=node_id)
            self.left_behind.pop(node_id, None)
        except Exception as error:
            log.warning("swarm.containers_left_behind", node=node_id, error=str(error))
            self.left_behind[node_id] = None
        yield from self._steps.give_up()
        self._answer(request.ticket, None)

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
        """The engine answers: try again to remove what nodes left behind that were here before, one at a time."""
        if self._cleaning is not None or self.phase is Phase.STOPPED:
            return
        # an empty ID means the containers of all nodes, which may be this node's by now
        due = [node_id for node_id in self.left_behind if node_id or self.phase is Phase.INACTIVE]
        if due:
            self._cleaning = due[0]
            self._out.perform(partial(RemoveContainers, node_id=due[0]), self._cleaned)

    def _cleaned(self, outcome: Done | Failed) -> None:
        node_id, self._cleaning = self._cleaning, None
        assert node_id is not None
        self.left_behind.pop(node_id, None)
        if isinstance(outcome, Failed):
            log.warning("swarm.containers_left_behind", node=node_id, error=str(outcome.error))
            self.left_behind[node_id] = None  # after the others
        elif not self._record.engine_error:
            self.clean_up()

    # --- unlock and force ------------------------------------------------------------------------------------------

    def unlock(self, request: Unlock) -> Procedure:
        """Go on from the disk with this key; with a wrong one the node stays locked."""
        if self.phase is not Phase.LOCKED:
            self._answer(request.ticket, Refused(Refusal.NOT_LOCKED))
            return
        try:
            yield from self._steps.resume(partial(OpenIdentity, unlock_key=request.key))
        except Exception as error:
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


def _addresses(state: NodeState) -> tuple[str, ...]:
    return tuple(addr for _, addr in state.managers)


def _named(state: NodeState, identity: Identity) -> NodeState:
    """With the IDs that the certificate gives this node and its cluster."""
    found = identity_of(identity.certificate_pem)
    return replace(state, node_id=found.node_id, cluster_id=found.org)
