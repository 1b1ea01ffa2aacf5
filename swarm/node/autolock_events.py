"""Events and effects of the Autolock machine (swarm/node/autolock.py).

RotateKek, Reseal, SaveRaftKeys and SaveCertificate are *operations*: each replaces the key file in one step. So is
Settle, which finds out what an error left of an earlier one. At most one is under way, and each is answered by Done or
Failed. PrepareLog and CertificateIssued are *requests*: each is
answered by LogReady or CertificateSaved, or by Refused. Requests are served in the order in which they come.

(swarmkit: manager/deks.go, manager/manager.go updateKEK, ca/keyreadwriter.go)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from certs.keystore import Kek, RaftKeys
from certs.tls import Credentials
from swarm import api

# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeysFound:
    """Event: what the key file holds, as far as is known. Without this event there is no key file yet.

    settled: whether that is certain, and survives a loss of power.
    """

    kek: Kek
    raft_keys: RaftKeys | None
    settled: bool = True


@dataclass(frozen=True, slots=True)
class ManagerUp:
    """Event: this node's manager runs, with an open log that Reseal can write anew.

    plain: whether something in the log could be read without a key.
    """

    plain: bool = False


@dataclass(frozen=True, slots=True)
class ManagerDown:
    """Event: no manager runs here any more. An operation that is under way must still be answered."""


@dataclass(frozen=True, slots=True)
class ClusterChanged:
    """Event: the cluster object as this node's manager knows it, after any change or when a snapshot replaced it."""

    cluster: api.Cluster


@dataclass(frozen=True, slots=True)
class PrepareLog:
    """Request: a manager is about to open its log. log_exists: there is one already."""

    log_exists: bool


@dataclass(frozen=True, slots=True)
class CertificateIssued:
    """Request: write this new certificate with its key. kek: the cluster's KEK that came with it.

    manager: whether the certificate is a manager's. A worker's key file is never encrypted and has no Raft keys.
    """

    credentials: Credentials
    kek: Kek
    manager: bool


@dataclass(frozen=True, slots=True)
class Done:
    """Event: the operation under way has succeeded; this is what the key file holds now. settled: see KeysFound."""

    kek: Kek
    raft_keys: RaftKeys | None
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """Event: the operation under way has failed.

    settled: whether nothing on the disk has changed; otherwise nobody knows before a Settle has succeeded.
    """

    error: str
    settled: bool = True


# --- operations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RotateKek:
    """Effect: encrypt the key file by this KEK from now on. raft_keys: those in it, which stay as they are."""

    kek: Kek
    raft_keys: RaftKeys | None


@dataclass(frozen=True, slots=True)
class Reseal:
    """Effect: write log and snapshots anew, sealed by these keys; then replace the key file, which is the commit point.

    kek: encrypt the key file by this KEK in the same step; None: the KEK stays.
    """

    raft_keys: RaftKeys
    kek: Kek | None = None


@dataclass(frozen=True, slots=True)
class SaveRaftKeys:
    """Effect: replace the Raft keys in the key file; the log stays as it is."""

    raft_keys: RaftKeys


@dataclass(frozen=True, slots=True)
class SaveCertificate:
    """Effect: replace certificate and key; the key file is encrypted by ``kek`` and holds these Raft keys afterwards.

    raft_keys None: the key file has none afterwards.
    """

    credentials: Credentials
    kek: Kek
    raft_keys: RaftKeys | None


@dataclass(frozen=True, slots=True)
class Settle:
    """Effect: find out what the key file holds after an error, and finish what was begun with it and the log."""


# --- other effects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RenewCertificate:
    """Effect: the node's private key was on disk in the clear until now, so ask for a new certificate.

    It is lost when the process dies first, as in swarmkit: then the certificate is renewed when its time comes.
    """


@dataclass(frozen=True, slots=True)
class LogReady:
    """Effect, answers PrepareLog: open the log with these keys; None: it is not sealed."""

    raft_keys: RaftKeys | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class CertificateSaved:
    """Effect, answers CertificateIssued: this certificate is on disk."""

    request: CertificateIssued


@dataclass(frozen=True, slots=True)
class Refused:
    """Effect: the disk failed while this request was served. It may be made again."""

    request: PrepareLog | CertificateIssued
    error: str


Request = PrepareLog | CertificateIssued
Event = KeysFound | ManagerUp | ManagerDown | ClusterChanged | Request | Done | Failed
Operation = RotateKek | Reseal | SaveRaftKeys | SaveCertificate | Settle
Effect = Operation | RenewCertificate | LogReady | CertificateSaved | Refused
