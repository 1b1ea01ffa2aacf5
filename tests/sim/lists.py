"""Lists that clients ask for: each answer is one look at all objects of a kind, and two looks never contradict.

What a list says of one object is a read of it like any other (history.py). Beyond that a list is a single moment: of
two lists one is the older. It may not show one object older and another one newer than the other list does. That is
compared pair by pair, which stays cheap; a search through the orders of all calls of all objects would not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from swarm import api
from swarm.errors import SwarmError
from tests.sim.kernel import Script
from tests.sim.linearizability import ABSENT, Kind

if TYPE_CHECKING:
    from tests.sim.history import Known
    from tests.sim.workload import Workload

KINDS = ("config", "secret", "service")
BEFORE, GONE = float("-inf"), float("inf")
PERIOD_S = 2.0


@dataclass(frozen=True)
class Look:
    """One answer. versions: of the objects that were there, by ID."""

    called: float
    answered: float
    versions: Mapping[str, int]


@dataclass(frozen=True)
class Life:
    """When an object began and may have ended, as far as clients know: before, during and after which calls."""

    created: tuple[float, float]
    removal_called: float = float("inf")

    def age_in(self, look: Look, object_id: str) -> float | None:
        """How far the object had got: BEFORE it was made, its version, GONE; None: nobody can tell."""
        version = look.versions.get(object_id, ABSENT)
        if version != ABSENT:
            return version
        if look.answered < self.removal_called:
            return BEFORE
        return GONE if look.called > self.created[1] else None


def contradiction(looks: Sequence[Look], lives: Mapping[str, Life]) -> str:
    """Two lists of which neither is the older; empty: there are none."""
    for i, one in enumerate(looks):
        for other in looks[:i]:
            older, newer = "", ""
            for object_id, life in lives.items():
                age, age_there = life.age_in(one, object_id), life.age_in(other, object_id)
                if age is None or age_there is None or age == age_there:
                    continue
                older, newer = (object_id, newer) if age < age_there else (older, object_id)
                if older and newer:
                    return f"{one} has an older {older} and a newer {newer} than {other}"
    return ""


class Lister:
    """Asks managers for lists while the world is faulty."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._world = workload.world
        self._kernel = workload.kernel
        self._rng = Random(f"{workload.kernel.seed}/lists")

    def start(self) -> None:
        """From now on."""
        self._kernel.at(self._rng.uniform(0.0, PERIOD_S), self._act)

    def _act(self) -> None:
        if not self._world.faulty:
            return
        if managing := self._world.managing():
            self._workload.spawn(self._list(self._rng.choice(managing), self._rng.choice(KINDS)))
        self._kernel.at(self._rng.expovariate(1.0 / PERIOD_S), self._act)

    def _list(self, node: Any, kind: str) -> Script:
        called, word = self._kernel.now, kind.capitalize()
        try:
            answer = yield from self._workload.call(node, f"List{word}s", getattr(api, f"List{word}sRequest")())
        except SwarmError:
            return
        versions = {obj.id: obj.meta.version.index for obj in getattr(answer, f"{kind}s")}
        self._workload.history.looked(kind, Look(called, self._kernel.now, versions))


def as_reads(look: Look, known: Known) -> None:
    """What a list says of one object."""
    known.note(Kind.READ, look.called, look.answered, version=look.versions.get(known.object_id, ABSENT))
