"""Addresses for plain containers in networks of the swarm.

The engine asks for an address when a container starts and gives it back when the container stops. An address is an
attachment, a task that the managers give this node. One that was given back is kept for a while: a container that
restarts gets its address again, also while no manager can be reached. What no container uses after that goes back to
the managers. Nothing is remembered on disk: the attachments are this node's tasks, the containers are the engine's.

(moby: daemon/cluster/networks.go AttachNetwork, DetachNetwork)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import Method, Req, Res
from swarm.errors import DeadlineExceeded, NotFound, SwarmError

log = structlog.get_logger(__name__)


class AttachError(Exception):
    """A container gets no address; the text says why."""


class Managers(Protocol):
    """A way to the managers of this node's swarm."""

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """One RPC. Raises SwarmError."""
        ...


@dataclass(slots=True)
class _Attachment:
    """One address that this node has. idle_since: since when no container uses it (loop time); None: one does."""

    task_id: str
    network_id: str
    network_name: str
    address: str
    idle_since: float | None


class Attachments:
    """See the module."""

    def __init__(self, managers: Callable[[], Managers]) -> None:
        """managers: the present connection. It may raise SwarmError."""
        self._managers = managers
        self._held: dict[str, _Attachment] = {}
        self._abandoned: dict[str, None] = {}
        self._news = asyncio.Condition()
        self._expiry: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to give back what no container uses."""
        self._expiry = asyncio.create_task(self._expire(), name="attachments")

    async def close(self) -> None:
        """End; the attachments stay."""
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)

    # --- the managers' side ----------------------------------------------------------------------------------------

    async def assigned(self, task: api.Task, in_use: bool = False) -> None:
        """This node has an attachment. Told again and again, also after a restart; in_use: a container has it then."""
        if task.id in self._held or not task.networks or not task.networks[0].addresses:
            return
        network = task.networks[0]
        address = network.addresses[0].partition("/")[0]
        now = asyncio.get_running_loop().time()
        async with self._news:
            name = network.network.spec.annotations.name
            self._held[task.id] = _Attachment(task.id, network.network.id, name, address, None if in_use else now)
            self._news.notify_all()

    def has(self, task_id: str) -> bool:
        """Whether this node knows that it has this attachment."""
        return task_id in self._held

    def gone(self, task_id: str) -> None:
        """The managers have taken it back."""
        self._held.pop(task_id, None)

    # --- the engine's side -----------------------------------------------------------------------------------------

    async def reserve(self, target: str) -> str:
        """An address in a network (its ID or name) for a container that will start soon; the network's name.

        When it is there, the engine has the network, too. Raises SwarmError.
        """
        request = api.AttachNetworkRequest()
        request.config.target = target
        task_id = ""
        try:
            async with asyncio.timeout(defaults.ATTACH_TIMEOUT_S):
                task_id = (await self._managers().call(rpc.ATTACH_NETWORK, request)).attachment_id
                async with self._news:
                    while task_id not in self._held:
                        await self._news.wait()
            return self._held[task_id].network_name
        except TimeoutError:
            raise DeadlineExceeded(_late(target)) from None
        finally:
            self._abandon(task_id)

    async def request(self, network_id: str, wanted: str = "") -> str:
        """An address for a container that starts. wanted: the only one that will do. Raises AttachError."""
        taken = self._take(network_id, wanted)
        if taken is not None:
            return taken.address
        request = api.AttachNetworkRequest()
        request.config.target = network_id
        if wanted:
            request.config.addresses.append(wanted)
        task_id = ""
        try:
            async with asyncio.timeout(defaults.ATTACH_TIMEOUT_S):
                task_id = (await self._managers().call(rpc.ATTACH_NETWORK, request)).attachment_id
                async with self._news:
                    while (taken := self._take(network_id, wanted)) is None:
                        await self._news.wait()
        except SwarmError as error:
            raise AttachError(error.message) from error
        except TimeoutError:
            raise AttachError(_late(network_id)) from None
        finally:
            if taken is None:
                self._abandon(task_id)
        return taken.address

    def _abandon(self, task_id: str) -> None:
        """Nobody waits any more for an attachment: it goes back, also if this node never hears of it."""
        if task_id and task_id not in self._held:
            self._abandoned[task_id] = None

    def release(self, network_id: str, address: str) -> None:
        """No container uses the address any more."""
        for one in self._held.values():
            if (one.network_id, one.address) == (network_id, address):
                one.idle_since = asyncio.get_running_loop().time()

    def _take(self, network_id: str, wanted: str) -> _Attachment | None:
        """One that is idle, if there is one, which is not idle any more. Each request may take another's: all fit."""
        for one in self._held.values():
            if one.idle_since is not None and one.network_id == network_id and wanted in ("", one.address):
                one.idle_since = None
                return one
        return None

    # --- giving back -----------------------------------------------------------------------------------------------

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(defaults.ATTACHMENT_CHECK_S)
            await self.give_back(asyncio.get_running_loop().time() - defaults.ATTACHMENT_KEPT_S)

    async def give_back(self, before: float) -> None:
        """Give back what has been idle since before this moment (loop time). What fails is tried again."""
        for task_id in [task_id for task_id in self._abandoned if task_id not in self._held]:
            if await self._detached(task_id):
                self._abandoned.pop(task_id, None)
        for one in list(self._held.values()):
            if one.idle_since is None or one.idle_since > before:
                continue
            del self._held[one.task_id]  # so that no container gets it meanwhile
            self._abandoned.pop(one.task_id, None)
            if not await self._detached(one.task_id):
                self._held[one.task_id] = one

    async def _detached(self, task_id: str) -> bool:
        try:
            await self._managers().call(rpc.DETACH_NETWORK, api.DetachNetworkRequest(attachment_id=task_id))
        except NotFound:
            return True
        except SwarmError as error:
            log.info("attachment.not_given_back", attachment=task_id, error=error.message)
            return False
        return True


def _late(network: str) -> str:
    return (
        f"no address in network {network} was given to this node within {defaults.ATTACH_TIMEOUT_S:.0f} s; "
        "docker network inspect on a manager shows what is in use"
    )
