"""Autolock on real files: performs what the machine (swarm/node/autolock.py) decides, with key store and Raft log.

Theory of operation. The log is written anew and the key file replaced in one step (swarm/io/disk/replaced_file.py): the
key file is the commit. recover() finishes or forgets what a crash interrupted, before the log is opened. So it does
before the key file changes while no manager runs; the log of a running manager settles itself. Everything that writes
the key file holds ``writing``, and the machine learns what the file holds each time that it is asked.

(swarmkit: manager/deks.go, manager/manager.go updateKEK)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

import structlog

from certs import files
from certs.errors import CertsError
from certs.files import SYSTEM, Files
from certs.keystore import Kek, KeyStore, RaftKeys
from certs.tls import Credentials
from swarm import api, defaults
from swarm.errors import FailedPrecondition, SwarmError, Unavailable
from swarm.io.disk import replaced_file
from swarm.node import autolock
from swarm.node.autolock_events import (
    CertificateIssued,
    CertificateSaved,
    ClusterChanged,
    Done,
    Event,
    Failed,
    KeysFound,
    LogReady,
    ManagerDown,
    ManagerUp,
    Operation,
    PrepareLog,
    Refused,
    RenewCertificate,
    Reseal,
    RotateKek,
    SaveCertificate,
    SaveRaftKeys,
    Settle,
)
from swarm.raft.records import AesGcmSealer, Sealer
from swarm.store.store import Change, Store

log = structlog.get_logger()

FAILURES = (SwarmError, CertsError, OSError)  # of an operation; anything else is a bug
_OF_THE_CALLER = Credentials(b"", b"")  # a certificate that the caller of take() writes by itself


class SealedLog(Protocol):
    """What is used of swarm.io.disk.raft_disk.RaftDisk. plain: whether something in it can be read without a key."""

    plain: bool

    def reseal(self, sealer: Sealer, commit: Callable[[], None], committed: Callable[[], bool]) -> None:
        """See RaftDisk."""
        ...

    def settle(self) -> None:
        """See RaftDisk."""
        ...


class LockedManager(Protocol):
    """What is used of swarm.io.node.manager_process.ManagerProcess."""

    @property
    def disk(self) -> SealedLog:
        """Of Raft."""
        ...

    store: Store
    watchers: list[Callable[[Sequence[Change]], None]]


class Autolock:
    """Drives the machine of one node. ``writing`` is held by whoever changes the key file."""

    def __init__(
        self, keys: KeyStore, log_file: Path, rng: Random, on_locked: Callable[[], None], disk: Files = SYSTEM
    ) -> None:
        """log_file: of Raft. rng: for keys and nonces. on_locked: the key was in the clear until now."""
        self._files = disk
        self.writing = asyncio.Lock()
        self._keys = keys
        self._log_file = log_file
        self._rng = rng
        self._on_locked = on_locked
        self._machine = autolock.Autolock(rng)
        self._manager: LockedManager | None = None
        self._news: deque[Event] = deque()
        self._wake = asyncio.Event()

    @property
    def trouble(self) -> str:
        """Why the disk is not yet as the cluster wants it; empty otherwise."""
        return self._machine.trouble

    def recover(self, locked: bool) -> None:
        """See recover(), for this node's log; what the key file says must not be undone by a loss of power after it."""
        if files.exists(self._keys.directory):
            files.settle(self._keys.directory, self._files)
            recover(self._log_file, locked, self._files)

    async def sealer(self) -> Sealer | None:
        """For the log of a manager that is about to start; makes its data key if there must be one. Raises OSError."""
        async with self.writing:
            await self._settle_files()
            await self._settle(PrepareLog(files.exists(self._log_file)))
        keys = self._machine.raft_keys
        return sealer_of(keys, self._rng) if keys is not None else None

    def attach(self, manager: LockedManager | None) -> None:
        """Follow the cluster as this manager knows it; None: this node is no manager any more."""
        self._manager = manager
        self._news.append(ManagerDown() if manager is None else ManagerUp(manager.disk.plain))
        if manager is not None:
            manager.watchers.append(self._changed)
        self._wake.set()

    def _changed(self, changes: Sequence[Change]) -> None:
        """Without any change a snapshot took the place of everything."""
        if not changes or any(change.kind == "cluster" for change in changes):
            self._wake.set()

    async def run(self) -> None:
        """Keep the disk as the cluster wants it. Ends by cancellation."""
        while True:
            deadline = self._machine.deadline()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._wake.wait()
            self._wake.clear()
            async with self.writing:
                await self.follow()

    async def follow(self) -> None:
        """One look at the cluster, and what follows from it; ``writing`` is held."""
        cluster = next(self._manager.store.all(api.Cluster), None) if self._manager is not None else None
        await self._settle(ClusterChanged(cluster) if cluster is not None else None)

    async def take(self, kek: Kek) -> None:
        """Encrypt by this KEK if it is newer, before the caller writes a new manager's certificate.

        ``writing`` is held. Raises DiskError, CertsError, OSError.
        """
        try:
            await self._settle(CertificateIssued(_OF_THE_CALLER, kek, manager=True))
        finally:
            self._wake.set()  # a failure is tried again, whoever asked

    # --- the machine -----------------------------------------------------------------------------------------------

    async def _settle(self, event: Event | None) -> None:
        """Hand over what happened and perform what comes of it. Raises what made the disk refuse the request."""
        before = self.trouble
        failure: Exception | None = None
        refusal: Exception | None = None
        events = deque[Event | None]((self._found(), *self._news, event))
        self._news.clear()
        while events:
            for effect in self._machine.handle(events.popleft(), asyncio.get_running_loop().time()):
                match effect:
                    case RotateKek() | Reseal() | SaveRaftKeys() | SaveCertificate() | Settle():
                        report, failure = await self._perform(effect)
                        events.append(report)
                    case RenewCertificate():
                        self._on_locked()
                    case Refused():
                        refusal = failure
                    case LogReady() | CertificateSaved():
                        pass
        if self.trouble and self.trouble != before:
            log.error("autolock.failed", error=self.trouble, retry_s=defaults.DISK_RETRY_S)
        if refusal is not None:
            raise refusal

    def _found(self) -> KeysFound:
        return KeysFound(self._keys.kek, self._keys.raft_keys, self._keys.settled)

    async def _settle_files(self) -> None:
        """Nothing of an earlier change is in doubt or half done after that. Raises OSError, DiskError."""
        await asyncio.to_thread(self._keys.settle)
        if self._manager is not None:
            await asyncio.to_thread(self._manager.disk.settle)
        else:
            await asyncio.to_thread(self.recover, bool(self._keys.kek.key))

    async def _perform(self, operation: Operation) -> tuple[Done | Failed, Exception | None]:
        try:
            await self._settle_files()
            if isinstance(operation, SaveCertificate):  # the caller of take() writes it
                await asyncio.to_thread(self._keys.rotate_kek, operation.kek)
            else:
                await perform(operation, self._keys, self._manager, self._rng)
            return Done(self._keys.kek, self._keys.raft_keys, self._keys.settled), None
        except FAILURES as error:
            return Failed(str(error), self._keys.settled), error
        except BaseException:
            self._machine.handle(Failed("interrupted", settled=False), asyncio.get_running_loop().time())
            raise


async def perform(operation: Operation, keys: KeyStore, manager: LockedManager | None, rng: Random) -> Done:
    """Do it in threads. Raises one of FAILURES; keys.settled tells whether the disk is in doubt. rng: for nonces."""
    match operation:
        case RotateKek(kek, raft_keys):
            await asyncio.to_thread(keys.rotate_kek, kek, raft_keys)
            log.info("autolock.followed", locked=bool(kek.key), version=kek.version)
        case Reseal():
            if manager is None:
                raise Unavailable("the manager of this node does not run any more")
            both = partial(commit, keys, operation), partial(committed, keys, operation)
            await asyncio.to_thread(manager.disk.reseal, sealer_of(operation.raft_keys, rng), *both)
            log.info("autolock.resealed", locked=True, version=keys.kek.version)
        case SaveRaftKeys(raft_keys):
            await asyncio.to_thread(keys.save_raft_keys, raft_keys)
        case SaveCertificate(credentials, kek, raft_keys):
            await asyncio.to_thread(keys.save, credentials, kek, raft_keys is None)
        case Settle():
            await asyncio.to_thread(keys.settle)
    return Done(keys.kek, keys.raft_keys, keys.settled)


def recover(log_file: Path, locked: bool, disk: Files = SYSTEM) -> None:
    """Finish or forget what a crash interrupted; before the log is opened. Blocks. Raises OSError.

    log_file: of Raft. locked: whether the key file is encrypted, as it was found.
    """
    if locked:
        replaced_file.adopt(log_file, disk)
    else:
        replaced_file.discard(log_file, disk)


def sealer_of(keys: RaftKeys, rng: Random) -> Sealer:
    """Seals with the pending key if there is one, opens with both. A record names its key by a digest of it."""
    known = {_name(key): key for key in (keys.current, keys.pending) if key}
    return AesGcmSealer(known, _name(keys.pending or keys.current), rng)


def _name(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(b"name of a raft data key" + key).digest()[:4], "big")


def commit(keys: KeyStore, reseal: Reseal) -> None:
    """Replace the key file: the log that was written anew counts from then on."""
    if reseal.kek is None:
        keys.save_raft_keys(reseal.raft_keys)
    elif not keys.rotate_kek(reseal.kek, reseal.raft_keys):  # a change that does not happen would lose the log's key
        raise FailedPrecondition("the key file did not take the cluster's key")


def committed(keys: KeyStore, reseal: Reseal) -> bool:
    """Whether the key file has these keys, durably. Raises OSError while that cannot be told."""
    keys.settle()
    return keys.raft_keys == reseal.raft_keys and (reseal.kek is None or keys.kek.key == reseal.kek.key)
