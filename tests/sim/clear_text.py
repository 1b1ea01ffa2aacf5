"""What can be read on the simulated disks without a key, and must not be: payloads, keys of managers, unlock keys.

The bytes of every file are looked at, also of those that wait or were given up, and every record of a log that is not
sealed. A node that runs no manager never has a payload on its disk. While the cluster is locked no manager has one,
once its lock is at rest.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from swarm import api
from swarm.node.autolock import kek_of
from swarm.store.store import Store
from tests.sim.world import Node, World

PAYLOAD = b"payload of "
"""All payloads begin with it (workload.py)."""
_KEYS = (b"-----BEGIN PRIVATE KEY-----", b"-----BEGIN EC PRIVATE KEY-----")
_LOOK_S = 5.0
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}")

File = tuple[str, bytes]


def watch(world: World) -> None:
    """While things go wrong, look again and again."""
    if world.faulty:
        found = clear_text(world)
        assert not found, "; ".join(found)
        world.kernel.at(_LOOK_S, lambda: watch(world))


def clear_text(world: World) -> list[str]:
    """What is wrong, for the newest store; nothing while nobody leads."""
    leader = world.leader()
    cluster = next(leader.manager.store.all(api.Cluster), None) if leader is not None and leader.manager else None
    if cluster is None:
        return []
    out = []
    for node in world.nodes:
        files = _files(node)
        out += [f"{node.name} has an unlock key in {name}" for name in _holding(files, world.checkers.unlock_keys)]
        if kek_of(cluster).key and _is_locked(node, kek_of(cluster).key):
            readable = [*files, ("raft.db", node.disk.raft.in_clear())]
            out += [f"{node.name} is locked and has a payload in {name}" for name in _holding(readable, [PAYLOAD])]
            out += [f"{node.name} is locked and has a key in {name}" for name in _holding(readable, _secret_keys(node))]
        elif not node.disk.raft.raft_id:
            out += [f"{node.name} has a payload in {name}" for name in _holding(files, [PAYLOAD])]
    return out


def _is_locked(node: Node, kek: bytes) -> bool:
    """Whether its lock follows the cluster, and has nothing to do any more."""
    process = node.process
    if process is None or not process.alive or node.manager is None or node.disk.raft.undecided is not None:
        return False
    keys = process.credentials.keys
    return _kek(node.manager.store) == kek == keys.kek.key and keys.settled and process.credentials.lock.at_rest


def _kek(store: Store) -> bytes:
    cluster = next(store.all(api.Cluster), None)
    return kek_of(cluster).key if cluster is not None else b""


def _secret_keys(node: Node) -> list[bytes]:
    """In any form in which files may hold them."""
    assert node.process is not None
    keys = node.process.credentials.keys.raft_keys
    return [*_KEYS, *(key for key in (keys.current, keys.pending) if key)] if keys is not None else list(_KEYS)


def _files(node: Node) -> list[File]:
    """All small files and the journal, with what they hold in base64."""
    found = [(path.name, path.read_bytes()) for path in node.disk.files.paths()]
    journal = ("tasks.db", b"\n".join(node.disk.journal.values()))
    return [*((name, b"\n".join((content, *_decoded(content)))) for name, content in found), journal]


def _decoded(content: bytes) -> list[bytes]:
    out = []
    for text in _BASE64.findall(content):
        try:
            out.append(base64.b64decode(text, validate=True))
        except binascii.Error:
            continue
    return out


def _holding(files: Iterable[File], needles: Iterable[bytes]) -> list[str]:
    """The files that contain one of them."""
    return [name for name, content in files if any(needle in content for needle in needles)]
