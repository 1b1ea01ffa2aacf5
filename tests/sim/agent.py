"""The agent of one simulated node: performs what the production machine wants, over simulated connections.

Drives swarm.agent.agent.Agent and swarm.agent.connection.ManagerConnection, beside an engine of the simulation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swarm import defaults
from swarm.agent import events as agent_events
from swarm.agent.agent import Agent, AgentEffect, AgentEvent
from swarm.agent.connection import ManagerConnection
from swarm.errors import SwarmError, Unavailable
from swarm.io.node.agent_process import LocalLink
from swarm.rpc import Call, StreamData, StreamEnd
from tests.sim.driver import Driver
from tests.sim.kernel import Script
from tests.sim.logs import Publisher
from tests.sim.network import Connection

if TYPE_CHECKING:
    from tests.sim.process import Process

Link = Connection | LocalLink


class SimAgent:
    """See swarm.io.node.agent_process.AgentProcess."""

    def __init__(self, process: Process, node_id: str) -> None:
        remotes, journal = process.machine.record.remotes, dict(process.disk.journal)
        agent = Agent(node_id, remotes, process.random("agent"), process.clock(), journal)
        self.driver: Driver[AgentEvent, AgentEffect] = Driver(process, "agent", agent, self._perform, lambda: None)
        self._process = process
        self._connection: ManagerConnection[Link] = ManagerConnection(self.put)
        self._publisher = Publisher(process, self.put)
        self._present: dict[str, None] = {}
        self._shown = b""  # the key of the certificate that the manager was shown
        process.node.engine.listener = self.put

    def close(self) -> None:
        """Drop the connection and hear nothing any more; containers go on."""
        self._connection.drop()
        self.driver.close()

    def put(self, event: AgentEvent) -> None:
        """An event for the agent."""
        self.driver.put(event)

    def _perform(self, effect: AgentEffect) -> None:
        match effect:
            case agent_events.Execute():
                self._process.kernel.say(self._process.name, effect.step.value, effect.task_id)
                self._present[effect.task_id] = None
                self._process.node.engine.execute(effect)
            case agent_events.CancelStep():
                self._process.node.engine.cancel(effect)
            case agent_events.Sweep(task_ids=task_ids):
                self._process.run(self._sweep(task_ids))
            case Call():
                self._connection.call(effect)
            case StreamData() | StreamEnd():
                self._connection.send(effect)
            case agent_events.Connect():
                self._connection.begin(effect)
                self._process.run(self._dial(effect))
            case agent_events.Disconnect():
                self._connection.drop()
            case agent_events.Journal(puts=puts, drops=drops):
                self._process.disk.write_journal(dict(puts), drops)
            case agent_events.SessionState(error=error):
                self._process.kernel.say(self._process.name, "session", error or "established")
                if not error:
                    self._process.world.holders.established(self._process.node_id, self._shown)
                self._process.driver.put(effect)
            case agent_events.SessionUpdate() | agent_events.Left():
                self._process.driver.put(effect)
            case agent_events.PublishLogs():
                self._publisher.publish(self._connection.link, effect)
            case agent_events.StopLogs(subscription_id=subscription_id):
                self._publisher.stop(subscription_id)

    def _sweep(self, known: tuple[str, ...]) -> Script:
        """See Executor.sweep: containers of tasks that begin meanwhile are spared."""
        yield self._process.kernel.sleep(0.05)
        while not self._process.node.engine.alive:
            yield self._process.kernel.sleep(defaults.EXECUTOR_RECHECK_S)
        for task_id in self._process.node.engine.sweep([*known, *self._present]):
            self._process.kernel.say(self._process.name, "swept", task_id)

    def _dial(self, effect: agent_events.Connect) -> Script:
        process, shown = self._process, self._process.identity.key
        try:
            if (error := process.machine.why_not_connect(effect)) is not None:
                raise error
            link: Link
            if effect.manager_addr:
                link = yield process.world.network.dial(process, effect.manager_addr, defaults.RPC_DIAL_TIMEOUT_S)
            elif process.manager is None:
                raise Unavailable("this node's manager is not running")
            else:
                peer = replace(process.identity, addr=process.addr)
                link = LocalLink(process.manager.local, peer)
        except SwarmError as problem:
            self._connection.failed(effect, str(problem))
            return
        self._shown = shown
        self._connection.connected(effect, link)
        if isinstance(link, Connection):
            link.closed.then(lambda: self._lost(link))

    def _lost(self, link: Link) -> None:
        if self._process.alive:
            self._connection.lost(link, "the connection to the manager broke")
