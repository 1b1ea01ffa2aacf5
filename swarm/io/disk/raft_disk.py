"""A manager's durable state (Raft log, snapshots, identity) and an agent's task journal, in sqlite files.

Theory of operation. Each is a file with a thread of its own (swarm/io/disk/database.py). A write to the Raft log is
synchronised to disk before it is reported; the journal only survives a crash of the process. Each record has a checksum
and, with a Sealer, is encrypted. A log that lacks what was reported is not opened (swarm/io/disk/log_guard.py). To
change the sealing of the records, the whole file is rewritten, so that no free page contains their old form.

(swarmkit: manager/state/raft/storage, agent/storage.go)
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

from certs.files import SYSTEM, Files
from swarm.api import raftpb
from swarm.errors import FailedPrecondition
from swarm.io.disk import replaced_file
from swarm.io.disk.database import DiskCorrupt, DiskError, Done, File, Rewrite, translated
from swarm.io.disk.log_guard import HAS_MARK, LogGuard, load_hard_state, term_at
from swarm.raft.events import Persist
from swarm.raft.records import RecordCorrupt, Sealer, checksum, decode, encode, is_plain
from swarm.raft.salvage import salvaged

T = TypeVar("T")
CallSoon = Callable[[Callable[[], None]], object]

_RAFT_TABLES = """
CREATE TABLE IF NOT EXISTS metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hard_state (
    id INTEGER PRIMARY KEY CHECK (id = 1), record BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, type INTEGER NOT NULL, record BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
    idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, conf_state BLOB NOT NULL, record BLOB NOT NULL,
    crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (key TEXT PRIMARY KEY, record BLOB NOT NULL, crc INTEGER NOT NULL);
"""
_DAMAGE = (RecordCorrupt, DecodeError, sqlite3.DatabaseError, TypeError, ValueError, AttributeError, OverflowError)
_OF_THE_MEMBER = f"key NOT IN ('format', '{HAS_MARK}')"
_JOURNAL_TABLES = """
CREATE TABLE IF NOT EXISTS metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, record BLOB NOT NULL, crc INTEGER NOT NULL);
"""


def _on_loop(done: Done, call_soon: CallSoon | None) -> Done:
    """The same callback, but called on the loop (the running one, unless call_soon is given)."""
    soon = call_soon or asyncio.get_running_loop().call_soon_threadsafe

    def report(error: DiskError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits any more
            soon(lambda: done(error))

    return report


def _as_written(load: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
    """The same reader, but a cell of an unexpected type is reported as damage: sqlite itself accepts any type."""

    def read(connection: sqlite3.Connection) -> T:
        try:
            return load(connection)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RecordCorrupt(
                f"a row is damaged: it has a value of an unexpected type ({type(error).__name__})"
            ) from error

    return read


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a member's disk. raft_id 0: the disk is new. hard_state None: no entry was ever written."""

    raft_id: int = 0
    node_id: str = ""
    cluster_id: str = ""
    hard_state: raftpb.HardState | None = None
    snapshot: raftpb.Snapshot | None = None
    entries: tuple[raftpb.Entry, ...] = ()
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def applied_index(self) -> int:
        """The index of the last entry that a state machine restored from the snapshot has applied."""
        return self.snapshot.metadata.index if self.snapshot else 0


def _identity_crc(metadata: Mapping[str, str]) -> str:
    identity = f"{metadata.get('raft_id', '')} {metadata.get('node_id', '')} {metadata.get('cluster_id', '')}"
    return str(checksum(identity.encode(), b"identity"))


def _load_metadata(connection: sqlite3.Connection) -> dict[str, str]:
    """Raises RecordCorrupt."""
    metadata = dict(connection.execute("SELECT key, value FROM metadata"))
    if metadata.get("crc", _identity_crc(metadata)) != _identity_crc(metadata):  # not there in older files
        raise RecordCorrupt("wrong checksum of the member's identity")
    return metadata


class RaftDisk:
    """One member's durable state. Every method may raise DiskError, or DiskCorrupt when reading."""

    def __init__(
        self,
        path: Path,
        sealer: Sealer | None = None,
        keep_old_snapshots: int = 0,
        call_soon: CallSoon | None = None,
        files: Files = SYSTEM,
    ) -> None:
        """call_soon: calls back on the loop (call_soon_threadsafe); None: use the loop that runs at submit()."""
        self.plain = False
        """Whether load() found something that can be read without a key."""
        self.keep_old_snapshots = keep_old_snapshots
        self._sealer = sealer
        self._next_index = 0  # after the last entry, if this process wrote it; used by the file's thread
        self._call_soon = call_soon
        self._path = path
        self._files = files
        self._guard = LogGuard(path)
        self._file = File(path, _RAFT_TABLES, "FULL", self._guard, files)

    def close(self) -> None:
        """Finish submitted writes and close. Blocks."""
        self._file.close()

    def load(self) -> Loaded:
        """Read everything. Blocks. Raises DiskCorrupt, or DiskError with FAILED_PRECONDITION if a key is missing."""
        return self._file.call(_as_written(self._load))

    def salvage(self) -> tuple[Loaded, str]:
        """After DiskCorrupt: what can be read from the beginning on, and what of the confirmed is not in it, for users.

        Changes nothing. Blocks. Raises DiskCorrupt if that is nothing to go on with; DiskError.
        """
        if not self._path.exists() or not self._path.stat().st_size:
            raise DiskCorrupt(f"{self._path}: the file is gone, or empty")
        with translated(self._path), self._guard.reading() as connection:
            expected, _ = self._guard.read_mark()
            loaded = _as_written(lambda old: self._salvage(old, expected.term))(connection)
        return loaded, expected.lost_from(loaded.raft_id, loaded.hard_state, loaded.snapshot, loaded.entries)

    def start_over(self, content: Loaded) -> None:
        """Put a new file with this content in the place of the old one, in one step. Blocks. Raises DiskError."""
        self._file.close()
        try:
            with translated(self._path):
                self._fill_copy(content)
                replaced_file.prepare(self._path, self._files)
                replaced_file.adopt(self._path, self._files)
                # not before: a crash must not leave the old file, and a mark that it satisfies
                self._guard.confirm(content.raft_id, content.hard_state, content.snapshot, content.entries)
        finally:
            self._file = File(self._path, _RAFT_TABLES, "FULL", self._guard, self._files)

    def _fill_copy(self, content: Loaded) -> None:
        replaced_file.discard(self._path, self._files)
        copy = RaftDisk(replaced_file.copy_of(self._path), self._sealer)
        try:
            if content.raft_id:
                copy.initialize(content.raft_id, content.node_id, content.cluster_id)
            copy.save(Persist(0, content.hard_state, content.entries, content.snapshot))
        finally:
            copy.close()

    def confirmed_as(self) -> int:
        """The raft ID of the member that wrote this disk, even if nothing else of it can be read; 0: unknown."""
        return self._guard.read_mark()[0].raft_id

    def initialize(self, raft_id: int, node_id: str, cluster_id: str) -> None:
        """Give a new disk its identity. Blocks. Raises DiskError if it already has another one."""
        identity = {"raft_id": str(raft_id), "node_id": node_id, "cluster_id": cluster_id}
        identity["crc"] = _identity_crc(identity)

        def work(connection: sqlite3.Connection) -> None:
            found = dict(connection.execute(f"SELECT key, value FROM metadata WHERE {_OF_THE_MEMBER}"))
            if found and {**identity, **found} != identity:
                raise FailedPrecondition("the disk belongs to another member")
            connection.executemany("INSERT OR REPLACE INTO metadata VALUES (?, ?)", identity.items())
            self._guard.ledger.owned_by(raft_id)

        self._file.call(work)

    def erase(self) -> None:
        """Delete everything, including the identity: this member left its group. Blocks."""

        def work(connection: sqlite3.Connection) -> None:
            for table in ("entries", "snapshots", "hard_state", "blobs"):
                connection.execute(f"DELETE FROM {table}")
            self._next_index = 0
            connection.execute(f"DELETE FROM metadata WHERE {_OF_THE_MEMBER}")
            self._guard.ledger.owned_by(0)

        self._file.call(work)

    def save(self, persist: Persist) -> None:
        """Write it and wait until it is durable. Blocks."""
        self._file.call(lambda connection: self._write(connection, persist))

    def submit(self, persist: Persist, done: Done) -> None:
        """Write it; done(None) is called on the loop when it is durable, done(error) if nothing was written."""
        self._file.submit(lambda connection: self._write(connection, persist), _on_loop(done, self._call_soon))

    def put_blob(self, key: str, value: bytes | None, done: Done) -> None:
        """Store a small piece of node state under a key; None removes it. done: as in submit()."""
        self._file.submit(lambda connection: self._put_blob(connection, key, value), _on_loop(done, self._call_soon))

    def use_sealer(self, sealer: Sealer | None) -> None:
        """Use this sealer for all further writes. It must be able to open existing records (key versions)."""
        self._sealer = sealer

    def reseal(self, sealer: Sealer, commit: Callable[[], None], committed: Callable[[], bool]) -> None:
        """Rewrite everything with this sealer; commit is called in the file's thread when the result is on disk.

        commit must record durably that the new sealer is needed from now on; committed: see Rewrite. After a crash
        before it, replaced_file.discard() keeps the old content; after it, replaced_file.adopt() installs the new one.
        Blocks. Raises DiskError, also for commit's errors.
        """

        def look() -> bool:
            if happened := committed():
                self._sealer, self.plain = sealer, False
            return happened

        self._file.rewrite(Rewrite(lambda old, new: self._copy(old, new, sealer), commit, look))

    def settle(self) -> None:
        """Finish a reseal that an error interrupted, if there was one. Blocks. Raises DiskError."""
        self._file.call(lambda connection: None)

    # --- in the file's thread ---

    def _copy(self, old: sqlite3.Connection, new: sqlite3.Connection, sealer: Sealer) -> None:
        """Copy everything from one file to another, sealed by ``sealer``."""

        def sealed(record: bytes, crc: int, place: str) -> tuple[bytes, int]:
            again = encode(self._decode(record, crc, place), place.encode(), sealer)
            return again, checksum(again, place.encode())

        for row in old.execute("SELECT key, value FROM metadata"):
            new.execute("INSERT OR REPLACE INTO metadata VALUES (?, ?)", row)
        for row in old.execute("SELECT id, record, crc FROM hard_state"):
            new.execute("INSERT INTO hard_state VALUES (?, ?, ?)", row)
        for key, record, crc in old.execute("SELECT key, record, crc FROM blobs"):
            new.execute("INSERT INTO blobs VALUES (?, ?, ?)", (key, *sealed(record, crc, f"blob {key}")))
        for index, term, members, record, crc in old.execute(
            "SELECT idx, term, conf_state, record, crc FROM snapshots"
        ):
            again = sealed(record, crc, f"snapshot {index} {term} {members.hex()}")
            new.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?)", (index, term, members, *again))
        for index, term, kind, record, crc in old.execute("SELECT idx, term, type, record, crc FROM entries"):
            again = sealed(record, crc, f"entry {index} {term} {kind}")
            new.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (index, term, kind, *again))

    def _put_blob(self, connection: sqlite3.Connection, key: str, value: bytes | None) -> None:
        if value is None:
            connection.execute("DELETE FROM blobs WHERE key = ?", (key,))
        else:
            record, crc = self._encode(value, f"blob {key}")
            connection.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (key, record, crc))

    def _write(self, connection: sqlite3.Connection, persist: Persist) -> None:
        if persist.replaces_log:
            connection.execute("DELETE FROM entries")
            self._next_index = 0
        elif persist.compact_to:
            connection.execute("DELETE FROM entries WHERE idx <= ?", (persist.compact_to,))
        if persist.snapshot is not None:
            self._write_snapshot(connection, persist.snapshot)
        if persist.entries:
            self._write_entries(connection, persist.entries)
        if persist.hard_state is not None:
            record = persist.hard_state.SerializeToString()
            crc = checksum(record, b"hard state")
            connection.execute("INSERT OR REPLACE INTO hard_state VALUES (1, ?, ?)", (record, crc))
        self._guard.ledger.note(persist)

    def _write_entries(self, connection: sqlite3.Connection, entries: tuple[raftpb.Entry, ...]) -> None:
        first = entries[0].Index
        if first != self._next_index:
            self._make_room(connection, first)
        rows = []
        for entry in entries:
            record, crc = self._encode(entry.Data, f"entry {entry.Index} {entry.Term} {int(entry.Type)}")
            rows.append((entry.Index, entry.Term, int(entry.Type), record, crc))
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)
        # if the transaction fails, the same entries come again, as other objects
        self._next_index = entries[-1].Index + 1

    def _make_room(self, connection: sqlite3.Connection, first: int) -> None:
        """Delete the entries that new ones replace. Raises FailedPrecondition if there would be a gap before them."""
        self._guard.ledger.keep_until(first - 1, term_at(connection, first - 1))
        connection.execute("DELETE FROM entries WHERE idx >= ?", (first,))
        (last,) = connection.execute(
            "SELECT max(ifnull((SELECT max(idx) FROM entries), 0), ifnull((SELECT max(idx) FROM snapshots), 0))"
        ).fetchone()
        if first > last + 1:
            raise FailedPrecondition(f"entry {first} would leave a gap after {last}")

    def _write_snapshot(self, connection: sqlite3.Connection, snapshot: raftpb.Snapshot) -> None:
        metadata = snapshot.metadata
        conf_state = metadata.conf_state.SerializeToString()
        record, crc = self._encode(snapshot.data, f"snapshot {metadata.index} {metadata.term} {conf_state.hex()}")
        connection.execute(
            "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)",
            (metadata.index, metadata.term, conf_state, record, crc),
        )
        connection.execute(
            "DELETE FROM snapshots WHERE idx NOT IN (SELECT idx FROM snapshots ORDER BY idx DESC LIMIT ?)",
            (1 + self.keep_old_snapshots,),
        )

    def _encode(self, plain: bytes, place: str) -> tuple[bytes, int]:
        context = place.encode()
        record = encode(plain, context, self._sealer)
        return record, checksum(record, context)

    def _decode(self, record: bytes, crc: int, place: str) -> bytes:
        context = place.encode()
        if checksum(record, context) != crc:
            raise RecordCorrupt(f"wrong checksum of {place}")
        self.plain = self.plain or is_plain(record)
        return decode(record, context, self._sealer)

    def _load(self, connection: sqlite3.Connection) -> Loaded:
        metadata = _load_metadata(connection)
        blobs = {
            key: self._decode(record, crc, f"blob {key}")
            for key, record, crc in connection.execute("SELECT key, record, crc FROM blobs ORDER BY key")
        }
        return Loaded(
            int(metadata.get("raft_id", 0)),
            metadata.get("node_id", ""),
            metadata.get("cluster_id", ""),
            load_hard_state(connection),
            self._load_snapshot(connection),
            tuple(self._load_entries(connection)),
            blobs,
        )

    def _salvage(self, connection: sqlite3.Connection, term: int) -> Loaded:
        """What is whole, up to the first entry that is not. term: the least that the member was in."""
        metadata = _load_metadata(connection)
        snapshot, found = self._load_snapshot(connection), None
        with contextlib.suppress(*_DAMAGE):
            found = load_hard_state(connection)
        state, entries = salvaged(found, snapshot, self._whole_entries(connection), term)
        return Loaded(
            int(metadata.get("raft_id", 0)),
            metadata.get("node_id", ""),
            metadata.get("cluster_id", ""),
            state,
            snapshot,
            entries,
        )

    def _whole_entries(self, connection: sqlite3.Connection) -> tuple[raftpb.Entry, ...]:
        entries = []
        with contextlib.suppress(*_DAMAGE):
            for entry in self._load_entries(connection):
                entries.append(entry)  # noqa: PERF402  # those before the damage count
        return tuple(entries)

    def _load_entries(self, connection: sqlite3.Connection) -> Iterator[raftpb.Entry]:
        before: int | None = None
        rows = connection.execute("SELECT idx, term, type, record, crc FROM entries ORDER BY idx")
        for index, term, kind, record, crc in rows:
            if before is not None and index != before + 1:
                raise RecordCorrupt(f"entries {before + 1} to {index - 1} are missing")
            before = index
            data = self._decode(record, crc, f"entry {index} {term} {kind}")
            yield raftpb.Entry(Type=kind, Term=term, Index=index, Data=data)

    def _load_snapshot(self, connection: sqlite3.Connection) -> raftpb.Snapshot | None:
        rows = connection.execute("SELECT idx, term, conf_state, record, crc FROM snapshots ORDER BY idx DESC LIMIT 1")
        for index, term, conf_state, record, crc in rows:
            data = self._decode(record, crc, f"snapshot {index} {term} {conf_state.hex()}")
            members = raftpb.ConfState.FromString(conf_state)
            return raftpb.Snapshot(
                data=data, metadata=raftpb.SnapshotMetadata(conf_state=members, index=index, term=term)
            )
        return None


class TaskJournal:
    """The records of an agent's tasks between two runs: opaque bytes by task ID."""

    def __init__(self, path: Path) -> None:
        self._file = File(path, _JOURNAL_TABLES, "NORMAL")

    def submit(self, puts: Mapping[str, bytes], drops: Iterable[str] = (), done: Done | None = None) -> None:
        """Write and delete records, atomically. Returns at once. done: called in the journal's thread."""
        rows = [(task_id, record, checksum(record, task_id.encode())) for task_id, record in puts.items()]
        gone = [(task_id,) for task_id in drops]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM tasks WHERE id = ?", gone)
            connection.executemany("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?)", rows)

        self._file.submit(work, done or (lambda error: None))

    def load(self) -> dict[str, bytes]:
        """All records by task ID, including earlier submissions. Blocks. Raises DiskCorrupt or DiskError."""
        return self._file.call(_as_written(self._load))

    def close(self) -> None:
        """Finish submitted writes and close. Blocks."""
        self._file.close()

    @staticmethod
    def _load(connection: sqlite3.Connection) -> dict[str, bytes]:
        records = {}
        for task_id, record, crc in connection.execute("SELECT id, record, crc FROM tasks ORDER BY id"):
            if checksum(record, task_id.encode()) != crc:
                raise RecordCorrupt(f"wrong checksum of task {task_id}")
            records[task_id] = record
        return records
