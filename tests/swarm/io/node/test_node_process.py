"""What a node's process remembers when it starts again, and that it ends everything."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from certs.errors import CertsError
from certs.files import SYSTEM, Files
from certs.keystore import Kek, KeyStore
from swarm import api
from swarm.errors import SwarmError
from swarm.io.node.agent_process import AgentProcess, TaskEffect
from swarm.io.node.hooks import NodeHooks
from swarm.io.node.member_log import LOG_FILE
from swarm.io.node.node_process import NodeProcess
from swarm.io.process import Clock
from swarm.manager.cluster import NewCluster
from swarm.node import events
from swarm.node.membership import LEAVING
from swarm.node.state import STATE_FILE, Addresses, NodeState
from swarm.node.steps import Phase
from swarm.store.store import Change
from tests.bad_disk import EIO, ENOSPC, BadDisk
from tests.conftest import CLUSTER_ID

if TYPE_CHECKING:
    from tests.conftest import Authority


class Idle:
    """An executor without tasks."""

    def __init__(self, close_error: Exception | None = None) -> None:
        self.close_error = close_error

    def perform(self, effect: TaskEffect) -> None:
        pass

    async def describe(self) -> api.NodeDescription:
        return api.NodeDescription(hostname="node1")

    async def close(self) -> None:
        if self.close_error is not None:
            raise self.close_error

    async def remove_all(self, node_id: str) -> None:
        pass


async def make_runner(node_id: str, agent: AgentProcess) -> Idle:
    return Idle()


async def remove_nothing(node_id: str) -> None:
    """No containers were left."""


def unexpected(error: Exception) -> bool:
    return False


def heed_not(changes: Sequence[Change]) -> None:
    """Nobody listens."""


async def test_a_log_given_up_after_a_crash_stays_the_log_of_a_past_member(
    tmp_path: Path, authority: Authority
) -> None:
    """Killed between its demotion and the end of its log: it must not become that member again without the log."""
    keys = KeyStore(tmp_path / "certificates")
    keys.save_root(authority.pem)
    keys.save(authority.issue("node1", "swarm-worker"), Kek())
    state = NodeState("node1", CLUSTER_ID, "127.0.0.1", 0, "127.0.0.1", 2377, "", raft_id=7, past_raft_ids=(3,))
    (tmp_path / LOG_FILE).write_bytes(b"the log")
    (tmp_path / STATE_FILE).write_text(state.to_json())
    node = NodeProcess(tmp_path, NodeHooks(make_runner, remove_nothing, unexpected, heed_not), Clock(), Random(1))
    await node.start()
    assert node.status().error is None
    await node.close()
    saved = NodeState.from_json((tmp_path / STATE_FILE).read_text())
    assert (saved.raft_id, saved.past_raft_ids) == (0, (3, 7))
    assert not (tmp_path / LOG_FILE).exists()


async def test_an_executor_that_fails_at_its_end_does_not_keep_the_manager_running(tmp_path: Path) -> None:
    async def make_stubborn(node_id: str, agent: AgentProcess) -> Idle:
        return Idle(OSError("the engine went away"))

    directory = tmp_path / "swarm"
    node = NodeProcess(directory, NodeHooks(make_stubborn, remove_nothing, unexpected, heed_not), Clock(), Random(1))
    await node.start()
    state = NodeState.new(Addresses("127.0.0.1", 0, "127.0.0.1", 2377, "127.0.0.1"), "node1", "cluster1").with_self()
    for _ in range(2):
        await node.request(lambda ticket: events.Init(ticket, state, api.ClusterSpec(), NewCluster()))
        assert node.status().manager_running
        await node.request(lambda ticket: events.Leave(ticket, force=True))
        assert node.status().phase is Phase.INACTIVE
        assert node.manager is None
        assert not directory.exists()
    await node.close()


def process(directory: Path, disk: Files = SYSTEM) -> NodeProcess:
    hooks = NodeHooks(make_runner, remove_nothing, unexpected, heed_not)
    return NodeProcess(directory, hooks, Clock(), Random(1), disk)


STATE = NodeState.new(Addresses("127.0.0.1", 0, "127.0.0.1", 2377, "127.0.0.1"), "node1", "cluster1").with_self()


async def init(node: NodeProcess) -> None:
    await node.request(lambda ticket: events.Init(ticket, STATE, api.ClusterSpec(), NewCluster()))


async def leave(node: NodeProcess) -> None:
    await node.request(lambda ticket: events.Leave(ticket, force=True))


async def succeeds(work: Coroutine[None, None, None]) -> bool:
    try:
        await work
    except (OSError, SwarmError, CertsError):
        return False
    return True


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


async def has_left(node: NodeProcess) -> None:
    """If a leave goes on at this start, it has ended."""
    for _ in range(10_000):
        if node.status().trouble != LEAVING:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the leave does not end")


def restore(good: dict[str, bytes]) -> None:
    for path, data in good.items():
        Path(path).write_bytes(data)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("code", "after"), [(EIO, False), (EIO, True), (ENOSPC, False)])
async def test_an_error_of_the_disk_at_any_step_of_init_and_leave_ends_as_the_answer_says(
    tmp_path: Path, code: int, after: bool
) -> None:
    for at in range(100):
        directory = tmp_path / str(at)
        disk = BadDisk(at, after, code)
        node = process(directory, disk)
        await node.start()
        made = await succeeds(init(node))
        left = made and await succeeds(leave(node))
        shown = node.status()
        await node.close()
        node = process(directory)
        await node.start()
        await has_left(node)
        status = node.status()
        if made and not left and shown.phase is Phase.PENDING:  # the leave was refused, and changed nothing
            assert (status.phase, status.node_id, status.manager_running) == (Phase.PENDING, "node1", True)
            await leave(node)
        else:
            assert status.phase is Phase.INACTIVE, f"{status} after an error in call {at}: {disk.calls[at : at + 1]}"
        assert content(directory) == {}
        await init(node)
        await node.close()
        if not disk.struck:
            assert at > 15
            return
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize(
    ("name", "damage", "error"),
    [
        ("state.json", None, "state.json is missing, but this node has certificates/swarm-node.crt, "),
        ("state.json", b"", "state.json is damaged"),
        ("state.json", b'{"version": 1, "node', "state.json is damaged"),
        ("state.json", b'{"version": 7}', "another version"),
        ("state.json", STATE.to_json().replace("node1", "node2").encode(), "belongs to node node2"),
        ("certificates/swarm-node.crt", None, "certificates/swarm-node.crt. Nothing was deleted"),
        ("certificates/swarm-node.key", None, "certificates/swarm-node.key. Nothing was deleted"),
        ("certificates/swarm-root-ca.crt", None, "certificates/swarm-root-ca.crt. Nothing was deleted"),
        ("certificates/swarm-node.key", b"", "invalid PEM-encoded private key"),
        ("raft.db", None, "raft.db"),
    ],
)
async def test_a_file_that_is_missing_or_damaged_is_named_nothing_is_deleted_and_all_is_well_when_it_is_back(
    tmp_path: Path, name: str, damage: bytes | None, error: str
) -> None:
    directory = tmp_path / "swarm"
    node = process(directory)
    await node.start()
    await init(node)
    await node.close()
    good = content(directory)
    (directory / name).unlink()
    if damage is not None:
        (directory / name).write_bytes(damage)
    before = content(directory)
    for _ in range(2):
        node = process(directory)
        await node.start()
        status = node.status()
        assert status.phase is Phase.ERROR
        assert error in str(status.error)
        await node.close()
        after = content(directory)
        assert {path: after.get(path) for path in before if "raft.db" not in path} == {
            path: data for path, data in before.items() if "raft.db" not in path
        }
        assert set(before) <= set(after)
    restore(good)
    node = process(directory)
    await node.start()
    assert (node.status().phase, node.status().node_id, node.status().manager_running) == (Phase.PENDING, "node1", True)
    await node.close()


async def test_a_log_alone_is_kept(tmp_path: Path) -> None:
    (tmp_path / "swarm").mkdir()
    (tmp_path / "swarm" / LOG_FILE).write_bytes(b"acknowledged")
    node = process(tmp_path / "swarm")
    await node.start()
    assert "raft.db" in str(node.status().error)
    assert content(tmp_path / "swarm") == {str(tmp_path / "swarm" / LOG_FILE): b"acknowledged"}
    await leave(node)
    assert content(tmp_path) == {}
    await node.close()
