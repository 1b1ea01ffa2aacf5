"""Requests for certificates, and their signatures."""

from __future__ import annotations

import pytest

from certs import keys
from certs.keys import identity_of
from certs.root import RootCA
from swarm import api, defaults
from swarm.errors import Aborted, Code, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, SwarmError
from swarm.manager.certificates import CertificateAuthority, is_blacklisted
from swarm.rpc import Call, Peer, Reply, StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx
from tests.swarm.manager.trust.conftest import CLUSTER, CSR, MANAGER, NOW, ROOT, TrustHarness, answer, peer_of

State = api.IssuanceStatus
DAY_S = 24 * 3600.0


def test_the_root_certificate_is_served_byte_for_byte(trust: TrustHarness) -> None:
    effects = trust.call("CA/GetRootCACertificate", api.GetRootCACertificateRequest(), Peer())
    assert answer(effects, api.GetRootCACertificateResponse).certificate == ROOT.bundle_pem


def test_before_the_cluster_exists_callers_are_told_to_come_back() -> None:
    service = CertificateAuthority(Store(), CLUSTER)
    call = Call(1, "CA/GetRootCACertificate", api.GetRootCACertificateRequest(), Peer())
    with pytest.raises(Aborted, match="CA signer is still starting"):
        answer(service.handle(call, NOW), api.GetRootCACertificateResponse)


def test_an_unlocked_cluster_has_no_unlock_key(trust: TrustHarness) -> None:
    response = answer(trust.call("CA/GetUnlockKey", api.GetUnlockKeyRequest()), api.GetUnlockKeyResponse)
    assert response == api.GetUnlockKeyResponse(version=trust.cluster.meta.version)


def test_managers_get_the_unlock_key_with_the_version_of_the_cluster(trust: TrustHarness) -> None:
    def lock(tx: Tx) -> None:
        cluster = tx.edit(api.Cluster, CLUSTER)
        cluster.spec.encryption_config.auto_lock_managers = True
        cluster.unlock_keys.add(subsystem="other", key=b"o")
        cluster.unlock_keys.add(subsystem="swarm-manager", key=b"k" * 32)

    trust.edit(lock)
    response = answer(trust.call("CA/GetUnlockKey", api.GetUnlockKeyRequest()), api.GetUnlockKeyResponse)
    assert (response.unlock_key, response.version) == (b"k" * 32, trust.cluster.meta.version)


# --- joining -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "number"), [("worker", api.WORKER), ("manager", api.MANAGER)])
def test_a_token_makes_a_node_of_its_role_with_a_certificate(trust: TrustHarness, role: str, number: int) -> None:
    node = trust.join(role)
    assert (node.role, node.spec.desired_role, node.certificate.role) == (number, number, number)
    assert node.spec.membership == api.NodeSpec.ACCEPTED
    assert (node.VXLANUDPPort, node.certificate.cn, node.certificate.csr) == (4789, node.id, CSR)
    assert node.certificate.status.state == State.ISSUED
    identity = identity_of(node.certificate.certificate)
    assert (identity.node_id, identity.role, identity.org) == (node.id, f"swarm-{role}", CLUSTER)
    assert ROOT.verify(node.certificate.certificate, NOW) == ROOT.issuer


def test_a_group_that_cannot_grow_refuses_manager_tokens_and_makes_no_node(trust: TrustHarness) -> None:
    trust.service = CertificateAuthority(trust.store, CLUSTER, may_grow=lambda: False)
    nodes = trust.store.count(api.Node)
    with pytest.raises(FailedPrecondition, match="join as a worker"):
        trust.join("manager")
    assert trust.store.count(api.Node) == nodes
    assert trust.join("worker").role == api.WORKER


def test_the_certificate_lives_as_long_as_the_cluster_says(trust: TrustHarness) -> None:
    def shorten(tx: Tx) -> None:
        tx.edit(api.Cluster, CLUSTER).spec.ca_config.node_cert_expiry.FromSeconds(7200)

    trust.edit(shorten)
    leaf = keys.load_certificates(trust.join().certificate.certificate)[0]
    assert leaf.not_valid_after_utc.timestamp() == pytest.approx(NOW + 7200, abs=31)


def test_availability_is_taken_from_the_request(trust: TrustHarness) -> None:
    token = trust.cluster.root_ca.join_tokens.worker
    response = trust.issue(Peer(), token, availability=api.NodeSpec.DRAIN)
    assert trust.node(response.node_id).spec.availability == api.NodeSpec.DRAIN


@pytest.mark.parametrize("token", ["", "SWMTKN-1-x-y"])
def test_a_wrong_token_is_refused_with_the_text_that_users_know(trust: TrustHarness, token: str) -> None:
    index = trust.store.index
    with pytest.raises(InvalidArgument, match="A valid join token is necessary to join this cluster"):
        trust.issue(Peer(), token)
    assert trust.store.index == index


def test_the_token_is_looked_at_before_the_request(trust: TrustHarness) -> None:
    with pytest.raises(InvalidArgument, match="A valid join token"):
        trust.issue(Peer(), "wrong", csr=b"garbage")


@pytest.mark.parametrize(
    ("csr", "text"),
    [
        (b"", "InvalidArgument"),
        (b"garbage", "unable to parse certificate request"),
        (b"x" * (defaults.CSR_BYTES_MAX + 1), "certificate request is too large"),
    ],
)
def test_a_bad_request_is_refused_and_makes_no_node(trust: TrustHarness, csr: bytes, text: str) -> None:
    with pytest.raises(SwarmError, match=text) as caught:
        trust.issue(Peer(), trust.cluster.root_ca.join_tokens.worker, csr=csr)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert trust.store.count(api.Node) == 1


def test_an_unknown_availability_is_refused(trust: TrustHarness) -> None:
    with pytest.raises(InvalidArgument, match="unknown availability 9"):
        trust.issue(Peer(), trust.cluster.root_ca.join_tokens.worker, availability=9)


def test_a_taken_node_id_is_not_given_twice(trust: TrustHarness) -> None:
    state = trust.rng.getstate()
    first = trust.join()
    trust.rng.setstate(state)
    assert trust.join().id != first.id


# --- renewing ------------------------------------------------------------------------------------------------------

OTHER_CSR = keys.new_csr(keys.new_private_key())


def test_a_node_renews_without_a_token(trust: TrustHarness) -> None:
    node = trust.join()
    trust.now += 40 * DAY_S
    assert trust.issue(peer_of(node), csr=OTHER_CSR).node_id == node.id
    renewed = trust.node(node.id).certificate
    assert renewed.csr == OTHER_CSR
    assert renewed.status.state == State.ISSUED
    first, second = (keys.load_certificates(c)[0] for c in (node.certificate.certificate, renewed.certificate))
    assert second.not_valid_after_utc > first.not_valid_after_utc


def test_a_certificate_takes_precedence_over_a_token(trust: TrustHarness) -> None:
    node = trust.join()
    assert trust.issue(peer_of(node), trust.cluster.root_ca.join_tokens.manager).node_id == node.id
    assert trust.node(node.id).role == api.WORKER


def test_a_renewal_brings_the_role_that_the_node_has_now(trust: TrustHarness) -> None:
    node = trust.join()

    def promote(tx: Tx) -> None:
        tx.edit(api.Node, node.id).role = api.MANAGER

    trust.edit(promote)
    trust.issue(peer_of(node), csr=OTHER_CSR)
    assert identity_of(trust.node(node.id).certificate.certificate).role == "swarm-manager"


def test_this_process_renews_for_its_own_node(trust: TrustHarness) -> None:
    trust.issue(Peer(MANAGER, local=True), csr=OTHER_CSR)
    assert identity_of(trust.node(MANAGER).certificate.certificate).node_id == MANAGER


def test_a_node_that_is_gone_cannot_renew(trust: TrustHarness) -> None:
    node = trust.join()
    trust.edit(lambda tx: tx.remove(api.Node, node.id))
    with pytest.raises(NotFound, match=f"node {node.id} not found when attempting to renew certificate"):
        trust.issue(peer_of(node))


def remove(trust: TrustHarness, node: api.Node) -> None:
    def change(tx: Tx) -> None:
        tx.edit(api.Cluster, CLUSTER).blacklisted_certificates[node.id].expiry.FromSeconds(int(NOW + DAY_S))

    trust.edit(change)


def test_removed_nodes_and_strangers_need_a_token(trust: TrustHarness) -> None:
    node = trust.join()
    forwarder = trust.join("manager")
    for peer in (peer_of(node, org="other"), Peer(node.id, "someone", CLUSTER), Peer()):
        with pytest.raises(InvalidArgument, match="A valid join token"):
            trust.issue(peer)
    remove(trust, forwarder)
    with pytest.raises(InvalidArgument, match="A valid join token"):
        trust.issue(Peer(node.id, "swarm-worker", CLUSTER, forwarder=forwarder.id))
    assert not is_blacklisted(trust.store, CLUSTER, node.id)
    remove(trust, node)
    assert is_blacklisted(trust.store, CLUSTER, node.id)
    with pytest.raises(InvalidArgument, match="A valid join token"):
        trust.issue(peer_of(node))


def test_a_bad_renewal_leaves_the_certificate_alone(trust: TrustHarness) -> None:
    node = trust.join()
    with pytest.raises(SwarmError, match="unable to parse certificate request"):
        trust.issue(peer_of(node), csr=b"garbage")
    assert trust.node(node.id) == node


# --- waiting for the outcome ---------------------------------------------------------------------------------------


def make_pending(trust: TrustHarness, state: int = State.RENEW) -> api.Node:
    """A node whose request waits for a signature."""
    node = trust.join()

    def change(tx: Tx) -> None:
        tx.edit(api.Node, node.id).certificate.status.state = state  # type: ignore[assignment]

    trust.edit(change)
    return trust.node(node.id)


def test_an_outcome_is_told_at_once_with_the_request_it_answers(trust: TrustHarness) -> None:
    node = trust.join()
    response = answer(trust.status(node.id), api.NodeCertificateStatusResponse)
    assert response.certificate == node.certificate
    assert response.status == node.certificate.status


def test_an_order_to_rotate_is_an_outcome_too(trust: TrustHarness) -> None:
    node = make_pending(trust, State.ROTATE)
    assert answer(trust.status(node.id), api.NodeCertificateStatusResponse).status.state == State.ROTATE


def test_a_caller_that_asks_early_waits_for_the_commit(trust: TrustHarness) -> None:
    node = make_pending(trust)
    assert trust.status(node.id, stream=5) == []
    assert trust.status(node.id, stream=6) == []
    assert trust.edit(lambda tx: tx.edit(api.Node, node.id).spec.annotations.labels.update(a="b")) == []
    effects = trust.run_pass()
    assert [effect.stream for effect in effects if isinstance(effect, Reply)] == [5, 6]
    assert trust.run_pass() == []


def test_a_caller_that_gave_up_gets_no_answer(trust: TrustHarness) -> None:
    node = make_pending(trust)
    trust.status(node.id, stream=5)
    trust.status(node.id, stream=6)
    assert trust.service.handle(StreamEnd(5), NOW) == ()
    assert [effect.stream for effect in trust.run_pass() if isinstance(effect, Reply)] == [6]
    assert trust.service.handle(StreamEnd(6), NOW) == ()


def test_a_caller_that_waits_for_a_removed_node_gets_an_error(trust: TrustHarness) -> None:
    node = make_pending(trust)
    trust.status(node.id, stream=5)
    with pytest.raises(NotFound, match="NotFound"):
        answer(trust.edit(lambda tx: tx.remove(api.Node, node.id)), api.NodeCertificateStatusResponse)


def test_an_unknown_node_has_no_status(trust: TrustHarness) -> None:
    with pytest.raises(NotFound, match=r"^NotFound$"):
        answer(trust.status("nobody"), api.NodeCertificateStatusResponse)
    with pytest.raises(InvalidArgument, match=r"^InvalidArgument$"):
        answer(trust.status(""), api.NodeCertificateStatusResponse)


def test_a_leader_that_steps_down_refuses_the_waiting_callers(trust: TrustHarness) -> None:
    node = make_pending(trust)
    trust.status(node.id, stream=5)
    with pytest.raises(Aborted, match="CA signer is stopped"):
        answer(trust.service.stop(), api.NodeCertificateStatusResponse)
    assert trust.service.stop() == []


def test_the_number_of_waiting_callers_is_limited(trust: TrustHarness) -> None:
    node = make_pending(trust)
    for stream in range(defaults.CERTIFICATE_WAITERS_MAX):
        trust.status(node.id, stream)
    with pytest.raises(ResourceExhausted):
        answer(trust.status(node.id, -1), api.NodeCertificateStatusResponse)


# --- signing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.RENEW, State.PENDING])
def test_requests_are_signed_in_the_pass_that_sees_them(trust: TrustHarness, state: int) -> None:
    node = make_pending(trust, state)
    trust.run_pass()
    assert trust.node(node.id).certificate.status.state == State.ISSUED


@pytest.mark.parametrize("state", [State.ROTATE, State.FAILED, State.ISSUED, State.UNKNOWN])
def test_other_states_are_left_alone(trust: TrustHarness, state: int) -> None:
    node = make_pending(trust, state)
    trust.run_pass()
    assert trust.node(node.id) == node


def test_a_request_of_a_node_that_is_not_accepted_waits(trust: TrustHarness) -> None:
    node = make_pending(trust, State.PENDING)

    def refuse(tx: Tx) -> None:
        tx.edit(api.Node, node.id).spec.membership = api.NodeSpec.PENDING

    trust.edit(refuse)
    trust.run_pass()
    assert trust.node(node.id).certificate.status.state == State.PENDING


def test_a_new_leader_signs_what_the_old_one_left(trust: TrustHarness) -> None:
    node = make_pending(trust)
    successor = TrustHarness()
    successor.store.restore(trust.store.save(), trust.store.index)
    successor.elect()
    successor.run_pass()
    assert successor.node(node.id).certificate.status.state == State.ISSUED


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("csr", b"garbage", "unable to parse certificate request"),
        ("cn", "", "failed to sign node certificate"),
        ("role", 7, "failed to parse api role: 7"),
    ],
)
def test_an_unfit_request_fails_with_a_reason(trust: TrustHarness, field: str, value: object, reason: str) -> None:
    node = make_pending(trust)
    trust.edit(lambda tx: setattr(tx.edit(api.Node, node.id).certificate, field, value))
    trust.run_pass()
    status = trust.node(node.id).certificate.status
    assert status.state == State.FAILED
    assert reason in status.err


def test_a_pass_signs_a_bounded_number(trust: TrustHarness) -> None:
    count = defaults.CERTIFICATES_PER_PASS_MAX + 1

    def arrive(tx: Tx) -> None:
        for number in range(count):
            node = api.Node(id=f"n{number}")
            node.certificate.cn = node.id
            node.certificate.csr = CSR
            node.certificate.status.state = State.RENEW
            tx.create(node)

    trust.edit(arrive)
    trust.run_pass()
    assert trust.stages[1].deadline() == 0.0
    trust.run_pass()
    assert trust.stages[1].deadline() is None
    assert all(node.certificate.status.state == State.ISSUED for node in trust.store.all(api.Node))


def set_key(trust: TrustHarness, key: bytes) -> None:
    def change(tx: Tx) -> None:
        tx.edit(api.Cluster, CLUSTER).root_ca.ca_key = key

    trust.edit(change)


@pytest.mark.parametrize("key", [b"", b"garbage"])
def test_without_a_usable_key_requests_wait_for_one(trust: TrustHarness, key: bytes) -> None:
    node = make_pending(trust)
    set_key(trust, key)
    trust.run_pass()
    assert trust.node(node.id).certificate.status.state == State.RENEW
    assert trust.stages[1].deadline() is None
    set_key(trust, ROOT.key_pem or b"")
    assert trust.stages[1].deadline() == 0.0
    trust.run_pass()
    assert trust.node(node.id).certificate.status.state == State.ISSUED


def test_a_second_pass_changes_nothing(trust: TrustHarness) -> None:
    trust.join()
    index = trust.store.index
    trust.run_pass()
    trust.elect()
    trust.run_pass()
    assert trust.store.index == index


def test_the_same_requests_get_the_same_certificates_in_simulation() -> None:
    first, second = TrustHarness(), TrustHarness()
    assert first.join().certificate == second.join().certificate
    assert RootCA(ROOT.bundle_pem, ROOT.key_pem).can_sign
