"""Fuzz target: damaged files of a node: Raft's log (plain and sealed), the tasks' journal, keys, certificates, state.

Checked: what is read is what was written, all of it in the case of Raft's log, or an error that says so; no bug of
ours, no other exception. The files of a log that a crash left are the business of tests/fuzz/wal.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from random import Random

from certs.errors import CertsError
from certs.keys import new_csr, private_key_pem
from certs.keystore import CERTIFICATE_FILE, KEY_FILE, ROOT_FILE, Kek, KeyStore, RaftKeys
from certs.tls import Credentials
from swarm import api
from swarm.agent.worker import Worker
from swarm.api import raftpb
from swarm.errors import Code
from swarm.io.disk.database import DiskError
from swarm.io.disk.mark import mark_of
from swarm.io.disk.raft_disk import Loaded, RaftDisk, TaskJournal
from swarm.io.node.autolock import sealer_of
from swarm.node.state import NodeState, StateDamaged
from swarm.raft.events import Persist
from swarm.raft.records import AesGcmSealer, RecordCorrupt, RecordLocked, decode, encode
from tests.fuzz.feed import Feed
from tests.fuzz.house import KEY, NOW, ROOT

KEYS = {1: b"1" * 32, 2: b"2" * 32}
UNLOCK_KEY = b"u" * 32
PLACES = ("entry 7 2 0", "entry 7 2 1", "snapshot 5 2 0a", "")
BACKED = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _sealer() -> AesGcmSealer:
    return AesGcmSealer(KEYS, 2, Random(1))


def _written(directory: Path, sealer: AesGcmSealer | None) -> tuple[bytes, bytes, Loaded]:
    """A log with some of everything, and its mark, as bytes; and as it is read."""
    path = directory / "raft.db"
    loop = asyncio.new_event_loop()
    disk = RaftDisk(path, sealer, call_soon=loop.call_soon_threadsafe)
    disk.initialize(7, "n1", "c1")
    snapshot = raftpb.Snapshot(data=b"snapshot" * 20)
    snapshot.metadata.index, snapshot.metadata.term = 5, 1
    snapshot.metadata.conf_state.voters.extend((7, 8))
    entries = tuple(raftpb.Entry(Index=index, Term=2, Data=b"entry %d" % index * 9) for index in range(6, 12))
    disk.save(Persist(1, raftpb.HardState(term=2, vote=7, commit=9), entries, snapshot))
    disk.put_blob("key", b"blob", lambda error: None)
    loaded = disk.load()
    disk.close()
    loop.close()
    return path.read_bytes(), mark_of(path).read_bytes(), loaded


def _journal(directory: Path) -> tuple[bytes, dict[str, bytes]]:
    path = directory / "tasks.db"
    journal = TaskJournal(path)
    records = {f"t{number}": api.Task(id=f"t{number}").SerializeToString() * 30 for number in range(9)}
    journal.submit(records)
    found = journal.load()
    journal.close()
    assert found == records
    return path.read_bytes(), records


def _key_files(directory: Path, kek: Kek) -> dict[str, bytes]:
    store = KeyStore(directory)
    own = ROOT.sign(new_csr(KEY), "n1", "swarm-manager", "c1", NOW, 0.0)
    store.save_root(ROOT.bundle_pem)
    store.save(Credentials(own, private_key_pem(KEY)), kek)
    store.save_raft_keys(RaftKeys(KEYS[1], KEYS[2], needs_rotation=True))
    return {name: (directory / name).read_bytes() for name in (ROOT_FILE, CERTIFICATE_FILE, KEY_FILE)}


def spoiled(feed: Feed, data: bytes, small: bool = False) -> bytes:
    """The bytes with a few places changed, or cut."""
    out = bytearray(data)
    for _ in range(1 + feed.byte() % 4):
        place = feed.below(65_536) * (1 if small else 1 + feed.byte() % 2) % max(1, len(out))
        how = feed.byte()
        if how < 160:
            out[place : place + 1] = bytes((feed.byte(),))
        elif how < 220:
            new = feed.some()
            out[place : place + len(new)] = new
        elif how < 240 and small:
            out[place : place + feed.byte()] = feed.some()
        elif how < 248:
            out[place : place + 512] = bytes(512)
        else:
            del out[place:]
    return bytes(out)


def one(data: bytes) -> None:
    """The whole of one input."""
    feed = Feed(data)
    kind = feed.below(8)
    if kind == 0:
        records(feed)
    elif kind == 1:
        state(feed)
    elif kind < 4:
        key_files(feed)
    else:
        directory = Path(tempfile.mkdtemp(dir=BACKED))
        try:
            databases(feed, directory, kind)
        finally:
            shutil.rmtree(directory)


def records(feed: Feed) -> None:
    """One record: sealed for one place, read at another, damaged."""
    place, other = feed.choice(PLACES).encode(), feed.choice(PLACES).encode()
    sealer = _sealer() if feed.flag() else None
    plain = feed.some()
    record = encode(plain, place, sealer)
    assert decode(record, place, _sealer()) == plain
    damaged = spoiled(feed, record, small=True)
    try:
        got = decode(damaged, other, _sealer() if feed.flag() else None)
    except (RecordCorrupt, RecordLocked):
        return
    assert damaged[:1] == b"\0" or (got, other) == (plain, place)


def state(feed: Feed) -> None:
    """state.json."""
    text = spoiled(feed, _STATE.to_json().encode(), small=True) if feed.byte() < 200 else feed.rest()
    try:
        read = NodeState.from_json(text.decode("utf-8", "replace"))
    except StateDamaged:
        return
    assert NodeState.from_json(read.to_json()) == read
    assert isinstance(read.listen_port, int)
    assert all(isinstance(part, str) for manager in read.managers for part in manager)
    read.other_managers()


def key_files(feed: Feed) -> None:
    """Root, certificate and key of a node, locked or not."""
    locked = feed.flag()
    files = dict(_LOCKED if locked else _OPEN)
    directory = Path(tempfile.mkdtemp(dir=BACKED))
    try:
        victim = feed.choice((KEY_FILE, KEY_FILE, CERTIFICATE_FILE, ROOT_FILE, f".{CERTIFICATE_FILE}"))
        files[victim] = (
            spoiled(feed, files.get(victim, files[CERTIFICATE_FILE]), small=True) if feed.byte() < 240 else feed.rest()
        )
        for name, content in files.items():
            (directory / name).write_bytes(content)
        store = KeyStore(directory)
        store.load_root()
        try:
            store.load(UNLOCK_KEY if locked and feed.byte() < 200 else b"")
            if store.raft_keys is not None:
                sealer_of(store.raft_keys, Random(1))
        except CertsError:
            return
    finally:
        shutil.rmtree(directory)


def databases(feed: Feed, directory: Path, kind: int) -> None:
    """The log and the journal."""
    sealed = bool(kind & 1)
    image, mark, written = _SEALED if sealed else _PLAIN
    try:
        if kind < 6:
            path = directory / "raft.db"
            path.write_bytes(spoiled(feed, image))
            mark_of(path).write_bytes(mark)
            disk = RaftDisk(path, _sealer() if sealed else None, call_soon=lambda callback: None)
            try:
                assert disk.load() == written
            finally:
                disk.close()
        else:
            path = directory / "tasks.db"
            path.write_bytes(spoiled(feed, _TASKS[0]))
            journal = TaskJournal(path)
            try:
                found = journal.load()
            finally:
                journal.close()
            assert all(_TASKS[1].get(task_id) == record for task_id, record in found.items())
            Worker(Random(1), found)
    except DiskError as error:
        fault = error
    else:
        return
    assert Code(fault.code) is not Code.INTERNAL, fault
    assert str(path) in str(fault)


_STATE = NodeState(
    "n1", "c1", "0.0.0.0", 2377, "10.0.0.1", 2377, "", managers=(("n2", "10.0.0.2:2377"),), past_raft_ids=(3,)
)
with tempfile.TemporaryDirectory(dir=BACKED) as _scratch:
    for _name in ("plain", "sealed", "tasks", "open", "locked"):
        Path(_scratch, _name).mkdir()
    _PLAIN = _written(Path(_scratch, "plain"), None)
    _SEALED = _written(Path(_scratch, "sealed"), _sealer())
    _TASKS = _journal(Path(_scratch, "tasks"))
    _OPEN = _key_files(Path(_scratch, "open"), Kek())
    _LOCKED = _key_files(Path(_scratch, "locked"), Kek(UNLOCK_KEY, 3))


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    return [
        bytes((kind, place & 1, place % 5, 0, place * 8, place, 10, 65, 0, 0))
        for kind in range(8)
        for place in range(30)
    ]
