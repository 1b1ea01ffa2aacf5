"""Networks of the swarm for the containers of tasks: each is a network of our driver in the engine.

The engine's network has the name of the swarm's, and carries the swarm's ID and all that is needed to build it in its
options. It is made when the first task needs it, found again after a restart, made again when somebody removed it, and
goes when no task of this node uses it.

(moby: daemon/cluster/executor/container/adapter.go createNetworks, removeNetworks)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import structlog

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.executor.attachments import Attachments
from engine_api.executor.container import LABEL_TASK_ID, Endpoint, service_networks
from engine_api.executor.errors import TaskError
from engine_api.executor.networks import Attachment
from overlay.io.driver import Driver
from overlay.model import Network, Subnet
from overlay.plugin import ID_OPTION, network_options
from swarm import api
from swarm.agent.events import Networks
from swarm.manager.networks import driver_of, is_ingress, is_node_local

log = structlog.get_logger(__name__)

Json = dict[str, Any]

_VNIS = "com.docker.network.driver.overlay.vxlanid_list"
_MTU = "com.docker.network.driver.mtu"
_ENCRYPTED = "encrypted"


class OverlayNetworks:
    """See the module (engine_api.executor.networks.TaskNetworks). driver_name: of the engine's driver that we are."""

    def __init__(self, engine: EngineClient, driver: Driver, attachments: Attachments, driver_name: str) -> None:
        self._engine = engine
        self._driver = driver
        self._attachments = attachments
        self._driver_name = driver_name
        self._users: dict[str, dict[str, None]] = {}
        self._expected: dict[tuple[str, str], str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def known(self, networks: Networks) -> None:
        """See TaskNetworks.known."""
        self._driver.know(networks.local, networks.changed, networks.complete)

    # --- tasks -----------------------------------------------------------------------------------------------------

    async def prepare(self, task: api.Task) -> Attachment:
        """See TaskNetworks.prepare."""
        endpoints, servers = [], []
        for attachment in service_networks(task):
            network = overlay_network(attachment.network)
            self._users.setdefault(network.id, {})[task.id] = None
            name = await self._engine_network(network)
            settings: Json = {}
            if attachment.addresses and not task.spec.HasField("attachment"):
                address = attachment.addresses[0].partition("/")[0]
                self._expected[(network.id, address)] = task.id
                settings["IPAMConfig"] = {"IPv4Address": address}
            endpoints.append(Endpoint(name, settings))
            servers += [str(subnet.gateway) for subnet in network.subnets[:1]]
        return Attachment(endpoints, servers)

    async def activate(self, task: api.Task) -> None:
        """Nothing to do: the managers tell all nodes when the task runs."""

    async def deactivate(self, task: api.Task) -> None:
        """Nothing to do: the managers told all nodes when they decided that the task shall end."""

    async def release(self, task: api.Task) -> None:
        """See TaskNetworks.release."""
        for place in [place for place, task_id in self._expected.items() if task_id == task.id]:
            del self._expected[place]
        for attachment in service_networks(task):
            network_id = attachment.network.id
            async with self._lock(network_id):
                users = self._users.get(network_id, {})
                users.pop(task.id, None)
                if not users:
                    self._users.pop(network_id, None)
                    await self._remove(network_id)

    async def attached(self, task: api.Task) -> None:
        """See TaskNetworks.attached."""
        if self._attachments.has(task.id):
            return
        for attachment in service_networks(task)[:1]:  # after a restart of this process a container may use it
            used = await self._used(attachment.network.id)
            addresses = {address.partition("/")[0] for address in attachment.addresses}
            await self._attachments.assigned(task, in_use=bool(addresses & used))

    async def detached(self, task: api.Task) -> None:
        """See TaskNetworks.detached."""
        self._attachments.gone(task.id)
        await self.release(task)

    # --- addresses -------------------------------------------------------------------------------------------------

    async def request_address(self, network_id: str, wanted: str) -> str:
        """The address for a container that starts: a task's is its own, a plain container gets an attachment.

        Raises AttachError.
        """
        if wanted and self._expected.pop((network_id, wanted), None) is not None:
            return wanted  # once: it is expected again before each start of the task's container
        return await self._attachments.request(network_id, wanted)

    def release_address(self, network_id: str, address: str) -> None:
        """No container uses the address any more."""
        self._attachments.release(network_id, address)

    # --- the engine's networks -------------------------------------------------------------------------------------

    async def ensure(self, network: api.Network) -> str:
        """The engine has the network: its name there. For plain containers. Raises TaskError, EngineUnavailable."""
        return await self._engine_network(overlay_network(network))

    async def _engine_network(self, network: Network) -> str:
        """The engine's network of a network of the swarm, made if it is missing: by its name, if only one has it."""
        async with self._lock(network.id):
            rows = await self._engine.list_networks({"name": [network.name]})
            check_engine(self._engine.seen.server)  # after the call: each answer tells the version
            named = [row for row in rows if row["Name"] == network.name]
            ours = [row for row in named if (row.get("Options") or {}).get(ID_OPTION) == network.id]
            if ours:
                return str(network.name if len(named) == 1 else ours[0]["Id"])
            try:
                created = await self._engine.create_network(self._create_body(network))
            except EngineError as error:
                raise TaskError(f"network {network.name} can not be made: {error.message}") from None
            log.info("network.made", network=network.id, name=network.name)
            return network.name if not named else created

    def _create_body(self, network: Network) -> Json:
        return {
            "Name": network.name,
            "Driver": self._driver_name,
            "Internal": network.internal,
            "Options": network_options(network),
            "IPAM": {
                "Driver": self._driver_name,
                "Options": {ID_OPTION: network.id},
                "Config": [{"Subnet": str(one.pool), "Gateway": str(one.gateway)} for one in network.subnets],
            },
        }

    async def _used(self, network_id: str) -> set[str]:
        """The addresses that running containers of this engine have in a network."""
        used: set[str] = set()
        for row in await self._carriers(network_id):
            containers = (await self._engine.inspect_network(row["Id"])).get("Containers") or {}
            used |= {one["IPv4Address"].partition("/")[0] for one in containers.values()}
        return used

    async def _carriers(self, network_id: str) -> list[Json]:
        rows = await self._engine.list_networks({"driver": [self._driver_name]})
        return [row for row in rows if (row.get("Options") or {}).get(ID_OPTION) == network_id]

    async def _remove(self, network_id: str) -> None:
        """Remove the engine's network, unless a container uses it, be it one that does not run now."""
        try:
            for row in await self._carriers(network_id):
                kept = await self._engine.list_containers({"network": [row["Name"]]})
                if all(LABEL_TASK_ID in (one.get("Labels") or {}) for one in kept):
                    await self._engine.remove_network(row["Id"])
                    log.info("network.removed", network=network_id, name=row["Name"])
        except EngineError as error:
            if error.status not in (403, 404):
                log.warning("network.not_removed", network=network_id, error=error.message)
        except EngineUnavailable:
            pass

    async def remove_all(self) -> None:
        """This node has left its swarm: the engine's networks of it go. Raises EngineError, EngineUnavailable.

        Plain containers lose them: a network of that name in the next swarm would be another one.
        """
        self._users.clear()
        self._expected.clear()
        for row in await self._engine.list_networks({"driver": [self._driver_name]}):
            for container in await self._engine.list_containers({"network": [row["Id"]]}):
                await self._engine.disconnect_network(row["Id"], container["Id"], force=True)
            await self._engine.remove_network(row["Id"])
        self._driver.forget()

    def _lock(self, network_id: str) -> asyncio.Lock:
        return self._locks.setdefault(network_id, asyncio.Lock())


def check_engine(server: str) -> None:
    """Refuse an engine that cannot have networks of ours. server: its Server header. Raises TaskError."""
    found = re.match(r"Docker/(\d+)\.(\d+)\.(\d+)", server)
    version = tuple(int(part) for part in found.groups()) if found else ()
    if (29, 0, 0) <= version < (29, 0, 4):
        said = ".".join(map(str, version))
        raise TaskError(
            f"Docker Engine {said} does not work with network plugins: networks of the swarm need 29.0.4 or newer"
        )


def overlay_network(network: api.Network) -> Network:
    """A network as the overlay knows it. Raises TaskError if it is none that this node can make."""
    name = network.spec.annotations.name
    if is_node_local(network) or driver_of(network) != "overlay":
        raise TaskError(f"network {name} cannot be attached: its driver {driver_of(network)} is not available yet")
    options = network.driver_state.options
    if _ENCRYPTED in options:
        raise TaskError(f"network {name} cannot be attached: encryption between nodes is not available yet")
    try:
        vnis = [int(vni) for vni in options.get(_VNIS, "").split(",") if vni]
        subnets = tuple(_subnets(network.ipam.configs, vnis))
        mtu = int(options.get(_MTU, 0))
    except ValueError as error:
        raise TaskError(f"network {name} cannot be attached: {error}") from None
    if not subnets:
        raise TaskError(f"network {name} cannot be attached: it has no subnet")
    return Network(network.id, name, subnets, mtu, is_ingress(network), network.spec.internal)


def _subnets(configs: Iterable[api.IPAMConfig], vnis: list[int]) -> Iterable[Subnet]:
    for config, vni in zip((one for one in configs if one.family != api.IPAMConfig.IPV6), vnis, strict=False):
        gateway = IPv4Address(config.gateway.partition("/")[0])
        yield Subnet(IPv4Network(config.subnet, strict=False), gateway, vni)
