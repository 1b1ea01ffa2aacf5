"""One run of the daemon on one node: the production Node machine, with agent, manager and disk of the simulation.

Drives swarm.node.node.Node and swarm.agent.agent.Agent, and production's own dialogues for certificates
(swarm/node/bootstrap.py, own_certificate.py). What is here performs effects; it decides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from swarm import defaults
from swarm.agent import events as agent_events
from swarm.errors import Unavailable
from swarm.manager import cluster
from swarm.node import events
from swarm.node.node import Node as NodeMachine
from swarm.node.steps import Phase
from swarm.rpc import Peer
from tests.sim.agent import SimAgent
from tests.sim.docker_cli import Docker
from tests.sim.driver import Driver
from tests.sim.files import Killed
from tests.sim.identity import SimIdentity
from tests.sim.kernel import Future, Runnable, Scope, Script
from tests.sim.keys import root
from tests.sim.manager_driver import ManagerDriver
from tests.sim.network import PORT, Connection

if TYPE_CHECKING:
    from tests.sim.ailments import Fate
    from tests.sim.world import Node, World

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
        self.disk.files.start()
        self.host = node.host
        self.addr = f"{node.host}:{PORT}"
        self.name = f"{node.name}.{run}"
        self.alive, self.stalled_until = True, 0.0
        self.fate: Fate | None = None
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
        self._clients: dict[int, None] = {}
        self._works: dict[int, tuple[events.TaggedEffect, Scope, Future]] = {}
        self.agent: SimAgent | None = None
        self._file = self.disk.state_file()
        self.machine: NodeMachine = NodeMachine(self.random("node"))
        self.driver: Driver[events.Event, events.Effect] = Driver(
            self, "node", self.machine, self._perform, lambda: None
        )
        self.credentials = SimIdentity(self)
        self.docker = Docker(self)
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

    def drivers(self) -> list[Driver[Any, Any]]:
        """Of all machines that run here."""
        agent = [self.agent.driver] if self.agent is not None else []
        manager = [self.manager.driver] if self.manager is not None and self.manager.driver is not None else []
        return [*agent, self.driver, self.credentials.lock.driver, *manager]

    def jump(self, seconds: float) -> None:
        """The clock goes forward at once."""
        self._clock_shows += seconds
        for driver in self.drivers():
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

    def ask(self, make: Callable[[int], events.Request | events.Boot], by_client: bool = True) -> Future:
        """Put a request to the Node; the future is its end. by_client: whoever asks may hang up."""
        ticket, future = next(self._tickets), Future()
        if not self.alive:
            future.fail(Unavailable("the daemon is gone"))
            return future
        self._requests[ticket] = future
        self._clients.update({ticket: None} if by_client else {})
        self.driver.put(make(ticket))
        return future

    def boot(self) -> Future:
        """The daemon starts on its disk."""
        found = self._file.find()
        found_id = "" if found.state is not None else self.credentials.found_id()
        return self.ask(
            lambda ticket: events.Boot(ticket, found.state, found.error, found_id, found.leaving, found.others), False
        )

    def stop(self) -> Script:
        """The daemon is stopped as it should be; whoever runs this outlives the process."""
        yield self.ask(events.Stop, by_client=False)
        if self.alive:
            self._end()

    def hang_up(self) -> None:
        """All clients go away without waiting for an answer."""
        self.kernel.say("clients of", self.name, "hang up")
        for future in [self._requests[ticket] for ticket in self._clients if ticket in self._requests]:
            future.fail(Unavailable("the client does not wait any more"))

    def engine_is(self, able: bool, certain: bool) -> None:
        """What the watch of the engine tells."""
        gone = agent_events.EngineGone("Cannot connect to the Docker daemon", certain)
        self.driver.put(agent_events.EngineBack() if able else gone)

    # --- the end ---------------------------------------------------------------------------------------------------

    def die(self, torn: bool, silent: bool) -> None:
        """The process is killed; silent: with its whole machine."""
        self.alive = False
        for manager in (self.manager, self._starting):
            if manager is not None:
                manager.die(torn)
        self.credentials.lock.die()
        self._close_drivers()
        for connection in list(self.connections.values()):
            connection.side_died(self, silent)

    def _end(self) -> None:
        for connection in list(self.connections.values()):
            connection.close()
        self.alive = False
        self._close_drivers()

    def _close_drivers(self) -> None:
        for driver in self.drivers():
            driver.close()
        self.node.engine.detach()
        for _, scope, _ in list(self._works.values()):
            scope.close()
        self._scope.close()
        requests, self._requests = self._requests, {}
        for future in requests.values():
            future.fail(Unavailable("the daemon is gone"))

    # --- performing ------------------------------------------------------------------------------------------------

    def _perform(self, effect: events.Effect) -> None:
        if self.fate is not None and not isinstance(effect, events.TellAgent | events.Describe):
            self.fate.step()
        match effect:
            case events.Answer(ticket=ticket, error=error):
                future = self._requests.pop(ticket)
                future.resolve() if error is None else future.fail(error)
            case events.TellAgent(event=event):
                if self.agent is not None:
                    self.agent.put(event)
            case events.SaveState(state=state):
                self._at_once(effect, lambda: self._file.save(state))
            case events.DropState():
                self._at_once(effect, self._file.drop)
            case events.SaveRoot(root_pem=root_pem):
                self._at_once(effect, lambda: self.credentials.save_root(root_pem))
            case events.Describe():
                self._describe(effect)
            case _:
                self._later(effect, self._work(effect))

    def _at_once(self, effect: events.TaggedEffect, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self.driver.put(events.Failed(effect.tag, error))
        except Killed:
            return
        else:
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
        error = running.error
        self.driver.put(events.Done(effect.tag, running.value) if error is None else events.Failed(effect.tag, error))

    async def _work(self, effect: events.TaggedEffect) -> object:
        try:
            return await self._perform_one(effect)
        except Killed:
            await Future()  # nobody hears of it any more
        return None

    async def _perform_one(self, effect: events.TaggedEffect) -> object:
        match effect:
            case events.ForgetLog():
                await self.kernel.sleep(0.002)
                self.world.checkers.promises.forgets_log(self.node)
                self.disk.raft.lose_database()
                await self.kernel.sleep(0.002)
                self.disk.forget_log()
            case events.Erase():
                await self.kernel.sleep(0.002)
                self.world.checkers.promises.erases(self.node)
                self.credentials.forget()
                self.disk.erase()
                self._file.erase()
            case events.MakeIdentity():
                return self.credentials.make(effect)
            case events.RequestIdentity():
                return await self.credentials.request(effect)
            case events.OpenIdentity():
                return self.credentials.open(effect)
            case events.RenewCertificate():
                return await self.credentials.renew(effect)
            case events.StartManager():
                return await self._start_manager(effect)
            case events.StopManager():
                return await self._stop_manager()
            case events.AwaitLeadership():
                await self.wait_leader(defaults.JOIN_WAIT_S)
            case events.WriteFirstObjects():
                await self._write_first_objects(effect)
            case events.StartAgent(node_id=node_id):
                self.agent = SimAgent(self, node_id)
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
        if self.agent is not None:
            self.agent.close()
            self.agent = None
        self.node.engine.detach()
        if self.manager is not None:
            await self._stop_manager()

    # --- the manager -----------------------------------------------------------------------------------------------

    async def _start_manager(self, effect: events.StartManager) -> events.ManagerUp:
        self.disk.raft.open(await self.credentials.lock.prepare_log())
        manager = self._starting = ManagerDriver(self, effect.state)
        join, force = effect.state.other_managers(), effect.force_new_cluster
        await manager.start(effect.create, join, force, effect.on_loss)
        self.manager, self._starting = manager, None
        self.credentials.lock.attach(manager)
        self.kernel.say(self.name, "manager starts")
        manager.removed.then(lambda: self.driver.put(events.ManagerEnded(effect.tag, removed=True)))
        manager.failed.then(
            lambda: self.driver.put(events.ManagerEnded(effect.tag, manager.removed.done, manager.failed.error))
        )
        return events.ManagerUp(self.disk.raft.raft_id)

    async def _stop_manager(self) -> events.ManagerDown:
        assert self.manager is not None
        manager, self.manager = self.manager, None
        raft_id = self.disk.raft.raft_id
        self.credentials.lock.attach(None)
        await self.run(manager.hand_over())
        manager.close()
        self.kernel.say(self.name, "manager stops", self.identity.role, manager.removed.done)
        return events.ManagerDown(raft_id, manager.others(), manager.removed.done)

    async def wait_leader(self, timeout_s: float) -> None:
        end = self.kernel.now + timeout_s
        while not self.leads:
            if self.kernel.now >= end:
                raise TimeoutError("this manager does not lead")
            await self.kernel.sleep(0.01)

    async def _write_first_objects(self, effect: events.WriteFirstObjects) -> None:
        assert self.credentials.first is not None
        csr, certificate = self.credentials.first
        state, spec, details = effect.state, effect.spec, effect.details
        await self.wait_leader(defaults.JOIN_WAIT_S)
        assert self.manager is not None
        script = self.manager.write(
            lambda tx: cluster.bootstrap(tx, state.cluster_id, state.node_id, spec, root(), csr, certificate, details),
            defaults.JOIN_WAIT_S,
        )
        await self.run(script)

    # --- the agent -------------------------------------------------------------------------------------------------

    def _describe(self, effect: events.Describe) -> None:
        if self.node.engine.alive:
            self.driver.put(events.Done(effect.tag, self.node.description()))
        else:
            self.driver.put(events.Failed(effect.tag, Unavailable("Cannot connect to the Docker daemon")))
