"""Errors of the cluster: one exception per cause, each with the gRPC code that peers and clients see."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes (grpc: doc/statuscodes.md); ``label`` is the spelling that Go prints."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def label(self) -> str:
        """``InvalidArgument`` for INVALID_ARGUMENT, as in ``rpc error: code = InvalidArgument desc = ...``."""
        return "".join(word.capitalize() for word in self.name.split("_")) if self.name != "OK" else "OK"


class SwarmError(Exception):
    """An operating error with a gRPC code. Raise a subclass; construct this class only for a peer's answer."""

    code: Code = Code.UNKNOWN

    def __init__(self, message: str = "", code: Code | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message

    @property
    def rpc_text(self) -> str:
        """The text that Go prints for a status error; clients of the Engine API match on it."""
        return f"rpc error: code = {self.code.label} desc = {self.message}"


class InvalidArgument(SwarmError):
    """The request is invalid, whatever the state of the cluster."""

    code = Code.INVALID_ARGUMENT


class NotFound(SwarmError):
    """No object with that ID or name."""

    code = Code.NOT_FOUND


class AlreadyExists(SwarmError):
    """The ID or the name is already in use."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(SwarmError):
    """The caller is known, but may not do this."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(SwarmError):
    """The caller did not prove its identity."""

    code = Code.UNAUTHENTICATED


class FailedPrecondition(SwarmError):
    """The state of the cluster does not allow this. Trying again without a change is useless."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(SwarmError):
    """A limit of swarm/defaults.py was reached. Trying again later may work."""

    code = Code.RESOURCE_EXHAUSTED


class Aborted(SwarmError):
    """Leadership or the session changed meanwhile. The caller should start over."""

    code = Code.ABORTED


class Unimplemented(SwarmError):
    """This version does not implement that."""

    code = Code.UNIMPLEMENTED


class Unavailable(SwarmError):
    """Not possible now; nothing was changed."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(SwarmError):
    """There was no answer in time. A write may or may not have happened."""

    code = Code.DEADLINE_EXCEEDED


class Internal(SwarmError):
    """A bug in this program that was contained."""

    code = Code.INTERNAL


class OutOfSequence(SwarmError):
    """The object changed after the version that the caller saw (swarmkit: store.ErrSequenceConflict)."""

    code = Code.UNKNOWN

    def __init__(self) -> None:
        super().__init__("update out of sequence")


class NotLeader(SwarmError):
    """Leadership was lost before the write was committed, or this manager never led."""

    code = Code.FAILED_PRECONDITION

    def __init__(self, message: str = "raft: failed to process the request: node lost leader status") -> None:
        super().__init__(message)


class NotTaken(SwarmError):
    """This manager is not the leader and did nothing with the request: it may be sent to the leader."""

    code = Code.FAILED_PRECONDITION

    def __init__(self) -> None:
        super().__init__("raft: the request was not taken: this manager does not lead")


class NodeLocked(FailedPrecondition):
    """The key file of this node is encrypted, and the node does not have the unlock key."""


class JoinUndecided(SwarmError):
    """The Raft group may have added this node, or may still do so: it must not give up, but ask again."""

    code = Code.UNAVAILABLE


class NoLeader(SwarmError):
    """The group has no leader. Users know the text (swarmkit: manager/state/raft.ErrLostQuorum)."""

    code = Code.UNKNOWN

    def __init__(self) -> None:
        super().__init__(
            "The swarm does not have a leader. It's possible that too few managers are online. "
            "Make sure more than half of the managers are online."
        )
