"""Becoming a member of the Raft group, by asking any of its managers.

A node never comes back as a member whose log it gave up: its vote could undo what that member decided. Should the group
still count on such a member, because the node was demoted and promoted again before it was removed, the node asks for
its removal first. (swarmkit: manager/state/raft/raft.go joinCluster, Join, Leave)
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from certs.errors import CertsError
from certs.tls import ClientTls
from swarm import api, defaults
from swarm.errors import JoinUndecided, SwarmError, Unavailable
from swarm.io.grpc import client
from swarm.manager.group.members import is_join_undecided

NOT_REMOVED_TEXT = "the group has not removed the member yet that this node was"


async def join(
    managers: Sequence[str], node_id: str, address: str, past_raft_ids: Container[int], tls: ClientTls
) -> api.JoinResponse:
    """The new member's raft ID and the others, from the first manager that takes this node in.

    past_raft_ids: members that this node was. Raises SwarmError with the last manager's answer; JoinUndecided: one of
    them may have taken us in, and the group then counts on us.
    """
    error: SwarmError = Unavailable("no manager is known to join the group through")
    undecided = False
    for addr in managers:
        asked = False
        try:
            connection = await client.connect(addr, tls, defaults.RPC_DIAL_TIMEOUT_S)
            try:
                asked = True
                answer = await _ask_in(connection, node_id, address, past_raft_ids)
            finally:
                connection.close()
        except (SwarmError, CertsError, OSError, TimeoutError) as problem:
            error = problem if isinstance(problem, SwarmError) else Unavailable(str(problem))
            undecided = undecided or (asked and is_join_undecided(error))
            continue
        if answer.raft_id not in past_raft_ids:
            return answer
        error = Unavailable(NOT_REMOVED_TEXT)  # told by one who has not heard of the removal
    raise JoinUndecided(error.message) if undecided else error


async def _ask_in(
    connection: client.ClientConnection, node_id: str, address: str, past_raft_ids: Container[int]
) -> api.JoinResponse:
    answer = await _ask(connection, address)
    if answer.raft_id in past_raft_ids:
        was = api.RaftMember(raft_id=answer.raft_id, node_id=node_id, addr=address)
        request, timeout_s = api.LeaveRequest(node=was), defaults.RAFT_JOIN_TIMEOUT_S
        await connection.unary("RaftMembership/Leave", request, timeout_s=timeout_s)
        answer = await _ask(connection, address)
    return answer


async def _ask(connection: client.ClientConnection, address: str) -> api.JoinResponse:
    request, timeout_s = api.JoinRequest(addr=address), defaults.RAFT_JOIN_TIMEOUT_S
    answer = await connection.unary("RaftMembership/Join", request, timeout_s=timeout_s)
    assert isinstance(answer, api.JoinResponse)
    return answer
