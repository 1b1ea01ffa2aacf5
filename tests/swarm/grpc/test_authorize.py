"""Who may call what: roles read from certificates against the roles of each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from swarm.api.methods import METHODS
from swarm.errors import PermissionDenied, ResourceExhausted
from swarm.grpc.authorize import ClusterAuthorizer, forwarding_metadata
from swarm.rpc import Peer

ADDR = "10.0.0.9:4000"
MANAGER = Peer("m1", "swarm-manager", "cluster1", "10.0.0.1:5000")
WORKER = Peer("w1", "swarm-worker", "cluster1", ADDR)
ANONYMOUS = Peer(addr=ADDR)
PREFIX = "Permission denied: unauthorized peer role: rpc error: code = PermissionDenied desc = "
FORWARDER = "Permission denied: unauthorized forwarder role: rpc error: code = PermissionDenied desc = "

authorizer = ClusterAuthorizer("cluster1", lambda node_id: node_id == "gone")


def metadata_for(peer: Peer) -> dict[str, tuple[str, ...]]:
    return {name: (value,) for name, value in forwarding_metadata(peer)}


def refusal(method: str, direct: Peer, metadata: Mapping[str, tuple[str, ...]]) -> str:
    with pytest.raises(PermissionDenied) as refused:
        authorizer(METHODS[method], direct, metadata)
    return refused.value.message


@pytest.mark.parametrize("peer", [MANAGER, WORKER])
def test_members_call_the_dispatcher(peer: Peer) -> None:
    assert authorizer(METHODS["Dispatcher/Heartbeat"], peer, {}) == peer


@pytest.mark.parametrize(
    ("method", "peer", "text"),
    [
        (
            "Control/ListNodes",
            WORKER,
            f"{PREFIX}Permission denied: remote certificate not part of OUs: [swarm-manager]",
        ),
        (
            "Dispatcher/Heartbeat",
            Peer("x", "swarm-ca", "cluster1", ADDR),
            f"{PREFIX}Permission denied: remote certificate not part of OUs: [swarm-worker swarm-manager]",
        ),
        ("Dispatcher/Heartbeat", ANONYMOUS, f"{PREFIX}no client certificates in request"),
        (
            "Control/ListNodes",
            Peer("m", "swarm-manager", "cluster2", ADDR),
            f"{PREFIX}Permission denied: remote certificate not part of organization: cluster1",
        ),
        (
            "Control/ListNodes",
            Peer("gone", "swarm-manager", "cluster1", ADDR),
            f"{PREFIX}Permission denied: node gone was removed from swarm",
        ),
    ],
)
def test_others_are_told_why_not(method: str, peer: Peer, text: str) -> None:
    assert refusal(method, peer, {}) == text


def test_a_manager_passes_on_a_workers_call() -> None:
    peer = authorizer(METHODS["Dispatcher/Heartbeat"], MANAGER, metadata_for(WORKER))
    assert peer == Peer("w1", "swarm-worker", "cluster1", ADDR, forwarder="m1")


@pytest.mark.parametrize(
    ("direct", "original", "text"),
    [
        (WORKER, MANAGER, f"{FORWARDER}Permission denied: remote certificate not part of OUs: [swarm-manager]"),
        (ANONYMOUS, MANAGER, f"{FORWARDER}no client certificates in request"),
        (MANAGER, ANONYMOUS, "Permission denied: missing information in forwarded request"),
        (MANAGER, WORKER, "Permission denied: unauthorized forwarded role, expecting: [swarm-manager]"),
        (
            MANAGER,
            Peer("m2", "swarm-manager", "cluster2", ADDR),
            "Permission denied: organization mismatch, expecting: cluster1",
        ),
        (
            MANAGER,
            Peer("gone", "swarm-manager", "cluster1", ADDR),
            "Permission denied: node gone was removed from swarm",
        ),
    ],
)
def test_not_every_forwarded_call_is_believed(direct: Peer, original: Peer, text: str) -> None:
    assert refusal("Control/ListNodes", direct, metadata_for(original)) == text


@pytest.mark.parametrize("marks", [("false",), ("true", "true"), ()])
def test_only_exactly_one_true_makes_a_call_forwarded(marks: tuple[str, ...]) -> None:
    metadata = {**metadata_for(WORKER), "forwarded_cert": marks}
    assert authorizer(METHODS["Control/ListNodes"], MANAGER, metadata) == MANAGER


def test_a_joiner_without_certificate_is_a_stranger_directly_and_through_a_follower() -> None:
    method = METHODS["NodeCA/IssueNodeCertificate"]
    assert authorizer(method, ANONYMOUS, {}) == ANONYMOUS
    assert authorizer(method, MANAGER, metadata_for(ANONYMOUS)) == Peer(addr=ADDR, forwarder="m1")


def test_a_member_that_renews_keeps_its_identity() -> None:
    method = METHODS["NodeCA/IssueNodeCertificate"]
    assert authorizer(method, WORKER, {}) == WORKER
    assert authorizer(method, MANAGER, metadata_for(WORKER)).node_id == "w1"


@pytest.mark.parametrize(
    ("direct", "forwarded"),
    [
        (ANONYMOUS, MANAGER),
        (WORKER, MANAGER),
        (Peer("gone", "swarm-manager", "cluster1", ADDR), WORKER),
        (Peer("m", "swarm-manager", "cluster2", ADDR), None),
        (Peer("gone", "swarm-worker", "cluster1", ADDR), None),
    ],
)
def test_a_false_identity_is_none_even_where_none_is_needed(direct: Peer, forwarded: Peer | None) -> None:
    metadata = metadata_for(forwarded) if forwarded else {}
    peer = authorizer(METHODS["NodeCA/IssueNodeCertificate"], direct, metadata)
    assert (peer.node_id, peer.role, peer.org, peer.forwarder) == ("", "", "", "")
    assert peer.addr == direct.addr


def test_a_call_is_not_passed_on_twice() -> None:
    with pytest.raises(ResourceExhausted, match=r"more than one redirect to leader from: \[10.0.0.9:4000\]"):
        forwarding_metadata(Peer("w1", "swarm-worker", "cluster1", ADDR, forwarder="m2"))


def test_forwarded_keys_are_there_even_for_strangers() -> None:
    keys = dict(forwarding_metadata(ANONYMOUS))
    assert keys["forwarded_cert"] == "true"
    assert keys["forwarded_cert_cn"] == keys["forwarded_cert_org"] == ""
    assert "forwarded_cert_ou" not in keys


def always(answer: bool) -> Callable[[str], bool]:
    return lambda node_id: answer


def test_the_blacklist_is_asked_at_each_call() -> None:
    assert ClusterAuthorizer("cluster1", always(False))(METHODS["Health/Check"], MANAGER, {}) == MANAGER
    with pytest.raises(PermissionDenied):
        ClusterAuthorizer("cluster1", always(True))(METHODS["Health/Check"], MANAGER, {})


EXPIRED = Peer("w1", "swarm-manager", "cluster1", ADDR, certificate_error="x509: too late", renewable=True)
RENEWAL = {"NodeCA/IssueNodeCertificate", "NodeCA/NodeCertificateStatus"}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_expired_certificate_opens_nothing_but_its_renewal(method: str) -> None:
    void = Peer("w1", "swarm-manager", "cluster1", ADDR, certificate_error="x509: too late")
    if method in RENEWAL:
        assert authorizer(METHODS[method], EXPIRED, {}) == EXPIRED
        assert refusal(method, void, {}) == "Permission denied: x509: too late"
        assert refusal(method, EXPIRED, metadata_for(MANAGER)) == "Permission denied: x509: too late"
    elif METHODS[method].insecure:
        assert authorizer(METHODS[method], EXPIRED, {}) == authorizer(METHODS[method], void, {}) == ANONYMOUS
    else:
        for peer, metadata in ((EXPIRED, {}), (void, {}), (EXPIRED, metadata_for(MANAGER))):
            assert refusal(method, peer, metadata) == "Permission denied: x509: too late"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_leader_knows_that_a_certificate_lapsed_which_a_follower_was_shown(method: str) -> None:
    shown = replace(EXPIRED, key=b"k" * 32, not_before=1000.0)
    metadata = metadata_for(shown)
    if method in RENEWAL:
        found = authorizer(METHODS[method], MANAGER, metadata)
        assert (found.renewable, bool(found.certificate_error), found.key, found.not_before) == (
            True,
            True,
            shown.key,
            1000.0,
        )
    elif not METHODS[method].insecure:
        assert "x509: certificate has expired" in refusal(method, MANAGER, metadata)
    valid = authorizer(
        METHODS["NodeCA/IssueNodeCertificate"], MANAGER, metadata_for(replace(shown, certificate_error=""))
    )
    assert not valid.renewable
