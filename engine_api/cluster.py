"""This node's membership in a swarm: init, join, leave, and the one path of every call to the leader.

    inactive --init/join--> pending --first session--> active
       ^                       |                          |
       └------- leave ---------┴---- error (first start failed)

(moby: daemon/cluster)
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from random import SystemRandom

import structlog
from google.protobuf.message import Message

from certs.errors import CertsError, InvalidUnlockKey, InvalidUnlockKeyText
from certs.tokens import new_unlock_key, parse_unlock_key
from engine_api.backend import InitRequest, JoinRequest, LocalNode, LocalNodeState, waited_s
from engine_api.config import Config
from engine_api.convert import address
from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.engine.watch import watch_engine
from engine_api.errors import ApiError, BadParameter, Conflict, ServiceUnavailable, Unauthorized
from engine_api.executor.executor import Executor
from engine_api.host import (
    ALREADY,
    EXPECTED,
    LAST_MANAGER,
    LEAVE_LOCKED,
    LOCKED,
    NOT_IN_SWARM,
    PREPARING,
    SUPPRESS,
    TIMED_OUT,
    WORKER,
    address_towards,
    availability_of,
    interfaces,
    join_error,
    port_of,
    start_error,
    with_self,
)
from swarm import api, defaults
from swarm.errors import Code, DeadlineExceeded, NoLeader, SwarmError, Unavailable
from swarm.ids import new_id
from swarm.io.node.agent_process import AgentProcess, LogSink
from swarm.io.node.autolock import NodeLocked
from swarm.io.node.hooks import NodeHooks, Runner
from swarm.io.node.node_process import NodeProcess
from swarm.io.process import Clock
from swarm.manager import cluster
from swarm.node.state import NodeState
from swarm.rpc import MANAGER_ROLE
from swarm.store.store import Change

log = structlog.get_logger()


class Cluster:
    """The back end of the swarm routes (engine_api.backend.SwarmBackend)."""

    def __init__(self, config: Config, engine: EngineClient, on_changes: Callable[[Sequence[Change]], None]) -> None:
        self._config = config
        self._engine = engine
        self._clock = Clock()
        self._rng = SystemRandom()
        self._directory = config.data_root / "swarm"
        self._hooks = NodeHooks(self._make_runner, on_changes, config.allow_mixed_leadership)
        self._node: NodeProcess | None = None
        self._joining: asyncio.Task[None] | None = None
        self._remote = ""
        self._local_addr = ""
        self._error = ""
        self._locked = False
        self._left_behind: dict[str, None] = {}
        self._changing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    # --- life cycle ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on with the swarm this node was in, if any; an error of it shows in /info, it does not end the daemon."""
        self._watch = asyncio.create_task(
            watch_engine(self._engine, self._engine_is, self._engine_answers), name="engine-watch"
        )
        state: NodeState | None = None
        try:
            state = NodeProcess.saved(self._directory)
            if state is None:
                # what an init or join left behind that was killed before it was acknowledged
                await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
                return
            self._local_addr = state.local_addr
            node = self._new_node()
            self._node = node
            await node.resume(state)
        except NodeLocked:
            log.info("swarm.locked")
            self._node, self._locked = None, True
        except Exception as error:
            self._error = start_error(error, state)
            log.error("swarm.not_started", error=self._error, exc_info=not isinstance(error, EXPECTED))
            if self._node is not None:
                await self._node.close()

    async def stop(self) -> None:
        """End this node's roles; containers go on."""
        for task in (self._watch, self._joining):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._node is not None:
            await self._node.close()

    def _new_node(self) -> NodeProcess:
        return NodeProcess(self._directory, self._hooks, self._clock, self._rng)

    async def _make_runner(self, node_id: str, agent: AgentProcess) -> Runner:
        return Executor(
            self._engine,
            node_id,
            agent.put,
            directory=self._config.exec_root / "tasks",
            open_sink=agent.open_log_sink,
            prefer_offline=self._config.prefer_offline,
        )

    async def _remove_containers(self, node_id: str) -> None:
        """Remove what tasks of a node left here that runs no more, as soon as the engine answers."""
        runner = Executor(
            self._engine, node_id, lambda _: None, directory=self._config.exec_root / "tasks", open_sink=_no_sink
        )
        try:
            await runner.remove_all(node_id)
            self._left_behind.pop(node_id, None)
        except (EngineUnavailable, EngineError) as error:
            log.warning("swarm.containers_left_behind", node=node_id, error=str(error))
            self._left_behind[node_id] = None
        finally:
            await runner.close()

    def _engine_is(self, error: str, certain: bool) -> None:
        if self._node is not None:
            self._node.set_able(error, certain)

    async def _engine_answers(self) -> None:
        for node_id in list(self._left_behind):
            await self._remove_containers(node_id)

    # --- state -----------------------------------------------------------------------------------------------------

    def local(self) -> LocalNode:
        """See SwarmBackend.local."""
        node = self._node
        if self._locked:
            return LocalNode(LocalNodeState.LOCKED, node_addr=self._local_addr, error=LOCKED)
        if self._error:
            return LocalNode(LocalNodeState.ERROR, node_addr=self._local_addr, error=self._error)
        if node is None:
            return LocalNode()
        managers = node.known_managers() or ((("", self._remote),) if self._remote else ())
        error = node.trouble or node.autolock.trouble or node.certificate_trouble
        if node.manager is not None and not node.manager.has_leader:
            error = node.certificate_trouble or NoLeader().rpc_text
        return LocalNode(
            state=LocalNodeState.ACTIVE if node.ready.is_set() else LocalNodeState.PENDING,
            node_id=node.node_id,
            node_addr=self._address(node),
            control_available=node.manager is not None,
            error=error,
            remote_managers=managers,
        )

    def _address(self, node: NodeProcess) -> str:
        state = node.state
        return (state.advertise_host or state.local_addr) if state is not None else self._local_addr

    def require_manager(self) -> None:
        """See SwarmBackend.require_manager."""
        if self._locked:
            raise ServiceUnavailable(LOCKED)
        if self._node is None or self._error:
            raise ServiceUnavailable(NOT_IN_SWARM)
        if self._node.manager is None:
            raise ServiceUnavailable(PREPARING if self._node.role == MANAGER_ROLE else WORKER)

    async def call(self, method: str, request: Message) -> Message:
        """See SwarmBackend.call."""
        self.require_manager()
        assert self._node is not None
        assert self._node.manager is not None
        try:
            since = self._clock.now() - waited_s()
            return await self._node.manager.call(method, request, defaults.CALL_DEADLINE_S, since)
        except DeadlineExceeded as error:
            raise SwarmError(error.message) from error

    def stream(self, method: str, request: Message) -> AsyncIterator[Message]:
        """See SwarmBackend.stream."""
        self.require_manager()
        assert self._node is not None
        assert self._node.manager is not None
        return self._node.manager.stream(method, request)

    # --- init ------------------------------------------------------------------------------------------------------

    async def init(self, request: InitRequest) -> str:
        """See SwarmBackend.init."""
        if request.force_new_cluster and self._locked:
            raise ServiceUnavailable(LOCKED)
        if request.force_new_cluster and (self._node is not None or self._error):
            return await self._force_new_cluster(request)
        self._refuse_if_in_swarm()
        async with self._changing:
            self._refuse_if_in_swarm()
            endpoints = await self._resolve_init(request)
            await self._require_engine()
            state = NodeState(
                node_id=new_id(self._rng),
                cluster_id=new_id(self._rng),
                listen_host=endpoints.listen_host,
                listen_port=port_of(endpoints.listen_port),
                advertise_host=endpoints.advertise_host,
                advertise_port=port_of(endpoints.advertise_port),
                local_addr=endpoints.local_addr,
                data_path_addr=endpoints.data_path_addr,
                data_path_port=request.data_path_port or defaults.VXLAN_PORT,
                managers=(),
            )
            state = with_self(state)
            details = cluster.NewCluster(
                availability=availability_of(request.availability),
                address=endpoints.advertise_host,
                default_address_pool=request.default_addr_pool,
                subnet_size_bits=request.subnet_size,
                vxlan_port=state.data_path_port,
                unlock_key=new_unlock_key(self._rng) if request.spec.encryption_config.auto_lock_managers else b"",
            )
            node = self._new_node()
            self._node, self._local_addr = node, endpoints.local_addr
            try:
                await node.create(state, request.spec, details)
                async with asyncio.timeout(defaults.JOIN_WAIT_S):
                    await node.ready.wait()
            except BaseException as error:
                await self._give_up(node)
                if isinstance(error, EXPECTED):
                    raise ApiError(start_error(error, state)) from error
                raise
            return state.node_id

    async def _force_new_cluster(self, request: InitRequest) -> str:
        """Go on as the only manager of the same cluster, after the majority was lost; addresses may be new ones."""
        async with self._changing:
            saved = NodeProcess.saved(self._directory)
            if saved is None or not saved.raft_id:
                raise ServiceUnavailable(WORKER)
            endpoints = await self._resolve_init(request)
            state = replace(
                saved,
                listen_host=endpoints.listen_host,
                listen_port=port_of(endpoints.listen_port),
                advertise_host=endpoints.advertise_host,
                advertise_port=port_of(endpoints.advertise_port),
                local_addr=endpoints.local_addr,
                data_path_addr=endpoints.data_path_addr,
            )
            state = with_self(state)
            if self._joining is not None:
                self._joining.cancel()
            unlock_key = b""
            if self._node is not None:
                await self._node.close()
                unlock_key = self._node.unlock_key
            node = self._new_node()
            self._node, self._local_addr, self._error = node, endpoints.local_addr, ""
            try:
                await node.resume(state, unlock_key, force_new_cluster=True)
                async with asyncio.timeout(defaults.JOIN_WAIT_S):
                    await node.ready.wait()
            except (SwarmError, CertsError, OSError, TimeoutError) as error:
                self._error = start_error(error, state)
                await node.close()
                raise ApiError(self._error) from error
            return state.node_id

    async def _resolve_init(self, request: InitRequest) -> address.Endpoints:
        subnets = await self._engine_subnets() if not request.advertise_addr else []
        return address.resolve_init(
            self._listen_addr(request.listen_addr),
            request.advertise_addr,
            request.data_path_addr,
            interfaces(),
            lambda: subnets,
            self._config.default_advertise_addr,
        )

    def _listen_addr(self, asked: str) -> str:
        """What the client asks for, unless it is only the CLI's default and this daemon has another."""
        return (self._config.default_listen_addr or asked) if asked in ("0.0.0.0:2377", "[::]:2377") else asked

    async def _require_engine(self) -> None:
        """A node that cannot describe itself never gets ready: say so at once. Raises ServiceUnavailable."""
        try:
            async with asyncio.timeout(defaults.ENGINE_PING_TIMEOUT_S):
                await self._engine.ping()
        except (EngineUnavailable, EngineError) as error:
            raise ServiceUnavailable(str(error)) from error
        except TimeoutError:
            raise ServiceUnavailable(f"the Docker Engine at {self._engine.host} does not answer") from None

    async def _engine_subnets(self) -> list[str]:
        """Subnets of the engine's own networks: addresses in them are not this host's."""
        try:
            networks = await self._engine.list_networks({})
        except (EngineError, EngineUnavailable):
            return []
        configs = [config for network in networks for config in (network.get("IPAM") or {}).get("Config") or ()]
        return [config["Subnet"] for config in configs if config.get("Subnet")]

    def _refuse_if_in_swarm(self) -> None:
        if self._node is not None or self._error or self._locked:
            raise ServiceUnavailable(ALREADY)

    async def _give_up(self, node: NodeProcess) -> None:
        """An init or join failed: nothing of it stays."""
        await node.close()
        await asyncio.to_thread(node.erase)
        if self._node is node:
            self._node, self._remote = None, ""

    # --- join ------------------------------------------------------------------------------------------------------

    async def join(self, request: JoinRequest) -> None:
        """See SwarmBackend.join."""
        self._refuse_if_in_swarm()  # at once: another join may be holding the lock for as long as it takes
        async with self._changing:
            self._refuse_if_in_swarm()
            endpoints = address.resolve_join(
                self._listen_addr(request.listen_addr), request.advertise_addr, request.data_path_addr, interfaces()
            )
            remotes = address.check_remote_addrs(request.remote_addrs)
            await self._require_engine()
            availability = availability_of(request.availability)
            state = NodeState(
                node_id="",
                cluster_id="",
                listen_host=endpoints.listen_host,
                listen_port=port_of(endpoints.listen_port),
                advertise_host=endpoints.advertise_host,
                advertise_port=port_of(endpoints.advertise_port or endpoints.listen_port),
                local_addr=endpoints.local_addr or await asyncio.to_thread(address_towards, remotes[0]),
                data_path_addr=endpoints.data_path_addr,
                managers=tuple(("", addr) for addr in remotes[:1]),
            )
            node = self._new_node()
            self._node, self._remote, self._local_addr = node, remotes[0], state.local_addr
            waiting = asyncio.Event()
            waiting.set()
            joining = asyncio.create_task(
                self._join(node, state, request.join_token, availability, waiting), name="join"
            )
            self._joining = joining
            try:
                done, _ = await asyncio.wait({joining}, timeout=defaults.JOIN_WAIT_S)
            finally:
                waiting.clear()
            if not done:
                raise ServiceUnavailable(TIMED_OUT)
            if joining.cancelled():
                raise ServiceUnavailable("the attempt to join was ended by `docker swarm leave`")
            error = joining.exception()
            if error is not None:
                raise error

    async def _join(
        self, node: NodeProcess, state: NodeState, token: str, availability: int, waiting: asyncio.Event
    ) -> None:
        """Join; while somebody waits for it (waiting) a failure ends it, later it goes on until it is refused."""
        failures = 0
        try:
            while True:
                try:
                    await node.join(state, token, availability)
                    await node.ready.wait()
                    return
                except SwarmError as error:
                    if waiting.is_set() or error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                        raise
                    log.warning("swarm.join_goes_on", remote=self._remote, error=str(error))
                failures += 1
                await asyncio.sleep(min(defaults.JOIN_RETRY_BASE_S * 2**failures, defaults.JOIN_RETRY_MAX_S))
        except BaseException as error:
            await self._give_up(node)
            if isinstance(error, EXPECTED):
                log.warning("swarm.not_joined", remote=state.managers[0][1], error=str(error))
                raise join_error(error) from error
            raise

    # --- leave -----------------------------------------------------------------------------------------------------

    async def leave(self, force: bool) -> None:
        """See SwarmBackend.leave."""
        if self._joining is not None and not self._joining.done():
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)
            self._joining = None
            return
        async with self._changing:
            if self._locked and not force:
                raise ServiceUnavailable(LEAVE_LOCKED)
            if self._error or self._locked:
                node = self._node or self._new_node()
                await self._remove_containers(NodeProcess.saved_id(self._directory))
                await self._give_up(node)
                self._node, self._error, self._locked = None, "", False
                return
            if self._node is None:
                raise ServiceUnavailable("This node is not part of a swarm")
            if self._node.role == MANAGER_ROLE and not force:
                raise ServiceUnavailable(await self._why_not_leave())
            node, node_id = self._node, self._node.node_id
            try:
                await node.leave(defaults.LEAVE_WAIT_S)
            except (EngineUnavailable, EngineError) as error:
                log.warning("swarm.containers_left_behind", node=node_id, error=str(error))
                self._left_behind[node_id] = None
            finally:
                self._node, self._remote = None, ""

    async def _why_not_leave(self) -> str:
        """What a manager is told that would leave without force (moby: daemon/cluster/swarm.go, Leave)."""
        start = "You are attempting to leave the swarm on a node that is participating as a manager. "
        if self._node is None or self._node.manager is None or not self._node.manager.has_leader:
            return start + "Doing so may lose the consensus of your cluster. " + SUPPRESS
        answer = await self.call("Control/ListNodes", api.ListNodesRequest())
        assert isinstance(answer, api.ListNodesResponse)
        managers = [node.manager_status for node in answer.nodes if node.HasField("manager_status")]
        reachable = sum(status.reachability == api.RaftMemberStatus.REACHABLE for status in managers)
        if len(managers) <= 1:
            return LAST_MANAGER
        if reachable - 2 <= len(managers) - reachable:
            start += (
                f"Removing this node leaves {reachable - 1} managers out of {len(managers)}. Without a Raft quorum "
                "your swarm will be inaccessible. The only way to restore a swarm that has lost consensus is to "
                "reinitialize it with `--force-new-cluster`. "
            )
        return start + SUPPRESS

    async def unlock(self, key: str) -> None:
        """See SwarmBackend.unlock."""
        async with self._changing:
            if not self._locked:
                self.require_manager()
                raise Conflict("swarm is not locked")
            try:
                unlock_key = parse_unlock_key(key)
            except InvalidUnlockKeyText as error:
                raise BadParameter(str(error)) from error
            state: NodeState | None = None
            node = self._new_node()
            try:
                state = NodeProcess.saved(self._directory)
                if state is None:
                    raise SwarmError("the state of this node is missing")
                await node.resume(state, unlock_key)
            except BaseException as error:
                await node.close()
                if isinstance(error, InvalidUnlockKey):
                    raise Unauthorized(str(error)) from error
                if isinstance(error, EXPECTED):
                    raise ApiError(f"swarm component could not be started: {start_error(error, state)}") from error
                raise
            self._node, self._locked = node, False
        # the first of several managers has no quorum before the next is unlocked: it is unlocked all the same
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(defaults.NO_LEADER_WAIT_S):
                await node.ready.wait()


async def _no_sink(_: str) -> LogSink:
    raise Unavailable("this node is in no swarm")
