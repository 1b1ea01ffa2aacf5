"""The certificate and the roots of one node: when the next one is asked for, and what managers say of both.

The agent's session brings what managers want: another root, another role, a new certificate. A new root is trusted
when the certificate in use verifies under it, and used when it is on disk.

(swarmkit: node/node.go superviseManager and handleSessionMessage, ca/renewer.go)
"""

from __future__ import annotations

from functools import partial
from random import Random

import structlog

from certs.errors import CertsError
from certs.keys import identity_of
from certs.renewal import Event as RenewalEvent
from certs.renewal import Failed as RenewalFailed
from certs.renewal import Renewal, Renewed, RenewNow, RightRole
from certs.root import RootCA
from swarm import api
from swarm.agent.events import SessionUpdate
from swarm.node import own_certificate
from swarm.node.events import Done, Failed, Identity, RenewCertificate, SaveRoot
from swarm.node.outbox import Outbox
from swarm.node.record import Record
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE

log = structlog.get_logger()


class Certificates:
    """See the module. trouble: why managers do not accept this node, if that is a matter of its certificate or clock.

    changed: there is another certificate or root since somebody last looked, and reset it.
    """

    def __init__(self, record: Record, out: Outbox, rng: Random) -> None:
        self.trouble = ""
        self.changed = False
        self._record = record
        self._out = out
        self._rng = rng
        self._renewal: Renewal | None = None
        self._saving_root = b""
        self._wanted_early = False

    # --- life ------------------------------------------------------------------------------------------------------

    def adopt(self, identity: Identity) -> None:
        """Be who this certificate says from now on."""
        self._record.identity = identity
        self._record.role = identity_of(identity.certificate_pem).role
        self.changed = True

    def start(self) -> None:
        """Renew the certificate from now on."""
        assert self._record.identity is not None
        self._renewal = Renewal(*own_certificate.validity(self._record.identity.certificate_pem), self._rng)
        if self._wanted_early:
            self.renew_now()

    def stop(self) -> None:
        """Renew nothing any more, and wait for nothing."""
        self._renewal, self._saving_root, self.trouble, self._wanted_early = None, b"", "", False

    def decide(self) -> None:
        """Ask for a certificate, if that is due."""
        if self._renewal is not None and (due := self._renewal.deadline()) is not None and due <= self._record.now:
            self._tell(None)

    def deadline(self) -> float | None:
        """When the next certificate is to be asked for."""
        return self._renewal.deadline() if self._renewal is not None else None

    # --- what managers say -----------------------------------------------------------------------------------------

    def renew_now(self, role: str = "") -> None:
        """Another certificate is wanted at once; role: the one it must have, empty for any."""
        self._wanted_early = self._renewal is None
        self._tell(RenewNow(role))

    def heard(self, update: SessionUpdate) -> None:
        """What the session brings."""
        identity = self._record.identity
        if update.root_ca and identity is not None and update.root_ca not in (identity.root_pem, self._saving_root):
            self._take_root(update.root_ca, identity)
        if update.node.role == update.node.spec.desired_role:
            wanted = MANAGER_ROLE if update.node.role == api.MANAGER else WORKER_ROLE
            self._tell(RenewNow(wanted) if wanted != self._record.role else RightRole())
        if update.node.certificate.status.state == api.IssuanceStatus.ROTATE:
            self._tell(RenewNow())

    def session_failed(self, error: str) -> None:
        """Managers refused this node, or it could not reach them."""
        if self._record.identity is not None:
            self.trouble = own_certificate.trouble(error, self._record.identity.certificate_pem, self._record.now)

    def accepted(self) -> None:
        """Managers accept this node."""
        self.trouble = ""

    def _take_root(self, root_pem: bytes, identity: Identity) -> None:
        """Trust a new root, if the certificate in use verifies under it (swarmkit: node.superviseManager)."""
        try:
            RootCA(root_pem, None).verify(identity.certificate_pem, self._record.now, allow_expired=True)
        except CertsError as error:
            log.warning("node.root_refused", error=str(error))
            return
        self._saving_root = root_pem
        self._out.perform(partial(SaveRoot, root_pem=root_pem), partial(self._root_saved, root_pem))

    def _root_saved(self, root_pem: bytes, outcome: Done | Failed) -> None:
        self._saving_root = b""
        if isinstance(outcome, Failed):
            log.error("node.not_saved", error=str(outcome.error))  # the next update brings it again
        elif self._record.identity is not None:
            self.adopt(Identity(self._record.identity.certificate_pem, root_pem))

    # --- renewal ---------------------------------------------------------------------------------------------------

    def _tell(self, event: RenewalEvent | None) -> None:
        """Hand an event to the renewal, and begin what it wants; before start() nothing is to be renewed."""
        if self._renewal is not None and self._renewal.handle(event, self._record.now):
            self._renew()

    def _renew(self) -> None:
        identity = self._record.identity
        assert identity is not None
        managers = tuple(self._record.remotes.managers())
        make = partial(RenewCertificate, managers=managers, root_pem=identity.root_pem)
        self._out.perform(make, partial(self._renewed, identity.root_pem))

    def _renewed(self, root_pem: bytes, outcome: Done | Failed) -> None:
        """root_pem: what was trusted when the certificate was asked for."""
        if isinstance(outcome, Failed):
            log.warning("certificate.not_renewed", error=str(outcome.error))
            self.session_failed(str(outcome.error))
            self._tell(RenewalFailed())
            return
        issued, present = outcome.value, self._record.identity
        assert isinstance(issued, Identity)
        assert present is not None
        replaced = issued.root_pem != root_pem
        # unless the managers replaced the root with it, a session may have brought another one meanwhile
        self.adopt(Identity(issued.certificate_pem, issued.root_pem if replaced else present.root_pem))
        valid_from_s, valid_until_s = own_certificate.validity(issued.certificate_pem)
        days = round((valid_until_s - self._record.now) / 86400, 2)
        log.info("certificate.renewed", role=self._record.role, days=days)
        self.trouble = ""
        self._tell(Renewed(valid_from_s, valid_until_s, self._record.role))
