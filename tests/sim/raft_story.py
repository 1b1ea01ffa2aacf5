"""What happens to a simulated group of cores: clients, operators, faults; then the faults stop and it must converge.

grow -> suffer -> heal -> converge. A seed decides how bad the world is and which of the rare things happen: disks that
are lost, with a new member in the place of the old one, or all disks but one, from which the group is made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from swarm.api import raftpb
from swarm.raft import events
from swarm.raft.membership import force_new_cluster, parse_change
from swarm.raft.raft import Raft
from tests.sim.outcome import Outcome
from tests.sim.raft_member import Disk, Member
from tests.sim.raft_world import TICK_S, World

FAULTS = (
    ("crash", 33),
    ("partition", 22),
    ("heal", 22),
    ("stall", 10),
    ("clock", 4),
    ("configure", 5),
    ("slander", 4),
    ("lose", 8),
    ("contest", 6),
)
CONVERGE_S = 120


class Story(World):
    """One group from its first member to its last entry."""

    def __init__(self, seed: int, size: int | None = None) -> None:
        super().__init__(seed, size)
        rng = self.rng
        self.loses_disks = rng.random() < 0.3
        self.contested = rng.random() < 0.3  # elections all the time, in which voters die and are asked again
        self.vote_duplication = 0.3 if self.contested else 0.0
        self.crashes_after_votes = rng.choice((0.1, 0.5)) if self.contested else 0.0
        self.catastrophe_at = rng.uniform(2.0, 10.0) if rng.random() < 0.08 else None
        self.lost: dict[int, None] = {}  # members whose disk is gone
        self.catastrophes = 0
        self.healed_at = 0.0

    # --- clients and operators ---

    def leader(self) -> Member | None:
        """A process that believes it leads; the one of the newest term."""
        leading = [m for m in self.members.values() if m.raft is not None and m.raft.role is events.Role.LEADER]
        return max(leading, key=lambda m: m.raft.term if m.raft else 0, default=None)

    def alive(self) -> list[Member]:
        return [member for member in self.members.values() if member.raft is not None]

    def propose(self, member: Member, data: bytes | None = None) -> None:
        tag = next(self._tags)
        self.deliver(member, events.Propose(tag, data if data is not None else b"%d" % tag))

    def read(self, member: Member) -> None:
        tag = next(self._tags)
        member.reads[tag] = self.decided_max
        self.deliver(member, events.ReadBarrier(tag))

    def change(self, member: Member, kind: raftpb.ConfChangeType, raft_id: int) -> None:
        change = raftpb.ConfChange(type=kind, node_id=raft_id, context=b"%d" % raft_id)
        self.deliver(member, events.ProposeMembership(next(self._tags), change))

    def work(self) -> None:
        """One random act of a client or an operator, at whoever believes to lead (or at anybody)."""
        rng, alive = self.rng, self.alive()
        leading = [member for member in alive if member.raft and member.raft.role is events.Role.LEADER]
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
                self.deliver(target, events.TransferLeadership(rng.choice((0, *self.members))))
            else:
                self.deliver(rng.choice(alive), events.Campaign(rng.random() < 0.5))
        if self.faulty:
            self.at(rng.expovariate(8.0), self.work)

    def work_membership(self, target: Member, raft: Raft) -> None:
        voters = raft.membership.voters
        if len(voters) > 1 and self.rng.random() < 0.5:
            if not self.mourning:
                self.change(target, raftpb.ConfChangeRemoveNode, self.rng.choice(voters))
        elif len(voters) < 7:
            newcomer = self.spawn()
            self.change(target, raftpb.ConfChangeAddNode, newcomer.raft_id)

    # --- faults ---

    def fault(self) -> None:
        """One random act of nature."""
        if not self.faulty:
            return
        alive = self.alive()
        kinds, weights = zip(*FAULTS, strict=True)
        kind = self.rng.choices(kinds, weights)[0]
        if kind == "partition":
            self.partition()
        elif kind == "contest":
            self.contest()
        elif kind == "heal":
            self.cut.clear()
            self.say("heal")
        elif alive:
            self.inflict(kind, self.rng.choice(alive))
        self.at(self.rng.expovariate(0.6), self.fault)

    def inflict(self, kind: str, member: Member) -> None:
        """One act of nature on one member."""
        rng = self.rng
        if kind == "crash":
            self.crash(member)
        elif kind == "stall":
            self.say("stall", member.raft_id)
            member.stalled_until = self.now + rng.choice((0.3, 1.5, 4.0))
            self.at(member.stalled_until - self.now, lambda: self.drain(member))
        elif kind == "clock":
            self.jump(member, rng.choice((0.2, 1.0, 60.0)))
        elif kind == "configure":
            pre_vote, tick_s = rng.random() < 0.5, rng.choice((0.5 * TICK_S, TICK_S, 3 * TICK_S))
            self.configure(member, replace(member.config, pre_vote=pre_vote, tick_s=tick_s))
        elif kind == "slander":  # said to be dead, but it is not
            for other in self.alive():
                if rng.random() < 0.5 and other is not member:
                    self.deliver(other, events.Gone(member.raft_id))
        elif kind == "lose" and self.loses_disks and self.may_lose(member):
            self.lose(member)

    def usurp(self, old: Member, new: Member) -> None:
        """Somebody else comes to lead and decides, and clients that have not heard of it go on reading from the old."""
        self.at(0.01, lambda: self.deliver(new, events.Campaign(force=True)))
        for moment in range(1, 6):
            self.at(0.25 * moment, lambda: self.propose(new))
            self.at(0.25 * moment + 0.2, lambda: self.read(old))

    def contest(self) -> None:
        """Some stand for election at once, in one term."""
        for member in self.rng.sample(alive := self.alive(), min(len(alive), self.rng.choice((1, 2, 2, 3)))):
            self.deliver(member, events.Campaign(force=True))
        if self.contested and self.faulty:
            self.at(self.rng.expovariate(1.0), self.contest)

    def persisted(self, member: Member, effect: events.Persist, run: int) -> None:
        """See World.persisted; who has voted may die, and be asked again in the same term."""
        votes = effect.hard_state is not None and effect.hard_state.vote not in (events.NO_ONE, member.raft_id)
        super().persisted(member, effect, run)
        if votes and self.rng.random() < self.crashes_after_votes:
            at_s = self.rng.uniform(0.0, 0.01)
            self.at(at_s, lambda: self.crash(member, run))
            if self.rng.random() < 0.7:
                self.at(at_s + 0.002, lambda: self.restart(member))

    def jump(self, member: Member, seconds: float) -> None:
        """Its clock goes forward at once."""
        self.say("clock", member.raft_id, seconds)
        member.clock_ahead_s += seconds
        if member.raft is not None:
            self.set_alarm(member, member.raft)

    def configure(self, member: Member, config: events.Config) -> None:
        """Other settings from now on, also after a restart."""
        member.config = config
        self.deliver(member, events.Configure(config))

    def partition(self) -> None:
        """Cut the network in two, in both directions or one; or cut off who leads, with few others."""
        side = {raft_id: self.rng.random() < 0.5 for raft_id in self.members}
        leader = self.leader()
        if leader is not None and self.rng.random() < 0.35:
            few = self.rng.choice((0.0, 0.3))
            side = {raft_id: raft_id == leader.raft_id or self.rng.random() < few for raft_id in self.members}
            others = [member for member in self.alive() if not side[member.raft_id]]
            if others and self.rng.random() < 0.5:
                self.usurp(leader, self.rng.choice(others))
        one_way = self.rng.random() < 0.3
        self.say("partition", side, one_way)
        for a in self.members:
            for b in self.members:
                if side[a] != side[b] and not (one_way and side[a]):
                    self.cut[a, b] = True

    # --- disks that are lost ---

    @property
    def mourning(self) -> bool:
        """Whether a member without its disk is a member still: nobody else must be removed then."""
        return any(raft_id in self.lost for raft_id in self.group.voters)

    def may_lose(self, member: Member) -> bool:
        """Whether the group can do without this disk: all others know the group as it is, and it will not change."""
        voters = self.group.voters
        if member.raft_id not in voters or len(voters) < 3 or self.mourning or self.changes():
            return False
        others = [self.members[raft_id].raft for raft_id in voters if raft_id != member.raft_id]
        return all(raft is not None and raft.membership.voters == voters for raft in others)

    def changes(self) -> bool:
        """Whether a change of the group is under way that may yet be decided."""
        for member in self.members.values():
            if any(isinstance(event, events.ProposeMembership) for event in member.queue):
                return True
            entries = list(member.disk.entries)
            if member.raft is not None:
                entries += member.raft.log.between(self.decided_max + 1, member.raft.log.last_index)
            if any(entry.Index > self.decided_max and parse_change(entry) for entry in entries):
                return True
        return False

    def lose(self, member: Member) -> None:
        """A member's disk is gone: it is removed, and a new member takes its place."""
        self.say("lost", member.raft_id)
        self.epoch += 1  # no change of the group is on its way either
        self.end(member)
        member.retired, member.disk = True, Disk()
        self.lost[member.raft_id] = None
        self.enlist(self.spawn())

    def enlist(self, newcomer: Member) -> None:
        """Somebody makes this a member, and removes those that are lost; as often as it takes."""
        leader, voters = self.leader(), self.group.voters
        lost = [raft_id for raft_id in voters if raft_id in self.lost]
        wanted = newcomer.raft_id not in voters and newcomer.raft_id not in self.removed and not newcomer.retired
        if not (wanted or lost):
            return
        if leader is not None and lost and not (wanted and self.rng.random() < 0.5):
            self.change(leader, raftpb.ConfChangeRemoveNode, lost[0])
        elif leader is not None:
            self.change(leader, raftpb.ConfChangeAddNode, newcomer.raft_id)
        self.at(1.0, lambda: self.enlist(newcomer))

    def catastrophe(self) -> None:
        """All disks are gone but one that has everything: the group is made anew from it."""
        survivors = [m for m in self.members.values() if m.raft_id in self.group.voters and self.has_all(m)]
        if not survivors or not self.faulty:
            return
        survivor = self.rng.choice(survivors)
        self.say("catastrophe, left is", survivor.raft_id)
        self.catastrophes += 1
        self.epoch += 1
        for member in self.members.values():
            self.end(member)
            if member is not survivor:
                member.retired, member.disk = True, Disk()
                self.lost[member.raft_id] = None
        self._leaders.clear()  # what the others wrote and nobody decided never was
        self._entries.clear()
        disk = survivor.disk
        assert disk.hard_state is not None
        kept = {(entry.Index, entry.Term): None for entry in disk.entries}
        self._accepted = {key: tag for key, tag in self._accepted.items() if key in kept}
        hard_state, entries = force_new_cluster(
            survivor.raft_id, b"%d" % survivor.raft_id, disk.hard_state, disk.snapshot, disk.entries
        )
        disk.write(events.Persist(0, hard_state, entries))
        self.start(survivor)
        for _ in range(self.size - 1):
            self.enlist(self.spawn())

    def has_all(self, member: Member) -> bool:
        """Whether its disk has all that was decided."""
        disk = member.disk
        if disk.hard_state is None or member.retired:
            return False
        terms = {entry.Index: entry.Term for entry in disk.entries}
        first = disk.snapshot.metadata.index + 1 if disk.snapshot else 1
        return all(terms.get(i) == self.decided[i][0] for i in range(first, self.decided_max + 1))

    # --- whole runs ---

    def grow(self) -> None:
        """From one member to the wanted size, as a cluster does."""
        self.spawn(first=True)
        self.advance(1.0)
        for _ in range(self.size - 1):
            newcomer = self.spawn()
            for _ in range(300):
                leader = self.leader()
                if newcomer.raft_id in self.group.voters:
                    break
                if leader is not None:
                    self.change(leader, raftpb.ConfChangeAddNode, newcomer.raft_id)
                self.advance(self.now + 1.0)
            assert newcomer.raft_id in self.group.voters, "a group that does not grow"

    def run(self, faults_s: float = 12.0) -> None:
        """Grow, suffer, heal, and converge."""
        try:
            self.grow()
            self.faulty = True
            self.at(0.1, self.work)
            self.at(0.5, self.fault)
            if self.contested:
                self.at(0.5, self.contest)
            if self.catastrophe_at is not None:
                self.at(self.catastrophe_at, self.catastrophe)
            self.advance(self.now + faults_s)
            self.heal()
            self.converge()
        except Exception as error:
            command = f"python -m tests.sim --cores --seed {self.seed} --trace"
            error.add_note(f"seed {self.seed}: {command}\n" + "\n".join(self.story))
            raise

    def heal(self) -> None:
        """Faults stop, every process that is not removed runs; somebody may campaign."""
        self.say("faults stop")
        self.healed_at = self.now
        self.faulty = False
        self.cut.clear()
        self.disk_s = min(self.disk_s, 0.01)
        self.delay_s = min(self.delay_s, 0.02)
        for member in self.members.values():
            self.restart(member)
        self.some_only_follow &= any(self.may_stand(raft_id) for raft_id in self.group.voters)
        for member in self.members.values():
            self.configure(member, self.config(member.raft_id))

    def may_stand(self, raft_id: int) -> bool:
        """Whether this member stands for election by itself: it knows that it votes, and does not only follow."""
        raft = self.members[raft_id].raft
        return raft is not None and raft_id in raft.membership.voters and self.config(raft_id).campaigns

    def converge(self) -> None:
        """A leader is found, takes a write, and everybody who belongs to the group has it."""
        marker = b"the end"
        for _ in range(CONVERGE_S):
            self.advance(self.now + 1.0)
            leader = self.leader()
            if leader is None or leader.raft is None or self.mourning:
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


def simulate_cores(seed: int, echo: Callable[[str], None] | None = None) -> Outcome:
    """One group; raises AssertionError with the story of what happened."""
    story = Story(seed)
    story.echo = echo
    story.run()
    return Outcome(
        seed,
        story.trace.hexdigest(),
        story.now,
        story.events,
        story.decided_max,
        len(story.acknowledged),
        story.reads_answered,
        story.now - story.healed_at,
        len(story.lost),
        story.catastrophes,
        0,
        story.some_only_follow,
        0,
        {},
        0,
    )
