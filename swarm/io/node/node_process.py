"""Performs what the Node machine of this process wants: files, keys, the manager, the agent, the executor.

    start() -> request() ... -> close(), which keeps everything on disk

Nothing is decided here. What is learnt is on disk before the machine hears of it.

(swarmkit: node/node.go)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random

import structlog

from certs.errors import CertsError
from certs.files import SYSTEM, Files
from swarm import api, defaults
from swarm.address import join_host_port
from swarm.agent import events as agent_events
from swarm.agent.agent import Agent
from swarm.errors import SwarmError, Unavailable
from swarm.grpc.peer import peer_of
from swarm.io.counts import Counts
from swarm.io.disk.raft_disk import TaskJournal
from swarm.io.grpc import client
from swarm.io.node.agent_process import AgentHooks, AgentProcess, Link, LocalLink, RemoteLink
from swarm.io.node.hooks import NodeHooks, Runner
from swarm.io.node.identity import NodeIdentity
from swarm.io.node.manager_process import ManagerProcess
from swarm.io.node.member_log import ManagerSettings, erase_log
from swarm.io.node.state_file import StateFile
from swarm.io.process import Clock, Inbox, drive
from swarm.manager import cluster
from swarm.node import events
from swarm.node.node import Node, Status

log = structlog.get_logger()

Outcome = events.Identity | events.ManagerUp | events.ManagerDown | api.NodeDescription | None
_CANCELLED_AT_STOP = (
    events.RequestIdentity,
    events.RenewCertificate,
    events.StartManager,
    events.AwaitLeadership,
    events.WriteFirstObjects,
    events.Describe,
    events.RemoveContainers,
)
"""What may be given up halfway when roles are stopped; the rest is short, or must come to its end."""


class NodeProcess:
    """See the module. manager: while it runs. counts: since the daemon started."""

    def __init__(self, directory: Path, hooks: NodeHooks, clock: Clock, rng: Random, disk: Files = SYSTEM) -> None:
        self.directory = directory
        self.manager: ManagerProcess | None = None
        self.counts = Counts()
        self._hooks = hooks
        self._clock = clock
        self._rng = rng
        self._node = Node(rng)
        self._inbox: Inbox[events.Event] = Inbox()
        self._tickets = itertools.count(1)
        self._requests: dict[int, asyncio.Future[None]] = {}
        renew = partial(self._inbox.put, events.RenewCertificateNow())
        self._files = disk
        self._file = StateFile(directory, disk)
        self._identity = NodeIdentity(directory, rng, clock.now, renew, self.counts, disk)
        self._agent: AgentProcess | None = None
        self._runner: Runner | None = None
        self._journal: TaskJournal | None = None
        self._running: dict[asyncio.Task[None], events.TaggedEffect] = {}
        self._supervisors: list[asyncio.Task[None]] = []
        self._driver: asyncio.Task[None] | None = None

    # --- life cycle ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on with what is on disk, if anything is; returns when roles run or could not be started (see status)."""
        self._driver = asyncio.create_task(self._drive(), name="node")
        found = self._file.find()
        found_id = "" if found.state is not None else self._identity.found_id()
        await self._answered(
            lambda ticket: events.Boot(ticket, found.state, found.error, found_id, found.leaving, found.others)
        )

    async def request(self, make: Callable[[int], events.Request]) -> None:
        """Put a request to the machine and wait for its end; it goes on when the caller does not wait any more.

        Raises events.Refused when it does not fit the state of this node, else what made it fail.
        """
        if self._driver is None or self._driver.done():
            raise Unavailable("this node's process does not run; the log of the daemon says why")
        await self._answered(make)

    async def close(self) -> None:
        """Stop everything; the disk keeps it all."""
        if self._driver is None:
            return
        if not self._driver.done():
            await self._answered(events.Stop)
        self._driver.cancel()
        await asyncio.gather(self._driver, return_exceptions=True)
        await self._stop_roles()

    async def _answered(self, make: Callable[[int], events.Event]) -> None:
        ticket = next(self._tickets)
        future = self._requests[ticket] = asyncio.get_running_loop().create_future()
        self._inbox.put(make(ticket))
        await future

    async def _drive(self) -> None:
        try:
            await drive(self._node, self._inbox, self._perform, self._clock, started=True)
        except Exception:
            log.exception("node.failed")
            for ticket in list(self._requests):
                self._end_request(events.Answer(ticket, Unavailable("the node failed; the log of the daemon says why")))

    def engine_is(self, error: str, certain: bool = False) -> None:
        """error: why this node's engine cannot be used, empty when it answers. certain: see agent EngineGone."""
        self._inbox.put(agent_events.EngineGone(error, certain) if error else agent_events.EngineBack())

    @property
    def autolock_trouble(self) -> str:
        """Why the disk is not yet encrypted as the cluster wants it; empty otherwise."""
        return self._identity.autolock.trouble

    def status(self) -> Status:
        """What this node is at the moment."""
        return self._node.status()

    # --- performing ------------------------------------------------------------------------------------------------

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Answer():
                self._end_request(effect)
            case events.TellAgent(event=event):
                if self._agent is not None:
                    self._agent.put(event)
            case events.SaveState(state=state):
                self._at_once(effect, lambda: self._file.save(state))
            case events.DropState():
                self._at_once(effect, self._file.drop)
            case events.SaveRoot(root_pem=root_pem):
                self._at_once(effect, lambda: self._identity.save_root(root_pem))
            case events.StopManager():
                self._later(effect, self._stop_manager())
            case _:
                self._later(effect, self._work(effect))

    async def _work(self, effect: events.TaggedEffect) -> Outcome:
        match effect:
            case events.ForgetLog():
                await asyncio.to_thread(erase_log, self.directory, self._files)
            case events.Erase():
                await self._erase()
            case events.MakeIdentity():
                return await self._identity.make(effect)
            case events.RequestIdentity():
                return await self._identity.request(effect)
            case events.OpenIdentity():
                return await self._identity.open(effect)
            case events.RenewCertificate():
                return await self._identity.renew(effect, self.manager)
            case events.StartManager():
                return await self._start_manager(effect)
            case events.AwaitLeadership():
                await self._running_manager().wait_leader(defaults.JOIN_WAIT_S)
            case events.WriteFirstObjects():
                await self._write_first_objects(effect)
            case events.StartAgent(node_id=node_id):
                await self._start_agent(node_id)
            case events.Describe():
                return await self._describe()
            case events.StopRoles():
                await self._stop_roles()
            case events.RemoveContainers(node_id=node_id):
                await self._remove_containers(node_id)
        return None

    def _at_once(self, effect: events.TaggedEffect, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self._inbox.put(events.Failed(effect.tag, error))
        else:
            self._inbox.put(events.Done(effect.tag))

    def _later(self, effect: events.TaggedEffect, work: Awaitable[Outcome]) -> None:
        task = asyncio.create_task(self._report(effect, work), name=type(effect).__name__)
        self._running[task] = effect
        task.add_done_callback(lambda _: self._running.pop(task, None))

    async def _report(self, effect: events.TaggedEffect, work: Awaitable[Outcome]) -> None:
        try:
            value = await work
        except (SwarmError, CertsError, OSError, TimeoutError) as error:
            self._inbox.put(events.Failed(effect.tag, error))
        except Exception as error:
            if not self._hooks.is_expected(error):
                log.exception("node.effect_failed", effect=type(effect).__name__)
            self._inbox.put(events.Failed(effect.tag, error))
        else:
            self._inbox.put(events.Done(effect.tag, value))

    def _end_request(self, answer: events.Answer) -> None:
        future = self._requests.pop(answer.ticket, None)
        if future is None or future.done():  # whoever asked does not wait any more
            return
        if answer.error is None:
            future.set_result(None)
        else:
            future.set_exception(answer.error)

    async def _stop_roles(self) -> None:
        """Everything this node runs ends; what is being performed first."""
        others = [task for task in self._running if task is not asyncio.current_task()]
        for task in others:
            if isinstance(self._running[task], _CANCELLED_AT_STOP):
                task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        supervisors, self._supervisors = self._supervisors, []
        for supervisor in supervisors:
            supervisor.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)
        journal, agent_and_runner = self._journal, (self._runner, self._agent)
        self._agent = self._runner = self._journal = None
        async with contextlib.AsyncExitStack() as last_first:  # one that fails does not keep the others
            if self.manager is not None:
                last_first.push_async_callback(self._stop_manager)
            if journal is not None:
                last_first.push_async_callback(asyncio.to_thread, journal.close)
            for part in agent_and_runner:
                if part is not None:
                    last_first.push_async_callback(part.close)

    async def _erase(self) -> None:
        self._identity.forget()
        await asyncio.to_thread(self._file.erase)

    # --- the manager -----------------------------------------------------------------------------------------------

    async def _start_manager(self, effect: events.StartManager) -> events.ManagerUp:
        state = effect.state
        settings = ManagerSettings(
            node_id=state.node_id,
            cluster_id=state.cluster_id,
            # 0.0.0.0: whoever leads sees where we come from; an empty host means themselves to stock leaders
            address=join_host_port(state.advertise_host or state.listen_host, state.advertise_port),
            listen_host=state.listen_host,
            listen_port=state.listen_port,
            raft_id=state.raft_id,
            past_raft_ids=state.past_raft_ids,
            mixed_leadership=self._hooks.mixed_leadership,
            replicas_max=self._hooks.replicas_max,
        )
        tls = (lambda: self._identity.server_context(self.manager)), self._identity.client_tls
        sealer = await self._identity.autolock.sealer()
        manager = ManagerProcess(
            self.directory, settings, *tls, self._clock, self._rng, sealer, self.counts, disk=self._files
        )
        manager.watchers.append(self._hooks.on_changes)
        await manager.start(effect.create, state.other_managers(), effect.force_new_cluster, effect.on_loss)
        self.manager = manager
        self._identity.autolock.attach(manager)
        self._supervise(self._watch_manager(manager, effect.tag))
        return events.ManagerUp(manager.raft_id)

    def _supervise(self, work: Awaitable[None]) -> None:
        self._supervisors = [task for task in self._supervisors if not task.done()]
        self._supervisors.append(asyncio.ensure_future(work))

    async def _watch_manager(self, manager: ManagerProcess, tag: int) -> None:
        removed = asyncio.ensure_future(manager.removed.wait())
        try:
            await asyncio.wait((removed, manager.failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            removed.cancel()
        error = manager.failed.exception() if manager.failed.done() else None
        failure = error if error is None or isinstance(error, Exception) else SwarmError(str(error))
        self._inbox.put(events.ManagerEnded(tag, manager.removed.is_set(), failure))

    async def _stop_manager(self) -> events.ManagerDown:
        manager, self.manager = self._running_manager(), None
        self._identity.autolock.attach(None)
        await manager.close()
        return events.ManagerDown(manager.raft_id, manager.others(), manager.removed.is_set())

    def _running_manager(self) -> ManagerProcess:
        if self.manager is None:
            raise Unavailable("this node's manager is not running")
        return self.manager

    async def _write_first_objects(self, effect: events.WriteFirstObjects) -> None:
        first = self._identity.first
        assert first is not None
        root, csr, certificate = first
        state, spec, details = effect.state, effect.spec, effect.details
        manager = self._running_manager()
        await manager.wait_leader(defaults.JOIN_WAIT_S)
        await manager.write(
            lambda tx: cluster.bootstrap(tx, state.cluster_id, state.node_id, spec, root, csr, certificate, details),
            defaults.JOIN_WAIT_S,
        )
        self._identity.first = None

    # --- agent and executor ----------------------------------------------------------------------------------------

    async def _start_agent(self, node_id: str) -> None:
        journal = self._journal = TaskJournal(self.directory / "tasks.db")
        put = self._inbox.put
        hooks = AgentHooks(self._connect, put, put, lambda: put(agent_events.Left()))
        make = partial(Agent, node_id, self._node.record.remotes, self._rng)
        agent = self._agent = AgentProcess(make, journal, hooks, self._clock)
        agent.runner = self._runner = await self._hooks.make_runner(node_id, agent)
        await agent.start()
        self._supervise(self._identity.autolock.run())

    async def _describe(self) -> api.NodeDescription:
        if self._runner is None:
            raise Unavailable("the executor does not run")
        return await self._runner.describe()

    async def _remove_containers(self, node_id: str) -> None:
        """By the executor of this node, or by one made for it when this node runs no more."""
        if self._runner is not None and node_id == self._node.record.node_id:
            await self._runner.remove_all(node_id)
        else:
            await self._hooks.remove_containers(node_id)

    async def _connect(self, effect: agent_events.Connect) -> Link:
        if (error := self._node.why_not_connect(effect)) is not None:
            raise error
        state = self._node.record.state
        if not effect.manager_addr:
            if state is None or self._node.record.identity is None:
                raise Unavailable("this node is in no swarm")
            addr = join_host_port(state.advertise_host, state.advertise_port)
            return LocalLink(self._running_manager().local, peer_of(self._node.record.identity.certificate_pem, addr))
        connection = await client.connect(effect.manager_addr, self._identity.client_tls(), defaults.RPC_DIAL_TIMEOUT_S)
        link = RemoteLink(connection)
        connection.closed.add_done_callback(lambda _: self._lost(link))
        return link

    def _lost(self, link: RemoteLink) -> None:
        if self._agent is not None:
            self._agent.connection_lost(link, "the connection to the manager broke")
