"""Health/Check, and the mark by which managers of ours know each other: groups of ours alone may tick faster.

The mark is a field of the answer that SwarmKit's message does not have (swarm/api/extensions.py).
"""

from __future__ import annotations

from swarm import api
from swarm.api import extensions, rpc
from swarm.errors import NotFound, Unavailable
from swarm.rpc import Call, Reply, StreamEnd

_SERVICES = ("", "Raft", "ControlAPI")


def answer(call: Call) -> Reply | StreamEnd:
    """The answer to Health/Check: a manager that answers serves."""
    if rpc.CHECK.checked_request(call.request).service not in _SERVICES:
        return StreamEnd(call.stream, NotFound("unknown service"))
    plain = api.HealthCheckResponse(status=api.HealthCheckResponse.SERVING)
    return Reply(call.stream, extensions.with_extension(plain, extensions.OURS))


def answer_early(call: Call) -> Reply | StreamEnd:
    """The answer to any call while the group takes this manager in: it asks whether we serve, before we have a log."""
    if call.method == rpc.CHECK.name:
        return answer(call)
    return StreamEnd(call.stream, Unavailable("this manager is not ready yet"))


def is_ours(response: api.HealthCheckResponse) -> bool:
    """Whether a manager of ours gave this answer."""
    return extensions.has_extension(response, extensions.OURS)
