"""Who may call what on the cluster port: every method of every service, with every certificate an attacker may have."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor
from structlog.testing import capture_logs

import swarm.api
from certs.keys import new_csr, new_private_key
from certs.tls import Credentials
from swarm import api
from swarm.api import authorization_pb2, rpc
from swarm.api.methods import BY_PATH, METHODS
from swarm.errors import Code
from swarm.store.tx import Tx
from tests.security.attacked_manager import (
    CLUSTER,
    DAY_S,
    MANAGER,
    MANAGER_ROLE,
    OTHER_MANAGER,
    OTHER_WORKER,
    REMOVED,
    WORKER,
    WORKER_ROLE,
    AttackedManager,
    Pki,
    framed,
    session_of,
)

PROBE = framed(b"")
REFUSED = (int(Code.PERMISSION_DENIED), "Permission denied: unauthorized peer role:")
FALSE_FORWARDER = "Permission denied: unauthorized forwarder role:"
ISSUE = METHODS["NodeCA/IssueNodeCertificate"]
_AT_ONCE = 10  # fewer than the streams of an anonymous connection


def descriptors() -> Iterator[MethodDescriptor]:
    """All methods of all services that our descriptors know, found without the server's own table."""
    for module in pkgutil.iter_modules(swarm.api.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"swarm.api.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                yield from service.methods


def rule(method: MethodDescriptor) -> authorization_pb2.TLSAuthorization:
    found: authorization_pb2.TLSAuthorization = method.GetOptions().Extensions[authorization_pb2.tls_authorization]  # type: ignore[index]
    return found


ROWS = [(f"/{method.containing_service.full_name}/{method.name}", rule(method)) for method in descriptors()]


def forwarded(node_id: str, role: str, org: str = CLUSTER) -> tuple[tuple[str, str], ...]:
    """What a follower adds to a call of this node."""
    return (
        ("redirect", "10.0.0.9:4000"),
        ("forwarded_cert", "true"),
        ("forwarded_cert_cn", node_id),
        ("forwarded_cert_org", org),
        ("forwarded_cert_ou", role),
        ("remote_addr", "10.0.0.9:4000"),
    )


async def refusals(
    attacked: AttackedManager,
    credentials: Credentials | None,
    metadata: tuple[tuple[str, str], ...] = (),
    code: Code = Code.PERMISSION_DENIED,
) -> dict[str, str]:
    """Why each method is refused to this caller, with this code; methods that are not refused are missing."""
    found = {}
    for start in range(0, len(ROWS), _AT_ONCE):
        rows = ROWS[start : start + _AT_ONCE]
        intruder = await attacked.intrude(credentials)
        for number, (path, _) in enumerate(rows):
            intruder.request(2 * number + 1, BY_PATH[path], PROBE, metadata)
        await intruder.alive()
        for number, (path, _) in enumerate(rows):
            status = intruder.outcome.status.get(2 * number + 1)
            if status is not None and status[0] == code:
                found[path] = status[1]
        intruder.close()
    return found


def test_every_method_of_every_service_has_a_rule_and_is_served_by_it() -> None:
    assert len(ROWS) >= 65
    assert {path for path, _ in ROWS} == set(BY_PATH)
    for path, found in ROWS:
        assert bool(found.roles) != found.insecure, path
        assert (frozenset(found.roles), found.insecure) == (BY_PATH[path].roles, BY_PATH[path].insecure)
    assert {path.rpartition("/")[2] for path, found in ROWS if found.insecure} == {
        "GetRootCACertificate",
        "IssueNodeCertificate",
        "NodeCertificateStatus",
    }


@pytest.mark.parametrize("role", ["", WORKER_ROLE, MANAGER_ROLE, "swarm-ca", "swarm-managers"])
async def test_each_role_gets_exactly_the_methods_that_the_descriptors_give_it(
    attacked: AttackedManager, role: str
) -> None:
    node_id = OTHER_MANAGER if role == MANAGER_ROLE else "node"  # a manager that leads serves managers of the store
    refused = await refusals(attacked, attacked.pki.issue(node_id, role) if role else None)
    assert set(refused) == {path for path, found in ROWS if not (found.insecure or role in found.roles)}
    assert all(text.startswith(REFUSED[1]) for text in refused.values())
    if role == WORKER_ROLE:
        assert {path.split("/")[1].rpartition(".")[2] for path in refused} >= {"Control", "Raft", "Watch", "Health"}


@pytest.mark.parametrize("role", [WORKER_ROLE, MANAGER_ROLE])
async def test_a_node_of_another_cluster_and_a_removed_node_get_nothing(attacked: AttackedManager, role: str) -> None:
    secured = {path for path, found in ROWS if not found.insecure}
    other = await refusals(attacked, attacked.pki.issue("node", role, org="anothercluster"))
    removed = await refusals(attacked, attacked.pki.issue(REMOVED, role))
    assert set(other) == set(removed) == secured
    of_role = [path for path, found in ROWS if role in found.roles]
    assert all("not part of organization" in other[path] for path in of_role)
    assert all(f"node {REMOVED} was removed from swarm" in removed[path] for path in of_role)


async def test_a_manager_lends_a_forwarded_node_nothing_but_that_nodes_own_rights(attacked: AttackedManager) -> None:
    refused = await refusals(attacked, attacked.manager(), forwarded(WORKER, WORKER_ROLE))
    assert set(refused) == {path for path, found in ROWS if not (found.insecure or WORKER_ROLE in found.roles)}
    assert all(text.startswith("Permission denied: unauthorized forwarded role") for text in refused.values())


@pytest.mark.parametrize(
    ("claimed", "text"),
    [
        (forwarded("", ""), "missing information in forwarded request"),
        (forwarded(WORKER, ""), "missing information in forwarded request"),
        (forwarded(REMOVED, MANAGER_ROLE), f"node {REMOVED} was removed from swarm"),
        (forwarded("node", MANAGER_ROLE, "anothercluster"), f"organization mismatch, expecting: {CLUSTER}"),
    ],
)
async def test_strangers_removed_nodes_and_other_clusters_get_nothing_through_a_follower(
    attacked: AttackedManager, claimed: tuple[tuple[str, str], ...], text: str
) -> None:
    refused = await refusals(attacked, attacked.manager(), claimed)
    assert set(refused) == {path for path, found in ROWS if not found.insecure}
    assert all(text in refusal for refusal in refused.values())


async def test_a_demoted_manager_has_a_workers_rights_whatever_its_certificate_says(attacked: AttackedManager) -> None:
    demoted = attacked.pki.issue(WORKER, MANAGER_ROLE)
    raft = {path for path, _ in ROWS if path.split("/")[1].endswith(".Raft")}
    of_managers = {path for path, found in ROWS if not found.insecure and WORKER_ROLE not in found.roles} - raft

    async def told(credentials: Credentials, *metadata: tuple[str, str]) -> dict[str, str]:
        return await refusals(attacked, credentials, metadata, Code.UNAVAILABLE)

    assert set(await told(demoted)) == of_managers
    assert set(await told(attacked.manager(), *forwarded(WORKER, MANAGER_ROLE))) == of_managers
    spoken_for = await told(demoted, *forwarded(OTHER_MANAGER, MANAGER_ROLE))
    assert set(spoken_for) == {path for path, _ in ROWS} - raft
    assert set(spoken_for.values()) == {f"node {WORKER} was demoted: it is no manager any more"}

    def promote(tx: Tx) -> None:
        tx.edit(api.Node, WORKER).spec.desired_role = api.MANAGER

    await attacked.write(promote)
    assert not of_managers & set(await told(demoted))


async def test_calls_that_only_managers_may_have_open_end_when_their_manager_is_demoted(
    attacked: AttackedManager,
) -> None:
    other = await attacked.intrude(attacked.manager())
    logs = api.SubscribeLogsRequest(options=api.LogSubscriptionOptions(follow=True))
    logs.selector.node_ids.append(WORKER)
    other.request(1, "Logs/SubscribeLogs", framed(logs))
    other.request(3, "Dispatcher/Session", PROBE)
    other.request(5, "Dispatcher/Session", PROBE, forwarded(WORKER, WORKER_ROLE))
    await other.until(lambda seen: {3, 5} <= set(seen.data))
    assert not other.outcome.status

    def demote(tx: Tx) -> None:
        tx.edit(api.Node, OTHER_MANAGER).spec.desired_role = api.WORKER

    await attacked.write(demote)
    await other.until(lambda seen: {1, 5} <= set(seen.status))
    await other.alive()
    told = (int(Code.UNAVAILABLE), f"node {OTHER_MANAGER} was demoted: it is no manager any more")
    assert other.outcome.status == {1: told, 5: told}


@pytest.mark.parametrize("forwarder", ["anonymous", WORKER, REMOVED, "foreign manager"])
async def test_only_a_manager_of_this_cluster_may_speak_for_others(attacked: AttackedManager, forwarder: str) -> None:
    credentials = {
        "anonymous": None,
        WORKER: attacked.worker(),
        REMOVED: attacked.pki.issue(REMOVED, MANAGER_ROLE),
        "foreign manager": attacked.pki.issue("node", MANAGER_ROLE, org="anothercluster"),
    }[forwarder]
    refused = await refusals(attacked, credentials, forwarded(MANAGER, MANAGER_ROLE))
    assert set(refused) == {path for path, found in ROWS if not found.insecure}
    assert all(text.startswith(FALSE_FORWARDER) for text in refused.values())


async def test_a_forwarded_call_that_is_replayed_by_a_worker_is_refused(attacked: AttackedManager) -> None:
    key = new_csr(new_private_key())
    ask = framed(api.IssueNodeCertificateRequest(csr=key))
    genuine = await attacked.intrude(attacked.manager())
    genuine.request(1, ISSUE, ask, forwarded(OTHER_WORKER, WORKER_ROLE))
    assert await genuine.answer() == (0, "")
    for credentials in (attacked.worker(), None):
        thief = await attacked.intrude(credentials)
        thief.request(1, ISSUE, ask, forwarded(OTHER_WORKER, WORKER_ROLE))
        assert (await thief.answer())[0] == Code.INVALID_ARGUMENT  # as without a certificate: a token is missing
        thief.request(3, "Dispatcher/Heartbeat", PROBE, forwarded(OTHER_WORKER, WORKER_ROLE))
        assert (await thief.answer(3))[1].startswith(FALSE_FORWARDER)
    assert attacked.process.store.get(api.Node, WORKER).certificate.csr == b""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "spoiled",
    [
        (("forwarded_cert", "True"),),
        (("forwarded_cert", "true "),),
        (("forwarded_cert", "true,true"),),
        (("forwarded_cert", "true"), ("forwarded_cert", "true")),
        (("forwarded_cert-bin", "dHJ1ZQ"),),
    ],
)
async def test_a_worker_gains_nothing_by_misspelt_or_doubled_forwarding(
    attacked: AttackedManager, spoiled: tuple[tuple[str, str], ...]
) -> None:
    claimed = (*forwarded(MANAGER, MANAGER_ROLE)[2:], *spoiled)
    refused = await refusals(attacked, attacked.worker(), claimed)
    assert set(refused) == {path for path, found in ROWS if not (found.insecure or WORKER_ROLE in found.roles)}


async def test_a_certificate_of_another_authority_fails_the_handshake(attacked: AttackedManager) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            intruder = await attacked.intrude(Pki().issue(MANAGER, MANAGER_ROLE))
            intruder.request(1, "Control/ListNodes", PROBE)
            assert (await intruder.end()).status == {}
    assert [entry["event"] for entry in logs] == ["rpc.handshake_failed"]


async def test_an_expired_certificate_and_one_of_the_future_get_nothing(attacked: AttackedManager) -> None:
    for made_at in (time.time() - DAY_S, time.time() + DAY_S):
        for node_id, role in ((WORKER, WORKER_ROLE), (OTHER_MANAGER, MANAGER_ROLE)):
            intruder = await attacked.intrude(attacked.pki.issue(node_id, role, made_at=made_at))
            for number, (path, found) in enumerate(ROWS[:10]):
                if not found.insecure:
                    intruder.request(2 * number + 1, BY_PATH[path], PROBE)
            await intruder.until(lambda seen: seen.closed or len(seen.status) >= 7)
            assert all(code == Code.PERMISSION_DENIED for code, _ in intruder.outcome.status.values())


async def test_a_certificate_signed_by_a_nodes_own_key_is_refused(attacked: AttackedManager) -> None:
    """A node certificate is not a CA: what its key signs does not chain to the root."""
    forged = Pki()
    leaf = forged.issue(MANAGER, MANAGER_ROLE)
    chain = Credentials(leaf.certificate_pem + attacked.worker().certificate_pem, leaf.key_pem)
    intruder = await attacked.intrude(chain)
    intruder.request(1, "Control/ListNodes", PROBE)
    assert (await intruder.end()).status == {}


async def test_a_node_that_is_removed_loses_its_open_connections_at_once(attacked: AttackedManager) -> None:
    connection = await attacked.connect(attacked.worker())
    await session_of(connection)
    listening = await attacked.intrude(attacked.worker())
    listening.request(1, "LogBroker/ListenSubscriptions", PROBE)
    listening.request(3, "LogBroker/PublishLogs", b"", end=False)
    await listening.alive()
    bystander = await attacked.connect(attacked.worker(OTHER_WORKER))
    await session_of(bystander)

    def remove(tx: Tx) -> None:
        tx.remove(api.Node, WORKER)
        tx.edit(api.Cluster, CLUSTER).blacklisted_certificates[WORKER].SetInParent()

    await attacked.write(remove)
    await listening.end()
    await connection.closed
    assert not bystander.closed.done()
    again = await attacked.intrude(attacked.worker())
    again.request(1, "Dispatcher/Session", PROBE)
    assert "was removed from swarm" in (await again.answer())[1]


async def test_a_worker_that_asks_for_a_managers_certificate_gets_a_workers(attacked: AttackedManager) -> None:
    connection = await attacked.connect(attacked.worker())
    request = api.IssueNodeCertificateRequest(csr=new_csr(new_private_key()), role=api.MANAGER)
    answer = await connection.unary(rpc.ISSUE_NODE_CERTIFICATE, request)
    assert isinstance(answer, api.IssueNodeCertificateResponse)
    assert answer.node_id == WORKER
    status = await connection.unary(rpc.NODE_CERTIFICATE_STATUS, api.NodeCertificateStatusRequest(node_id=WORKER))
    assert isinstance(status, api.NodeCertificateStatusResponse)
    assert status.certificate.role == api.WORKER
    assert b"CERTIFICATE" in status.certificate.certificate
