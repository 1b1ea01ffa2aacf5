"""Performs what the production machine of autolock wants, on a simulated disk that may fail or be cut off halfway."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from certs.keystore import Kek, KeyStore, RaftKeys
from certs.tls import Credentials
from swarm import api
from swarm.io.node.autolock import FAILURES, commit, committed
from swarm.node import autolock_events as events
from swarm.node.autolock import Autolock
from swarm.node.events import RenewCertificateNow
from swarm.store.store import Change
from tests.sim.driver import Driver
from tests.sim.files import Killed
from tests.sim.kernel import Future

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.manager_driver import ManagerDriver
    from tests.sim.process import Process

STEPS_MAX = 9
"""No operation has more primitives."""


class KeyLock:
    """The lock of one node while its process runs (swarm.io.node.autolock.Autolock)."""

    def __init__(self, process: Process, keys: KeyStore) -> None:
        self.machine = Autolock(process.random("lock"))
        self.driver: Driver[events.Event, events.Effect] = Driver(
            process, "lock", self.machine, self._perform, lambda: None
        )
        self._process = process
        self._keys = keys
        self._manager: ManagerDriver | None = None
        self._log: Future | None = None
        self._certificate: Future | None = None
        self._under_way: events.Operation | None = None
        self.driver.start()

    @property
    def at_rest(self) -> bool:
        """Whether nothing is being done, and nothing remains to be done."""
        return self._under_way is None and self.machine.deadline() is None

    # --- what the process asks -------------------------------------------------------------------------------------

    def recover(self, locked: bool) -> None:
        """See swarm.io.node.autolock.recover: before anything else of a start."""
        raft = self._process.disk.raft
        raft.adopt() if locked else raft.discard()

    def found(self) -> None:
        """The key file was read or written."""
        self.driver.put(events.KeysFound(self._keys.kek, self._keys.raft_keys, self._keys.settled))

    async def prepare_log(self) -> RaftKeys | None:
        """The keys to open the log with. Raises OSError."""
        self._settle_files()
        self._log = Future()
        self.driver.put(events.PrepareLog(self._process.disk.raft.raft_id != 0))
        keys: RaftKeys | None = await self._log
        return keys

    async def save(self, credentials: Credentials, kek: Kek, manager: bool) -> None:
        """Write a new certificate. Raises OSError."""
        self._certificate = Future()
        self.driver.put(events.CertificateIssued(credentials, kek, manager))
        await self._certificate

    def attach(self, manager: ManagerDriver | None) -> None:
        """Follow the cluster as this manager knows it; None: no manager runs any more."""
        self._manager = manager
        self.driver.put(events.ManagerDown() if manager is None else events.ManagerUp(self._process.disk.raft.plain))
        if manager is not None:
            manager.watchers.append(self._changed)
            self._changed(())

    def die(self) -> None:
        """The process is killed, perhaps in the middle of an operation."""
        self.driver.close()
        operation, self._under_way = self._under_way, None
        if operation is not None:
            self._process.disk.files.kill_in = self._process.kernel.rng.randint(0, STEPS_MAX)
            with contextlib.suppress(Killed, *FAILURES):
                self._do(operation)

    # --- performing ------------------------------------------------------------------------------------------------

    def _changed(self, changes: Sequence[Change]) -> None:
        if self._manager is None or (changes and not any(change.kind == "cluster" for change in changes)):
            return
        cluster = next(self._manager.store.all(api.Cluster), None)
        if cluster is not None:
            self.driver.put(events.ClusterChanged(cluster))

    def _perform(self, effect: events.Effect) -> None:
        kernel = self._process.kernel
        match effect:
            case events.RenewCertificate():
                self._process.driver.put(RenewCertificateNow())
            case events.LogReady(raft_keys=raft_keys):
                assert self._log is not None
                self._log.resolve(raft_keys)
            case events.CertificateSaved():
                assert self._certificate is not None
                self._certificate.resolve()
            case events.Refused(request=request, error=error):
                future = self._log if isinstance(request, events.PrepareLog) else self._certificate
                assert future is not None
                future.fail(OSError(error))
            case _:
                if self._process.fate is not None:
                    self._process.fate.step()
                self._under_way = effect
                mean_s = self._process.world.disk_s(self._process.node)
                kernel.at(kernel.rng.expovariate(1 / mean_s), lambda: self._performed(effect))

    def _performed(self, operation: events.Operation) -> None:
        if self.driver.closed:
            return
        self._under_way = None
        outcome: events.Done | events.Failed
        try:
            self._do(operation)
        except FAILURES as error:
            outcome = events.Failed(str(error), self._keys.settled)
        except Killed:
            return
        else:
            outcome = events.Done(self._keys.kek, self._keys.raft_keys, self._keys.settled)
        failure = outcome.error if isinstance(outcome, events.Failed) else ""
        self._process.kernel.say(self._process.name, type(operation).__name__, failure)
        self.driver.put(outcome)
        self.found()

    def _do(self, operation: events.Operation) -> None:
        """See swarm.io.node.autolock.perform, and RaftDisk.reseal. Raises one of FAILURES."""
        self._settle_files()
        match operation:
            case events.RotateKek(kek, raft_keys):
                self._keys.rotate_kek(kek, raft_keys)
            case events.Reseal():
                self._reseal(operation)
            case events.SaveRaftKeys(raft_keys):
                self._keys.save_raft_keys(raft_keys)
            case events.SaveCertificate(credentials, kek, raft_keys):
                self._keys.save(credentials, kek, raft_keys is None)

            case events.Settle():
                self._keys.settle()

    def _settle_files(self) -> None:
        """See swarm.io.node.autolock.Autolock."""
        self._keys.settle()
        if self._manager is not None:
            self._process.disk.raft.settle()
        else:
            self.recover(bool(self._keys.kek.key))

    def _reseal(self, operation: events.Reseal) -> None:
        """See swarm.io.disk.database.File: whatever comes of the commit, the key file says which log counts."""
        disk = self._process.disk
        disk.write_beside(operation.raft_keys)
        disk.raft.undecided = partial(committed, self._keys, operation)
        commit(self._keys, operation)
        disk.raft.settle()
