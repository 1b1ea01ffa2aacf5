"""A manager's disk under lock and key: its key file and its log follow what the cluster says of autolock.

Theory of operation. The cluster object holds the unlock key; it is the key encryption key (KEK) of every manager's key
file, and in that file's headers is the data key, this manager's own, with which its log is sealed.

    never locked --lock--> locked --off--> unlocked, log still sealed --lock--> locked, with another data key

Whenever the cluster object changes, the key file is compared with it and written anew: the newest version wins. What
was on disk in the clear is not to be trusted any more when the lock goes on. Therefore the log is written anew with a
new data key, and this together with the locking of the key file is one step (swarm/io/disk/replaced_file.py): the key
file is the commit, so a crash leaves a manager that is unlocked and has its old log, or one that is locked and has the
sealed log. A manager that finds itself locked with a data key that is missing or was once in the clear makes up for it:
there the next data key is *pending* in the key file before anything is sealed with it. The node's certificate is
renewed as well, with a new key.

(swarmkit: manager/deks.go, manager/manager.go updateKEK)
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

import structlog

from certs.errors import CertsError
from certs.keys import MANAGER_ROLE
from certs.keystore import Kek, KeyStore, RaftKeys
from certs.tokens import UNLOCK_KEY_BYTES
from swarm import api, defaults
from swarm.errors import FailedPrecondition, SwarmError
from swarm.io.disk import replaced_file
from swarm.raft.records import AesGcmSealer, Sealer
from swarm.store.store import Change, Store

log = structlog.get_logger()

_DATA_KEY_BYTES = 32


class LockedManager(Protocol):
    """What is used of swarm.io.node.manager_process.ManagerProcess."""

    store: Store
    watchers: list[Callable[[Sequence[Change]], None]]

    async def reseal(self, sealer: Sealer, commit: Callable[[], None]) -> None:
        """See RaftDisk.reseal."""
        ...


class Autolock:
    """One node's lock. ``writing`` is held by whoever changes the key file.

    trouble: why the disk is not yet as the cluster wants it; empty otherwise.
    """

    def __init__(self, keys: KeyStore, log_file: Path, rng: Random, on_locked: Callable[[], None]) -> None:
        """log_file: of Raft. rng: for keys and nonces. on_locked: the key was in the clear until now."""
        self.writing = asyncio.Lock()
        self.trouble = ""
        self._keys = keys
        self._log_file = log_file
        self._rng = rng
        self._on_locked = on_locked
        self._manager: LockedManager | None = None
        self._wake = asyncio.Event()

    # --- start -----------------------------------------------------------------------------------------------------

    def recover(self, locked: bool) -> None:
        """Finish or forget what a crash interrupted; before the log is opened. Blocks. Raises OSError.

        locked: whether the key file is, as it was found.
        """
        if locked:
            replaced_file.adopt(self._log_file)
        else:
            replaced_file.discard(self._log_file)

    async def sealer(self) -> Sealer | None:
        """For the log of a manager that is about to start; makes its data key if there must be one. Raises OSError."""
        async with self.writing:
            if self._keys.kek.key and self._keys.raft_keys is None:
                fresh = RaftKeys(self._fresh(), needs_rotation=self._log_file.exists())
                await asyncio.to_thread(self._keys.save_raft_keys, fresh)
        keys = self._keys.raft_keys
        return sealer_of(keys, self._rng) if keys is not None else None

    def attach(self, manager: LockedManager | None) -> None:
        """Follow the cluster as this manager knows it; None: this node is no manager any more."""
        self._manager = manager
        if manager is not None:
            manager.watchers.append(self._changed)
            self._wake.set()

    # --- following -------------------------------------------------------------------------------------------------

    def _changed(self, changes: Sequence[Change]) -> None:
        """Without any change a snapshot took the place of everything."""
        if not changes or any(change.kind == "cluster" for change in changes):
            self._wake.set()

    async def run(self) -> None:
        """Keep the disk as the cluster wants it. Ends by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                async with self.writing:
                    await self._follow()
                self.trouble = ""
            except (SwarmError, CertsError, OSError) as error:
                self.trouble = f"autolock: the disk of this manager is not as it should be: {error}"
                log.error("autolock.failed", error=str(error), retry_s=defaults.DISK_RETRY_S)
                await asyncio.sleep(defaults.DISK_RETRY_S)
                self._wake.set()

    async def _follow(self) -> None:
        if self._manager is None:
            return
        cluster = next(self._manager.store.all(api.Cluster), None)
        if cluster is not None:
            await self.take(kek_of(cluster))

    async def take(self, kek: Kek) -> None:
        """Encrypt by this KEK if it is newer; ``writing`` is held. Raises DiskError, CertsError, OSError."""
        keys, manager = self._keys, self._manager
        if kek.key != keys.kek.key and kek.version > keys.kek.version:
            locking = bool(kek.key) and not keys.kek.key
            if locking and manager is not None:
                fresh = RaftKeys(self._fresh())
                await manager.reseal(sealer_of(fresh, self._rng), lambda: _must(keys.rotate_kek(kek, fresh)))
            else:
                await asyncio.to_thread(keys.rotate_kek, kek)
            log.info("autolock.followed", locked=bool(kek.key), version=kek.version)
            if locking and manager is not None:
                self._on_locked()
        if keys.kek.key and manager is not None and (keys.raft_keys is None or keys.raft_keys.needs_rotation):
            await self._rotate_data_key(manager)

    async def _rotate_data_key(self, manager: LockedManager) -> None:
        """Seal everything with another data key while the key file is locked already."""
        old = self._keys.raft_keys
        pending = (old.pending if old is not None else b"") or self._fresh()
        both = RaftKeys(old.current if old is not None else pending, pending, needs_rotation=True)
        await asyncio.to_thread(self._keys.save_raft_keys, both)
        only = RaftKeys(pending)
        await manager.reseal(sealer_of(only, self._rng), lambda: self._keys.save_raft_keys(only))
        log.info("autolock.data_key_rotated")

    def _fresh(self) -> bytes:
        return self._rng.randbytes(_DATA_KEY_BYTES)


def kek_of(cluster: api.Cluster) -> Kek:
    """The KEK that the managers of this cluster encrypt by. Raises FailedPrecondition for one that cannot be."""
    key = b""
    if cluster.spec.encryption_config.auto_lock_managers:
        key = next((found.key for found in cluster.unlock_keys if found.subsystem == MANAGER_ROLE), b"")
    if len(key) not in (0, UNLOCK_KEY_BYTES):
        raise FailedPrecondition(f"the cluster's unlock key has {len(key)} bytes")
    return Kek(key, cluster.meta.version.index)


def sealer_of(keys: RaftKeys, rng: Random) -> Sealer:
    """Seals with the pending key if there is one, opens with both. A record names its key by a digest of it."""
    known = {_name(key): key for key in (keys.current, keys.pending) if key}
    return AesGcmSealer(known, _name(keys.pending or keys.current), rng)


def _name(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(b"name of a raft data key" + key).digest()[:4], "big")


def _must(happened: bool) -> None:
    """The key file was looked at under its lock: a change that does not happen would lose the log's key."""
    if not happened:
        raise FailedPrecondition("the key file did not take the cluster's key")
