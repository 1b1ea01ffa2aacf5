"""Nodes whose certificate expired while they were off, and hosts whose clocks are wrong, on a real port 2377."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import pytest
import structlog

from certs import keys
from certs.errors import CertificateExpired
from certs.keys import identity_of
from certs.root import NODE_BACKDATE_S, RootCA
from certs.tls import ClientTls, Credentials, member_context
from certs.validity import own_certificate_error
from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import Method, Req, Res
from swarm.errors import PermissionDenied, SwarmError, Unavailable
from swarm.grpc.authorize import forwarding_metadata
from swarm.io.grpc import client
from swarm.io.node.world import REAL
from swarm.manager.controlapi.clusters import expire_blacklist
from swarm.manager.controlapi.nodes import remove_node
from swarm.node import bootstrap, own_certificate
from swarm.rpc import Peer, Reply
from swarm.store.tx import Tx
from tests.swarm.node.test_bootstrap import CLUSTER, Manager, no_sleep

DAY_S = 86400.0
HEALTH = api.HealthCheckRequest(service="Raft")


class Old(Manager):
    """A manager of a cluster that is a year old, with a valid certificate of its own."""

    def __init__(self) -> None:
        super().__init__()
        began = time.time() - 365 * DAY_S
        self.root = RootCA.create(began)
        self.lab = type(self.lab)(time.time(), self.root)
        self.credentials = self.issue("manager1", "swarm-manager")
        self.context = member_context(self.credentials, self.root.bundle_pem)

    def issue(
        self, node_id: str, role: str = "swarm-worker", ended_s: float | None = None, life_days: float = 10
    ) -> Credentials:
        """Credentials that ended so many seconds ago."""
        key, now, life_s = keys.new_private_key(), time.time(), life_days * DAY_S - NODE_BACKDATE_S
        signed = now if ended_s is None else now - ended_s - life_s
        certificate = self.root.sign(keys.new_csr(key), node_id, role, CLUSTER, signed, life_s)
        return Credentials(certificate, keys.private_key_pem(key))

    def on_record(self, node_id: str, credentials: Credentials) -> Credentials:
        """The last certificate that the node got is this one."""

        def change(tx: Tx) -> None:
            node = tx.edit(api.Node, node_id)
            node.ClearField("authority")
            node.certificate.certificate = credentials.certificate_pem

        self.edit(change)
        return credentials

    def tls(self, credentials: Credentials | None) -> ClientTls:
        return ClientTls("swarm-manager", self.root.bundle_pem, credentials)

    async def call(self, credentials: Credentials, method: Method[Req, Res], request: Req) -> Res:
        connection = await client.connect(self.addresses[0], self.tls(credentials))
        try:
            return await connection.unary(method, request, 5.0)
        finally:
            connection.close()


@pytest.fixture
async def old() -> AsyncIterator[Old]:
    manager = Old()
    await manager.server.listen("127.0.0.1", 0)
    yield manager
    await manager.server.close(0)


@pytest.fixture
async def node(old: Old) -> str:
    """The ID of a worker of the cluster."""
    joined = await bootstrap.join(old.addresses, old.token("worker"), api.NodeSpec.ACTIVE, Random(1), REAL)
    return identity_of(joined.credentials.certificate_pem).node_id


async def test_an_expired_node_renews_and_nothing_else(old: Old, node: str) -> None:
    expired = old.on_record(node, old.issue(node, ended_s=5 * DAY_S))
    with structlog.testing.capture_logs() as lines:
        calls = (
            old.call(expired, rpc.HEARTBEAT, api.HeartbeatRequest()),
            old.call(expired, rpc.GET_UNLOCK_KEY, api.GetUnlockKeyRequest()),
            old.call(expired, rpc.LIST_NODES, api.ListNodesRequest()),
        )
        for call in calls:
            with pytest.raises(SwarmError, match=f"Permission denied: x509: .* of node {node} expired at .* renewed"):
                await call
        renewed = await bootstrap.renew(old.addresses, old.root.bundle_pem, expired, Random(1), REAL)
    assert identity_of(renewed.credentials.certificate_pem) == identity_of(expired.certificate_pem)
    assert own_certificate_error(renewed.credentials.certificate_pem, time.time()) == ""
    assert old.lab.store.count(api.Node) == 2
    told = [line for line in lines if line["event"] == "certificate.expired"]
    assert [(line["node"], line["role"]) for line in told] == [(node, "swarm-worker")]  # once, not for each connection
    assert old.certificate_errors[True] >= 4


async def test_an_expired_copy_of_a_node_that_has_renewed_since_is_refused_and_its_finder_reads_why(
    old: Old, node: str
) -> None:
    stolen = old.issue(node, ended_s=5 * DAY_S)
    old.edit(lambda tx: setattr(tx.edit(api.Node, node), "role", api.MANAGER))
    before = old.lab.node(node)
    with pytest.raises(SwarmError, match="the certificate is superseded") as refusal:
        await bootstrap.renew(old.addresses, old.root.bundle_pem, stolen, Random(1), replace(REAL, sleep=no_sleep))
    assert old.lab.node(node) == before
    assert own_certificate.trouble(str(refusal.value), stolen.certificate_pem, time.time()) == str(refusal.value)


async def test_after_the_window_it_is_told_to_join_again(old: Old, node: str) -> None:
    expired = old.issue(node, ended_s=11 * DAY_S + 120.0)
    with pytest.raises(SwarmError) as refusal:
        await bootstrap.renew(old.addresses, old.root.bundle_pem, expired, Random(1), replace(REAL, sleep=no_sleep))
    assert "11d before this manager's clock" in str(refusal.value)
    assert (
        "could only be renewed within 10d after that: unless one of the clocks is wrong, that node must leave"
        in str(refusal.value)
    )
    assert old.certificate_errors[False] > 0
    assert old.lab.node(node).certificate.status.state == api.IssuanceStatus.ISSUED
    assert own_certificate.trouble(str(refusal.value), expired.certificate_pem, time.time()) == str(refusal.value)


async def test_a_node_with_an_expired_certificate_may_still_fetch_the_root(old: Old, node: str) -> None:
    answer = await old.call(
        old.issue(node, ended_s=30 * DAY_S), rpc.GET_ROOT_CA_CERTIFICATE, api.GetRootCACertificateRequest()
    )
    assert isinstance(answer, api.GetRootCACertificateResponse)
    assert answer.certificate == old.root.bundle_pem


async def test_a_removed_node_does_not_come_back_by_its_expired_certificate(old: Old, node: str) -> None:
    expired = old.issue(node, ended_s=DAY_S)
    old.edit(lambda tx: tx.edit(api.Cluster, CLUSTER).blacklisted_certificates[node].SetInParent())
    request = api.IssueNodeCertificateRequest(csr=keys.new_csr(keys.new_private_key()))
    with pytest.raises(SwarmError, match=f"node {node} was removed from swarm"):
        await old.call(expired, rpc.ISSUE_NODE_CERTIFICATE, request)
    old.edit(lambda tx: tx.edit(api.Cluster, CLUSTER).blacklisted_certificates.pop(node))
    old.edit(lambda tx: tx.remove(api.Node, node))
    with pytest.raises(SwarmError, match="not found when attempting to renew certificate"):
        await old.call(expired, rpc.ISSUE_NODE_CERTIFICATE, request)


class NoGroup:
    """The Raft group, as far as the removal of a node that is in none asks."""

    def is_member(self, node_id: str) -> bool:
        return False

    def can_spare(self, node_id: str) -> bool:
        return True

    def can_remove(self, node_id: str) -> bool:
        return True

    def may_grow(self) -> bool:
        return True

    def member_of(self, node_id: str) -> api.ManagerStatus | None:
        return None


def remove(manager: Old, node: str, last: Credentials, removed_s: float) -> None:
    """`docker node rm` of a node that never had another certificate than this one, at this time."""
    tx = Tx(manager.lab.store, removed_s, Random(1))
    removed = tx.edit(api.Node, node)
    removed.ClearField("authority")
    removed.certificate.certificate = last.certificate_pem
    remove_node(tx, api.RemoveNodeRequest(node_id=node, force=True), NoGroup())
    manager.lab.commit(tx)


def tidied(manager: Old) -> bool:
    """Forget what may be forgotten of removed nodes; whether all of them are."""
    manager.edit(lambda tx: expire_blacklist(tx.edit(api.Cluster, CLUSTER), time.time()))
    return not manager.lab.cluster.blacklisted_certificates


async def refusals(old: Old, expired: Credentials, node: str) -> list[str]:
    """What the node reads that asks for another certificate: by itself, and through a manager that knows no better."""
    request = api.IssueNodeCertificateRequest(csr=keys.new_csr(keys.new_private_key()))
    connection = await client.connect(old.addresses[0], old.tls(old.credentials))
    told = []
    identity = identity_of(expired.certificate_pem)
    metadata = forwarding_metadata(Peer(node, identity.role, identity.org, "10.0.0.9:4000"))
    for call in (
        old.call(expired, rpc.ISSUE_NODE_CERTIFICATE, request),
        connection.unary(rpc.ISSUE_NODE_CERTIFICATE, request, 5.0, metadata),
    ):
        with pytest.raises(SwarmError) as refusal:
            await call
        told.append(str(refusal.value))
    connection.close()
    assert old.lab.store.get(api.Node, node) is None
    return told


@pytest.mark.parametrize("life_days", [1.0, 10.0, 200.0])
@pytest.mark.parametrize("role", ["swarm-worker", "swarm-manager"])
async def test_a_removed_node_is_remembered_for_as_long_as_its_certificate_could_be_renewed(
    old: Old, node: str, role: str, life_days: float
) -> None:
    window_s = min(life_days * DAY_S, defaults.EXPIRED_RENEWAL_WINDOW_MAX_S)
    expired = old.issue(node, role, ended_s=window_s - 120.0, life_days=life_days)
    removed_s = time.time() - window_s - life_days * DAY_S / 2
    remove(old, node, expired, removed_s)
    assert not tidied(old)
    by_itself, passed_on = await refusals(old, expired, node)
    assert f"node {node} was removed from swarm" in by_itself
    assert "A valid join token is necessary to join this cluster" in passed_on


async def test_a_removed_node_that_is_forgotten_does_not_come_back_either(old: Old, node: str) -> None:
    ended_s = defaults.NODE_CERT_EXPIRY_S + defaults.BLACKLIST_GRACE_S + DAY_S
    expired = old.issue(node, ended_s=ended_s, life_days=90.0)
    remove(old, node, expired, time.time() - ended_s)
    assert tidied(old)
    by_itself, passed_on = await refusals(old, expired, node)
    assert "could only be renewed within 30d after that" in by_itself
    assert f"node {node} not found when attempting to renew certificate" in passed_on


async def test_an_expired_manager_speaks_for_nobody(old: Old, node: str) -> None:
    expired = old.issue("manager1", "swarm-manager", ended_s=DAY_S)
    connection = await client.connect(old.addresses[0], old.tls(expired))
    metadata = (("forwarded_cert", "true"), ("forwarded_cert_cn", node), ("forwarded_cert_ou", "swarm-worker"))
    request = api.IssueNodeCertificateRequest(csr=keys.new_csr(keys.new_private_key()))
    with pytest.raises(SwarmError) as refusal:
        await connection.unary(rpc.ISSUE_NODE_CERTIFICATE, request, 5.0, (*metadata, ("forwarded_cert_org", CLUSTER)))
    connection.close()
    assert refusal.value.code == PermissionDenied.code


async def test_an_expired_certificate_of_another_root_gets_nowhere(old: Old) -> None:
    other = Old()
    with pytest.raises(SwarmError):
        await old.call(other.issue("n1", ended_s=DAY_S), rpc.GET_ROOT_CA_CERTIFICATE, api.GetRootCACertificateRequest())


# --- clocks --------------------------------------------------------------------------------------------------------


async def test_a_node_whose_clock_is_wrong_reads_both_clocks(old: Old) -> None:
    """By its clock the manager's certificate is not valid yet; it asks the manager for the time, and tells."""
    with pytest.raises(Unavailable) as failed:
        await client.connect(old.addresses[0], old.tls(None), now=lambda: time.time() - 3 * 3600.0)
    text = str(failed.value)
    assert "x509: certificate has expired or is not yet valid: current time " in text
    assert f"that of {old.addresses[0]} " in text
    assert "3h ahead" in text


async def test_a_node_that_a_manager_refuses_for_the_time_reads_both_clocks(old: Old, node: str) -> None:
    future = old.issue(node, ended_s=-20 * DAY_S)
    tls = old.tls(future)
    connection = await client.connect(old.addresses[0], tls, now=lambda: time.time() + 2 * DAY_S)
    with pytest.raises(SwarmError) as refusal:
        await connection.unary(rpc.HEARTBEAT, api.HeartbeatRequest(), 5.0)
    connection.close()
    text = str(refusal.value)
    assert f"the certificate of node {node} is valid from" in text
    assert "ahead of this manager's clock" in text
    assert "the clocks differ: this node's says" in text
    assert "2d behind" in text


async def test_a_joiner_whose_clock_is_behind_learns_it_from_its_own_certificate(old: Old) -> None:
    world = replace(REAL, sleep=no_sleep, now=lambda: time.time() - 2 * 3600.0)
    with pytest.raises(CertificateExpired) as failed:
        await bootstrap.join(old.addresses, old.token("worker"), 0, Random(1), world)
    assert "the clocks differ: this node's says" in str(failed.value)
    assert "that of the manager " in str(failed.value)


# --- a manager alone -----------------------------------------------------------------------------------------------


class Alone:
    """The manager of a node, as far as its own renewal needs it."""

    def __init__(self, old: Old, leading: bool) -> None:
        self.leads = leading
        self.asked: list[str] = []
        self._old = old

    async def wait_leader(self, timeout_s: float) -> None:
        if not self.leads:
            raise TimeoutError

    async def ask(self, method: Method[Req, Res], request: Req, timeout_s: float, peer: Peer) -> Res:
        self.asked.append(method.name)
        (answer,) = self._old.lab.call(method.name, request, peer, len(self.asked))
        assert isinstance(answer, Reply)
        return method.checked_response(answer.message)


async def test_a_leader_whose_certificate_expired_renews_it_through_itself(old: Old) -> None:
    expired, alone = old.issue("manager1", "swarm-manager", ended_s=200 * DAY_S), Alone(old, leading=True)
    issued = await own_certificate.renew(alone, (), old.root.bundle_pem, expired, Random(1), REAL)
    assert identity_of(issued.credentials.certificate_pem) == identity_of(expired.certificate_pem)
    assert own_certificate_error(issued.credentials.certificate_pem, time.time()) == ""
    assert alone.asked == ["NodeCA/IssueNodeCertificate", "NodeCA/NodeCertificateStatus", "CA/GetUnlockKey"]


@pytest.mark.parametrize(("leading", "ended_s"), [(False, DAY_S), (True, -5 * DAY_S)])
async def test_others_are_asked_while_that_is_possible(old: Old, leading: bool, ended_s: float) -> None:
    own = old.on_record("manager1", old.issue("manager1", "swarm-manager", ended_s=ended_s))
    alone = Alone(old, leading)
    others = [("manager2", address) for address in old.addresses]
    await own_certificate.renew(alone, others, old.root.bundle_pem, own, Random(1), REAL)
    assert alone.asked == []


async def test_a_manager_alone_that_does_not_lead_yet_does_not_call_itself(old: Old) -> None:
    expired, alone = old.issue("manager1", "swarm-manager", ended_s=DAY_S), Alone(old, leading=False)
    own = [("manager1", address) for address in old.addresses]
    with pytest.raises(TimeoutError):
        await own_certificate.renew(alone, own, old.root.bundle_pem, expired, Random(1), REAL)


def test_other_failures_are_no_trouble_of_the_certificate(old: Old) -> None:
    certificate, now = old.credentials.certificate_pem, time.time()
    assert own_certificate.trouble("connection refused", certificate, now) == ""
    told = own_certificate.trouble("connection refused", certificate, now + 1000 * DAY_S)
    assert told.startswith("x509: certificate has expired")
    assert told.endswith("; managers say: connection refused")


@pytest.mark.parametrize("ended_s", [200 * DAY_S, -1.0 * DAY_S, -100 * DAY_S])
def test_a_node_describes_its_certificate_whatever_the_time(ended_s: float) -> None:
    manager = Old()
    certificate_pem = manager.issue("n1", ended_s=ended_s).certificate_pem
    info = own_certificate.tls_info(manager.root.bundle_pem, certificate_pem)
    assert info.cert_issuer_subject == manager.root.issuer.subject_der
    assert info.trust_root == manager.root.bundle_pem
