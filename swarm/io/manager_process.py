"""Everything around one Manager machine: its disk, its port 2377, its clock, and calls from this process.

(swarmkit: manager/manager.go Run)
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from ssl import SSLContext

import structlog
from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api.methods import Method
from swarm.errors import SwarmError, Unavailable
from swarm.io.authorize import authorize, forwarded_peer, is_forwarded
from swarm.io.disk import RaftDisk
from swarm.io.local_calls import LocalCalls
from swarm.io.process import Clock, Inbox, drive
from swarm.io.rpc_server import RpcServer
from swarm.manager import assemble
from swarm.manager.assemble import Group
from swarm.manager.certificates import is_blacklisted
from swarm.manager.manager import Changed, Leadership, Manager, ManagerEffect, ManagerEvent
from swarm.manager.service import Write
from swarm.raft import words
from swarm.raft.membership import bootstrap_entries
from swarm.raft.raft import Raft
from swarm.rpc import LOCAL, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Change, Store
from swarm.store.tx import Tx

log = structlog.get_logger()


@dataclass(frozen=True)
class ManagerSettings:
    """Who this manager is. address: "ip:port" that others use; listen: host and port to bind."""

    node_id: str
    cluster_id: str
    address: str
    listen_host: str
    listen_port: int


class ManagerProcess:
    """One manager. After start() it may be called; close() ends it and leaves the disk as it is."""

    def __init__(
        self,
        directory: Path,
        settings: ManagerSettings,
        tls_context: Callable[[], SSLContext],
        clock: Clock,
        rng: Random,
    ) -> None:
        self.settings = settings
        self.store = Store()
        self.manager: Manager | None = None
        self.watchers: list[Callable[[Sequence[Change]], None]] = []
        self.leadership = Leadership(leading=False, leader=0, term=0)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parts = assemble.parts(settings.node_id, settings.cluster_id, Group(lambda: self.manager))
        self._clock = clock
        self._rng = rng
        self._inbox: Inbox[ManagerEvent] = Inbox()
        self._streams = itertools.count(1)
        self.local = LocalCalls(self._inbox.put, self._streams)
        self._disk = RaftDisk(directory / "raft.db")
        self._server = RpcServer(self._inbox.put, tls_context, self._authorize, self._streams)
        self._leading = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._disk_error = ""
        self._retry: asyncio.TimerHandle | None = None

    async def start(self, create: bool) -> None:
        """Listen and begin. create: the disk is empty and this is the first manager of a new cluster.

        Raises OSError when the address cannot be bound, SwarmError when the disk is not usable.
        """
        await self._server.listen(self.settings.listen_host, self.settings.listen_port)
        try:
            self.manager = await asyncio.to_thread(self._load, create)
        except BaseException:
            await self._server.close(0)
            self._disk.close()
            raise
        self._task = asyncio.create_task(self._run(), name="manager")

    def _load(self, create: bool) -> Manager:
        loaded = self._disk.load()
        entries = loaded.entries
        if create:
            raft_id = self._rng.getrandbits(62) + 1
            self._disk.initialize(raft_id, self.settings.node_id, self.settings.cluster_id)
            member = api.RaftMember(raft_id=raft_id, node_id=self.settings.node_id, addr=self.settings.address)
            entries = bootstrap_entries(raft_id, member.SerializeToString())
        else:
            raft_id = loaded.raft_id
        config = words.Config(raft_id=raft_id)
        raft = Raft(
            config, self._rng, loaded.hard_state, loaded.snapshot, entries, loaded.applied_index, self._clock.now()
        )
        manager = Manager(raft, self.store, self._parts, self._rng)
        if loaded.snapshot is not None:
            manager.restore(loaded.snapshot)
        return manager

    async def _run(self) -> None:
        assert self.manager is not None
        try:
            await drive(self.manager, self._inbox, self._perform, self._clock)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("manager.failed")
            self.local.fail_all(Unavailable("the manager stopped; its log says why"))
            if not self.failed.done():
                self.failed.set_exception(error)

    async def close(self) -> None:
        """Stop; open calls fail."""
        self.local.fail_all(Unavailable("the manager is stopping"))
        await self._server.close(1.0)
        if self._retry is not None:
            self._retry.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._disk.close)

    # --- calls of this process -------------------------------------------------------------------------------------

    async def wait_leader(self, timeout_s: float) -> None:
        """Until this manager leads. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._leading.wait()

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

    async def call(self, method: str, request: Message, timeout_s: float, peer: Peer = LOCAL) -> Message:
        """A unary call to this manager."""
        if self._disk_error and method in self._parts.writes:
            raise Unavailable(self._disk_error)
        return await self.local.unary(method, request, timeout_s, peer)

    def stream(self, method: str, request: Message, peer: Peer = LOCAL) -> AsyncIterator[Message]:
        """A server-streaming call to this manager."""
        return self.local.stream(method, request, peer)

    # --- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, effect: ManagerEffect) -> None:
        match effect:
            case Reply() | StreamData() | StreamEnd():
                if not self.local.deliver(effect):
                    self._server.send(effect)
            case words.Persist():
                self._persist(effect)
            case Changed(changes=changes):
                for watcher in self.watchers:
                    watcher(changes)
            case Leadership(leading=leading):
                self.leadership = effect
                if leading:
                    log.info("manager.leading", term=effect.term)
                    self._leading.set()
                else:
                    self._leading.clear()
            case _:
                log.warning("manager.effect_without_effect", effect=type(effect).__name__)

    def _persist(self, effect: words.Persist) -> None:
        self._disk.submit(effect, lambda error: self._persisted(effect, error))

    def _persisted(self, effect: words.Persist, error: Exception | None) -> None:
        if error is None:
            if self._disk_error:
                log.info("raft.disk_recovered")
            self._disk_error = ""
            self._inbox.put(words.Persisted(effect.token))
            return
        # nothing was written and nothing is acknowledged; who waits is told why, and the same write is tried again
        if not self._disk_error:
            log.error("raft.disk_failed", error=str(error), retry_s=defaults.DISK_RETRY_S)
        self._disk_error = f"the manager cannot write its log: {error}"
        self.local.fail_all(Unavailable(self._disk_error))
        self._retry = asyncio.get_running_loop().call_later(defaults.DISK_RETRY_S, self._persist, effect)

    def _authorize(self, method: Method, direct: Peer, metadata: Mapping[str, tuple[str, ...]]) -> Peer:
        """Who the caller is, for RpcServer. Raises PermissionDenied."""
        forwarded = forwarded_peer(metadata, direct) if is_forwarded(metadata) else None
        return authorize(method, direct, forwarded, self.settings.cluster_id, self._is_blacklisted)

    def _is_blacklisted(self, node_id: str) -> bool:
        return is_blacklisted(self.store, self.settings.cluster_id, node_id)
