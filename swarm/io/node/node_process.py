"""One node of a swarm in this process: its identity, its agent, and its manager if it is one.

    create() or join() or resume() -> running ... -> close() keeps everything on disk, erase() forgets it

The certificate says which role this node has. The agent's session brings what managers want of it: a new root, a new
certificate, other managers; what is learnt is written to disk before it is relied upon.

(swarmkit: node/node.go)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from ssl import SSLContext
from typing import Any

import structlog

from certs.errors import CertsError
from certs.keys import identity_of, new_csr, new_private_key, private_key_pem
from certs.keystore import CERTIFICATE_FILE, Kek, KeyStore, Locked, Present
from certs.renewal import Failed, Renew, Renewal, Renewed, RenewNow, RightRole
from certs.root import RootCA
from certs.tls import ClientTls, Credentials, member_context
from swarm import api, defaults
from swarm.address import join_host_port
from swarm.agent import events
from swarm.agent.agent import Agent
from swarm.errors import JoinUndecided, SwarmError, Unavailable
from swarm.io import counters
from swarm.io.disk.raft_disk import TaskJournal
from swarm.io.grpc import client
from swarm.io.node import bootstrap, own_certificate
from swarm.io.node.agent_process import AgentHooks, AgentProcess, Link, LocalLink, RemoteLink
from swarm.io.node.autolock import Autolock, NodeLocked
from swarm.io.node.hooks import NodeHooks, Runner
from swarm.io.node.manager_process import LOG_FILE, ManagerProcess, ManagerSettings, erase_log
from swarm.io.process import Clock, Inbox, drive, within
from swarm.manager import cluster
from swarm.manager.root_rotation import trusted_roots
from swarm.node.remotes import Remotes
from swarm.node.state import NodeState
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Peer

log = structlog.get_logger()

STATE_FILE = "state.json"


class NodeProcess:
    """See the module. Attributes are read by the daemon: state, role, session_error, manager, autolock.

    trouble: why the manager of this node does not run although it should; empty otherwise. certificate_trouble: why
    managers do not accept this node, when it is a matter of its certificate's time or of clocks; empty otherwise.
    """

    def __init__(self, directory: Path, hooks: NodeHooks, clock: Clock, rng: Random) -> None:
        self.directory = directory
        self.state: NodeState | None = None
        self.role = ""
        self.session_error = ""
        self.trouble = ""
        self.certificate_trouble = ""
        self.manager: ManagerProcess | None = None
        self.ready = asyncio.Event()
        self._hooks = hooks
        self._clock = clock
        self._rng = rng
        self._keys = KeyStore(directory / "certificates")
        self._root_pem = b""
        self._credentials: Credentials | None = None
        self._context: tuple[bytes, Credentials, SSLContext] | None = None
        self._changed = asyncio.Event()
        self._remotes = Remotes()
        self._agent: AgentProcess | None = None
        self._runner: Runner | None = None
        self._journal: TaskJournal | None = None
        self._unable = ""
        self._renewals: Inbox[RenewNow | RightRole | Renewed | Failed] = Inbox()
        self.autolock = Autolock(self._keys, directory / LOG_FILE, rng, lambda: self._renewals.put(RenewNow()))
        self._tasks: list[asyncio.Task[None]] = []
        self._renewing: asyncio.Task[None] | None = None
        self._role_changed = asyncio.Event()
        self._expelled = False
        self._left = asyncio.Event()

    # --- life cycle ------------------------------------------------------------------------------------------------

    async def create(self, state: NodeState, spec: api.ClusterSpec, details: cluster.NewCluster) -> None:
        """Make a new cluster of which this node is the manager. Raises OSError (address), SwarmError, TimeoutError."""
        now = self._clock.now()
        root = await asyncio.to_thread(RootCA.create, now)
        key = new_private_key()
        csr = new_csr(key)
        expiry_s = cluster.complete_spec(spec).ca_config.node_cert_expiry.ToSeconds()
        certificate = root.sign(csr, state.node_id, MANAGER_ROLE, state.cluster_id, now, expiry_s)
        credentials = Credentials(certificate, private_key_pem(key))
        self._keys.save_root(root.bundle_pem)
        self._keys.save(credentials, Kek(details.unlock_key))
        self._adopt(root.bundle_pem, credentials)
        self.state = state
        await self._start_manager(create=True)
        assert self.manager is not None
        await self.manager.wait_leader(defaults.JOIN_WAIT_S)
        await self.manager.write(
            lambda tx: cluster.bootstrap(tx, state.cluster_id, state.node_id, spec, root, csr, certificate, details),
            defaults.JOIN_WAIT_S,
        )
        self._save_state(self.state)
        await self._start_agent()
        self._supervise()

    async def join(self, state: NodeState, token: str, availability: int) -> None:
        """Get a certificate from the managers in ``state``, then start. Raises SwarmError or CertsError."""
        addresses = [addr for _, addr in state.managers]
        joined = await bootstrap.join(addresses, token, availability, self._rng)
        identity = identity_of(joined.credentials.certificate_pem)
        self._keys.save_root(joined.root_pem)
        self._keys.save(joined.credentials, joined.kek)
        self._adopt(joined.root_pem, joined.credentials)
        self.state = replace(state, node_id=identity.node_id, cluster_id=identity.org)
        self._save_state(self.state)
        if self.role == MANAGER_ROLE:
            with contextlib.suppress(JoinUndecided):  # to give up may cost the group its quorum: _keep_roles asks again
                await self._start_manager(create=False)
        await self._start_agent()
        self._supervise()

    @staticmethod
    def saved(directory: Path) -> NodeState | None:
        """The state of the node that lives in ``directory``, if one does. Raises StateDamaged, OSError."""
        file = directory / STATE_FILE
        return NodeState.from_json(file.read_text(errors="replace")) if file.exists() else None

    @staticmethod
    def saved_id(directory: Path) -> str:
        """ID of the node that lived in ``directory``, from whatever of it can be read; empty when nothing can."""
        with contextlib.suppress(SwarmError, OSError):
            state = NodeProcess.saved(directory)
            if state is not None:
                return state.node_id
        with contextlib.suppress(CertsError, OSError):
            return identity_of((directory / "certificates" / CERTIFICATE_FILE).read_bytes()).node_id
        return ""

    async def resume(self, state: NodeState, unlock_key: bytes = b"", force_new_cluster: bool = False) -> None:
        """Go on from the disk, as the only manager if that is forced.

        Raises NodeLocked without the unlock key that is needed, InvalidUnlockKey, SwarmError, CertsError, OSError.
        """
        found = self._keys.load()
        await asyncio.to_thread(self.autolock.recover, isinstance(found, Locked))
        if isinstance(found, Locked):
            if not unlock_key:
                raise NodeLocked("the key of this node is encrypted")
            found = self._keys.load(unlock_key)
        if not isinstance(found, Present):
            raise SwarmError("the node's key or certificate is missing")
        self._adopt(found.root_pem, found.credentials)
        self.state = state
        if self.role != MANAGER_ROLE and state.raft_id:  # killed after its demotion, before it forgot the log
            self._save_state(state.without_log(state.raft_id, ()))
            await asyncio.to_thread(erase_log, self.directory)
        if self.role == MANAGER_ROLE and state.raft_id:
            # who has no log yet joins the group when the others can be reached (_keep_roles)
            await self._start_manager(create=False, force_new_cluster=force_new_cluster)
        if force_new_cluster:
            assert self.manager is not None
            await self.manager.wait_leader(defaults.JOIN_WAIT_S)
            self._save_state(self.state)
        await self._start_agent()
        self._supervise()

    async def close(self) -> None:
        """Stop everything; the disk keeps it all."""
        for task in (*self._tasks, *((self._renewing,) if self._renewing else ())):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._agent is not None:
            await self._agent.close()
        if self._runner is not None:
            await self._runner.close()
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)
        if self.manager is not None:
            await self.manager.close()
        self._agent = self._runner = self._journal = self.manager = None

    async def leave(self, timeout_s: float) -> None:
        """Stop all tasks and remove what was made for them, then close and forget everything on disk.

        Raises what the runner raises when the engine does not answer; all else is done then.
        """
        self._drop_state()
        if self._agent is not None and not self._unable:
            self._agent.put(events.Leave())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._left.wait()
        try:
            if self._runner is not None:
                await self._runner.remove_all(self.node_id)
        finally:
            await self.close()
            await asyncio.to_thread(self.erase)

    def erase(self) -> None:
        """Forget everything on disk, the commit point first."""
        self._drop_state()
        shutil.rmtree(self.directory, ignore_errors=True)

    def set_able(self, error: str, certain: bool = False) -> None:
        """With an error this node cannot run tasks and leaves its session (certain: see EngineGone); empty: it can."""
        before, self._unable = self._unable, error
        if self._agent is None or bool(before) == bool(error):
            return
        self._agent.put(events.EngineGone(error, certain) if error else events.EngineBack())

    # --- what the daemon asks ----------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """This node's ID, empty before it has one."""
        return self.state.node_id if self.state is not None else ""

    @property
    def unlock_key(self) -> bytes:
        """What resume() will need; empty: nothing."""
        return self._keys.kek.key

    def known_managers(self) -> tuple[tuple[str, str], ...]:
        """(node ID, "ip:port") of the managers that this node knows."""
        return tuple(self._remotes.managers())

    # --- identity --------------------------------------------------------------------------------------------------

    def _adopt(self, root_pem: bytes, credentials: Credentials) -> None:
        """Use this root and this certificate from now on, also for connections to come of a running server."""
        identity = identity_of(credentials.certificate_pem)
        self.role = identity.role
        if credentials != self._credentials:
            self._expelled = False
        self._root_pem, self._credentials = root_pem, credentials
        self._changed.set()
        self._role_changed.set()

    def _save_state(self, state: NodeState) -> None:
        self.state = state
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / STATE_FILE
        temporary = file.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as writing:
            writing.write(state.to_json())
            writing.flush()
            os.fsync(writing.fileno())
        temporary.replace(file)

    def _drop_state(self) -> None:
        (self.directory / STATE_FILE).unlink(missing_ok=True)

    def _tls_context(self) -> SSLContext:
        """For the server: who connects may come from the old or the new root of a rotation, before we follow it."""
        assert self._credentials is not None
        found = next(self.manager.store.all(api.Cluster), None) if self.manager is not None else None
        trusted = trusted_roots(self._root_pem, found.root_ca if found is not None else api.RootCA())
        if self._context is None or self._context[:2] != (trusted, self._credentials):
            self._context = (trusted, self._credentials, member_context(self._credentials, trusted))
        return self._context[2]

    def _client_tls(self) -> ClientTls:
        return ClientTls("swarm-manager", self._root_pem, self._credentials)

    # --- roles -----------------------------------------------------------------------------------------------------

    async def _start_manager(self, create: bool, force_new_cluster: bool = False) -> None:
        assert self.state is not None
        settings = ManagerSettings(
            node_id=self.state.node_id,
            cluster_id=self.state.cluster_id,
            # 0.0.0.0: whoever leads sees where we come from; an empty host means themselves to stock leaders
            address=join_host_port(self.state.advertise_host or self.state.listen_host, self.state.advertise_port),
            listen_host=self.state.listen_host,
            listen_port=self.state.listen_port,
            raft_id=self.state.raft_id,
            past_raft_ids=self.state.past_raft_ids,
            mixed_leadership=self._hooks.mixed_leadership,
        )
        tls = self._tls_context, self._client_tls
        sealer = await self.autolock.sealer()
        manager = ManagerProcess(self.directory, settings, *tls, self._clock, self._rng, sealer)
        manager.watchers.append(self._hooks.on_changes)
        await manager.start(create, self.state.other_managers(), force_new_cluster)
        self.manager = manager
        self.autolock.attach(manager)
        self.trouble = ""
        self.state = replace(self.state, raft_id=manager.raft_id)
        if not create:
            self._save_state(self.state)
        if self._agent is not None:
            self._agent.put(events.LocalManager(running=True))

    def _supervise(self) -> None:
        self._tasks.append(asyncio.create_task(self._keep_roles(), name="roles"))
        self._tasks.append(asyncio.create_task(self.autolock.run(), name="autolock"))

    async def _keep_roles(self) -> None:
        """Run a manager while, and only while, the certificate says so; start one again that failed."""
        failures = 0
        while True:
            try:
                if self.manager is not None:
                    started_at = self._clock.now()
                    await self._manager_over()
                    if self._clock.now() - started_at > defaults.ROLE_START_PAUSE_MAX_S:
                        failures = 0
                elif self.role == MANAGER_ROLE and not self._expelled:
                    await self._start_manager(create=False)
                else:
                    self._role_changed.clear()
                    await self._role_changed.wait()
            except (SwarmError, CertsError, OSError, TimeoutError) as error:
                failures = min(failures + 1, 20)
                pause_s = min(defaults.ROLE_START_PAUSE_MAX_S, defaults.ROLE_START_PAUSE_S * 2**failures)
                self.trouble = f"manager stopped: {error}"
                log.error("manager.stopped", error=str(error), retry_s=pause_s)
                await asyncio.sleep(pause_s)

    async def _manager_over(self) -> None:
        """Wait until the running manager must stop, then stop it; forget its log if it is no member any more."""
        manager = self.manager
        assert manager is not None
        changed = asyncio.ensure_future(self._role_changed.wait())
        removed = asyncio.ensure_future(manager.removed.wait())
        try:
            while self.role == MANAGER_ROLE and not removed.done() and not manager.failed.done():
                self._role_changed.clear()
                if changed.done():
                    changed = asyncio.ensure_future(self._role_changed.wait())
                waiting: set[asyncio.Future[Any]] = {changed, removed, manager.failed}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            removed.cancel()
        failure = manager.failed.exception() if manager.failed.done() else None
        self.manager = None
        self.autolock.attach(None)
        if self._agent is not None:
            self._agent.put(events.LocalManager(running=False))
        await manager.close()
        if self.role != MANAGER_ROLE or manager.removed.is_set():
            log.info("manager.stopped", role=self.role, removed=manager.removed.is_set())
            assert self.state is not None
            self._save_state(self.state.without_log(manager.raft_id, manager.others()))
            self._remotes.learn(self.state.managers)
            await asyncio.to_thread(manager.erase)  # after that: a log that is expected must be there
            if self.role == MANAGER_ROLE:
                # thrown out: no manager again before a new certificate says so, and that is not one that was under way
                self._expelled = True
                self._renewals.put(RenewNow())
                await within(defaults.ROLE_CHANGE_WAIT_S, self._role_changed, lambda: self.role != MANAGER_ROLE)
        elif failure is not None:
            raise failure if isinstance(failure, SwarmError) else SwarmError(str(failure))

    async def _start_agent(self) -> None:
        assert self.state is not None
        self._journal = TaskJournal(self.directory / "tasks.db")
        self._remotes = Remotes(self.state.managers)
        make = partial(Agent, self.state.node_id, self._remotes, self._rng)
        hooks = AgentHooks(self._connect, self._on_session, self._on_update, self._left.set)
        self._agent = AgentProcess(make, self._journal, hooks, self._clock)
        self._runner = await self._hooks.make_runner(self.state.node_id, self._agent)
        self._agent.runner = self._runner
        await self._agent.start()
        self._agent.put(events.LocalManager(running=self.manager is not None))
        assert self._credentials is not None
        renewal = Renewal(*own_certificate.validity(self._credentials.certificate_pem), self._rng)
        self._tasks = [
            asyncio.create_task(self._describe(), name="describe"),
            asyncio.create_task(drive(renewal, self._renewals, self._renew, self._clock), name="renewal"),
        ]

    async def _describe(self) -> None:
        """Keep telling the agent what this node has, at once after a change of its certificate or root."""
        assert self._runner is not None
        assert self._agent is not None
        assert self._credentials is not None
        while True:
            try:
                description = await self._runner.describe()
            except Exception as error:
                log.warning("node.not_described", error=str(error))
                await asyncio.sleep(1.0)
                continue
            self._changed.clear()
            certificate_pem = self._credentials.certificate_pem
            description.tls_info.CopyFrom(own_certificate.tls_info(self._root_pem, certificate_pem))
            self._agent.put(events.Described(description))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(defaults.DESCRIPTION_REFRESH_S):
                    await self._changed.wait()

    # --- the agent's wishes ----------------------------------------------------------------------------------------

    async def _connect(self, effect: events.Connect) -> Link:
        if self._unable:
            raise Unavailable(self._unable)
        if not effect.manager_addr:
            if self.manager is None or self.state is None:
                raise Unavailable("this node's manager is not running")
            addr = join_host_port(self.state.advertise_host, self.state.advertise_port)
            peer = Peer(self.state.node_id, self.role, self.state.cluster_id, addr)
            return LocalLink(self.manager.local, peer)
        connection = await client.connect(effect.manager_addr, self._client_tls(), defaults.RPC_DIAL_TIMEOUT_S)
        link = RemoteLink(connection)
        connection.closed.add_done_callback(lambda _: self._lost(link))
        return link

    def _lost(self, link: RemoteLink) -> None:
        if self._agent is not None:
            self._agent.connection_lost(link, "the connection to the manager broke")

    def _on_session(self, session: events.SessionState) -> None:
        self.session_error = session.error
        if session.error:
            log.warning("session.failed", error=session.error)
            self._note_trouble(session.error)
        else:
            self.certificate_trouble = ""
            log.info("session.established", session=session.session_id)
            self.ready.set()

    def _on_update(self, update: events.SessionUpdate) -> None:
        assert self.state is not None
        try:
            if update.root_ca and update.root_ca != self._root_pem:
                self._take_root(update.root_ca)
            if update.managers and update.managers != self.state.managers:
                self._save_state(replace(self.state, managers=update.managers))
        except OSError as error:
            log.error("node.not_saved", error=str(error))  # the next update brings it again
        if update.node.role == update.node.spec.desired_role:
            wanted = MANAGER_ROLE if update.node.role == api.MANAGER else WORKER_ROLE
            self._renewals.put(RenewNow(wanted) if wanted != self.role else RightRole())
        if update.node.certificate.status.state == api.IssuanceStatus.ROTATE:
            self._renewals.put(RenewNow())

    def _take_root(self, root_pem: bytes) -> None:
        """Trust a new root, if the certificate in use verifies under it (swarmkit: node.superviseManager)."""
        assert self._credentials is not None
        try:
            RootCA(root_pem, None).verify(self._credentials.certificate_pem, self._clock.now(), allow_expired=True)
        except CertsError as error:
            log.warning("node.root_refused", error=str(error))
            return
        self._keys.save_root(root_pem)
        self._adopt(root_pem, self._credentials)

    def _note_trouble(self, error: str) -> None:
        assert self._credentials is not None
        self.certificate_trouble = own_certificate.trouble(error, self._credentials.certificate_pem, self._clock.now())

    # --- certificates ----------------------------------------------------------------------------------------------

    def _renew(self, _: Renew) -> None:
        self._renewing = asyncio.create_task(self._renew_once(), name="renew")

    async def _renew_once(self) -> None:
        try:
            await self._replace_certificate()
        except (SwarmError, CertsError, OSError, TimeoutError) as error:
            log.warning("certificate.not_renewed", error=str(error))
            counters.RENEWALS.labels(outcome="failed").inc()
            self._note_trouble(str(error))
            self._renewals.put(Failed())

    async def _replace_certificate(self) -> None:
        own, managers, root_pem = self._credentials, self._remotes.managers(), self._root_pem
        assert own is not None
        issued = await own_certificate.renew(self.manager, managers, root_pem, own, self._rng, self._clock.now())
        if issued.root_pem != root_pem:
            self._keys.save_root(issued.root_pem)
            self._root_pem = issued.root_pem
        async with self.autolock.writing:
            if identity_of(issued.credentials.certificate_pem).role == MANAGER_ROLE:
                await self.autolock.take(issued.kek)
                self._keys.save(issued.credentials)
            else:
                self.autolock.attach(None)
                self._keys.save(issued.credentials, Kek(), forget_raft_keys=True)
        self._adopt(self._root_pem, issued.credentials)  # a session may have brought another root meanwhile
        valid_from_s, valid_until_s = own_certificate.validity(issued.credentials.certificate_pem)
        log.info("certificate.renewed", role=self.role, days=round((valid_until_s - self._clock.now()) / 86400, 2))
        counters.RENEWALS.labels(outcome="renewed").inc()
        self.certificate_trouble = ""
        self._renewals.put(Renewed(valid_from_s, valid_until_s, self.role))
