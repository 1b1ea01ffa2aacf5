"""How a manager comes into the group of others."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from certs.tls import server_context
from swarm import api
from swarm.api import rpc
from swarm.errors import JoinUndecided, NotLeader, NotTaken, SwarmError
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.node.manager_process import ManagerProcess
from swarm.io.node.member_log import ManagerSettings
from swarm.io.process import Clock
from swarm.rpc import WORKER_ROLE, Call, Peer, StreamData, StreamEnd
from swarm.store.tx import Tx
from tests.swarm.io.conftest import MakeServed

if TYPE_CHECKING:
    from tests.conftest import Authority

NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(("answer", "undecided"), [(NotLeader(), True), (NotTaken(), False)])
async def test_who_may_have_been_taken_in_is_told_so_whatever_the_others_answer(
    tmp_path: Path, authority: Authority, make_served: MakeServed, answer: SwarmError, undecided: bool
) -> None:
    context = server_context(authority.issue("manager1"), authority.pem)
    served = await make_served(lambda: context, ClusterAuthorizer("cluster1", lambda _: False))

    def refuse(call: Call) -> None:
        served.server.send(StreamEnd(call.stream, answer))

    served.call = refuse  # type: ignore[method-assign]
    own = authority.issue("manager2")
    settings = ManagerSettings("manager2", "cluster1", "127.0.0.1:2377", "127.0.0.1", 0)
    own_context = server_context(own, authority.pem)
    manager = ManagerProcess(tmp_path, settings, lambda: own_context, lambda: authority.client(own), Clock(), Random(1))
    with pytest.raises(SwarmError) as caught:
        await manager.start(create=False, join=[served.address, NOBODY])
    assert isinstance(caught.value, JoinUndecided) == undecided
    assert [call.method for call in served.calls] == ["RaftMembership/Join"]


def add_managers(tx: Tx) -> None:
    """The nodes of both managers."""
    for node_id in ("manager1", "manager2"):
        tx.create(api.Node(id=node_id, role=api.MANAGER)).spec.desired_role = api.MANAGER


async def test_a_manager_that_follows_gives_calls_and_client_streams_to_its_leader(
    tmp_path: Path, authority: Authority
) -> None:
    managers: list[ManagerProcess] = []
    for number in (1, 2):
        own = authority.issue(f"manager{number}")
        own_context = server_context(own, authority.pem)
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        settings = ManagerSettings(f"manager{number}", "cluster1", f"127.0.0.1:{port}", "127.0.0.1", port)
        directory = tmp_path / str(number)
        directory.mkdir()
        manager = ManagerProcess(
            directory,
            settings,
            lambda context=own_context: context,  # type: ignore[misc]
            lambda own=own: authority.client(own),  # type: ignore[misc]
            Clock(),
            Random(number),
        )
        await manager.start(create=not managers, join=[other.settings.address for other in managers])
        managers.append(manager)
        if number == 1:
            await manager.wait_leader(5.0)
            await manager.write(add_managers, 5.0)
    leader, follower = managers
    try:
        config = api.ConfigSpec(annotations=api.Annotations(name="c"), data=b"1")
        made = await follower.call(rpc.CREATE_CONFIG, api.CreateConfigRequest(spec=config), 5.0)
        assert leader.store.get(api.Config, made.config.id) is not None
        listed = await follower.call(rpc.LIST_CONFIGS, api.ListConfigsRequest(), 5.0)
        assert [found.id for found in listed.configs] == [made.config.id]

        ended = asyncio.get_running_loop().create_future()
        node = Peer("worker1", WORKER_ROLE, "cluster1", "10.0.0.9:40000")
        stream = follower.local.open("LogBroker/PublishLogs", None, node, ended.set_result)
        follower.local.send(StreamData(stream, api.PublishLogsMessage(subscription_id="nobody")))
        end = await ended
        assert isinstance(end, StreamEnd)
        assert str(end.error) == "unknown subscription ID", "the leader has read what was sent"
    finally:
        for manager in reversed(managers):
            await manager.close()
