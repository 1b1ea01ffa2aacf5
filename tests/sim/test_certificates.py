"""Certificates of whole clusters: fifty nodes go to another root, a thousand renew without crowding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest
import structlog
from cryptography import x509

from certs.keys import identity_of, key_fingerprint, load_certificates, load_leaf
from certs.renewal import Failed, Renew, Renewal, Renewed
from certs.root import RootCA
from certs.tokens import parse_join_token
from swarm import api, defaults
from swarm.errors import SwarmError
from swarm.store.store import Change, Store
from swarm.store.tx import Tx
from tests.sim.authority import URL
from tests.sim.kernel import Script
from tests.sim.keys import EPOCH, new_key, root
from tests.sim.world import Node, World

DAY_S = 86400.0
MANAGERS, WORKERS = 3, 47


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What fifty nodes log helps nobody."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    yield
    structlog.configure(**before)


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


class Fifty:
    """A cluster of fifty nodes whose root the test changes."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, MANAGERS, WORKERS)
        self.world.build()

    @property
    def cluster(self) -> api.Cluster:
        """As the leader has it."""
        return next(self._store().all(api.Cluster))

    def nodes(self) -> list[api.Node]:
        return list(self._store().all(api.Node))

    def _store(self) -> Store:
        leader = self.world.leader()
        assert leader is not None
        assert leader.manager is not None
        return leader.manager.store

    def update(self, change: api.CAConfig) -> None:
        """UpdateCluster with these settings of the CA, by way of the leader."""
        outcome: list[object] = []

        def script() -> Script:
            cluster, leader = self.cluster, self.world.leader()
            assert leader is not None
            assert leader.manager is not None
            version = cluster.meta.version
            request = api.UpdateClusterRequest(cluster_id=cluster.id, cluster_version=version, spec=cluster.spec)
            request.spec.ca_config.MergeFrom(change)
            try:
                outcome.append((yield from leader.manager.call("Control/UpdateCluster", request, 20.0)))
            except SwarmError as error:
                outcome.append(error)

        self.world.scope.run(script())
        self.world.until(lambda: bool(outcome), "no answer")
        assert isinstance(outcome[0], api.UpdateClusterResponse), outcome[0]

    def rotating(self) -> bool:
        return self.world.leader() is not None and self.cluster.root_ca.HasField("root_rotation")

    def finished(self, before: api.RootCA) -> None:
        """Everybody trusts the new root and has a certificate of it, and both tokens name it."""
        self.world.until(lambda: not self.rotating(), "the rotation does not end")
        after = self.cluster.root_ca
        assert after.ca_cert != before.ca_cert
        digest = RootCA(after.ca_cert, None).digest
        for new, old in (
            (after.join_tokens.worker, before.join_tokens.worker),
            (after.join_tokens.manager, before.join_tokens.manager),
        ):
            assert new != old
            assert parse_join_token(new).root_digest == digest
        self.world.tokens = (after.join_tokens.manager, after.join_tokens.worker)
        trusting = self.world.alive
        self.world.until(lambda: all(node.disk.root_pem == after.ca_cert for node in trusting()), "old roots are kept")
        for node in trusting():
            leaf = load_certificates(node.disk.certificate_pem)[0]
            leaf.verify_directly_issued_by(load_certificates(after.ca_cert)[0])


def asked(fifty: Fifty) -> int:
    """How many nodes are told to get another certificate, or are getting it."""
    on_the_way = (api.IssuanceStatus.ROTATE, api.IssuanceStatus.RENEW)
    return sum(node.certificate.status.state in on_the_way for node in fifty.nodes())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(2))
def test_the_root_of_fifty_nodes_is_replaced_thirty_at_a_time(seed: int) -> None:
    fifty = Fifty(seed)
    world, before = fifty.world, fifty.cluster.root_ca
    root_ca = api.RootCA()
    root_ca.CopyFrom(before)
    fifty.update(api.CAConfig(force_rotate=1))
    most = 0
    while fifty.rotating():
        most = max(most, asked(fifty))
        world.kernel.advance(world.kernel.now + 0.05)
        assert world.kernel.now < 300.0
    assert 0 < most <= defaults.ROOT_ROTATION_BATCH_NODES
    fifty.finished(root_ca)
    world.join(world.tokens[1])
    world.until(lambda: len(fifty.nodes()) == MANAGERS + WORKERS + 1, "nobody can join")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", ["comes back", "is removed"])
def test_one_node_that_is_away_keeps_the_rotation_open_until_it(end: str) -> None:
    fifty = Fifty(4)
    world, before = fifty.world, api.RootCA()
    before.CopyFrom(fifty.cluster.root_ca)
    away: Node = world.nodes[-1]
    assert away.process is not None
    node_id = away.process.node_id
    away.process.die(torn=False, silent=False)
    fifty.update(api.CAConfig(force_rotate=1))
    new = RootCA(fifty.cluster.root_ca.root_rotation.ca_cert, None).issuer

    def waited_for() -> list[str]:
        infos = {node.id: node.description.tls_info for node in fifty.nodes()}
        return [key for key, info in infos.items() if info.cert_issuer_public_key != new.public_key_der]

    world.until(lambda: waited_for() == [node_id], "not all others have converged")
    world.kernel.advance(world.kernel.now + 120.0)
    assert fifty.rotating()
    assert waited_for() == [node_id]
    assert fifty.cluster.root_ca.join_tokens == before.join_tokens
    if end == "comes back":
        away.disk.synced()
        world.restart(away)
    else:
        leader = world.leader()
        assert leader is not None
        assert leader.manager is not None
        world.scope.run(leader.manager.write(lambda tx: tx.remove(api.Node, node_id), 20.0))
    fifty.finished(before)


@pytest.mark.timeout(120)
def test_a_rotation_goes_on_when_leaders_die() -> None:
    fifty = Fifty(5)
    world, before = fifty.world, api.RootCA()
    before.CopyFrom(fifty.cluster.root_ca)
    fifty.update(api.CAConfig(force_rotate=1))
    for _ in range(2):
        leader = world.leader()
        assert leader is not None
        world.nature.crash(leader)
        world.until(lambda: world.leader() is not None, "no leader")
        world.kernel.advance(world.kernel.now + 1.0)
    world.until(lambda: len(world.alive()) == MANAGERS + WORKERS, "not all are back")
    fifty.finished(before)


@pytest.mark.timeout(120)
def test_fifty_nodes_go_over_to_an_authority_outside_though_it_is_away_for_a_while() -> None:
    fifty = Fifty(6)
    world, before = fifty.world, api.RootCA()
    before.CopyFrom(fifty.cluster.root_ca)
    authority = world.authority
    config = api.CAConfig(signing_ca_cert=authority.root.bundle_pem)
    config.external_cas.add(protocol=api.ExternalCA.CFSSL, url=URL, ca_cert=authority.root.bundle_pem)
    fifty.update(config)
    world.until(lambda: authority.issued > 5, "nothing is signed")
    authority.away = True
    world.kernel.advance(world.kernel.now + 60.0)
    waiting = authority.issued
    assert waiting < MANAGERS + WORKERS
    world.kernel.advance(world.kernel.now + 60.0)
    assert authority.issued == waiting
    authority.away = False
    fifty.finished(before)
    assert not fifty.cluster.root_ca.ca_key
    assert authority.issued >= MANAGERS + WORKERS


def expire(node: Node) -> None:
    """The certificate on the disk of a node that is off is of the same key, and ended a day ago."""
    before = node.disk.certificate_pem
    fingerprint, identity = key_fingerprint(load_leaf(before)), identity_of(before)
    numbers = range(1, 100)
    csrs = (new_key(number).csr for number in numbers)
    (csr,) = (csr for csr in csrs if key_fingerprint(x509.load_pem_x509_csr(csr)) == fingerprint)
    signed = EPOCH - 31 * DAY_S
    expired = root().sign(csr, identity.node_id, identity.role, identity.org, signed, 30 * DAY_S)
    node.disk.put_certificate(expired)


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_that_was_promoted_while_its_certificate_expired_becomes_a_manager_in_two_steps(seed: int) -> None:
    world = World(seed, 3, 1)
    world.build()
    worker = world.nodes[-1]
    assert worker.process is not None
    node_id = worker.node_id
    worker.process.die(torn=False, silent=False)
    worker.disk.synced()
    expire(worker)

    def promote(tx: Tx) -> None:
        tx.edit(api.Node, node_id).spec.desired_role = api.MANAGER

    leader = world.leader()
    assert leader is not None
    assert leader.manager is not None
    world.scope.run(leader.manager.write(promote, 20.0))
    issued: list[int] = []

    def watch(changes: Sequence[Change]) -> None:
        for change in changes:
            node = change.after
            if isinstance(node, api.Node) and node.id == node_id and node.certificate.csr not in seen:
                seen.append(node.certificate.csr)
                issued.append(node.certificate.role)

    seen = [node.certificate.csr for node in leader.manager.store.all(api.Node) if node.id == node_id]
    leader.manager.watchers.append(watch)
    world.restart(worker)
    world.until(lambda: worker.manager is not None, "the worker does not become a manager", 120.0)
    assert issued[:2] == [api.WORKER, api.MANAGER]


# --- a thousand nodes ----------------------------------------------------------------------------------------------


def thousand_renewals(outage: tuple[float, float] | None = None) -> list[float]:
    """When a thousand nodes that joined at the same moment ask for their next certificates, two lives long.

    outage: from when to when every request fails.
    """
    life_s, times = 90 * DAY_S, []
    for number in range(1000):
        machine, now = Renewal(0.0, life_s, Random(f"node {number}")), 0.0
        while now < 2 * life_s:
            due = machine.deadline()
            assert due is not None
            now = max(now, due)
            assert machine.handle(None, now) == [Renew()]
            times.append(now)
            if outage is not None and outage[0] <= now < outage[1]:
                machine.handle(Failed(), now)
            else:
                machine.handle(Renewed(now, now + life_s, "swarm-worker"), now)
    return times


def crowd(times: list[float], window_s: float) -> int:
    """The most that came within any window of this length."""
    ordered, first, most = sorted(times), 0, 0
    for last, time in enumerate(ordered):
        while ordered[first] < time - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_a_thousand_nodes_that_joined_together_renew_over_a_month() -> None:
    times = thousand_renewals()
    first = [time for time in times if time <= 72 * DAY_S]
    assert len(first) >= 1000
    assert min(times) >= 45 * DAY_S
    # 27 days for a thousand: 37 a day on average, 1.5 an hour
    assert crowd(times, DAY_S) < 80
    assert crowd(times, 3600.0) <= 12
    assert crowd(times, 60.0) <= 5
    per_day = [sum(day * DAY_S <= time < (day + 1) * DAY_S for time in first) for day in range(45, 72)]
    assert min(per_day) >= 15


def test_after_an_outage_they_do_not_come_back_together() -> None:
    """Managers away for a week: who was due tries again at random moments of an hour."""
    start, end = 50 * DAY_S, 57 * DAY_S
    times = [time for time in thousand_renewals((start, end)) if time >= end]
    late = [time for time in times if time < end + 3600.0]
    assert len(late) > 200
    assert crowd(late, 60.0) < len(late) / 8
    assert crowd(late, 1.0) <= 5
    tries = [time for time in thousand_renewals((start, end)) if start <= time < end]
    assert crowd(tries, 1.0) <= 8  # while nobody answers, too
