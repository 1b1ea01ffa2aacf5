"""Keeps a member from going on with a log that lacks what it has confirmed: the Guard of Raft's database.

Theory of operation. Before the file is opened for writing it is examined, and not changed by that: sqlite's write-ahead
log is read (wal.py), the structure of the file is checked, and what it holds is compared with the mark (mark.py). The
mark follows each write. A file that was written before there were marks gets one; from then on a missing mark counts
as a loss. Who accepts a loss reads what is there, and puts a new file in its place.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import structlog
from google.protobuf.message import DecodeError

from swarm.api import raftpb
from swarm.io.disk import mark, wal
from swarm.io.disk.database import LOCK_WAIT_S, DiskCorrupt
from swarm.raft.confirmed import Confirmed
from swarm.raft.events import Persist
from swarm.raft.ledger import Ledger, doubt
from swarm.raft.records import RecordCorrupt, checksum

log = structlog.get_logger()

_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_MODES = (b"\1\1", b"\2\2")  # of a database: not in WAL mode yet, in WAL mode
HAS_MARK = "mark"
"""The key in the metadata of a file that has a mark."""


class LogGuard:
    """See the module and database.Guard. ledger: is told what each transaction is about."""

    def __init__(self, path: Path) -> None:
        self.ledger = Ledger()
        self._path = path
        self._examined = False
        self._mark: mark.Mark | None = None

    def confirm(
        self,
        raft_id: int,
        hard_state: raftpb.HardState | None,
        snapshot: raftpb.Snapshot | None,
        entries: Sequence[raftpb.Entry],
    ) -> None:
        """Another file is in place, with this content. It is not open. Raises OSError."""
        mark.Mark(mark.mark_of(self._path), Confirmed.of(raft_id, hard_state, snapshot, entries)).close()

    # --- Guard -----------------------------------------------------------------------------------------------------

    def examine(self) -> None:
        """See Guard."""
        self._examined = False
        expected, _ = self.read_mark()
        if not self._path.exists() or not self._path.stat().st_size:
            self._check_log_file(None)
            if expected != Confirmed():
                raise DiskCorrupt(f"{self._path}: the file is gone: {expected.lost_in(Confirmed(), lambda index: 0)}")
            return
        with self.reading() as connection:
            self._examine(connection)

    def _check_mode(self) -> None:
        """sqlite would leave the write-ahead log alone, or write nothing, if the database said so."""
        with self._path.open("rb") as file:
            start = file.read(20)
        if start[18:20] not in _MODES:
            raise DiskCorrupt(f"{self._path}: its header is damaged")

    def opened(self, connection: sqlite3.Connection) -> None:
        """See Guard."""
        if not self._examined:
            self._compare(connection)
        found = _found(connection)
        self.ledger.opened(found)
        self._mark = mark.Mark(mark.mark_of(self._path), found)
        with contextlib.suppress(sqlite3.OperationalError):  # the disk is full: the next opening notes it
            connection.execute("INSERT OR IGNORE INTO metadata VALUES (?, '1')", (HAS_MARK,))

    def begin(self) -> None:
        """See Guard."""
        self.ledger.begin()

    def before_commit(self) -> None:
        """See Guard. What is not true any more after the commit is withdrawn first, and synchronised."""
        assert self._mark is not None
        remains = self.ledger.remaining(self._mark.confirmed)
        if remains != self._mark.confirmed:
            self._mark.write(remains)
            self._mark.sync()

    def committed(self) -> None:
        """See Guard."""
        assert self._mark is not None
        now = self.ledger.committed()
        if now != self._mark.confirmed:
            try:
                self._mark.write(now)
            except OSError as error:  # it says less than it could
                log.warning("raft.mark_not_written", error=str(error))

    def idle(self) -> None:
        """See Guard."""
        assert self._mark is not None
        try:
            self._mark.sync()
        except OSError as error:
            self._mark.unsynced = False
            log.warning("raft.mark_not_written", error=str(error))

    @property
    def wants_idle(self) -> bool:
        """See Guard."""
        return self._mark is not None and self._mark.unsynced

    def closed(self) -> None:
        """See Guard."""
        if self._mark is not None:
            if self._mark.unsynced:
                self.idle()
            self._mark.close()
            self._mark = None

    # --- examining -------------------------------------------------------------------------------------------------

    def read_mark(self) -> tuple[Confirmed, str]:
        """What was confirmed, and why that cannot be told. Raises OSError."""
        try:
            return mark.read(mark.mark_of(self._path)), ""
        except mark.MarkDamaged as error:
            return Confirmed(), error.message

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The file as it is, for somebody who changes nothing. Raises sqlite3.Error."""
        name = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        log_file = self._path.with_name(f"{self._path.name}-wal")
        made = [self._path.with_name(f"{self._path.name}-shm"), *([] if log_file.exists() else [log_file])]
        connection = sqlite3.connect(name, uri=True, timeout=LOCK_WAIT_S, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()
            for file in made:
                file.unlink(missing_ok=True)

    def _examine(self, connection: sqlite3.Connection) -> None:
        """Before sqlite may write. Raises DiskCorrupt, sqlite3.Error."""
        trouble: sqlite3.Error | None = None
        try:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:  # nobody but its owner may judge a file that is in use
                raise
            trouble = error
        self._check_log_file(connection)
        self._check_mode()
        if trouble is None:
            self._compare(connection)
            self._examined = True
        elif trouble.sqlite_errorcode & 0xFF not in _NO_ROOM:  # if there is none, it is examined when it is open
            raise trouble

    def _check_log_file(self, connection: sqlite3.Connection | None) -> None:
        log_file = self._path.with_name(f"{self._path.name}-wal")
        damage = wal.damage(log_file)
        if not damage:
            return
        expected, _ = self.read_mark()
        lost = ""
        with contextlib.suppress(sqlite3.Error, RecordCorrupt, DecodeError):
            lost = _lost(expected, connection)
        raise DiskCorrupt(f"{log_file}: {damage}{': ' if lost else ''}{lost}")

    def _compare(self, connection: sqlite3.Connection) -> None:
        """What the file holds with the mark. Raises DiskCorrupt, RecordCorrupt, sqlite3.Error."""
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise DiskCorrupt(f"{self._path}: {' '.join(str(verdict).split())}")
        expected, trouble = self.read_mark()
        marked = mark.mark_of(self._path).exists() or HAS_MARK in _metadata(connection)
        why = doubt(expected, trouble, marked, _found(connection), lambda index: term_at(connection, index))
        if why:
            raise DiskCorrupt(f"{self._path}: {why}")


def _lost(expected: Confirmed, connection: sqlite3.Connection | None) -> str:
    if connection is None:
        return expected.lost_in(Confirmed(), lambda index: 0)
    return expected.lost_in(_found(connection), lambda index: term_at(connection, index))


def _has(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone() is not None


def _metadata(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM metadata")) if _has(connection, "metadata") else {}


def _found(connection: sqlite3.Connection) -> Confirmed:
    """What the file confirms, from its last rows. Raises RecordCorrupt, DecodeError, sqlite3.Error."""
    if not _has(connection, "metadata"):
        return Confirmed()  # a crash ended its making
    try:
        found = Confirmed(raft_id=int(_metadata(connection).get("raft_id", 0)))
        found = found.after(Persist(0, load_hard_state(connection)))
        for index, term in connection.execute("SELECT idx, term FROM snapshots ORDER BY idx DESC LIMIT 1"):
            metadata = raftpb.SnapshotMetadata(index=index, term=term)
            found = found.after(Persist(0, snapshot=raftpb.Snapshot(metadata=metadata)))
        for index, term in connection.execute("SELECT idx, term FROM entries ORDER BY idx DESC LIMIT 1"):
            found = found.after(Persist(0, None, (raftpb.Entry(Index=index, Term=term),)))
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordCorrupt(f"a row is damaged: it has an unexpected value ({type(error).__name__})") from error
    return found


def load_hard_state(connection: sqlite3.Connection) -> raftpb.HardState | None:
    """Raises RecordCorrupt, DecodeError, sqlite3.Error, TypeError."""
    row = connection.execute("SELECT record, crc FROM hard_state").fetchone()
    if row is None:
        return None
    if checksum(row[0], b"hard state") != row[1]:
        raise RecordCorrupt("wrong checksum of hard state")
    return raftpb.HardState.FromString(row[0])


def term_at(connection: sqlite3.Connection, index: int) -> int:
    """Of the entry there; 0: there is none."""
    row = connection.execute("SELECT term FROM entries WHERE idx = ?", (index,)).fetchone()
    return row[0] if row is not None and isinstance(row[0], int) else 0
