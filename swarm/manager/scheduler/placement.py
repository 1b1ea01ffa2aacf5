"""Which nodes a number of identical tasks go to.

The order of preference: nodes where the service did not fail again and again, then the fewest tasks of the service,
then the fewest tasks. Placement preferences come before that: the nodes form a tree, one level per preference, and the
tasks are split so that the branches of each level end up even.

Nodes without a task of the service are taken from the node set's buckets, so that a small service looks at few nodes;
the others are kept in a heap. The next pass may use heap and tree again as long as nothing was freed. Bookings made
since then are noticed when an entry comes to the top.

(swarmkit: manager/scheduler/{scheduler,nodeset,decision_tree}.go)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from swarm import api, defaults
from swarm.manager.constraint import ENGINE_LABEL_PREFIX, NODE_LABEL_PREFIX
from swarm.manager.scheduler.filters import Pipeline
from swarm.manager.scheduler.nodes import NodeInfo, NodeSet

Assign = Callable[[NodeInfo], bool]
Entry = tuple[int, int, int, int, NodeInfo]  # failures, tasks of the service, tasks, order of arrival


class _NoRoom(Exception):
    """The transaction is full: stop placing."""


@dataclass(slots=True)
class Branch:
    """Nodes with the same values of the preferences so far. tasks: active ones of the service on all its nodes."""

    tasks: int = 0
    next: dict[str, Branch] = field(default_factory=dict)
    nodes: list[NodeInfo] = field(default_factory=list)
    heap: list[Entry] | None = None


Memory = list[Entry] | Branch


class Placement:
    """Places tasks like ``task``. assign: books one task on a node; False: there is no room for it in this pass.

    checks: how often a node was looked at, the measure of what it cost. memory: nodes in order of preference, from an
    earlier placement of the same generation and for the next one; None while there is nothing worth keeping.
    """

    def __init__(
        self,
        nodes: NodeSet,
        pipeline: Pipeline,
        task: api.Task,
        now: float,
        assign: Assign,
        memory: Memory | None = None,
    ) -> None:
        self.checks = 0
        self.memory = memory
        self._nodes = nodes
        self._pipeline = pipeline
        self._now = now
        self._assign = assign
        self._service_id = task.service_id
        self._run = (task.service_id, task.spec_version.index)
        spreads = [preference.spread.spread_descriptor for preference in task.spec.placement.preferences]
        self._levels = [level for spread in spreads if (level := _level(spread)) is not None]

    def place(self, number: int) -> bool:
        """Place up to that many tasks. False: the transaction is full; else as many as fit were placed."""
        try:
            if self._levels:
                tree = self.memory if isinstance(self.memory, Branch) else self._tree()
                self.memory = None  # its sums are wrong if we break off
                self._fill_branch(tree, number)
                self.memory = tree
            else:
                self._fill_nodes(number)
        except _NoRoom:
            return False
        return True

    def _fill_nodes(self, number: int) -> None:
        if not isinstance(self.memory, list):
            number, others = self._fill_empty(number)
            if not number:
                return
            heapq.heapify(others)
            self.memory = others
        self._fill_heap(self.memory, number)

    def _fits(self, info: NodeInfo) -> bool:
        self.checks += 1
        return self._pipeline.failing(info) is None

    def _put(self, info: NodeInfo) -> None:
        if not self._assign(info):
            raise _NoRoom

    def _faults(self, info: NodeInfo) -> int:
        if not info.failures:
            return 0
        failures = info.recent_failures(self._run, self._now)
        return failures if failures >= defaults.FAILURES_BEFORE_LAST_CHOICE else 0

    def _entry(self, info: NodeInfo) -> Entry:
        count = self._nodes.counts(self._service_id).get(info.node_id, 0)
        return (self._faults(info), count, info.active, info.order, info)

    # --- without preferences -----------------------------------------------------------------------------------------

    def _fill_empty(self, number: int) -> tuple[int, list[Entry]]:
        """One task on each of the emptiest nodes that have none of the service yet.

        Answers how many tasks are left, and then also the ready nodes that have tasks of the service already, or on
        which it keeps failing.
        """
        counts = self._nodes.counts(self._service_id)
        chosen: list[NodeInfo] = []
        others: list[NodeInfo] = []
        for info in self._nodes.emptiest():
            if info.node_id in counts or (info.failures and self._faults(info)):
                others.append(info)
            elif self._fits(info):
                chosen.append(info)
                if len(chosen) == number:
                    break
        for info in chosen:
            self._put(info)
        if len(chosen) == number:
            return 0, []
        counts = self._nodes.counts(self._service_id)
        return number - len(chosen), [
            (self._faults(info) if info.failures else 0, counts.get(info.node_id, 0), info.active, info.order, info)
            for info in (*others, *chosen)
        ]

    def _fill_heap(self, heap: list[Entry], number: int) -> int:
        """Always the best node next; nodes that are full leave the heap. Answers how many were placed."""
        placed = 0
        while heap and placed < number:
            top = heap[0]
            info = top[-1]
            entry = self._entry(info)
            if entry[1:3] != top[1:3] or entry[0] != top[0]:
                heapq.heapreplace(heap, entry)  # something was booked there since
                continue
            if not self._fits(info):
                heapq.heappop(heap)
                continue
            self._put(info)
            placed += 1
            heapq.heapreplace(heap, self._entry(info))
        return placed

    # --- with preferences --------------------------------------------------------------------------------------------

    def _tree(self) -> Branch:
        counts = self._nodes.counts(self._service_id)
        root = Branch()
        for info in self._nodes.known():
            self.checks += 1
            tasks = counts.get(info.node_id, 0)
            branch = root
            branch.tasks += tasks
            for level in self._levels:
                assert info.node is not None
                branch = branch.next.setdefault(level(info.node), Branch())
                branch.tasks += tasks
            branch.nodes.append(info)
        return root

    def _fill_branch(self, branch: Branch, number: int) -> int:
        """Split tasks evenly over the branches below, or over the nodes of a leaf; answers how many were placed."""
        if not branch.next:
            if branch.heap is None:
                branch.heap = [self._entry(info) for info in branch.nodes]
                heapq.heapify(branch.heap)
            placed = self._fill_heap(branch.heap, number)
            branch.tasks += placed
            return placed
        placed = 0
        usable = list(branch.next.values())
        while placed < number and usable:
            share, rest = divmod(sum(below.tasks for below in usable) + number - placed, len(usable))
            moved, full = False, []
            for below in usable:
                wanted = share - below.tasks + (rest > 0 and below.tasks <= share)
                if wanted <= 0:
                    continue
                moved = True
                rest -= rest > 0
                wanted = min(wanted, number - placed)
                done = self._fill_branch(below, wanted)
                placed += done
                if done < wanted:
                    full.append(below)
                if placed == number:
                    break
            usable = [below for below in usable if below not in full]
            if not moved:
                break
        branch.tasks += placed
        return placed


def _level(descriptor: str) -> Callable[[api.Node], str] | None:
    """How to read the value of a spread preference from a node; None for one that we do not know."""
    lower = descriptor.lower()
    if lower.startswith(NODE_LABEL_PREFIX) and len(lower) > len(NODE_LABEL_PREFIX):
        label = descriptor[len(NODE_LABEL_PREFIX) :]
        return lambda node: node.spec.annotations.labels.get(label, "")
    if lower.startswith(ENGINE_LABEL_PREFIX) and len(lower) > len(ENGINE_LABEL_PREFIX):
        label = descriptor[len(ENGINE_LABEL_PREFIX) :]
        return lambda node: node.description.engine.labels.get(label, "")
    return None


def place_on(pipeline: Pipeline, info: NodeInfo | None) -> str | None:
    """For a task whose node is given: None when it can run there, else why not."""
    if info is None or info.node is None:
        return ""
    return pipeline.explain([info]) or None


__all__: Sequence[str] = ["Placement", "place_on"]
