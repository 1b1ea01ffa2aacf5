"""The log of Raft on a simulated disk, as swarm/io/disk/raft_disk.py keeps it in sqlite.

Nothing is encrypted here: each record names the data key that it is sealed with, and can be read only by who has that
key. A write is synchronised before it is acknowledged. One that fails may have reached the disk all the same: then the
next process finds it there, unless another write took its place. The newest writes are frames of the write-ahead log;
when one of them is damaged, sqlite by itself goes on with what is before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from certs.keystore import RaftKeys
from swarm.api import raftpb
from swarm.io.disk.database import DiskCorrupt
from swarm.io.disk.raft_disk import Loaded
from swarm.raft import events
from swarm.raft.records import RecordLocked

CLEAR = b""  # the data key of a record that is not sealed
WAL_WRITES_MAX = 64
"""After so many writes the write-ahead log is copied into the database and begins anew."""


@dataclass(frozen=True)
class Record:
    """Bytes on disk, and the data key that they are sealed with; CLEAR: with none."""

    data: bytes
    data_key: bytes = CLEAR


@dataclass
class Content:
    """What the database holds."""

    hard_state: bytes | None = None
    snapshot: Record | None = None
    entries: list[tuple[int, Record]] = field(default_factory=list)

    def copy(self) -> Content:
        """As it is now."""
        return Content(self.hard_state, self.snapshot, list(self.entries))

    def records(self) -> list[Record]:
        """All that can be sealed."""
        snapshot = [self.snapshot] if self.snapshot is not None else []
        return [*snapshot, *(record for _, record in self.entries)]

    def sealed(self, key: bytes) -> Content:
        """The same, written anew with this data key."""
        snapshot = replace(self.snapshot, data_key=key) if self.snapshot is not None else None
        return Content(self.hard_state, snapshot, [(index, replace(row, data_key=key)) for index, row in self.entries])

    def write(self, persist: events.Persist, key: bytes) -> None:
        """One transaction."""
        if persist.replaces_log:
            self.entries = []
        elif persist.compact_to:
            self.entries = [row for row in self.entries if row[0] > persist.compact_to]
        if persist.snapshot is not None:
            self.snapshot = Record(persist.snapshot.SerializeToString(), key)
        if persist.entries:
            first = persist.entries[0].Index
            self.entries = [row for row in self.entries if row[0] < first]
            last = max(self.entries[-1][0] if self.entries else 0, self._snapshot_index())
            assert first <= last + 1, f"entry {first} would leave a gap after {last}"
            self.entries += [(entry.Index, Record(entry.SerializeToString(), key)) for entry in persist.entries]
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state.SerializeToString()

    def _snapshot_index(self) -> int:
        if self.snapshot is None:
            return 0
        return raftpb.Snapshot.FromString(self.snapshot.data).metadata.index


class RaftImage:
    """As RaftDisk keeps it. raft_keys: those of the process that has it open, not part of the disk."""

    def __init__(self) -> None:
        self.raft_id = 0
        self.raft_keys: RaftKeys | None = None
        self._content = Content()
        self._rewritten: tuple[RaftKeys, Content] | None = None
        self._base = Content()
        self._wal: list[tuple[events.Persist, bytes]] = []
        self._phantom: events.Persist | None = None
        self._bad_frame: int | None = None
        self._damage = ""
        self.undecided: Callable[[], bool] | None = None
        """Whether the rewritten log counts; nothing is written before that can be told."""

    @property
    def hard_state(self) -> bytes | None:
        """The record of term, vote and commit index."""
        return self._content.hard_state

    @property
    def entries(self) -> list[tuple[int, bytes]]:
        """(index, entry) of the whole log, as somebody sees them who has all keys."""
        return [(index, record.data) for index, record in self._content.entries]

    @property
    def intact(self) -> bool:
        """Whether no bit of it has turned over."""
        return self._bad_frame is None and not self._damage

    def data_keys(self) -> frozenset[bytes]:
        """The data keys of all records; CLEAR is among them if anything can be read without a key."""
        return frozenset(record.data_key for record in self._content.records())

    @property
    def plain(self) -> bool:
        """Whether something in it can be read without a key."""
        return CLEAR in self.data_keys()

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, persist: events.Persist) -> None:
        """All of it, atomically."""
        assert self._rewritten is None, "written to a log that is being replaced"
        key = _sealing(self.raft_keys)
        self._phantom = None
        self._content.write(persist, key)
        self._wal.append((persist, key))
        if len(self._wal) >= WAL_WRITES_MAX:
            self._checkpoint()

    def fail_to_synchronise(self, persist: events.Persist) -> None:
        """It is in the file, but the process was told that it is not: sqlite's next write goes to the same place."""
        self._phantom = persist

    def _checkpoint(self) -> None:
        """sqlite copies the frames as they are."""
        if self._bad_frame is not None:
            self._bad_frame, self._damage = None, "wrong checksum of an entry"
        self._base, self._wal = self._content.copy(), []

    # --- what nature does ------------------------------------------------------------------------------------------

    def flip(self, rng: Random) -> str:
        """One bit turns over, in the write-ahead log or in the database. Returns where."""
        if self._wal and rng.random() < 0.7:
            frame = rng.randrange(len(self._wal))
            self._bad_frame = frame if self._bad_frame is None else min(frame, self._bad_frame)
            return f"frame {frame} of {len(self._wal)}"
        self._damage = "database disk image is malformed" if rng.random() < 0.5 else "wrong checksum of an entry"
        return "database"

    def lose_power(self, rng: Random) -> None:
        """What was not synchronised is there or not."""
        if rng.random() < 0.5:
            self._phantom = None

    # --- sealing ---------------------------------------------------------------------------------------------------

    def open(self, raft_keys: RaftKeys | None) -> None:
        """For a process that starts: these keys are at hand, see swarm.io.node.autolock.sealer_of."""
        self.raft_keys, self.undecided = raft_keys, None

    def settle(self) -> None:
        """See swarm.io.disk.database.File: a rewrite is adopted or discarded. Raises what ``undecided`` raises."""
        if self.undecided is not None:
            self.adopt() if self.undecided() else self.discard()
            self.undecided = None

    def prepare(self, raft_keys: RaftKeys) -> None:
        """Write everything anew, sealed by these keys; it waits for the commit. Raises RecordLocked."""
        self._check_keys()
        self._rewritten = raft_keys, self._content.sealed(_sealing(raft_keys))

    def adopt(self) -> None:
        """The commit happened: what was rewritten, if anything was, takes the place of the old."""
        if self._rewritten is not None:
            self.raft_keys, self._content = self._rewritten
            self._base, self._wal, self._phantom, self._bad_frame = self._content.copy(), [], None, None
        self._rewritten = None

    def discard(self) -> None:
        """The commit did not happen, or nothing was under way."""
        self._rewritten = None

    def _check_keys(self) -> None:
        keys = self.raft_keys
        known = {CLEAR} if keys is None else {CLEAR, keys.current, keys.pending}
        if not self.data_keys() <= known:
            raise RecordLocked("a record is sealed with a data key that is not at hand")

    # --- reading ---------------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """For a start, after open(). Raises DiskCorrupt, RecordLocked."""
        if self._bad_frame is not None:
            self._lose_frames(self._bad_frame)
        if self._damage:
            raise DiskCorrupt(self._damage)
        self._check_keys()
        if self._phantom is not None:
            self.write(self._phantom)
        content = self._content
        return Loaded(
            raft_id=self.raft_id,
            hard_state=raftpb.HardState.FromString(content.hard_state) if content.hard_state is not None else None,
            snapshot=raftpb.Snapshot.FromString(content.snapshot.data) if content.snapshot is not None else None,
            entries=tuple(raftpb.Entry.FromString(data) for _, data in self.entries),
        )

    def _lose_frames(self, bad: int) -> None:
        """sqlite recovers: it takes the first frame whose checksum is wrong for the end of its log."""
        self._content = self._base.copy()
        for persist, key in self._wal[:bad]:
            self._content.write(persist, key)
        self._base, self._wal, self._phantom, self._bad_frame = self._content.copy(), [], None, None


def _sealing(keys: RaftKeys | None) -> bytes:
    return CLEAR if keys is None else keys.pending or keys.current
