"""What survives on one node: the log of Raft, its key file, the journal of its tasks, who it is and what it knows.

The log is synchronised before it is acknowledged; a write under way at a crash is there or not. The journal survives
the death of the process, but with the machine its newest records may go. Everything is kept as bytes, so that a
restart reads what was written, not yesterday's objects.

Key file and log change together as with swarm/io/disk/replaced_file.py: the rewritten log waits beside the old one, the
replacement of the key file is the commit, and then the rewritten log takes the old one's place. Nothing is encrypted
here: each record names the data key that it is sealed with, and can be read only by who has that key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from certs.errors import InvalidUnlockKey
from certs.keystore import Kek, RaftKeys
from swarm.api import raftpb
from swarm.errors import NodeLocked
from swarm.io.disk.raft_disk import Loaded
from swarm.node.autolock_events import Done, Failed, Operation, Reseal, RotateKek, SaveCertificate, SaveRaftKeys, Settle
from swarm.node.state import NodeState
from swarm.raft import events
from swarm.raft.records import RecordLocked

JOURNAL_UNSYNCED_MAX = 20
_UNLOCKED = Kek()
COMPLETE = 3  # steps that no operation has more of
CLEAR = b""  # the data key of a record that is not sealed


@dataclass(frozen=True)
class Record:
    """Bytes on disk, and the data key that they are sealed with; CLEAR: with none."""

    data: bytes
    data_key: bytes = CLEAR


@dataclass(frozen=True)
class KeyFile:
    """As KeyStore keeps it: the certificate, whose private key is encrypted by the KEK as the Raft keys are."""

    certificate_pem: bytes
    kek: Kek = _UNLOCKED
    raft_keys: RaftKeys | None = None

    @property
    def locked(self) -> bool:
        """Whether the unlock key is needed to read it."""
        return bool(self.kek.key)


class RaftImage:
    """As RaftDisk keeps it. raft_keys: those of the process that has it open, not part of the disk."""

    def __init__(self) -> None:
        self.raft_id = 0
        self.hard_state: bytes | None = None
        self.raft_keys: RaftKeys | None = None
        self._snapshot: Record | None = None
        self._entries: list[tuple[int, Record]] = []
        self._rewritten: tuple[RaftKeys, Record | None, list[tuple[int, Record]]] | None = None

    @property
    def entries(self) -> list[tuple[int, bytes]]:
        """(index, entry) of the whole log, as somebody sees them who has all keys."""
        return [(index, record.data) for index, record in self._entries]

    def data_keys(self) -> frozenset[bytes]:
        """The data keys of all records; CLEAR is among them if anything can be read without a key."""
        return frozenset(record.data_key for record in self._records())

    def _records(self) -> list[Record]:
        snapshot = [self._snapshot] if self._snapshot is not None else []
        return [*snapshot, *(record for _, record in self._entries)]

    def write(self, persist: events.Persist) -> None:
        """All of it, atomically."""
        assert self._rewritten is None, "written to a log that is being replaced"
        if persist.replaces_log:
            self._entries = []
        elif persist.compact_to:
            self._entries = [row for row in self._entries if row[0] > persist.compact_to]
        if persist.snapshot is not None:
            self._snapshot = self._seal(persist.snapshot.SerializeToString())
        if persist.entries:
            first = persist.entries[0].Index
            self._entries = [row for row in self._entries if row[0] < first]
            last = max(self._entries[-1][0] if self._entries else 0, self._snapshot_index())
            assert first <= last + 1, f"entry {first} would leave a gap after {last}"
            self._entries += [(entry.Index, self._seal(entry.SerializeToString())) for entry in persist.entries]
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state.SerializeToString()

    def _snapshot_index(self) -> int:
        if self._snapshot is None:
            return 0
        return raftpb.Snapshot.FromString(self._snapshot.data).metadata.index

    # --- sealing ---------------------------------------------------------------------------------------------------

    def open(self, raft_keys: RaftKeys | None) -> None:
        """For a process that starts: these keys are at hand, see swarm.io.node.autolock.sealer_of."""
        self.raft_keys = raft_keys

    def _seal(self, data: bytes) -> Record:
        return Record(data, _sealing(self.raft_keys))

    def prepare(self, raft_keys: RaftKeys) -> None:
        """Write everything anew, sealed by these keys; it waits for the commit. Raises RecordLocked."""
        self._check_keys()
        key = _sealing(raft_keys)
        snapshot = replace(self._snapshot, data_key=key) if self._snapshot is not None else None
        self._rewritten = raft_keys, snapshot, [(index, replace(row, data_key=key)) for index, row in self._entries]

    def adopt(self) -> None:
        """The commit happened: what was rewritten, if anything was, takes the place of the old."""
        if self._rewritten is not None:
            self.raft_keys, self._snapshot, self._entries = self._rewritten
        self._rewritten = None

    def discard(self) -> None:
        """The commit did not happen, or nothing was under way."""
        self._rewritten = None

    def _check_keys(self) -> None:
        keys = self.raft_keys
        known = {CLEAR} if keys is None else {CLEAR, keys.current, keys.pending}
        if not self.data_keys() <= known:
            raise RecordLocked("a record is sealed with a data key that is not at hand")

    def load(self) -> Loaded:
        """For a start, after open(). Raises RecordLocked."""
        self._check_keys()
        return Loaded(
            raft_id=self.raft_id,
            hard_state=raftpb.HardState.FromString(self.hard_state) if self.hard_state is not None else None,
            snapshot=raftpb.Snapshot.FromString(self._snapshot.data) if self._snapshot is not None else None,
            entries=tuple(raftpb.Entry.FromString(data) for _, data in self.entries),
        )


def _sealing(keys: RaftKeys | None) -> bytes:
    return CLEAR if keys is None else keys.pending or keys.current


@dataclass
class Disk:
    """One node's disk. state_json: None while there is no such file. leaving: this machine leaves its swarm."""

    key_file: KeyFile | None = None
    root_pem: bytes = b""
    state_json: str | None = None
    leaving: bool = False
    raft: RaftImage = field(default_factory=RaftImage)
    journal: dict[str, bytes] = field(default_factory=dict)
    _undo: deque[dict[str, bytes | None]] = field(default_factory=deque)

    # --- state.json ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> NodeState | None:
        """As a daemon that starts reads it."""
        return NodeState.from_json(self.state_json) if self.state_json is not None else None

    def save_state(self, state: NodeState) -> None:
        """Write it, synchronised."""
        self.state_json = state.to_json()

    def drop_state(self) -> None:
        """Record that this node leaves: the next start deletes the rest."""
        self.leaving = True

    @property
    def saved(self) -> bool:
        """Whether this machine is a node: an init or join was acknowledged, or soon will be."""
        state = self.state
        joined = state is not None and (state.pending is None or bool(state.pending.token))
        return joined and not self.leaving

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the files beside state.json."""
        there = {"certificates/swarm-node.crt": self.key_file, "raft.db": self.raft.raft_id, "tasks.db": self.journal}
        return tuple(name for name, content in there.items() if content)

    @property
    def raft_id(self) -> int:
        """Whose log must be there; 0: none is expected."""
        state = self.state
        return state.raft_id if state is not None else 0

    @property
    def past_raft_ids(self) -> tuple[int, ...]:
        """Members whose log was given up."""
        state = self.state
        return state.past_raft_ids if state is not None else ()

    def set_managers(self, managers: tuple[tuple[str, str], ...]) -> None:
        """An operator writes other managers into the file."""
        state = self.state
        assert state is not None
        self.save_state(state.with_managers(managers))

    # --- key file and sealed log -----------------------------------------------------------------------------------

    @property
    def certificate_pem(self) -> bytes:
        """Of the key file; empty without one."""
        return self.key_file.certificate_pem if self.key_file is not None else b""

    @certificate_pem.setter
    def certificate_pem(self, certificate_pem: bytes) -> None:
        """Replace the certificate and nothing else of the key file."""
        self.key_file = replace(self.key_file or KeyFile(b""), certificate_pem=certificate_pem)

    def recover(self) -> None:
        """See swarm.io.node.autolock.recover: before anything else of a start."""
        if self.key_file is not None and self.key_file.locked:
            self.raft.adopt()
        else:
            self.raft.discard()

    def load(self, unlock_key: bytes = b"") -> KeyFile:
        """What the key file holds. Raises NodeLocked without the unlock key that is needed, InvalidUnlockKey."""
        assert self.key_file is not None, "this disk is no node's"
        if self.key_file.locked and not unlock_key:
            raise NodeLocked("the key of this node is encrypted")
        if self.key_file.locked and unlock_key != self.key_file.kek.key:
            raise InvalidUnlockKey
        return self.key_file

    def perform(self, operation: Operation) -> Done:
        """All of it, as swarm.io.node.autolock.perform does. Raises RecordLocked if the log cannot be read."""
        self.perform_until_killed(operation, COMPLETE)
        assert self.key_file is not None
        return Done(self.key_file.kek, self.key_file.raft_keys)

    def perform_until_killed(self, operation: Operation, steps: int) -> None:
        """The first ``steps`` changes of the disk, at most those that there are. Then the process must not go on."""
        for step in self._steps(operation)[:steps]:
            step()

    def fail(self, operation: Operation) -> Failed:
        """The disk is full: a rewritten log may have been begun, but nothing has changed."""
        if isinstance(operation, Reseal):
            self.raft.prepare(operation.raft_keys)
            self.raft.discard()
        return Failed("no space left on device")

    def _steps(self, operation: Operation) -> list[Callable[[], None]]:
        """What changes the disk, each step atomically; the last but adopt() is the commit."""
        old = self.key_file
        match operation:
            case Settle():
                return []
            case SaveCertificate(credentials, kek, raft_keys):
                return [partial(self._replace_key_file, KeyFile(credentials.certificate_pem, kek, raft_keys))]
            case _ if old is None:
                raise AssertionError(f"{operation} needs a key file")
            case RotateKek(kek, raft_keys):
                return [partial(self._replace_key_file, replace(old, kek=kek, raft_keys=raft_keys))]
            case SaveRaftKeys(raft_keys):
                return [partial(self._replace_key_file, replace(old, raft_keys=raft_keys))]
            case Reseal(raft_keys, kek):
                new = replace(old, kek=kek or old.kek, raft_keys=raft_keys)
                return [partial(self.raft.prepare, raft_keys), partial(self._replace_key_file, new), self.raft.adopt]

    def _replace_key_file(self, key_file: KeyFile) -> None:
        self.key_file = key_file

    # --- the rest --------------------------------------------------------------------------------------------------

    def forget_log(self) -> None:
        """Delete Raft's log."""
        self.raft = RaftImage()

    def erase(self) -> None:
        """Delete everything."""
        self.state_json, self.leaving, self.key_file, self.root_pem = None, False, None, b""
        self.raft, self.journal = RaftImage(), {}
        self._undo.clear()

    def write_journal(self, puts: dict[str, bytes], drops: tuple[str, ...]) -> None:
        """One transaction of the journal."""
        before = {task_id: self.journal.get(task_id) for task_id in (*drops, *puts)}
        for task_id in drops:
            self.journal.pop(task_id, None)
        self.journal.update(puts)
        self._undo.append(before)
        if len(self._undo) > JOURNAL_UNSYNCED_MAX:
            self._undo.popleft()

    def lose_power(self, rng: Random) -> None:
        """The newest transactions of the journal never reached the platter."""
        for _ in range(rng.randint(0, len(self._undo))):
            for task_id, record in self._undo.pop().items():
                if record is None:
                    self.journal.pop(task_id, None)
                else:
                    self.journal[task_id] = record
        self._undo.clear()

    def synced(self) -> None:
        """The journal's file was checkpointed."""
        self._undo.clear()
