"""What certificates are worth by the store: void ones, newer ones, and how long a removed node is remembered."""

from __future__ import annotations

from random import Random

import pytest

from certs.keys import load_certificates, new_csr, new_private_key
from certs.root import RootCA
from swarm import api, defaults
from swarm.api.timestamps import seconds
from swarm.grpc.peer import peer_of
from swarm.manager import standing
from swarm.manager.certificates import role_to_sign
from swarm.manager.controlapi.nodes import remove_node
from swarm.manager.roles import RolesStage
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Peer
from swarm.store.store import Store
from swarm.store.tx import Tx
from tests.swarm.manager.fake_members import FakeMembers
from tests.swarm.manager.test_roles import Group

NOW = 1_795_359_300.0
DAY_S = 24 * 3600.0
ROOT = RootCA.create(NOW)


class Lab:
    """A cluster with the node n1, and the certificates that it gets."""

    def __init__(self, role: api.NodeRole = api.MANAGER) -> None:
        self.store = Store()
        self.now = NOW
        self.write(lambda tx: self._create(tx, role))
        self.stage = RolesStage(Group("other"))
        self.stage.rebuild(self.store, NOW)

    def _create(self, tx: Tx, role: api.NodeRole) -> None:
        cluster = api.Cluster(id="c1")
        cluster.spec.annotations.name = "default"
        tx.create(cluster)
        node = tx.create(api.Node(id="n1", role=role))
        node.spec.desired_role = role

    def write(self, change: object) -> None:
        tx = Tx(self.store, self.now, Random(1))
        change(tx)  # type: ignore[operator]
        self.store.apply(tx.actions(), self.store.index + 1)

    @property
    def node(self) -> api.Node:
        node = self.store.get(api.Node, "n1")
        assert node is not None
        return node

    def certify(self, external: bool = False, expiry_s: float = 90 * DAY_S) -> Peer:
        """Sign a certificate for the role that it has; external: by an authority that rounds down to minutes."""

        def sign(tx: Tx) -> None:
            node = tx.edit(api.Node, "n1")
            csr, after = new_csr(new_private_key()), 0.0 if external else standing.newest_begins(node)
            role = MANAGER_ROLE if node.role == api.MANAGER else WORKER_ROLE
            pem = ROOT.sign(csr, "n1", role, "c1", self.now, expiry_s, after)
            node.certificate.role, node.certificate.certificate = node.role, pem
            node.certificate.status.state = api.IssuanceStatus.ISSUED
            standing.note_signed(node)

        self.write(sign)
        return peer_of(self.node.certificate.certificate)

    def set_role(self, role: api.NodeRole) -> None:
        """docker node promote and demote."""

        def wish(tx: Tx) -> None:
            tx.edit(api.Node, "n1").spec.desired_role = role

        self.write(wish)
        self.stage.note("node", "n1")
        self.write(self.stage.run)
        assert self.node.role == role

    def is_manager(self, peer: Peer, leading: bool = True) -> bool:
        return not standing.why_no_manager(self.store, peer, leading)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("pause_s", [0.0, 60.0, DAY_S])
def test_a_demotion_makes_every_earlier_manager_certificate_void_for_ever(external: bool, pause_s: float) -> None:
    lab = Lab()
    old = [lab.certify(), lab.certify(external)]
    lab.now += pause_s
    assert all(map(lab.is_manager, old))
    lab.set_role(api.WORKER)
    assert not any(lab.is_manager(peer, leading) for peer in old for leading in (True, False))
    lab.certify(external)
    lab.set_role(api.MANAGER)
    new = lab.certify(external)
    assert lab.is_manager(new, leading=True)
    assert lab.is_manager(new, leading=False)
    assert not any(lab.is_manager(peer, leading) for peer in old for leading in (True, False))
    assert lab.is_manager(Peer("n1", MANAGER_ROLE, forwarder="stock")), "a stock manager does not say when it begins"


def test_a_node_that_is_demoted_again_and_again_has_one_good_certificate_at_most() -> None:
    lab, old = Lab(), list[Peer]()
    for _ in range(4):
        peer = lab.certify(external=True)
        assert lab.is_manager(peer)
        assert not any(map(lab.is_manager, old))
        old.append(peer)
        lab.set_role(api.WORKER)
        assert not any(map(lab.is_manager, old))
        lab.set_role(api.MANAGER)


def test_a_node_that_is_promoted_before_it_noticed_its_demotion_is_asked_to_renew() -> None:
    lab = Lab()
    lab.certify()
    lab.set_role(api.WORKER)
    lab.set_role(api.MANAGER)
    assert lab.node.certificate.status.state == api.IssuanceStatus.ROTATE


def test_a_demotion_during_a_renewal_knows_the_certificate_in_use() -> None:
    lab = Lab()
    used = lab.certify()

    def renew(tx: Tx) -> None:
        node = tx.edit(api.Node, "n1")
        node.certificate.CopyFrom(api.Certificate(role=api.MANAGER, csr=b"csr", cn="n1"))
        node.certificate.status.state = api.IssuanceStatus.RENEW

    lab.write(renew)
    lab.set_role(api.WORKER)
    lab.set_role(api.MANAGER)
    assert not lab.is_manager(used)


def test_the_leader_knows_no_manager_without_a_node() -> None:
    lab = Lab()
    stranger = Peer("n9", MANAGER_ROLE, "c1", key=b"k", not_before=NOW)
    assert not lab.is_manager(stranger, leading=True)
    assert lab.is_manager(stranger, leading=False), "it may have joined since"


def test_a_follower_believes_a_promotion_that_a_newer_certificate_shows() -> None:
    lab = Lab(api.WORKER)
    worker = lab.certify()
    before = lab.node
    lagging = Store()
    tx = Tx(lagging, NOW, Random(1))
    tx.create(before)
    lagging.apply(tx.actions(), 1)
    lab.set_role(api.MANAGER)
    promoted = lab.certify()
    assert not standing.why_no_manager(lagging, promoted, leading=False)
    assert standing.why_no_manager(lagging, promoted, leading=True)
    assert standing.why_no_manager(lagging, worker, leading=False)


def test_every_certificate_of_a_node_begins_later_than_the_one_before() -> None:
    lab = Lab()
    begins = [lab.certify().not_before for _ in range(3)]
    lab.now -= 120.0  # the next leader's clock is behind
    begins.append(lab.certify().not_before)
    assert begins == sorted(set(begins))
    lab.now += 2 * DAY_S
    peer = lab.certify()
    assert peer.not_before == lab.now // 60 * 60 - 3600.0
    leaf = load_certificates(lab.node.certificate.certificate)[0]
    assert leaf.not_valid_before_utc.timestamp() <= lab.now < leaf.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("ahead_s", [0.0, 1.0, 30.0, 3570.0, 3599.0, 3600.0, 3630.0, 7200.0, 40 * DAY_S])
@pytest.mark.parametrize("second_s", [0.0, 29.9, 30.0, 59.9])
def test_no_certificate_is_handed_out_before_it_is_valid(ahead_s: float, second_s: float) -> None:
    """Whatever the clocks of those said who signed before."""
    lab = Lab()
    lab.now = now = NOW // 60 * 60 + second_s
    lab.now += ahead_s
    old = [lab.certify(), lab.certify()]
    lab.now = now
    for _ in range(3):
        newest, peer = max(it.not_before for it in old), lab.certify()
        nearest_minute = (now + 30.0) // 60 * 60
        expected = max(nearest_minute - 3600.0, newest + 1.0)
        assert peer.not_before == (expected if expected <= now else nearest_minute - 3600.0)
        assert peer.not_before <= now
        old.append(peer)
    lab.set_role(api.WORKER)
    assert not any(map(lab.is_manager, old))
    lab.set_role(api.MANAGER)
    assert lab.is_manager(lab.certify())
    assert not any(map(lab.is_manager, old))


def test_a_removed_node_is_remembered_until_its_longest_certificate_has_ended() -> None:
    lab = Lab(api.WORKER)
    lab.certify(expiry_s=3 * 365 * DAY_S)
    lab.certify(expiry_s=3600.0)
    lab.write(lambda tx: remove_node(tx, api.RemoveNodeRequest(node_id="n1", force=True), FakeMembers()))
    cluster = lab.store.get(api.Cluster, "c1")
    assert cluster is not None
    until = seconds(cluster.blacklisted_certificates["n1"].expiry)
    assert until == NOW // 60 * 60 + 3 * 365 * DAY_S
    assert defaults.BLACKLIST_GRACE_S > 0
    assert standing.is_removed(lab.store, "n1")


def test_a_request_that_was_under_way_at_the_demotion_is_not_signed_for_a_manager() -> None:
    node = api.Node(id="n1", role=api.WORKER)
    node.certificate.role = api.MANAGER
    assert role_to_sign(node) == api.WORKER
    node.role = api.MANAGER
    assert role_to_sign(node) == api.MANAGER
    node.certificate.role = api.WORKER
    assert role_to_sign(node) == api.WORKER, "it asks again when it hears that it is a manager"
