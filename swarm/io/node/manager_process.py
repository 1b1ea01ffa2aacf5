"""Everything around one Manager machine: its disk, its port 2377, its clock, and calls from this process.

(swarmkit: manager/manager.go Run)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from ssl import SSLContext

import structlog
from google.protobuf.message import Message

from certs import files
from certs.files import SYSTEM, Files
from certs.tls import ClientTls
from swarm import api, defaults
from swarm.address import host_of
from swarm.api import raftpb
from swarm.api.methods import Method, Req, Res
from swarm.errors import FailedPrecondition, JoinUndecided, SwarmError, Unavailable
from swarm.grpc.authorize import ClusterAuthorizer, overstays
from swarm.io.counts import Counts
from swarm.io.disk import mark, replaced_file
from swarm.io.disk.database import DiskCorrupt, DiskError
from swarm.io.disk.raft_disk import Loaded, RaftDisk
from swarm.io.grpc.server import RpcServer
from swarm.io.node.backpressure import Backpressure, Flow
from swarm.io.node.call_flow import CallFlow
from swarm.io.node.external_authority import ask_authority
from swarm.io.node.local_calls import LocalCalls
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
from swarm.manager.group import dialogues, health, watch
from swarm.manager.group.watch import Kinds
from swarm.manager.manager import Manager
from swarm.manager.service import Write
from swarm.node.events import OnLoss
from swarm.raft import events, membership
from swarm.raft.events import LogConflict, LogLost
from swarm.raft.raft import Raft
from swarm.raft.records import Sealer
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store
from swarm.store.tx import Tx

log = structlog.get_logger()

LOG_FILE = "raft.db"
LOG_GONE = "{}: the manager's log is gone"
LOG_REFUSED = "{}. This node must not go on as the manager it was"
JOINS_AGAIN = (
    "It asks the other managers to let it join again as a new member, and deletes this log then. If none of them is "
    "left, `docker swarm init --force-new-cluster` goes on with what can be read here, and accepts the loss"
)
LEAVE_AND_JOIN = (
    "{}: it cannot be told as which member of its group this node wrote this log. Run `docker swarm leave --force` "
    "here, demote and remove this node on another manager, then join again"
)
NOTHING_LEFT = (
    "Nothing is left to go on with: restore the whole directory from a backup, or give the swarm up with "
    "`docker swarm leave --force`"
)
ON_ITS_OWN = (
    "It knows no other manager. `docker swarm init --force-new-cluster` goes on with what can be read, and accepts the "
    "loss; or restore the whole directory from a backup; or `docker swarm leave --force` gives the swarm up"
)


@dataclass(frozen=True)
class ManagerSettings:
    """Who this manager is. address: "ip:port" that others use; listen: host and port to bind.

    raft_id: the member whose log must be on disk; 0: none is expected. past_raft_ids: members that it was, and must not
    become again without their log. mixed_leadership: it may lead stock managers. replicas_max: how many
    tasks one service may ask for.
    """

    node_id: str
    cluster_id: str
    address: str
    listen_host: str
    listen_port: int
    raft_id: int = 0
    past_raft_ids: tuple[int, ...] = ()
    mixed_leadership: bool = False
    replicas_max: int = defaults.SERVICE_REPLICAS_MAX


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
        self._parts = assemble.parts(
            settings.node_id,
            settings.cluster_id,
            Group(lambda: self.manager),
            settings.mixed_leadership,
            settings.replicas_max,
        )
        self._clock = clock
        self._rng = rng
        self._inbox: Inbox[ManagerEvent] = Inbox()
        self._streams = itertools.count(1)
        self.local = LocalCalls(self._incoming, self._streams, lambda stream: self._calls.taken(stream))
        self._file = directory / LOG_FILE
        self.disk = RaftDisk(self._file, sealer, files=disk)
        authorizer = ClusterAuthorizer(settings.cluster_id, self._is_blacklisted, self._why_no_manager)
        self._counts = counts or Counts()
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
        self._joined: list[api.RaftMember] = []
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
            try:
                manager = await self._begin(create, join, force_new_cluster, on_loss)
            except (DiskCorrupt, LogConflict, LogLost) as error:
                advice = JOINS_AGAIN if join else NOTHING_LEFT if on_loss is OnLoss.ACCEPT else ON_ITS_OWN
                raise LogLost(f"{LOG_REFUSED.format(error.message)}. {advice}") from error
        except BaseException:
            await self._server.close(0)
            await asyncio.to_thread(self.disk.close)
            raise
        self.peers = Peers(self._client_tls, self._report, self._kinds.is_ours, join)
        self._peer_watch = PeerWatch(manager.status, self.peers, self._inbox.put, self._kinds, self.disk)
        self.manager = self._calls.manager = manager
        self._calls.peers = self.peers
        self._task = asyncio.create_task(self._run(), name="manager")
        self._watch = asyncio.create_task(watch.watch(self._peer_watch, self._kinds), name="peers")

    async def _begin(self, create: bool, join: Sequence[str], force_new_cluster: bool, on_loss: OnLoss) -> Manager:
        if on_loss is OnLoss.REJOIN:
            raft_id = await self._rejoin(join)
            return self._make(Loaded(), raft_id, ())
        if force_new_cluster:
            loaded = await asyncio.to_thread(self._force_new_cluster, on_loss)
        else:
            loaded = self._ours(await asyncio.to_thread(self.disk.load))
        if create:
            raft_id, entries = await asyncio.to_thread(self._found)
        elif loaded.raft_id:
            raft_id, entries = loaded.raft_id, loaded.entries
        else:
            # the group counts on us from the moment it takes us in, so the server answers before that
            raft_id, entries = await self._join(join), ()
        return self._make(loaded, raft_id, entries)

    def _ours(self, loaded: Loaded) -> Loaded:
        """Raises LogLost if it is not the log of the member that this node was last."""
        settings = self.settings
        if not settings.raft_id or loaded.raft_id == settings.raft_id:
            return loaded
        joined_again = loaded.raft_id not in (0, *settings.past_raft_ids)  # and was killed before it noted that
        if joined_again and (loaded.node_id, loaded.cluster_id) == (settings.node_id, settings.cluster_id):
            return loaded
        raise LogLost(LOG_GONE.format(self._file))

    def _found(self) -> tuple[int, tuple[raftpb.Entry, ...]]:
        """A new group with this node as its only member."""
        raft_id = self._rng.getrandbits(62) + 1
        self.disk.initialize(raft_id, self.settings.node_id, self.settings.cluster_id)
        member = api.RaftMember(raft_id=raft_id, node_id=self.settings.node_id, addr=self.settings.address)
        return raft_id, membership.bootstrap_entries(raft_id, member.SerializeToString())

    def _force_new_cluster(self, on_loss: OnLoss) -> Loaded:
        """Make this member the only one, under its present address. Raises SwarmError."""
        accepts = on_loss is OnLoss.ACCEPT
        found, lost = self.disk.salvage() if accepts else (self.disk.load(), "")
        loaded = self._ours(found)
        if loaded.hard_state is None:
            raise LogLost(LOG_GONE.format(self._file))
        raft_id = loaded.raft_id
        member = api.RaftMember(raft_id=raft_id, node_id=self.settings.node_id, addr=self.settings.address)
        hard_state, entries = membership.force_new_cluster(
            raft_id, member.SerializeToString(), loaded.hard_state, loaded.snapshot, loaded.entries
        )
        if accepts:
            log.warning("raft.loss_accepted", file=str(self._file), lost=lost or "nothing that was confirmed")
            self.disk.start_over(replace(loaded, hard_state=hard_state, entries=(*loaded.entries, *entries)))
        else:
            self.disk.save(events.Persist(0, hard_state, entries))
        log.warning("raft.new_cluster_forced", entries=len(entries))
        return self.disk.load()

    async def _join(self, managers: Sequence[str]) -> int:
        """Become a member through any of the managers. Raises SwarmError; see dialogues.join."""
        settings = self.settings
        answer = await self._ask_in(managers, settings.past_raft_ids)
        try:
            await asyncio.to_thread(self.disk.initialize, answer.raft_id, settings.node_id, settings.cluster_id)
        except DiskError as error:
            raise JoinUndecided(str(error)) from error  # the group counts on us already
        return answer.raft_id

    async def _rejoin(self, managers: Sequence[str]) -> int:
        """Become another member. The old log stays until the group took us in: it may be the best that is left."""
        settings = self.settings
        was = {settings.raft_id, await asyncio.to_thread(self.disk.confirmed_as)} - {0}
        if not was:
            raise FailedPrecondition(LEAVE_AND_JOIN.format(self._file))
        answer = await self._ask_in(managers, (*settings.past_raft_ids, *sorted(was)))
        new = Loaded(answer.raft_id, settings.node_id, settings.cluster_id)
        await asyncio.to_thread(self.disk.start_over, new)
        return answer.raft_id

    async def _ask_in(self, managers: Sequence[str], past_raft_ids: tuple[int, ...]) -> api.JoinResponse:
        settings = self.settings
        dial = dialler(self._client_tls)
        answer = await dialogues.join(managers, settings.node_id, settings.address, past_raft_ids, dial)
        self._joined = list(answer.members)
        return answer

    def _make(self, loaded: Loaded, raft_id: int, entries: tuple[raftpb.Entry, ...]) -> Manager:
        config, now = events.Config(raft_id=raft_id), self._clock.now()
        raft = Raft(config, self._rng, loaded.hard_state, loaded.snapshot, entries, loaded.applied_index, now)
        manager = Manager(raft, self.store, self._parts, self._rng)
        if loaded.snapshot is not None:
            manager.restore(loaded.snapshot)
        self._kinds = load_kinds(loaded)
        manager.recall(self._kinds.known, self._joined)
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

    def _why_no_manager(self, peer: Peer) -> str:
        return "" if self.manager is None else self.manager.judge.why_no_manager(peer)

    def _hosts_of_members(self) -> list[str]:
        """The addresses where nodes and managers are said to be, for RpcServer."""
        managers = () if self.manager is None else self.manager.members()
        hosts = [host_of(member.found_at) for member in managers]
        return hosts + [node.status.addr for node in self.store.all(api.Node)]


def erase_log(directory: Path, disk: Files = SYSTEM) -> None:
    """Forget the log and membership of a manager that does not run. Blocks. Raises OSError."""
    file = directory / LOG_FILE
    files.remove(replaced_file.with_logs(file), disk)
    files.remove([mark.mark_of(file)], disk)  # not before the rest: what is left after a crash is refused
    replaced_file.discard(file, disk)
