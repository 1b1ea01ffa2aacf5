"""The effects of a Node that wait to be handed out, and who is told of their outcomes."""

from __future__ import annotations

from collections.abc import Callable

from swarm.agent.agent import AgentEvent
from swarm.node.events import Done, Effect, Failed, TaggedEffect, TellAgent

Make = Callable[[int], TaggedEffect]
"""Makes an effect with the tag that it is given."""
Then = Callable[[Done | Failed], None]


class Outbox:
    """Shared by the parts of one Node; tags are unique within it."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._waiting: dict[int, Then] = {}
        self._tag = 0

    def put(self, effect: Effect) -> None:
        """An effect without an outcome."""
        self._effects.append(effect)

    def tell_agent(self, event: AgentEvent) -> None:
        """An event for the agent, if it runs."""
        self._effects.append(TellAgent(event))

    def perform(self, make: Make, then: Then) -> int:
        """An effect whose outcome ``then`` is called with; returns its tag."""
        self._tag += 1
        self._waiting[self._tag] = then
        self._effects.append(make(self._tag))
        return self._tag

    def settle(self, outcome: Done | Failed) -> None:
        """Tell who waits for it; an outcome that nobody waits for any more is dropped."""
        then = self._waiting.pop(outcome.tag, None)
        if then is not None:
            then(outcome)

    def forget(self) -> None:
        """Nobody waits for the effects before: their performers are being stopped."""
        self._waiting.clear()

    def take(self) -> list[Effect]:
        """All effects since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects
