"""Managers on real files whose log was lost or damaged: they start as another member, alone when forced, or not."""

from __future__ import annotations

import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from certs.tls import Credentials, server_context
from swarm import api
from swarm.api import rpc
from swarm.errors import FailedPrecondition, SwarmError
from swarm.io.node.manager_process import ManagerProcess
from swarm.io.node.member_log import ManagerSettings
from swarm.io.process import Clock
from swarm.node.events import OnLoss
from swarm.raft.events import LogLost
from swarm.store.tx import Tx

if TYPE_CHECKING:
    from tests.conftest import Authority

FILES = ("raft.db", "raft.db-wal", "raft.db-mark")


class Group:
    """Managers of one cluster in this process, each with a directory of its own."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.directory = directory
        self.running: dict[int, ManagerProcess] = {}
        self.settings: dict[int, ManagerSettings] = {}
        self._authority = authority
        self._credentials: dict[int, Credentials] = {}

    async def start(
        self, number: int, create: bool = False, force: bool = False, on_loss: OnLoss = OnLoss.REFUSE
    ) -> None:
        if number not in self.settings:
            with socket.create_server(("127.0.0.1", 0)) as found:
                port = found.getsockname()[1]
            address = f"127.0.0.1:{port}"
            self.settings[number] = ManagerSettings(f"manager{number}", "cluster1", address, "127.0.0.1", port)
            self.place(number).mkdir()
        if number not in self._credentials:
            self._credentials[number] = self._authority.issue(f"manager{number}")
        own = self._credentials[number]
        context = server_context(own, self._authority.pem)
        manager = ManagerProcess(
            self.place(number),
            self.settings[number],
            lambda: context,
            lambda: self._authority.client(own),
            Clock(),
            Random(),
        )
        others = [self.settings[other].address for other in self.running]
        await manager.start(create, others, force, on_loss)
        self.running[number] = manager
        if create or force:
            await manager.wait_leader(5.0)

    async def refuse(self, number: int, force: bool = False, on_loss: OnLoss = OnLoss.REFUSE) -> None:
        """A start that must fail; at another port, so that nobody is in the middle of a handshake when it ends."""
        settings = self.settings[number]
        self.settings[number] = replace(settings, listen_port=0)
        try:
            await self.start(number, force=force, on_loss=on_loss)
        finally:
            self.settings[number] = settings

    def place(self, number: int) -> Path:
        return self.directory / str(number)

    async def crash(self, number: int) -> int:
        """As kill -9 leaves its files. Returns as which member it ran."""
        image = self.directory / f"{number}.crashed"
        shutil.copytree(self.place(number), image)
        raft_id = self.running[number].raft_id
        await self.running.pop(number).close()
        shutil.rmtree(self.place(number))
        image.rename(self.place(number))
        self.settings[number] = replace(self.settings[number], raft_id=raft_id)
        return raft_id

    def flip(self, number: int, name: str = "raft.db-wal") -> bytes:
        file = self.place(number) / name
        content = bytearray(file.read_bytes())
        content[len(content.rstrip(b"\0")) // 2] ^= 1
        file.write_bytes(content)
        return bytes(content)

    async def write(self, number: int, name: str) -> None:
        spec = api.ConfigSpec(annotations=api.Annotations(name=name), data=b"1")
        await self.running[number].call(rpc.CREATE_CONFIG, api.CreateConfigRequest(spec=spec), 5.0)

    async def names(self, number: int) -> list[str]:
        listed = await self.running[number].call(rpc.LIST_CONFIGS, api.ListConfigsRequest(), 5.0)
        return sorted(config.spec.annotations.name for config in listed.configs)


def add_managers(tx: Tx) -> None:
    """The nodes of all managers."""
    for number in (1, 2, 3):
        tx.create(api.Node(id=f"manager{number}", role=api.MANAGER)).spec.desired_role = api.MANAGER


@pytest_asyncio.fixture
async def group(tmp_path: Path, authority: Authority) -> AsyncIterator[Group]:
    group = Group(tmp_path, authority)
    await group.start(1, create=True)
    await group.running[1].write(add_managers, 5.0)
    for number in range(20):
        await group.write(1, f"c{number:02}")
    yield group
    for manager in reversed(group.running.values()):
        await manager.close()


@pytest.mark.parametrize("name", FILES)
async def test_one_of_three_managers_joins_again_and_nothing_is_lost(group: Group, name: str) -> None:
    await group.start(2)
    await group.start(3)
    await group.write(3, "last")
    was = await group.crash(3)
    if name == "raft.db-wal":
        group.flip(3, name)
    else:
        (group.place(3) / name).write_bytes(b"x" * 20_000)
    with pytest.raises(LogLost, match=r"raft\.db.*asks the other managers to let it join again as a new member"):
        await group.refuse(3)
    await group.start(3, on_loss=OnLoss.REJOIN)
    assert group.running[3].raft_id != was
    members = {member.node_id: member.raft_id for member in group.running[1].manager.members()}  # type: ignore[union-attr]
    assert members["manager3"] == group.running[3].raft_id
    assert len(members) == 3
    assert await group.names(3) == [*(f"c{number:02}" for number in range(20)), "last"]
    again = await group.crash(3)  # before state.json tells of it
    group.settings[3] = replace(group.settings[3], raft_id=was)
    await group.start(3)
    assert group.running[3].raft_id == again


async def test_while_nobody_takes_it_in_the_old_log_stays(group: Group) -> None:
    await group.start(2)
    await group.crash(2)
    damaged = group.flip(2)
    with pytest.raises(SwarmError) as caught:  # the other one cannot decide without this one
        await group.refuse(2, on_loss=OnLoss.REJOIN)
    assert not isinstance(caught.value, LogLost)
    assert (group.place(2) / "raft.db-wal").read_bytes() == damaged


async def test_who_gave_its_log_up_does_not_come_back_with_an_old_copy_of_it(group: Group) -> None:
    await group.start(2)
    await group.start(3)
    was = await group.crash(3)
    copy = group.directory / "copy"
    shutil.copytree(group.place(3), copy)
    group.flip(3)
    await group.start(3, on_loss=OnLoss.REJOIN)
    await group.crash(3)
    shutil.rmtree(group.place(3))
    shutil.copytree(copy, group.place(3))
    group.settings[3] = replace(group.settings[3], past_raft_ids=(was,))
    with pytest.raises(LogLost, match="log is gone"):
        await group.refuse(3)


async def test_a_log_of_nobody_knows_which_member_is_not_replaced(group: Group) -> None:
    await group.start(2)
    await group.start(3)
    await group.crash(3)
    for name in FILES:
        (group.place(3) / name).write_bytes(b"x" * 10_000)
    group.settings[3] = replace(group.settings[3], raft_id=0)
    with pytest.raises(LogLost):
        await group.refuse(3)
    with pytest.raises(FailedPrecondition, match="it cannot be told as which member"):
        await group.refuse(3, on_loss=OnLoss.REJOIN)


async def test_a_single_manager_goes_on_with_what_is_left_only_when_that_is_accepted(group: Group) -> None:
    await group.crash(1)
    damaged = group.flip(1)
    for force in (False, True):
        with pytest.raises(LogLost, match=r"raft\.db-wal: frame \d+ is damaged.*had confirmed entries up to"):
            await group.refuse(1, force=force)
    assert (group.place(1) / "raft.db-wal").read_bytes() == damaged
    await group.start(1, force=True, on_loss=OnLoss.ACCEPT)
    left = await group.names(1)
    assert left == [f"c{number:02}" for number in range(len(left))]
    assert 0 < len(left) < 20
    await group.write(1, "new")
    await group.crash(1)
    await group.start(1)
    await group.running[1].wait_leader(5.0)
    assert await group.names(1) == [*left, "new"]


async def test_there_is_nothing_to_accept_if_the_log_is_gone(group: Group) -> None:
    await group.crash(1)
    for name in FILES:
        (group.place(1) / name).unlink()
    for force in (False, True):
        with pytest.raises(LogLost, match="the manager's log is gone"):
            await group.refuse(1, force=force)
    with pytest.raises(LogLost, match="Nothing is left to go on with"):
        await group.refuse(1, force=True, on_loss=OnLoss.ACCEPT)
