"""Joining and renewing: first against a real server with the real authority, then every mishap with a scripted one."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from random import Random

import pytest
from google.protobuf.message import Message

from certs import keys
from certs.errors import (
    FingerprintMismatch,
    FipsRequired,
    InvalidCertificate,
    InvalidJoinToken,
    InvalidRoot,
    UnknownAuthority,
    UntrustedChain,
)
from certs.keys import identity_of
from certs.keystore import Kek
from certs.root import RootCA
from certs.tls import ClientTls, Credentials, server_context
from certs.tokens import join_token, new_join_token
from swarm import api, defaults
from swarm.api.methods import Method, Req, Res
from swarm.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    SwarmError,
    Unavailable,
    Unimplemented,
)
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.grpc.server import RpcServer
from swarm.io.node.world import REAL
from swarm.manager.certificates import CertificateAuthority, is_blacklisted
from swarm.node import bootstrap
from swarm.node.bootstrap import World
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from swarm.store.tx import Tx
from tests.swarm.manager.trust.conftest import CLUSTER, MANAGER, TrustHarness

NOW = 1_795_362_749.0


# --- a real manager ------------------------------------------------------------------------------------------------


class Manager:
    """Port 2377 of a leader that has only its certificate authority."""

    def __init__(self) -> None:
        now = time.time()
        self.root = RootCA.create(now)
        self.lab = TrustHarness(now, self.root)
        key = keys.new_private_key()
        certificate = self.root.sign(keys.new_csr(key), MANAGER, "swarm-manager", CLUSTER, now, 0)
        self.credentials = Credentials(certificate, keys.private_key_pem(key))
        self.context = server_context(self.credentials, self.root.bundle_pem)
        authorizer = ClusterAuthorizer(CLUSTER, lambda node_id: is_blacklisted(self.lab.store, CLUSTER, node_id))
        self.certificate_errors: Counter[bool] = Counter()
        self.server = RpcServer(
            self._handle,
            lambda: self.context,
            authorizer,
            itertools.count(1),
            certificate_errors=self.certificate_errors,
        )

    def _handle(self, event: Call | StreamData | StreamEnd) -> None:
        assert isinstance(event, Call)
        assert event.request is not None
        for effect in self.lab.call(event.method, event.request, event.peer, event.stream):
            assert isinstance(effect, Reply | StreamEnd)
            self.server.send(effect)

    @property
    def addresses(self) -> list[str]:
        return self.server.addresses

    def token(self, role: str) -> str:
        return str(getattr(self.lab.cluster.root_ca.join_tokens, role))

    def edit(self, change: Callable[[Tx], object]) -> None:
        self.lab.edit(change)


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    manager = Manager()
    await manager.server.listen("127.0.0.1", 0)
    yield manager
    await manager.server.close(0)


async def no_sleep(_: float) -> None:
    """Time passes quickly in tests."""


IMPATIENT = replace(REAL, sleep=no_sleep)


async def test_a_worker_joins_and_renews(manager: Manager) -> None:
    issued = await bootstrap.join(manager.addresses, manager.token("worker"), api.NodeSpec.DRAIN, Random(1), REAL)
    identity = identity_of(issued.credentials.certificate_pem)
    assert (identity.role, identity.org) == ("swarm-worker", CLUSTER)
    assert manager.lab.node(identity.node_id).spec.availability == api.NodeSpec.DRAIN
    assert (issued.root_pem, issued.kek) == (manager.root.bundle_pem, Kek())
    renewed = await bootstrap.renew(manager.addresses, issued.root_pem, issued.credentials, Random(2), REAL)
    assert identity_of(renewed.credentials.certificate_pem) == identity
    assert renewed.credentials != issued.credentials
    assert manager.lab.store.count(api.Node) == 2


async def test_a_manager_joins_and_learns_the_unlock_key(manager: Manager) -> None:
    def lock(tx: Tx) -> None:
        cluster = tx.edit(api.Cluster, CLUSTER)
        cluster.spec.encryption_config.auto_lock_managers = True
        cluster.unlock_keys.add(subsystem="swarm-manager", key=b"k" * 32)

    manager.edit(lock)
    issued = await bootstrap.join(manager.addresses, manager.token("manager"), 0, Random(1), REAL)
    assert identity_of(issued.credentials.certificate_pem).role == "swarm-manager"
    assert issued.kek == Kek(b"k" * 32, manager.lab.cluster.meta.version.index)


async def test_a_promoted_worker_comes_back_as_a_manager(manager: Manager) -> None:
    issued = await bootstrap.join(manager.addresses, manager.token("worker"), 0, Random(1), REAL)
    node_id = identity_of(issued.credentials.certificate_pem).node_id
    manager.edit(lambda tx: setattr(tx.edit(api.Node, node_id), "role", api.MANAGER))
    renewed = await bootstrap.renew(manager.addresses, issued.root_pem, issued.credentials, Random(1), REAL)
    assert identity_of(renewed.credentials.certificate_pem).role == "swarm-manager"


async def test_a_wrong_secret_is_refused_with_the_text_that_users_know(manager: Manager) -> None:
    token = join_token(manager.root.digest, 5)
    with pytest.raises(SwarmError) as caught:
        await bootstrap.join(manager.addresses, token, 0, Random(1), IMPATIENT)
    assert caught.value.rpc_text == (
        "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"
    )
    assert manager.lab.store.count(api.Node) == 1


async def test_a_manager_that_the_group_does_not_take_is_refused_at_once(manager: Manager) -> None:
    manager.lab.service = CertificateAuthority(manager.lab.store, CLUSTER, may_grow=lambda: False)

    async def impatient(_: float) -> None:
        raise AssertionError("there is nothing to wait for")

    with pytest.raises(SwarmError, match="join as a worker"):
        await bootstrap.join(manager.addresses, manager.token("manager"), 0, Random(1), replace(REAL, sleep=impatient))
    assert manager.lab.store.count(api.Node) == 1


async def test_a_cluster_with_another_root_is_not_joined(manager: Manager) -> None:
    token = join_token("ab" * 32, 5)
    with pytest.raises(FingerprintMismatch, match=f"remote CA does not match fingerprint. Expected: {'ab' * 32}"):
        await bootstrap.join(manager.addresses, token, 0, Random(1), IMPATIENT)


async def test_a_removed_node_cannot_renew(manager: Manager) -> None:
    issued = await bootstrap.join(manager.addresses, manager.token("worker"), 0, Random(1), REAL)
    node_id = identity_of(issued.credentials.certificate_pem).node_id
    manager.edit(lambda tx: tx.edit(api.Cluster, CLUSTER).blacklisted_certificates[node_id].Clear())
    with pytest.raises(SwarmError, match="A valid join token"):
        await bootstrap.renew(manager.addresses, issued.root_pem, issued.credentials, Random(1), IMPATIENT)


async def test_a_manager_that_is_not_there_is_reported_as_docker_prints_it(manager: Manager) -> None:
    address = manager.addresses[0]
    await manager.server.close(0)
    with pytest.raises(Unavailable) as caught:
        await bootstrap.join([address], manager.token("worker"), 0, Random(1), IMPATIENT)
    assert caught.value.rpc_text == (
        'rpc error: code = Unavailable desc = connection error: desc = "transport: '
        f'Error while dialing dial tcp {address}: connect: connection refused"'
    )


# --- a scripted manager --------------------------------------------------------------------------------------------

ROOT = RootCA.create(NOW)
NEXT = RootCA.create(NOW)
TOKEN = new_join_token(ROOT.bundle_pem, Random(1))
State = api.IssuanceStatus

Script = dict[str, list[Message | Exception]]


class Scripted:
    """A world in which managers answer by a script, one list per method, its last entry for ever.

    "dial" is a method too. Signs what it is asked to sign with ``root`` for ``role``.
    """

    def __init__(
        self, role: str = "swarm-worker", root: RootCA = ROOT, **script: Sequence[Message | Exception]
    ) -> None:
        self.role, self.root = role, root
        self.script: Script = {name: list(answers) for name, answers in script.items()}
        self.calls: list[str] = []
        self.slept: list[float] = []
        self.tls: list[ClientTls] = []
        self.dialled: list[str] = []
        self.open = 0
        self.csr = b""
        self.world = World(self._dial, self._sleep, lambda: NOW, REAL.new_key)

    async def _sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)

    async def _dial(self, address: str, tls: ClientTls, timeout_s: float) -> ScriptedConnection:
        self._next("dial")
        self.dialled.append(address)
        self.tls.append(tls)
        self.open += 1
        return ScriptedConnection(self)

    def _next(self, name: str) -> Message | None:
        self.calls.append(name)
        answers = self.script.get(name, [])
        answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def respond(self, name: str, request: Message) -> Message:
        answer = self._next(name)
        if isinstance(request, api.IssueNodeCertificateRequest):
            self.csr = request.csr
        return answer if answer is not None else getattr(self, f"_{name}")()

    def _GetRootCACertificate(self) -> Message:
        return api.GetRootCACertificateResponse(certificate=self.root.bundle_pem)

    def _IssueNodeCertificate(self) -> Message:
        return api.IssueNodeCertificateResponse(node_id="n1", node_membership=api.NodeSpec.ACCEPTED)

    def _NodeCertificateStatus(self) -> Message:
        return self.signed(State.ISSUED)

    def _GetUnlockKey(self) -> Message:
        return api.GetUnlockKeyResponse(version=api.Version(index=4))

    def signed(self, state: State.State, csr: bytes | None = None) -> api.NodeCertificateStatusResponse:
        """The status of the request that was made last."""
        certificate = api.Certificate(csr=csr or self.csr, status=State(state=state, err="because"))
        certificate.certificate = self.root.sign(self.csr, "n1", self.role, CLUSTER, NOW, 0)
        return api.NodeCertificateStatusResponse(status=certificate.status, certificate=certificate)


class ScriptedConnection:
    """One connection of a Scripted world."""

    def __init__(self, scripted: Scripted) -> None:
        self.scripted = scripted
        self.closed = False

    async def unary(self, method: Method[Req, Res], request: Req, timeout_s: float | None = None) -> Res:
        assert not self.closed
        assert timeout_s == defaults.CERTIFICATE_CALL_TIMEOUT_S
        return method.checked_response(self.scripted.respond(method.name.partition("/")[2], request))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.scripted.open -= 1


async def join(scripted: Scripted, token: str = TOKEN) -> bootstrap.Issued:
    try:
        return await bootstrap.join(["m1:2377", "m2:2377"], token, 0, Random(3), scripted.world)
    finally:
        assert scripted.open == 0


async def test_the_steps_of_a_join_and_the_names_that_servers_are_asked_for() -> None:
    scripted = Scripted("swarm-manager")
    issued = await join(scripted)
    assert [call for call in scripted.calls if call != "dial"] == [
        "GetRootCACertificate",
        "IssueNodeCertificate",
        "NodeCertificateStatus",
        "GetUnlockKey",
    ]
    assert scripted.tls == [
        ClientTls("swarm-ca", None),
        ClientTls("swarm-ca", ROOT.bundle_pem),
        ClientTls("swarm-ca", ROOT.bundle_pem, issued.credentials),
    ]
    assert sorted(set(scripted.dialled)) == ["m1:2377", "m2:2377"]
    assert scripted.slept == []
    assert issued.kek == Kek(b"", 4)


async def test_a_root_that_was_fetched_before_is_not_fetched_again() -> None:
    scripted = Scripted()
    await bootstrap.join(["m"], TOKEN, 0, Random(3), scripted.world, root_pem=ROOT.bundle_pem)
    assert "GetRootCACertificate" not in scripted.calls
    await bootstrap.join(["m"], TOKEN, 0, Random(3), scripted.world, root_pem=NEXT.bundle_pem)
    assert "GetRootCACertificate" in scripted.calls


@pytest.mark.parametrize("name", ["dial", "GetRootCACertificate", "IssueNodeCertificate", "GetUnlockKey"])
async def test_a_step_that_fails_is_repeated_with_another_manager(name: str) -> None:
    scripted = Scripted("swarm-manager")
    failures = defaults.CERTIFICATE_ATTEMPTS_MAX - 1
    scripted.script[name] = [Unavailable("election")] * failures
    good = {"dial": api.Version(), "IssueNodeCertificate": scripted._IssueNodeCertificate()}
    good |= {"GetRootCACertificate": scripted._GetRootCACertificate(), "GetUnlockKey": scripted._GetUnlockKey()}
    scripted.script[name].append(good[name])
    await join(scripted)
    assert scripted.slept == [2.0] * failures


async def test_five_failures_are_enough() -> None:
    scripted = Scripted(GetRootCACertificate=[Unavailable("gone")])
    with pytest.raises(Unavailable, match="gone"):
        await join(scripted)
    assert scripted.calls.count("GetRootCACertificate") == 5
    assert scripted.slept == [2.0] * 4


async def test_without_any_address_there_is_nobody_to_ask() -> None:
    with pytest.raises(Unavailable, match="no remote hosts provided"):
        await bootstrap.join([], TOKEN, 0, Random(3), Scripted().world)


async def test_a_malformed_token_is_refused_before_anybody_is_asked() -> None:
    scripted = Scripted()
    with pytest.raises(InvalidJoinToken):
        await join(scripted, "SWMTKN-1-x")
    assert scripted.calls == []


async def test_without_a_token_nobody_is_asked() -> None:
    scripted = Scripted()
    with pytest.raises(InvalidArgument, match="A valid join token is necessary to join this cluster"):
        await join(scripted, "")
    assert scripted.calls == []


async def test_a_fips_cluster_is_not_joined_by_others() -> None:
    with pytest.raises(FipsRequired, match="node is not FIPS-enabled but cluster requires FIPS"):
        await join(Scripted(), join_token(ROOT.digest, 5, fips=True))


async def test_a_root_that_is_none_is_refused() -> None:
    scripted = Scripted(GetRootCACertificate=[api.GetRootCACertificateResponse(certificate=b"x")])
    with pytest.raises(InvalidRoot):
        await join(scripted, new_join_token(b"x", Random(1)))


async def test_answers_to_earlier_requests_and_deadlines_are_waited_out() -> None:
    scripted = Scripted()
    old = api.NodeCertificateStatusResponse(certificate=api.Certificate(csr=b"old", certificate=b"old"))
    old.status.state = State.ISSUED
    scripted.script["NodeCertificateStatus"] = [old, DeadlineExceeded("slow"), old]
    world = scripted.world

    async def sleep(delay_s: float) -> None:
        scripted.slept.append(delay_s)
        if len(scripted.slept) == 3:
            scripted.script["NodeCertificateStatus"] = [scripted.signed(State.ROTATE)]

    patient = replace(world, sleep=sleep)
    issued = await bootstrap.request_certificate(["m"], ROOT.bundle_pem, Random(3), patient, token="t")
    assert identity_of(issued.credentials.certificate_pem).node_id == "n1"
    assert len(scripted.slept) == 3
    assert all(delay <= bound for delay, bound in zip(scripted.slept, (2.0, 3.0, 5.0), strict=True))
    assert scripted.calls.count("dial") == 1


async def test_a_connection_that_breaks_while_waiting_is_replaced() -> None:
    scripted = Scripted()
    pending = api.NodeCertificateStatusResponse()
    scripted.script["NodeCertificateStatus"] = [Unavailable("broken"), pending]
    world = scripted.world

    async def sleep(delay_s: float) -> None:
        scripted.slept.append(delay_s)
        if len(scripted.slept) == 2:
            scripted.script["NodeCertificateStatus"] = [scripted.signed(State.ISSUED)]

    patient = replace(world, sleep=sleep)
    await bootstrap.request_certificate(["m"], ROOT.bundle_pem, Random(3), patient, token="t")
    assert scripted.calls == [
        "dial",
        "IssueNodeCertificate",
        "NodeCertificateStatus",
        "dial",
        "NodeCertificateStatus",
        "NodeCertificateStatus",
    ]
    assert scripted.open == 0


async def test_a_node_that_is_removed_meanwhile_does_not_wait_for_ever() -> None:
    scripted = Scripted(NodeCertificateStatus=[NotFound("NotFound")])
    with pytest.raises(NotFound):
        await join(scripted)


async def test_a_refused_request_is_not_made_again() -> None:
    scripted = Scripted()
    scripted._NodeCertificateStatus = lambda: scripted.signed(State.FAILED)  # type: ignore[method-assign]
    with pytest.raises(InvalidArgument, match="because"):
        await join(scripted)
    assert scripted.calls.count("IssueNodeCertificate") == 1


async def test_a_certificate_for_another_key_is_refused() -> None:
    scripted = Scripted()
    other = keys.new_csr(keys.new_private_key())

    def forged() -> Message:
        response = scripted.signed(State.ISSUED)
        response.certificate.certificate = ROOT.sign(other, "n1", "swarm-worker", CLUSTER, NOW, 0)
        return response

    scripted._NodeCertificateStatus = forged  # type: ignore[method-assign]
    with pytest.raises(InvalidCertificate, match="tls: private key does not match public key"):
        await join(scripted)


async def test_a_manager_without_locks_counts_as_unlocked() -> None:
    scripted = Scripted("swarm-manager", GetUnlockKey=[Unimplemented("unknown method")])
    assert (await join(scripted)).kek == Kek()


async def test_an_unlock_key_of_another_length_is_refused() -> None:
    scripted = Scripted("swarm-manager", GetUnlockKey=[api.GetUnlockKeyResponse(unlock_key=b"abc")])
    with pytest.raises(SwarmError, match="unlock key has 3 bytes"):
        await join(scripted)


# --- renewal across a root rotation --------------------------------------------------------------------------------


def credentials(root: RootCA, role: str) -> Credentials:
    key = keys.new_private_key()
    certificate = root.sign(keys.new_csr(key), "n1", role, CLUSTER, NOW, 0)
    return Credentials(certificate, keys.private_key_pem(key))


ROTATING = RootCA(ROOT.bundle_pem, NEXT.key_pem, ROOT.cross_sign(NEXT.bundle_pem))


async def renew(scripted: Scripted, own: Credentials) -> bootstrap.Issued:
    return await bootstrap.renew(["m"], ROOT.bundle_pem, own, Random(3), scripted.world)


async def test_a_renewal_shows_the_certificate_in_use() -> None:
    scripted, own = Scripted(), credentials(ROOT, "swarm-worker")
    issued = await renew(scripted, own)
    assert scripted.tls == [ClientTls("swarm-manager", ROOT.bundle_pem, own)]
    assert issued.root_pem == ROOT.bundle_pem


async def test_a_worker_that_missed_the_end_of_a_rotation_takes_the_new_root() -> None:
    scripted, own = Scripted(root=NEXT), credentials(ROTATING, "swarm-worker")
    issued = await renew(scripted, own)
    assert issued.root_pem == NEXT.bundle_pem
    assert NEXT.verify(issued.credentials.certificate_pem, NOW) == NEXT.issuer


async def test_a_worker_takes_no_root_that_did_not_sign_its_certificate() -> None:
    with pytest.raises(UntrustedChain):
        await renew(Scripted(root=NEXT), credentials(ROOT, "swarm-worker"))


async def test_a_manager_never_takes_a_root_from_others() -> None:
    scripted = Scripted("swarm-manager", root=NEXT)
    with pytest.raises(UnknownAuthority):
        await renew(scripted, credentials(ROTATING, "swarm-manager"))
    assert "GetRootCACertificate" not in scripted.calls


async def test_the_root_alone_can_be_fetched() -> None:
    assert await bootstrap.fetch_root(["m"], ROOT.digest, Random(1), Scripted().world) == ROOT.bundle_pem


async def test_a_certificate_that_was_saved_and_shown_supersedes_the_one_before(manager: Manager) -> None:
    first = await bootstrap.join(manager.addresses, manager.token("worker"), 0, Random(1), REAL)
    second = await bootstrap.renew(manager.addresses, first.root_pem, first.credentials, Random(1), REAL)
    await bootstrap.renew(manager.addresses, first.root_pem, first.credentials, Random(1), REAL)  # not saved: again
    await bootstrap.confirm(manager.addresses, second.root_pem, second.credentials, Random(1), REAL)
    with pytest.raises(SwarmError, match="the certificate is superseded"):
        await bootstrap.renew(manager.addresses, first.root_pem, first.credentials, Random(1), IMPATIENT)
    await bootstrap.renew(manager.addresses, second.root_pem, second.credentials, Random(1), REAL)


async def test_a_confirmation_that_nobody_hears_is_no_failure_of_the_renewal(manager: Manager) -> None:
    issued = await bootstrap.join(manager.addresses, manager.token("worker"), 0, Random(1), REAL)
    await manager.server.close(0)
    await bootstrap.confirm(manager.addresses, issued.root_pem, issued.credentials, Random(1), IMPATIENT)
    await bootstrap.confirm([], issued.root_pem, issued.credentials, Random(1), IMPATIENT)
