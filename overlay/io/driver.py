"""The networks of this node: one loop that makes the kernel, the name server and the routing mesh what they should be.

The managers' word (``know``) and the engine (``join``, ``leave``) change what is wanted; ``_reconcile`` makes it so,
network by network. Whoever changes the kernel under us is found out by ``_watch`` and overruled. What fails is tried
again with growing pauses, and ``troubles`` says why. Nothing is taken away because nobody is there to ask: a network
goes when the managers say so and no container of this engine has an end in it. And until the managers have said all,
what an earlier process left in the kernel is not touched: it is newer than what that process wrote down.

(libnetwork: drivers/overlay/overlay.go, ov_network.go, joinleave.go)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import TypeVar

import structlog

from overlay import defaults
from overlay.balance import balance_of
from overlay.errors import OverlayError
from overlay.io.kernel import Kernel
from overlay.io.mesh import Mesh
from overlay.io.packet_rules import PacketRules
from overlay.io.resolver import Resolver
from overlay.model import LocalNode, Network, NetworkState
from overlay.plan import overlay_of
from overlay.plugin import HostPort, Joined

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _Retry:
    """Why a network is not right, and how often that was tried."""

    reason: str
    failures: int = 1

    @property
    def pause_s(self) -> float:
        return min(defaults.RECONCILE_RETRY_MAX_S, defaults.RECONCILE_RETRY_S * 2.0 ** min(self.failures - 1, 10))


class Driver:
    """See the module. The parts are owned and closed here."""

    def __init__(self, kernel: Kernel, rules: PacketRules, mesh: Mesh, resolver: Resolver) -> None:
        self._kernel = kernel
        self._rules = rules
        self._mesh = mesh
        self._resolver = resolver
        self._worker = ThreadPoolExecutor(1, "overlay")
        self._states: dict[str, NetworkState] = {}
        self._engine: dict[str, Network] = {}
        self._shown: dict[str, NetworkState] = {}
        self._host_ports: dict[str, tuple[IPv4Address, tuple[HostPort, ...]]] = {}
        self._local: LocalNode | None = None
        self._complete = False
        self._left: set[str] = set()  # networks in the kernel that an earlier process made
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        self._retries: dict[str, _Retry] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._jobs: list[asyncio.Task[None]] = []

    @property
    def troubles(self) -> dict[str, str]:
        """Why a network is not as it should be, by network ID."""
        return {network_id: retry.reason for network_id, retry in self._retries.items()}

    def state(self, network_id: str) -> NetworkState | None:
        """What the managers told this node of a network; None: nothing, or nothing yet."""
        return self._states.get(network_id)

    async def start(self, engine: Mapping[str, Network]) -> None:
        """Find what an earlier process left, and begin to keep everything right. engine: networks that it has."""
        self._engine.update(engine)
        for network_id in self._kernel.networks():
            if self._kernel.exists(network_id):
                self._left.add(network_id)
            self._mark(network_id)
        self._jobs = [
            asyncio.create_task(self._reconcile_all(), name="overlay-reconcile"),
            asyncio.create_task(self._watch(), name="overlay-watch"),
        ]

    async def close(self) -> None:
        """Stop working. What is in the kernel stays, so that traffic goes on."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._resolver.close()
        await asyncio.to_thread(self._worker.shutdown)
        self._rules.close()
        self._mesh.close()
        self._kernel.close()

    # --- what is wanted --------------------------------------------------------------------------------------------

    def know(self, local: LocalNode | None, changed: Mapping[str, NetworkState | None], complete: bool) -> None:
        """What the managers say, or (complete is False) what they said before a restart."""
        first = complete and not self._complete
        self._local = local or self._local
        self._complete = self._complete or complete
        for network_id, state in changed.items():
            if state is not None:
                self._states[network_id] = state
                self._shown.setdefault(network_id, state)  # a name of a network that is not built yet exists, too
            elif complete:
                self._states.pop(network_id, None)
            self._mark(network_id)
        if first:
            for network_id in self._kernel.networks():
                self._mark(network_id)
            self._resolver.know(self._shown)
        self._told.set()

    def forget(self) -> None:
        """This node has left its swarm: its networks go as soon as no container uses them."""
        self._states.clear()
        self._local, self._complete = None, True
        for network_id in self._kernel.networks():
            self._mark(network_id)

    def _mark(self, network_id: str) -> None:
        self._changed[network_id] = None
        self._wake.set()

    # --- the engine ------------------------------------------------------------------------------------------------

    async def join(self, network: Network, endpoint_id: str, address: IPv4Address, mac: str) -> Joined:
        """A container gets an end in a network. Raises OverlayError."""
        self._engine[network.id] = network
        state, local = await self._enough_known(network)
        async with self._lock(network.id):
            await self._build(state, local)
            name = await self._in_thread(partial(self._kernel.join, network.id, endpoint_id, mac))
        gateway = next((subnet.gateway for subnet in state.network.subnets if address in subnet.pool), None)
        return Joined(name, gateway if state.network.ingress else None)

    async def leave(self, network_id: str, endpoint_id: str) -> None:
        """A container's end in a network goes, with the ports of this host that lead to it. Raises OverlayError."""
        self._host_ports.pop(endpoint_id, None)
        async with self._lock(network_id):
            await self._in_thread(partial(self._kernel.leave, network_id, endpoint_id))
        self._mark(network_id)

    async def publish(self, network_id: str, endpoint_id: str, address: IPv4Address, ports: Sequence[HostPort]) -> None:
        """Lead ports of this host to one container, which has its default route on the ingress network."""
        if ports:
            self._host_ports[endpoint_id] = (address, tuple(ports))
        else:
            self._host_ports.pop(endpoint_id, None)
        await self._reconcile(network_id)

    async def network_gone(self, network_id: str) -> None:
        """The engine has the network no more."""
        self._engine.pop(network_id, None)
        self._mark(network_id)

    async def _enough_known(self, network: Network) -> tuple[NetworkState, LocalNode]:
        """The network as the managers describe it, or, if they do not in time, as the engine has it."""
        try:
            async with asyncio.timeout(defaults.JOIN_WAITS_S):
                while network.id not in self._states or self._local is None:
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            if self._local is None:
                raise OverlayError("no manager has told this node the address of its data path yet") from None
        assert self._local is not None
        return self._states.get(network.id) or NetworkState(network), self._local

    def _lock(self, network_id: str) -> asyncio.Lock:
        return self._locks.setdefault(network_id, asyncio.Lock())

    # --- the loop --------------------------------------------------------------------------------------------------

    async def _reconcile_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changed:
                network_id = next(iter(self._changed))
                del self._changed[network_id]
                await self._reconcile(network_id)

    async def _reconcile(self, network_id: str) -> None:
        async with self._lock(network_id):
            state = self._states.get(network_id)
            try:
                await self._make_right(network_id, state)
            except (OverlayError, OSError) as error:
                self._failed(network_id, str(error))
            except Exception as error:
                log.exception("overlay.reconcile_crashed", network=network_id)
                self._failed(network_id, f"internal error: {type(error).__name__}")
            else:
                self._retries.pop(network_id, None)
        if state is None:
            self._shown.pop(network_id, None)
        else:
            self._shown[network_id] = state
        if self._states or self._complete:
            self._resolver.know(self._shown)

    async def _make_right(self, network_id: str, state: NetworkState | None) -> None:
        if state is not None and self._local is not None:
            await self._build(state, self._local)
            return
        in_use = await self._in_thread(partial(self._kernel.endpoints, network_id))
        if self._complete and not in_use:
            await self._take_down(network_id)

    async def _build(self, state: NetworkState, local: LocalNode) -> None:
        network = state.network
        untouched = network.id in self._left and not self._complete
        build = (
            partial(self._kernel.namespace, network.id) if untouched else partial(self._build_in_kernel, state, local)
        )
        namespace = await self._in_thread(build)
        await self._resolver.open(
            network.id, namespace, [subnet.gateway for subnet in network.subnets], internal=network.internal
        )

    def _build_in_kernel(self, state: NetworkState, local: LocalNode) -> int:
        network = state.network
        underlay = network.underlay_mtu or self._kernel.underlay_mtu(local.address)
        mtu = underlay - defaults.VXLAN_OVERHEAD_BYTES
        self._kernel.reconcile(overlay_of(state, local, mtu))
        namespace = self._kernel.namespace(network.id)
        host_ports = tuple(self._host_ports.values()) if network.ingress else ()
        self._rules.reconcile(network.id, namespace, balance_of(state, local, mtu, host_ports))
        if network.ingress:
            published = {(port.protocol, port.published) for one in state.services.values() for port in one.ports}
            published |= {(port.protocol, port.host_port) for _, ports in host_ports for port in ports}
            self._mesh.reconcile(namespace, published)
        return namespace

    async def _take_down(self, network_id: str) -> None:
        await self._resolver.close_network(network_id)
        shown = self._shown.get(network_id)
        network = shown.network if shown is not None else self._engine.get(network_id)
        if network is None or network.ingress:
            await self._in_thread(partial(self._mesh.reconcile, None, ()))
        self._rules.forget(network_id)
        await self._in_thread(partial(self._kernel.remove, network_id))
        self._locks.pop(network_id, None)
        log.info("overlay.network_removed", network=network_id)

    def _failed(self, network_id: str, reason: str) -> None:
        known = self._retries.get(network_id)
        retry = self._retries[network_id] = _Retry(reason, known.failures + 1 if known else 1)
        if known is None or known.reason != reason:
            log.warning("overlay.network_not_right", network=network_id, error=reason, retry_s=retry.pause_s)
        asyncio.get_running_loop().call_later(retry.pause_s, self._mark, network_id)

    async def _watch(self) -> None:
        """See whether somebody changed the kernel under us."""
        while True:
            await asyncio.sleep(defaults.KERNEL_CHECK_S)
            for network_id in [*self._shown] if self._complete else []:
                if not await self._in_thread(partial(self._is_intact, network_id)):
                    log.info("overlay.changed_by_others", network=network_id)
                    self._mark(network_id)

    def _is_intact(self, network_id: str) -> bool:
        state = self._shown.get(network_id)
        if state is None or self._local is None or network_id in self._changed:
            return True
        return self._rules.check(network_id) and (not state.network.ingress or self._mesh.check())

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)
