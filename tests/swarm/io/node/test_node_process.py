"""What a node's process remembers when it starts again, and that it ends everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from certs.keystore import Kek, KeyStore
from swarm import api
from swarm.io.node.agent_process import AgentProcess, TaskEffect
from swarm.io.node.hooks import NodeHooks
from swarm.io.node.manager_process import LOG_FILE
from swarm.io.node.node_process import NodeProcess
from swarm.io.process import Clock
from swarm.manager.cluster import NewCluster
from swarm.node import events
from swarm.node.state import STATE_FILE, Addresses, NodeState
from swarm.node.steps import Phase
from swarm.store.store import Change

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
    state = NodeState("node1", "cluster1", "127.0.0.1", 0, "127.0.0.1", 2377, "", raft_id=7, past_raft_ids=(3,))
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
