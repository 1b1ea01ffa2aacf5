"""What a manager asks others in more than one step: to be taken in, whether a member serves, where a member is.

These are coroutines without I/O of their own: they await only the connections that they are handed, so production runs
them on asyncio and the simulator runs the same code on its virtual clock.

A node never comes back as a member whose log it gave up: its vote could undo what that member decided. Should the group
still count on such a member, because the node was demoted and promoted again before it was removed, the node asks for
its removal first. (swarmkit: manager/state/raft/raft.go joinCluster, Join, Leave, checkHealth, ResolveAddress)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from typing import Protocol

import structlog

from certs.errors import CertsError
from swarm import api, defaults
from swarm.api import extensions, rpc
from swarm.api.methods import Method, Req, Res
from swarm.errors import JoinUndecided, SwarmError, Unavailable
from swarm.manager.events import FoundAt
from swarm.manager.group.health import is_ours
from swarm.manager.group.members import REMOVED_TEXT, is_join_undecided
from swarm.raft.events import Removed

log = structlog.get_logger()

NOT_REMOVED_TEXT = "the group has not removed the member yet that this node was"
_FAILURES = (SwarmError, CertsError, OSError, TimeoutError)


class Connection(Protocol):
    """To one manager (swarm.io.grpc.client.ClientConnection)."""

    async def unary(self, method: Method[Req, Res], request: Req, timeout_s: float) -> Res:
        """One call; raises SwarmError."""
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


Dial = Callable[[str, str, float], Awaitable[Connection]]
"""To "ip:port" and nobody but this node (empty: any manager of the cluster), in so many seconds, with this node's
certificate. Raises SwarmError, CertsError, OSError or TimeoutError."""


async def join(
    managers: Sequence[str], node_id: str, address: str, past_raft_ids: Container[int], dial: Dial
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
            connection = await dial(addr, "", defaults.RPC_DIAL_TIMEOUT_S)
            try:
                asked = True
                answer = await _ask_in(connection, node_id, address, past_raft_ids)
            finally:
                connection.close()
        except _FAILURES as problem:
            error = problem if isinstance(problem, SwarmError) else Unavailable(str(problem))
            undecided = undecided or (asked and is_join_undecided(error))
            continue
        if answer.raft_id not in past_raft_ids:
            return answer
        error = Unavailable(NOT_REMOVED_TEXT)  # told by one who has not heard of the removal
    raise JoinUndecided(error.message) if undecided else error


async def _ask_in(
    connection: Connection, node_id: str, address: str, past_raft_ids: Container[int]
) -> api.JoinResponse:
    answer = await _ask(connection, address)
    if answer.raft_id in past_raft_ids:
        was = api.RaftMember(raft_id=answer.raft_id, node_id=node_id, addr=address)
        request, timeout_s = api.LeaveRequest(node=was), defaults.RAFT_JOIN_TIMEOUT_S
        await connection.unary(rpc.LEAVE, request, timeout_s=timeout_s)
        answer = await _ask(connection, address)
    return answer


async def _ask(connection: Connection, address: str) -> api.JoinResponse:
    request, timeout_s = api.JoinRequest(addr=address), defaults.RAFT_JOIN_TIMEOUT_S
    return await connection.unary(rpc.JOIN, request, timeout_s=timeout_s)


async def check(addr: str, node_id: str, dial: Dial) -> tuple[str, bool]:
    """("" or why no manager serves at ``addr``, whether it is one of ours) (swarmkit: raft.go checkHealth).

    node_id: of the only node that counts; empty: any manager of the cluster does.
    """
    request, timeout_s = api.HealthCheckRequest(service="Raft"), defaults.RPC_DIAL_TIMEOUT_S
    try:
        connection = await dial(addr, node_id, timeout_s)
        try:
            answer = await connection.unary(rpc.CHECK, request, timeout_s=timeout_s)
        finally:
            connection.close()
    except _FAILURES as error:
        return str(error) or "no answer in time", False
    if answer.status != api.HealthCheckResponse.SERVING:
        return "it does not serve", False
    return "", is_ours(answer)


async def find(raft_id: int, managers: Iterable[str], dial: Dial) -> api.RaftMember | None:
    """A member that the log has not told of, from the first manager that knows where it is; None: nobody does."""
    for addr in managers:
        try:
            answer = await _resolve(raft_id, addr, dial)
        except _FAILURES as error:
            log.debug("raft.not_resolved", peer=f"{raft_id:x}", addr=addr, error=str(error))
            continue
        if answer.addr:
            log.info("raft.peer_resolved", peer=f"{raft_id:x}", addr=answer.addr)
            return api.RaftMember(raft_id=raft_id, addr=answer.addr)
    return None


async def ask_for_us(raft_id: int, managers: Iterable[str], dial: Dial) -> FoundAt | Removed | None:
    """Where the first manager that answers finds this member, or that it is none any more; None: nobody answers.

    Who was removed before it had a log hears of that in no other way.
    """
    for addr in managers:
        try:
            answer = await _resolve(raft_id, addr, dial)
        except _FAILURES as error:
            if isinstance(error, SwarmError) and error.message == REMOVED_TEXT:
                return Removed()
            continue
        return FoundAt(answer.addr, extensions.has_extension(answer, extensions.MOVED))
    return None


async def _resolve(raft_id: int, addr: str, dial: Dial) -> api.ResolveAddressResponse:
    request, timeout_s = api.ResolveAddressRequest(raft_id=raft_id), defaults.RAFT_SEND_TIMEOUT_S
    connection = await dial(addr, "", defaults.RAFT_DIAL_TIMEOUT_S)
    try:
        return await connection.unary(rpc.RESOLVE_ADDRESS, request, timeout_s=timeout_s)
    finally:
        connection.close()
