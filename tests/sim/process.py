"""One run of the daemon on one node: its agent, its manager while it is one, its certificate.

Performs what swarm/io/node/node_process.py and agent_process.py do, line for line where order matters.
"""

from __future__ import annotations

import contextlib
from random import Random
from typing import TYPE_CHECKING

from certs.errors import CertsError
from certs.keys import identity_of, load_certificates
from certs.renewal import Failed, Renew, Renewal, Renewed, RenewNow, RightRole
from certs.root import RootCA
from swarm import api, defaults
from swarm.agent import events
from swarm.agent.agent import Agent, AgentEffect, AgentEvent
from swarm.errors import JoinUndecided, SwarmError, Unavailable
from swarm.io.node.agent_process import LocalLink
from swarm.io.node.own_certificate import tls_info
from swarm.manager import cluster
from swarm.node.remotes import Remotes
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from tests.sim.certificates import request_certificate
from tests.sim.disk import RaftImage
from tests.sim.driver import Driver
from tests.sim.kernel import Future, Runnable, Scope, Script
from tests.sim.keys import root
from tests.sim.manager_driver import ManagerDriver
from tests.sim.network import PORT, Connection

if TYPE_CHECKING:
    from tests.sim.world import Node, World


Link = Connection | LocalLink


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
        self.identity = Peer()
        self.manager: ManagerDriver | None = None
        self._starting: ManagerDriver | None = None
        self.agent: Driver[AgentEvent, AgentEffect] | None = None
        self.renewal: Driver[RenewNow | RightRole | Renewed | Failed, Renew] | None = None
        self.machine: Agent | None = None
        self.ready = Future()
        self._scope = Scope()
        self._run = run
        self._clock_at, self._clock_shows = world.kernel.now, node.wall_clock()
        self._rate = node.clock_rate
        self._remotes = Remotes()
        self._link: Link | None = None
        self._connection = 0
        self._role_changed = Future()
        self._expelled = False
        self._left = Future()
        self._dice = 0
        self._present: dict[str, None] = {}
        self._unable = not node.engine.alive

    def __repr__(self) -> str:
        return self.name

    # --- time and chance -------------------------------------------------------------------------------------------

    def random(self, what: str) -> Random:
        """Chance for one part of this run; never the same twice."""
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
        for driver in (self.agent, self.renewal, self.manager.driver if self.manager else None):
            if driver is not None:
                driver.rearm()

    # --- life ------------------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """Empty before it has one."""
        return self.identity.node_id

    def known_managers(self) -> list[tuple[str, str]]:
        """See NodeProcess."""
        return self._remotes.managers() if self.machine is not None else list(self.disk.managers)

    @property
    def leads(self) -> bool:
        """Whether its manager believes to lead."""
        return self.manager is not None and self.manager.leadership.leading

    def run(self, script: Runnable) -> Future:
        """Start a script that ends with this process."""
        return self._scope.run(script)

    def create(self, spec: api.ClusterSpec) -> Script:
        """See NodeProcess.create."""
        authority, now = root(), self.clock()
        csr, cluster_id, node_id = self.world.requests.new(), "cluster", "node-one"
        expiry_s = cluster.complete_spec(spec).ca_config.node_cert_expiry.ToSeconds()
        certificate = authority.sign(csr, node_id, MANAGER_ROLE, cluster_id, now, expiry_s)
        self.disk.root_pem = authority.bundle_pem
        self._adopt(certificate)
        self.disk.managers = ((node_id, self.addr),)
        manager = ManagerDriver(self)
        yield from manager.start(create=True, join=())
        self.manager = manager
        self.disk.raft_id = self.disk.raft.raft_id
        while not manager.leadership.leading:
            yield self.kernel.sleep(0.01)
        details = cluster.NewCluster(address=self.host)
        yield from manager.write(
            lambda tx: cluster.bootstrap(tx, cluster_id, node_id, spec, authority, csr, certificate, details),
            defaults.JOIN_WAIT_S,
        )
        self.disk.saved = True
        self._start_agent()
        self.run(self._keep_roles())

    def join(self, managers: list[str], token: str) -> Script:
        """See NodeProcess.join."""
        certificate = yield from request_certificate(self, managers, token)
        self._adopt(certificate)
        self.disk.managers = tuple(("", addr) for addr in managers)
        self.disk.saved = True
        if self.identity.role == MANAGER_ROLE:
            with contextlib.suppress(JoinUndecided):
                yield from self._start_manager()
        self._start_agent()
        self.run(self._keep_roles())

    def resume(self, force_new_cluster: bool = False) -> Script:
        """See NodeProcess.resume."""
        self._adopt(self.disk.certificate_pem)
        if self.identity.role != MANAGER_ROLE and self.disk.raft_id:
            self.disk.without_log(())
            yield self.kernel.sleep(0.002)
            self.disk.raft = RaftImage()
        if self.identity.role == MANAGER_ROLE and self.disk.raft_id:
            yield from self._start_manager(force_new_cluster)
        if force_new_cluster:
            while not self.leads:
                yield self.kernel.sleep(0.01)
        self._start_agent()
        self.run(self._keep_roles())

    def die(self, torn: bool, silent: bool) -> None:
        """The process is killed; silent: with its whole machine."""
        self.alive = False
        for manager in (self.manager, self._starting):
            if manager is not None:
                manager.die(torn)
        self._close_drivers()
        self.node.engine.detach()
        for connection in list(self.connections.values()):
            connection.side_died(self, silent)
        self._scope.close()

    def stop(self) -> Script:
        """See NodeProcess.close; whoever runs this outlives the process."""
        self._scope.close()
        self._drop_link()
        if self.agent is not None:
            self.agent.close()
        if self.manager is not None:
            yield from self.manager.hand_over()
        if self.alive:
            self._end()

    def leave(self) -> Script:
        """See NodeProcess.leave; whoever runs this outlives the process."""
        self.disk.saved = False
        if self.agent is not None and not self._unable:
            self.agent.put(events.Leave())
            self.kernel.at(defaults.LEAVE_WAIT_S, self._left.resolve)
            yield self._left
        if not self.alive:
            return
        self.node.engine.sweep([])
        self._end()

    def _end(self) -> None:
        self._drop_link()
        for manager in (self.manager, self._starting):
            if manager is not None:
                manager.close()
        self._close_drivers()
        self.node.engine.detach()
        for connection in list(self.connections.values()):
            connection.close()
        self.alive = False
        self._scope.close()

    def _close_drivers(self) -> None:
        for driver in (self.agent, self.renewal):
            if driver is not None:
                driver.close()

    def set_able(self, able: bool, certain: bool) -> None:
        """See NodeProcess.set_able."""
        before, self._unable = self._unable, not able
        if self.agent is not None and before == able:
            gone = events.EngineGone("Cannot connect to the Docker daemon", certain)
            self.agent.put(events.EngineBack() if able else gone)

    # --- identity --------------------------------------------------------------------------------------------------

    def _adopt(self, certificate_pem: bytes) -> None:
        if certificate_pem != self.disk.certificate_pem:
            self._expelled = False
        self.disk.certificate_pem = certificate_pem
        identity = identity_of(certificate_pem)
        self.identity = Peer(identity.node_id, identity.role, identity.org, f"{self.host}:40000")
        self._role_changed.resolve()

    def _validity(self) -> tuple[float, float]:
        leaf = load_certificates(self.disk.certificate_pem)[0]
        return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()

    def _renew_once(self) -> Script:
        try:
            addresses = [addr for _, addr in self._remotes.managers()]
            certificate = yield from request_certificate(self, addresses, "")
            RootCA(self.disk.root_pem, None).verify(certificate, self.clock())
        except (SwarmError, CertsError):
            if self.renewal is not None:
                self.renewal.put(Failed())
            return
        self._adopt(certificate)
        self._describe()
        self.kernel.say(self.name, "renewed", self.identity.role)
        if self.renewal is not None:
            self.renewal.put(Renewed(*self._validity(), self.identity.role))

    # --- roles -----------------------------------------------------------------------------------------------------

    def _start_manager(self, force_new_cluster: bool = False) -> Script:
        manager = self._starting = ManagerDriver(self)
        others = [addr for node_id, addr in self.disk.managers if node_id != self.node_id]
        yield from manager.start(create=False, join=others, force_new_cluster=force_new_cluster)
        self.manager, self._starting = manager, None
        self.disk.raft_id = self.disk.raft.raft_id
        self.kernel.say(self.name, "manager starts")
        if self.agent is not None:
            self.agent.put(events.LocalManager(running=True))

    def _keep_roles(self) -> Script:
        failures = 0
        while True:
            self._role_changed = Future()
            try:
                if self.manager is not None:
                    yield from self._manager_over(self.manager)
                    failures = 0
                elif self.identity.role == MANAGER_ROLE and not self._expelled:
                    yield from self._start_manager()
                    failures = 0
                else:
                    yield self._role_changed
            except SwarmError as error:
                failures = min(failures + 1, 20)
                self.kernel.say(self.name, "manager not started:", error)
                yield self.kernel.sleep(min(defaults.ROLE_START_PAUSE_MAX_S, defaults.ROLE_START_PAUSE_S * 2**failures))

    def _manager_over(self, manager: ManagerDriver) -> Script:
        while self.identity.role == MANAGER_ROLE and not manager.removed.done:
            either = Future()
            manager.removed.then(either.resolve)
            self._role_changed.then(either.resolve)
            yield either
            if self._role_changed.done:
                self._role_changed = Future()
        self.manager = None
        if self.agent is not None:
            self.agent.put(events.LocalManager(running=False))
        yield from manager.hand_over()
        manager.close()
        self.kernel.say(self.name, "manager stops", self.identity.role, manager.removed.done)
        self.disk.without_log(manager.others())
        self._remotes.learn(self.disk.managers)
        yield self.kernel.sleep(0.002)
        self.disk.raft = RaftImage()
        if self.identity.role == MANAGER_ROLE:
            self._expelled = True
            if self.renewal is not None:
                self.renewal.put(RenewNow())

    # --- the agent -------------------------------------------------------------------------------------------------

    def _start_agent(self) -> None:
        self._remotes = Remotes(self.disk.managers)
        agent = Agent(self.node_id, self._remotes, self.random("agent"), self.clock(), dict(self.disk.journal))
        self.machine = agent
        self.agent = Driver(self, "agent", agent, self._perform, lambda: None)
        renewal = Renewal(*self._validity(), self.random("renewal"))
        self.renewal = Driver(self, "renewal", renewal, lambda _: self._renew(), lambda: None)
        self.node.engine.listener = self.agent.put
        self.agent.put(events.LocalManager(running=self.manager is not None))
        self._describe()
        self.renewal.start()

    def _describe(self) -> None:
        if self.agent is not None:
            description = self.node.description()
            description.tls_info.CopyFrom(tls_info(self.disk.root_pem, self.disk.certificate_pem))
            self.agent.put(events.Described(description))

    def _renew(self) -> None:
        self.run(self._renew_once())

    def _perform(self, effect: AgentEffect) -> None:
        match effect:
            case events.Execute():
                self.kernel.say(self.name, effect.step.value, effect.task_id)
                self._present[effect.task_id] = None
                self.node.engine.execute(effect)
            case events.CancelStep():
                self.node.engine.cancel(effect)
            case events.Sweep(task_ids=task_ids):
                self.run(self._sweep(task_ids))
            case Call():
                self._call(effect)
            case StreamData() | StreamEnd():
                if self._link is not None:
                    self._link.send(effect)
            case events.Connect():
                self._drop_link()
                self._connection = effect.connection
                self.run(self._dial(effect))
            case events.Disconnect():
                self._drop_link()
            case events.Journal(puts=puts, drops=drops):
                self.disk.write_journal(dict(puts), drops)
            case events.SessionUpdate():
                self._on_update(effect)
            case events.SessionState(error=error):
                self.kernel.say(self.name, "session", error or "established")
                if not error:
                    self.ready.resolve()
            case events.Left():
                self._left.resolve()
            case events.PublishLogs() | events.StopLogs():
                pass

    def _sweep(self, known: tuple[str, ...]) -> Script:
        """See Executor.sweep: containers of tasks that begin meanwhile are spared."""
        yield self.kernel.sleep(0.05)
        while not self.node.engine.alive:
            yield self.kernel.sleep(defaults.EXECUTOR_RECHECK_S)
        for task_id in self.node.engine.sweep([*known, *self._present]):
            self.kernel.say(self.name, "swept", task_id)

    def _call(self, call: Call) -> None:
        assert self.agent is not None
        agent, connection = self.agent, self._connection
        if self._link is None:
            agent.put(StreamEnd(call.stream, Unavailable("no connection to a manager")))
            return

        def listen(answer: Reply | StreamData | StreamEnd) -> None:
            if connection == self._connection:
                agent.put(answer)

        self._link.open(call, listen)

    def _dial(self, effect: events.Connect) -> Script:
        assert self.agent is not None
        number = effect.connection
        try:
            if self._unable:
                raise Unavailable("Cannot connect to the Docker daemon")
            link: Link
            if effect.manager_addr:
                link = yield self.world.network.dial(self, effect.manager_addr, defaults.RPC_DIAL_TIMEOUT_S)
            elif self.manager is None:
                raise Unavailable("this node's manager is not running")
            else:
                peer = Peer(self.node_id, self.identity.role, self.identity.org, self.addr)
                link = LocalLink(self.manager.local, peer)
        except SwarmError as error:
            if number == self._connection:
                self.agent.put(events.ConnectionLost(number, str(error)))
            return
        if number != self._connection:
            link.close()
            return
        self._link = link
        self.agent.put(events.Connected(number))
        if isinstance(link, Connection):
            link.closed.then(lambda: self._connection_lost(link))

    def _connection_lost(self, link: Link) -> None:
        if link is self._link and self.alive:
            self._lose_connection("the connection to the manager broke")

    def _lose_connection(self, error: str) -> None:
        number = self._connection
        if number and self.agent is not None:
            self._drop_link()
            self.agent.put(events.ConnectionLost(number, error))

    def _drop_link(self) -> None:
        self._connection = 0
        if self._link is not None:
            link, self._link = self._link, None
            link.close()

    def _on_update(self, update: events.SessionUpdate) -> None:
        assert self.renewal is not None
        if update.root_ca and update.root_ca != self.disk.root_pem:
            self._take_root(update.root_ca)
        if update.managers:
            self.disk.managers = update.managers
        if update.node.role == update.node.spec.desired_role:
            wanted = MANAGER_ROLE if update.node.role == api.MANAGER else WORKER_ROLE
            self.renewal.put(RenewNow(wanted) if wanted != self.identity.role else RightRole())
        if update.node.certificate.status.state == api.IssuanceStatus.ROTATE:
            self.renewal.put(RenewNow())

    def _take_root(self, root_pem: bytes) -> None:
        """See NodeProcess._take_root."""
        try:
            RootCA(root_pem, None).verify(self.disk.certificate_pem, self.clock(), allow_expired=True)
        except CertsError as error:
            self.kernel.say(self.name, "root refused", error)
            return
        self.disk.root_pem = root_pem
        self._describe()
