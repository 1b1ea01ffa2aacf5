"""A simulated disk as swarm.io.node.member_log.LogFile: each step takes a while, and a kill may come between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm.io.disk.database import DiskError
from swarm.io.disk.raft_disk import Loaded
from swarm.raft import events
from tests.sim.raft_content import Owner, Write

if TYPE_CHECKING:
    from tests.sim.process import Process

STEP_S = 0.002


class SimLogFile:
    """The log of the node whose process this is."""

    def __init__(self, process: Process) -> None:
        self._kernel = process.kernel
        self._disk = process.disk

    async def load(self) -> Loaded:
        """See LogFile."""
        return self._disk.raft.load()

    async def save(self, persist: events.Persist) -> None:
        """See LogFile."""
        await self._write(persist)

    async def initialize(self, raft_id: int, node_id: str, cluster_id: str) -> None:
        """See LogFile."""
        await self._write(Owner(raft_id, node_id, cluster_id))

    async def _write(self, write: Write) -> None:
        await self._kernel.sleep(STEP_S)
        if error := self._disk.write_log(write):
            raise DiskError(error)
        await self._kernel.sleep(STEP_S)

    async def salvage(self) -> tuple[Loaded, str]:
        """See LogFile."""
        return self._disk.raft.salvage()

    async def start_over(self, content: Loaded) -> None:
        """See LogFile."""
        await self._kernel.sleep(STEP_S)
        if self._disk.files.full:
            raise DiskError("disk full")
        self._disk.raft.start_over(content)
        await self._kernel.sleep(STEP_S)
        self._disk.raft.confirm()
        await self._kernel.sleep(STEP_S)

    async def confirmed_as(self) -> int:
        """See LogFile."""
        return self._disk.raft.confirmed_as()
