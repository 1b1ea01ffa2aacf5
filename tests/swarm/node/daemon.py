"""A daemon for tests of the Node machine: it performs the machine's effects on a model of disk, manager and agent.

Drives swarm.node.node.Node. It performs effects at once or later, fails those it is told to, and can be killed after
any of them. Whatever no effect may do is an assertion here, so that every test looks for it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random

from certs.errors import InvalidUnlockKey
from certs.files import Unsettled
from certs.keys import identity_of
from swarm import api
from swarm.agent import events as agent_events
from swarm.agent.agent import AgentEvent
from swarm.errors import NodeLocked, SwarmError
from swarm.manager.cluster import NewCluster
from swarm.node import events
from swarm.node.node import Node, Status
from swarm.node.state import Addresses, NodeState
from swarm.raft.events import LogLost
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE
from tests.conftest import CLUSTER_ID, Authority

NODE = "node1"
ADDRESSES = Addresses("0.0.0.0", 2377, "10.0.0.1", 2377, "10.0.0.1")
OTHERS = (("node2", "10.0.0.2:2377"),)
TURNS_MAX = 1000
LIFE_S = 90 * 86400.0


_CANCELLED_AT_STOP = (
    events.RequestIdentity,
    events.RenewCertificate,
    events.StartManager,
    events.AwaitLeadership,
    events.WriteFirstObjects,
    events.Describe,
    events.RemoveContainers,
)

_WRITES = (
    events.SaveState,
    events.SaveRoot,
    events.ForgetLog,
    events.Erase,
    events.MakeIdentity,
    events.RequestIdentity,
    events.RenewCertificate,
)
"""What may be on disk although it failed (certs.files.Unsettled)."""


@dataclass
class Disk:
    """What outlives the daemon. log: the raft ID of the member whose log is there, 0: none. damaged: part is lost.

    leaving: see DropState.
    """

    state: NodeState | None = None
    root_pem: bytes = b""
    certificate_pem: bytes = b""
    unlock_key: bytes = b""
    log: int = 0
    damaged: bool = False
    leaving: bool = False

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the files beside state.json."""
        there = {"certificates/swarm-node.crt": self.certificate_pem, "raft.db": self.log}
        return tuple(name for name, content in there.items() if content)


class Issuer:
    """Issues certificates for NODE, each of which is another one, and makes each only once for all tests."""

    def __init__(self, authority: Authority, other: Authority) -> None:
        """other: a root that the cluster comes to trust, too."""
        self.authority = authority
        self.bundle_pem = authority.pem + other.pem
        self.now = authority.now.timestamp()
        self._issued: dict[tuple[str, int, float], bytes] = {}

    def certificate(self, role: str, number: int = 0, life_s: float = LIFE_S) -> bytes:
        """The certificate with this number: valid since before ``now``."""
        key = role, number, life_s
        if key not in self._issued:
            until = datetime.fromtimestamp(self.now, UTC) + timedelta(seconds=life_s)
            self._issued[key] = self.authority.issue(NODE, role, not_after=until).certificate_pem
        return self._issued[key]


class Daemon:
    """See the module.

    hold: kinds of effects that wait until perform_held(). hold_after: so many effects are performed at once, all later
    ones wait, but for StopRoles. ends_held: whether what waits comes to its end before roles are stopped, unless it can
    be cancelled; else nothing of it is done. fail: of the next effects of a kind; None: it succeeds. kill_after: the
    effect after which the daemon dies, -1: never. role: of certificates to come. sessions: whether managers accept this
    node. agent_leaves: whether tasks end when they should. answers: of ended requests. performed: effects that began,
    in order. told: what the agent was told.
    """

    def __init__(self, issuer: Issuer, disk: Disk | None = None) -> None:
        self.issuer = issuer
        self.disk = disk or Disk()
        self.now = issuer.now
        self.hold: tuple[type[events.Effect], ...] = ()
        self.fail: dict[type[events.Effect], list[Exception | None]] = {}
        self.answers: dict[int, Exception | None] = {}
        self.performed: list[events.TaggedEffect] = []
        self.told: list[AgentEvent] = []
        self.role = WORKER_ROLE
        self.agent_leaves = True
        self.ends_held = True
        self.sessions = True
        self.kill_after = self.hold_after = -1
        self.alive = True
        self.manager = 0
        self.removed = False
        self.agent = False
        self.held: list[events.TaggedEffect] = []
        self.node = Node(Random(1))
        self._inbox: deque[events.Event] = deque()
        self._tickets = itertools.count(1)
        self._open: dict[int, events.Request | events.Boot] = {}
        self.acknowledged = False
        """Whether a user was told that this node is a member of a swarm, and of nothing else since."""
        self.left = False
        """Whether it has left one since."""
        self._outstanding: dict[int, None] = {}
        self._renewals = itertools.count(1)
        self._raft_ids = itertools.count(100)
        self._session = False
        self.removed_with = b""

    # --- what tests do ---------------------------------------------------------------------------------------------

    def ask(self, make: Callable[[int], events.Request | events.Boot]) -> int:
        """Put a request; returns its ticket."""
        ticket = next(self._tickets)
        request = make(ticket)
        self._open[ticket] = request
        self.put(request)
        return ticket

    def boot(self) -> int:
        """The daemon starts on its disk, after it was killed or for the first time."""
        if not self.alive:
            self.alive, self.node, self.kill_after = True, Node(Random(1)), -1
        disk = self.disk
        return self.ask(
            lambda ticket: events.Boot(ticket, disk.state, leaving=disk.leaving, others=disk.others, node_id="")
        )

    def init(self) -> int:
        """docker swarm init."""
        state = NodeState.new(ADDRESSES, NODE, CLUSTER_ID, 4789).with_self()
        return self.ask(lambda ticket: events.Init(ticket, state, api.ClusterSpec(), NewCluster()))

    def join(self) -> int:
        """docker swarm join; ``role`` is what the token is for."""
        state = NodeState.new(ADDRESSES, managers=(("", OTHERS[0][1]),))
        return self.ask(lambda ticket: events.Join(ticket, state, "SWMTKN", api.NodeSpec.ACTIVE))

    def leave(self, force: bool = True) -> int:
        """docker swarm leave."""
        return self.ask(lambda ticket: events.Leave(ticket, force))

    def unlock(self, key: bytes) -> int:
        """docker swarm unlock."""
        return self.ask(lambda ticket: events.Unlock(ticket, key))

    def force_new_cluster(self) -> int:
        """docker swarm init --force-new-cluster."""
        return self.ask(lambda ticket: events.ForceNewCluster(ticket, ADDRESSES))

    def stop(self) -> int:
        """SIGTERM."""
        return self.ask(events.Stop)

    def put(self, event: events.Event | None) -> None:
        """The machine hears this, and everything that follows from it happens."""
        self._handle(event)
        for _ in range(TURNS_MAX):
            if not self._inbox or not self.alive:
                return
            self._handle(self._inbox.popleft())
        raise AssertionError("there is no end to it")

    def advance(self, seconds: float) -> None:
        """Time passes; the machine is woken whenever it is due."""
        end = self.now + seconds
        while self.alive and (due := self.node.deadline()) is not None and due <= end:
            self.now = due
            self.put(None)
        self.now = end

    def perform_held(self, *kinds: type[events.Effect]) -> None:
        """What was held comes to its end: all of it, or these kinds; later ones are performed at once."""
        self.hold = tuple(kind for kind in self.hold if kinds and kind not in kinds)
        self.hold_after = -1
        due = [effect for effect in self.held if not kinds or isinstance(effect, kinds)]
        for effect in due:
            if effect in self.held:
                self.held.remove(effect)
                self._finish(effect)
        self.put(None)

    def session(self, error: str = "") -> None:
        """The agent's session was established, or failed."""
        self.put(agent_events.SessionState("" if error else "session", error))

    def hear(self, role: str, wanted: str = "", root_pem: bytes = b"", rotate: bool = False) -> None:
        """The agent's session brings this; role: that managers keep for this node, wanted: the desired one."""
        node = api.Node(id=NODE, role=_role(role))
        node.spec.desired_role = _role(wanted or role)
        if rotate:
            node.certificate.status.state = api.IssuanceStatus.ROTATE
        self.put(agent_events.SessionUpdate("session", node, OTHERS, root_pem, ()))

    def lose_manager(self, removed: bool = False, error: Exception | None = None) -> None:
        """The manager that runs is removed from its group, or failed."""
        self.removed = self.removed or removed
        self.put(events.ManagerEnded(self.manager, removed, error))

    @property
    def status(self) -> Status:
        """Of the machine."""
        return self.node.status()

    @property
    def names(self) -> list[str]:
        """The effects that began, by name; descriptions, of which there are many, are left out."""
        kept = [effect for effect in self.performed if not isinstance(effect, events.Describe)]
        return [type(effect).__name__ for effect in kept]

    @property
    def waiting(self) -> list[int]:
        """Tickets of requests that were not answered yet."""
        return list(self._open)

    def count(self, kind: type[events.Effect]) -> int:
        """How many of this kind began."""
        return sum(isinstance(effect, kind) for effect in self.performed)

    # --- the machine -----------------------------------------------------------------------------------------------

    def _handle(self, event: events.Event | None) -> None:
        for effect in self.node.handle(event, self.now):
            if not self.alive:
                return
            if isinstance(effect, events.Answer):
                assert effect.ticket in self._open, "a request is answered once"
                request = self._open.pop(effect.ticket)
                self.answers[effect.ticket] = effect.error
                if effect.error is None:
                    _acknowledge(self, request)
            elif isinstance(effect, events.TellAgent):
                self._tell(effect.event)
            else:
                self._begin(effect)
        due = self.node.deadline()
        assert due is None or due > self.now or not self.alive, "after each event the deadline is in the future"

    @property
    def leaves(self) -> bool:
        """Whether this node was told to leave."""
        return self.disk.leaving or any(isinstance(request, events.Leave) for request in self._open.values())

    def _tell(self, event: AgentEvent) -> None:
        if not self.agent:
            return
        self.told.append(event)
        if isinstance(event, agent_events.Leave) and self.agent_leaves:
            self._inbox.append(agent_events.Left())
        if isinstance(event, agent_events.Described) and self.sessions and not self._session:
            self._session = True
            self._inbox.append(agent_events.SessionState("session"))

    def _begin(self, effect: events.TaggedEffect) -> None:
        assert effect.tag not in self._outstanding, "tags are unique"
        self._outstanding[effect.tag] = None
        self.performed.append(effect)
        check(self, effect)
        late = 0 <= self.hold_after < len(self.performed)
        if isinstance(effect, events.StopRoles):
            self._cut_off()
        if isinstance(effect, self.hold) or (late and not isinstance(effect, events.StopRoles)):
            self.held.append(effect)
        else:
            self._finish(effect)

    def _finish(self, effect: events.TaggedEffect) -> None:
        errors = self.fail.get(type(effect))
        del self._outstanding[effect.tag]
        try:
            error = errors.pop(0) if errors else None
            if isinstance(error, Unsettled) and isinstance(effect, _WRITES):
                self._perform(effect)
            elif error is not None:
                _break_off(self, effect)
            if error is not None:
                raise error
            outcome: events.Done | events.Failed = events.Done(effect.tag, self._perform(effect))
        except (SwarmError, OSError, InvalidUnlockKey) as error:
            outcome = events.Failed(effect.tag, error)
        self._inbox.append(outcome)
        if len(self.performed) == self.kill_after:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: only the disk stays."""
        self.alive = self.agent = self.removed = False
        self.manager, self.removed_with = 0, b""
        self.held.clear()
        self._inbox.clear()
        self._outstanding.clear()
        self._open.clear()

    # --- performing ------------------------------------------------------------------------------------------------

    def _cut_off(self) -> None:
        """Roles are about to stop: what is being performed ends first, and nobody hears of it."""
        held, self.held = self.held, []
        for effect in held:
            if isinstance(effect, _CANCELLED_AT_STOP) or not self.ends_held:
                del self._outstanding[effect.tag]
            else:
                self._finish(effect)

    def _perform(
        self, effect: events.TaggedEffect
    ) -> events.Identity | events.ManagerUp | events.ManagerDown | api.NodeDescription | None:
        disk = self.disk
        match effect:
            case events.SaveState(state=state):
                disk.state = state
            case events.DropState():
                disk.leaving = True
            case events.SaveRoot(root_pem=root_pem):
                disk.root_pem = root_pem
            case events.ForgetLog():
                disk.log = 0
            case events.Erase():
                self.left = self.left or disk.leaving
                self.disk = Disk()
            case events.MakeIdentity():
                return self._take(MANAGER_ROLE)
            case events.RequestIdentity():
                return self._take(self.role)
            case events.OpenIdentity():
                return _open_identity(disk, effect)
            case events.RenewCertificate(root_pem=root_pem):
                self._take(self.role, next(self._renewals), disk.root_pem)
                return events.Identity(disk.certificate_pem, root_pem)
            case events.StartManager():
                return self._start_manager(effect)
            case events.StopManager():
                return self._stop_manager()
            case events.StartAgent():
                self.agent, self._session = True, False
            case events.Describe():
                return api.NodeDescription(hostname=NODE)
            case events.StopRoles():
                self.agent, self.manager, self.removed_with = False, 0, b""
        return None

    def _take(self, role: str, number: int = 0, root_pem: bytes = b"") -> events.Identity:
        self.disk.certificate_pem = self.issuer.certificate(role, number)
        self.disk.root_pem = root_pem or self.issuer.authority.pem
        return events.Identity(self.disk.certificate_pem, self.disk.root_pem)

    def _start_manager(self, effect: events.StartManager) -> events.ManagerUp:
        _open_log(self.disk, effect)
        if not self.disk.log:
            self.disk.log = next(self._raft_ids)
        self.manager, self.removed = effect.tag, False
        return events.ManagerUp(self.disk.log)

    def _stop_manager(self) -> events.ManagerDown:
        self.manager = 0
        self.removed_with = self.disk.certificate_pem if self.removed else b""
        return events.ManagerDown(self.disk.log, OTHERS, self.removed)


def _acknowledge(daemon: Daemon, request: events.Request | events.Boot) -> None:
    match request:
        case events.Init() | events.Join():
            state = daemon.disk.state
            assert state is not None, "a member has it on disk"
            assert state.pending is None, "a member is one"
            assert not daemon.disk.leaving, "a member stays one"
            daemon.acknowledged, daemon.left = True, False
        case events.Leave():
            assert daemon.disk == Disk(), "who has left has nothing"
            daemon.acknowledged = False


def _break_off(daemon: Daemon, effect: events.TaggedEffect) -> None:
    """What is so after an effect that failed, too."""
    match effect:
        case events.StopManager():
            daemon.manager = 0
        case events.StopRoles():
            daemon.agent, daemon.manager = False, 0
        case events.Erase():
            daemon.disk.certificate_pem, daemon.disk.log = b"", 0


def _open_identity(disk: Disk, effect: events.OpenIdentity) -> events.Identity:
    if disk.unlock_key and not effect.reuse_key:
        if not effect.unlock_key:
            raise NodeLocked("the key of this node is encrypted")
        if effect.unlock_key != disk.unlock_key:
            raise InvalidUnlockKey()
    if not disk.certificate_pem:
        raise SwarmError("the node's key or certificate is missing")
    return events.Identity(disk.certificate_pem, disk.root_pem)


def _open_log(disk: Disk, effect: events.StartManager) -> None:
    """Raises LogLost."""
    match effect.on_loss:
        case events.OnLoss.REJOIN:
            disk.log, disk.damaged = 0, False
        case events.OnLoss.ACCEPT:
            disk.damaged = False
        case events.OnLoss.REFUSE:
            joined_again = disk.log not in (0, *effect.state.past_raft_ids)
            if disk.damaged or (effect.state.raft_id and not joined_again):
                raise LogLost("the log is gone")


def check(daemon: Daemon, effect: events.TaggedEffect) -> None:
    """What a machine must never want of its daemon."""
    match effect:
        case events.SaveState(state=state):
            assert not daemon.disk.leaving, "state.json is not written again after a leave"
            known = daemon.disk.state
            member = known is not None and known.pending is None
            assert not (member and state.pending is not None), "a member never becomes an attempt again"
        case events.MakeIdentity() | events.RequestIdentity():
            assert daemon.disk.state is not None, "before anything is there, state.json says what it will be"
            assert daemon.disk.state.pending is not None, "a member has its identity"
        case events.DropState():
            assert daemon.leaves or not daemon.acknowledged, "a member is given up by a leave only"
        case events.Erase():
            disk = daemon.disk
            unfinished = disk.state is not None and disk.state.pending is not None
            assert disk.leaving or unfinished or not disk.others, "only what is marked is deleted"
        case events.StartManager():
            assert not daemon.manager, "one manager at a time"
            rejoins = effect.on_loss is events.OnLoss.REJOIN
            assert not rejoins or effect.state.other_managers(), "somebody must let it join"
            assert effect.on_loss is not events.OnLoss.ACCEPT or effect.force_new_cluster
            assert not any(isinstance(held, events.StartManager) for held in daemon.held), "one start at a time"
            assert identity_of(daemon.disk.certificate_pem).role == MANAGER_ROLE, "a manager needs its certificate"
            assert daemon.disk.certificate_pem != daemon.removed_with, "who was removed needs another certificate"
        case events.StopManager():
            assert daemon.manager, "only a manager that runs is stopped"
        case events.ForgetLog():
            assert not daemon.manager, "a log is not taken from a manager that runs"
            assert daemon.disk.state is None or not daemon.disk.state.raft_id, "state.json gives the log up first"
        case events.StartAgent():
            assert not daemon.agent, "one agent at a time"


def _role(name: str) -> api.NodeRole:
    return api.MANAGER if name == MANAGER_ROLE else api.WORKER


def manager_disk(issuer: Issuer, log: int = 7, unlock_key: bytes = b"") -> Disk:
    """Of a manager that was running."""
    state = replace(NodeState.new(ADDRESSES, NODE, CLUSTER_ID, 4789).with_self(), raft_id=log)
    return Disk(state, issuer.authority.pem, issuer.certificate(MANAGER_ROLE), unlock_key, log)


def worker_disk(issuer: Issuer) -> Disk:
    """Of a worker that was running."""
    state = NodeState.new(ADDRESSES, NODE, CLUSTER_ID, 4789, OTHERS)
    return Disk(state, issuer.authority.pem, issuer.certificate(WORKER_ROLE))
