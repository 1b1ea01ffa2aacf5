"""The log of Raft on a simulated disk, as swarm/io/disk/raft_disk.py keeps it in sqlite, with its mark.

Nothing is encrypted here: each record names the data key that it is sealed with, and can be read only by who has that
key. A write is synchronised before it is acknowledged. One that fails may have reached the disk all the same: then the
next process finds it there, unless another write took its place. The newest writes are frames of the write-ahead log
(wal_image.py); when one of them is damaged, sqlite by itself goes on with what is before it. What the mark says, and
whether a log may be used, production decides (swarm/raft/ledger.py, swarm/raft/salvage.py, swarm/io/disk/wal.py).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from certs.keystore import RaftKeys
from swarm.io.disk.database import DiskCorrupt
from swarm.io.disk.raft_disk import Loaded
from swarm.raft import events
from swarm.raft.confirmed import Confirmed
from swarm.raft.ledger import Ledger, doubt
from swarm.raft.records import RecordCorrupt, RecordLocked
from swarm.raft.salvage import salvaged
from tests.sim.mark_image import MarkImage
from tests.sim.raft_content import CLEAR, Content, Owner, Write
from tests.sim.wal_image import WalImage

WAL_WRITES_MAX = 64
"""After so many writes the write-ahead log is copied into the database and begins anew."""
GONE = "raft.db: the file is gone"
MALFORMED = "raft.db: database disk image is malformed"


class RaftImage:
    """As RaftDisk keeps it. raft_keys: those of the process that has it open, not part of the disk."""

    def __init__(self) -> None:
        self.raft_keys: RaftKeys | None = None
        self.mark = MarkImage()
        self._content = Content()  # as the process sees it
        self._rewritten: tuple[RaftKeys, Content] | None = None
        self._base = Content()  # what the file of the database holds; the rest is in the write-ahead log
        self._wal = WalImage()
        self._damaged_at: int | None = None  # from this entry on, the database cannot be read; 0: nothing of it
        self._gone = False
        self._ledger = Ledger()
        self.undecided: Callable[[], bool] | None = None
        """Whether the rewritten log counts; nothing is written before that can be told."""

    def copy(self) -> RaftImage:
        """A disk with the same content."""
        other = RaftImage()
        other.raft_keys, other._rewritten, other.undecided = self.raft_keys, self._rewritten, self.undecided
        other._content, other._base, other._wal = self._content.copy(), self._base.copy(), self._wal.copy()
        other._damaged_at, other._gone, other.mark = self._damaged_at, self._gone, self.mark.copy()
        other._ledger.opened(other._content.confirmed())
        return other

    @property
    def raft_id(self) -> int:
        """Whose log it is; 0: nobody's yet."""
        return self._content.owner.raft_id

    @property
    def hard_state(self) -> bytes | None:
        """The record of term, vote and commit index."""
        return self._content.hard_state

    @property
    def entries(self) -> list[tuple[int, bytes]]:
        """(index, entry) of the whole log, as somebody sees them who has all keys."""
        return [(index, record.data) for index, _, record in self._content.entries]

    @property
    def intact(self) -> bool:
        """Whether nothing of it was damaged."""
        return self._wal.intact and self._damaged_at is None and not self._gone and self.mark.exists

    @property
    def being_replaced(self) -> bool:
        """Whether a rewritten log waits for its commit: what is to be written waits, too."""
        return self._rewritten is not None

    def data_keys(self) -> frozenset[bytes]:
        """The data keys of all records; CLEAR is among them if anything can be read without a key."""
        return frozenset(record.data_key for record in self._content.records())

    @property
    def plain(self) -> bool:
        """Whether something in it can be read without a key."""
        return CLEAR in self.data_keys()

    def in_clear(self) -> bytes:
        """All bytes of all its files that can be read without a key."""
        rewritten = [self._rewritten[1]] if self._rewritten is not None else []
        records = [record for content in (self._content, self._base, *rewritten) for record in content.records()]
        logged = [write for write, key in self._wal.everything() if key == CLEAR and not isinstance(write, Owner)]
        snapshots = [write.snapshot.SerializeToString() for write in logged if write.snapshot is not None]
        entries = [entry.SerializeToString() for write in logged for entry in write.entries]
        return b"\n".join([*(one.data for one in records if one.data_key == CLEAR), *snapshots, *entries])

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, write: Write, killed: bool = False) -> None:
        """All of it, atomically. killed: the process dies before it has written the mark."""
        assert self._rewritten is None, "written to a log that is being replaced"
        self.begin(write)
        key = _sealing(self.raft_keys)
        self._content.write(write, key)
        self._wal.unsynced = None
        self._wal.writes.append((write, key))
        if not killed:
            now = self._ledger.committed()
            if now != self.mark.confirmed:
                self.mark.write(now)
        if len(self._wal.writes) >= WAL_WRITES_MAX:
            self._checkpoint()

    def begin(self, write: Write) -> None:
        """See LogGuard.before_commit: the transaction is about to be committed, or the process is killed here."""
        self._ledger.begin()
        if isinstance(write, Owner):
            self._ledger.owned_by(write.raft_id)
        else:
            if write.entries and (first := write.entries[0].Index) <= self._content.last_index:
                self._ledger.keep_until(first - 1, self._content.term_at(first - 1))
            self._ledger.note(write)
        remains = self._ledger.remaining(self.mark.confirmed)
        if remains != self.mark.confirmed:
            self.mark.write(remains)
            self.mark.sync()

    def fail_to_synchronise(self, write: Write) -> None:
        """It is in the file, but the process was told that it is not: sqlite's next write goes to the same place."""
        self.begin(write)
        self._wal.unsynced = write, _sealing(self.raft_keys)

    def _checkpoint(self) -> None:
        """sqlite copies the frames as they are."""
        if not self._wal.intact:
            self._damaged_at = 0
        self._base, self._wal = self._content.copy(), WalImage()

    def start_over(self, content: Loaded) -> None:
        """Another file takes its place; the mark follows with confirm()."""
        self.discard()
        self._place(Content(Owner(content.raft_id, content.node_id, content.cluster_id)))
        self._content.write(
            events.Persist(0, content.hard_state, content.entries, content.snapshot), _sealing(self.raft_keys)
        )
        self._base = self._content.copy()

    def confirm(self) -> None:
        """See LogGuard.confirm; and the file is opened."""
        self._opened(self._content.confirmed())

    def _opened(self, confirmed: Confirmed) -> None:
        self._ledger.opened(confirmed)
        self.mark.write(confirmed)
        self.mark.sync()

    def _place(self, content: Content) -> None:
        """A new file without a write-ahead log."""
        self._content, self._base, self._wal = content, content.copy(), WalImage()
        self._damaged_at, self._gone = None, False

    # --- what nature does ------------------------------------------------------------------------------------------

    def flip(self, rng: Random) -> str:
        """One bit turns over, in the write-ahead log, the mark or the database. Returns where.

        Nothing can tell damage to the last transaction from one that a crash has torn, except the mark. So the power
        does not fail at the same moment: the log was idle before.
        """
        if self._wal.writes and rng.random() < 0.6:
            where, last = self._wal.flip(rng)
            if last:
                self.mark.sync()
            return f"raft.db-wal, {where}"
        if self.mark.exists and rng.random() < 0.2:
            self.mark.flip(rng)
            return "raft.db-mark"
        rows = self._base.entries
        self._damaged_at = rows[rng.randrange(len(rows))][0] if rows and rng.random() < 0.7 else 0
        return f"raft.db, entry {self._damaged_at}" if self._damaged_at else "raft.db"

    def vanish(self, rng: Random) -> str:
        """One of its files is gone, or the end of one. Returns which."""
        self.mark.sync()  # as in flip()
        what = rng.choice(("raft.db", "raft.db-wal", "raft.db-wal, its end", "raft.db-mark"))
        if what == "raft.db":
            self.lose_database()
        elif what == "raft.db-mark":
            self.mark.vanish()
        elif self._wal.writes:
            self._wal.cut(rng, everything=what == "raft.db-wal")
        return what

    def lose_database(self) -> None:
        """The mark is all that is left."""
        self._place(Content())
        self._gone = True

    def lose_power(self, rng: Random) -> None:
        """What was not synchronised is there, or not, or in part."""
        self._wal.lose_power(rng)
        self.mark.lose_power(rng)

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
            self.raft_keys, content = self._rewritten
            self._place(content)
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
        found = self._examine()
        if self._damaged_at is not None:
            raise DiskCorrupt(f"raft.db: wrong checksum of entry {self._damaged_at}" if self._damaged_at else MALFORMED)
        self._content = found
        self._base, self._wal = found.copy(), WalImage()  # sqlite starts its log over
        self._opened(found.confirmed())
        self._check_keys()
        return self._loaded(found)

    def salvage(self) -> tuple[Loaded, str]:
        """See RaftDisk.salvage. Raises DiskCorrupt, RecordLocked."""
        if self._gone:
            raise DiskCorrupt(f"{GONE}, or empty")
        expected, _ = self.mark.read()
        found, bad = self._seen(), self._damaged_at
        if bad == 0:
            raise DiskCorrupt(MALFORMED)
        found.entries = [row for row in found.entries if bad is None or row[0] < bad]
        self._check_keys()
        loaded = self._loaded(found)
        try:
            state, entries = salvaged(loaded.hard_state, loaded.snapshot, loaded.entries, expected.term)
        except RecordCorrupt as error:
            raise DiskCorrupt(f"raft.db: {error.message}") from error
        lost = expected.lost_from(loaded.raft_id, state, loaded.snapshot, entries)
        owner = found.owner
        return Loaded(owner.raft_id, owner.node_id, owner.cluster_id, state, loaded.snapshot, entries), lost

    def confirmed_as(self) -> int:
        """See RaftDisk."""
        return self.mark.read()[0].raft_id

    def _examine(self) -> Content:
        """See LogGuard.examine: changes nothing. Raises DiskCorrupt."""
        expected, trouble = self.mark.read()
        found = self._seen()
        if self._gone:
            if expected != Confirmed():
                raise DiskCorrupt(f"{GONE}: {expected.lost_in(found.confirmed(), found.term_at)}")
            return found
        if self._wal.suspicious and (damage := self._wal.damage()):
            raise DiskCorrupt(f"raft.db-wal: {damage}")
        if self._damaged_at == 0:
            raise DiskCorrupt(MALFORMED)
        marked = bool(self._base.owner.raft_id or self._wal.writes)
        if why := doubt(expected, trouble, marked, found.confirmed(), found.term_at):
            raise DiskCorrupt(f"raft.db: {why}")
        return found

    def _seen(self) -> Content:
        """As sqlite shows it: up to the first frame of its log whose checksum is wrong."""
        content = self._base.copy()
        for write, key in self._wal.readable():
            content.write(write, key)
        return content

    def _loaded(self, content: Content) -> Loaded:
        owner = content.owner
        state, snapshot = content.read_hard_state(), content.read_snapshot()
        return Loaded(owner.raft_id, owner.node_id, owner.cluster_id, state, snapshot, content.read_entries())


def _sealing(keys: RaftKeys | None) -> bytes:
    return CLEAR if keys is None else keys.pending or keys.current
