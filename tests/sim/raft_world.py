"""A group of consensus cores on one virtual clock, an evil network and disks that forget what was not written.

Everything is drawn from the seed: the same seed gives the same trace. Checked while it runs: one leader per term, logs
match, what was decided stays decided and is in every later leader's log, members apply the same sequence, reads are
never stale. What happens to the group: raft_story.py.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from random import Random

from swarm.api import raftpb
from swarm.raft import events
from swarm.raft.log import Log
from swarm.raft.membership import Membership, bootstrap_entries, parse_change
from swarm.raft.raft import Raft
from tests.sim.raft_lease import Lease
from tests.sim.raft_member import Member, StateMachine, copy_entry

TICK_S = 0.1


class World:
    """Members, network and checkers."""

    def __init__(self, seed: int, size: int | None = None) -> None:
        self.rng = Random(f"{seed}/world")
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.trace = hashlib.blake2b(digest_size=16)
        self.story: deque[str] = deque(maxlen=300)
        self.echo: Callable[[str], None] | None = None
        self.members: dict[int, Member] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._tags = itertools.count(1)
        self._ids = itertools.count(1)
        self._leaders: dict[int, int] = {}
        self._votes: dict[tuple[int, int], int] = {}
        self._entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.decided: dict[int, tuple[int, bytes]] = {}
        self.decided_max = 0
        self.group = Membership()  # as decided
        self._decided_in: dict[int, int] = {}
        self._digests: dict[int, bytes] = {}
        self.removed: dict[int, float] = {}
        self._accepted: dict[tuple[int, int], int] = {}
        self.acknowledged: dict[int, int] = {}
        self.reads_answered = 0
        self.epoch = 0  # messages of former ones do not arrive
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
        self.vote_duplication = 0.0
        self.message_bytes = rng.choice((1, 200))
        if self.message_bytes == 1:
            self.inflight = min(self.inflight, 8)  # so many messages out of order would only be sent again and again
        self.announce_s = rng.choice((0.0, 0.0, 0.05))
        self.commit_lag = rng.choice((0, 0, 3, 100))
        self.some_only_follow = rng.random() < 0.25
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
        if self.echo is not None:
            self.echo(line)

    # --- processes ---

    def config(self, raft_id: int) -> events.Config:
        return events.Config(
            raft_id,
            TICK_S,
            election_ticks=10,
            heartbeat_ticks=2,
            pre_vote=self.pre_vote and raft_id % 3 != 0,
            campaigns=not (self.some_only_follow and raft_id % 3 != 1),
            announce_s=self.announce_s,
            commit_lag_entries=self.commit_lag,
            message_bytes_max=self.message_bytes,
            inflight_messages_max=self.inflight,
        )

    def spawn(self, first: bool = False) -> Member:
        """A new process with an empty disk: the first member of the group, or one that will be added to it."""
        raft_id = next(self._ids)
        member = Member(self.config(raft_id), self.rng.choice((0.95, 1.0, 1.05)))
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
            member.config,
            rng,
            disk.hard_state,
            snapshot,
            stored,
            member.machine.index,
            member.clock(self.now),
        )
        member.lease = Lease(member.clock(self.now))
        self.say("start", member.raft_id)
        self.handle(member, None)

    def crash(self, member: Member, run: int = 0) -> None:
        """The process dies (if it is this run of it); a write under way was done or not."""
        if not self.faulty or member.raft is None or (run and run != member.run):
            return
        self.say("crash", member.raft_id)
        if member.writing and self.rng.random() < 0.5:
            member.disk.write(member.writing)
        self.end(member)
        if self.rng.random() < 0.8:
            self.at(self.rng.choice((0.001, 0.05, 1.0, 5.0)) * self.rng.random(), lambda: self.restart(member))

    def end(self, member: Member) -> None:
        """The process is gone; others notice, unless its host went with it."""
        member.end()
        if self.rng.random() < 0.5:
            for other in self.members.values():
                if other is not member and (other.raft_id, member.raft_id) not in self.cut:
                    delay_s = self.rng.expovariate(1 / self.delay_s)
                    self.at(delay_s, lambda other=other: self.deliver(other, events.Gone(member.raft_id)))  # type: ignore[misc]

    def restart(self, member: Member) -> None:
        """From its disk, unless that is gone or it is no member any more."""
        if member.raft is None and not member.retired:
            self.start(member)

    def deliver(self, member: Member, event: events.Event, run: int = 0) -> None:
        """Queue an event for this run of the process (0: whichever runs)."""
        if member.raft is None or (run and run != member.run):
            return
        member.queue.append(event)
        if self.now >= member.stalled_until:
            self.drain(member)

    def drain(self, member: Member) -> None:
        while member.queue and member.raft is not None:
            self.handle(member, member.queue.popleft())

    def handle(self, member: Member, event: events.Event | None) -> None:
        """One step of one core, its effects, and the checks."""
        raft = member.raft
        if raft is None:
            return
        self.events += 1
        clock = member.clock(self.now)
        member.lease.before(raft, event, clock)
        effects = raft.handle(event, clock)
        raft.check()
        member.lease.after(raft, event, effects, clock)
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

    def perform(self, member: Member, effect: events.Effect) -> None:
        match effect:
            case events.Persist():
                self.persist(member, effect)
            case events.Send(message):
                self.send(member, message)
            case events.Committed(entries):
                for entry in entries:
                    self.apply(member, entry)
                self.maybe_snapshot(member)
            case events.Restore(snapshot):
                member.machine = StateMachine(snapshot.metadata.index, snapshot.data[:16])
                self.check_digest(member)
            case events.NeedSnapshot():
                run = member.run
                self.at(0.01, lambda: self.take_snapshot(member, run))
            case events.Accepted(tag, index, term):
                self._accepted[index, term] = tag
            case events.ReadReady(tag, index):
                assert index >= member.reads.pop(tag), "a stale read was confirmed"
                assert member.machine.index >= index
                self.reads_answered += 1
            case events.Refused(tag):
                member.reads.pop(tag, None)
            case events.BecameLeader(term):
                self.say("leader", member.raft_id, term)
                beyond = range(member.machine.index + 1, self.decided_max + 1)
                assert all(self._decided_in[index] >= term for index in beyond), "a leader that is not up to date"
            case events.Removed():
                self.retire(member)

    def persist(self, member: Member, effect: events.Persist) -> None:
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

    def persisted(self, member: Member, effect: events.Persist, run: int) -> None:
        if run == member.run and member.raft is not None:
            member.disk.write(effect)
            member.writing = None
            self.deliver(member, events.Persisted(effect.token))

    def send(self, member: Member, message: raftpb.Message) -> None:
        target = self.members[message.to]
        self.say("send", events.sender(message), message.to, message.type, message.term, message.index)
        if message.type == raftpb.MsgVoteResp and not message.reject:
            voted = self._votes.setdefault((member.raft_id, message.term), message.to)
            assert voted == message.to, f"{member.raft_id} votes for {voted} and {message.to} in term {message.term}"
        lost = (member.raft_id, target.raft_id) in self.cut or (self.faulty and self.rng.random() < self.loss)
        run = member.run
        delay = self.rng.expovariate(1 / self.delay_s)
        arrives = not lost and target.raft is not None
        if message.type == raftpb.MsgSnap:
            sent = events.SnapshotSent(target.raft_id, arrives)
            self.at(2 * delay, lambda: self.deliver(member, sent, run))
        elif not arrives and self.rng.random() < 0.5:
            gone = not lost and self.rng.random() < 0.3  # refused: the machine is there, and nobody listens
            report = events.Gone(target.raft_id) if gone else events.Unreachable(target.raft_id)
            self.at(2 * delay, lambda: self.deliver(member, report, run))
        if lost:
            return
        wire, epoch = message.SerializeToString(), self.epoch
        self.at(delay, lambda: self.receive(target, wire, epoch))
        if self.faulty and self.rng.random() < self.duplication:
            self.at(delay + self.rng.expovariate(1.0), lambda: self.receive(target, wire, epoch))
        if self.faulty and message.type == raftpb.MsgVote and self.rng.random() < self.vote_duplication:
            self.at(delay + self.rng.expovariate(20.0), lambda: self.receive(target, wire, epoch))

    def receive(self, target: Member, wire: bytes, epoch: int) -> None:
        """At the receiver's door, where messages of removed members are answered with a refusal that ends them."""
        if epoch != self.epoch:
            return
        message = raftpb.Message.FromString(wire)
        if events.sender(message) not in target.knows_removed:  # the transport refuses removed members
            self.deliver(target, events.Received(message))
        elif target.raft is not None:
            self.retire(self.members[events.sender(message)])

    def apply(self, member: Member, entry: raftpb.Entry) -> None:
        content = (entry.Term, entry.Data)
        assert self.decided.setdefault(entry.Index, content) == content, "two decisions for one index"
        if entry.Index > self.decided_max:
            assert entry.Index == self.decided_max + 1
            self.decided_max = entry.Index
            self._decided_in[entry.Index] = member.raft.term if member.raft else 0
            if decided := parse_change(entry):
                self.group.apply(decided)
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
        elif change and member.knows_removed.pop(change.node_id, False) and change.node_id == member.raft_id:
            self.take_snapshot(member, member.run, keep=0)  # see GroupMember._apply_membership

    def retire(self, member: Member) -> None:
        """Removed from the group: the process ends for good."""
        if not member.retired:
            self.say("retired", member.raft_id)
            member.retired = True
            member.end()

    def maybe_snapshot(self, member: Member) -> None:
        if member.since_snapshot >= self.snapshot_every:
            member.since_snapshot = 0
            run = member.run
            self.at(self.rng.uniform(0, 0.05), lambda: self.take_snapshot(member, run))

    def take_snapshot(self, member: Member, run: int, keep: int | None = None) -> None:
        if member.raft is not None and run == member.run and member.machine.index:
            snapshot = raftpb.Snapshot(data=member.machine.digest + bytes(100))
            snapshot.metadata.index = member.machine.index
            self.deliver(member, events.SnapshotTaken(snapshot, self.keep_entries if keep is None else keep))

    # --- checkers ---

    def check_role(self, member: Member, raft: Raft) -> None:
        if raft.role is not events.Role.LEADER or member.was_leader_of == raft.term:
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
