"""The back end of the swarm routes: users' requests to this node's Node machine, and every call to the leader.

What a request means for this node is decided by swarm/node; here addresses are resolved, and refusals and errors become
the texts and status codes that users of Docker know.

(moby: daemon/cluster)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from random import SystemRandom

import structlog

from certs.errors import InvalidUnlockKey, InvalidUnlockKeyText
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
    EXPECTED,
    LAST_MANAGER,
    LEAVE_LOCKED,
    LOCKED,
    NOT_IN_SWARM,
    PREPARING,
    REFUSALS,
    SUPPRESS,
    WORKER,
    address_towards,
    addresses_of,
    availability_of,
    interfaces,
    join_error,
    port_of,
    start_error,
)
from engine_api.overlay import Overlay
from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import Method, Req, Res
from swarm.errors import DeadlineExceeded, NoLeader, SwarmError, Unavailable
from swarm.ids import new_id
from swarm.io.counts import Counts
from swarm.io.node.agent_process import AgentProcess, LogSink
from swarm.io.node.hooks import NodeHooks, Runner
from swarm.io.node.manager_process import ManagerProcess
from swarm.io.node.node_process import NodeProcess
from swarm.io.process import Clock
from swarm.manager.cluster import NewCluster
from swarm.node import events
from swarm.node.node import Status
from swarm.node.state import Addresses, NodeState
from swarm.node.steps import Phase
from swarm.rpc import MANAGER_ROLE
from swarm.store.store import Change

log = structlog.get_logger()

_STATES = {
    Phase.INACTIVE: LocalNodeState.INACTIVE,
    Phase.PENDING: LocalNodeState.PENDING,
    Phase.LOCKED: LocalNodeState.LOCKED,
    Phase.ERROR: LocalNodeState.ERROR,
    Phase.STOPPED: LocalNodeState.INACTIVE,
}


class Cluster:
    """See the module (engine_api.backend.SwarmBackend)."""

    def __init__(
        self,
        config: Config,
        engine: EngineClient,
        on_changes: Callable[[Sequence[Change]], None],
        overlay: Overlay | None = None,
    ) -> None:
        """overlay: None: tasks of this node have the engine's own networks only."""
        self._config = config
        self._engine = engine
        self._overlay = overlay
        self._clock = Clock()
        self._rng = SystemRandom()
        hooks = NodeHooks(
            self._make_runner,
            self._remove_containers,
            _is_expected,
            on_changes,
            config.allow_mixed_leadership,
            config.max_replicas,
        )
        self._node = NodeProcess(config.data_root / "swarm", hooks, self._clock, self._rng)
        self._watch: asyncio.Task[None] | None = None

    @property
    def counts(self) -> Counts:
        """What this node counts, for /metrics."""
        return self._node.counts

    # --- life cycle ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on with the swarm this node was in, if any; an error of it shows in /info, it does not end the daemon."""
        if self._overlay is not None:
            await self._overlay.start()
        self._watch = asyncio.create_task(watch_engine(self._engine, self._node.engine_is), name="engine-watch")
        await self._node.start()
        status = self._node.status()
        if status.error is not None:
            unexpected = not isinstance(status.error, EXPECTED)
            text = start_error(status.error, status.state)
            log.error("swarm.not_started", error=text, exc_info=status.error if unexpected else None)

    async def stop(self) -> None:
        """End this node's roles; containers go on."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._node.close()
        if self._overlay is not None:
            await self._overlay.close()

    async def _make_runner(self, node_id: str, agent: AgentProcess) -> Runner:
        if self._overlay is not None:
            self._overlay.connect(agent)
        return Executor(
            self._engine,
            node_id,
            agent.put,
            directory=self._config.exec_root / "tasks",
            open_sink=agent.open_log_sink,
            prefer_offline=self._config.prefer_offline,
            networks=self._overlay.networks if self._overlay is not None else None,
        )

    async def _remove_containers(self, node_id: str) -> None:
        """Remove what tasks of a node left here that runs no more. Raises EngineError, EngineUnavailable."""
        runner = Executor(
            self._engine,
            node_id,
            lambda _: None,
            directory=self._config.exec_root / "tasks",
            open_sink=_no_sink,
            networks=self._overlay.networks if self._overlay is not None else None,
        )
        try:
            await runner.remove_all(node_id)
        finally:
            await runner.close()

    # --- state -----------------------------------------------------------------------------------------------------

    def local(self) -> LocalNode:
        """See SwarmBackend.local."""
        status, manager = self._node.status(), self._node.manager
        address_shown = _address(status)
        if status.phase is Phase.LOCKED:
            return LocalNode(LocalNodeState.LOCKED, node_addr=address_shown, error=LOCKED)
        if status.phase is Phase.ERROR:
            return LocalNode(LocalNodeState.ERROR, node_addr=address_shown, error=_error_text(status))
        if status.phase is not Phase.PENDING:
            return LocalNode()
        error = status.trouble or self._node.autolock_trouble
        if manager is not None and not manager.has_leader:
            error = status.certificate_trouble or NoLeader().rpc_text
        return LocalNode(
            state=LocalNodeState.ACTIVE if status.ready else _STATES[status.phase],
            node_id=status.node_id,
            node_addr=address_shown,
            control_available=manager is not None,
            error=error,
            remote_managers=status.managers,
        )

    def require_manager(self) -> None:
        """See SwarmBackend.require_manager."""
        self._manager()

    def _manager(self) -> ManagerProcess:
        """This node's running manager. Raises ServiceUnavailable with the text for the present state."""
        status = self._node.status()
        if status.phase is Phase.LOCKED:
            raise ServiceUnavailable(LOCKED)
        if status.phase is not Phase.PENDING:
            raise ServiceUnavailable(NOT_IN_SWARM)
        if self._node.manager is None:
            raise ServiceUnavailable(PREPARING if status.role == MANAGER_ROLE else WORKER)
        return self._node.manager

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """See SwarmBackend.call."""
        manager = self._manager()
        try:
            return await manager.call(method, request, defaults.CALL_DEADLINE_S, self._clock.now() - waited_s())
        except DeadlineExceeded as error:
            raise SwarmError(error.message) from error

    def stream(self, method: Method[Req, Res], request: Req) -> AsyncIterator[Res]:
        """See SwarmBackend.stream."""
        return self._manager().stream(method, request)

    # --- init ------------------------------------------------------------------------------------------------------

    async def init(self, request: InitRequest) -> str:
        """See SwarmBackend.init."""
        status = self._node.status()
        if request.force_new_cluster and status.phase is not Phase.INACTIVE:
            return await self._force_new_cluster(request, status)
        self._refuse_if_in_swarm()
        endpoints = await self._resolve_init(request)
        await self._require_engine()
        state = NodeState.new(
            addresses_of(endpoints),
            node_id=new_id(self._rng),
            cluster_id=new_id(self._rng),
            data_path_port=request.data_path_port or defaults.VXLAN_PORT,
        ).with_self()
        details = NewCluster(
            availability=availability_of(request.availability),
            address=endpoints.advertise_host,
            default_address_pool=request.default_addr_pool,
            subnet_size_bits=request.subnet_size,
            vxlan_port=state.data_path_port,
            unlock_key=new_unlock_key(self._rng) if request.spec.encryption_config.auto_lock_managers else b"",
        )
        await self._ask(
            partial(events.Init, state=state, spec=request.spec, details=details),
            lambda error: ApiError(start_error(error, state)),
        )
        return state.node_id

    async def _force_new_cluster(self, request: InitRequest, status: Status) -> str:
        """Go on as the only manager of the same cluster, after the majority was lost; addresses may be new ones."""
        if status.phase is Phase.LOCKED:
            raise ServiceUnavailable(LOCKED)
        addresses = addresses_of(await self._resolve_init(request))
        await self._ask(
            partial(events.ForceNewCluster, addresses=addresses),
            lambda error: ApiError(start_error(error, self._node.status().state)),
        )
        return self._node.status().node_id

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
        """At once, before addresses are resolved; the machine looks again."""
        if self._node.status().phase is not Phase.INACTIVE:
            raise _refused(events.Refusal.IN_SWARM)

    # --- join, leave, unlock ---------------------------------------------------------------------------------------

    async def join(self, request: JoinRequest) -> None:
        """See SwarmBackend.join."""
        self._refuse_if_in_swarm()
        endpoints = address.resolve_join(
            self._listen_addr(request.listen_addr), request.advertise_addr, request.data_path_addr, interfaces()
        )
        remotes = address.check_remote_addrs(request.remote_addrs)
        await self._require_engine()
        availability = availability_of(request.availability)
        addresses = Addresses(
            listen_host=endpoints.listen_host,
            listen_port=port_of(endpoints.listen_port),
            advertise_host=endpoints.advertise_host,
            advertise_port=port_of(endpoints.advertise_port or endpoints.listen_port),
            local_addr=endpoints.local_addr or await asyncio.to_thread(address_towards, remotes[0]),
            data_path_addr=endpoints.data_path_addr,
        )
        state = NodeState.new(addresses, managers=tuple(("", addr) for addr in remotes[:1]))
        make = partial(events.Join, state=state, token=request.join_token, availability=availability)
        await self._ask(make, join_error)

    async def leave(self, force: bool) -> None:
        """See SwarmBackend.leave."""
        try:
            await self._node.request(partial(events.Leave, force=force))
        except events.Refused as error:
            if error.refusal is events.Refusal.MANAGER:
                raise ServiceUnavailable(await self._why_not_leave()) from error
            if error.refusal is events.Refusal.LOCKED:
                raise ServiceUnavailable(LEAVE_LOCKED) from error
            raise _refused(error.refusal) from error

    async def _why_not_leave(self) -> str:
        """What a manager is told that would leave without force (moby: daemon/cluster/swarm.go, Leave)."""
        start = "You are attempting to leave the swarm on a node that is participating as a manager. "
        manager = self._node.manager
        if manager is None or not manager.has_leader:
            return start + "Doing so may lose the consensus of your cluster. " + SUPPRESS
        answer = await self.call(rpc.LIST_NODES, api.ListNodesRequest())
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
        if self._node.status().phase is not Phase.LOCKED:
            self.require_manager()
            raise Conflict("swarm is not locked")
        try:
            unlock_key = parse_unlock_key(key)
        except InvalidUnlockKeyText as error:
            raise BadParameter(str(error)) from error

        def failed(error: Exception) -> Exception:
            if isinstance(error, InvalidUnlockKey):
                return Unauthorized(str(error))
            return ApiError(f"swarm component could not be started: {start_error(error, self._node.status().state)}")

        await self._ask(partial(events.Unlock, key=unlock_key), failed)

    async def _ask(self, make: Callable[[int], events.Request], failed: Callable[[Exception], Exception]) -> None:
        """Put a request to this node and wait for its end. failed: what a user is told of an error of the world."""
        try:
            await self._node.request(make)
        except events.Refused as error:
            raise _refused(error.refusal) from error
        except EXPECTED as error:
            raise failed(error) from error


async def _no_sink(_: str) -> LogSink:
    raise Unavailable("this node is in no swarm")


def _is_expected(error: Exception) -> bool:
    return isinstance(error, EngineError | EngineUnavailable)


def _refused(refusal: events.Refusal) -> ApiError:
    text = REFUSALS[refusal]
    return Conflict(text) if refusal is events.Refusal.NOT_LOCKED else ServiceUnavailable(text)


def _address(status: Status) -> str:
    if status.state is None:
        return ""
    if status.phase is not Phase.PENDING:
        return status.state.local_addr
    return status.state.advertise_host or status.state.local_addr


def _error_text(status: Status) -> str:
    return start_error(status.error, status.state) if status.error is not None else ""
