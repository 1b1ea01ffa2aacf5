"""The driver of a Manager machine in the simulation: performs what swarm/io/node/manager_process.py and peers.py do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from swarm import api
from swarm.api import raftpb
from swarm.api.methods import METHODS
from swarm.errors import PermissionDenied, SwarmError, Unavailable
from swarm.grpc.authorize import ClusterAuthorizer, overstays
from swarm.io.disk.raft_disk import Loaded
from swarm.io.node.local_calls import LocalCalls
from swarm.io.node.member_log import LOG_FILE, ManagerSettings, MemberLog
from swarm.manager import assemble
from swarm.manager.assemble import Group
from swarm.manager.certificates import is_blacklisted
from swarm.manager.events import (
    AskAuthority,
    AuthorityAnswered,
    Changed,
    CheckPeer,
    DialPeer,
    DisconnectRemovedNodes,
    EndCallsOfDemoted,
    FailLocalCalls,
    Forward,
    ForwardMore,
    Leadership,
    ManagerEffect,
    ManagerEvent,
    PeerChecked,
    PeerDialled,
    PersistFailed,
)
from swarm.manager.external_ca import Question
from swarm.manager.group import health, watch
from swarm.manager.manager import Manager
from swarm.manager.service import Write
from swarm.node.events import OnLoss
from swarm.node.state import NodeState
from swarm.raft import events
from swarm.raft.events import LogConflict, LogLost
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Change
from swarm.store.tx import Tx
from tests.sim.checkers import CheckedParts, CheckedRaft, CheckedStore
from tests.sim.driver import Driver
from tests.sim.kernel import Future, Script
from tests.sim.log_file import SimLogFile
from tests.sim.network import Answer, Connection, Listener, settle
from tests.sim.peer_watch import SimWatch
from tests.sim.peers import News, Peers, dial

if TYPE_CHECKING:
    from tests.sim.process import Process


class StopsAtLoss:
    """A machine that handles nothing any more once it found that its log cannot be trusted."""

    def __init__(self, manager: Manager, stopped: Callable[[SwarmError], None]) -> None:
        self.deadline = manager.deadline
        self._manager = manager
        self._stopped = stopped

    def handle(self, event: ManagerEvent | None, now: float) -> list[ManagerEffect]:
        """See Manager.handle. Other errors are faults of the machine."""
        try:
            return self._manager.handle(event, now)
        except (LogLost, LogConflict) as error:
            self._stopped(error)
            return []


class ManagerDriver:
    """See ManagerProcess."""

    def __init__(self, process: Process, state: NodeState) -> None:
        self.process, self.state = process, state
        self.kernel = process.kernel
        self.network = process.world.network
        self.cluster_id = process.identity.org
        self.authorizer = ClusterAuthorizer(self.cluster_id, self._is_blacklisted, self._why_no_manager)
        self.addr = process.addr
        self.checkers = process.world.checkers
        self.store = CheckedStore(self.checkers, process.name)
        self.driver: Driver[ManagerEvent, ManagerEffect] | None = None
        self.manager: Manager | None = None
        self.removed, self.failed = Future(), Future()
        self.watchers: list[Callable[[Sequence[Change]], None]] = []
        self.closed = False
        self.leadership = Leadership(leading=False, leader=0, term=0)
        self.streams = itertools.count(1)
        self.routes: dict[int, tuple[Connection, int, Peer]] = {}
        self.local = LocalCalls(self.incoming, self.streams)
        self.writing: events.Persist | None = None
        self._rng = process.random("manager")
        self._kinds = watch.Kinds({})
        self.peers: Peers | None = None
        self._peer_watch: SimWatch | None = None

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self, create: bool, join: Sequence[str], force_new_cluster: bool, on_loss: OnLoss) -> None:
        """See ManagerProcess.start."""
        self.network.listeners[self.addr] = self
        self.checkers.listens(self.process.node_id, self.addr)
        state = self.state
        settings = ManagerSettings(
            self.process.node_id, self.cluster_id, self.addr, "", 0, state.raft_id, state.past_raft_ids
        )
        reach = partial(dial, self.network, self.process)
        log = MemberLog(Path(LOG_FILE), SimLogFile(self.process), settings, reach, self._rng)

        def make(loaded: Loaded, raft_id: int, entries: tuple[raftpb.Entry, ...]) -> tuple[Manager, CheckedRaft]:
            if on_loss is OnLoss.ACCEPT:
                self.checkers.loss_accepted(raft_id, entries, loaded.applied_index)
            return self._make(loaded, raft_id, entries)

        try:
            manager, raft = await log.open(make, create, join, force_new_cluster, on_loss)
        except SwarmError:
            self.close()
            raise
        manager.recall({}, log.joined)
        self._run(manager, raft, join)

    def _make(self, loaded: Loaded, raft_id: int, entries: tuple[raftpb.Entry, ...]) -> tuple[Manager, CheckedRaft]:
        process, config = self.process, events.Config(raft_id=raft_id)
        self.checkers.promises.starts(raft_id, loaded)
        raft = CheckedRaft(
            config, self._rng, loaded.hard_state, loaded.snapshot, entries, loaded.applied_index, process.clock()
        )
        raft.watch(self.checkers, process.name, raft_id)
        group = Group(lambda: self.manager)
        real = assemble.parts(process.node_id, self.cluster_id, group, mixed_leadership=process.node.stock)
        parts = CheckedParts(real, self.cluster_id, self.checkers)
        manager = self.manager = Manager(raft, self.store, parts.parts(), self._rng, strict=True)
        if loaded.snapshot is not None:
            manager.restore(loaded.snapshot)
        return manager, raft

    def _run(self, manager: Manager, raft: CheckedRaft, managers: Sequence[str]) -> None:
        machine = StopsAtLoss(manager, self._fail)
        self.driver = Driver(self.process, "manager", machine, self._perform, raft.check)
        self.peers = Peers(self, self._report, managers)
        self.driver.start()
        self._peer_watch = SimWatch(manager.status, self.peers, self.put, self.kernel)
        self.peers.run(watch.watch(self._peer_watch, self._kinds))

    def _fail(self, error: SwarmError) -> None:
        """See ManagerProcess._run: nothing is called any more, and whoever started it is to stop it."""
        self.kernel.say(self.process.name, "manager fails:", error.message)
        self.local.fail_all(Unavailable("the manager stopped; its log says why"))
        if self.driver is not None:
            self.driver.close()
        self.failed.fail(error)

    def close(self) -> None:
        """See ManagerProcess.close; the disk keeps what it has."""
        if self.closed:
            return
        self.closed = True
        self.local.fail_all(Unavailable("the manager is stopping"))
        if self.network.listeners.get(self.addr) is self:
            del self.network.listeners[self.addr]
        for connection in self._connections():
            connection.shut()
        if self.peers is not None:
            self.peers.close()
        if self.driver is not None:
            self.driver.close()

    def _connections(self) -> list[Connection]:
        """Those that others have to this manager."""
        return [connection for connection in self.process.connections.values() if connection.server is self]

    def others(self) -> tuple[tuple[str, str], ...]:
        """See ManagerProcess.others."""
        assert self.manager is not None
        return tuple((member.node_id, member.addr) for member in self.manager.status().others)

    async def hand_over(self) -> None:
        """See watch.hand_over."""
        if self.manager is not None:
            await watch.hand_over(self.manager.status(), self.put, self._wait_deposed)

    async def _wait_deposed(self, timeout_s: float) -> None:
        end = self.kernel.now + timeout_s
        while self.leadership.leading and self.kernel.now < end and not self.closed:
            await self.kernel.sleep(0.02)

    def die(self, torn: bool) -> None:
        """The process is gone; torn: the write under way reached the disk all the same."""
        self.closed = True
        if self.network.listeners.get(self.addr) is self:
            del self.network.listeners[self.addr]
        image = self.process.disk.raft
        if self.writing is not None and not image.being_replaced:
            image.write(self.writing, killed=True) if torn else image.begin(self.writing)
        if self.peers is not None:
            self.peers.die()
        if self.driver is not None:
            self.driver.close()

    # --- what comes in -----------------------------------------------------------------------------------------------

    def incoming(self, word: Call | StreamData | StreamEnd) -> None:
        """See ManagerProcess._incoming."""
        if self.driver is None:
            if isinstance(word, Call):
                self.deliver(health.answer_early(word))
        else:
            self.driver.put(word)

    def _is_blacklisted(self, node_id: str) -> bool:
        """See ManagerProcess."""
        return is_blacklisted(self.store, self.cluster_id, node_id)

    def _why_no_manager(self, peer: Peer) -> str:
        """See ManagerProcess. Stock managers judge by the certificate alone."""
        if self.process.node.stock or self.manager is None:
            return ""
        return self.manager.judge.why_no_manager(peer)

    def put(self, event: ManagerEvent) -> None:
        """An event for the machine, if there is one."""
        if self.driver is not None:
            self.driver.put(event)

    def raft_message(self, message: raftpb.Message, caller: Peer, listener: Listener) -> None:
        """A message of the log, as one call; its answer goes to the listener."""
        if self.closed:
            return
        try:
            self.authorizer(METHODS["Raft/ProcessRaftMessage"], caller, {})
        except SwarmError as error:
            listener(StreamEnd(0, error))
            return
        request = api.ProcessRaftMessageRequest(message=message)
        self.local.open("Raft/ProcessRaftMessage", request, caller, listener)

    def call(self, method: str, request: Message, limit_s: float, peer: Peer = LOCAL) -> Script:
        """A unary call of this process (LocalCalls.unary)."""
        future = Future()
        stream = self.local.open(method, request, peer, lambda answer: settle(future, answer))
        self.kernel.within(future, limit_s)
        try:
            return (yield future)
        finally:
            self.local.cancel(stream)

    def write(self, run: Callable[[Tx], None], limit_s: float) -> Script:
        """See ManagerProcess.write."""
        future = Future()

        def done(_: Message | None, error: SwarmError | None) -> Sequence[Reply]:
            future.resolve() if error is None else future.fail(error)
            return ()

        def run_it(tx: Tx) -> None:
            run(tx)

        self.put(Write(run_it, done=done))
        yield self.kernel.within(future, limit_s)

    # --- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, effect: ManagerEffect) -> None:
        assert self.manager is not None
        assert self.peers is not None
        members = self.manager.group.members
        match effect:
            case StreamData(stream=stream, message=message):
                if stream in self.routes and self.manager.leading:  # others pass on what their leader says
                    self.checkers.sent(self.store, self.routes[stream][2], message)
                self.deliver(effect)
            case Reply() | StreamEnd():
                self.deliver(effect)
            case events.Send(message=message):
                peers = self.manager.group.peers
                if message.to in peers:
                    self.checkers.sends_to(peers[message.to])
                self.peers.send(message, peers, self.manager.group.callers)
            case Forward():
                self.peers.forward(effect)
            case ForwardMore():
                self.peers.more(effect)
            case CheckPeer():
                self.peers.run(self._check_joiner(effect))
            case DialPeer():
                self.peers.run(self._dial(effect))
            case AskAuthority(tag=tag, question=question):
                self.network.kernel.at(self.network.delay(), lambda: self._asked(tag, question))
            case events.MembershipChanged():
                self.peers.keep_only(members)
                if self._peer_watch is not None:
                    self._peer_watch.members_changed()
            case events.Removed():
                self.removed.resolve()
            case events.Persist():
                assert self.writing is None, "two writes at a time"
                self.writing = effect
                self._persist(effect)
            case Leadership(leading=leading, term=term):
                self.leadership = effect
                if leading:
                    self.kernel.say(self.process.name, "leads", term)
            case FailLocalCalls(error=error):
                self.local.fail_all(error)
            case DisconnectRemovedNodes():
                for connection in self._connections():
                    if self._is_blacklisted(node_id := connection.peer.node_id):
                        self.kernel.say(self.process.name, "drops", node_id)
                        connection.drop(PermissionDenied(f"Permission denied: node {node_id} was removed from swarm"))
            case EndCallsOfDemoted():
                rules = self._is_blacklisted, self._why_no_manager
                for connection in self._connections():
                    connection.end_calls(lambda method, peer: overstays(method, peer, *rules))
            case Changed(changes=changes):
                self._changed(changes)
            case events.Restore():
                self._changed(())

    def _changed(self, changes: Sequence[Change]) -> None:
        """See ManagerProcess._changed; without changes everything was replaced."""
        for watcher in self.watchers:
            watcher(changes)

    def _asked(self, tag: int, question: Question) -> None:
        """See ManagerProcess._ask_authority."""
        outcome = self.process.world.authority.answer(question, self.process.clock())
        self.kernel.at(self.network.delay(), lambda: self.put(AuthorityAnswered(tag, outcome)))

    def deliver(self, answer: Answer) -> None:
        """To the caller, wherever it is."""
        if self.local.deliver(answer):
            return
        route = self.routes.get(answer.stream)
        if route is not None:
            connection, client_stream, _ = route
            connection.answer(answer.stream, client_stream, answer)

    def _persist(self, effect: events.Persist) -> None:
        if not self.closed:
            mean_s = self.process.world.disk_s(self.process.node)
            self.kernel.at(self.kernel.rng.expovariate(1 / mean_s), lambda: self._persisted(effect))

    def _persisted(self, effect: events.Persist) -> None:
        if self.closed:
            return
        self.writing = None
        error = self.process.disk.write_log(effect)
        self.put(PersistFailed(effect, error) if error else events.Persisted(effect.token))

    # --- other members ---------------------------------------------------------------------------------------------

    def is_ours(self, raft_id: int) -> bool:
        """See ManagerProcess._is_ours."""
        return self._kinds.is_ours(raft_id)

    def _report(self, event: News) -> None:
        if isinstance(event, events.Removed):
            self.removed.resolve()
        else:
            self.put(event)

    def _check_joiner(self, effect: CheckPeer) -> Script:
        assert self.peers is not None
        error, ours = yield self.peers.run(self.peers.check(effect.addr))
        self.put(PeerChecked(effect.stream, error, ours))

    def _dial(self, effect: DialPeer) -> Script:
        assert self.peers is not None
        error, _ = yield self.peers.run(self.peers.check(effect.addr, effect.node_id))
        self.kernel.say(self.process.name, "dialled", effect.addr, error or "found")
        self.put(PeerDialled(effect.raft_id, effect.addr, error))
