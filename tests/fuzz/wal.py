"""Fuzz target: the files of a manager's log as a crash left them: the database, sqlite's write-ahead log, the mark.

Checked: all that was confirmed is read, or an error says that it is not; no other exception, and files that are refused
are not changed. What can be salvaged of them is the beginning of what was written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import tempfile
from pathlib import Path

from swarm.api import raftpb
from swarm.errors import Code
from swarm.io.disk import wal
from swarm.io.disk.database import DiskCorrupt, DiskError
from swarm.io.disk.raft_disk import Loaded, RaftDisk
from swarm.raft.events import Persist
from tests.fuzz.feed import Feed

PAGE_BYTES = 512
FRAME_BYTES = wal.FRAME_HEADER_BYTES + PAGE_BYTES
BACKED = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
DATABASE, WAL, MARK = "raft.db", "raft.db-wal", "raft.db-mark"

Files = dict[str, bytes]


def one(data: bytes) -> None:
    """The whole of one input."""
    feed = Feed(data)
    confirmed = feed.below(len(_STATES))
    # the machine crashed before the last mark was on disk, or only the process did
    files = {**_FILES[-1], MARK: _FILES[confirmed][MARK]}
    forged = feed.byte() >= 200
    for _ in range(1 + feed.below(3)):
        name = feed.choice((WAL, WAL, WAL, DATABASE, MARK))
        files[name] = _spoiled(feed, files[name], name)
    if forged:
        files[WAL] = _resealed(files[WAL])
    gone = feed.byte()
    if gone >= 250:
        del files[(DATABASE, WAL, MARK)[gone % 3]]
    directory = Path(tempfile.mkdtemp(dir=BACKED))
    try:
        _check(directory, files, confirmed, forged)
    finally:
        shutil.rmtree(directory)


def _spoiled(feed: Feed, content: bytes, name: str) -> bytes:
    """With one place changed."""
    out = bytearray(content)
    at = feed.below(max(1, len(out)))
    how = feed.byte()
    if how < 100:
        if out:
            out[at] ^= 1 << how % 8
    elif how < 140:
        new = feed.some()
        out[at : at + len(new)] = new
    elif how < 170 and name == WAL:  # frames lost, zeroed, repeated or in another order
        frame, count, to = feed.below(80), 1 + feed.below(8), feed.below(80)
        block = _frame_at(out, frame, count) if how < 155 else bytes(count * FRAME_BYTES)
        start = wal.HEADER_BYTES + to * FRAME_BYTES
        out[start : start + len(block)] = block
    elif how < 190:
        out[at : at + 512] = bytes(512)
    elif how < 215:
        del out[at:]
    elif how < 235 and name != MARK:  # an older mark is what a crash of the machine may leave
        older = _FILES[feed.below(len(_FILES))].get(name, b"")
        out = bytearray(older)
    elif how < 245:
        out += bytes(1 + feed.below(2000))
    else:
        out = bytearray(feed.some())
    return bytes(out)


def _frame_at(content: bytearray, number: int, count: int) -> bytes:
    start = wal.HEADER_BYTES + number * FRAME_BYTES
    return bytes(content[start : start + count * FRAME_BYTES])


def _resealed(content: bytes) -> bytes:
    """With checksums that fit, as no failing disk makes them: only what the rows say counts then."""
    if len(content) < wal.HEADER_BYTES:
        return content
    order = ">" if content[3] & 1 else "<"
    page_bytes = struct.unpack_from(">I", content, 8)[0]
    total = wal.checksum(content[:24], order)
    out = [content[:24] + struct.pack(">2I", *total)]
    if page_bytes % 8 or not 512 <= page_bytes <= 65536:
        return content
    size = wal.FRAME_HEADER_BYTES + page_bytes
    for start in range(wal.HEADER_BYTES, len(content) - size + 1, size):
        head, page = content[start : start + 8] + content[16:24], content[start + 24 : start + size]
        total = wal.checksum(head[:8] + page, order, total)
        out.append(head + struct.pack(">2I", *total) + page)
    return b"".join(out)


def _check(directory: Path, files: Files, confirmed: int, forged: bool) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content)
    disk = RaftDisk(directory / DATABASE)
    fault: DiskError | None = None
    try:
        loaded = disk.load()
    except DiskError as error:
        fault = error
    finally:
        disk.close()
    if fault is None:
        assert forged or loaded in _STATES[confirmed:], "what was confirmed is there, and nothing that was not written"
        assert not forged or not loaded.entries or _is_beginning(loaded)
        return
    assert Code(fault.code) is not Code.INTERNAL, fault
    assert str(directory) in str(fault)
    if isinstance(fault, DiskCorrupt):
        _salvage(directory)


def _salvage(directory: Path) -> None:
    disk = RaftDisk(directory / DATABASE)
    loaded = Loaded()
    with contextlib.suppress(DiskError):
        loaded, _ = disk.salvage()
        assert _is_beginning(loaded)
    if loaded.raft_id:
        disk.start_over(loaded)
        assert disk.load() == loaded
    disk.close()


def _is_beginning(loaded: Loaded) -> bool:
    """Whether each entry was written, perhaps in an earlier version."""
    written = [entry for state in _STATES for entry in state.entries]
    return all(entry in written for entry in loaded.entries)


def _written(directory: Path) -> tuple[list[Files], list[Loaded]]:
    """Files and content after each of some writes, of which the last ones are only in the write-ahead log."""
    with sqlite3.connect(directory / DATABASE) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("VACUUM")
    connection.close()
    disk = RaftDisk(directory / DATABASE)
    disk.load()
    disk.initialize(7, "n1", "c1")
    disk.save(Persist(1, raftpb.HardState(term=1, vote=7, commit=2), _entries(1, 6, 1)))
    disk.close()
    disk = RaftDisk(directory / DATABASE)
    disk.load()
    snapshot = raftpb.Snapshot(data=b"snapshot" * 20)
    snapshot.metadata.index, snapshot.metadata.term = 3, 1
    snapshot.metadata.conf_state.voters.extend((7, 8))
    writes = [
        Persist(2, raftpb.HardState(term=2, vote=8, commit=4), _entries(6, 9, 2)),
        Persist(3, None, (), snapshot, compact_to=2),
        Persist(4, raftpb.HardState(term=4, vote=7, commit=6), _entries(8, 10, 4)),
        Persist(5, None, _entries(10, 11, 4)),
        Persist(6, raftpb.HardState(term=5, vote=0, commit=9)),
        Persist(7, raftpb.HardState(term=5, vote=7, commit=9), _entries(11, 14, 5)),
    ]
    files, states = [_files(directory)], [disk.load()]
    for write in writes:
        disk.save(write)
        files.append(_files(directory))
        states.append(disk.load())
    disk.close()
    return files, states


def _entries(first: int, end: int, term: int) -> tuple[raftpb.Entry, ...]:
    return tuple(
        raftpb.Entry(Index=index, Term=term, Data=b"%d %d " % (term, index) * 9) for index in range(first, end)
    )


def _files(directory: Path) -> Files:
    found = {name: (directory / name).read_bytes() for name in (DATABASE, WAL, MARK)}
    frames = -(-(len(found[WAL].rstrip(b"\0")) - wal.HEADER_BYTES) // FRAME_BYTES)
    return {**found, WAL: found[WAL][: wal.HEADER_BYTES + frames * FRAME_BYTES]}


with tempfile.TemporaryDirectory(dir=BACKED) as _scratch:
    _FILES, _STATES = _written(Path(_scratch))


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    kinds = (0, 110, 145, 160, 180, 200, 220, 240, 250)
    last = len(_STATES) - 1
    return [
        bytes((confirmed, forged, 0, file, place >> 8, place & 255, how, 3, 2, 5, 0))
        for confirmed, forged in ((last, 0), (last - 1, 0), (0, 255))
        for file in (0, 3, 4)
        for place in (4, 40, 700, 5000)
        for how in kinds
    ]
