"""Root rotation, from the wish of the user to the new join tokens."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs import keys
from certs.root import RootCA
from certs.tokens import parse_join_token
from swarm import api, defaults
from swarm.errors import InvalidArgument
from swarm.manager.root_rotation import issued_by, issuer_of, trusted_roots, update_root_ca
from swarm.store.store import copy_of
from swarm.store.tx import Tx
from tests.swarm.manager.trust.conftest import CLUSTER, CSR, MANAGER, NOW, ROOT, TrustHarness, peer_of

State = api.IssuanceStatus
NEW_KEY = ec.derive_private_key(13, ec.SECP256R1())


def user_root(key: keys.PrivateKey = NEW_KEY, days: int = 3650) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ours")])
    start = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5).not_valid_before(start)
    builder = builder.not_valid_after(start + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return keys.certificates_pem([builder.sign(key, hashes.SHA256())])


USER_ROOT, USER_KEY = user_root(), keys.private_key_pem(NEW_KEY)


def ask(trust: TrustHarness, forced: int = 0, certificate: bytes = b"", key: bytes = b"") -> None:
    """What UpdateCluster does with these settings."""

    def change(tx: Tx) -> None:
        cluster = tx.edit(api.Cluster, CLUSTER)
        config = cluster.spec.ca_config
        config.force_rotate, config.signing_ca_cert, config.signing_ca_key = forced, certificate, key
        update_root_ca(cluster, tx.now, lambda: NEW_KEY, deterministic=True)

    trust.edit(change)


def describe(trust: TrustHarness, node_id: str) -> None:
    """A node got a certificate, and reports its issuer."""
    chain = trust.node(node_id).certificate.certificate
    issuer = RootCA(trust.cluster.root_ca.ca_cert, None).verify(chain, trust.now)

    def change(tx: Tx) -> None:
        info = tx.edit(api.Node, node_id).description.tls_info
        info.cert_issuer_subject, info.cert_issuer_public_key = issuer.subject_der, issuer.public_key_der

    trust.edit(change)


def renew(trust: TrustHarness, node_id: str) -> None:
    trust.issue(peer_of(trust.node(node_id)), csr=CSR)
    describe(trust, node_id)


@pytest.fixture
def rotating(trust: TrustHarness) -> TrustHarness:
    """Two nodes, a forced rotation, one pass."""
    trust.join()
    trust.issue(peer_of(trust.node(MANAGER)))
    for node in list(trust.store.all(api.Node)):
        describe(trust, node.id)
    ask(trust, forced=1)
    trust.run_pass()
    return trust


def node_ids(trust: TrustHarness) -> list[str]:
    return [node.id for node in trust.store.all(api.Node)]


def states(trust: TrustHarness) -> list[int]:
    return [node.certificate.status.state for node in trust.store.all(api.Node)]


def test_a_forced_rotation_asks_every_node_for_a_new_certificate(rotating: TrustHarness) -> None:
    root_ca = rotating.cluster.root_ca
    assert root_ca.ca_cert == ROOT.bundle_pem
    assert root_ca.last_forced_rotation == 1
    assert keys.load_certificates(root_ca.root_rotation.ca_cert)[0].public_key() == NEW_KEY.public_key()
    assert states(rotating) == [State.ROTATE, State.ROTATE]


def test_new_certificates_lead_to_the_old_and_to_the_new_root(rotating: TrustHarness) -> None:
    node_id = node_ids(rotating)[0]
    renew(rotating, node_id)
    chain = rotating.node(node_id).certificate.certificate
    new = RootCA(rotating.cluster.root_ca.root_rotation.ca_cert, None)
    assert ROOT.verify(chain, NOW) == new.verify(chain, NOW) == new.issuer
    assert issued_by(rotating.node(node_id), issuer_of(rotating.cluster.root_ca))


def test_until_a_node_follows_both_roots_of_a_rotation_are_trusted(rotating: TrustHarness) -> None:
    during = copy_of(rotating.cluster.root_ca)
    assert len(keys.load_certificates(trusted_roots(ROOT.bundle_pem, during))) == 2
    for node_id in node_ids(rotating):
        renew(rotating, node_id)
        rotating.run_pass()
    after = rotating.cluster.root_ca
    assert len(keys.load_certificates(trusted_roots(ROOT.bundle_pem, after))) == 2
    assert keys.load_certificates(trusted_roots(after.ca_cert, after)) == keys.load_certificates(after.ca_cert)


def test_when_all_nodes_have_converged_the_new_root_takes_over(rotating: TrustHarness) -> None:
    before = copy_of(rotating.cluster.root_ca)
    for node_id in node_ids(rotating):
        assert rotating.cluster.root_ca.HasField("root_rotation")
        renew(rotating, node_id)
        rotating.run_pass()
    root_ca = rotating.cluster.root_ca
    assert not root_ca.HasField("root_rotation")
    assert (root_ca.ca_cert, root_ca.ca_key) == (before.root_rotation.ca_cert, before.root_rotation.ca_key)
    assert root_ca.last_forced_rotation == 1
    digest = RootCA(root_ca.ca_cert, root_ca.ca_key).digest
    assert root_ca.ca_cert_hash == f"sha256:{digest}"
    for token in (root_ca.join_tokens.worker, root_ca.join_tokens.manager):
        assert parse_join_token(token).root_digest == digest
    node = rotating.join()
    assert len(keys.load_certificates(node.certificate.certificate)) == 1
    index = rotating.store.index
    rotating.run_pass()
    assert rotating.store.index == index


def test_a_removed_node_does_not_hold_up_the_rotation(rotating: TrustHarness) -> None:
    silent, other = node_ids(rotating)
    renew(rotating, other)
    rotating.run_pass()
    assert rotating.cluster.root_ca.HasField("root_rotation")
    rotating.edit(lambda tx: tx.remove(api.Node, silent))
    rotating.run_pass()
    assert not rotating.cluster.root_ca.HasField("root_rotation")


def test_a_new_leader_sees_the_rotation_through(rotating: TrustHarness) -> None:
    successor = TrustHarness()
    successor.store.restore(rotating.store.save(), rotating.store.index)
    successor.elect()
    for node_id in node_ids(successor):
        renew(successor, node_id)
    successor.run_pass()
    assert not successor.cluster.root_ca.HasField("root_rotation")


def test_nodes_are_asked_in_batches(trust: TrustHarness) -> None:
    def arrive(tx: Tx) -> None:
        for number in range(2 * defaults.ROOT_ROTATION_BATCH_NODES):
            node = api.Node(id=f"n{number}")
            node.certificate.status.state = State.ISSUED
            tx.create(node)

    trust.edit(arrive)
    ask(trust, forced=1)
    asked = []
    for _ in range(4):
        trust.run_pass()
        asked.append(states(trust).count(State.ROTATE))
        due = trust.stages[1].deadline()
        trust.run_pass()
        assert states(trust).count(State.ROTATE) == asked[-1]
        assert due is not None
        if asked[-1] < 61:
            assert due == trust.now + defaults.ROOT_ROTATION_PERIOD_S
        trust.now = due
    assert asked == [30, 60, 61, 61]


def test_a_node_whose_request_failed_is_asked_again(rotating: TrustHarness) -> None:
    node_id = node_ids(rotating)[0]
    rotating.edit(lambda tx: setattr(tx.edit(api.Node, node_id).certificate.status, "state", State.FAILED))
    rotating.run_pass()
    due = rotating.stages[1].deadline()
    assert due is not None
    rotating.now = due
    rotating.run_pass()
    assert rotating.node(node_id).certificate.status.state == State.ROTATE


def test_the_log_says_who_is_waited_for_once_a_minute(rotating: TrustHarness) -> None:
    silent, other = node_ids(rotating)

    def name(tx: Tx) -> None:
        node = tx.edit(api.Node, silent)
        node.description.hostname, node.status.state = "attic", api.NodeStatus.DOWN

    rotating.edit(name)
    renew(rotating, other)
    rotating.run_pass()
    told: list[float] = []
    with structlog.testing.capture_logs() as lines:
        while len(told) < 2:
            due = rotating.stages[1].deadline()
            assert due is not None
            rotating.now = due
            rotating.run_pass()
            waiting = [line for line in lines if line["event"] == "root_rotation.waiting"]
            told += [rotating.now] * (len(waiting) - len(told))
    assert told[1] - told[0] == defaults.ROOT_ROTATION_REPORT_S
    assert [(line["nodes"], line["count"]) for line in waiting] == [("attic (down)", 1)] * 2


def test_another_request_in_between_starts_over_from_the_trusted_root(rotating: TrustHarness) -> None:
    renew(rotating, node_ids(rotating)[0])
    third = ec.derive_private_key(17, ec.SECP256R1())
    wanted = user_root(third)
    ask(rotating, forced=1, certificate=wanted, key=keys.private_key_pem(third))
    rotation = rotating.cluster.root_ca.root_rotation
    assert rotation.ca_cert == wanted
    crossed = keys.load_certificates(rotation.cross_signed_ca_cert)[0]
    crossed.verify_directly_issued_by(ROOT.roots[0])
    rotating.run_pass()
    rotating.now += defaults.ROOT_ROTATION_PERIOD_S
    rotating.run_pass()
    assert states(rotating) == [State.ROTATE, State.ROTATE]


def test_the_same_request_again_changes_nothing(rotating: TrustHarness) -> None:
    before = copy_of(rotating.cluster.root_ca)
    ask(rotating, forced=1)
    assert rotating.cluster.root_ca == before


def test_a_request_for_the_trusted_root_abandons_the_rotation(rotating: TrustHarness) -> None:
    ask(rotating, forced=2, certificate=ROOT.bundle_pem, key=ROOT.key_pem or b"")
    root_ca = rotating.cluster.root_ca
    assert not root_ca.HasField("root_rotation")
    assert (root_ca.ca_cert, root_ca.ca_key, root_ca.last_forced_rotation) == (ROOT.bundle_pem, ROOT.key_pem, 2)
    rotating.run_pass()
    assert rotating.stages[1].deadline() is None


def test_a_root_of_the_user_is_rotated_to(trust: TrustHarness) -> None:
    ask(trust, certificate=b"text\n" + USER_ROOT, key=USER_KEY)
    rotation = trust.cluster.root_ca.root_rotation
    assert (rotation.ca_cert, rotation.ca_key) == (USER_ROOT, USER_KEY)
    before = copy_of(trust.cluster.root_ca)
    ask(trust, certificate=USER_ROOT, key=USER_KEY)
    assert trust.cluster.root_ca == before


def test_text_without_any_certificate_counts_as_not_given(trust: TrustHarness) -> None:
    before = copy_of(trust.cluster.root_ca)
    ask(trust, certificate=b"no PEM here")
    assert trust.cluster.root_ca == before


def no_change(cluster: api.Cluster) -> None:
    """Changes nothing."""


def without_key(cluster: api.Cluster) -> None:
    cluster.root_ca.ca_key = b""


def to_external(cluster: api.Cluster) -> None:
    cluster.root_ca.root_rotation.ca_cert = USER_ROOT


def with_that_key(cluster: api.Cluster) -> None:
    cluster.root_ca.ca_key = USER_KEY


EXTERNAL = "there must be at least one valid, reachable external CA corresponding to the {} CA certificate"


@pytest.mark.parametrize(
    ("prepare", "certificate", "key", "text"),
    [
        (no_change, b"", USER_KEY, "if a signing CA key is provided, the signing CA cert must also be provided"),
        (no_change, USER_ROOT, b"", EXTERNAL.format("desired")),
        (no_change, USER_ROOT, ROOT.key_pem, "certificate key mismatch"),
        (no_change, user_root(days=300), USER_KEY, "CA certificate expires too soon"),
        (no_change, USER_ROOT + ROOT.bundle_pem, USER_KEY, "the desired CA certificate cannot contain multiple"),
        (with_that_key, USER_ROOT, USER_KEY, "Cannot update to a cert with an identical key"),
        (without_key, b"", b"", EXTERNAL.format("current")),
        (to_external, b"", b"", EXTERNAL.format("next")),
    ],
)
def test_a_request_that_cannot_be_granted_changes_nothing(
    trust: TrustHarness, prepare: Callable[[api.Cluster], None], certificate: bytes, key: bytes, text: str
) -> None:
    cluster = copy_of(trust.cluster)
    prepare(cluster)
    cluster.spec.ca_config.signing_ca_cert, cluster.spec.ca_config.signing_ca_key = certificate, key
    before = copy_of(cluster)
    with pytest.raises(InvalidArgument, match=text):
        update_root_ca(cluster, NOW)
    assert cluster == before


def test_a_key_that_was_elsewhere_can_be_brought_in(trust: TrustHarness) -> None:
    cluster = copy_of(trust.cluster)
    without_key(cluster)
    to_external(cluster)
    config = cluster.spec.ca_config
    config.signing_ca_cert, config.signing_ca_key = ROOT.bundle_pem, ROOT.key_pem or b""
    update_root_ca(cluster, NOW)
    assert cluster.root_ca.ca_key == ROOT.key_pem
    assert not cluster.root_ca.HasField("root_rotation")
