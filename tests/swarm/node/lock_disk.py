"""A model of a node's key file and sealed log, for the decisions of autolock by themselves.

Key file and log change together as with swarm/io/disk/replaced_file.py: the rewritten log waits beside the old one, the
replacement of the key file is the commit, and then the rewritten log takes the old one's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from certs.errors import InvalidUnlockKey
from certs.keystore import Kek, RaftKeys
from swarm.errors import NodeLocked
from swarm.node.autolock_events import Done, Failed, Operation, Reseal, RotateKek, SaveCertificate, SaveRaftKeys, Settle
from tests.sim.raft_image import RaftImage

COMPLETE = 3  # steps that no operation has more of
_UNLOCKED = Kek()


@dataclass(frozen=True)
class KeyFile:
    """As KeyStore keeps it: the certificate, whose private key is encrypted by the KEK as the Raft keys are."""

    certificate_pem: bytes
    kek: Kek = _UNLOCKED
    raft_keys: RaftKeys | None = None

    @property
    def locked(self) -> bool:
        """Whether the unlock key is needed to read it."""
        return bool(self.kek.key)


@dataclass
class LockDisk:
    """What survives on one node of what autolock writes."""

    key_file: KeyFile | None = None
    raft: RaftImage = field(default_factory=RaftImage)

    @property
    def certificate_pem(self) -> bytes:
        """Of the key file; empty without one."""
        return self.key_file.certificate_pem if self.key_file is not None else b""

    def recover(self) -> None:
        """See swarm.io.node.autolock.recover: before anything else of a start."""
        if self.key_file is not None and self.key_file.locked:
            self.raft.adopt()
        else:
            self.raft.discard()

    def load(self, unlock_key: bytes = b"") -> KeyFile:
        """What the key file holds. Raises NodeLocked without the unlock key that is needed, InvalidUnlockKey."""
        assert self.key_file is not None, "this disk is no node's"
        if self.key_file.locked and not unlock_key:
            raise NodeLocked("the key of this node is encrypted")
        if self.key_file.locked and unlock_key != self.key_file.kek.key:
            raise InvalidUnlockKey
        return self.key_file

    def perform(self, operation: Operation) -> Done:
        """All of it, as swarm.io.node.autolock.perform does. Raises RecordLocked if the log cannot be read."""
        self.perform_until_killed(operation, COMPLETE)
        assert self.key_file is not None
        return Done(self.key_file.kek, self.key_file.raft_keys)

    def perform_until_killed(self, operation: Operation, steps: int) -> None:
        """The first ``steps`` changes of the disk, at most those that there are. Then the process must not go on."""
        for step in self._steps(operation)[:steps]:
            step()

    def fail(self, operation: Operation) -> Failed:
        """The disk is full: a rewritten log may have been begun, but nothing has changed."""
        if isinstance(operation, Reseal):
            self.raft.prepare(operation.raft_keys)
            self.raft.discard()
        return Failed("no space left on device")

    def _steps(self, operation: Operation) -> list[Callable[[], None]]:
        """What changes the disk, each step atomically; the last but adopt() is the commit."""
        old = self.key_file
        match operation:
            case Settle():
                return []
            case SaveCertificate(credentials, kek, raft_keys):
                return [partial(self._replace_key_file, KeyFile(credentials.certificate_pem, kek, raft_keys))]
            case _ if old is None:
                raise AssertionError(f"{operation} needs a key file")
            case RotateKek(kek, raft_keys):
                return [partial(self._replace_key_file, replace(old, kek=kek, raft_keys=raft_keys))]
            case SaveRaftKeys(raft_keys):
                return [partial(self._replace_key_file, replace(old, raft_keys=raft_keys))]
            case Reseal(raft_keys, kek):
                new = replace(old, kek=kek or old.kek, raft_keys=raft_keys)
                return [partial(self.raft.prepare, raft_keys), partial(self._replace_key_file, new), self.raft.adopt]

    def _replace_key_file(self, key_file: KeyFile) -> None:
        self.key_file = key_file
