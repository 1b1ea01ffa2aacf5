"""When a file's guard is called, and when a mark is on disk."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from swarm.io.disk import mark
from swarm.io.disk.database import File
from swarm.raft.confirmed import Confirmed


class Watcher:
    """A Guard that notes what it is called for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.wants_idle = True
        self.was_idle = threading.Event()

    def examine(self) -> None:
        self.calls.append("examine")

    def opened(self, connection: sqlite3.Connection) -> None:
        self.calls.append("opened")

    def begin(self) -> None:
        self.calls.append("begin")

    def before_commit(self) -> None:
        self.calls.append("before commit")

    def committed(self) -> None:
        self.calls.append("committed")

    def idle(self) -> None:
        self.wants_idle = False
        self.was_idle.set()

    def closed(self) -> None:
        self.calls.append("closed")


def test_the_guard_hears_of_each_transaction_before_its_caller_and_of_the_first_idle_moment(tmp_path: Path) -> None:
    guard = Watcher()
    table = "CREATE TABLE IF NOT EXISTS metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
    file = File(tmp_path / "file.db", table, "FULL", guard)
    file.submit(lambda connection: None, lambda error: guard.calls.append("told"))
    assert guard.was_idle.wait(15)
    file.close()
    assert guard.calls == ["examine", "opened", "begin", "before commit", "committed", "told", "closed"]


def test_a_mark_is_synchronised_after_an_idle_moment_and_when_it_is_closed(tmp_path: Path) -> None:
    found = mark.Mark(tmp_path / "mark", Confirmed())
    assert not found.unsynced
    found.write(Confirmed(term=3))
    assert found.unsynced
    found.sync()
    assert not found.unsynced
    found.close()
    assert mark.read(tmp_path / "mark") == Confirmed(term=3)
