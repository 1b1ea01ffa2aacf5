"""What must hold at every moment, whatever fails: consensus, store, tasks, acknowledged writes.

The log is judged as it is written and applied, by anybody: one leader per term, the same entry under the same index and
term, one decision per index. Each entry is judged as a change of the cluster when the first member applies it; the
others must come to the same store. Each stage of a leader is judged by what it does to tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from google.protobuf.message import Message

from swarm import api
from swarm.agent.dependencies import config_ids, secret_ids
from swarm.api import raftpb
from swarm.api.objects import KINDS, slot_key
from swarm.manager.certificates import CertificateStage
from swarm.manager.events import Parts
from swarm.manager.stage import Stage
from swarm.raft import events
from swarm.raft.membership import parse_change
from swarm.raft.raft import Raft
from swarm.rpc import Peer
from swarm.store.store import Action, Change, Store, View
from swarm.store.tx import Tx
from tests.sim.kernel import Kernel
from tests.sim.promises import Promises
from tests.swarm.manager.leader_harness import ALLOWED, GONE, ON_NODE

OP_LABEL = "op"
REPORTED = frozenset(
    (before, after)
    for before in (*ON_NODE, api.ORPHANED)
    for after in (*ON_NODE, api.COMPLETE, api.SHUTDOWN, api.FAILED, api.REJECTED, api.ORPHANED)
    if after > before
)
WRITERS = REPORTED | {(state, GONE) for state in api.TaskState.values()}  # agents by the dispatcher, and RemoveTask
NOTHING: frozenset[tuple[int, int]] = frozenset()


class Checkers:
    """All of them, and what they remember."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.decided: dict[int, tuple[int, bytes]] = {}
        self.last_decided = 0
        self.digests: dict[int, int] = {}
        self.applied_ops: dict[str, int] = {}
        self.removed_ids: dict[str, int] = {}
        self.start_first: dict[str, None] = {}
        self.shrunk: dict[str, None] = {}
        self.entries_by_kind: dict[str, int] = {}
        self._leaders: dict[int, str] = {}
        self._entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._ids: dict[str, str] = {}
        self._members: dict[int, str] = {}
        self._gone: dict[int, None] = {}
        self._listened: dict[tuple[str, str], None] = {}
        self._made_anew: dict[int, None] = {}
        self._ports: dict[tuple[int, int], str] = {}
        self._judged = 0
        self.calm = False
        """Whether nothing fails: then a node that is to be a worker is never taken into the group again."""
        self.unlock_keys: list[bytes] = []
        """All that the cluster ever had, as its operators wrote them down."""
        self._workers: dict[str, None] = {}
        self.promises = Promises()
        self.downs: dict[str, str] = {}
        """Nodes that were declared down, and why."""
        self.stolen: dict[bytes, str] = {}
        """Certificate requests of a thief with superseded keys, and of which node (thief.py)."""

    # --- the log ---------------------------------------------------------------------------------------------------

    def made_anew(self, raft_id: int) -> None:
        """The cluster goes on from this member alone: what others wrote and nobody decided never was."""
        self._leaders.clear()
        self._entries.clear()
        self._made_anew[raft_id] = None

    def loss_accepted(self, raft_id: int, entries: Sequence[raftpb.Entry], snapshot_index: int) -> None:
        """The cluster goes on from what is left of this member's log: an operator was told, and forced it."""
        self.made_anew(raft_id)
        self.promises.accepts_loss(raft_id)
        terms = {entry.Index: (entry.Term, entry.Data) for entry in entries}
        lost = [i for i, content in self.decided.items() if i > snapshot_index and terms.get(i) != content]
        self.last_decided = min([self.last_decided, *(index - 1 for index in lost)])
        for index in [index for index in self.decided if index > self.last_decided]:
            del self.decided[index]
            self.digests.pop(index, None)
        self.removed_ids = {key: index for key, index in self.removed_ids.items() if index <= self.last_decided}
        self._judged = min(self._judged, self.last_decided)
        self._ports.clear()

    def leads(self, raft: Raft, name: str) -> None:
        """A member is leader of its term."""
        holder = self._leaders.setdefault(raft.term, name)
        assert holder == name, f"two leaders in term {raft.term}: {holder} and {name}"

    def written(self, raft: Raft, entries: Sequence[raftpb.Entry]) -> None:
        """Log matching: one index and term mean one entry after one predecessor."""
        for entry in entries:
            previous = raft.log.term_at(entry.Index - 1)
            if previous is not None and raft.log.term_at(entry.Index) == entry.Term:
                content = (previous, entry.Data)
                known = self._entries.setdefault((entry.Index, entry.Term), content)
                assert known == content, f"logs do not match at {entry.Index}"

    def committed(self, entries: Sequence[raftpb.Entry], name: str) -> None:
        """A member hands out entries: every index has one decision, for ever."""
        for entry in entries:
            content = (entry.Term, entry.Data)
            known = self.decided.setdefault(entry.Index, content)
            assert known == content, f"two decisions for index {entry.Index}"
            if entry.Index > self.last_decided:
                assert entry.Index == self.last_decided + 1, "an index was left out"
                self.last_decided = entry.Index
                self.kernel.say("decided", entry.Index, entry.Term, "by", name)
                self._group_changes(parse_change(entry))

    def _group_changes(self, change: raftpb.ConfChange | None) -> None:
        """A node is one member at most, and a member that was removed never comes back."""
        if change is None:
            return
        if change.type == raftpb.ConfChangeRemoveNode:
            self._members.pop(change.node_id, None)
            self._gone[change.node_id] = None
            return
        member = api.RaftMember.FromString(change.context)
        back = change.node_id in self._gone and change.node_id not in self._made_anew
        assert not back, f"member {change.node_id:x} comes back"
        self._members[change.node_id] = member.node_id
        nodes = list(self._members.values())
        assert nodes.count(member.node_id) == 1, f"node {member.node_id} is two members"
        assert not (self.calm and member.node_id in self._workers), f"node {member.node_id} joins though it is demoted"

        self.sends_to(member)

    def listens(self, node_id: str, addr: str) -> None:
        """The manager of this node serves at this address."""
        self._listened[node_id, addr] = None

    def sends_to(self, member: api.RaftMember) -> None:
        """A member is taken to be at an address: it may have moved since, but it was there once."""
        assert (member.node_id, member.addr) in self._listened, f"{member.node_id} never was at {member.addr}"

    # --- the store -------------------------------------------------------------------------------------------------

    def applied(self, store: CheckedStore, changes: Sequence[Change]) -> None:
        """An entry reached a store; the first time it is judged as well."""
        known = self.digests.setdefault(store.index, store.digest)
        assert known == store.digest, f"stores differ at index {store.index} ({store.name})"
        if store.index > self._judged:
            self._judged = store.index
            self._judge(store, changes)

    def restored(self, store: CheckedStore) -> None:
        """A store comes from a snapshot."""
        known = self.digests.setdefault(store.index, store.digest)
        assert known == store.digest, f"a snapshot of {store.index} differs ({store.name})"

    def _judge(self, store: CheckedStore, changes: Sequence[Change]) -> None:
        slots: dict[str, api.Task] = {}
        nodes: dict[str, None] = {}
        for change in changes:
            self.entries_by_kind[change.kind] = self.entries_by_kind.get(change.kind, 0) + 1
            self._remember(store.index, change)
            before, after = change.before, change.after
            assert before is None or after is None or _version(after) > _version(before), "a version goes back"
            if isinstance(after, api.Service) and after.spec.update.order == api.UpdateConfig.START_FIRST:
                self.start_first[after.id] = None
            if isinstance(after, api.Service) and after.spec.rollback.order == api.UpdateConfig.START_FIRST:
                self.start_first[after.id] = None
            if change.kind == "service":
                self._judge_ports(change.object_id, after if isinstance(after, api.Service) else None)
            if isinstance(before, api.Task | None) and isinstance(after, api.Task):
                self._judge_task(before, after)
                slots[after.service_id + f"/{after.slot}/{after.node_id if not after.slot else ''}"] = after
                if after.node_id:
                    nodes[after.node_id] = None
        for task in slots.values():
            self._judge_slot(store, task)
        for node_id in nodes:
            self._judge_node(store, node_id)

    def _remember(self, index: int, change: Change) -> None:
        if change.before is None:
            assert self._ids.setdefault(change.object_id, change.kind) == change.kind, "an ID of two kinds"
        obj = change.after
        if isinstance(obj, api.Node) and obj.status.state == api.NodeStatus.DOWN:
            self.downs[obj.id] = obj.status.message
        asked = obj.certificate.csr if isinstance(obj, api.Node) else b""
        assert asked not in self.stolen, f"a superseded key of node {change.object_id} counts"
        if isinstance(obj, api.Node) and obj.spec.desired_role == api.WORKER:
            self._workers[obj.id] = None
        elif isinstance(obj, api.Node):
            self._workers.pop(obj.id, None)
        if isinstance(obj, api.Cluster):
            keys = [key.key for key in obj.unlock_keys if key.key and key.key not in self.unlock_keys]
            self.unlock_keys += keys
        if obj is None:
            self.removed_ids[change.object_id] = index
        elif isinstance(obj, api.Service | api.Config | api.Secret | api.Node):
            op = obj.spec.annotations.labels.get(OP_LABEL)
            if op:
                self.applied_ops.setdefault(op, index)

    def _judge_ports(self, service_id: str, service: api.Service | None) -> None:
        """A port of the cluster belongs to one service."""
        self._ports = {port: holder for port, holder in self._ports.items() if holder != service_id}
        for port in service.endpoint.ports if service is not None else ():
            if port.publish_mode == api.PortConfig.INGRESS:
                assert port.published_port, f"{service_id}: a port without a number"
                holder = self._ports.setdefault((port.protocol, port.published_port), service_id)
                assert holder == service_id, f"{holder} and {service_id} both hold port {port.published_port}"

    def _judge_task(self, before: api.Task | None, after: api.Task) -> None:
        assert after.node_id or after.status.state < api.ASSIGNED or after.status.state > api.RUNNING, "no node"
        if before is None:
            return
        assert after.status.state >= before.status.state, f"task {after.id} goes back to {after.status.state}"
        assert after.desired_state >= before.desired_state, f"desired state of {after.id} goes back"
        assert not before.node_id or after.node_id == before.node_id, f"task {after.id} moved"
        assert after.service_id == before.service_id, "a task changed its service"
        assert after.slot == before.slot, "a task changed its slot"

    def _judge_slot(self, store: View, task: api.Task) -> None:
        """One live task, unless an update starts the new one first."""
        if task.service_id in self.start_first or task.HasField("job_iteration"):
            return
        if task.slot:
            others = list(store.find(api.Task, "slot", slot_key(task.service_id, task.slot)))
        else:
            tasks = store.find(api.Task, "service", task.service_id)
            others = [t for t in tasks if not t.slot and t.node_id == task.node_id]
        live = [t.id for t in others if t.desired_state <= api.RUNNING]
        assert len(live) <= 1, f"{len(live)} live tasks in one slot of {task.service_id}: {live}"

    def _judge_node(self, store: View, node_id: str) -> None:
        node = store.get(api.Node, node_id)
        if node is None or node_id in self.shrunk:
            return
        taken = sum(
            task.spec.resources.reservations.nano_cpus
            for task in store.find(api.Task, "node", node_id)
            if api.ASSIGNED <= task.status.state <= api.RUNNING
        )
        have = node.description.resources.nano_cpus
        assert taken <= have, f"node {node_id}: {taken} of {have} nano CPUs"
        holders: dict[tuple[int, int], str] = {}
        for task in store.find(api.Task, "node", node_id):
            if api.ASSIGNED <= task.status.state <= api.RUNNING:
                for port in task.endpoint.ports:
                    if port.publish_mode == api.PortConfig.HOST:
                        holder = holders.setdefault((port.protocol, port.published_port), task.id)
                        assert holder == task.id, f"node {node_id}: {holder} and {task.id} on one port"

    # --- secrets ---------------------------------------------------------------------------------------------------

    def sent(self, store: View, peer: Peer, message: Message) -> None:
        """A manager sends something down a stream: payloads go only where tasks need them."""
        if not isinstance(message, api.AssignmentsMessage):
            return
        needed: dict[str, None] = {}
        for task in store.find(api.Task, "node", peer.node_id):
            needed.update(dict.fromkeys(secret_ids(task)))
            needed.update(dict.fromkeys(config_ids(task)))
        for change in message.changes:
            if change.action != api.AssignmentChange.UPDATE:
                continue
            kind = change.assignment.WhichOneof("item")
            if kind in ("secret", "config"):
                item = getattr(change.assignment, kind)
                assert item.id in needed, f"{kind} {item.id} leaks to {peer.node_id}"
            elif kind == "task":
                assert change.assignment.task.node_id == peer.node_id, "a task of another node"


class CheckedRaft(Raft):
    """The real core, with somebody looking at what it emits."""

    _checkers: Checkers
    _name: str
    _raft_id: int

    def watch(self, checkers: Checkers, name: str, raft_id: int) -> None:
        """From now on."""
        self._checkers, self._name, self._raft_id = checkers, name, raft_id

    def handle(self, event: events.Event | None, now: float) -> list[events.Effect]:
        """See Raft.handle."""
        effects = super().handle(event, now)
        if self.role is events.Role.LEADER:
            self._checkers.leads(self, self._name)
        for effect in effects:
            if isinstance(effect, events.Persist):
                self._checkers.written(self, effect.entries)
                self._checkers.promises.replaces(self._raft_id, effect)
            elif isinstance(effect, events.Send):
                self._checkers.promises.sends(self._raft_id, effect.message)
            elif isinstance(effect, events.Committed):
                self._checkers.committed(effect.entries, self._name)
        return effects


class CheckedStore(Store):
    """The real store, whose content has a digest that does not depend on the order of objects."""

    def __init__(self, checkers: Checkers, name: str) -> None:
        super().__init__()
        self.name = name
        self.digest = 0
        self._checkers = checkers

    def apply(self, actions: Sequence[Action], index: int) -> list[Change]:
        """See Store.apply."""
        changes = super().apply(actions, index)
        for change in changes:
            self.digest ^= _digest(change.before) ^ _digest(change.after)
        self._checkers.applied(self, changes)
        return changes

    def restore(self, snapshot: api.StoreSnapshot, index: int) -> None:
        """See Store.restore."""
        super().restore(snapshot, index)
        self.digest = 0
        for kind in KINDS.values():
            for obj in self.all(kind.message):
                self.digest ^= _digest(obj)
        self._checkers.restored(self)


def _digest(obj: Message | None) -> int:
    if obj is None:
        return 0
    data = type(obj).__name__.encode() + obj.SerializeToString(deterministic=True)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def _version(obj: Message) -> int:
    return int(obj.meta.version.index)  # type: ignore[attr-defined]


class CheckedParts:
    """The real parts, each stage watched, certificates signed without chance."""

    def __init__(self, real: Parts, cluster_id: str, checkers: Checkers) -> None:
        self._real = real
        self._cluster_id = cluster_id
        self._checkers = checkers

    def parts(self) -> Parts:
        """For a Manager."""
        return replace(self._real, stages=self._stages)

    def _stages(self, store: Store, rng: Random, now: float, strict: bool) -> Sequence[tuple[str, Stage]]:
        watch = _Pass(store)
        out: list[tuple[str, Stage]] = []
        for name, stage in self._real.stages(store, rng, now, strict):
            real = CertificateStage(self._cluster_id, deterministic=True) if name == "certificates" else stage
            out.append((name, _Watched(name, real, watch)))
        return out


class _Pass:
    """What the tasks of the pass in progress were before the stage that runs now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tx: Tx | None = None
        self._seen = 0
        self._known: dict[str, tuple[int, int]] = {}

    def judge(self, tx: Tx, allowed: frozenset[tuple[int, int]], who: str) -> None:
        """Everything that was touched since the last look was touched by ``who``."""
        if tx is not self._tx:
            self._tx, self._seen, self._known = tx, 0, {}
        for kind, task_id in dict.fromkeys(tx.log[self._seen :]):
            if kind != "task":
                continue
            before = self._known.get(task_id) or _states(self._store.get(api.Task, task_id))
            after = _states(tx.get(api.Task, task_id))
            self._known[task_id] = after
            step = (before[0], after[0])
            assert step[0] == step[1] or step in allowed, f"{who}: {step} of task {task_id}"
            assert after[0] == GONE or after[1] >= before[1], f"{who}: desired state of {task_id} goes back"
        self._seen = len(tx.log)


def _states(task: api.Task | None) -> tuple[int, int]:
    return (GONE, 0) if task is None else (int(task.status.state), int(task.desired_state))


class _Watched:
    """One stage, and what it may do to tasks."""

    def __init__(self, name: str, stage: Stage, watch: _Pass) -> None:
        self._name = name
        self._stage = stage
        self.deadline = stage.deadline
        self._watch = watch
        self._allowed = ALLOWED.get(name, NOTHING)
        if name == "reaper":
            self._allowed |= {(state, GONE) for state in ON_NODE}  # of a removed node: orphaned and gone in one pass

    def rebuild(self, view: View, now: float) -> None:
        """See Stage."""
        self._stage.rebuild(view, now)

    def note(self, kind: str, object_id: str) -> None:
        """See Stage."""
        self._stage.note(kind, object_id)

    def run(self, tx: Tx) -> None:
        """See Stage."""
        self._watch.judge(tx, WRITERS, "writers")
        self._stage.run(tx)
        self._watch.judge(tx, self._allowed, self._name)
