"""Everything around one Manager machine: its disk, its port 2377, its clock, and calls from this process.

(swarmkit: manager/manager.go Run)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random
from ssl import SSLContext

import structlog
from google.protobuf.message import Message

from certs.files import SYSTEM, Files
from certs.tls import ClientTls
from swarm import api
from swarm.address import host_of
from swarm.api import raftpb
from swarm.api.methods import Method, Req, Res
from swarm.errors import SwarmError, Unavailable
from swarm.grpc.authorize import ClusterAuthorizer, overstays
from swarm.io.counts import Counts
from swarm.io.disk.raft_disk import Loaded, RaftDisk
from swarm.io.grpc.server import RpcServer
from swarm.io.node.backpressure import Backpressure, Flow
from swarm.io.node.call_flow import CallFlow
from swarm.io.node.external_authority import ask_authority
from swarm.io.node.local_calls import LocalCalls
from swarm.io.node.member_log import LOG_FILE, ManagerSettings, MemberLog, RaftDiskInThreads
from swarm.io.node.peer_link import News
from swarm.io.node.peer_watch import PeerWatch, load_kinds
from swarm.io.node.peers import Peers, dialler
from swarm.io.process import Clock, Inbox, drive
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
from swarm.manager.external_ca import Outcome
from swarm.manager.group import health, watch
from swarm.manager.group.watch import Kinds
from swarm.manager.manager import Manager
from swarm.manager.node_keys import is_superseded
from swarm.manager.service import Write
from swarm.node.events import OnLoss
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.raft.records import Sealer
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store
from swarm.store.tx import Tx

log = structlog.get_logger()


class ManagerProcess:
    """One manager. After start() it may be called; close() ends it and leaves the disk, its log, as it is."""

    def __init__(
        self,
        directory: Path,
        settings: ManagerSettings,
        tls_context: Callable[[], SSLContext],
        client_tls: Callable[[], ClientTls],
        clock: Clock,
        rng: Random,
        sealer: Sealer | None = None,
        counts: Counts | None = None,
        disk: Files = SYSTEM,
    ) -> None:
        self.settings = settings
        self.store = Store()
        self.manager: Manager | None = None
        self.watchers: list[Callable[[Sequence[Change]], None]] = []
        self.leadership = Leadership(leading=False, leader=0, term=0)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.removed = asyncio.Event()
        self.peers: Peers | None = None
        self._client_tls = client_tls
        self._clock = clock
        self._rng = rng
        self._inbox: Inbox[ManagerEvent] = Inbox()
        self._streams = itertools.count(1)
        self._counts = counts or Counts()
        self._parts = assemble.parts(
            settings.node_id,
            settings.cluster_id,
            Group(lambda: self.manager),
            settings.mixed_leadership,
            settings.replicas_max,
            self._counts.superseded_keys,
        )
        self.local = LocalCalls(
            self._incoming, self._streams, lambda stream: self._calls.taken(stream), self._counts.unread_bytes
        )
        self.disk = RaftDisk(directory / LOG_FILE, sealer, files=disk)
        """Raft's."""
        threads = RaftDiskInThreads(self.disk)
        self._log = MemberLog(directory / LOG_FILE, threads, settings, dialler(client_tls), rng)
        authorizer = ClusterAuthorizer(settings.cluster_id, self._is_blacklisted, self._why_no_manager)
        errors = self._counts.certificate_errors
        self._server = RpcServer(self._incoming, tls_context, authorizer, self._streams, self._hosts_of_members, errors)
        self._calls = CallFlow(self._server, self.local)
        self._flow = Backpressure(self._calls.pause, self._calls.resume, self._calls.waiting_bytes)
        self._leading = asyncio.Event()
        self._deposed = asyncio.Event()
        self._peer_watch: PeerWatch | None = None
        self._kinds = Kinds({})
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._checks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        create: bool,
        join: Sequence[str] = (),
        force_new_cluster: bool = False,
        on_loss: OnLoss = OnLoss.REFUSE,
    ) -> None:
        """Listen and begin. create: the disk is empty and this is the first manager of a new cluster.

        join: addresses of managers of the group to become a member of, when this disk has no membership yet.
        force_new_cluster: go on with what is on disk as the only member of the group. on_loss: see OnLoss.
        Raises OSError when the address cannot be bound, SwarmError when the disk is not usable or nobody lets us in;
        LogLost when the disk does not hold what this member confirmed.
        """
        await self._server.listen(self.settings.listen_host, self.settings.listen_port)
        try:
            manager = await self._log.open(self._make, create, join, force_new_cluster, on_loss)
        except BaseException:
            await self._server.close(0)
            await asyncio.to_thread(self.disk.close)
            raise
        self.peers = Peers(self._client_tls, self._report, self._kinds.is_ours, join, self._is_superseded)
        self._peer_watch = PeerWatch(manager.status, self.peers, self._inbox.put, self._kinds, self.disk)
        self.manager = self._calls.manager = manager
        self._calls.peers = self.peers
        self._task = asyncio.create_task(self._run(), name="manager")
        self._watch = asyncio.create_task(watch.watch(self._peer_watch, self._kinds), name="peers")

    def _make(self, loaded: Loaded, raft_id: int, entries: tuple[raftpb.Entry, ...]) -> Manager:
        config, now = events.Config(raft_id=raft_id), self._clock.now()
        raft = Raft(config, self._rng, loaded.hard_state, loaded.snapshot, entries, loaded.applied_index, now)
        manager = Manager(raft, self.store, self._parts, self._rng)
        if loaded.snapshot is not None:
            manager.restore(loaded.snapshot)
        self._kinds = load_kinds(loaded)
        manager.recall(self._kinds.known, self._log.joined)
        return manager

    def _report(self, event: News) -> None:
        """What became of a message to another member."""
        if isinstance(event, events.Removed):
            self.removed.set()
        else:
            self._inbox.put(event)

    def _incoming(self, word: Call | StreamData | StreamEnd) -> None:
        """A word of a caller. All go through the inbox: more of a call must not overtake its beginning."""
        if self.manager is not None and self.peers is not None:
            self._inbox.put(word)
            if isinstance(word, StreamData):
                self._flow.came(word.stream)
        elif isinstance(word, Call):
            self._deliver(health.answer_early(word))

    async def _run(self) -> None:
        assert self.manager is not None
        assert self.peers is not None
        try:
            await drive(Flow(self.manager, self._flow), self._inbox, self._perform, self._clock)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("manager.failed")
            self.local.fail_all(Unavailable("the manager stopped; its log says why"))
            if not self.failed.done():
                self.failed.set_exception(error)

    async def close(self) -> None:
        """Stop; open calls fail. A leader hands over first, if there is somebody to hand over to."""
        if self.manager is not None:
            await watch.hand_over(self.manager.status(), self._inbox.put, self._wait_deposed)
        self.local.fail_all(Unavailable("the manager is stopping"))
        await self._server.close(1.0)
        self._flow.stop()
        for task in (self._task, self._watch, *self._checks):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.peers is not None:
            await self.peers.close()
        await asyncio.to_thread(self.disk.close)

    # --- calls of this process -------------------------------------------------------------------------------------

    @property
    def raft_id(self) -> int:
        """This member of the group; after start()."""
        assert self.manager is not None
        return self.manager.raft.config.raft_id

    def others(self) -> tuple[tuple[str, str], ...]:
        """(node ID, "ip:port") of the other members as far as the log tells; after start()."""
        assert self.manager is not None
        return tuple((member.node_id, member.addr) for member in self.manager.status().others)

    @property
    def has_leader(self) -> bool:
        """Whether this manager leads or knows who does."""
        return self.leadership.leading or self.leadership.leader != 0

    async def wait_leader(self, timeout_s: float) -> None:
        """Until this manager leads. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._leading.wait()

    async def _wait_deposed(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._deposed.wait()

    async def write(self, run: Callable[[Tx], None], timeout_s: float) -> None:
        """One change of the cluster by this process; returns when it is committed. Raises SwarmError, TimeoutError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_: Message | None, error: SwarmError | None) -> Sequence[Reply]:
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)
            return ()

        def run_it(tx: Tx) -> None:
            run(tx)

        self._inbox.put(Write(run_it, done=done))
        async with asyncio.timeout(timeout_s):
            await future

    async def call(self, method: Method[Req, Res], request: Req, timeout_s: float, since: float | None = None) -> Res:
        """A unary call of this process. since: as in Call."""
        return await self.local.unary(method, request, timeout_s, since=since)

    def stream(self, method: Method[Req, Res], request: Req, peer: Peer = LOCAL) -> AsyncIterator[Res]:
        """A server-streaming call to this manager."""
        return self.local.stream(method, request, peer)

    # --- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, effect: ManagerEffect) -> None:
        match effect:
            case Reply() | StreamData() | StreamEnd():
                self._deliver(effect)
            case events.Send(message=message):
                assert self.manager is not None
                assert self.peers is not None
                self.peers.send(message, *self.manager.destinations())
            case Forward():
                assert self.peers is not None
                self.peers.forward(effect)
            case ForwardMore(word=word):
                assert self.peers is not None
                self.peers.more(effect)
                if isinstance(word, StreamData):
                    self._flow.forwarded(word.stream)
            case CheckPeer() | DialPeer():
                task = asyncio.create_task(self._check(effect))
                self._checks.add(task)
                task.add_done_callback(self._checks.discard)
            case AskAuthority():
                asking = asyncio.create_task(self._ask_authority(effect))
                self._checks.add(asking)
                asking.add_done_callback(self._checks.discard)
            case events.MembershipChanged():
                if self._peer_watch is not None:
                    self._peer_watch.members_changed()
                if self.manager is not None and self.peers is not None:
                    self.peers.keep_only(self.manager.destinations()[0])
            case events.Removed():
                log.info("raft.removed")
                self.removed.set()
            case events.Restore():
                self._changed(())  # the manager has taken it in; nobody knows what is different
            case events.Persist():
                self._write_log(effect)
            case Changed(changes=changes):
                self._changed(changes)
            case FailLocalCalls(error=error):
                self.local.fail_all(error)
            case DisconnectRemovedNodes():
                self._server.drop_nodes(self._is_blacklisted)
            case EndCallsOfDemoted():
                self._server.end_calls(lambda it, who: overstays(it, who, self._is_blacklisted, self._why_no_manager))
            case Leadership():
                self._lead(effect)
            case _:
                log.warning("manager.effect_without_effect", effect=type(effect).__name__)

    def _lead(self, leadership: Leadership) -> None:
        self.leadership = leadership
        if leadership.leading:
            log.info("manager.leading", term=leadership.term)
            self._leading.set()
            self._deposed.clear()
        else:
            self._leading.clear()
            self._deposed.set()

    def _changed(self, changes: Sequence[Change]) -> None:
        """Without changes everything was replaced."""
        for watcher in self.watchers:
            watcher(changes)

    def _deliver(self, answer: Reply | StreamData | StreamEnd) -> None:
        if not self.local.deliver(answer):
            self._server.send(answer)

    async def _check(self, effect: CheckPeer | DialPeer) -> None:
        assert self.peers is not None
        if isinstance(effect, DialPeer):
            error, _ = await self.peers.check(effect.addr, effect.node_id)
            self._inbox.put(PeerDialled(effect.raft_id, effect.addr, error))
            return
        error, ours = await self.peers.check(effect.addr)
        self._inbox.put(PeerChecked(effect.stream, error, ours))

    async def _ask_authority(self, effect: AskAuthority) -> None:
        """As this node: external authorities know it by its certificate."""
        credentials, outcome = self._client_tls().credentials, Outcome(error="this node has no certificate")
        if credentials is not None:
            outcome = await ask_authority(effect.question, credentials, self._counts.external_ca)
        self._inbox.put(AuthorityAnswered(effect.tag, outcome))

    def _write_log(self, effect: events.Persist) -> None:
        if self.leadership.leading:
            # the way to the followers' disks is longer than the one to ours, and threads share the interpreter
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._persist, effect)
        else:
            self._persist(effect)

    def _persist(self, effect: events.Persist) -> None:
        def done(error: Exception | None) -> None:
            self._inbox.put(events.Persisted(effect.token) if error is None else PersistFailed(effect, str(error)))

        self.disk.submit(effect, done)

    def _is_blacklisted(self, node_id: str) -> bool:
        return is_blacklisted(self.store, self.settings.cluster_id, node_id)

    def _is_superseded(self, peer: Peer) -> bool:
        return is_superseded(self.store, peer)

    def _why_no_manager(self, peer: Peer) -> str:
        return "" if self.manager is None else self.manager.judge.why_no_manager(peer)

    def _hosts_of_members(self) -> list[str]:
        """The addresses where nodes and managers are said to be, for RpcServer."""
        managers = () if self.manager is None else self.manager.members()
        hosts = [host_of(member.found_at) for member in managers]
        return hosts + [node.status.addr for node in self.store.all(api.Node)]
