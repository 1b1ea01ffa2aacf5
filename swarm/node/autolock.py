"""The decisions of autolock: a manager's key file and log follow what the cluster says.

Theory of operation. The cluster object holds the unlock key; it is the key encryption key (KEK) of every manager's key
file, and in that file's headers is the data key, this manager's own, with which its log is sealed.

    never locked --lock--> locked --off--> unlocked, log still sealed --lock--> locked, with another data key

The newest version of the cluster object wins. What was on disk in the clear is not to be trusted any more when the lock
goes on. Therefore the log is written anew with a new data key, and this together with the locking of the key file is
one step: the key file is the commit point, so a crash leaves a manager that is unlocked and has its old log, or one
that is locked and has the sealed log. The node's certificate is renewed as well, with a new key.

A key file can also become locked while its manager does not run: a new certificate brings the KEK along. Then a data
key that was in the clear is marked (needs_rotation), and a manager that finds itself locked with a data key that is
missing or marked makes up for it. The next data key is *pending* in the key file before anything is sealed with it:

    marked --SaveRaftKeys--> pending --Reseal--> sealed by the new key alone

A pending key that this run did not make may have been in the clear, too. Then the log is sealed with it first, and
once more with another one.

An error at the commit point is no answer: the new key file may be there. Then nothing else is begun before Settle has
told what it holds. A locked manager whose log still shows something in the clear, whatever led to that, seals it anew.

The machine is level-triggered: after each event it compares the key file with what is wanted and starts at most one
operation. What is on disk is all that a crash leaves, and it is enough to go on from.

(swarmkit: manager/deks.go, manager/manager.go updateKEK)
"""

from __future__ import annotations

from collections import deque
from random import Random

from certs.keys import MANAGER_ROLE
from certs.keystore import Kek, RaftKeys
from certs.tokens import UNLOCK_KEY_BYTES
from swarm import api, defaults
from swarm.errors import FailedPrecondition
from swarm.node.autolock_events import (
    CertificateIssued,
    CertificateSaved,
    ClusterChanged,
    Done,
    Effect,
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
    Request,
    Reseal,
    RotateKek,
    SaveCertificate,
    SaveRaftKeys,
    Settle,
)

_DATA_KEY_BYTES = 32


class Autolock:
    """A Machine: one node's lock. Made anew for each start of the node.

    kek and raft_keys: what the key file holds, as far as is known; kek None: there is no key file yet.
    """

    def __init__(self, rng: Random) -> None:
        """rng: for data keys; must be a SystemRandom outside tests."""
        self.kek: Kek | None = None
        self.raft_keys: RaftKeys | None = None
        self._rng = rng
        self._manager_runs = False
        self._settled = True
        self._log_plain = False  # something in the open log can be read without a key
        self._demoted = False  # a worker's certificate is in use; a manager that still runs is about to stop
        self._wanted: Kek | None = None  # the newest that the cluster was seen with
        self._requests: deque[Request] = deque()
        self._operation: Operation | None = None
        self._served: Request | None = None  # what the operation under way is for; None: to follow the cluster
        self._pending = b""  # the pending data key, if this run made it and it was never in the clear
        self._retry_at = 0.0
        self._cluster_error = ""
        self._disk_error = ""

    def handle(self, event: Event | None, now: float) -> list[Effect]:
        """Take one event; None means that the deadline passed."""
        effects: list[Effect] = []
        match event:
            case KeysFound(kek, raft_keys, settled):
                self._hold(kek, raft_keys, settled)
            case ManagerUp(plain):
                self._manager_runs, self._log_plain = True, plain
            case ManagerDown():
                self._manager_runs = self._log_plain = False
            case ClusterChanged(cluster):
                self._read(cluster)
            case PrepareLog() | CertificateIssued():
                self._requests.append(event)
            case Done():
                effects += self._done(event)
            case Failed():
                effects += self._failed(event, now)
            case None:
                pass
        if not self._is_behind():
            self._disk_error, self._retry_at = "", 0.0
        effects += self._proceed(now)
        return effects

    def deadline(self) -> float | None:
        """When to try again after a failure, in seconds since the epoch; None: nothing is to be tried again."""
        return self._retry_at if self._operation is None and self._is_behind() else None

    @property
    def trouble(self) -> str:
        """Why the disk is not yet as the cluster wants it; empty otherwise."""
        error = self._cluster_error or self._disk_error
        return f"autolock: the disk of this manager is not as it should be: {error}" if error else ""

    # --- what is known ---------------------------------------------------------------------------------------------

    def _hold(self, kek: Kek, raft_keys: RaftKeys | None, settled: bool) -> None:
        self.kek, self.raft_keys, self._settled = kek, raft_keys, settled
        if not kek.key:
            self._pending = b""

    def _read(self, cluster: api.Cluster) -> None:
        try:
            self._want(kek_of(cluster))
            self._cluster_error = ""
        except FailedPrecondition as error:
            self._cluster_error = str(error)

    def _want(self, kek: Kek) -> None:
        if self._wanted is None or kek.version > self._wanted.version:
            self._wanted = kek

    def _done(self, done: Done) -> list[Effect]:
        operation, self._operation = self._operation, None
        self._hold(done.kek, done.raft_keys, done.settled)
        if isinstance(operation, Reseal):
            self._log_plain = False
        if isinstance(operation, SaveRaftKeys):
            self._pending = operation.raft_keys.pending
        if isinstance(operation, Reseal) and operation.kek is not None:
            return [RenewCertificate()]
        if isinstance(operation, SaveCertificate):
            request = self._requests.popleft()
            assert isinstance(request, CertificateIssued)
            self._demoted = not request.manager
            return [CertificateSaved(request)]
        return []

    def _failed(self, failed: Failed, now: float) -> list[Effect]:
        self._operation, self._settled = None, failed.settled
        if self._is_behind():
            self._disk_error, self._retry_at = failed.error, now + defaults.DISK_RETRY_S
        if self._served is None:
            return []
        return [Refused(self._requests.popleft(), failed.error)]

    # --- what is to be done ----------------------------------------------------------------------------------------

    def _proceed(self, now: float) -> list[Effect]:
        """Start the next operation, and answer requests that need none. A request does not wait for a retry."""
        effects: list[Effect] = []
        while self._operation is None:
            request = self._requests[0] if self._requests else None
            if request is None and now < self._retry_at:
                break
            self._operation = self._next(request)
            if self._operation is not None:
                self._served = request
                effects.append(self._operation)
            elif isinstance(request, PrepareLog):
                self._requests.popleft()
                effects.append(LogReady(self.raft_keys))
            else:
                break
        return effects

    def _next(self, request: Request | None) -> Operation | None:
        if not self._settled:
            return Settle()
        match request:
            case PrepareLog(log_exists):
                return self._data_key(log_exists)
            case CertificateIssued():
                return self._certificate(request)
            case None:
                return self._follow() if self._is_behind() else None

    def _data_key(self, log_exists: bool) -> Operation | None:
        """A locked manager has a data key before it opens its log. One that has a log without it sealed nothing yet."""
        assert self.kek is not None, "a log needs a key file"
        if not self.kek.key or self.raft_keys is not None:
            return None
        return SaveRaftKeys(RaftKeys(self._fresh(), needs_rotation=log_exists))

    def _certificate(self, request: CertificateIssued) -> Operation:
        """The new private key is never on disk in the clear when the cluster is locked as far as is known."""
        if not request.manager:
            return SaveCertificate(request.credentials, Kek(), None)
        if self.kek is None:
            return SaveCertificate(request.credentials, request.kek, None)
        self._want(request.kek)
        if self._follows() and (self._is_locking() or self._is_data_key_bad()):
            return self._follow()
        kek, raft_keys = self._change() or self.kek, self.raft_keys
        if raft_keys is not None and self._is_locking():
            raft_keys = RaftKeys(raft_keys.current, raft_keys.pending, needs_rotation=True)
        return SaveCertificate(request.credentials, kek, raft_keys)

    def _follow(self) -> Operation:
        """One step towards what the cluster wants; something is to be done."""
        kek, keys = self._change(), self.raft_keys
        if kek is not None:
            return Reseal(RaftKeys(self._fresh()), kek) if self._is_locking() else RotateKek(kek, keys)
        if keys is None or not keys.pending:
            pending = self._fresh()
            return SaveRaftKeys(RaftKeys(keys.current if keys is not None else pending, pending, needs_rotation=True))
        return Reseal(RaftKeys(keys.pending, needs_rotation=keys.pending != self._pending))

    def _follows(self) -> bool:
        return self._manager_runs and not self._demoted

    def _is_behind(self) -> bool:
        """Whether the disk is in doubt, or not as the cluster wants it while a manager runs to change that."""
        return not self._settled or (self._follows() and (self._change() is not None or self._is_data_key_bad()))

    def _change(self) -> Kek | None:
        """The KEK that must replace the present one, if there is one. The same key in a newer version need not."""
        wanted, present = self._wanted, self.kek
        if wanted is None or present is None or wanted.key == present.key or wanted.version <= present.version:
            return None
        return wanted

    def _is_locking(self) -> bool:
        """Whether the change is from a key file in the clear to an encrypted one."""
        kek = self._change()
        return kek is not None and bool(kek.key) and self.kek is not None and not self.kek.key

    def _is_data_key_bad(self) -> bool:
        if self.kek is None or not self.kek.key:
            return False
        return self.raft_keys is None or self.raft_keys.needs_rotation or self._log_plain

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
