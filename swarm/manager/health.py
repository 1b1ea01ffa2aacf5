"""Health/Check, and the mark by which managers of ours know each other: groups of ours alone may tick faster.

The mark is a field of the answer that SwarmKit's message does not have; stock peers skip what they do not know.
"""

from __future__ import annotations

from swarm import api
from swarm.errors import NotFound
from swarm.rpc import Call, Reply, StreamEnd

_MARK = b"\x7a\x09sideswarm"  # field 15, a string of 9 bytes
_SERVICES = ("", "Raft", "ControlAPI")


def answer(call: Call) -> Reply | StreamEnd:
    """The answer to Health/Check: a manager that answers serves."""
    assert isinstance(call.request, api.HealthCheckRequest)
    if call.request.service not in _SERVICES:
        return StreamEnd(call.stream, NotFound("unknown service"))
    plain = api.HealthCheckResponse(status=api.HealthCheckResponse.SERVING)
    return Reply(call.stream, api.HealthCheckResponse.FromString(plain.SerializeToString() + _MARK))


def is_ours(response: api.HealthCheckResponse) -> bool:
    """Whether a manager of ours gave this answer."""
    return response.SerializeToString().endswith(_MARK)
