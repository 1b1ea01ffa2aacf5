"""The overlay networks of this daemon: its parts, put together, beside one engine.

The engine's plugin socket and the sockets of the name server outlive the daemon in the keeper; namespaces and packet
rules do in the kernel. So a daemon that restarts finds everything as it was, and nobody has noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

import structlog

from engine_api.config import Config
from engine_api.engine.client import EngineClient
from engine_api.executor.attachments import AttachError, Attachments, Managers
from engine_api.executor.overlay_networks import OverlayNetworks
from overlay.errors import OverlayError
from overlay.io.driver import Driver
from overlay.io.keeper import Keeper
from overlay.io.kernel import Kernel
from overlay.io.mesh import Mesh
from overlay.io.packet_rules import PacketRules
from overlay.io.plugin_socket import PluginSocket
from overlay.io.resolver import Resolver
from overlay.model import Network, NetworkState
from overlay.plugin import HostPort, Joined
from swarm.errors import Unavailable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Parts:
    driver: Driver
    socket: PluginSocket
    attachments: Attachments
    networks: OverlayNetworks


class Overlay:
    """See the module (overlay.plugin.PluginBackend)."""

    def __init__(self, config: Config, engine: EngineClient) -> None:
        self._config = config
        self._engine = engine
        self._managers: Managers | None = None
        self._parts: _Parts | None = None

    @property
    def networks(self) -> OverlayNetworks:
        """For the executor; there after start()."""
        return self._started.networks

    def network_state(self, network_id: str) -> NetworkState | None:
        """What this node was told of a network of the swarm that it takes part in."""
        return self._parts.driver.state(network_id) if self._parts is not None else None

    @property
    def _started(self) -> _Parts:
        assert self._parts is not None
        return self._parts

    async def start(self) -> None:
        """Serve the engine, and keep what is there. Raises OSError."""
        config, root = self._config, self._config.exec_root
        keeper = Keeper(root / "keeper.sock")
        resolver = Resolver(keeper=keeper)
        driver = Driver(Kernel(root / "netns"), PacketRules(), Mesh(), resolver)
        attachments = Attachments(self._connection)
        path = config.plugin_directory / f"{config.network_driver}.sock"
        socket = PluginSocket(path, root / "plugin.json", self, keeper)
        networks = OverlayNetworks(self._engine, driver, attachments, config.network_driver)
        self._parts = _Parts(driver, socket, attachments, networks)
        await socket.open()
        await resolver.adopt()
        await driver.start({network.id: network for network in socket.plugin.networks.values()})
        attachments.open()

    async def close(self) -> None:
        """Stop; what is in the kernel stays, and the keeper goes on listening."""
        if self._parts is None:
            return
        await self._parts.attachments.close()
        await self._parts.socket.close()
        await self._parts.driver.close()
        self._parts = None

    def connect(self, managers: Managers) -> None:
        """From now on, this is the way to the managers."""
        self._managers = managers

    def _connection(self) -> Managers:
        if self._managers is None:
            raise Unavailable("this node is in no swarm")
        return self._managers

    async def attach(self, target: str) -> str:
        """See EngineHooks.attach."""
        if self._parts is None:
            raise Unavailable("this node is in no swarm")
        return await self._parts.attachments.reserve(target)

    # --- the engine's driver ---------------------------------------------------------------------------------------

    async def join(self, network: Network, endpoint_id: str, address: IPv4Address, mac: str) -> Joined:
        """See PluginBackend.join."""
        return await self._started.driver.join(network, endpoint_id, address, mac)

    async def leave(self, network_id: str, endpoint_id: str) -> None:
        """See PluginBackend.leave."""
        await self._started.driver.leave(network_id, endpoint_id)

    async def publish(self, network_id: str, endpoint_id: str, address: IPv4Address, ports: Sequence[HostPort]) -> None:
        """See PluginBackend.publish."""
        await self._started.driver.publish(network_id, endpoint_id, address, ports)

    async def network_gone(self, network_id: str) -> None:
        """See PluginBackend.network_gone."""
        await self._started.driver.network_gone(network_id)

    async def request_address(self, network_id: str, wanted: str) -> str:
        """See PluginBackend.request_address."""
        try:
            return await self._started.networks.request_address(network_id, wanted)
        except AttachError as error:
            raise OverlayError(str(error)) from error

    async def release_address(self, network_id: str, address: str) -> None:
        """See PluginBackend.release_address."""
        self._started.networks.release_address(network_id, address)
