"""Which manager to try next: weights that experience moves, and a weighted choice.

An observation counts half, what was known before the other half, so one failure halves the chances of a manager and a
few make it unlikely; it is never impossible.

(swarmkit: remotes/remotes.go)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from random import Random

from swarm import defaults

Manager = tuple[str, str]
"""Node ID (empty while unknown) and "host:port"."""

_WEIGHT_MAX = 256
_SMOOTHING = 0.5
_BIAS = 0.001  # gives managers of weight 0 a chance, and all the same one


class Remotes:
    """The managers that this node knows. Owned by the node; its agent observes and chooses."""

    def __init__(self, managers: Iterable[Manager] = ()) -> None:
        self._weights: dict[Manager, int] = {}
        for manager in managers:
            self.observe(manager, defaults.MANAGER_WEIGHT)

    def managers(self) -> list[Manager]:
        """All known managers, in the order in which they became known."""
        return list(self._weights)

    def weight(self, manager: Manager) -> int | None:
        """The present weight, or None for an unknown manager."""
        return self._weights.get(manager)

    def observe(self, manager: Manager, weight: int) -> None:
        """Note an experience with a manager, which becomes known by it; above 0 is good, below bad."""
        weight = max(-_WEIGHT_MAX, min(_WEIGHT_MAX, weight))
        before = self._weights.get(manager, 0)
        self._weights[manager] = math.ceil(_SMOOTHING * weight + (1 - _SMOOTHING) * before)

    def learn(self, managers: Iterable[Manager]) -> None:
        """Note that these are managers, if that is news."""
        for manager in managers:
            if manager not in self._weights:
                self.observe(manager, defaults.MANAGER_WEIGHT)

    def observe_if_known(self, manager: Manager, weight: int) -> None:
        """As observe, but a manager that is not known stays so."""
        if manager in self._weights:
            self.observe(manager, weight)

    def keep_only(self, managers: Iterable[Manager]) -> None:
        """Forget all managers but these."""
        kept = dict.fromkeys(managers)
        self._weights = {manager: weight for manager, weight in self._weights.items() if manager in kept}

    def choose(self, rng: Random, exclude: Iterable[str] = ()) -> Manager | None:
        """A manager, likelier the heavier it is; None when there is none. exclude: node IDs or addresses."""
        excluded = dict.fromkeys(exclude)
        eligible = [m for m in self._weights if m[0] not in excluded and m[1] not in excluded]
        if not eligible:
            return None
        return rng.choices(eligible, [max(self._weights[m], 0) + _BIAS for m in eligible])[0]
