"""The simulated disk: names and contents are lost, errors lie, damage is found."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from certs import files
from certs.keystore import RaftKeys
from swarm.api import raftpb
from swarm.io.disk.database import DiskCorrupt
from swarm.raft.events import Persist
from swarm.raft.records import RecordLocked
from tests.sim.disk import Disk
from tests.sim.files import Killed, SimFiles, Trouble
from tests.sim.raft_content import CLEAR, Owner
from tests.sim.raft_image import WAL_WRITES_MAX, RaftImage

FIRST, SECOND = RaftKeys(b"first data key"), RaftKeys(b"second data key")
DRAWS = 30


def entry(index: int) -> raftpb.Entry:
    return raftpb.Entry(Index=index, Term=1, Data=b"data")


def append(image: RaftImage, index: int) -> None:
    image.write(Persist(index, None, (entry(index),)))


def filled(entries: int = 3) -> RaftImage:
    image = RaftImage()
    image.write(Owner(7))
    image.write(Persist(1, raftpb.HardState(term=1), (entry(1),)))
    for index in range(2, entries + 1):
        append(image, index)
    return image


def last_index(image: RaftImage) -> int:
    image.open(image.raft_keys)
    return image.load().entries[-1].Index


# --- small files -----------------------------------------------------------------------------------------------------


def outcomes_of_a_power_loss(base: Path, synchronise: bool) -> set[bytes | None]:
    """What a file that was replaced can hold afterwards."""
    found: set[bytes | None] = set()
    for draw in range(DRAWS):
        disk = SimFiles(base / f"{synchronise}{draw}")
        path = disk.directory / "file"
        files.replace(path, b"old", disk)
        disk.write(disk.directory / "beside", b"new", 0o600, None)
        disk.rename(disk.directory / "beside", path)
        if synchronise:
            disk.sync(disk.directory)
        assert path.read_bytes() == b"new", "a process sees what it wrote"
        disk.lose_power(Random(draw))
        found.add(path.read_bytes() if path.exists() else None)
    return found


def test_a_name_may_be_undone_until_its_directory_was_synchronised(tmp_path: Path) -> None:
    assert outcomes_of_a_power_loss(tmp_path, synchronise=False) == {b"old", b"new"}
    assert outcomes_of_a_power_loss(tmp_path, synchronise=True) == {b"new"}


def test_an_error_may_come_before_or_after_what_failed(tmp_path: Path) -> None:
    found = set()
    for draw in range(DRAWS):
        disk = SimFiles(tmp_path / str(draw))
        files.replace(disk.directory / "old", b"content", disk)
        disk.trouble = Trouble(Random(draw), 1.0, 1)
        with pytest.raises(OSError, match="input/output"):
            disk.rename(disk.directory / "old", disk.directory / "new")
        found.add((disk.directory / "new").exists())
    assert found == {False, True}


def test_a_full_disk_lets_names_change_and_nothing_be_written(tmp_path: Path) -> None:
    disk = SimFiles(tmp_path / "disk")
    path = disk.directory / "file"
    files.replace(path, b"old", disk)
    disk.full = True
    with pytest.raises(OSError, match="no space"):
        files.replace(path, b"new", disk)
    assert path.read_bytes() == b"old"
    files.remove([path], disk)
    assert not path.exists()


def test_nothing_reaches_the_disk_after_a_kill(tmp_path: Path) -> None:
    disk = SimFiles(tmp_path / "disk")
    killed: list[int] = []
    disk.killed = lambda: killed.append(1)
    path = disk.directory / "file"
    files.replace(path, b"old", disk)
    disk.kill_in = 1
    for _ in range(2):
        with pytest.raises(Killed):
            files.replace(path, b"new", disk)
    assert killed == [1]
    disk.start()
    assert path.read_bytes() == b"old"
    files.replace(path, b"new", disk)
    assert path.read_bytes() == b"new"


def test_a_flipped_bit_is_one_bit(tmp_path: Path) -> None:
    disk = SimFiles(tmp_path / "disk")
    path = disk.directory / "file"
    files.replace(path, b"content", disk)
    disk.flip(path, Random(1))
    wrong = [a ^ b for a, b in zip(b"content", path.read_bytes(), strict=True) if a != b]
    assert [bits.bit_count() for bits in wrong] == [1]


# --- the log -----------------------------------------------------------------------------------------------------


def test_a_write_that_failed_is_there_after_a_restart_unless_another_took_its_place() -> None:
    image = filled()
    image.fail_to_synchronise(Persist(2, None, (entry(4),)))
    assert last_index(image) == 4
    image.fail_to_synchronise(Persist(2, None, (entry(5), entry(6))))
    append(image, 5)
    assert last_index(image) == 5


def test_a_write_that_failed_may_be_lost_with_the_power() -> None:
    found = set()
    for draw in range(DRAWS):
        image = filled()
        image.fail_to_synchronise(Persist(2, None, (entry(4),)))
        image.lose_power(Random(draw))
        found.add(last_index(image))
    assert found == {3, 4}


def test_a_damaged_database_says_so() -> None:
    image = filled(WAL_WRITES_MAX)
    image.flip(Random(1))
    assert not image.intact
    with pytest.raises(DiskCorrupt):
        last_index(image)


# --- sealing -----------------------------------------------------------------------------------------------------


def test_a_log_that_was_sealed_is_written_on_with_the_new_key_and_needs_it_to_be_read() -> None:
    image = filled()
    assert image.data_keys() == {CLEAR}
    image.prepare(FIRST)
    image.adopt()
    append(image, 4)
    assert image.data_keys() == {FIRST.current}
    assert last_index(image) == 4
    for wrong in (None, SECOND):
        image.open(wrong)
        with pytest.raises(RecordLocked):
            image.load()
        with pytest.raises(RecordLocked):
            image.prepare(SECOND)


def test_a_rewritten_log_counts_only_when_it_is_adopted() -> None:
    image = filled()
    image.prepare(FIRST)
    image.discard()
    append(image, 4)
    assert image.data_keys() == {CLEAR}
    answers = iter((OSError("input/output error"), True))

    def committed() -> bool:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return bool(answer)

    image.prepare(FIRST)
    image.undecided = committed
    with pytest.raises(OSError, match="input/output"):
        image.settle()
    image.settle()
    append(image, 5)
    assert image.data_keys() == {FIRST.current}


def test_a_log_is_not_written_while_nobody_knows_which_one_counts(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk")
    disk.raft = filled()
    disk.raft.prepare(FIRST)

    def unknown() -> bool:
        raise OSError("input/output error")

    disk.raft.undecided = unknown
    assert disk.write_log(Persist(2, None, (entry(4),))) == "input/output error"
    disk.raft.undecided = lambda: False
    assert disk.write_log(Persist(2, None, (entry(4),))) == ""
    assert disk.raft.data_keys() == {CLEAR}


# --- damage to the log -----------------------------------------------------------------------------------------------


def test_a_bit_that_turns_over_in_the_log_is_noticed_wherever_it_is() -> None:
    told = set()
    for draw in range(DRAWS):
        image = filled(9)
        rng = Random(draw)
        where = image.flip(rng)
        image.lose_power(rng)
        if "wal" in where:
            image.open(None)
            with pytest.raises(DiskCorrupt) as error:
                image.load()
            told.add("frame" in error.value.message or "header" in error.value.message)
            with pytest.raises(DiskCorrupt):  # nothing was changed by looking
                image.load()
    assert told == {True, False}, "the frames tell of all but the last transaction, and of that the mark"


def test_a_transaction_that_power_has_torn_is_no_damage() -> None:
    ends = set()
    for draw in range(DRAWS):
        image = filled()
        image.fail_to_synchronise(Persist(2, None, (entry(4), entry(5))))
        image.lose_power(Random(draw))
        ends.add(last_index(image))
    assert ends == {3, 5}


def test_what_is_left_of_a_damaged_log_can_be_salvaged_and_put_in_its_place() -> None:
    salvages = 0
    for draw in range(DRAWS):
        image = filled(9)
        image.vanish(Random(draw))
        try:
            image.load()
        except DiskCorrupt:
            assert not image.intact
        else:
            continue
        try:
            found, lost = image.salvage()
        except DiskCorrupt:
            continue
        assert lost or not image.mark.exists
        image.start_over(found)
        image.confirm()
        salvages += 1
        assert image.load() == found
    assert salvages


def test_a_log_in_the_clear_shows_its_entries_until_it_is_sealed() -> None:
    image = filled()
    assert b"data" in image.in_clear()
    image.prepare(FIRST)
    image.adopt()
    append(image, 4)
    assert b"data" not in image.in_clear()
