"""With which log a manager starts: the one on its disk, a new one, or none that it would have to doubt.

(swarmkit: manager/state/raft/storage.go loadAndStart, raft.go JoinAndStart)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

import structlog

from certs import files
from certs.files import SYSTEM, Files
from swarm import api, defaults
from swarm.api import raftpb
from swarm.errors import FailedPrecondition, JoinUndecided, SwarmError
from swarm.io.disk import mark, replaced_file
from swarm.io.disk.database import DiskCorrupt, DiskError
from swarm.io.disk.raft_disk import Loaded, RaftDisk
from swarm.manager.group import dialogues
from swarm.node.events import OnLoss
from swarm.raft import events, membership
from swarm.raft.events import LogConflict, LogLost

log = structlog.get_logger()

T = TypeVar("T")
Make = Callable[[Loaded, int, tuple[raftpb.Entry, ...]], T]

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


class LogFile(Protocol):
    """A member's log on its disk. Each may raise DiskError, and DiskCorrupt when it reads; see RaftDisk."""

    async def load(self) -> Loaded:
        """Everything."""
        ...

    async def save(self, persist: events.Persist) -> None:
        """Write it durably."""
        ...

    async def initialize(self, raft_id: int, node_id: str, cluster_id: str) -> None:
        """Give a new log its owner."""
        ...

    async def salvage(self) -> tuple[Loaded, str]:
        """What can be read, and what is lost."""
        ...

    async def start_over(self, content: Loaded) -> None:
        """Put another log in its place, in one step."""
        ...

    async def confirmed_as(self) -> int:
        """The raft ID of the member that wrote it; 0: unknown."""
        ...


class RaftDiskInThreads:
    """RaftDisk as a LogFile."""

    def __init__(self, disk: RaftDisk) -> None:
        self._disk = disk

    async def load(self) -> Loaded:
        """See LogFile."""
        return await asyncio.to_thread(self._disk.load)

    async def save(self, persist: events.Persist) -> None:
        """See LogFile."""
        await asyncio.to_thread(self._disk.save, persist)

    async def initialize(self, raft_id: int, node_id: str, cluster_id: str) -> None:
        """See LogFile."""
        await asyncio.to_thread(self._disk.initialize, raft_id, node_id, cluster_id)

    async def salvage(self) -> tuple[Loaded, str]:
        """See LogFile."""
        return await asyncio.to_thread(self._disk.salvage)

    async def start_over(self, content: Loaded) -> None:
        """See LogFile."""
        await asyncio.to_thread(self._disk.start_over, content)

    async def confirmed_as(self) -> int:
        """See LogFile."""
        return await asyncio.to_thread(self._disk.confirmed_as)


class MemberLog:
    """See the module. It does no I/O of its own. joined: the members of the group, as whoever took us in told them."""

    def __init__(self, file: Path, disk: LogFile, settings: ManagerSettings, dial: dialogues.Dial, rng: Random) -> None:
        """file: where the disk keeps it, for users."""
        self.joined: list[api.RaftMember] = []
        self._file = file
        self._disk = disk
        self._settings = settings
        self._dial = dial
        self._rng = rng

    async def open(
        self, make: Make[T], create: bool, join: Sequence[str], force_new_cluster: bool, on_loss: OnLoss
    ) -> T:
        """What make returns for the content, the raft ID, and the entries to begin with.

        See ManagerProcess.start for what is raised.
        """
        try:
            return make(*await self._open(create, join, force_new_cluster, on_loss))
        except (DiskCorrupt, LogLost, LogConflict) as error:
            raise lost(error, join, on_loss) from error

    async def _open(
        self, create: bool, join: Sequence[str], force_new_cluster: bool, on_loss: OnLoss
    ) -> tuple[Loaded, int, tuple[raftpb.Entry, ...]]:
        if on_loss is OnLoss.REJOIN:
            return Loaded(), await self._rejoin(join), ()
        if force_new_cluster:
            loaded = await self._force_new_cluster(on_loss)
        else:
            loaded = self._ours(await self._disk.load())
        if create:
            return (loaded, *await self._found())
        if loaded.raft_id:
            return loaded, loaded.raft_id, loaded.entries
        # the group counts on us from the moment it takes us in, so the server answers before that
        return loaded, await self._join(join), ()

    def _ours(self, loaded: Loaded) -> Loaded:
        """Raises LogLost if it is not the log of the member that this node was last."""
        settings = self._settings
        if not settings.raft_id or loaded.raft_id == settings.raft_id:
            return loaded
        joined_again = loaded.raft_id not in (0, *settings.past_raft_ids)  # and was killed before it noted that
        if joined_again and (loaded.node_id, loaded.cluster_id) == (settings.node_id, settings.cluster_id):
            return loaded
        raise LogLost(LOG_GONE.format(self._file))

    async def _found(self) -> tuple[int, tuple[raftpb.Entry, ...]]:
        """A new group with this node as its only member."""
        raft_id = self._rng.getrandbits(62) + 1
        await self._disk.initialize(raft_id, self._settings.node_id, self._settings.cluster_id)
        member = api.RaftMember(raft_id=raft_id, node_id=self._settings.node_id, addr=self._settings.address)
        return raft_id, membership.bootstrap_entries(raft_id, member.SerializeToString())

    async def _force_new_cluster(self, on_loss: OnLoss) -> Loaded:
        """Make this member the only one, under its present address. Raises SwarmError."""
        accepts = on_loss is OnLoss.ACCEPT
        found, lost = await self._disk.salvage() if accepts else (await self._disk.load(), "")
        loaded = self._ours(found)
        if loaded.hard_state is None:
            raise LogLost(LOG_GONE.format(self._file))
        raft_id = loaded.raft_id
        member = api.RaftMember(raft_id=raft_id, node_id=self._settings.node_id, addr=self._settings.address)
        hard_state, entries = membership.force_new_cluster(
            raft_id, member.SerializeToString(), loaded.hard_state, loaded.snapshot, loaded.entries
        )
        if accepts:
            log.warning("raft.loss_accepted", file=str(self._file), lost=lost or "nothing that was confirmed")
            await self._disk.start_over(replace(loaded, hard_state=hard_state, entries=(*loaded.entries, *entries)))
        else:
            await self._disk.save(events.Persist(0, hard_state, entries))
        log.warning("raft.new_cluster_forced", entries=len(entries))
        return await self._disk.load()

    async def _join(self, managers: Sequence[str]) -> int:
        """Become a member through any of the managers. Raises SwarmError; see dialogues.join."""
        settings = self._settings
        answer = await self._ask_in(managers, settings.past_raft_ids)
        try:
            await self._disk.initialize(answer.raft_id, settings.node_id, settings.cluster_id)
        except DiskError as error:
            raise JoinUndecided(str(error)) from error  # the group counts on us already
        return answer.raft_id

    async def _rejoin(self, managers: Sequence[str]) -> int:
        """Become another member. The old log stays until the group took us in: it may be the best that is left."""
        settings = self._settings
        was = {settings.raft_id, await self._disk.confirmed_as()} - {0}
        if not was:
            raise FailedPrecondition(LEAVE_AND_JOIN.format(self._file))
        answer = await self._ask_in(managers, (*settings.past_raft_ids, *sorted(was)))
        new = Loaded(answer.raft_id, settings.node_id, settings.cluster_id)
        await self._disk.start_over(new)
        return answer.raft_id

    async def _ask_in(self, managers: Sequence[str], past_raft_ids: tuple[int, ...]) -> api.JoinResponse:
        settings = self._settings
        answer = await dialogues.join(managers, settings.node_id, settings.address, past_raft_ids, self._dial)
        self.joined = list(answer.members)
        return answer


def lost(error: SwarmError, join: Sequence[str], on_loss: OnLoss) -> LogLost:
    """For users, with what they can do. join: the other managers that are known."""
    advice = JOINS_AGAIN if join else NOTHING_LEFT if on_loss is OnLoss.ACCEPT else ON_ITS_OWN
    return LogLost(f"{LOG_REFUSED.format(error.message)}. {advice}")


def erase_log(directory: Path, disk: Files = SYSTEM) -> None:
    """Forget the log and membership of a manager that does not run. Blocks. Raises OSError."""
    file = directory / LOG_FILE
    files.remove(replaced_file.with_logs(file), disk)
    files.remove([mark.mark_of(file)], disk)  # not before the rest: what is left after a crash is refused
    replaced_file.discard(file, disk)
