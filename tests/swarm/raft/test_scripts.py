"""Scripts of the protocol: what each member does, message by message (tests/scripts/raft)."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from swarm.api import raftpb
from swarm.raft import events
from swarm.raft.membership import bootstrap_entries
from swarm.raft.raft import Raft
from tests.scripts.runner import run
from tests.sim.raft_member import Disk

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts" / "raft").glob("*.txt"))
CHANGES = {
    "add": raftpb.ConfChangeAddNode,
    "remove": raftpb.ConfChangeRemoveNode,
    "update": raftpb.ConfChangeUpdateNode,
    "learner": raftpb.ConfChangeAddLearnerNode,
}


class FixedRandom(Random):
    """Member i waits 1 + i/10 election timeouts: elections are as the script says."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


class Member:
    def __init__(self, raft: Raft, disk: Disk) -> None:
        self.raft = raft
        self.disk = disk
        self.writing: events.Persist | None = None
        self.up = True


class Theatre:
    """Members whose messages and writes wait until the script lets them go. Commands are methods named do_*."""

    def __init__(self) -> None:
        self.now = 0.0
        self.members: dict[int, Member] = {}
        self.options: dict[str, str] = {}
        self.wire: list[raftpb.Message] = []
        self.cut: set[int] = set()
        self.fast_disk = True
        self.tag = 0
        self.lines: list[str] = []

    def perform(self, command: str) -> str:
        verb, *arguments = command.split()
        self.lines = []
        getattr(self, "do_" + verb.replace("-", "_"))(*arguments)
        return "\n".join(self.lines) or "ok"

    # --- members ---

    def config(self, raft_id: int) -> events.Config:
        options = self.options
        return events.Config(
            raft_id,
            tick_s=0.1,
            election_ticks=10,
            heartbeat_ticks=1,
            pre_vote="pre-vote" in options,
            campaigns="follows" not in options,
            announce_s=float(options.get("announce", "0")),
            commit_lag_entries=int(options.get("commit-lag", "0")),
            check_quorum="no-check-quorum" not in options,
            message_bytes_max=int(options.get("message", "1000")),
            inflight_messages_max=int(options.get("inflight", "10")),
            uncommitted_bytes_max=int(options.get("uncommitted", "1000")),
            entry_bytes_max=int(options.get("entry", "500")),
        )

    def start(self, raft_id: int, disk: Disk, entries: tuple[raftpb.Entry, ...] = ()) -> None:
        applied = disk.snapshot.metadata.index if disk.snapshot else 0
        rng, stored = FixedRandom(raft_id / 10), entries or tuple(disk.entries)
        raft = Raft(self.config(raft_id), rng, disk.hard_state, disk.snapshot, stored, applied, self.now)
        self.members[raft_id] = Member(raft, disk)
        self.handle(raft_id, None)

    def do_options(self, *words_: str) -> None:
        """Settings of members that are started from here on."""
        for word in words_:
            name, _, value = word.partition("=")
            self.options[name] = value

    def do_group(self, *ids: str) -> None:
        """Members of an old group: snapshot up to entry 1 of term 1."""
        for raft_id in ids:
            metadata = raftpb.SnapshotMetadata(index=1, term=1)
            metadata.conf_state.voters.extend(int(other) for other in ids)
            disk = Disk(raftpb.HardState(term=1, commit=1), raftpb.Snapshot(data=b"state", metadata=metadata))
            self.start(int(raft_id), disk)
        self.lines = []

    def do_new(self, raft_id: str) -> None:
        self.start(int(raft_id), Disk(), bootstrap_entries(int(raft_id), b"me"))

    def do_join(self, raft_id: str) -> None:
        self.start(int(raft_id), Disk())

    def do_crash(self, raft_id: str) -> None:
        """What was not persisted is lost, and so is what is on the wire to it."""
        self.members[int(raft_id)].up = False
        self.members[int(raft_id)].writing = None
        self.wire = [message for message in self.wire if message.to != int(raft_id)]

    def do_restart(self, raft_id: str) -> None:
        self.start(int(raft_id), self.members[int(raft_id)].disk)

    # --- events ---

    def handle(self, raft_id: int, event: events.Event | None) -> None:
        member = self.members[raft_id]
        if not member.up:
            return
        for effect in member.raft.handle(event, self.now):
            self.effect(raft_id, member, effect)
        member.raft.check()
        if self.fast_disk and member.writing:
            self.do_persist(str(raft_id))

    def do_disks(self, speed: str) -> None:
        """slow: writes wait for the command persist."""
        self.fast_disk = speed == "fast"

    def do_persist(self, raft_id: str) -> None:
        member = self.members[int(raft_id)]
        persist, member.writing = member.writing, None
        if persist is None:
            self.lines.append("nothing is being written")
            return
        member.disk.write(persist)
        self.handle(int(raft_id), events.Persisted(persist.token))

    def do_propose(self, raft_id: str, data: str, count: str = "1") -> None:
        for _ in range(int(count)):
            self.tag += 1
            self.handle(int(raft_id), events.Propose(self.tag, data.encode()))

    def do_change(self, raft_id: str, kind: str, other: str) -> None:
        self.tag += 1
        change = raftpb.ConfChange(type=CHANGES[kind], node_id=int(other), context=b"you")
        self.handle(int(raft_id), events.ProposeMembership(self.tag, change))

    def do_read(self, raft_id: str) -> None:
        self.tag += 1
        self.handle(int(raft_id), events.ReadBarrier(self.tag))

    def do_campaign(self, raft_id: str, force: str = "") -> None:
        self.handle(int(raft_id), events.Campaign(bool(force)))

    def do_transfer(self, raft_id: str, to: str = "0") -> None:
        self.handle(int(raft_id), events.TransferLeadership(int(to)))

    def do_unreachable(self, raft_id: str, other: str) -> None:
        self.handle(int(raft_id), events.Unreachable(int(other)))

    def do_gone(self, raft_id: str, other: str) -> None:
        self.handle(int(raft_id), events.Gone(int(other)))

    def do_snapshot_sent(self, raft_id: str, other: str, result: str) -> None:
        self.handle(int(raft_id), events.SnapshotSent(int(other), result == "ok"))

    def do_snapshot(self, raft_id: str, keep: str = "0") -> None:
        """The manager saved its state as of the last applied entry."""
        snapshot = raftpb.Snapshot(data=b"state")
        snapshot.metadata.index = self.members[int(raft_id)].raft.log.applied
        self.handle(int(raft_id), events.SnapshotTaken(snapshot, int(keep)))

    def do_configure(self, raft_id: str, *options: str) -> None:
        self.do_options(*options)
        self.handle(int(raft_id), events.Configure(self.config(int(raft_id))))

    def do_receive(self, raft_id: str, kind: str, *fields: str) -> None:
        """A message made by hand, as an etcd peer might send it. entries=2/1,3/1 means index/term."""
        message = raftpb.Message(type=kind, to=int(raft_id))
        for word in fields:
            name, _, value = word.partition("=")
            if name == "entries":
                for pair in value.split(","):
                    index, term = pair.split("/")
                    message.entries.add(Index=int(index), Term=int(term), Data=b"x")
            elif name == "context":
                message.context = value.encode()
            else:
                setattr(message, name, value == "true" if name == "reject" else int(value))
        self.handle(int(raft_id), events.Received(message))

    # --- time and network ---

    def do_wait(self, seconds: str) -> None:
        """Let time pass; deadlines are met on the dot, messages stay on the wire."""
        until = self.now + float(seconds)
        while True:
            due = [(m.raft.deadline(), raft_id) for raft_id, m in self.members.items() if m.up]
            soonest = min(((at, raft_id) for at, raft_id in due if at is not None), default=None)
            if soonest is None or soonest[0] > until:
                break
            self.now = max(self.now, soonest[0])
            self.handle(soonest[1], None)
        self.now = until

    def do_oversleep(self, raft_id: str, seconds: str) -> None:
        """One process was stopped for so long, and then finds its deadline passed."""
        self.now += float(seconds)
        self.handle(int(raft_id), None)

    def do_deliver(self, rounds: str = "1") -> None:
        """Everything on the wire arrives, in order; what that causes waits for the next round."""
        for _ in range(int(rounds)):
            messages, self.wire = self.wire, []
            for message in messages:
                if message.to in self.members:
                    self.handle(message.to, events.Received(message))

    def do_settle(self) -> None:
        """Deliver until nothing moves any more."""
        for _ in range(100):
            if not self.wire:
                return
            self.do_deliver()
        raise AssertionError("the members do not come to rest")

    def do_quietly(self, *command: str) -> None:
        """Perform a command without telling what happens."""
        self.perform(" ".join(command))
        self.lines = []

    def do_drop(self, *_: str) -> None:
        """Everything on the wire is lost."""
        self.wire = []

    def do_isolate(self, *ids: str) -> None:
        """Nothing reaches or leaves these members any more (nobody: heal)."""
        self.cut = {int(raft_id) for raft_id in ids}
        self.wire = [m for m in self.wire if not {m.to, events.sender(m)} & self.cut]

    # --- output ---

    def effect(self, raft_id: int, member: Member, effect: events.Effect) -> None:
        text = describe(effect)
        match effect:
            case events.Send(message):
                if {message.to, raft_id} & self.cut:
                    text += " (lost)"
                else:
                    self.wire.append(raftpb.Message.FromString(message.SerializeToString()))
            case events.Persist():
                member.writing = effect
        self.lines.append(f"{self.now:.1f} {raft_id} {text}")

    def do_status(self) -> None:
        for raft_id, member in self.members.items():
            s = member.raft.status()
            state = s.role.value if member.up else "down"
            text = f"{raft_id} {state} term={s.term} leader={s.leader} last={s.last_index}"
            self.lines.append(f"{text} committed={s.committed} applied={s.applied}")
            for peer, progress in member.raft.progress.items():
                self.lines.append(f"  {peer} {progress!r}")

    def do_log(self, raft_id: str) -> None:
        log = self.members[int(raft_id)].raft.log
        self.lines.append(entries_text(log.between(log.first_index, log.last_index)) or "empty")


def entries_text(entries: object) -> str:
    words_ = []
    for entry in entries:  # type: ignore[attr-defined]
        content = "change" if entry.Type == raftpb.EntryConfChange else entry.Data.decode()[:12]
        words_.append(f"{entry.Index}/{entry.Term}" + (f":{content}" if content else ""))
    return " ".join(words_)


def message_text(message: raftpb.Message) -> str:
    parts = [f"{raftpb.MessageType.Name(message.type)} to {message.to} term={message.term}"]
    names = ("logTerm", "index", "commit", "reject", "rejectHint")
    parts += [f"{name}={getattr(message, name)}" for name in names if getattr(message, name)]
    if message.context:
        number = int.from_bytes(message.context, "big")
        parts.append(f"round={number}" if number < 2**32 else f"context={message.context.decode()}")
    if message.entries:
        parts.append(f"[{entries_text(message.entries)}]")
    if message.HasField("snapshot"):
        metadata = message.snapshot.metadata
        parts.append(f"snapshot {metadata.index}/{metadata.term} voters={list(metadata.conf_state.voters)}")
    return " ".join(parts)


def describe(effect: events.Effect) -> str:
    """One effect in one line."""
    match effect:
        case events.Persist(hard_state=state, entries=entries, snapshot=snapshot):
            parts = [f"persist term={state.term} vote={state.vote} commit={state.commit}" if state else "persist"]
            parts += [f"[{entries_text(entries)}]"] if entries else []
            parts += [f"snapshot {snapshot.metadata.index}/{snapshot.metadata.term}"] if snapshot else []
            parts += [f"compact to {effect.compact_to}"] if effect.compact_to else []
            return " ".join(parts + (["instead of the log"] if effect.replaces_log else []))
        case events.Send(message):
            return message_text(message)
        case events.Accepted(tag, index, term):
            return f"accepted #{tag} as {index}/{term}"
        case events.Refused(tag, reason):
            return f"refused #{tag}: {reason.value}"
        case events.Committed(entries):
            return f"committed {entries_text(entries)}"
        case events.MembershipChanged(conf_state):
            return f"voters {list(conf_state.voters)}"
        case events.Restore(snapshot):
            return f"restore {snapshot.metadata.index}/{snapshot.metadata.term}"
        case events.BecameLeader(term):
            return f"LEADER of term {term}"
        case events.BecameFollower(term, leader):
            return f"follower of {leader} in term {term}"
        case events.ReadReady(tag, index):
            return f"read #{tag} ready at {index}"
        case events.NeedSnapshot(other):
            return f"needs a snapshot for {other}"
        case events.Removed():
            return "REMOVED"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_plays_as_written(path: Path) -> None:
    run(path, Theatre().perform)


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 10
