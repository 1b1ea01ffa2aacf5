"""Generic resources such as GPUs: what a node offers and a task reserves or was given, as plain values.

A *named* resource has one value for each piece ("gpu" with the values "0" and "1"), a *discrete* one only an amount.
Claiming resources for a task is the scheduler's part. (swarmkit: api/genericresource)
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm import api

GenericValues = tuple[tuple[str, str, int], ...]
"""Kind, value of a named resource or "", amount."""


def values_of(resources: Iterable[api.GenericResource]) -> GenericValues:
    """Generic resources as plain values."""
    out = []
    for resource in resources:
        if resource.HasField("named_resource_spec"):
            out.append((resource.named_resource_spec.kind, resource.named_resource_spec.value, 1))
        else:
            out.append((resource.discrete_resource_spec.kind, "", resource.discrete_resource_spec.value))
    return tuple(out)


class Remaining:
    """What is left of a node's generic resources while they are handed out to its tasks."""

    def __init__(self, resources: Iterable[api.GenericResource]) -> None:
        self._left: dict[tuple[str, str], int] = {}
        for kind, value, amount in values_of(resources):
            self._left[kind, value] = self._left.get((kind, value), 0) + amount

    def take(self, assigned: Iterable[api.GenericResource]) -> bool:
        """Take what a task was given. False, and nothing is taken, when some of it is not left."""
        wanted = values_of(assigned)
        if any(self._left.get((kind, value), 0) < amount for kind, value, amount in wanted):
            return False
        for kind, value, amount in wanted:
            self._left[kind, value] -= amount
        return True
