"""The simulated disk: key file and sealed log change together or not at all."""

from __future__ import annotations

import pytest

from certs.errors import InvalidUnlockKey
from certs.keystore import Kek, RaftKeys
from certs.tls import Credentials
from swarm.api import raftpb
from swarm.errors import NodeLocked
from swarm.node.autolock_events import Done, Reseal, RotateKek, SaveCertificate, SaveRaftKeys
from swarm.raft.events import Persist
from swarm.raft.records import RecordLocked
from tests.sim.disk import CLEAR, Disk, KeyFile

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
FIRST, SECOND = b"first data key", b"second data key"
LOCK = Reseal(RaftKeys(FIRST), Kek(KEY, 5))


def entry(index: int) -> raftpb.Entry:
    return raftpb.Entry(Index=index, Term=1, Data=b"data")


def filled() -> Disk:
    disk = Disk()
    disk.perform(SaveCertificate(Credentials(b"certificate", b""), Kek(), None))
    disk.raft.raft_id = 7
    snapshot = raftpb.Snapshot(data=b"data", metadata=raftpb.SnapshotMetadata(index=1, term=1))
    disk.raft.write(Persist(1, raftpb.HardState(term=1), (entry(1), entry(2)), snapshot))
    return disk


def started(disk: Disk, unlock_key: bytes = b"") -> KeyFile:
    disk.recover()
    found = disk.load(unlock_key)
    disk.raft.open(found.raft_keys)
    return found


def test_a_locked_key_file_is_read_only_with_its_key() -> None:
    disk = filled()
    assert disk.load() == KeyFile(b"certificate")
    assert disk.perform(LOCK) == Done(Kek(KEY, 5), RaftKeys(FIRST))
    with pytest.raises(NodeLocked):
        disk.load()
    with pytest.raises(InvalidUnlockKey):
        disk.load(OTHER_KEY)
    assert disk.load(KEY) == KeyFile(b"certificate", Kek(KEY, 5), RaftKeys(FIRST))


def test_a_log_that_was_sealed_is_written_on_with_the_new_key_and_needs_it_to_be_read() -> None:
    disk = filled()
    before = disk.raft.load()
    assert disk.raft.data_keys() == {CLEAR}
    disk.perform(LOCK)
    disk.raft.write(Persist(2, None, (entry(3),)))
    assert disk.raft.data_keys() == {FIRST}
    started(disk, KEY)
    after = disk.raft.load()
    assert (after.raft_id, after.snapshot, after.entries) == (7, before.snapshot, (*before.entries, entry(3)))
    for wrong in (None, RaftKeys(SECOND)):
        disk.raft.open(wrong)
        with pytest.raises(RecordLocked):
            disk.raft.load()


@pytest.mark.parametrize(("steps", "locked"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_kill_while_the_log_is_sealed_leaves_the_old_or_the_new_never_a_mix(steps: int, locked: bool) -> None:
    disk = filled()
    wanted = disk.raft.load()
    disk.perform_until_killed(LOCK, steps)
    found = started(disk, KEY if locked else b"")
    assert found.locked is locked
    assert disk.raft.data_keys() == ({FIRST} if locked else {CLEAR})
    assert disk.raft.load() == wanted
    disk.raft.write(Persist(2, None, (entry(3),)))
    assert disk.raft.data_keys() == ({FIRST} if locked else {CLEAR})


@pytest.mark.parametrize("steps", range(4))
def test_a_kill_while_the_data_key_changes_leaves_a_log_that_the_key_file_opens(steps: int) -> None:
    disk = filled()
    disk.perform(LOCK)
    disk.perform(SaveRaftKeys(RaftKeys(FIRST, SECOND, needs_rotation=True)))
    disk.perform_until_killed(Reseal(RaftKeys(SECOND)), steps)
    found = started(disk, KEY)
    assert found.raft_keys == (RaftKeys(SECOND) if steps > 1 else RaftKeys(FIRST, SECOND, needs_rotation=True))
    assert disk.raft.load().entries == (entry(1), entry(2))
    disk.raft.write(Persist(2, None, (entry(3),)))
    assert SECOND in disk.raft.data_keys(), "the pending key seals"


def test_a_full_disk_changes_nothing() -> None:
    disk = filled()
    disk.fail(LOCK)
    disk.fail(RotateKek(Kek(KEY, 5), None))
    assert disk.load() == KeyFile(b"certificate")
    disk.raft.write(Persist(2, None, (entry(3),)))
    assert disk.raft.data_keys() == {CLEAR}
    disk.perform(LOCK)
    assert disk.raft.data_keys() == {FIRST}


def test_a_log_whose_key_is_not_at_hand_cannot_be_written_anew() -> None:
    disk = filled()
    disk.perform(LOCK)
    disk.raft.open(None)
    with pytest.raises(RecordLocked):
        disk.perform(Reseal(RaftKeys(SECOND)))
    disk.raft.open(RaftKeys(FIRST))
    assert disk.raft.load().entries == (entry(1), entry(2))


def test_other_changes_of_the_key_file_are_there_or_not() -> None:
    disk = filled()
    disk.perform(LOCK)
    for operation, after in (
        (RotateKek(Kek(OTHER_KEY, 6), RaftKeys(FIRST)), KeyFile(b"certificate", Kek(OTHER_KEY, 6), RaftKeys(FIRST))),
        (SaveRaftKeys(RaftKeys(FIRST, SECOND)), KeyFile(b"certificate", Kek(OTHER_KEY, 6), RaftKeys(FIRST, SECOND))),
        (SaveCertificate(Credentials(b"worker", b""), Kek(), None), KeyFile(b"worker")),
    ):
        before = disk.key_file
        disk.perform_until_killed(operation, 0)
        assert disk.key_file == before
        disk.perform_until_killed(operation, 1)
        assert disk.key_file == after


def test_a_certificate_can_be_replaced_alone() -> None:
    disk = Disk()
    assert disk.certificate_pem == b""
    disk.certificate_pem = b"first"
    disk.perform(LOCK)
    disk.certificate_pem = b"second"
    assert disk.load(KEY) == KeyFile(b"second", Kek(KEY, 5), RaftKeys(FIRST))
