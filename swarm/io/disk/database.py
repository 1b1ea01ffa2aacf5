"""A sqlite file with one connection, used only by one thread of its own.

Theory of operation. Jobs are queued. The thread takes all waiting jobs, commits them as one transaction, and reports
each result to its caller. If the transaction fails, it is rolled back and each job is tried alone, so that an error
only reaches the caller that caused it. Nothing is ever half-written. sqlite runs in WAL mode: a torn or truncated
write-ahead log loses a suffix of whole transactions, never part of one, and says nothing about it. Whether more is gone
than a crash can take is for the file's Guard to tell. A rewrite replaces the file by a new one
(swarm/io/disk/replaced_file.py). (swarmkit: manager/state/raft/storage)
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from certs.files import SYSTEM, Files
from swarm import defaults
from swarm.errors import Code, SwarmError
from swarm.io.disk import replaced_file
from swarm.raft.records import RecordCorrupt

T = TypeVar("T")
Done = Callable[["DiskError | None"], None]
Work = Callable[[sqlite3.Connection], None]

_FORMAT = "1"
LOCK_WAIT_S = 1.0


class DiskError(SwarmError):
    """The disk refused a write (full, failing, locked). Nothing of it was kept, and it may be tried again."""

    code = Code.UNAVAILABLE


class DiskCorrupt(DiskError):
    """The content on disk is damaged: it is not what was written."""

    code = Code.DATA_LOSS


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise sqlite's errors as DiskError or DiskCorrupt."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        # our statements are right: sqlite objects to them if the file says something else than we wrote
        objects = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) == sqlite3.SQLITE_ERROR
        kind = DiskCorrupt if objects or "decode to UTF-8" in str(error) else DiskError
        raise kind(f"{path}: {error}") from error
    except UnicodeDecodeError as error:  # from a text in a damaged file, or from sqlite's error message that quotes it
        raise DiskCorrupt(f"{path}: the file is damaged: it contains text that is not UTF-8") from error
    except (sqlite3.Error, RecordCorrupt, DecodeError) as error:
        raise DiskCorrupt(f"{path}: {error}") from error


def _bug(path: Path, error: Exception) -> DiskError:
    return DiskError(f"{path}: {type(error).__name__}: {error}", Code.INTERNAL)


class Guard(Protocol):
    """Notices that a file does not hold what was synchronised to it. All is called in the file's thread, in order."""

    def examine(self) -> None:
        """The file is about to be opened. Changes nothing. Raises DiskCorrupt if it must not be used."""
        ...

    def opened(self, connection: sqlite3.Connection) -> None:
        """It is open, and its tables exist."""
        ...

    def begin(self) -> None:
        """A transaction begins; what an earlier one that failed was about is void."""
        ...

    def before_commit(self) -> None:
        """It is about to be committed. Whatever this raises ends it."""
        ...

    def committed(self) -> None:
        """It is on disk, and nobody was told yet."""
        ...

    def idle(self) -> None:
        """Nothing was to be done for a moment."""
        ...

    @property
    def wants_idle(self) -> bool:
        """Whether idle() has something to do."""
        ...

    def closed(self) -> None:
        """The file was closed."""
        ...


@dataclass(frozen=True)
class Rewrite:
    """A job that replaces the file; see File.rewrite.

    commit: records that the new file counts. committed: whether it did, and durably; asked after commit() whatever came
    of it, and asked again before anything else is done with the file while it raises.
    """

    fill: Callable[[sqlite3.Connection, sqlite3.Connection], None]
    commit: Callable[[], None]
    committed: Callable[[], bool]


Job = tuple[Work | Rewrite, Done]


def _extend(log: Path) -> None:
    """Extend sqlite's write-ahead log to its full length, if there is room: syncs take longer while a file grows.

    sqlite overwrites the log from its beginning. It takes zeros after the last frame, or in place of a header, for the
    end of the log. Its locks are on other files, so opening and closing this file loses none.
    """
    with contextlib.suppress(OSError), open(log, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            file.write(bytes(max(0, defaults.DISK_LOG_AHEAD_BYTES - size)))
            file.flush()
            os.fsync(file.fileno())
        except OSError:  # the disk is full, or nearly
            file.truncate(size)


def _start_log_over(connection: sqlite3.Connection) -> None:
    """Have sqlite write its log from the beginning, with new salts: what lies behind the end counts as old then.

    Without that, frames of a transaction that failed could be taken for some that were synchronised (see wal.py).
    """
    with contextlib.suppress(sqlite3.Error):  # the disk is full: then a crash that follows may look worse than it was
        connection.execute("PRAGMA wal_checkpoint(RESTART)")


class File:
    """One sqlite file and its thread."""

    def __init__(
        self, path: Path, tables: str, synchronous: str, guard: Guard | None = None, files: Files = SYSTEM
    ) -> None:
        self.path = path
        self._files = files
        self._guard = guard
        self._debris = False  # a transaction failed: it may have left frames behind the end of the write-ahead log
        self._tables = tables
        self._synchronous = synchronous
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        self._undecided: Callable[[], bool] | None = None
        self._adopting = self._discarding = False
        self._next: Job | None = None
        self._thread = threading.Thread(target=self._run, name=f"disk {path.name}", daemon=True)
        self._thread.start()

    def submit(self, work: Work | Rewrite, done: Done) -> None:
        """Run a job in a transaction, then call done in the file's thread."""
        if self._closed:
            done(DiskError(f"{self.path}: closed"))
        else:
            self._queue.put((work, done))

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job in a transaction and wait for its result. Raises what the job raises."""
        results: list[T] = []
        errors: queue.SimpleQueue[DiskError | None] = queue.SimpleQueue()
        self.submit(lambda connection: results.append(work(connection)), errors.put)
        error = errors.get()
        if error is not None:
            raise error
        return results[-1]

    def rewrite(self, work: Rewrite) -> None:
        """Fill a new file from the old one, call commit, then use the new file. After a crash, either file is in use.

        Blocks. Raises DiskError, also for whatever commit raises; then the old file is in use, unless ``committed``
        says otherwise later.
        """
        errors: queue.SimpleQueue[DiskError | None] = queue.SimpleQueue()
        self.submit(work, errors.put)
        error = errors.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """Finish submitted jobs, then close the file. May be called again."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _open(self) -> sqlite3.Connection:
        if self._guard is not None:
            self._guard.examine()
        connection = self._open_at(self.path, "WAL")
        try:
            _start_log_over(connection)
            if self._guard is not None:
                self._guard.opened(connection)
        except BaseException:
            self._close(connection)
            raise
        if self._synchronous == "FULL":
            _extend(self.path.with_name(self.path.name + "-wal"))
        return connection

    def _close(self, connection: sqlite3.Connection) -> None:
        connection.close()
        if self._guard is not None:
            self._guard.closed()

    def _open_at(self, path: Path, journal: str) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute(f"PRAGMA journal_mode = {journal}")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("BEGIN IMMEDIATE")
            for statement in self._tables.split(";"):
                connection.execute(statement)
            connection.execute("INSERT OR IGNORE INTO metadata VALUES ('format', ?)", (_FORMAT,))
            (found,) = connection.execute("SELECT value FROM metadata WHERE key = 'format'").fetchone()
            connection.execute("COMMIT")
            if found != _FORMAT:
                raise sqlite3.OperationalError(f"written in format {found}; this version reads format {_FORMAT}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        while jobs := self._take():
            connection = self._perform(connection, jobs)
        if connection:
            self._close(connection)

    def _perform(self, connection: sqlite3.Connection | None, jobs: list[Job]) -> sqlite3.Connection | None:
        """Do these jobs; return the connection to use from now on."""
        try:
            with translated(self.path):
                connection = self._settled(connection)
                connection = connection or self._open()
        except Exception as error:  # whatever it is, this thread must continue, or its callers would wait forever
            failure = error if isinstance(error, DiskError) else _bug(self.path, error)
            for _, done in jobs:
                done(failure)
            return None if self._adopting else connection
        pieces: list[tuple[Work, Done]] = []
        for work, done in jobs:
            if isinstance(work, Rewrite):
                return self._replace(connection, work, done)
            pieces.append((work, done))
        if len(pieces) > 1 and self._attempt(connection, pieces) is None:
            return connection
        for piece in pieces:
            self._attempt(connection, [piece], report=True)
        return connection

    def _settled(self, connection: sqlite3.Connection | None) -> sqlite3.Connection | None:
        """Finish a rewrite before anything is written. Returns the connection if it is still good. Raises OSError."""
        if self._undecided is not None:
            self._adopting = self._undecided()
            self._undecided, self._discarding = None, not self._adopting
        if self._adopting:
            if connection is not None:
                self._close(connection)
            replaced_file.adopt(self.path, self._files)
            self._adopting, connection = False, None
        if self._discarding:
            replaced_file.discard(self.path, self._files)
            self._discarding = False
        return connection

    def _replace(self, connection: sqlite3.Connection, work: Rewrite, done: Done) -> sqlite3.Connection | None:
        """Nothing is written to either file before it is decided which one counts, and the other one is gone."""
        failure: DiskError | None = None
        self._discarding = True
        try:
            with translated(self.path):
                self._rewrite(connection, work)
                self._undecided = work.committed
                work.commit()
        except Exception as error:  # whatever it is, one of the two files is good
            failure = error if isinstance(error, DiskError) else DiskError(f"{self.path}: {error}")
        try:
            with translated(self.path):
                kept = self._settled(connection)
        except Exception as error:  # the next job tries again
            kept = None if self._adopting else connection
            failure = failure or (None if self._adopting else DiskError(f"{self.path}: {error}"))
        if kept is None:
            failure = None  # the commit happened
            with contextlib.suppress(DiskError), translated(self.path):
                kept = None if self._adopting else self._open()
        done(failure)
        return kept

    def _rewrite(self, connection: sqlite3.Connection, work: Rewrite) -> None:
        replaced_file.discard(self.path, self._files)
        copy = self._open_at(replaced_file.copy_of(self.path), "MEMORY")
        try:
            copy.execute("BEGIN IMMEDIATE")
            work.fill(connection, copy)
            copy.execute("COMMIT")
        finally:
            copy.close()
        replaced_file.prepare(self.path, self._files)

    def _take(self) -> list[Job]:
        """The waiting jobs that may share a transaction, at least one; an empty list means: close the file."""
        job, self._next = (self._next, None) if self._next else (self._wait(), None)
        if job is None:
            return []
        jobs = [job]
        while not isinstance(job[0], Rewrite) and not self._queue.empty():
            job = self._queue.get()
            if job is None:
                self._queue.put(None)
                break
            if isinstance(job[0], Rewrite):
                self._next = job
                break
            jobs.append(job)
        return jobs

    def _wait(self) -> Job | None:
        if self._guard is not None and self._guard.wants_idle:
            try:
                return self._queue.get(timeout=defaults.DISK_IDLE_S)
            except queue.Empty:
                self._guard.idle()
        return self._queue.get()

    def _attempt(
        self, connection: sqlite3.Connection, jobs: list[tuple[Work, Done]], report: bool = False
    ) -> DiskError | None:
        """Run one transaction. On success all callers are told, on failure only if requested."""
        failure: DiskError | None = None
        try:
            with translated(self.path):
                self._transact(connection, [work for work, _ in jobs])
        except DiskError as error:
            failure = error
        except SwarmError as error:
            failure = DiskError(f"{self.path}: {error}", error.code)
        except Exception as error:  # a bug in one job must not end the thread, which all callers need
            failure = _bug(self.path, error)
        if failure:
            self._debris = True
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
        if report or failure is None:
            for _, done in jobs:
                done(failure)
        return failure

    def _transact(self, connection: sqlite3.Connection, works: list[Work]) -> None:
        if self._debris:
            _start_log_over(connection)
            self._debris = False
        if self._guard is not None:
            self._guard.begin()
        connection.execute("BEGIN IMMEDIATE")
        for work in works:
            work(connection)
        if self._guard is not None:
            self._guard.before_commit()
        connection.execute("COMMIT")
        if self._guard is not None:
            self._guard.committed()
