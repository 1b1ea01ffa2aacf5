"""The lock of a manager's disk: key file and log change together, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from certs import keys
from certs.errors import InvalidUnlockKey
from certs.files import SYSTEM, Files
from certs.keystore import Kek, KeyStore, Locked, Present, RaftKeys
from certs.root import RootCA
from certs.tls import Credentials
from swarm import api
from swarm.api import raftpb
from swarm.errors import FailedPrecondition, Unavailable
from swarm.io.disk import replaced_file
from swarm.io.disk.database import DiskError
from swarm.io.disk.raft_disk import Loaded, RaftDisk
from swarm.io.node.autolock import FAILURES, Autolock, perform, sealer_of
from swarm.node.autolock import kek_of
from swarm.node.autolock_events import Done, Reseal, RotateKek, SaveCertificate, SaveRaftKeys
from swarm.raft.events import Persist
from swarm.raft.records import Sealer
from swarm.store.store import Change, Store
from tests.bad_disk import EIO, ENOSPC, BadDisk

NOW = 1_795_362_749.0
ROOT = RootCA.create(NOW)
SECRET = b"a value that nobody may read from the disk"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def credentials() -> Credentials:
    key = keys.new_private_key()
    certificate = ROOT.sign(keys.new_csr(key), "node1", "swarm-manager", "cluster1", NOW, 0)
    return Credentials(certificate, keys.private_key_pem(key))


def entry(index: int) -> raftpb.Entry:
    return raftpb.Entry(Type=raftpb.EntryNormal, Term=1, Index=index, Data=SECRET)


def cluster(version: int, key: bytes = b"") -> api.Cluster:
    made = api.Cluster(id="cluster1")
    made.meta.version.index = version
    made.spec.encryption_config.auto_lock_managers = bool(key)
    if key:
        made.unlock_keys.add(subsystem="swarm-manager", key=key)
    return made


class Log:
    """A real log whose commits can be spoiled. spoil: called before each commit."""

    def __init__(self, path: Path, sealer: Sealer | None, files: Files) -> None:
        self.spoil: Callable[[], None] = lambda: None
        self.reseals = 0
        self._disk = RaftDisk(path, sealer, files=files)
        self.initialize, self.save, self.load = self._disk.initialize, self._disk.save, self._disk.load
        self.close, self.settle = self._disk.close, self._disk.settle

    @property
    def plain(self) -> bool:
        return self._disk.plain

    @plain.setter
    def plain(self, plain: bool) -> None:
        self._disk.plain = plain

    def reseal(self, sealer: Sealer, commit: Callable[[], None], committed: Callable[[], bool]) -> None:
        def spoiled() -> None:
            self.spoil()
            commit()

        self.reseals += 1
        self._disk.reseal(sealer, spoiled, committed)


class Manager:
    """What the lock needs of a manager: a store, and a real disk."""

    def __init__(self, path: Path, sealer: Sealer | None, files: Files = SYSTEM) -> None:
        self.store = Store()
        self.watchers: list[Callable[[Sequence[Change]], None]] = []
        self.wanted = Loaded()
        self.disk = Log(path, sealer, files)


class Place:
    """The files of one manager, and starting on them."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "raft.db"
        self.keys_directory = directory / "certificates"
        self.renewals = 0
        store = KeyStore(self.keys_directory)
        store.save_root(ROOT.bundle_pem)
        store.save(credentials())

    async def start(self, unlock_key: bytes = b"", files: Files = SYSTEM) -> tuple[KeyStore, Autolock, Manager]:
        """As NodeProcess.resume does it."""
        store = KeyStore(self.keys_directory, files)
        lock = Autolock(store, self.log, Random(1), self.renew, files)
        lock.recover(isinstance(store.load(), Locked))
        assert isinstance(store.load(unlock_key), Present)
        manager = Manager(self.log, await lock.sealer(), files)
        manager.wanted = manager.disk.load()
        lock.attach(manager)
        return store, lock, manager

    def renew(self) -> None:
        self.renewals += 1

    def locked(self) -> bool:
        return isinstance(KeyStore(self.keys_directory).load(), Locked)

    def shown(self) -> bool:
        """Whether any file shows what is in the log."""
        return any(SECRET in file.read_bytes() for file in self.log.parent.rglob("*") if file.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def filled(place: Place) -> tuple[KeyStore, Autolock, Manager]:
    store, lock, manager = await place.start()
    manager.disk.initialize(7, "node1", "cluster1")
    manager.disk.save(Persist(1, raftpb.HardState(term=1), (entry(1), entry(2), entry(3))))
    metadata = raftpb.SnapshotMetadata(index=1, term=1, conf_state=raftpb.ConfState(voters=[7]))
    manager.disk.save(Persist(2, None, (), raftpb.Snapshot(data=SECRET, metadata=metadata)))
    manager.wanted = manager.disk.load()
    return store, lock, manager


async def take(lock: Autolock, version: int, key: bytes = b"") -> None:
    async with lock.writing:
        await lock.take(kek_of(cluster(version, key)))


async def test_locking_hides_what_was_in_the_clear_and_the_next_start_needs_the_key(place: Place) -> None:
    _, lock, manager = await filled(place)
    before = manager.disk.load()
    assert place.shown()
    await take(lock, 5, KEY)
    assert place.renewals == 1
    manager.disk.save(Persist(3, None, (entry(4),)))
    assert not place.shown()
    manager.disk.close()
    assert not place.shown()
    assert place.locked()
    with pytest.raises(InvalidUnlockKey):
        KeyStore(place.keys_directory).load(OTHER_KEY)
    _, _, manager = await place.start(KEY)
    after = manager.disk.load()
    assert (after.raft_id, after.snapshot, after.entries) == (7, before.snapshot, (*before.entries, entry(4)))
    manager.disk.close()


async def test_every_lock_has_a_data_key_of_its_own(place: Place) -> None:
    store, lock, manager = await filled(place)
    await take(lock, 5, KEY)
    first = store.raft_keys
    await take(lock, 6)
    assert not place.locked()
    assert store.raft_keys == first, "what is sealed stays sealed"
    await take(lock, 7, OTHER_KEY)
    second = store.raft_keys
    assert first is not None
    assert second is not None
    assert second.current != first.current
    manager.disk.close()
    sealed = RaftDisk(place.log, sealer_of(first, Random(2)))
    with pytest.raises(DiskError, match="data key"):
        sealed.load()
    sealed.close()


async def test_a_new_unlock_key_needs_no_new_log(place: Place) -> None:
    store, lock, manager = await filled(place)
    await take(lock, 5, KEY)
    data_key = store.raft_keys
    await take(lock, 6, OTHER_KEY)
    assert (manager.disk.reseals, store.raft_keys, place.renewals) == (1, data_key, 1)
    manager.disk.close()
    with pytest.raises(InvalidUnlockKey):
        KeyStore(place.keys_directory).load(KEY)
    _, _, manager = await place.start(OTHER_KEY)
    assert len(manager.disk.load().entries) == 3
    manager.disk.close()


async def test_an_older_key_is_not_taken_back(place: Place) -> None:
    store, lock, manager = await filled(place)
    await take(lock, 5, KEY)
    await take(lock, 4)
    await take(lock, 5, OTHER_KEY)
    assert store.kek == Kek(KEY, 5)
    manager.disk.close()


async def happens(check: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if check():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


class Power(Exception):
    """It went off."""


def _lock_until_killed(place: Place, step: int) -> None:
    """In a process of its own: locks, and is gone before the n-th change of a directory that this makes."""
    left = [step]

    def changing(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: object, **options: object) -> object:
            if left[0] <= 0:
                os._exit(9)
            left[0] -= 1
            return real(*arguments, **options)

        return change

    async def run() -> None:
        _, lock, manager = await place.start()
        manager.disk.load()
        os.rename, os.unlink = changing(os.rename), changing(os.unlink)
        os.open, os.fsync = changing(os.open), changing(os.fsync)
        await take(lock, 5, KEY)
        manager.disk.save(Persist(3, None, (entry(4),)))

    asyncio.run(run())


@pytest.mark.parametrize("step", range(0, 60, 2))
def test_a_kill_while_locking_leaves_the_old_or_the_new_and_all_entries(place: Place, step: int) -> None:
    async def before() -> Loaded:
        _, _, manager = await filled(place)
        manager.disk.close()
        return manager.wanted

    async def after() -> None:
        locked = place.locked()
        _, lock, manager = await place.start(KEY if locked else b"")
        found = manager.disk.load()
        assert found.snapshot == wanted.snapshot
        assert found.entries[:3] == wanted.entries
        assert place.shown() is not locked
        await take(lock, 6, OTHER_KEY)
        assert place.locked()
        assert not place.shown()
        manager.disk.close()
        left = sorted(file.name for file in place.log.parent.iterdir() if "raft" in file.name)
        assert left == ["raft.db", "raft.db-mark"]

    wanted = asyncio.run(before())
    child = os.fork()
    if not child:
        try:
            _lock_until_killed(place, step)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    asyncio.run(after())


async def test_a_commit_that_fails_changes_nothing_and_may_be_repeated(place: Place) -> None:
    _, lock, manager = await filled(place)

    def full() -> None:
        raise OSError(28, "No space left on device")

    manager.disk.spoil = full
    with pytest.raises(DiskError, match="No space left"):
        await take(lock, 5, KEY)
    assert not place.locked()
    manager.disk.save(Persist(3, None, (entry(4),)))
    manager.disk.spoil = lambda: None
    await take(lock, 5, KEY)
    assert place.locked()
    assert not place.shown()
    assert len(manager.disk.load().entries) == 4
    manager.disk.close()


class Ticking:
    """A key file that is locked, unlocked, locked again: (version, key) one after the other."""

    CHANGES = ((5, KEY), (6, OTHER_KEY), (7, b""), (8, KEY))


async def acknowledged(manager: Manager, index: int) -> bool:
    """Whether the log took another entry."""
    try:
        await asyncio.to_thread(manager.disk.save, Persist(index, None, (entry(index),)))
    except DiskError:
        return False
    return True


@pytest.mark.timeout(120)
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("code", [EIO, ENOSPC])
@pytest.mark.parametrize("after", [False, True])
async def test_an_error_at_any_step_of_any_lock_loses_nothing_and_ends_as_the_cluster_wants(
    tmp_path: Path, after: bool, code: int, times: int
) -> None:
    """What the log acknowledged stays, the key file is as the cluster said last, and nothing is in the clear then."""
    for at in range(200):
        place = Place(tmp_path / str(at))
        _, _, manager = await filled(place)
        manager.disk.close()
        disk = BadDisk(at, after, code, times)
        try:
            store, lock, manager = await place.start(b"", disk)
        except OSError:
            continue  # the start says so
        index, last = 4, disk.struck
        for version, key in Ticking.CHANGES:
            with contextlib.suppress(*FAILURES):
                await take(lock, version, key)
            index += await acknowledged(manager, index)
            if disk.struck and not last:  # the daemon dies soon after the error: what is there must do
                manager.disk.close()
                disk.heal()
                held = store.kek.key
                store, lock, manager = await place.start(held if place.locked() else b"", disk)
                assert len(manager.disk.load().entries) == index - 1
                last = True
                await take(lock, version, key)
            assert store.kek.key == key
            assert bool(key) == place.locked()
            assert not (key and place.shown())
        manager.disk.close()
        _, _, manager = await place.start(KEY)
        assert len(manager.disk.load().entries) == index - 1
        manager.disk.close()
        assert not place.shown()
        if not disk.struck:
            assert at > 10
            return
    raise AssertionError("there is no end to it")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("code", [EIO, ENOSPC])
@pytest.mark.parametrize("after", [False, True])
async def test_after_an_error_at_any_step_the_lock_is_right_without_a_restart(
    tmp_path: Path, after: bool, code: int, times: int
) -> None:
    for at in range(200):
        place = Place(tmp_path / str(at))
        store, _, manager = await filled(place)
        manager.disk.close()
        disk = BadDisk(10**9, after, code, times)
        store, lock, manager = await place.start(b"", disk)
        disk.at = len(disk.calls) + at
        with contextlib.suppress(*FAILURES):
            await take(lock, 5, KEY)
        index = 4 + await acknowledged(manager, 4)
        disk.heal()
        await take(lock, 5, KEY)
        assert (store.settled, store.kek.key, lock.trouble) == (True, KEY, "")
        assert place.locked()
        index += await acknowledged(manager, index)
        assert index >= 5
        assert not place.shown()
        manager.disk.close()
        _, _, manager = await place.start(KEY)
        assert len(manager.disk.load().entries) == index - 1
        manager.disk.close()
        if not disk.struck:
            assert at > 5
            return
    raise AssertionError("there is no end to it")


async def test_a_locked_manager_whose_log_shows_something_seals_it(place: Place) -> None:
    """However it came to that: an earlier version left it so after an error."""
    store, _, manager = await filled(place)
    manager.disk.close()
    store.rotate_kek(Kek(KEY, 5), RaftKeys(b"d" * 32))
    assert place.shown()
    store, lock, manager = await place.start(KEY)
    async with lock.writing:
        await lock.follow()
    assert not place.shown()
    assert store.raft_keys is not None
    assert not store.raft_keys.needs_rotation
    manager.disk.close()
    _, _, manager = await place.start(KEY)
    assert len(manager.disk.load().entries) == 3
    manager.disk.close()


async def test_a_locked_node_that_becomes_a_manager_never_writes_a_clear_log(place: Place) -> None:
    KeyStore(place.keys_directory).save(credentials(), Kek(KEY, 3))
    store, _, manager = await place.start(KEY)
    assert store.raft_keys is not None
    assert not store.raft_keys.needs_rotation
    manager.disk.initialize(7, "node1", "cluster1")
    manager.disk.save(Persist(1, raftpb.HardState(term=1), (entry(1),)))
    assert not place.shown()
    manager.disk.close()


async def test_a_clear_log_of_a_locked_manager_is_sealed_at_its_next_start(place: Place) -> None:
    _, _, manager = await filled(place)
    manager.disk.close()
    KeyStore(place.keys_directory).save(credentials(), Kek(KEY, 3))
    store, lock, manager = await place.start(KEY)
    assert place.shown()
    manager.store.apply((), 1)
    async with lock.writing:
        await lock.take(Kek(KEY, 3))
    assert not place.shown()
    assert store.raft_keys is not None
    assert not store.raft_keys.needs_rotation
    manager.disk.close()
    _, _, manager = await place.start(KEY)
    assert len(manager.disk.load().entries) == 3
    manager.disk.close()


async def test_a_crash_while_the_data_key_rotates_keeps_both_keys(place: Place) -> None:
    store, lock, manager = await filled(place)
    await take(lock, 5, KEY)
    assert store.raft_keys is not None
    store.save_raft_keys(RaftKeys(store.raft_keys.current, needs_rotation=True))

    def off() -> None:
        raise Power

    manager.disk.spoil = off
    with pytest.raises(DiskError):
        await take(lock, 5, KEY)
    manager.disk.close()
    assert not replaced_file.rewritten(place.log).exists()
    store, lock, manager = await place.start(KEY)
    assert len(manager.disk.load().entries) == 3
    await take(lock, 5, KEY)
    assert store.raft_keys is not None
    assert (store.raft_keys.pending, store.raft_keys.needs_rotation) == (b"", False)
    assert len(manager.disk.load().entries) == 3
    manager.disk.close()


async def test_what_the_cluster_says_is_followed_and_trouble_is_told(place: Place) -> None:
    _, lock, manager = await filled(place)
    running = asyncio.create_task(lock.run())
    manager.store.restore(api.StoreSnapshot(clusters=[cluster(5, KEY)]), 5)
    for watcher in manager.watchers:
        watcher(())
    await happens(place.locked)
    assert lock.trouble == ""
    manager.disk.close()
    manager.store.restore(api.StoreSnapshot(clusters=[cluster(6, b"too short")]), 6)
    for watcher in manager.watchers:
        watcher(())
    await happens(lambda: bool(lock.trouble))
    assert lock.trouble.endswith("the cluster's unlock key has 9 bytes")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_each_operation_leaves_on_disk_what_it_reports(place: Place) -> None:
    _, _, manager = await filled(place)
    store, nonces = KeyStore(place.keys_directory), Random(3)
    store.load()
    locked, other = Kek(KEY, 5), Kek(OTHER_KEY, 6)
    first, both, second = RaftKeys(b"f" * 32), RaftKeys(b"f" * 32, b"s" * 32, True), RaftKeys(b"s" * 32)
    for operation, unlock_key, expected in (
        (Reseal(first, locked), KEY, Done(locked, first)),
        (SaveRaftKeys(both), KEY, Done(locked, both)),
        (Reseal(second), KEY, Done(locked, second)),
        (RotateKek(other, second), OTHER_KEY, Done(other, second)),
        (SaveCertificate(credentials(), Kek(b"", 7), second), b"", Done(Kek(b"", 7), second)),
        (SaveCertificate(credentials(), Kek(), None), b"", Done(Kek(), None)),
    ):
        assert await perform(operation, store, manager, nonces) == expected
        found = KeyStore(place.keys_directory).load(unlock_key)
        assert isinstance(found, Present)
        assert Done(found.kek, found.raft_keys) == expected
        if isinstance(operation, SaveCertificate):
            assert found.credentials == operation.credentials
    assert not place.shown()
    with pytest.raises(Unavailable):
        await perform(Reseal(first, locked), store, None, nonces)
    manager.disk.close()


async def test_a_lock_that_fails_is_tried_again_without_being_asked(place: Place) -> None:
    _, lock, manager = await filled(place)
    left = [OSError(28, "No space left on device")]

    def full_once() -> None:
        if left:
            raise left.pop()

    manager.disk.spoil = full_once
    running = asyncio.create_task(lock.run())
    manager.store.restore(api.StoreSnapshot(clusters=[cluster(5, KEY)]), 5)
    await happens(lambda: "No space left" in lock.trouble)
    await happens(place.locked)
    await happens(lambda: not lock.trouble)
    assert not place.shown()
    assert place.renewals == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    manager.disk.close()


def test_a_key_without_autolock_does_not_count() -> None:
    made = cluster(9, KEY)
    made.spec.encryption_config.auto_lock_managers = False
    assert kek_of(made) == Kek(b"", 9)
    with pytest.raises(FailedPrecondition):
        kek_of(cluster(9, b"short"))
