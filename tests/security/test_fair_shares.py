"""One stolen worker certificate, on as many connections as it may have, takes no place from anybody else."""

from __future__ import annotations

import asyncio

from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import Code, SwarmError
from swarm.io.grpc.client import ClientConnection
from swarm.store.tx import Tx
from tests.security.attacked_manager import WAIT_S, WORKER, AttackedManager, session_of

CONNECTIONS = 16
CALLS = CONNECTIONS * defaults.RPC_STREAMS_WORKER_MAX


async def wait_for_certificate(connection: ClientConnection) -> Code:
    """A call that stays open: the certificate of a node that is never accepted."""
    request = api.NodeCertificateStatusRequest(node_id="pending")
    try:
        await connection.unary(rpc.NODE_CERTIFICATE_STATUS, request, timeout_s=60.0)
    except SwarmError as error:
        return error.code
    return Code.OK


async def test_many_connections_of_one_node_hold_a_fair_share_and_others_are_served(attacked: AttackedManager) -> None:
    def pend(tx: Tx) -> None:
        node = api.Node(id="pending")
        node.certificate.status.state = api.IssuanceStatus.PENDING
        tx.create(node)

    await attacked.write(pend)
    thieves = [await attacked.connect(attacked.worker()) for _ in range(CONNECTIONS)]
    waiting = [asyncio.ensure_future(wait_for_certificate(thieves[i % CONNECTIONS])) for i in range(CALLS)]
    share = defaults.CALL_PLACES_MAX // (defaults.CALL_SHARE_OF_NODE + 1)
    refused: list[asyncio.Future[Code]] = []
    while len(refused) < CALLS - share - 1:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
        assert done, "the rest holds more than a fair share"
        refused += done
        waiting = [call for call in waiting if call not in done]
    assert {call.result() for call in refused} == {Code.RESOURCE_EXHAUSTED}
    assert WORKER

    other = await attacked.connect(attacked.worker("worker2"))
    assert await session_of(other)
    renewal = api.NodeCertificateStatusRequest(node_id=WORKER)
    await other.unary(rpc.NODE_CERTIFICATE_STATUS, renewal, timeout_s=WAIT_S)
    for call in waiting:
        call.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for thief in thieves:
        thief.close()
