"""One run of the daemon on one node: the production Node machine, with agent, manager and disk of the simulation.

Drives swarm.node.node.Node and swarm.agent.agent.Agent, and production's own dialogues for certificates
(swarm/node/bootstrap.py, own_certificate.py). What is here performs effects; it decides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from certs.keys import identity_of
from certs.tls import ClientTls, Credentials
from swarm import api, defaults
from swarm.agent import events as agent_events
from swarm.agent.agent import Agent, AgentEffect, AgentEvent
from swarm.agent.connection import ManagerConnection
from swarm.errors import SwarmError, Unavailable
from swarm.io.node.agent_process import LocalLink
from swarm.manager import cluster
from swarm.node import bootstrap, events, own_certificate
from swarm.node.membership import Phase
from swarm.node.node import Node as NodeMachine
from swarm.node.state import Addresses, NodeState
from swarm.rpc import MANAGER_ROLE, Call, Peer, StreamData, StreamEnd
from tests.sim.driver import Driver
from tests.sim.kernel import Future, Runnable, Scope, Script
from tests.sim.keys import root
from tests.sim.manager_driver import ManagerDriver
from tests.sim.network import PORT, Connection

if TYPE_CHECKING:
    from tests.sim.world import Node, World

Link = Connection | LocalLink
_CANCELLED_AT_STOP = (
    events.RequestIdentity,
    events.RenewCertificate,
    events.StartManager,
    events.AwaitLeadership,
    events.WriteFirstObjects,
    events.RemoveContainers,
)


class Process:
    """See NodeProcess. host is the address without port."""

    def __init__(self, world: World, node: Node, run: int) -> None:
        self.world = world
        self.kernel = world.kernel
        self.node = node
        self.disk = node.disk
        self.host = node.host
        self.addr = f"{node.host}:{PORT}"
        self.name = f"{node.name}.{run}"
        self.alive = True
        self.stalled_until = 0.0
        self.connections: dict[int, Connection] = {}
        self.identity = Peer(addr=f"{self.host}:40000")
        self.manager: ManagerDriver | None = None
        self._starting: ManagerDriver | None = None
        self._scope = Scope()
        self._clock_at, self._clock_shows = world.kernel.now, node.wall_clock()
        self._rate = node.clock_rate
        self._dice = 0
        self._tickets = itertools.count(1)
        self._requests: dict[int, Future] = {}
        self._works: dict[int, tuple[events.TaggedEffect, Scope, Future]] = {}
        self._first: tuple[bytes, bytes] | None = None
        self._present: dict[str, None] = {}
        self.agent: Driver[AgentEvent, AgentEffect] | None = None
        self.machine = NodeMachine(self.random("node"))
        self.driver: Driver[events.Event, events.Effect] = Driver(
            self, "node", self.machine, self._perform, lambda: None
        )
        self._connection: ManagerConnection[Link] = ManagerConnection(self._tell_agent)
        self.driver.start()
        if not node.engine.alive:
            self.engine_is(False, certain=False)

    def __repr__(self) -> str:
        return self.name

    # --- time and randomness ---------------------------------------------------------------------------------------

    def random(self, what: str) -> Random:
        """Randomness for one part of this run; never the same twice."""
        self._dice += 1
        return Random(f"{self.kernel.seed}/{self.name}/{what}/{self._dice}")

    def clock(self) -> float:
        """Seconds since the epoch as this process sees them: never decreasing while it runs."""
        return self._clock_shows + (self.kernel.now - self._clock_at) * self._rate

    def world_delay(self, clock: float) -> float:
        """See Clocked."""
        return (clock - self.clock()) / self._rate

    def jump(self, seconds: float) -> None:
        """The clock goes forward at once."""
        self._clock_shows += seconds
        for driver in (self.agent, self.driver, self.manager.driver if self.manager else None):
            if driver is not None:
                driver.rearm()

    # --- what operators do -----------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """Empty before it has one."""
        return self.machine.record.node_id

    def known_managers(self) -> list[tuple[str, str]]:
        """The managers that this node knows."""
        return list(self.machine.status().managers)

    @property
    def leads(self) -> bool:
        """Whether its manager believes to lead."""
        return self.manager is not None and self.manager.leadership.leading

    @property
    def in_swarm(self) -> bool:
        """Whether this node has, or is getting, a place in a swarm."""
        return self.machine.status().phase is not Phase.INACTIVE

    def run(self, script: Runnable) -> Future:
        """Start a script that ends with this process."""
        return self._scope.run(script)

    def ask(self, make: Callable[[int], events.Request | events.Boot]) -> Future:
        """Put a request to the Node; the future is its end."""
        ticket, future = next(self._tickets), Future()
        self._requests[ticket] = future
        self.driver.put(make(ticket))
        return future

    def boot(self) -> Future:
        """The daemon starts on its disk."""
        state = self.disk.state
        return self.ask(lambda ticket: events.Boot(ticket, state))

    def create(self, spec: api.ClusterSpec) -> Future:
        """docker swarm init."""
        state = NodeState.new(self._addresses(), "node-one", "cluster").with_self()
        details = cluster.NewCluster(address=self.host)
        return self.ask(lambda ticket: events.Init(ticket, state, spec, details))

    def join(self, managers: list[str], token: str) -> Future:
        """docker swarm join."""
        state = NodeState.new(self._addresses(), managers=tuple(("", addr) for addr in managers))
        return self.ask(lambda ticket: events.Join(ticket, state, token, api.NodeSpec.ACTIVE))

    def leave(self) -> Future:
        """docker swarm leave."""
        return self.ask(lambda ticket: events.Leave(ticket, force=False))

    def force_new_cluster(self) -> Future:
        """docker swarm init --force-new-cluster."""
        return self.ask(lambda ticket: events.ForceNewCluster(ticket, self._addresses()))

    def stop(self) -> Script:
        """The daemon is stopped as it should be; whoever runs this outlives the process."""
        yield self.ask(events.Stop)
        if self.alive:
            self._end()

    def engine_is(self, able: bool, certain: bool) -> None:
        """What the watch of the engine tells."""
        gone = agent_events.EngineGone("Cannot connect to the Docker daemon", certain)
        self.driver.put(agent_events.EngineBack() if able else gone)

    def _addresses(self) -> Addresses:
        return Addresses(self.host, PORT, self.host, PORT, self.host)

    # --- the end ---------------------------------------------------------------------------------------------------

    def die(self, torn: bool, silent: bool) -> None:
        """The process is killed; silent: with its whole machine."""
        self.alive = False
        for manager in (self.manager, self._starting):
            if manager is not None:
                manager.die(torn)
        self._close_drivers()
        for connection in list(self.connections.values()):
            connection.side_died(self, silent)

    def _end(self) -> None:
        for connection in list(self.connections.values()):
            connection.close()
        self.alive = False
        self._close_drivers()

    def _close_drivers(self) -> None:
        for driver in (self.agent, self.driver):
            if driver is not None:
                driver.close()
        self.node.engine.detach()
        for _, scope, _ in list(self._works.values()):
            scope.close()
        self._scope.close()
        for future in self._requests.values():
            future.fail(Unavailable("the daemon is gone"))

    # --- performing ------------------------------------------------------------------------------------------------

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Answer(ticket=ticket, error=error):
                future = self._requests.pop(ticket)
                future.resolve() if error is None else future.fail(error)
            case events.TellAgent(event=event):
                self._tell_agent(event)
            case events.SaveState(state=state):
                self._at_once(effect, lambda: self.disk.save_state(state))
            case events.DropState():
                self._at_once(effect, self.disk.drop_state)
            case events.SaveRoot(root_pem=root_pem):
                self._at_once(effect, lambda: self._save_root(root_pem))
            case events.Describe():
                self._describe(effect)
            case _:
                self._later(effect, self._work(effect))

    def _at_once(self, effect: events.TaggedEffect, work: Callable[[], None]) -> None:
        """A synchronised write; on a full disk it fails."""
        if self.manager is not None and self.manager.disk_fails:
            self.driver.put(events.Failed(effect.tag, OSError("no space left on device")))
            return
        work()
        self.driver.put(events.Done(effect.tag))

    def _later(self, effect: events.TaggedEffect, work: Coroutine[Any, Any, Any]) -> None:
        scope = Scope()
        future = Future()
        self._works[effect.tag] = effect, scope, future
        running = scope.run(work)
        running.then(lambda: self._worked(effect, future, running))

    def _worked(self, effect: events.TaggedEffect, future: Future, running: Future) -> None:
        self._works.pop(effect.tag, None)
        future.resolve()
        failed = running.error is not None
        self.driver.put(events.Failed(effect.tag, running.error) if failed else events.Done(effect.tag, running.value))

    async def _work(self, effect: events.TaggedEffect) -> object:
        match effect:
            case events.ForgetLog():
                await self.kernel.sleep(0.002)
                self.disk.forget_log()
            case events.Erase():
                await self.kernel.sleep(0.002)
                self.disk.erase()
            case events.MakeIdentity():
                return self._make_identity(effect)
            case events.RequestIdentity(managers=managers, token=token, availability=availability):
                rng = self.random("certificate")
                return self._keep(await bootstrap.join(managers, token, availability, rng, self._certificate_world()))
            case events.OpenIdentity():
                return self._use(self.disk.certificate_pem)
            case events.RenewCertificate():
                return await self._renew_certificate(effect)
            case events.StartManager():
                return await self._start_manager(effect)
            case events.StopManager():
                return await self._stop_manager()
            case events.AwaitLeadership():
                await self._wait_leader(defaults.JOIN_WAIT_S)
            case events.WriteFirstObjects():
                await self._write_first_objects(effect)
            case events.StartAgent(node_id=node_id):
                self._start_agent(node_id)
            case events.StopRoles():
                await self._stop_roles()
            case events.RemoveContainers():
                await self.kernel.sleep(0.05)
                if not self.node.engine.alive:
                    raise Unavailable("Cannot connect to the Docker daemon")
                self.node.engine.sweep([])
            case _:
                raise AssertionError(effect)
        return None

    async def _stop_roles(self) -> None:
        for tag, (effect, scope, future) in list(self._works.items()):
            if isinstance(effect, events.StopRoles):
                continue
            if isinstance(effect, _CANCELLED_AT_STOP):
                del self._works[tag]
                scope.close()
            else:
                await future
        if self._starting is not None:
            self._starting.close()
            self._starting = None
        self._connection.drop()
        if self.agent is not None:
            self.agent.close()
            self.agent = None
        self.node.engine.detach()
        if self.manager is not None:
            await self._stop_manager()

    # --- identity --------------------------------------------------------------------------------------------------

    def _save_root(self, root_pem: bytes) -> None:
        self.disk.root_pem = root_pem

    def _use(self, certificate_pem: bytes) -> events.Identity:
        identity = identity_of(certificate_pem)
        self.identity = Peer(identity.node_id, identity.role, identity.org, f"{self.host}:40000")
        return events.Identity(certificate_pem, self.disk.root_pem)

    def _keep(self, issued: bootstrap.Issued) -> events.Identity:
        self.disk.root_pem = issued.root_pem
        self.disk.certificate_pem = issued.credentials.certificate_pem
        return self._use(self.disk.certificate_pem)

    def _make_identity(self, effect: events.MakeIdentity) -> events.Identity:
        authority, state, csr = root(), effect.state, self.world.requests.new().csr
        expiry_s = cluster.complete_spec(effect.spec).ca_config.node_cert_expiry.ToSeconds()
        certificate = authority.sign(csr, state.node_id, MANAGER_ROLE, state.cluster_id, self.clock(), expiry_s)
        self._first = csr, certificate
        self.disk.root_pem, self.disk.certificate_pem = authority.bundle_pem, certificate
        return self._use(certificate)

    async def _renew_certificate(self, effect: events.RenewCertificate) -> events.Identity:
        manager = _OwnManager(self) if self.manager is not None else None
        own, rng = Credentials(self.disk.certificate_pem, b""), self.random("certificate")
        world = self._certificate_world()
        issued = await own_certificate.renew(manager, effect.managers, effect.root_pem, own, rng, world)
        if issued.root_pem != effect.root_pem:
            self.disk.root_pem = issued.root_pem
        self.disk.certificate_pem = issued.credentials.certificate_pem
        self._use(self.disk.certificate_pem)
        self.kernel.say(self.name, "renewed", self.identity.role)
        return events.Identity(self.disk.certificate_pem, issued.root_pem)

    def _certificate_world(self) -> bootstrap.World:
        async def sleep(delay_s: float) -> None:
            await self.kernel.sleep(delay_s)

        return bootstrap.World(self._dial_for_certificate, sleep, self.clock, self.world.requests.new)

    async def _dial_for_certificate(self, addr: str, tls: ClientTls, timeout_s: float) -> Connection:
        """With the certificate that is shown there, which need not be the one in use."""
        shown = Peer(addr=f"{self.host}:40000")
        if tls.credentials is not None:
            found = identity_of(tls.credentials.certificate_pem)
            shown = Peer(found.node_id, found.role, found.org, f"{self.host}:40000")
        connection: Connection = await self.world.network.dial(Guise(self, shown), addr, timeout_s, tls.node_id)
        return connection

    # --- the manager -----------------------------------------------------------------------------------------------

    async def _start_manager(self, effect: events.StartManager) -> events.ManagerUp:
        manager = self._starting = ManagerDriver(self)
        starting = manager.start(
            create=effect.create, join=effect.state.other_managers(), force_new_cluster=effect.force_new_cluster
        )
        await self.run(starting)
        self.manager, self._starting = manager, None
        self.kernel.say(self.name, "manager starts")
        manager.removed.then(lambda: self.driver.put(events.ManagerEnded(effect.tag, removed=True)))
        return events.ManagerUp(self.disk.raft.raft_id)

    async def _stop_manager(self) -> events.ManagerDown:
        assert self.manager is not None
        manager, self.manager = self.manager, None
        raft_id = self.disk.raft.raft_id
        await self.run(manager.hand_over())
        manager.close()
        self.kernel.say(self.name, "manager stops", self.identity.role, manager.removed.done)
        return events.ManagerDown(raft_id, manager.others(), manager.removed.done)

    async def _wait_leader(self, timeout_s: float) -> None:
        end = self.kernel.now + timeout_s
        while not self.leads:
            if self.kernel.now >= end:
                raise TimeoutError("this manager does not lead")
            await self.kernel.sleep(0.01)

    async def _write_first_objects(self, effect: events.WriteFirstObjects) -> None:
        assert self._first is not None
        csr, certificate = self._first
        state, spec, details = effect.state, effect.spec, effect.details
        await self._wait_leader(defaults.JOIN_WAIT_S)
        assert self.manager is not None
        script = self.manager.write(
            lambda tx: cluster.bootstrap(tx, state.cluster_id, state.node_id, spec, root(), csr, certificate, details),
            defaults.JOIN_WAIT_S,
        )
        await self.run(script)

    # --- the agent -------------------------------------------------------------------------------------------------

    def _start_agent(self, node_id: str) -> None:
        agent = Agent(node_id, self.machine.record.remotes, self.random("agent"), self.clock(), dict(self.disk.journal))
        self.agent = Driver(self, "agent", agent, self._perform_for_agent, lambda: None)
        self.node.engine.listener = self.agent.put

    def _tell_agent(self, event: AgentEvent) -> None:
        if self.agent is not None:
            self.agent.put(event)

    def _describe(self, effect: events.Describe) -> None:
        if self.node.engine.alive:
            self.driver.put(events.Done(effect.tag, self.node.description()))
        else:
            self.driver.put(events.Failed(effect.tag, Unavailable("Cannot connect to the Docker daemon")))

    def _perform_for_agent(self, effect: AgentEffect) -> None:
        match effect:
            case agent_events.Execute():
                self.kernel.say(self.name, effect.step.value, effect.task_id)
                self._present[effect.task_id] = None
                self.node.engine.execute(effect)
            case agent_events.CancelStep():
                self.node.engine.cancel(effect)
            case agent_events.Sweep(task_ids=task_ids):
                self.run(self._sweep(task_ids))
            case Call():
                self._connection.call(effect)
            case StreamData() | StreamEnd():
                self._connection.send(effect)
            case agent_events.Connect():
                self._connection.begin(effect)
                self.run(self._dial(effect))
            case agent_events.Disconnect():
                self._connection.drop()
            case agent_events.Journal(puts=puts, drops=drops):
                self.disk.write_journal(dict(puts), drops)
            case agent_events.SessionState(error=error):
                self.kernel.say(self.name, "session", error or "established")
                self.driver.put(effect)
            case agent_events.SessionUpdate() | agent_events.Left():
                self.driver.put(effect)
            case agent_events.PublishLogs() | agent_events.StopLogs():
                pass

    def _sweep(self, known: tuple[str, ...]) -> Script:
        """See Executor.sweep: containers of tasks that begin meanwhile are spared."""
        yield self.kernel.sleep(0.05)
        while not self.node.engine.alive:
            yield self.kernel.sleep(defaults.EXECUTOR_RECHECK_S)
        for task_id in self.node.engine.sweep([*known, *self._present]):
            self.kernel.say(self.name, "swept", task_id)

    def _dial(self, effect: agent_events.Connect) -> Script:
        try:
            if (error := self.machine.why_not_connect(effect)) is not None:
                raise error
            link: Link
            if effect.manager_addr:
                link = yield self.world.network.dial(self, effect.manager_addr, defaults.RPC_DIAL_TIMEOUT_S)
            elif self.manager is None:
                raise Unavailable("this node's manager is not running")
            else:
                peer = Peer(self.node_id, self.identity.role, self.identity.org, self.addr)
                link = LocalLink(self.manager.local, peer)
        except SwarmError as problem:
            self._connection.failed(effect, str(problem))
            return
        self._connection.connected(effect, link)
        if isinstance(link, Connection):
            link.closed.then(lambda: self._lost(link))

    def _lost(self, link: Link) -> None:
        if self.alive:
            self._connection.lost(link, "the connection to the manager broke")


class Guise:
    """A process that connects with another certificate than the one in use, or with none (tests.sim.network.Caller)."""

    def __init__(self, process: Process, identity: Peer) -> None:
        self.host = process.host
        self.identity = identity
        self.connections = process.connections
        self._process = process

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.alive


class _OwnManager:
    """See swarm.node.own_certificate.OwnManager."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def leads(self) -> bool:
        """Whether it leads."""
        return self._process.leads

    async def wait_leader(self, timeout_s: float) -> None:
        """Until it leads. Raises TimeoutError."""
        await self._process._wait_leader(timeout_s)

    async def ask(self, method: str, request: Message, timeout_s: float, peer: Peer) -> Message:
        """A unary call."""
        assert self._process.manager is not None
        answer: Message = await self._process.run(self._process.manager.call(method, request, timeout_s, peer))
        return answer
