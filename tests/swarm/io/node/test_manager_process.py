"""How a manager comes into the group of others."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from certs.tls import server_context
from swarm.errors import JoinUndecided, NotLeader, NotTaken, SwarmError
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.node.manager_process import ManagerProcess, ManagerSettings
from swarm.io.process import Clock
from swarm.rpc import Call, StreamEnd
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
