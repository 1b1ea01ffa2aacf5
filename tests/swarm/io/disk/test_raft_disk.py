"""What a member's disk keeps, through crashes, torn files, full disks and flipped bits."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm import defaults
from swarm.api import raftpb
from swarm.errors import Code
from swarm.io.disk.database import DiskCorrupt, DiskError
from swarm.io.disk.raft_disk import Loaded, RaftDisk, TaskJournal
from swarm.raft.events import Persist
from swarm.raft.records import AesGcmSealer
from tests.sim.raft_member import Disk, Member
from tests.sim.raft_story import Story


def entry(index: int, term: int = 1, data: bytes = b"data") -> raftpb.Entry:
    return raftpb.Entry(Type=raftpb.EntryNormal, Term=term, Index=index, Data=data)


def snapshot(index: int, term: int = 1, data: bytes = b"state") -> raftpb.Snapshot:
    metadata = raftpb.SnapshotMetadata(index=index, term=term, conf_state=raftpb.ConfState(voters=[1, 2**63]))
    return raftpb.Snapshot(data=data, metadata=metadata)


def state(term: int, vote: int = 0, commit: int = 0) -> raftpb.HardState:
    return raftpb.HardState(term=term, vote=vote, commit=commit)


def sealer(current: int = 1, count: int = 1) -> AesGcmSealer:
    return AesGcmSealer({version: bytes([version]) * 32 for version in range(1, count + 1)}, current, Random(3))


def reload(path: Path) -> Loaded:
    disk = RaftDisk(path)
    try:
        return disk.load()
    finally:
        disk.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raft.db"


@pytest.fixture
def disk(path: Path) -> Iterator[RaftDisk]:
    disk = RaftDisk(path)
    yield disk
    disk.close()


def test_a_new_disk_is_empty_and_private(disk: RaftDisk, path: Path) -> None:
    assert disk.load() == Loaded()
    assert path.stat().st_mode & 0o077 == 0


def test_what_was_saved_is_loaded_after_a_restart(disk: RaftDisk, path: Path) -> None:
    disk.initialize(2**63, "node", "cluster")
    disk.save(Persist(1, state(2, 2**63, 1), (entry(1), entry(2, 2, b""))))
    disk.close()
    loaded = reload(path)
    assert (loaded.raft_id, loaded.node_id, loaded.cluster_id) == (2**63, "node", "cluster")
    assert loaded.hard_state == state(2, 2**63, 1)
    assert loaded.entries == (entry(1), entry(2, 2, b""))


def test_a_conflicting_suffix_is_replaced(disk: RaftDisk) -> None:
    disk.save(Persist(1, state(1), (entry(1), entry(2), entry(3))))
    disk.save(Persist(2, state(2), (entry(2, 2),)))
    assert disk.load().entries == (entry(1), entry(2, 2))


def test_entries_may_not_leave_a_gap(disk: RaftDisk) -> None:
    disk.save(Persist(1, None, (entry(1),)))
    with pytest.raises(DiskError, match="gap"):
        disk.save(Persist(2, state(9), (entry(3),)))
    assert disk.load().entries == (entry(1),)
    assert disk.load().hard_state is None


def test_own_snapshots_compact_the_log_and_old_ones_go(disk: RaftDisk) -> None:
    disk.save(Persist(1, state(1), tuple(entry(i) for i in range(1, 11))))
    disk.save(Persist(2, None, (), snapshot(5), compact_to=3))
    disk.save(Persist(3, None, (entry(11),), snapshot(8), compact_to=7))
    loaded = disk.load()
    assert loaded.snapshot == snapshot(8)
    assert loaded.applied_index == 8
    assert [e.Index for e in loaded.entries] == [8, 9, 10, 11]


def test_as_many_old_snapshots_are_kept_as_configured(path: Path) -> None:
    disk = RaftDisk(path, keep_old_snapshots=1)
    for index in (1, 2, 3):
        disk.save(Persist(index, None, (entry(index),), snapshot(index)))
    disk.close()
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT idx FROM snapshots ORDER BY idx").fetchall()
    connection.close()
    assert rows == [(2,), (3,)]


def test_a_leaders_snapshot_replaces_the_whole_log(disk: RaftDisk) -> None:
    disk.save(Persist(1, state(1), tuple(entry(i) for i in range(1, 20))))
    disk.save(Persist(2, state(3), (entry(11, 3),), snapshot(10, 2), replaces_log=True))
    loaded = disk.load()
    assert loaded.entries == (entry(11, 3),)
    assert loaded.snapshot == snapshot(10, 2)


def test_another_members_disk_is_refused(disk: RaftDisk) -> None:
    disk.initialize(1, "node", "cluster")
    disk.initialize(1, "node", "cluster")
    with pytest.raises(DiskError, match="belongs to another member") as caught:
        disk.initialize(2, "node", "cluster")
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_an_erased_disk_is_like_new(disk: RaftDisk) -> None:
    disk.initialize(1, "node", "cluster")
    disk.save(Persist(1, state(1), (entry(1),), snapshot(1)))
    disk.erase()
    assert disk.load() == Loaded()


async def test_submitted_writes_are_reported_on_the_loop_in_order(disk: RaftDisk) -> None:
    loop, seen = asyncio.get_running_loop(), []
    finished = asyncio.Event()

    def done(index: int, error: DiskError | None) -> None:
        assert asyncio.get_running_loop() is loop
        seen.append((index, error))
        if index == 50:
            finished.set()

    for index in range(1, 51):
        disk.submit(Persist(index, None, (entry(index),)), lambda error, index=index: done(index, error))  # type: ignore[misc]
    await finished.wait()
    assert seen == [(index, None) for index in range(1, 51)]
    assert len(disk.load().entries) == 50


async def test_an_error_reaches_only_the_caller_that_caused_it(disk: RaftDisk) -> None:
    answers: list[asyncio.Future[DiskError | None]] = []
    for index in (1, 3, 2):  # 3 leaves a gap
        future: asyncio.Future[DiskError | None] = asyncio.get_running_loop().create_future()
        answers.append(future)
        disk.submit(Persist(index, None, (entry(index),)), future.set_result)
    first, gap, second = await asyncio.gather(*answers)
    assert first is None
    assert isinstance(gap, DiskError)
    assert second is None
    assert disk.load().entries == (entry(1), entry(2))


async def test_blobs_are_kept_by_key(disk: RaftDisk) -> None:
    future: asyncio.Future[DiskError | None] = asyncio.get_running_loop().create_future()
    disk.put_blob("a", b"1", lambda error: None)
    disk.put_blob("b", b"2", lambda error: None)
    disk.put_blob("a", None, future.set_result)
    assert await future is None
    assert disk.load().blobs == {"b": b"2"}


def test_a_full_disk_refuses_the_whole_write_and_takes_it_when_there_is_room(disk: RaftDisk) -> None:
    disk.save(Persist(1, state(1), (entry(1),)))
    big = Persist(2, state(2), (entry(2, 2), entry(3, 2, b"x" * 1_000_000)))
    disk._file.call(lambda connection: connection.execute("PRAGMA max_page_count = 20"))
    with pytest.raises(DiskError, match="full"):
        disk.save(big)
    assert disk.load().hard_state == state(1)
    assert disk.load().entries == (entry(1),)
    disk._file.call(lambda connection: connection.execute("PRAGMA max_page_count = 100000"))
    disk.save(big)
    assert disk.load().hard_state == state(2)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    disk = RaftDisk(tmp_path / "file" / "raft.db")
    with pytest.raises(DiskError):
        disk.load()
    disk.close()


def test_a_file_that_is_not_a_database_is_corrupt(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    with pytest.raises(DiskCorrupt):
        reload(path)


def test_a_damaged_table_is_an_error_and_not_the_end_of_the_files_thread(disk: RaftDisk, path: Path) -> None:
    disk.load()
    disk.close()
    image = path.read_bytes()
    assert b"CREATE TABLE entries" in image
    path.write_bytes(image.replace(b"CREATE TABLE entries", b"CRE\x87TE TABLE entries"))
    again = RaftDisk(path)
    for _ in range(2):  # sqlite's message cannot be decoded; the thread that reads it is asked once more
        with pytest.raises(DiskCorrupt):
            again.load()
    again.close()


def test_two_processes_cannot_share_a_disk(disk: RaftDisk, path: Path) -> None:
    disk.load()
    with pytest.raises(DiskError, match="locked"):
        reload(path)


def test_a_newer_format_is_refused(disk: RaftDisk, path: Path) -> None:
    disk._file.call(lambda connection: connection.execute("UPDATE metadata SET value = '2' WHERE key = 'format'"))
    disk.close()
    with pytest.raises(DiskError, match="format 2"):
        reload(path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET record = x'0078' WHERE idx = 2",
        "UPDATE entries SET term = 7 WHERE idx = 2",
        "DELETE FROM entries WHERE idx = 2",
        "UPDATE snapshots SET record = x'0078'",
        "UPDATE snapshots SET conf_state = x'0801'",
        "UPDATE hard_state SET record = x'0801'",
        "UPDATE blobs SET key = 'other'",
        "UPDATE blobs SET record = 7",
        "UPDATE entries SET term = 'x' WHERE idx = 2",
        "UPDATE snapshots SET conf_state = 'text'",
        "INSERT INTO metadata VALUES ('raft_id', 'x')",
        "INSERT INTO metadata VALUES ('node_id', CAST(x'ff' AS TEXT))",
    ],
)
def test_damage_of_a_record_is_found(disk: RaftDisk, damage: str) -> None:
    disk.save(Persist(1, state(1), (entry(1), entry(2), entry(3)), snapshot(1)))
    disk._file.call(lambda connection: disk._put_blob(connection, "key", b"value"))
    disk._file.call(lambda connection: connection.execute(damage))
    with pytest.raises(DiskCorrupt):
        disk.load()


def test_sealed_records_show_nothing_and_need_their_key(path: Path) -> None:
    disk = RaftDisk(path, sealer())
    disk.save(Persist(1, state(1), (entry(1, 1, b"very secret"),), snapshot(1, 1, b"very secret")))
    assert disk.load().entries == (entry(1, 1, b"very secret"),)
    disk.close()
    assert b"very secret" not in path.read_bytes()
    with pytest.raises(DiskError) as caught:
        reload(path)
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_a_sealed_record_cannot_take_anothers_place(path: Path) -> None:
    disk = RaftDisk(path, sealer())
    disk.save(Persist(1, state(1), (entry(1, 1, b"one"), entry(2, 1, b"two"))))
    from swarm.raft.records import checksum

    def swap(connection: sqlite3.Connection) -> None:
        (record,) = connection.execute("SELECT record FROM entries WHERE idx = 1").fetchone()
        crc = checksum(record, b"entry 2 1 0")
        connection.execute("UPDATE entries SET record = ?, crc = ? WHERE idx = 2", (record, crc))

    disk._file.call(swap)
    with pytest.raises(DiskCorrupt, match="authenticate"):
        disk.load()
    disk.close()


def test_a_new_key_version_opens_what_an_old_one_sealed(path: Path) -> None:
    disk = RaftDisk(path)
    disk.save(Persist(1, state(1), (entry(1),)))
    disk.use_sealer(sealer())
    disk.save(Persist(2, None, (entry(2),)))
    disk.use_sealer(sealer(current=2, count=2))
    disk.save(Persist(3, None, (entry(3),)))
    assert disk.load().entries == (entry(1), entry(2), entry(3))
    disk.close()


def history(disk: RaftDisk, seed: int, writes: int) -> list[tuple[raftpb.HardState | None, tuple[raftpb.Entry, ...]]]:
    """Random writes; returns what the disk held after each, the empty disk first."""
    rng, states = Random(seed), []
    last = 0
    for token in range(1, writes + 1):
        first = max(1, last + 1 - rng.choice((0, 0, 0, 1, 2)))
        count = rng.randint(1, 4)
        entries = tuple(entry(first + i, token, rng.randbytes(rng.choice((0, 10, 5000)))) for i in range(count))
        last = first + count - 1
        disk.save(Persist(token, state(token, token, first - 1), entries))
        loaded = disk.load()
        states.append((loaded.hard_state, loaded.entries))
    return states


@given(seed=st.integers(0, 1000), cut=st.floats(0, 1), torn=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_or_torn_log_file_recovers_a_prefix_of_the_writes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: float, torn: bool
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    disk = RaftDisk(directory / "raft.db")
    disk.load()
    mark = (directory / "raft.db-mark").read_bytes()
    states = [(None, ()), *history(disk, seed, 8)]
    shutil.copytree(directory, directory / "crash")
    disk.close()
    (directory / "crash" / "raft.db-mark").write_bytes(mark)  # nothing of what follows was reported
    wal = directory / "crash" / "raft.db-wal"
    content = wal.read_bytes()
    at = int(len(content.rstrip(b"\0")) * cut)  # behind its last frame it is empty anyway
    at = max(at, 32) if torn else at  # the header is written at once
    wal.write_bytes(content[:at] + (Random(seed).randbytes(len(content) - at) if torn else b""))
    loaded = reload(directory / "crash" / "raft.db")
    assert (loaded.hard_state, loaded.entries) in states


def test_the_log_file_has_its_length_from_the_beginning_and_keeps_it(disk: RaftDisk, path: Path) -> None:
    log = path.with_name("raft.db-wal")
    for token in range(1, 4):
        disk.save(Persist(token, state(token), (entry(token),)))
        assert log.stat().st_size == defaults.DISK_LOG_AHEAD_BYTES
    shutil.copytree(path.parent, path.parent / "crash")
    assert [found.Index for found in reload(path.parent / "crash" / "raft.db").entries] == [1, 2, 3]


def test_without_room_for_it_the_log_file_grows_as_it_must(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (defaults.DISK_LOG_AHEAD_BYTES // 2, limits[1]))
    try:
        disk = RaftDisk(path)
        disk.save(Persist(1, state(1), (entry(1),)))
        assert path.with_name("raft.db-wal").stat().st_size < 100_000
        disk.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert reload(path).entries == (entry(1),)


def test_a_crash_between_submit_and_done_loses_all_or_nothing(tmp_path: Path) -> None:
    disk = RaftDisk(tmp_path / "a" / "raft.db", call_soon=lambda call: None)  # nothing hears of the end
    disk.save(Persist(1, state(1), (entry(1),)))
    disk.submit(Persist(2, state(2), (entry(2, 2), entry(3, 2))), lambda error: None)
    (tmp_path / "b").mkdir()
    for name in ("raft.db-mark", "raft.db", "raft.db-wal"):  # the mark follows the log: its copy is the older one
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    disk.close()
    loaded = reload(tmp_path / "b" / "raft.db")
    assert (loaded.hard_state, len(loaded.entries)) in ((state(1), 1), (state(2), 3))
    assert reload(tmp_path / "a" / "raft.db").hard_state == state(2)


@pytest.mark.parametrize("seed", range(4))
def test_it_holds_what_the_simulated_disk_holds(seed: int, tmp_path: Path) -> None:
    world = Story(seed, 3)
    written: dict[int, list[Persist]] = {}
    persisted = world.persisted

    def record(member: Member, effect: Persist, run: int) -> None:
        if run == member.run and member.raft is not None:
            written.setdefault(member.raft_id, []).append(effect)
        persisted(member, effect, run)

    world.persisted = record  # type: ignore[method-assign]
    world.grow()
    for _ in range(120):
        leader = world.leader()
        if leader:
            world.propose(leader)
        world.advance(world.now + 0.1)
    for raft_id, persists in written.items():
        model, disk = Disk(), RaftDisk(tmp_path / f"{raft_id}.db")
        for persist in persists:
            model.write(persist)
            disk.save(persist)
        loaded = disk.load()
        disk.close()
        assert loaded.entries == tuple(model.entries)
        assert loaded.hard_state == model.hard_state
        assert loaded.snapshot == model.snapshot


def test_a_closed_disk_says_so(disk: RaftDisk) -> None:
    disk.close()
    disk.close()
    with pytest.raises(DiskError, match="closed"):
        disk.load()


def test_the_journal_remembers_until_told_to_forget(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "tasks.db")
    journal.submit({"a": b"1", "b": b"2"})
    journal.submit({"a": b"3"}, ["b", "never there"])
    assert journal.load() == {"a": b"3"}
    journal.close()
    journal = TaskJournal(tmp_path / "tasks.db")
    assert journal.load() == {"a": b"3"}
    journal.close()


def test_a_journal_survives_a_crash_of_its_process(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "a" / "tasks.db")
    for number in range(100):
        journal.submit({f"task{number}": bytes(100)}, [f"task{number - 1}"])
    journal.load()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    journal.close()
    copy = TaskJournal(tmp_path / "b" / "tasks.db")
    assert copy.load() == {"task99": bytes(100)}
    copy.close()


def test_a_damaged_journal_is_found(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "tasks.db")
    journal.submit({"a": b"1"})
    for damage in ("UPDATE tasks SET record = x'32'", "UPDATE tasks SET record = 'text'"):
        journal._file.call(lambda connection, damage=damage: connection.execute(damage))  # type: ignore[misc]
        with pytest.raises(DiskCorrupt):
            journal.load()
    journal.close()
