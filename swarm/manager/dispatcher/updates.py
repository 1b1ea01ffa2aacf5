"""The dispatcher's changes of the store: reports of agents and expired timers, collected and written in batches.

Theory of operation. Items are keyed by their object; a later item replaces an earlier one that still waits. A write
takes all items that wait, applies them as long as the pass has room, and is followed by a write for the rest. Callers
are answered when the last item of their write is committed. Items that come while a write is under way wait for the
next one.

(swarmkit: manager/dispatcher/dispatcher.go, processUpdates)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api.equality import same_description, same_status
from swarm.api.timestamps import is_valid, stamp
from swarm.errors import InvalidArgument, SwarmError
from swarm.manager import node_keys
from swarm.manager.service import Effect, Write
from swarm.manager.stage import DUE_NOW
from swarm.rpc import Peer
from swarm.store.tx import Tx

_CHANGES_PER_WRITE_MAX = defaults.ENTRY_CHANGES_MAX // 2  # leaves room for the stages, which must not starve

Answer = Callable[[SwarmError | None], Sequence[Effect]]


class Item(Protocol):
    """One thing to write."""

    @property
    def key(self) -> tuple[str, str]:
        """Of all items with the same key only the last is written."""
        ...

    def apply(self, tx: Tx) -> int | None:
        """Stage it; returns how many objects changed, None when some are left for the next pass. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class TaskReport:
    """An agent's status of a task. It only ever moves the task forward."""

    task_id: str
    node_id: str
    status: api.TaskStatus
    own_node_id: str

    @property
    def key(self) -> tuple[str, str]:
        """See Item."""
        return ("task", self.task_id)

    def apply(self, tx: Tx) -> int | None:
        """See Item."""
        task = tx.get(api.Task, self.task_id)
        if task is None or task.node_id != self.node_id or not is_news(task.status, self.status):
            return 0
        task = tx.edit(api.Task, self.task_id)
        task.status.CopyFrom(self.status)
        task.status.message = task.status.message[: defaults.STATUS_TEXT_CHARS_MAX]
        task.status.err = task.status.err[: defaults.STATUS_TEXT_CHARS_MAX]
        task.status.applied_by = self.own_node_id
        stamp(task.status.applied_at, tx.now)
        return 1


def check_status(status: api.TaskStatus) -> None:
    """Raises InvalidArgument for a status that would do harm in the store, where all components read it."""
    if status.state not in api.TaskState.values():
        raise InvalidArgument(f"unknown task state {status.state}")
    if not is_valid(status.timestamp):
        raise InvalidArgument("the time of the task status is not valid")
    size = status.ByteSize() - len(status.message.encode()) - len(status.err.encode())  # those are cut
    if size > defaults.TASK_STATUS_BYTES_MAX:
        raise InvalidArgument(f"task status of {size} bytes is too long")


def is_news(known: api.TaskStatus, reported: api.TaskStatus) -> bool:
    """Whether a reported status changes what is known: not an older one, not the same again.

    A task that has ended keeps its state. An agent that restarts after a power failure may not know how its task ended,
    and finds only a dead container.
    """
    if known.state > api.RUNNING and reported.state != known.state:
        return False
    return reported.state >= known.state and not same_status(known, reported)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node became ready, unknown or down. Empty addr and absent description leave what is known.

    peers: whose certificates show which keys the node uses, in the order in which they came.
    """

    node_id: str
    state: api.NodeStatus.State
    message: str = ""
    addr: str = ""
    description: api.NodeDescription | None = None
    peers: tuple[Peer, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """See Item."""
        return ("node", self.node_id)

    def changes(self, node: api.Node) -> bool:
        """Whether writing it would tell the store anything new."""
        return (
            node.status.state != self.state
            or node.status.message != self.message
            or (bool(self.addr) and node.status.addr != self.addr)
            or (self.description is not None and not same_description(node.description, self.description))
            or any(node_keys.is_news(node, peer) for peer in self.peers)
        )

    def apply(self, tx: Tx) -> int | None:
        """See Item."""
        node = tx.get(api.Node, self.node_id)
        if node is None or not self.changes(node):
            return 0
        node = tx.edit(api.Node, self.node_id)
        node.status.state = self.state
        node.status.message = self.message
        if self.addr:
            node.status.addr = self.addr
        if self.description is not None:
            node.description.CopyFrom(self.description)
        for peer in self.peers:
            node_keys.seen(node, peer)
        return 1


@dataclass(frozen=True, slots=True)
class VolumeUnpublished:
    """A node no longer uses a cluster volume."""

    volume_id: str
    node_id: str

    @property
    def key(self) -> tuple[str, str]:
        """See Item."""
        return ("volume", f"{self.volume_id}/{self.node_id}")

    def apply(self, tx: Tx) -> int | None:
        """See Item."""
        volume = tx.get(api.Volume, self.volume_id)
        if volume is None or not any(s.node_id == self.node_id for s in volume.publish_status):
            return 0
        for status in tx.edit(api.Volume, self.volume_id).publish_status:
            if status.node_id == self.node_id:
                status.state = api.VolumePublishStatus.PENDING_UNPUBLISH
        return 1


@dataclass(frozen=True, slots=True)
class Orphaned:
    """A node was down for so long that its tasks are given up."""

    node_id: str

    @property
    def key(self) -> tuple[str, str]:
        """See Item."""
        return ("orphans", self.node_id)

    def apply(self, tx: Tx) -> int | None:
        """See Item."""
        count = 0
        for task in list(tx.find(api.Task, "node", self.node_id)):
            if not api.ASSIGNED <= task.status.state <= api.RUNNING:
                continue
            if not tx.room() or count >= _CHANGES_PER_WRITE_MAX:
                return None
            tx.edit(api.Task, task.id).status.state = api.ORPHANED
            count += 1
        return count


class Updates:
    """Collects items and makes them writes."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], Item] = {}
        self._answers: list[Answer] = []
        self._in_flight = False
        self._last_write = float("-inf")

    def add(self, item: Item) -> None:
        """Write this with the next batch."""
        before = self._items.get(item.key)
        if isinstance(item, TaskReport) and isinstance(before, TaskReport):
            if before.node_id == item.node_id and before.status.state > item.status.state:
                return
        elif isinstance(item, NodeState) and isinstance(before, NodeState):
            item = NodeState(
                item.node_id,
                item.state,
                item.message,
                item.addr or before.addr,
                item.description if item.description is not None else before.description,
                before.peers + item.peers,
            )
        self._items[item.key] = item

    def answer(self, answer: Answer) -> None:
        """Call this when everything that was added until now is committed, or could not be."""
        self._answers.append(answer)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._items and not self._answers and not self._in_flight

    def deadline(self) -> float | None:
        """When take() gives a write: at once after a quiet time, else STATUS_BATCH_S after the last one."""
        if self._in_flight or not (self._items or self._answers):
            return None
        if len(self._items) >= defaults.STATUS_BATCH_UPDATES_MAX:
            return DUE_NOW
        return max(self._last_write + defaults.STATUS_BATCH_S, DUE_NOW)

    def take(self, now: float) -> list[Effect]:
        """The next write, if it is due."""
        due = self.deadline()
        if due is None or now < due:
            return []
        items, self._items = list(self._items.values()), {}
        answers, self._answers = self._answers, []
        self._in_flight = True
        self._last_write = now
        return [self._write(items, answers)]

    def fail(self, error: SwarmError) -> list[Effect]:
        """Drop everything that is not under way; its callers get the error."""
        answers, self._answers = self._answers, []
        self._items = {}
        return [effect for answer in answers for effect in answer(error)]

    def _write(self, items: list[Item], answers: list[Answer]) -> Write:
        reached = 0

        def run(tx: Tx) -> Message | None:
            nonlocal reached
            reached, count = 0, 0
            while reached < len(items) and count < _CHANGES_PER_WRITE_MAX and tx.room():
                changed = items[reached].apply(tx)
                if changed is None:
                    break
                count += changed
                reached += 1
            return None

        def done(_message: Message | None, error: SwarmError | None) -> Sequence[Effect]:
            if error is None and reached < len(items):
                return [self._write(items[reached:], answers)]
            self._in_flight = False
            return [effect for answer in answers for effect in answer(error)]

        return Write(run, done=done)
