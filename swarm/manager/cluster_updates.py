"""UpdateCluster, which may need answers of external certificate authorities before it can be decided.

Theory of operation. The update is tried as a write. If it needs an answer first, the pass drops it and the question is
asked; with the answer the update is tried again. An update has only a few possible questions.

    call -> write --decided--> reply
              ^  └-Unanswered-> ask the authority
              └------answer---------┘

(swarmkit: manager/controlapi/cluster.go UpdateCluster)
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from swarm import api
from swarm.api import rpc
from swarm.errors import NotTaken, SwarmError
from swarm.manager.controlapi.clusters import update_cluster
from swarm.manager.controlapi.common import require_known_values
from swarm.manager.external_ca import Answers, Outcome, Unanswered
from swarm.manager.service import Ask, Effect, Event, Write
from swarm.rpc import Call, Reply, StreamEnd
from swarm.store.store import Change
from swarm.store.tx import Tx


class ClusterUpdates:
    """A Service: Control/UpdateCluster."""

    methods = frozenset({rpc.UPDATE_CLUSTER.name})

    def __init__(self) -> None:
        self._asking: dict[int, None] = {}

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """See Service.handle."""
        if isinstance(event, StreamEnd):
            self._asking.pop(event.stream, None)
        if not isinstance(event, Call):
            return ()
        return (self._attempt(event.stream, rpc.UPDATE_CLUSTER.checked_request(event.request), Answers()),)

    def _attempt(self, stream: int, request: api.UpdateClusterRequest, answers: Answers) -> Write:
        def done(message: Message | None, error: SwarmError | None) -> Sequence[Effect]:
            if isinstance(error, Unanswered):
                question = error.question

                def answered(outcome: Outcome, _: float) -> Sequence[Effect]:
                    answers.learn(question, outcome)
                    if self._asking.pop(stream, stream) is not None:
                        return ()  # the caller went away
                    return (self._attempt(stream, request, answers),)

                self._asking[stream] = None
                return (Ask(question, answered),)
            if message is None:
                return (StreamEnd(stream, error),)
            return (Reply(stream, message),)

        def update(tx: Tx) -> Message:
            require_known_values(request)
            return update_cluster(tx, request, answers)

        return Write(update, done=done)

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """Does nothing: changes do not concern this service."""
        return ()

    def wake(self, now: float) -> Sequence[Effect]:
        """Never called: there is no deadline."""
        return ()

    def deadline(self) -> float | None:
        """See Service.deadline."""
        return None

    def stalled(self, missed_s: float, now: float) -> None:
        """See Service.stalled: it judges nobody by time."""

    def stop(self) -> Sequence[Effect]:
        """End waiting updates with NotTaken: the next leader may take them."""
        streams, self._asking = self._asking, {}
        return [StreamEnd(stream, NotTaken()) for stream in streams]
