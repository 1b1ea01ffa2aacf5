"""The interface of a leader's RPC services, and the only way for them to change the cluster.

The manager routes calls by method name, feeds committed changes to all services, and performs their effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from swarm.errors import SwarmError
from swarm.manager.external_ca import Outcome, Question
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.store import Change
from swarm.store.tx import Tx


@dataclass(frozen=True, slots=True)
class Write:
    """A change of the cluster, to be run in the next pass.

    run: a plain function of the transaction. It returns the answer, or raises a SwarmError; then all its changes are
    dropped. stream: the call that gets the answer after the commit (None: no call waits). done: called instead of
    replying, with (answer, None) after the commit or (None, error); returns further effects.
    """

    run: Callable[[Tx], Message | None]
    stream: int | None = None
    done: Callable[[Message | None, SwarmError | None], Sequence[Effect]] | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A question that only I/O can answer.

    done: called with the answer and the time, unless leadership ends first; returns further effects.
    """

    question: Question
    done: Callable[[Outcome, float], Sequence[Effect]]


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """The manager on this node is to leave the Raft group. It may take some time, and asking again does no harm.

    Stages and writes ask for it with ``tx.after_commit``.
    """

    node_id: str


Effect = Reply | StreamData | StreamEnd | Write | Ask | RemoveMember
Event = Call | StreamData | StreamEnd


class Service(Protocol):
    """One or more gRPC services of the leader. Created on election with the store as view, dropped after stop().

    Calls are authorised before they arrive here (swarm/io/grpc/server.py).
    """

    methods: frozenset[str]
    """Names ("Dispatcher/Session") that this service answers."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Handle a call, more data of a call, or its end by the client (half-close or cancel)."""
        ...

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """An entry was applied to the store."""
        ...

    def wake(self, now: float) -> Sequence[Effect]:
        """The deadline has passed."""
        ...

    def deadline(self) -> float | None:
        """When wake must be called, in seconds since the epoch; None: never."""
        ...

    def stalled(self, missed_s: float, now: float) -> None:
        """This process stood still for so long (swarm/attention.py): that counts against nobody."""
        ...

    def stop(self) -> Sequence[Effect]:
        """Leadership ends: finish all open calls, with an error where the protocol has one."""
        ...
