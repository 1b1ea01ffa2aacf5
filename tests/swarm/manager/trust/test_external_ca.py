"""Clusters whose root's key is elsewhere: signing by others, and rotations to, from and beside them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import keys
from certs.keys import load_certificates
from certs.root import RootCA
from integration.cfssl import Authority, Refused, make_root
from swarm import api, defaults
from swarm.errors import InvalidArgument, NotTaken, SwarmError, Unavailable
from swarm.grpc.peer import peer_of
from swarm.manager.cluster_updates import ClusterUpdates
from swarm.manager.external_ca import FindReachable, Outcome, Sign
from swarm.manager.external_signing import ExternalSigning
from swarm.manager.service import Ask, Effect, Write
from swarm.rpc import Call, Peer, Reply, StreamEnd
from swarm.store.store import Change, copy_of
from swarm.store.tx import Tx
from tests.swarm.manager.trust.conftest import CLUSTER, CSR, KEY, MANAGER, NOW, ROOT, TrustHarness

State = api.IssuanceStatus
URL, SPARE = "https://ca.example/sign", "https://spare.example/sign"
REACHABLE = "there must be at least one valid, reachable external CA corresponding to the {} CA certificate"


class InMemoryAuthority(Authority):
    """An external authority without the network: it answers questions as they are asked."""

    def __init__(self, name: str) -> None:
        certificate, key_pem = make_root(name, now=NOW)
        key = keys.load_private_key(key_pem)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        super().__init__(certificate, key, clock=lambda: NOW)
        self.pem, self.key_pem = certificate, key_pem
        self.away = False
        client = RootCA(certificate, key_pem).sign(CSR, MANAGER, "swarm-manager", CLUSTER, NOW, 3600.0)
        self._client = load_certificates(client)[0]

    def answer(self, question: FindReachable | Sign) -> Outcome:
        if self.away:
            return Outcome(error="connection refused")
        if isinstance(question, FindReachable):
            return Outcome() if self.pem in question.roots_pem else Outcome(error="unknown authority")
        try:
            return Outcome(self.sign(json.loads(question.body), self._client))
        except Refused as refusal:
            return Outcome(error=str(refusal), refused=True)


class SigningHarness:
    """Drives ClusterUpdates and ExternalSigning; questions are answered when the test says so."""

    def __init__(self, trust: TrustHarness) -> None:
        self.trust = trust
        self.questions: deque[Ask] = deque()
        self.answers: list[Reply | StreamEnd] = []
        self.updates = ClusterUpdates()
        self.signing = ExternalSigning(trust.store, CLUSTER, trust.rng, trust.now)

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self.questions.append(effect)
            elif isinstance(effect, Write):
                self.perform(self.run(effect))
            elif isinstance(effect, Reply | StreamEnd):
                self.answers.append(effect)

    def run(self, write: Write) -> Sequence[Effect]:
        tx = Tx(self.trust.store, self.trust.now, self.trust.rng)
        message, error = None, None
        try:
            with tx.savepoint():
                message = write.run(tx)
        except SwarmError as problem:
            error = problem
        self.commit(tx)
        return write.done(message, error) if write.done is not None else ()

    def commit(self, tx: Tx) -> None:
        for stage in self.trust.stages:
            for kind, object_id in tx.log:
                stage.note(kind, object_id)
            stage.run(tx)
        actions = tx.actions()
        if actions:
            changes: list[Change] = self.trust.store.apply(actions, self.trust.store.index + 1)
            self.perform(self.signing.committed(changes, self.trust.now))

    def edit(self, node: api.Node) -> None:
        """Create or replace a node."""

        def run(tx: Tx) -> None:
            if tx.get(api.Node, node.id) is None:
                tx.create(node)
            else:
                tx.edit(api.Node, node.id).CopyFrom(node)

        self.perform([Write(run)])

    def node(self, node_id: str, csr: bytes = CSR) -> None:
        """A node that wants a certificate."""
        node = api.Node(id=node_id, role=api.WORKER)
        node.certificate.csr, node.certificate.cn, node.certificate.role = csr, node_id, api.WORKER
        node.certificate.status.state = State.RENEW
        self.edit(node)

    def ask(
        self, *, key: bytes = b"", cert: bytes = b"", forced: int = 0, cas: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """UpdateCluster with this CA configuration."""
        cluster = self.trust.cluster
        request = api.UpdateClusterRequest(cluster_id=CLUSTER, cluster_version=cluster.meta.version, spec=cluster.spec)
        config = request.spec.ca_config
        config.signing_ca_cert, config.signing_ca_key, config.force_rotate = cert, key, forced
        del config.external_cas[:]
        for url, root in cas:
            config.external_cas.add(protocol=api.ExternalCA.CFSSL, url=url, ca_cert=root)
        self.perform(self.updates.handle(Call(1, "Control/UpdateCluster", request), self.trust.now))

    def settle(self, outside: InMemoryAuthority) -> None:
        """Let the authority answer until there are no more questions."""
        while self.questions:
            question = self.questions.popleft()
            self.perform(question.done(outside.answer(question.question), self.trust.now))

    def outcome(self) -> api.Cluster:
        """The cluster after the one answered update. Raises what the caller would get."""
        (answer,) = self.answers
        self.answers.clear()
        if isinstance(answer, StreamEnd):
            assert answer.error is not None
            raise answer.error
        return self.trust.cluster

    def renew(self, node_id: str, outside: InMemoryAuthority) -> None:
        """A node gets a new certificate and reports its issuer."""
        node = copy_of(self.trust.node(node_id))
        node.certificate.csr, node.certificate.cn, node.certificate.role = CSR, node_id, node.role
        node.certificate.status.state = State.RENEW
        self.edit(node)
        self.settle(outside)
        node = copy_of(self.trust.node(node_id))
        assert node.certificate.status.state == State.ISSUED
        issuer = RootCA(self.trust.cluster.root_ca.ca_cert, None).verify(node.certificate.certificate, self.trust.now)
        info = node.description.tls_info
        info.cert_issuer_subject, info.cert_issuer_public_key = issuer.subject_der, issuer.public_key_der
        self.edit(node)


@pytest.fixture
def outside() -> InMemoryAuthority:
    return InMemoryAuthority("company")


@pytest.fixture
def desk(trust: TrustHarness) -> SigningHarness:
    return SigningHarness(trust)


@pytest.fixture
def moved(desk: SigningHarness, outside: InMemoryAuthority) -> SigningHarness:
    """A cluster that has gone over to an external authority."""
    desk.ask(cert=outside.pem, cas=[(URL, outside.pem)])
    desk.settle(outside)
    assert desk.outcome().root_ca.HasField("root_rotation")
    desk.renew(MANAGER, outside)
    assert not desk.trust.cluster.root_ca.HasField("root_rotation")
    assert desk.trust.cluster.root_ca.ca_cert == keys.normalize_pem(outside.pem)
    assert not desk.trust.cluster.root_ca.ca_key
    return desk


def test_a_rotation_to_an_authority_without_its_key_ends_with_its_root(
    moved: SigningHarness, outside: InMemoryAuthority
) -> None:
    chain = load_certificates(moved.trust.node(MANAGER).certificate.certificate)
    assert len(chain) == 2  # it came while the old root was still trusted
    moved.renew(MANAGER, outside)
    (leaf,) = load_certificates(moved.trust.node(MANAGER).certificate.certificate)
    leaf.verify_directly_issued_by(outside.root)
    assert outside.issued == 2


def test_the_authority_is_asked_with_the_roots_that_its_server_may_have(
    desk: SigningHarness, outside: InMemoryAuthority
) -> None:
    desk.ask(cert=outside.pem, cas=[(URL, outside.pem), (SPARE, outside.pem), ("https://old/", b"")])
    probe = desk.questions[0].question
    assert probe == FindReachable((URL, SPARE), keys.normalize_pem(outside.pem))
    desk.settle(outside)
    desk.node("n1")
    (ask,) = desk.questions
    assert isinstance(ask.question, Sign)
    assert ask.question.urls == (URL, SPARE)
    assert load_certificates(ask.question.roots_pem) == [ROOT.roots[0], outside.root]


def test_an_update_with_an_enumeration_value_that_nobody_knows_is_refused(desk: SigningHarness) -> None:
    before = copy_of(desk.trust.cluster)
    request = api.UpdateClusterRequest(cluster_id=CLUSTER, cluster_version=before.meta.version, spec=before.spec)
    request.spec.acceptance_policy.policies.add(role=77)
    desk.perform(desk.updates.handle(Call(1, "Control/UpdateCluster", request), desk.trust.now))
    with pytest.raises(InvalidArgument) as refusal:
        desk.outcome()
    text = "invalid argument: spec.acceptance_policy.policies.role has a value that this manager does not know"
    assert str(refusal.value) == text
    assert desk.trust.cluster == before


@pytest.mark.parametrize("cas", [(), [(URL, b"")], [(URL, ROOT.bundle_pem)]])
def test_a_root_without_key_or_authority_is_refused(
    desk: SigningHarness, outside: InMemoryAuthority, cas: Sequence[tuple[str, bytes]]
) -> None:
    desk.ask(cert=outside.pem, cas=cas)
    assert not desk.questions
    with pytest.raises(InvalidArgument) as refusal:
        desk.outcome()
    assert str(refusal.value) == REACHABLE.format("desired")


def test_an_authority_that_is_away_or_has_another_root_is_refused(
    desk: SigningHarness, outside: InMemoryAuthority
) -> None:
    before = copy_of(desk.trust.cluster)
    for authority, away in ((outside, True), (InMemoryAuthority("other"), False)):
        authority.away = away
        desk.ask(cert=outside.pem, cas=[(URL, outside.pem)])
        desk.settle(authority)
        with pytest.raises(InvalidArgument) as refusal:
            desk.outcome()
        assert str(refusal.value) == REACHABLE.format("desired")
    assert desk.trust.cluster == before


def test_the_needed_authority_cannot_be_taken_away(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    moved.ask(cas=())
    with pytest.raises(InvalidArgument) as refusal:
        moved.outcome()
    assert str(refusal.value) == REACHABLE.format("current")
    moved.ask(cas=[(SPARE, b"")])
    moved.settle(outside)
    assert moved.outcome().spec.ca_config.external_cas[0].url == SPARE


def test_from_one_authority_to_another_is_not_supported(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    other = InMemoryAuthority("other")
    moved.ask(cert=other.pem, cas=[(URL, outside.pem), (SPARE, other.pem)])
    while moved.questions:
        ask = moved.questions.popleft()
        authority = outside if URL in ask.question.urls else other
        moved.perform(ask.done(authority.answer(ask.question), moved.trust.now))
    with pytest.raises(InvalidArgument) as refusal:
        moved.outcome()
    assert str(refusal.value) == "rotating from one external CA to a different external CA is not supported"


def test_back_to_a_key_of_our_own_the_authority_signs_the_new_root(
    moved: SigningHarness, outside: InMemoryAuthority
) -> None:
    outside.cross_signs = True
    moved.ask(forced=1, cas=[(URL, b"")])
    moved.settle(outside)
    rotation = moved.outcome().root_ca.root_rotation
    crossed = load_certificates(rotation.cross_signed_ca_cert)[0]
    crossed.verify_directly_issued_by(outside.root)
    assert crossed.public_key() == load_certificates(rotation.ca_cert)[0].public_key()
    issued = outside.issued
    moved.renew(MANAGER, outside)
    assert outside.issued == issued  # we sign ourselves again
    assert not moved.trust.cluster.root_ca.HasField("root_rotation")
    assert moved.trust.cluster.root_ca.ca_key


@pytest.mark.parametrize("away", [True, False])
def test_a_root_that_the_authority_does_not_sign_is_not_rotated_to(
    moved: SigningHarness, outside: InMemoryAuthority, away: bool
) -> None:
    before = copy_of(moved.trust.cluster)
    moved.ask(forced=1, cas=[(URL, b"")])
    probe = moved.questions.popleft()
    moved.perform(probe.done(Outcome(), moved.trust.now))
    outside.away = away  # else it signs, but no intermediates
    moved.settle(outside)
    with pytest.raises(SwarmError, match=r"unable to generate a cross-signed certificate for root rotation: ."):
        moved.outcome()
    assert moved.trust.cluster == before


def test_the_key_may_come_and_go_without_a_rotation(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    moved.ask(cert=outside.pem, key=outside.key_pem)
    assert not moved.questions
    cluster = moved.outcome()
    assert cluster.root_ca.ca_key == outside.key_pem
    assert not cluster.root_ca.HasField("root_rotation")
    issued = outside.issued
    moved.renew(MANAGER, outside)
    assert outside.issued == issued
    moved.ask(cert=outside.pem, cas=[(URL, b"")])
    moved.settle(outside)
    assert not moved.outcome().root_ca.ca_key
    moved.renew(MANAGER, outside)
    assert outside.issued == issued + 1


def test_a_key_that_does_not_fit_is_refused(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    moved.ask(cert=outside.pem, key=keys.private_key_pem(KEY))
    with pytest.raises(InvalidArgument, match="certificate key mismatch"):
        moved.outcome()


def test_a_request_that_is_refused_fails_with_the_reason(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    moved.node("n1", csr=b"nonsense")
    moved.settle(outside)
    status = moved.trust.node("n1").certificate.status
    assert (status.state, status.err) == (State.FAILED, "unable to sign requested certificate: malformed request")


def test_a_certificate_of_another_root_fails_the_request(moved: SigningHarness) -> None:
    moved.node("n1")
    moved.settle(InMemoryAuthority("other"))
    status = moved.trust.node("n1").certificate.status
    assert (status.state, status.err) == (State.FAILED, "x509: certificate signed by unknown authority")


def test_while_the_authority_is_away_one_question_waits_and_pauses_grow(
    moved: SigningHarness, outside: InMemoryAuthority
) -> None:
    outside.away = True
    for number in range(50):
        moved.node(f"n{number}")
    assert len(moved.questions) == defaults.EXTERNAL_CA_REQUESTS_MAX
    moved.settle(outside)
    pauses = []
    for _ in range(8):
        due = moved.signing.deadline()
        assert due is not None
        pauses.append(due - moved.trust.now)
        moved.perform(moved.signing.wake(due - 0.01))
        assert not moved.questions
        moved.trust.now = due
        moved.perform(moved.signing.wake(due))
        assert len(moved.questions) == 1
        moved.settle(outside)
    assert all(0.0 < pause <= defaults.EXTERNAL_CA_RETRY_MAX_S for pause in pauses)
    assert pauses[-1] > pauses[0] / 2 >= 0.25
    outside.away = False
    moved.trust.now += defaults.EXTERNAL_CA_RETRY_MAX_S
    moved.perform(moved.signing.wake(moved.trust.now))
    moved.settle(outside)
    states = {node.certificate.status.state for node in moved.trust.store.all(api.Node)}
    assert states == {State.ISSUED}
    assert moved.signing.deadline() is None


def test_other_servers_are_asked_at_once(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    outside.away = True
    moved.node("n1")
    moved.settle(outside)
    assert not moved.questions
    outside.away = False
    moved.ask(cas=[(SPARE, b"")])
    moved.settle(outside)
    moved.outcome()
    moved.perform(moved.signing.wake(moved.trust.now))
    moved.settle(outside)
    assert moved.trust.node("n1").certificate.status.state == State.ISSUED


def test_a_request_that_changed_meanwhile_is_asked_for_again(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    moved.node("n1")
    other = keys.new_private_key()
    moved.node("n1", csr=keys.new_csr(other))
    assert len(moved.questions) == 1
    moved.settle(outside)
    assert moved.trust.node("n1").certificate.status.state == State.RENEW
    moved.perform(moved.signing.wake(moved.trust.now))
    moved.settle(outside)
    leaf = load_certificates(moved.trust.node("n1").certificate.certificate)[0]
    assert leaf.public_key() == other.public_key()


def test_a_new_leader_asks_for_what_is_open(moved: SigningHarness, outside: InMemoryAuthority) -> None:
    moved.node("n1")
    moved.questions.clear()
    successor = SigningHarness(moved.trust)
    assert successor.signing.deadline() == moved.trust.now
    successor.perform(successor.signing.wake(moved.trust.now))
    successor.settle(outside)
    assert moved.trust.node("n1").certificate.status.state == State.ISSUED


def test_leadership_that_ends_before_the_answer_leaves_the_update_to_the_next_leader(
    desk: SigningHarness, outside: InMemoryAuthority
) -> None:
    desk.ask(cert=outside.pem, cas=[(URL, outside.pem)])
    (ended,) = desk.updates.stop()
    assert isinstance(ended, StreamEnd)
    assert isinstance(ended.error, NotTaken)


def test_nothing_is_changed_for_a_caller_who_went_away(desk: SigningHarness, outside: InMemoryAuthority) -> None:
    desk.ask(cert=outside.pem, cas=[(URL, outside.pem)])
    desk.updates.handle(StreamEnd(1, Unavailable("gone")), desk.trust.now)
    desk.settle(outside)
    assert not desk.trust.cluster.root_ca.HasField("root_rotation")
    assert not desk.answers


def test_with_a_key_and_servers_the_servers_sign(desk: SigningHarness) -> None:
    """As in SwarmKit: servers for the root in use go before its key."""
    inside = InMemoryAuthority("ours")
    desk.ask(cas=[(URL, b"")])
    assert not desk.questions  # with a key in the store their servers are not probed
    desk.outcome()
    desk.node("n1")
    assert len(desk.questions) == 1
    assert desk.trust.node("n1").certificate.status.state == State.RENEW
    desk.settle(inside)
    desk.ask(cas=())
    desk.outcome()
    desk.node("n2")
    assert not desk.questions
    leaf = load_certificates(desk.trust.node("n2").certificate.certificate)[0]
    leaf.verify_directly_issued_by(ROOT.roots[0])
    assert isinstance(leaf, x509.Certificate)


def test_the_keys_of_certificates_from_outside_are_on_record_and_an_absent_authority_locks_nobody_out(
    moved: SigningHarness, outside: InMemoryAuthority
) -> None:
    trust = moved.trust

    def ask(peer: Peer, csr: bytes, token: str = "") -> None:
        request = api.IssueNodeCertificateRequest(csr=csr, token=token)
        (write,) = trust.service.handle(Call(9, "NodeCA/IssueNodeCertificate", request, peer), trust.now)
        assert isinstance(write, Write)
        moved.perform(moved.run(write))

    nodes = {node.id: None for node in trust.store.all(api.Node)}
    ask(Peer(), keys.new_csr(keys.new_private_key()), trust.cluster.root_ca.join_tokens.worker)
    moved.settle(outside)
    (node_id,) = (node.id for node in trust.store.all(api.Node) if node.id not in nodes)
    first = peer_of(trust.node(node_id).certificate.certificate)
    outside.away = True
    for _ in range(3):
        ask(first, keys.new_csr(keys.new_private_key()))
        moved.settle(outside)
        assert trust.node(node_id).authority.key == first.key
    outside.away = False
    trust.now += defaults.EXTERNAL_CA_RETRY_MAX_S
    moved.perform(moved.signing.wake(trust.now))
    moved.settle(outside)
    second = peer_of(trust.node(node_id).certificate.certificate)
    assert list(trust.node(node_id).authority.issued) == [second.key]
    ask(second, keys.new_csr(keys.new_private_key()))
    request = api.IssueNodeCertificateRequest(csr=CSR)
    (refusal,) = trust.service.handle(Call(9, "NodeCA/IssueNodeCertificate", request, first), trust.now)
    assert isinstance(refusal, StreamEnd)
    assert "the certificate is superseded" in str(refusal.error)
