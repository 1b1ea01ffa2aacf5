"""A manager's log after damage of any of its files: what was confirmed is all there, or the log is not opened.

The files are real ones, copied while the database is open: as after kill -9.
"""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.io.disk import mark, wal
from swarm.io.disk.database import DiskCorrupt, DiskError
from swarm.io.disk.raft_disk import Loaded, RaftDisk
from swarm.raft.events import Persist
from tests.swarm.io.disk.test_raft_disk import entry, snapshot, state

PAGE_BYTES = 512
FRAME_BYTES = wal.FRAME_HEADER_BYTES + PAGE_BYTES
DATABASE, WAL, MARK = "raft.db", "raft.db-wal", "raft.db-mark"

Files = dict[str, bytes]


@dataclass(frozen=True)
class Crashed:
    """Files as a crash left them, and what had been confirmed."""

    files: Files
    confirmed: Loaded

    @property
    def frames(self) -> int:
        """How many frames the log of sqlite has."""
        return (len(self.files[WAL]) - wal.HEADER_BYTES) // FRAME_BYTES

    def flipped(self, name: str, bit: int) -> Files:
        """With one bit of a file turned over."""
        content = bytearray(self.files[name])
        content[bit // 8] ^= 1 << bit % 8
        return {**self.files, name: bytes(content)}

    def cut(self, name: str, length: int) -> Files:
        """With one file cut."""
        return {**self.files, name: self.files[name][:length]}

    def without(self, name: str) -> Files:
        """With one file gone."""
        return {found: content for found, content in self.files.items() if found != name}


def make(directory: Path) -> RaftDisk:
    """A new log with small pages, so that all places of damage can be tried."""
    directory.mkdir(parents=True)
    with sqlite3.connect(directory / DATABASE) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("VACUUM")
    connection.close()
    disk = RaftDisk(directory / DATABASE)
    disk.load()
    disk.initialize(7, "node", "cluster")
    return disk


def files_of(directory: Path) -> Files:
    """All files of a log, without the zeros that sqlite's log is extended by."""
    found = {file.name: file.read_bytes() for file in directory.iterdir() if not file.name.endswith("-shm")}
    content = found.get(WAL, b"")
    frames = -(-(len(content.rstrip(b"\0")) - wal.HEADER_BYTES) // FRAME_BYTES)
    return {**found, WAL: content[: wal.HEADER_BYTES + frames * FRAME_BYTES]} if content else found


def crash(disk: RaftDisk, directory: Path) -> Crashed:
    """Kill it, in effect."""
    loaded = disk.load()
    crashed = Crashed(files_of(directory), loaded)
    disk.close()
    return crashed


def write(disk: RaftDisk, count: int, first: int = 1, term: int = 1) -> None:
    """So many writes of one entry each."""
    for index in range(first, first + count):
        disk.save(Persist(index, state(term, 7, index - 1), (entry(index, term, b"%d" % index * 20),)))


def opened(directory: Path, files: Files) -> Loaded:
    """What a manager that starts on these files gets. Raises DiskCorrupt."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    disk = RaftDisk(directory / DATABASE)
    try:
        return disk.load()
    finally:
        disk.close()


def harmless_or_noticed(directory: Path, files: Files, confirmed: Loaded) -> bool:
    """Whether the damage was noticed; if not, nothing may be missing."""
    try:
        found = opened(directory, files)
    except DiskCorrupt as error:
        return str(directory) in error.message
    assert found == confirmed
    return False


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "again"


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    """A log of which some is in the database and some in sqlite's log."""
    directory = tmp_path_factory.mktemp("crashed") / "disk"
    disk = make(directory)
    write(disk, 4)
    disk.close()
    disk = RaftDisk(directory / DATABASE)
    disk.save(Persist(9, state(2, 7, 4), (entry(5, 2),), snapshot(3), compact_to=2))
    write(disk, 5, 6, 2)
    return crash(disk, directory)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    """A log that is all in the database."""
    directory = tmp_path_factory.mktemp("closed") / "disk"
    disk = make(directory)
    write(disk, 12)
    disk.save(Persist(20, state(2, 7, 9), (), snapshot(3), compact_to=2))
    loaded = disk.load()
    disk.close()
    return Crashed(files_of(directory), loaded)


# --- sqlite's log ----------------------------------------------------------------------------------------------------


def test_after_a_kill_everything_confirmed_is_there(crashed: Crashed, scratch: Path) -> None:
    assert opened(scratch, crashed.files) == crashed.confirmed
    assert crashed.confirmed.entries[-1].Index == 10


def test_a_flipped_bit_in_the_middle_of_two_hundred_entries_is_not_taken_for_the_end(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    for term in range(1, 6):
        write(disk, 40, 40 * term - 39, term)
    crashed = crash(disk, tmp_path / "disk")
    for frame in range(0, crashed.frames, max(1, crashed.frames // 40)):
        bit = 8 * (wal.HEADER_BYTES + frame * FRAME_BYTES + 100)
        with pytest.raises(
            DiskCorrupt, match=r"raft\.db-wal.*it was in term|raft\.db.*had confirmed entries up to 200"
        ):
            opened(tmp_path / "again", crashed.flipped(WAL, bit))


def test_a_flipped_bit_of_any_byte_before_the_last_write_is_seen_in_the_log_alone(
    tmp_path: Path,
) -> None:
    disk = make(tmp_path / "disk")
    disk.close()
    disk = RaftDisk(tmp_path / "disk" / DATABASE)
    write(disk, 3)
    crashed, file = crash(disk, tmp_path / "disk"), tmp_path / WAL
    missed = []
    for byte in range(len(crashed.files[WAL])):
        file.write_bytes(crashed.flipped(WAL, 8 * byte + byte % 8)[WAL])
        if not wal.damage(file):
            missed.append(divmod(byte - wal.HEADER_BYTES, FRAME_BYTES))
    last = crashed.frames - 2  # a write has two pages
    assert min(missed) >= (last - 2, 0)
    assert all(byte < wal.FRAME_HEADER_BYTES for frame, byte in missed if frame < last), "could be a torn last write"


def test_every_bit_of_every_header_is_minded(crashed: Crashed, scratch: Path) -> None:
    places = list(range(8 * wal.HEADER_BYTES))
    for frame in (0, crashed.frames // 2, crashed.frames - 2, crashed.frames - 1):
        start = 8 * (wal.HEADER_BYTES + frame * FRAME_BYTES)
        places += range(start, start + 8 * wal.FRAME_HEADER_BYTES, 3)
    for bit in places:
        assert harmless_or_noticed(scratch, crashed.flipped(WAL, bit), crashed.confirmed), bit


def test_damage_to_the_last_transaction_is_noticed_though_it_looks_like_a_torn_write(
    crashed: Crashed, scratch: Path
) -> None:
    for byte in range(len(crashed.files[WAL]) - FRAME_BYTES, len(crashed.files[WAL]), 7):
        with pytest.raises(DiskCorrupt, match="had confirmed entries up to 10, and the file has up to 9"):
            opened(scratch, crashed.flipped(WAL, 8 * byte))


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_harmless_or_noticed(
    crashed: Crashed, closed: Crashed, scratch: Path, data: st.DataObject
) -> None:
    before = data.draw(st.sampled_from((crashed, closed)))
    name = data.draw(st.sampled_from(sorted(before.files)))
    content = bytearray(before.files[name])
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.sampled_from((1, 4, 100, PAGE_BYTES, FRAME_BYTES, len(content))))
    how = data.draw(st.sampled_from(("zeros", "ones", "noise", "cut", "elsewhere")))
    length = min(length, len(content) - start)
    if how == "zeros":
        content[start : start + length] = bytes(length)
    elif how == "ones":
        content[start : start + length] = b"\xff" * length
    elif how == "noise":
        content[start : start + length] = data.draw(st.binary(min_size=1, max_size=20))[:length].ljust(length, b"x")
    elif how == "cut":
        del content[start:]
    else:
        content[start : start + length] = content[:length]
    harmless_or_noticed(scratch, {**before.files, name: bytes(content)}, before.confirmed)


def test_a_log_that_is_cut_anywhere_is_noticed(crashed: Crashed, scratch: Path) -> None:
    size = len(crashed.files[WAL])
    cuts = {*range(wal.HEADER_BYTES + 2), *range(0, size, 41), *range(size - FRAME_BYTES, size, 23), size - 1}
    for length in sorted(cuts):
        with pytest.raises(DiskCorrupt):
            opened(scratch, crashed.cut(WAL, length))


def test_a_log_that_is_gone_is_noticed(crashed: Crashed, scratch: Path) -> None:
    with pytest.raises(DiskCorrupt, match="it was in term 2, and the file says 1"):
        opened(scratch, crashed.without(WAL))


def test_what_was_left_from_before_the_log_started_over_is_not_taken_for_damage(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 30)
    disk._file.call(lambda connection: None)
    disk.close()
    disk = RaftDisk(tmp_path / "disk" / DATABASE)
    write(disk, 30, 31)
    restart(disk)
    write(disk, 3, 61)
    crashed = crash(disk, tmp_path / "disk")
    assert crashed.frames > 20
    assert opened(tmp_path / "again", crashed.files) == crashed.confirmed


def restart(disk: RaftDisk) -> None:
    """sqlite writes its log from the beginning again, as it does by itself after a thousand pages."""
    connections: list[sqlite3.Connection] = []
    disk._file.call(connections.append)
    disk._file._debris = True
    disk._file.call(lambda connection: None)


def test_an_older_log_of_sqlite_beside_a_newer_database_is_noticed(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 10)
    old = files_of(tmp_path / "disk")
    write(disk, 10, 11, 2)
    disk.close()
    new = files_of(tmp_path / "disk")
    with pytest.raises(DiskCorrupt):
        opened(tmp_path / "again", {**new, WAL: old[WAL]})


def test_an_older_copy_of_the_database_is_noticed_by_its_mark(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 10)
    old = crash(disk, tmp_path / "disk").files
    disk = RaftDisk(tmp_path / "disk" / DATABASE)
    write(disk, 1, 11)
    disk.close()
    with pytest.raises(DiskCorrupt, match="had confirmed entries up to 11, and the file has up to 10"):
        opened(tmp_path / "again", {**old, MARK: files_of(tmp_path / "disk")[MARK]})


# --- the database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_bit_of_the_database_is_harmless_or_noticed(closed: Crashed, scratch: Path, part: int) -> None:
    noticed = 0
    for byte in range(11 * part, len(closed.files[DATABASE]), 44):
        noticed += harmless_or_noticed(scratch, closed.flipped(DATABASE, 8 * byte + byte % 8), closed.confirmed)
    assert noticed


def test_a_database_that_is_cut_or_gone_is_noticed(closed: Crashed, scratch: Path) -> None:
    for length in range(0, len(closed.files[DATABASE]), PAGE_BYTES):
        assert harmless_or_noticed(scratch, closed.cut(DATABASE, length), closed.confirmed)
    with pytest.raises(DiskCorrupt, match=r"raft\.db: the file is gone"):
        opened(scratch, closed.without(DATABASE))


def test_pages_that_nobody_uses_yet_are_checked_too(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 50)
    disk.save(Persist(60, None, (), snapshot(45), compact_to=44))
    confirmed = disk.load()
    disk.close()
    files = files_of(tmp_path / "disk")
    content = bytearray(files[DATABASE])
    assert int.from_bytes(content[36:40], "big"), "there are free pages"
    content[32:36] = (3).to_bytes(4, "big")  # the first of them is one in use now: it would be overwritten
    with pytest.raises(DiskCorrupt, match=r"raft\.db"):
        assert opened(tmp_path / "again", {**files, DATABASE: bytes(content)}) != confirmed


# --- the mark --------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_the_mark_is_harmless(crashed: Crashed, scratch: Path) -> None:
    for byte in [*range(0, 100, 2), *range(4097, 4197, 2), 2000]:
        if byte < len(crashed.files[MARK]):
            assert opened(scratch, crashed.flipped(MARK, 8 * byte + byte % 8)) == crashed.confirmed


@pytest.mark.parametrize("content", [b"", b"\0" * 9000, b"\xff" * 9000, b"raftmark" * 1200])
def test_without_a_readable_mark_a_log_is_not_trusted(crashed: Crashed, scratch: Path, content: bytes) -> None:
    with pytest.raises(DiskCorrupt, match=r"raft\.db-mark is damaged: so it cannot be told whether the log is whole"):
        opened(scratch, {**crashed.files, MARK: content})


def test_a_missing_mark_is_noticed(crashed: Crashed, scratch: Path) -> None:
    with pytest.raises(DiskCorrupt, match=r"raft\.db-mark is missing"):
        opened(scratch, crashed.without(MARK))


def test_a_log_from_before_there_were_marks_gets_one(closed: Crashed, tmp_path: Path) -> None:
    opened(tmp_path / "again", closed.files)
    (tmp_path / "again" / MARK).unlink()
    with sqlite3.connect(tmp_path / "again" / DATABASE) as connection:
        connection.execute("DELETE FROM metadata WHERE key = 'mark'")
    connection.close()
    files = files_of(tmp_path / "again")
    assert opened(tmp_path / "again", files) == closed.confirmed
    with pytest.raises(DiskCorrupt, match="is missing"):
        opened(tmp_path / "again", Crashed(files_of(tmp_path / "again"), closed.confirmed).without(MARK))


def test_the_mark_of_another_members_log_is_noticed(crashed: Crashed, scratch: Path) -> None:
    file = scratch.with_name("other")
    mark.Mark(file, replace(mark.read(_mark_file(scratch, crashed)), raft_id=8)).close()
    with pytest.raises(DiskCorrupt, match="it belonged to member 8, and the file says 7"):
        opened(scratch, {**crashed.files, MARK: file.read_bytes()})


def _mark_file(scratch: Path, crashed: Crashed) -> Path:
    file = scratch.with_name("mark")
    file.write_bytes(crashed.files[MARK])
    return file


# --- what is no damage -----------------------------------------------------------------------------------------------


def test_a_write_that_was_not_confirmed_may_be_torn_anywhere(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 3)
    before, old = disk.load(), files_of(tmp_path / "disk")
    write(disk, 1, 4)
    after, new = disk.load(), files_of(tmp_path / "disk")
    disk.close()
    found = set()
    for length in range(len(old[WAL]), len(new[WAL]) + 1, 13):
        torn = {**new, MARK: old[MARK], WAL: new[WAL][:length]}
        found.add(len(opened(tmp_path / "again", torn).entries))
    late = {**new, MARK: old[MARK]}
    assert opened(tmp_path / "again", late) == after
    assert found == {len(before.entries)} or found == {len(before.entries), len(after.entries)}


def test_pages_of_a_torn_write_reach_the_disk_in_any_order(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 3)
    before, old = disk.load(), files_of(tmp_path / "disk")
    disk.save(Persist(4, state(2, 7, 3), tuple(entry(index, 2, b"x" * 900) for index in range(4, 8))))
    new = files_of(tmp_path / "disk")
    disk.close()
    start, frames = len(old[WAL]), (len(new[WAL]) - len(old[WAL])) // FRAME_BYTES
    assert frames > 5
    for lost in range(frames):
        content = bytearray(new[WAL])
        at = start + lost * FRAME_BYTES
        content[at : at + FRAME_BYTES] = bytes(FRAME_BYTES)
        assert opened(tmp_path / "again", {**new, MARK: old[MARK], WAL: bytes(content)}) == before


def test_what_failed_writes_left_behind_the_end_is_no_damage(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 3)
    good = files_of(tmp_path / "disk")[WAL]
    write(disk, 6, 4)
    more = files_of(tmp_path / "disk")[WAL]
    disk.close()
    shutil.rmtree(tmp_path / "disk")
    disk = make(tmp_path / "disk")
    write(disk, 3)
    with pytest.raises(DiskError, match="gap"):
        disk.save(Persist(9, None, (entry(9),)))
    file = tmp_path / "disk" / WAL
    with file.open("r+b") as handle:  # as if the frames had been written, and then their synchronisation failed
        handle.seek(len(good))
        handle.write(more[len(good) :])
    write(disk, 2, 4)
    crashed = crash(disk, tmp_path / "disk")
    assert opened(tmp_path / "again", crashed.files) == crashed.confirmed


@pytest.mark.parametrize(
    "change",
    [
        Persist(9, state(3, 7, 4), (entry(5, 3),)),
        Persist(9, state(3, 7, 4), tuple(entry(index, 3) for index in range(5, 9))),
        Persist(9, state(3), (), snapshot(6, 2), replaces_log=True),
        Persist(9, state(3), (entry(21, 3),), snapshot(20, 2), replaces_log=True),
        Persist(9, None, (), snapshot(8), compact_to=7),
    ],
    ids=["one instead", "several instead", "earlier snapshot", "later snapshot", "compaction"],
)
def test_a_write_that_replaces_confirmed_entries_is_no_loss_whenever_a_crash_comes(
    tmp_path: Path, change: Persist
) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 10)
    before, old = disk.load(), files_of(tmp_path / "disk")
    withdrawn = []

    def work(connection: sqlite3.Connection) -> None:
        disk._write(connection, change)
        disk._guard.before_commit()
        withdrawn.append((tmp_path / "disk" / MARK).read_bytes())

    disk._file.call(work)
    after, new = disk.load(), files_of(tmp_path / "disk")
    disk.close()
    again = tmp_path / "again"
    assert opened(again, new) == after
    assert opened(again, {**old, MARK: withdrawn[0]}) == before
    assert opened(again, {**new, MARK: withdrawn[0]}) == after


def test_an_erased_disk_confirms_nothing(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 3)
    disk.erase()
    crashed = crash(disk, tmp_path / "disk")
    assert crashed.confirmed == Loaded()
    assert opened(tmp_path / "again", crashed.files) == Loaded()


def test_a_file_that_another_process_has_open_is_locked_and_not_damaged(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 3)
    (tmp_path / "disk" / MARK).write_bytes(b"")
    other = RaftDisk(tmp_path / "disk" / DATABASE)
    with pytest.raises(DiskError, match="locked") as caught:
        other.load()
    assert not isinstance(caught.value, DiskCorrupt)
    other.close()
    disk.close()


# --- after damage ----------------------------------------------------------------------------------------------------


def test_a_damaged_log_is_not_changed_by_looking_at_it(crashed: Crashed, closed: Crashed, scratch: Path) -> None:
    for damaged in (
        crashed.flipped(WAL, 8 * (wal.HEADER_BYTES + FRAME_BYTES + 100)),
        crashed.flipped(WAL, 8 * len(crashed.files[WAL]) - 8),
        crashed.flipped(WAL, 3),
        crashed.without(MARK),
        closed.cut(DATABASE, len(closed.files[DATABASE]) - PAGE_BYTES),
    ):
        with pytest.raises(DiskCorrupt):
            opened(scratch, damaged)
        assert files_of(scratch) == damaged


def test_what_is_left_can_be_salvaged_and_takes_the_old_files_place(crashed: Crashed, scratch: Path) -> None:
    half = 8 * (wal.HEADER_BYTES + crashed.frames // 2 * FRAME_BYTES + 100)
    with pytest.raises(DiskCorrupt):
        opened(scratch, crashed.flipped(WAL, half))
    disk = RaftDisk(scratch / DATABASE)
    loaded, lost = disk.salvage()
    assert 5 <= loaded.entries[-1].Index < 10
    assert loaded.entries == crashed.confirmed.entries[: len(loaded.entries)]
    assert loaded.raft_id == 7
    assert f"confirmed entries up to 10, and the file has up to {loaded.entries[-1].Index}" in lost
    disk.start_over(loaded)
    assert disk.load() == loaded
    disk.close()
    again = RaftDisk(scratch / DATABASE)
    assert again.load() == loaded
    again.close()
    assert {file.name for file in scratch.iterdir()} == {DATABASE, MARK}


def test_entries_before_a_damaged_one_are_salvaged(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 9)
    disk._file.call(lambda connection: connection.execute("UPDATE entries SET record = x'00' WHERE idx = 6"))
    disk._file.call(lambda connection: connection.execute("DELETE FROM hard_state"))
    crashed = files_of(tmp_path / "disk")
    disk.close()
    with pytest.raises(DiskCorrupt):
        opened(tmp_path / "again", crashed)
    disk = RaftDisk(tmp_path / "again" / DATABASE)
    loaded, lost = disk.salvage()
    disk.close()
    assert [found.Index for found in loaded.entries] == [1, 2, 3, 4, 5]
    assert loaded.hard_state is not None
    assert (loaded.hard_state.term, loaded.hard_state.vote, loaded.hard_state.commit) == (1, 0, 0)
    assert "up to 9, and the file has up to 5" in lost


@pytest.mark.parametrize("table", ["entries", "snapshots", "metadata"])
def test_a_log_without_its_beginning_is_nothing_to_go_on_with(tmp_path: Path, table: str) -> None:
    disk = make(tmp_path / "disk")
    write(disk, 9)
    disk.save(Persist(10, None, (), snapshot(5), compact_to=4))
    disk._file.call(lambda connection: connection.execute(f"DROP TABLE {table}"))
    files = files_of(tmp_path / "disk")
    disk.close()
    with pytest.raises(DiskCorrupt):
        opened(tmp_path / "again", files)
    disk = RaftDisk(tmp_path / "again" / DATABASE)
    if table == "entries":
        assert disk.salvage()[0].entries == ()
    else:
        with pytest.raises(DiskError):
            disk.salvage()
    disk.close()


def test_there_is_nothing_to_salvage_without_a_file(tmp_path: Path) -> None:
    disk = RaftDisk(tmp_path / DATABASE)
    with pytest.raises(DiskCorrupt, match="the file is gone"):
        disk.salvage()
    disk.close()


def test_a_disk_tells_whose_it_was_even_if_nothing_else_can_be_read(crashed: Crashed, scratch: Path) -> None:
    with pytest.raises(DiskCorrupt):
        opened(scratch, {**crashed.files, DATABASE: b"x" * 5000, WAL: b"y" * 5000})
    disk = RaftDisk(scratch / DATABASE)
    assert disk.confirmed_as() == 7
    disk.close()
