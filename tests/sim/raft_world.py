"""A group of consensus cores on one virtual clock, an evil network and disks that forget what was not written.

Everything is drawn from the seed: the same seed gives the same trace. Checked while it runs: one leader per term, logs
match, what was decided stays decided and is in every later leader's log, members apply the same sequence, reads are
never stale. After the faults stop: everybody converges. ``python -m tests.sim.raft_world 1000`` runs many seeds.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import sys
from collections import deque
from collections.abc import Callable
from random import Random

from swarm.api import raftpb
from swarm.raft import words
from swarm.raft.log import Log
from swarm.raft.membership import bootstrap_entries, parse_change
from swarm.raft.raft import Raft
from tests.sim.raft_member import Member, StateMachine, copy_entry

TICK_S = 0.1


class World:
    """Members, network, faults, workload and checkers."""

    def __init__(self, seed: int, size: int | None = None) -> None:
        self.rng = Random(f"{seed}/world")
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.trace = hashlib.blake2b(digest_size=16)
        self.story: deque[str] = deque(maxlen=300)
        self.members: dict[int, Member] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._tags = itertools.count(1)
        self._ids = itertools.count(1)
        self._leaders: dict[int, int] = {}
        self._entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.decided: dict[int, tuple[int, bytes]] = {}
        self.decided_max = 0
        self._decided_in: dict[int, int] = {}
        self._digests: dict[int, bytes] = {}
        self.removed: dict[int, float] = {}
        self.joined: dict[int, bool] = {}
        self._accepted: dict[tuple[int, int], int] = {}
        self.acknowledged: dict[int, int] = {}
        self.reads_answered = 0
        self.faulty = False
        self.cut: dict[tuple[int, int], bool] = {}
        rng = self.rng
        self.loss = rng.choice((0.0, 0.02, 0.2))
        self.duplication = rng.choice((0.0, 0.1))
        self.delay_s = rng.choice((0.002, 0.02, 0.1))
        self.disk_s = rng.choice((0.0005, 0.005, 0.1))
        self.snapshot_every = rng.choice((10, 40, 1000))
        self.keep_entries = rng.choice((0, 5, 50))
        self.pre_vote = rng.random() < 0.5
        self.crashes_in_writes = rng.choice((0.0, 0.01, 0.1))
        self.membership_work = rng.choice((0.02, 0.02, 0.3))
        self.inflight = rng.choice((1, 3, 256))
        self.size = size or rng.choice((1, 2, 3, 3, 3, 5, 5))

    # --- the clock ---

    def at(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call it later."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._sequence), call))

    def advance(self, until: float) -> None:
        """Run everything that is due by then."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = until

    def say(self, *what: object) -> None:
        line = f"{self.now:.4f} " + " ".join(str(word) for word in what)
        self.story.append(line)
        self.trace.update(line.encode())

    # --- processes ---

    def config(self, raft_id: int) -> words.Config:
        return words.Config(
            raft_id,
            TICK_S,
            election_ticks=10,
            heartbeat_ticks=2,
            pre_vote=self.pre_vote and raft_id % 3 != 0,
            message_bytes_max=200,
            inflight_messages_max=self.inflight,
        )

    def spawn(self, first: bool = False) -> Member:
        """A new process with an empty disk: the first member of the group, or one that will be added to it."""
        raft_id = next(self._ids)
        member = Member(raft_id, self.rng.choice((0.95, 1.0, 1.05)))
        self.members[raft_id] = member
        self.start(member, bootstrap_entries(raft_id, b"") if first else ())
        return member

    def start(self, member: Member, entries: tuple[raftpb.Entry, ...] = ()) -> None:
        """Start from the disk image alone."""
        member.run += 1
        disk = member.disk
        snapshot = disk.snapshot
        member.machine = StateMachine()
        if snapshot:
            member.machine = StateMachine(snapshot.metadata.index, snapshot.data[:16])
        rng = Random(f"{self.seed}/raft/{member.raft_id}/{member.run}")
        stored = entries or tuple(copy_entry(entry) for entry in disk.entries)
        member.raft = Raft(
            self.config(member.raft_id),
            rng,
            disk.hard_state,
            snapshot,
            stored,
            member.machine.index,
            member.clock(self.now),
        )
        self.say("start", member.raft_id)
        self.handle(member, None)

    def crash(self, member: Member, run: int = 0) -> None:
        """The process dies (if it is this run of it); a write under way was done or not."""
        if not self.faulty or member.raft is None or (run and run != member.run):
            return
        self.say("crash", member.raft_id)
        if member.writing and self.rng.random() < 0.5:
            member.disk.write(member.writing)
        member.raft = None
        member.writing = None
        member.queue.clear()
        member.reads.clear()
        member.was_leader_of = 0
        member.run += 1
        if self.rng.random() < 0.8:
            self.at(self.rng.choice((0.001, 0.05, 1.0, 5.0)) * self.rng.random(), lambda: self.restart(member))

    def restart(self, member: Member) -> None:
        if member.raft is None and not member.retired:
            self.start(member)

    def deliver(self, member: Member, event: words.Event, run: int = 0) -> None:
        """Queue an event for this run of the process (0: whichever runs)."""
        if member.raft is None or (run and run != member.run):
            return
        member.queue.append(event)
        if self.now >= member.stalled_until:
            self.drain(member)

    def drain(self, member: Member) -> None:
        while member.queue and member.raft is not None:
            self.handle(member, member.queue.popleft())

    def handle(self, member: Member, event: words.Event | None) -> None:
        """One step of one core, its effects, and the checks."""
        raft = member.raft
        if raft is None:
            return
        self.events += 1
        effects = raft.handle(event, member.clock(self.now))
        raft.check()
        self.check_role(member, raft)
        for effect in effects:
            self.perform(member, effect)
            if member.raft is not raft:
                return
        self.set_alarm(member, raft)

    def set_alarm(self, member: Member, raft: Raft) -> None:
        deadline = raft.deadline()
        member.alarm += 1
        if deadline is not None:
            alarm, run = member.alarm, member.run
            delay = max(0.0, member.world_time(deadline) - self.now) + 1e-9
            self.at(delay, lambda: self.ring(member, alarm, run))

    def ring(self, member: Member, alarm: int, run: int) -> None:
        if member.raft is None or alarm != member.alarm or run != member.run:
            return
        if self.now < member.stalled_until:
            self.at(member.stalled_until - self.now, lambda: self.ring(member, alarm, run))
            return
        self.drain(member)
        if alarm == member.alarm:
            self.handle(member, None)

    # --- effects ---

    def perform(self, member: Member, effect: words.Effect) -> None:
        match effect:
            case words.Persist():
                self.persist(member, effect)
            case words.Send(message):
                self.send(member, message)
            case words.Committed(entries):
                for entry in entries:
                    self.apply(member, entry)
                self.maybe_snapshot(member)
            case words.Restore(snapshot):
                member.machine = StateMachine(snapshot.metadata.index, snapshot.data[:16])
                self.check_digest(member)
            case words.NeedSnapshot():
                run = member.run
                self.at(0.01, lambda: self.take_snapshot(member, run))
            case words.Accepted(tag, index, term):
                self._accepted[index, term] = tag
            case words.ReadReady(tag, index):
                assert index >= member.reads.pop(tag), "a stale read was confirmed"
                assert member.machine.index >= index
                self.reads_answered += 1
            case words.Refused(tag):
                member.reads.pop(tag, None)
            case words.BecameLeader(term):
                self.say("leader", member.raft_id, term)
                beyond = range(member.machine.index + 1, self.decided_max + 1)
                assert all(self._decided_in[index] >= term for index in beyond), "a leader that is not up to date"
            case words.Removed():
                self.retire(member)

    def persist(self, member: Member, effect: words.Persist) -> None:
        assert member.writing is None, "two writes at a time"
        member.writing = effect
        raft = member.raft
        assert raft is not None
        self.check_entries(raft.log, effect.entries)
        if effect.hard_state:
            assert effect.hard_state.commit <= raft.log.last_index
        run = member.run
        latency = self.rng.expovariate(1 / self.disk_s)
        self.at(latency, lambda: self.persisted(member, effect, run))
        if self.faulty and self.rng.random() < self.crashes_in_writes:
            self.at(latency * self.rng.random(), lambda: self.crash(member, run))

    def persisted(self, member: Member, effect: words.Persist, run: int) -> None:
        if run == member.run and member.raft is not None:
            member.disk.write(effect)
            member.writing = None
            self.deliver(member, words.Persisted(effect.token))

    def send(self, member: Member, message: raftpb.Message) -> None:
        target = self.members[message.to]
        self.say("send", words.sender(message), message.to, message.type, message.term, message.index)
        lost = (member.raft_id, target.raft_id) in self.cut or (self.faulty and self.rng.random() < self.loss)
        run = member.run
        delay = self.rng.expovariate(1 / self.delay_s)
        arrives = not lost and target.raft is not None
        if message.type == raftpb.MsgSnap:
            report = words.SnapshotSent(target.raft_id, arrives)
            self.at(2 * delay, lambda: self.deliver(member, report, run))
        elif not arrives and self.rng.random() < 0.5:
            self.at(2 * delay, lambda: self.deliver(member, words.Unreachable(target.raft_id), run))
        if lost:
            return
        wire = message.SerializeToString()
        self.at(delay, lambda: self.receive(target, wire))
        if self.faulty and self.rng.random() < self.duplication:
            self.at(delay + self.rng.expovariate(1.0), lambda: self.receive(target, wire))

    def receive(self, target: Member, wire: bytes) -> None:
        """At the receiver's door, where messages of removed members are answered with a refusal that ends them."""
        message = raftpb.Message.FromString(wire)
        if words.sender(message) not in target.knows_removed:  # the transport refuses removed members
            self.deliver(target, words.Received(message))
        elif target.raft is not None:
            self.retire(self.members[words.sender(message)])

    def apply(self, member: Member, entry: raftpb.Entry) -> None:
        content = (entry.Term, entry.Data)
        assert self.decided.setdefault(entry.Index, content) == content, "two decisions for one index"
        if entry.Index > self.decided_max:
            assert entry.Index == self.decided_max + 1
            self.decided_max = entry.Index
            self._decided_in[entry.Index] = member.raft.term if member.raft else 0
        member.machine.apply(entry)
        member.since_snapshot += 1
        self.check_digest(member)
        tag = self._accepted.pop((entry.Index, entry.Term), None)
        if tag is not None:
            self.acknowledged[tag] = entry.Index
        change = parse_change(entry)
        if change and change.type == raftpb.ConfChangeRemoveNode:
            member.knows_removed[change.node_id] = True
            self.removed.setdefault(change.node_id, self.now)
        if change and change.type == raftpb.ConfChangeAddNode:
            self.joined[change.node_id] = True

    def retire(self, member: Member) -> None:
        """Removed from the group: the process ends for good."""
        if not member.retired:
            self.say("retired", member.raft_id)
            member.retired = True
            member.raft = None
            member.run += 1

    def maybe_snapshot(self, member: Member) -> None:
        if member.since_snapshot >= self.snapshot_every:
            member.since_snapshot = 0
            run = member.run
            self.at(self.rng.uniform(0, 0.05), lambda: self.take_snapshot(member, run))

    def take_snapshot(self, member: Member, run: int) -> None:
        if member.raft is not None and run == member.run and member.machine.index:
            snapshot = raftpb.Snapshot(data=member.machine.digest + bytes(100))
            snapshot.metadata.index = member.machine.index
            self.deliver(member, words.SnapshotTaken(snapshot, self.keep_entries))

    # --- checkers ---

    def check_role(self, member: Member, raft: Raft) -> None:
        if raft.role is not words.Role.LEADER or member.was_leader_of == raft.term:
            return
        member.was_leader_of = raft.term
        assert self._leaders.setdefault(raft.term, member.raft_id) == member.raft_id, "two leaders in one term"
        for index in range(max(raft.log.first_index, 1), self.decided_max + 1):
            if self._decided_in[index] < raft.term:  # a late winner of an old election need not have newer decisions
                assert raft.log.term_at(index) == self.decided[index][0], "a leader without a decided entry"

    def check_entries(self, log: Log, entries: tuple[raftpb.Entry, ...]) -> None:
        """Log matching: the same index and term mean the same entry after the same predecessor."""
        for entry in entries:
            previous = log.term_at(entry.Index - 1)
            if previous is not None and log.term_at(entry.Index) == entry.Term:
                content = (previous, entry.Data)
                known = self._entries.setdefault((entry.Index, entry.Term), content)
                assert known == content, "logs do not match"

    def check_digest(self, member: Member) -> None:
        index, digest = member.machine.index, member.machine.digest
        assert self._digests.setdefault(index, digest) == digest, "state machines differ"

    # --- workload and faults ---

    def leader(self) -> Member | None:
        """A process that believes it leads; the one of the newest term."""
        leading = [m for m in self.members.values() if m.raft is not None and m.raft.role is words.Role.LEADER]
        return max(leading, key=lambda m: m.raft.term if m.raft else 0, default=None)

    def alive(self) -> list[Member]:
        return [member for member in self.members.values() if member.raft is not None]

    def propose(self, member: Member, data: bytes | None = None) -> None:
        tag = next(self._tags)
        self.deliver(member, words.Propose(tag, data if data is not None else b"%d" % tag))

    def read(self, member: Member) -> None:
        tag = next(self._tags)
        member.reads[tag] = self.decided_max
        self.deliver(member, words.ReadBarrier(tag))

    def change(self, member: Member, kind: raftpb.ConfChangeType, raft_id: int) -> None:
        change = raftpb.ConfChange(type=kind, node_id=raft_id, context=b"%d" % raft_id)
        self.deliver(member, words.ProposeMembership(next(self._tags), change))

    def work(self) -> None:
        """One random act of a client or an operator, at whoever believes to lead (or at anybody)."""
        rng, alive = self.rng, self.alive()
        leading = [member for member in alive if member.raft and member.raft.role is words.Role.LEADER]
        target = rng.choice(alive if rng.random() < 0.05 else leading) if leading else None
        if target is not None and target.raft is not None:
            dice = rng.random()
            if dice < self.membership_work:
                for _ in range(rng.choice((1, 1, 2)) if self.size > 1 else 0):
                    self.work_membership(target, target.raft)
            elif dice < 0.75:
                for _ in range(rng.choice((1, 1, 5))):
                    self.propose(target)
            elif dice < 0.95:
                self.read(target)
            elif dice < 0.98:
                self.deliver(target, words.TransferLeadership(rng.choice((0, *self.members))))
            else:
                self.deliver(rng.choice(alive), words.Campaign(rng.random() < 0.5))
        if self.faulty:
            self.at(rng.expovariate(8.0), self.work)

    def work_membership(self, target: Member, raft: Raft) -> None:
        voters = raft.membership.voters
        if len(voters) > 1 and self.rng.random() < 0.5:
            self.change(target, raftpb.ConfChangeRemoveNode, self.rng.choice(voters))
        elif len(voters) < 7:
            newcomer = self.spawn()
            self.change(target, raftpb.ConfChangeAddNode, newcomer.raft_id)

    def fault(self) -> None:
        """One random act of nature."""
        if not self.faulty:
            return
        rng, alive = self.rng, self.alive()
        dice = rng.random()
        if dice < 0.35 and alive:
            self.crash(rng.choice(alive))
        elif dice < 0.6:
            self.partition()
        elif dice < 0.85:
            self.cut.clear()
            self.say("heal")
        elif alive:
            member = rng.choice(alive)
            self.say("stall", member.raft_id)
            member.stalled_until = self.now + rng.choice((0.3, 1.5, 4.0))
            self.at(member.stalled_until - self.now, lambda: self.drain(member))
        self.at(rng.expovariate(0.6), self.fault)

    def partition(self) -> None:
        """Cut the network in two, in both directions or one."""
        side = {raft_id: self.rng.random() < 0.5 for raft_id in self.members}
        one_way = self.rng.random() < 0.3
        self.say("partition", side, one_way)
        for a in self.members:
            for b in self.members:
                if side[a] != side[b] and not (one_way and side[a]):
                    self.cut[a, b] = True

    def grow(self) -> None:
        """From one member to the wanted size, as a cluster does."""
        self.spawn(first=True)
        self.advance(1.0)
        for _ in range(self.size - 1):
            newcomer = self.spawn()
            for _ in range(300):
                leader = self.leader()
                if newcomer.raft_id in self.joined:
                    break
                if leader is not None:
                    self.change(leader, raftpb.ConfChangeAddNode, newcomer.raft_id)
                self.advance(self.now + 1.0)
            assert newcomer.raft_id in self.joined, "a group that does not grow"

    # --- whole runs ---

    def run(self, faults_s: float = 12.0) -> None:
        """Grow, suffer, heal, and converge."""
        try:
            self.grow()
            self.faulty = True
            self.at(0.1, self.work)
            self.at(0.5, self.fault)
            self.advance(self.now + faults_s)
            self.heal()
            self.converge()
        except Exception as error:
            error.add_note(f"seed {self.seed}\n" + "\n".join(self.story))
            raise

    def heal(self) -> None:
        """Faults stop, every process that is not removed runs."""
        self.say("faults stop")
        self.faulty = False
        self.cut.clear()
        self.disk_s = min(self.disk_s, 0.01)
        self.delay_s = min(self.delay_s, 0.02)
        for member in self.members.values():
            self.restart(member)

    def converge(self) -> None:
        """A leader is found, takes a write, and everybody who belongs to the group has it."""
        marker = b"the end"
        for _ in range(60):
            self.advance(self.now + 1.0)
            leader = self.leader()
            if leader is None or leader.raft is None:
                continue
            if not any(data == marker for _, data in self.decided.values()):
                self.propose(leader, marker)
                continue
            voters = [self.members[raft_id] for raft_id in leader.raft.membership.voters]
            if all(voter.machine.index == self.decided_max for voter in voters):
                break
        else:
            raise AssertionError("no convergence")
        assert sorted(self.decided) == list(range(1, self.decided_max + 1))
        for tag, index in self.acknowledged.items():
            assert index in self.decided, f"lost {tag}"


def main(seeds: int, first: int = 0) -> None:
    """Run many seeds and print what was done."""
    events, virtual_s, decided, reads = 0, 0.0, 0, 0
    for seed in range(first, first + seeds):
        world = World(seed)
        world.run()
        events += world.events
        virtual_s += world.now
        decided += world.decided_max
        reads += world.reads_answered
    print(  # noqa: T201
        f"{seeds} seeds, {virtual_s / 3600:.1f} virtual hours, {events} events, {decided} decisions, {reads} reads"
    )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
