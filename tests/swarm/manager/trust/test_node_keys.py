"""Whose certificate renews: the key on record decides, whatever the certificate says and however old it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from certs.keys import identity_of, new_csr, new_private_key
from certs.validity import Validity
from swarm import api, defaults
from swarm.errors import PermissionDenied
from swarm.grpc.peer import peer_of
from swarm.rpc import Call, Peer, Reply, StreamEnd
from swarm.store.tx import Tx
from tests.swarm.manager.trust.conftest import CLUSTER, MANAGER, TrustHarness, answer

DAY_S = 24 * 3600.0
LAPSED = Validity("x509: certificate has expired or is not yet valid: it can only be renewed", renewable=True)
SUPERSEDED = "the certificate is superseded: node .* has used a newer one since"


@dataclass(frozen=True)
class Copy:
    """A node certificate and its key as they lie on a disk, of the node or of a thief."""

    certificate_pem: bytes

    def peer(self, *, lapsed: bool = False, forwarder: str = "") -> Peer:
        """Whoever has it, as a manager sees him."""
        found = peer_of(self.certificate_pem, "10.0.0.9:4000", validity=LAPSED if lapsed else Validity())
        return replace(found, forwarder=forwarder)

    @property
    def role(self) -> str:
        return identity_of(self.certificate_pem).role


def join(trust: TrustHarness, role: str = "worker") -> tuple[str, Copy]:
    """A node joins; its ID, and what is on its disk."""
    token = getattr(trust.cluster.root_ca.join_tokens, role)
    node = trust.node(trust.issue(Peer(addr="10.0.0.9:4000"), token, csr=new_csr(new_private_key())).node_id)
    return node.id, Copy(node.certificate.certificate)


def renew(trust: TrustHarness, peer: Peer) -> Copy:
    """A certificate for another new key, a while later."""
    trust.now += 60.0
    trust.issue(peer, csr=new_csr(new_private_key()))
    return Copy(trust.node(peer.node_id).certificate.certificate)


def use(trust: TrustHarness, copy: Copy) -> None:
    """The node says that it has this certificate."""
    peer = copy.peer()
    effects = trust.call("NodeCA/NodeCertificateStatus", api.NodeCertificateStatusRequest(node_id=peer.node_id), peer)
    answer(effects, api.NodeCertificateStatusResponse)


def promote(trust: TrustHarness, node_id: str) -> None:
    def change(tx: Tx) -> None:
        node = tx.edit(api.Node, node_id)
        node.role = node.spec.desired_role = api.MANAGER

    trust.edit(change)


def refused(trust: TrustHarness, peer: Peer, text: str = SUPERSEDED) -> None:
    """This renewal is refused and changes nothing."""
    index = trust.store.index
    with pytest.raises(PermissionDenied, match=text):
        renew(trust, peer)
    assert trust.store.index == index


# --- thieves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lapsed", [False, True])
@pytest.mark.parametrize("forwarder", ["", MANAGER])
@pytest.mark.parametrize("age", [1, 2, 5])
def test_a_superseded_copy_is_refused_at_every_age_before_and_after_a_promotion(
    trust: TrustHarness, lapsed: bool, forwarder: str, age: int
) -> None:
    node_id, copy = join(trust)
    stolen = copy.peer(lapsed=lapsed, forwarder=forwarder)
    for _ in range(age):
        copy = renew(trust, copy.peer())
        use(trust, copy)
    refused(trust, stolen)
    promote(trust, node_id)
    refused(trust, stolen)
    copy = renew(trust, copy.peer())
    assert copy.role == "swarm-manager"
    use(trust, copy)
    refused(trust, stolen)
    assert renew(trust, copy.peer()).role == "swarm-manager"


def test_an_old_managers_copy_is_refused_as_well_and_gets_no_unlock_key(trust: TrustHarness) -> None:
    _, old = join(trust, "manager")
    new = renew(trust, old.peer())
    ask = api.GetUnlockKeyRequest()
    for copy in (old, new):
        answer(trust.call("CA/GetUnlockKey", ask, copy.peer()), api.GetUnlockKeyResponse)
    use(trust, new)
    with pytest.raises(PermissionDenied, match=SUPERSEDED):
        answer(trust.call("CA/GetUnlockKey", ask, old.peer()), api.GetUnlockKeyResponse)
    answer(trust.call("CA/GetUnlockKey", ask, new.peer()), api.GetUnlockKeyResponse)
    assert trust.refused_keys == {"swarm-manager": 1}
    refused(trust, old.peer())
    assert trust.refused_keys == {"swarm-manager": 2}


def test_asking_for_a_certificate_shows_that_the_key_is_in_use(trust: TrustHarness) -> None:
    _, first = join(trust)
    second = renew(trust, first.peer())
    renew(trust, second.peer())
    refused(trust, first.peer())


def test_two_renewals_in_one_pass_do_not_both_count_when_one_supersedes_the_other(trust: TrustHarness) -> None:
    _, first = join(trust)
    second = renew(trust, first.peer())
    writes: list[Any] = []
    for stream, copy in ((1, second), (2, first)):
        request = api.IssueNodeCertificateRequest(csr=new_csr(new_private_key()))
        writes += trust.service.handle(Call(stream, "NodeCA/IssueNodeCertificate", request, copy.peer()), trust.now)
    done, late = trust.run_pass(*writes)
    assert isinstance(done, Reply)
    assert isinstance(late, StreamEnd)
    assert isinstance(late.error, PermissionDenied)


def test_a_refusal_is_logged_once_a_minute(trust: TrustHarness) -> None:
    _, first = join(trust)
    use(trust, renew(trust, first.peer()))
    with capture_logs() as logs:
        for _ in range(50):
            with pytest.raises(PermissionDenied):
                trust.issue(first.peer(), csr=new_csr(new_private_key()))
    assert [entry["event"] for entry in logs] == ["certificate.key_refused"]


# --- crashes -------------------------------------------------------------------------------------------------------


def test_a_node_that_crashed_before_it_saved_its_next_certificate_comes_back_with_the_old_one(
    trust: TrustHarness,
) -> None:
    node_id, saved = join(trust)
    use(trust, saved)
    promote(trust, node_id)
    for lapsed in (False, False, True):
        renew(trust, saved.peer(lapsed=lapsed))  # it never arrives
    again = renew(trust, saved.peer())
    assert again.role == "swarm-manager"
    use(trust, again)
    refused(trust, saved.peer())


def test_of_several_certificates_that_were_issued_any_may_be_the_one_that_was_saved(trust: TrustHarness) -> None:
    _, first = join(trust)
    use(trust, first)
    issued = [renew(trust, first.peer()) for _ in range(3)]
    use(trust, issued[1])
    refused(trust, first.peer())
    refused(trust, issued[0].peer())
    use(trust, issued[2])
    refused(trust, issued[1].peer())


def test_no_more_unused_keys_than_the_limit_are_kept_and_the_one_in_use_is(trust: TrustHarness) -> None:
    node_id, first = join(trust)
    use(trust, first)
    last = [renew(trust, first.peer()) for _ in range(defaults.NODE_KEYS_ISSUED_MAX + 3)][-1]
    assert len(trust.node(node_id).authority.issued) == defaults.NODE_KEYS_ISSUED_MAX
    renew(trust, first.peer())
    renew(trust, last.peer())


def test_the_same_request_again_gets_the_same_key_again(trust: TrustHarness) -> None:
    node_id, first = join(trust)
    csr = new_csr(new_private_key())
    for _ in range(3):
        trust.issue(first.peer(), csr=csr)
    assert len(trust.node(node_id).authority.issued) == 1
    renew(trust, Copy(trust.node(node_id).certificate.certificate).peer())


@pytest.mark.parametrize("seed", range(20))
def test_however_a_node_crashes_it_gets_in_and_no_copy_older_than_what_it_used_does(
    trust: TrustHarness, seed: int
) -> None:
    rng = Random(f"node keys {seed}")
    node_id, disk = join(trust)
    use(trust, disk)
    old: list[Copy] = []
    for _ in range(30):
        if rng.random() < 0.2:
            promote(trust, node_id)
        came = renew(trust, disk.peer(lapsed=rng.random() < 0.2))
        if rng.random() < 0.5:
            old.append(disk)
            disk = came
            if rng.random() < 0.7:
                use(trust, disk)
            else:
                renew(trust, disk.peer())
        for copy in rng.sample(old, min(len(old), 3)):
            refused(trust, copy.peer(lapsed=rng.random() < 0.5, forwarder=rng.choice(["", MANAGER])))


# --- lapsed certificates -------------------------------------------------------------------------------------------


def test_a_worker_that_was_promoted_while_it_was_off_gets_a_workers_certificate_and_with_that_a_managers(
    trust: TrustHarness,
) -> None:
    node_id, disk = join(trust)
    use(trust, disk)
    promote(trust, node_id)
    fresh = renew(trust, disk.peer(lapsed=True))
    assert fresh.role == "swarm-worker"
    assert trust.node(node_id).certificate.role == api.WORKER
    assert renew(trust, fresh.peer()).role == "swarm-manager"


@pytest.mark.parametrize("role", ["worker", "manager"])
def test_a_lapsed_certificate_with_the_key_on_record_renews_in_its_role(trust: TrustHarness, role: str) -> None:
    _, disk = join(trust, role)
    use(trust, disk)
    assert renew(trust, disk.peer(lapsed=True)).role == f"swarm-{role}"


def test_a_lapsed_certificate_of_a_manager_that_was_demoted_gets_a_workers(trust: TrustHarness) -> None:
    node_id, disk = join(trust, "manager")

    def demote(tx: Tx) -> None:
        node = tx.edit(api.Node, node_id)
        node.role = node.spec.desired_role = api.WORKER

    trust.edit(demote)
    assert renew(trust, disk.peer(lapsed=True)).role == "swarm-worker"


def test_a_lapsed_certificate_whose_key_nobody_knows_is_refused(trust: TrustHarness) -> None:
    node_id, disk = join(trust)
    trust.edit(lambda tx: tx.edit(api.Node, node_id).ClearField("authority"))
    trust.edit(lambda tx: tx.edit(api.Node, node_id).certificate.ClearField("certificate"))
    refused(trust, disk.peer(lapsed=True), "the managers do not know its key")
    ask, index = api.NodeCertificateStatusRequest(node_id=node_id), trust.store.index
    trust.call("NodeCA/NodeCertificateStatus", ask, disk.peer(lapsed=True))
    assert trust.store.index == index  # or it would be on record by that
    refused(trust, replace(disk.peer(lapsed=True), key=b""), "the managers do not know its key")
    renew(trust, disk.peer())


# --- a store that is older than its nodes --------------------------------------------------------------------------


def restore(trust: TrustHarness, node: api.Node) -> None:
    """The node in the store is as it was."""
    trust.edit(lambda tx: tx.edit(api.Node, node.id).CopyFrom(node))


def test_after_a_restore_a_node_that_has_renewed_since_gets_in_and_older_copies_of_it_do_not(
    trust: TrustHarness,
) -> None:
    node_id, first = join(trust)
    use(trust, first)
    backup = trust.node(node_id)
    second = renew(trust, first.peer())
    use(trust, second)
    third = renew(trust, second.peer())
    use(trust, third)
    restore(trust, backup)
    refused(trust, third.peer(lapsed=True))
    fresh = renew(trust, third.peer())
    for old in (first, second):
        refused(trust, old.peer())
    use(trust, fresh)
    refused(trust, third.peer())


def test_after_a_restore_a_newer_key_gets_no_higher_role_before_it_is_on_record(trust: TrustHarness) -> None:
    node_id, first = join(trust)
    promote(trust, node_id)
    backup = trust.node(node_id)

    def demote(tx: Tx) -> None:
        tx.edit(api.Node, node_id).role = api.WORKER

    trust.edit(demote)
    second = renew(trust, first.peer())
    restore(trust, backup)
    fresh = renew(trust, second.peer())
    assert fresh.role == "swarm-worker"
    assert renew(trust, fresh.peer()).role == "swarm-manager"


def test_an_old_key_is_not_taken_for_a_newer_one_because_a_leaders_clock_was_wrong(trust: TrustHarness) -> None:
    trust.now += 3600.0
    _, first = join(trust)
    trust.now -= 7200.0  # the next leader's clock is right
    second = renew(trust, first.peer())
    assert first.peer().not_before > second.peer().not_before + 3000.0
    use(trust, second)
    refused(trust, first.peer())
    third = renew(trust, second.peer())
    use(trust, third)
    for old in (first, second):
        refused(trust, old.peer())


# --- with stock managers -------------------------------------------------------------------------------------------


def stock_led(trust: TrustHarness, node_id: str) -> None:
    """A stock manager led and changed the node: what only we know is gone."""
    trust.edit(lambda tx: tx.edit(api.Node, node_id).ClearField("authority"))


@pytest.mark.parametrize("lapsed", [False, True])
def test_where_a_stock_manager_led_the_certificate_on_record_decides(trust: TrustHarness, lapsed: bool) -> None:
    node_id, first = join(trust)
    second = renew(trust, first.peer())
    stock_led(trust, node_id)
    promote(trust, node_id)
    refused(trust, first.peer(lapsed=lapsed))
    fresh = renew(trust, second.peer(lapsed=lapsed))
    assert fresh.role == ("swarm-worker" if lapsed else "swarm-manager")
    renew(trust, second.peer())  # it crashed before it saved that
    stock_led(trust, node_id)
    refused(trust, first.peer(lapsed=lapsed))


def test_through_a_stock_follower_a_caller_has_what_stock_gives_it(trust: TrustHarness) -> None:
    node_id, first = join(trust)
    peer = replace(first.peer(forwarder=MANAGER), key=b"", not_before=0.0)
    promote(trust, node_id)
    assert renew(trust, peer).role == "swarm-manager"
    second = renew(trust, peer)
    assert renew(trust, first.peer()).role == "swarm-manager"  # nobody saw a newer one
    renew(trust, second.peer())
    refused(trust, first.peer())


def test_a_node_that_always_renews_through_stock_followers_may_ask_us_directly(trust: TrustHarness) -> None:
    _, disk = join(trust)
    for _ in range(10):
        peer = replace(disk.peer(forwarder=MANAGER), key=b"", not_before=0.0)
        before, disk = disk, renew(trust, peer)
        renew(trust, before.peer())  # it crashed
        disk = renew(trust, peer)
    renew(trust, disk.peer())


def test_this_process_renews_whatever_key_it_has(trust: TrustHarness) -> None:
    _, stranger = join(trust)
    own = replace(stranger.peer(), node_id=MANAGER, role="swarm-manager", local=True)
    assert renew(trust, own).role == "swarm-manager"
    assert trust.node(MANAGER).authority.key == own.key


# --- who may see a certificate -------------------------------------------------------------------------------------


def test_a_joiner_sees_its_certificate_without_one_until_it_was_seen_to_use_it(trust: TrustHarness) -> None:
    node_id, copy = join(trust)
    response = answer(trust.status(node_id), api.NodeCertificateStatusResponse)
    assert response.certificate.certificate == copy.certificate_pem
    use(trust, copy)
    index = trust.store.index
    for caller in (Peer(), Peer("other", "swarm-worker", CLUSTER), Peer("other", "swarm-worker", CLUSTER, key=b"k")):
        effects = trust.call("NodeCA/NodeCertificateStatus", api.NodeCertificateStatusRequest(node_id=node_id), caller)
        with pytest.raises(PermissionDenied, match=f"only node {node_id} and managers may ask"):
            answer(effects, api.NodeCertificateStatusResponse)
    manager = Peer("other", "swarm-manager", CLUSTER)
    effects = trust.call("NodeCA/NodeCertificateStatus", api.NodeCertificateStatusRequest(node_id=node_id), manager)
    answer(effects, api.NodeCertificateStatusResponse)
    assert trust.store.index == index


def test_a_superseded_copy_does_not_see_what_became_of_its_node_and_supersedes_nothing(trust: TrustHarness) -> None:
    node_id, first = join(trust)
    second = renew(trust, first.peer())
    use(trust, second)
    before = trust.node(node_id)
    with pytest.raises(PermissionDenied):
        use(trust, first)
    use(trust, second)
    assert trust.node(node_id) == before


def test_the_old_key_of_a_node_that_crashed_may_wait_for_its_certificate(trust: TrustHarness) -> None:
    node_id, first = join(trust)
    use(trust, first)
    renew(trust, first.peer())
    before = trust.node(node_id)
    use(trust, first)
    assert trust.node(node_id) == before
