"""Drives Agent, Dispatcher and LogBroker on virtual time, with fake engines and a network that loses connections."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from google.protobuf.message import Message

from swarm import api
from swarm.agent.agent import Agent, AgentEffect, AgentEvent
from swarm.agent.events import (
    CancelStep,
    Connect,
    Connected,
    ConnectionLost,
    Described,
    Disconnect,
    Execute,
    Journal,
    SessionState,
)
from swarm.errors import NotLeader
from swarm.manager.dispatcher.assignments import dependencies_of
from swarm.manager.dispatcher.dispatcher import Dispatcher
from swarm.manager.logbroker import LogBroker
from swarm.manager.service import Service, Write
from swarm.node.remotes import Remotes
from swarm.rpc import WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Store, copy_of
from swarm.store.tx import Tx
from tests.swarm.agent.engine import Engine

MANAGER = ("m1", "10.0.0.1:2377")


@dataclass
class Connection:
    """One connection of one agent, with its streams: the agent's number to the manager's."""

    number: int
    streams: dict[int, int] = field(default_factory=dict)
    open: bool = True
    last: dict[str, float] = field(default_factory=dict)


@dataclass
class Node:
    """A machine: engine, journal and, while it runs, an agent."""

    node_id: str
    engine: Engine
    journal: dict[str, bytes] = field(default_factory=dict)
    agent: Agent | None = None
    life: int = 0
    connection: Connection | None = None
    hostname: str = ""
    plugged: bool = True
    wake_at: float | None = None
    effects: list[AgentEffect] = field(default_factory=list)


class AgentWorld:
    """Drives agents, a Dispatcher and a LogBroker from one seed; ``trace`` is what happened."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.now = 1000.0
        self.rng = Random(f"{seed}/world")
        self.trace: list[str] = []
        self.store = Store()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._server_streams = 0
        self._routes: dict[int, tuple[Node, Connection, int]] = {}
        self._service_of: dict[int, Service] = {}
        self.managers = [MANAGER]
        self.replies: list[Any] = []
        self.services: list[Service] = []
        self._term = 0
        self._uncommitted: list[tuple[Service, Write]] = []
        self._last_commit = 0.0
        self.write(self._cluster)
        self.nodes = [self._node(f"n{i}", seed) for i in range(nodes)]
        self.elect()

    # --- time ------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while True:
            wakes: list[tuple[float, int]] = []
            if self._heap:
                wakes.append((self._heap[0][0], -1))
            wakes += [(d, i) for i, s in enumerate(self.services) if (d := s.deadline()) is not None]
            offset = len(self.services)
            for i, node in enumerate(self.nodes):
                if node.agent is not None and (d := node.agent.deadline()) is not None:
                    wakes.append((d, offset + i))
            if not wakes or min(wakes)[0] > end:
                break
            due, who = min(wakes)
            self.now = max(self.now, due)
            if who == -1:
                heapq.heappop(self._heap)[2]()
            elif who < offset:
                self._serve(self.services[who], self.services[who].wake(self.now))
            else:
                self.tell(self.nodes[who - offset], None)
        self.now = end

    def log(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now:.3f} {text}")

    # --- the manager -----------------------------------------------------------------------------------------------

    def elect(self) -> None:
        """A new leader takes over: the streams of the old one end, and what it had not committed fails."""
        self._term += 1
        for service in self.services:
            self._serve(service, service.stop())
        for service, write in self._uncommitted:
            assert write.done is not None
            self._serve(service, write.done(None, NotLeader()))
        self._uncommitted.clear()
        self.log("leader")
        rng = Random(f"{self._term}/leader")
        dispatcher = Dispatcher(self.store, self.now, rng, MANAGER[0], lambda: list(self.managers))
        self.services = [dispatcher, LogBroker(self.store, self.now, rng)]

    def write(self, change: Callable[[Tx], object]) -> None:
        """Change the cluster, as other components would."""
        self._commit(change)

    def _commit(
        self, change: Callable[[Tx], object], service: Service | None = None, write: Write | None = None
    ) -> None:
        tx = Tx(self.store, self.now, self.rng)
        change(tx)
        changes = self.store.apply(tx.actions(), self.store.index + 1)
        for c in changes:
            if isinstance(c.after, api.Task):
                if isinstance(c.before, api.Task):
                    assert c.after.status.state >= c.before.status.state, "a status went backwards"
                self.log(f"store {c.object_id} {c.after.status.state} {c.after.status.err}")
            elif isinstance(c.after, api.Node):
                self.log(f"store {c.object_id} node {c.after.status.state}")
        if service is not None and write is not None and write.done is not None:
            self._serve(service, write.done(None, None))
        for other in self.services:
            self._serve(other, other.committed(changes, self.now))

    def _submit(self, service: Service, write: Write) -> None:
        """Commit after a while, unless the leader is another one by then."""
        term, item = self._term, (service, write)
        self._uncommitted.append(item)

        def commit() -> None:
            if self._term == term:
                self._uncommitted.remove(item)
                self._commit(write.run, service, write)

        at = self._last_commit = max(self._last_commit, self.now + self.rng.uniform(0.0, 0.03))
        self.after(at - self.now, commit)

    def call(self, stream: int, method: str, request: Message) -> None:
        """A call of an API client; answers go to ``replies``."""
        service = next(s for s in self.services if method in s.methods)
        self._serve(service, service.handle(Call(stream, method, request), self.now))

    def _serve(self, service: Service, effects: Sequence[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Write):
                self._submit(service, effect)
            elif effect.stream in self._routes:
                node, connection, stream = self._routes[effect.stream]
                if isinstance(effect, StreamData):
                    self._check_secrets(node, effect.message)
                self._to_agent(node, connection, stream, effect)
            else:
                self.replies.append(effect)

    def _check_secrets(self, node: Node, message: Message) -> None:
        if not isinstance(message, api.AssignmentsMessage):
            return
        needed = {key for t in self.store.find(api.Task, "node", node.node_id) for key in dependencies_of(t)}
        for change in message.changes:
            if change.assignment.WhichOneof("item") == "secret" and change.action == api.AssignmentChange.UPDATE:
                assert (api.SECRET, change.assignment.secret.id) in needed, "a secret leaked"

    # --- agents ----------------------------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        """Start the agent's process from its journal."""
        node.life += 1
        remotes = Remotes([MANAGER])
        rng = Random(f"{node.node_id}/{node.life}")
        node.agent = Agent(node.node_id, remotes, rng, self.now, dict(node.journal))
        self.describe(node)

    def crash(self, node: Node) -> None:
        """Kill the agent's process; its engine and journal stay."""
        self.log(f"crash {node.node_id}")
        node.agent = None
        node.engine.forget_steps()
        self._drop(node, detect_s=self.rng.uniform(0.0, 3.0))

    def describe(self, node: Node) -> None:
        """Tell the agent what its node has."""
        self.tell(node, Described(api.NodeDescription(hostname=node.hostname)))

    def cut(self, node: Node) -> None:
        """Break the present connection; each side notices after a delay of its own."""
        connection = node.connection
        if connection is None:
            return
        self.log(f"cut {node.node_id}")
        self._drop(node, detect_s=self.rng.uniform(0.0, 3.0))
        life = node.life

        def notice() -> None:
            if node.life == life and node.agent is not None:
                self.tell(node, ConnectionLost(connection.number, "connection reset"))

        self.after(self.rng.uniform(0.0, 3.0), notice)

    def tell(self, node: Node, event: AgentEvent | None) -> None:
        """Feed one agent and perform what it wants."""
        if node.agent is None:
            return
        for effect in node.agent.handle(event, self.now):
            node.effects.append(effect)
            self._perform(node, effect)

    def _perform(self, node: Node, effect: AgentEffect) -> None:
        if isinstance(effect, Journal):
            node.journal.update(effect.puts)
            for task_id in effect.drops:
                node.journal.pop(task_id, None)
        elif isinstance(effect, Execute):
            self.log(f"{node.node_id} {effect.task_id} {effect.step.value}")
            node.engine.execute(effect)
        elif isinstance(effect, CancelStep):
            node.engine.cancel(effect)
        elif isinstance(effect, Connect):
            self._connect(node, effect)
        elif isinstance(effect, Disconnect):
            self._drop(node, detect_s=self.rng.uniform(0.0, 0.2))
        elif isinstance(effect, SessionState):
            self.log(f"{node.node_id} session {effect.error or 'established'}")
        elif isinstance(effect, Call | StreamEnd) and node.connection is not None:
            self._to_manager(node, node.connection, effect)

    def _connect(self, node: Node, effect: Connect) -> None:
        life, connection = node.life, Connection(effect.connection)
        node.connection = connection

        def answer() -> None:
            if node.life != life or node.agent is None or not connection.open:
                return
            if node.plugged:
                self.tell(node, Connected(connection.number))
            else:
                self.tell(node, ConnectionLost(connection.number, "no route to host"))

        self.after(self.rng.uniform(0.001, 0.1), answer)

    def _drop(self, node: Node, detect_s: float) -> None:
        """The connection is gone; the manager notices after a while, what is under way may still arrive."""
        connection, node.connection = node.connection, None
        if connection is None:
            return
        connection.open = False
        for server_stream in list(connection.streams.values()):
            self.after(detect_s, lambda s=server_stream: self._hang_up(s))  # type: ignore[misc]

    def _hang_up(self, server_stream: int) -> None:
        self._routes.pop(server_stream, None)
        service = self._service_of.pop(server_stream, None)
        if service is not None and service in self.services:
            self._serve(service, service.handle(StreamEnd(server_stream), self.now))

    def _in_order(self, connection: Connection, way: str, action: Callable[[], None]) -> None:
        at = max(self.now + self.rng.uniform(0.001, 0.05), connection.last.get(way, 0.0))
        connection.last[way] = at
        self.after(at - self.now, action)

    def _to_manager(self, node: Node, connection: Connection, effect: Call | StreamEnd) -> None:
        if isinstance(effect, Call):
            self._server_streams += 1
            connection.streams[effect.stream] = self._server_streams
            self._routes[self._server_streams] = (node, connection, effect.stream)
        server_stream = connection.streams.get(effect.stream)
        if server_stream is None or not node.plugged:
            return

        def deliver() -> None:
            if isinstance(effect, StreamEnd):
                self._hang_up(server_stream)
                return
            service = next((s for s in self.services if effect.method in s.methods), None)
            if service is None or server_stream not in self._routes:
                return
            self._service_of[server_stream] = service
            peer = Peer(node.node_id, WORKER_ROLE, "org", f"10.0.1.{node.node_id[1:]}:4444")
            request = copy_of(effect.request) if effect.request is not None else None
            self._serve(service, service.handle(Call(server_stream, effect.method, request, peer), self.now))

        self._in_order(connection, "up", deliver)

    def _to_agent(
        self, node: Node, connection: Connection, stream: int, effect: Reply | StreamData | StreamEnd
    ) -> None:
        life = node.life
        late = not connection.open
        if isinstance(effect, Reply | StreamEnd):
            server_stream = connection.streams.get(stream, -1)
            self._routes.pop(server_stream, None)
            self._service_of.pop(server_stream, None)
        if late and self.rng.random() < 0.5:
            return

        def deliver() -> None:
            if node.life != life or not node.plugged:
                return
            if isinstance(effect, StreamEnd):
                self.tell(node, StreamEnd(stream, effect.error))
            else:
                self.tell(node, type(effect)(stream, copy_of(effect.message)))

        self._in_order(connection, "down", deliver)

    # --- set-up ----------------------------------------------------------------------------------------------------

    def _cluster(self, tx: Tx) -> None:
        cluster = api.Cluster(id="cluster")
        cluster.spec.annotations.name = "default"
        cluster.root_ca.ca_cert = b"ROOT"
        cluster.network_bootstrap_keys.add(subsystem="networking:gossip", key=b"k" * 16, lamport_time=1)
        tx.create(cluster)

    def _node(self, node_id: str, seed: int) -> Node:
        self.write(lambda tx: tx.create(api.Node(id=node_id)))
        node = Node(node_id, Engine(Random(f"{seed}/{node_id}"), self.after, lambda e: self.tell(node, e)))
        node.hostname = f"host-{node_id}"
        return node


def make_task(task_id: str, node_id: str, secrets: Sequence[str] = (), service_id: str = "s1") -> api.Task:
    """A task as the scheduler leaves it."""
    task = api.Task(id=task_id, node_id=node_id, service_id=service_id, slot=1, desired_state=api.RUNNING)
    task.spec.container.image = "busybox"
    for secret_id in secrets:
        task.spec.container.secrets.add(secret_id=secret_id)
    task.status.state = api.ASSIGNED
    task.status.message = "scheduler assigned task to node"
    return task
