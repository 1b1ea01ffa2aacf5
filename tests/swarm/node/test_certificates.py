"""The certificate, the roots and the description of a node, one rule each."""

from __future__ import annotations

import pytest

from certs.keys import identity_of
from certs.renewal import BACKOFF_MAX_S
from swarm import defaults
from swarm.agent.events import Described
from swarm.errors import Unavailable
from swarm.node import events
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE
from tests.conftest import Authority
from tests.swarm.node.daemon import OTHERS, Daemon, Disk, Issuer, worker_disk

FULL = OSError("no space left on device")
SOON_S = 1.0  # more than a certificate takes that managers want now


def worker(issuer: Issuer, disk: Disk | None = None) -> Daemon:
    daemon = Daemon(issuer, disk or worker_disk(issuer))
    daemon.boot()
    daemon.performed.clear()
    daemon.told.clear()
    return daemon


def trusted(daemon: Daemon) -> bytes:
    identity = daemon.node.record.identity
    assert identity is not None
    return identity.root_pem


def described(daemon: Daemon) -> list[bytes]:
    """The roots that the agent was told, in order."""
    return [event.description.tls_info.trust_root for event in daemon.told if isinstance(event, Described)]


# --- renewal -------------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_between_half_and_four_fifths_of_its_life(issuer: Issuer) -> None:
    lived_s, rest_s = 3600.0, 4 * 3600.0  # see Authority.issue
    disk = worker_disk(issuer)
    disk.certificate_pem = issuer.certificate(WORKER_ROLE, 0, rest_s)
    daemon = worker(issuer, disk)
    daemon.advance(0.5 * (lived_s + rest_s) - lived_s - 1.0)
    assert daemon.count(events.RenewCertificate) == 0
    daemon.advance(0.3 * (lived_s + rest_s) + 2.0)
    assert daemon.count(events.RenewCertificate) == 1
    renewal = next(effect for effect in daemon.performed if isinstance(effect, events.RenewCertificate))
    assert renewal.managers == OTHERS
    assert renewal.root_pem == issuer.authority.pem


def test_a_role_that_managers_want_is_asked_for_and_in_use_once_it_is_there(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.role = MANAGER_ROLE
    daemon.hold = (events.RenewCertificate,)
    daemon.hear(MANAGER_ROLE)
    daemon.advance(SOON_S)
    assert daemon.status.role == WORKER_ROLE
    daemon.perform_held()
    assert daemon.status.role == MANAGER_ROLE
    assert identity_of(daemon.disk.certificate_pem).role == MANAGER_ROLE


def test_a_role_that_is_only_desired_yet_changes_nothing(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.hear(WORKER_ROLE, wanted=MANAGER_ROLE)
    daemon.hear(MANAGER_ROLE, wanted=WORKER_ROLE)
    daemon.advance(60.0)
    assert daemon.count(events.RenewCertificate) == 0


def test_managers_may_want_another_certificate_of_the_same_role(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.hear(WORKER_ROLE, rotate=True)
    daemon.advance(SOON_S)
    assert daemon.count(events.RenewCertificate) == 1


def test_a_renewal_that_failed_is_tried_again_later(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.fail[events.RenewCertificate] = [Unavailable("nobody there")]
    daemon.put(events.RenewCertificateNow())
    daemon.advance(SOON_S)
    assert daemon.count(events.RenewCertificate) == 1
    assert daemon.status.certificate_trouble == "", "that has nothing to do with the certificate"
    daemon.advance(60.0)
    assert daemon.count(events.RenewCertificate) == 2


def test_the_status_says_that_an_expired_certificate_is_the_trouble_until_it_is_renewed(issuer: Issuer) -> None:
    disk = worker_disk(issuer)
    disk.certificate_pem = issuer.certificate(WORKER_ROLE, 0, 3600.0)
    daemon = worker(issuer, disk)
    daemon.fail[events.RenewCertificate] = [Unavailable("nobody there")] * 1000
    daemon.advance(3610.0)
    daemon.session("connection refused")
    assert "expired" in daemon.status.certificate_trouble
    assert daemon.status.trouble == daemon.status.certificate_trouble
    daemon.fail.clear()
    daemon.advance(BACKOFF_MAX_S)
    assert daemon.status.trouble == ""


def test_a_certificate_that_is_wanted_before_roles_run_is_asked_for_when_they_do(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.hold = (events.StartAgent,)
    daemon.boot()
    daemon.put(events.RenewCertificateNow())
    daemon.advance(60.0)
    assert daemon.count(events.RenewCertificate) == 0
    daemon.perform_held()
    daemon.advance(SOON_S)
    assert daemon.count(events.RenewCertificate) == 1
    daemon.advance(60.0)
    assert daemon.count(events.RenewCertificate) == 1


# --- roots ---------------------------------------------------------------------------------------------------------


def test_a_new_root_is_used_only_when_it_was_saved(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.hold = (events.SaveRoot,)
    daemon.hear(WORKER_ROLE, root_pem=issuer.bundle_pem)
    daemon.hear(WORKER_ROLE, root_pem=issuer.bundle_pem)  # the same again, while it is being saved
    assert trusted(daemon) == issuer.authority.pem
    daemon.perform_held()
    assert trusted(daemon) == daemon.disk.root_pem == issuer.bundle_pem
    assert daemon.count(events.SaveRoot) == 1
    assert described(daemon) == [issuer.bundle_pem]


def test_a_root_that_could_not_be_saved_is_not_used_and_saved_at_the_next_update(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.fail[events.SaveRoot] = [FULL]
    daemon.hear(WORKER_ROLE, root_pem=issuer.bundle_pem)
    assert trusted(daemon) == daemon.disk.root_pem == issuer.authority.pem
    daemon.hear(WORKER_ROLE, root_pem=issuer.bundle_pem)
    assert trusted(daemon) == issuer.bundle_pem


def test_a_root_under_which_the_own_certificate_is_worth_nothing_is_refused(
    issuer: Issuer, other_authority: Authority
) -> None:
    daemon = worker(issuer)
    for root_pem in (other_authority.pem, b"no root at all"):
        daemon.hear(WORKER_ROLE, root_pem=root_pem)
    assert daemon.count(events.SaveRoot) == 0
    assert trusted(daemon) == issuer.authority.pem


def test_a_root_that_came_while_a_certificate_was_renewed_stays(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.hold = (events.RenewCertificate,)
    daemon.put(events.RenewCertificateNow())
    daemon.advance(SOON_S)
    daemon.hear(WORKER_ROLE, root_pem=issuer.bundle_pem)
    daemon.perform_held()  # its answer names the root that was trusted when it was asked for
    assert trusted(daemon) == daemon.disk.root_pem == issuer.bundle_pem


# --- description ---------------------------------------------------------------------------------------------------


def test_managers_are_told_of_a_node_now_and_then_and_when_its_certificate_changed(issuer: Issuer) -> None:
    daemon = worker(issuer)
    daemon.advance(defaults.DESCRIPTION_REFRESH_S)
    assert daemon.count(events.Describe) == 1
    daemon.put(events.RenewCertificateNow())
    daemon.advance(SOON_S)
    assert daemon.count(events.Describe) == 2


def test_an_engine_that_does_not_say_what_there_is_is_asked_again_soon(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.fail[events.Describe] = [Unavailable("no engine"), Unavailable("no engine")]
    daemon.boot()
    assert described(daemon) == []
    daemon.advance(2 * defaults.DESCRIPTION_RETRY_S)
    assert described(daemon) == [issuer.authority.pem]
    assert daemon.status.ready


def test_the_next_agent_is_told_although_the_last_description_never_came(issuer: Issuer) -> None:
    daemon = Daemon(issuer, worker_disk(issuer))
    daemon.hold = (events.Describe,)
    daemon.boot()
    daemon.leave()
    daemon.hold = ()
    assert daemon.answers[daemon.join()] is None
    assert described(daemon) == [issuer.authority.pem]


@pytest.mark.parametrize("ends", [Daemon.leave, Daemon.stop])
def test_what_is_learnt_after_roles_were_stopped_is_dropped(issuer: Issuer, ends: object) -> None:
    assert callable(ends)
    daemon = worker(issuer)
    daemon.hold = (events.Describe, events.RenewCertificate)
    daemon.put(events.RenewCertificateNow())
    daemon.advance(defaults.DESCRIPTION_REFRESH_S)
    tags = [effect.tag for effect in daemon.held]
    assert len(tags) == 2
    ends(daemon)
    for tag in tags:
        daemon.put(events.Done(tag, events.Identity(daemon.disk.certificate_pem, b"")))
        daemon.put(events.Failed(tag, FULL))
    assert daemon.names[-1] in ("StopRoles", "Erase")
