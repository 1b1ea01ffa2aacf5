"""Drives ClusterStage, CertificateStage and CertificateAuthority on the store of a new cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from certs import keys
from certs.root import RootCA
from swarm import api
from swarm.errors import SwarmError
from swarm.manager import cluster as clusters
from swarm.manager.certificates import CertificateAuthority, CertificateStage
from swarm.manager.cluster import ClusterStage, NewCluster
from swarm.manager.service import Effect, Write
from swarm.manager.stage import Stage
from swarm.rpc import LOCAL, Call, Peer, Reply, StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx

NOW = 1_795_362_749.0
CLUSTER, MANAGER = "cluster1", "manager1"
KEY = ec.derive_private_key(11, ec.SECP256R1())
CSR = keys.new_csr(KEY)
ROOT = RootCA.create(NOW, ec.derive_private_key(7, ec.SECP256R1()), deterministic=True)

M = TypeVar("M", bound=Message)


class TrustHarness:
    """Drives the parts of a leader that issue certificates: each pass runs the writes, then the stages, and commits."""

    def __init__(self, now: float = NOW, root: RootCA = ROOT) -> None:
        self.store = Store()
        self.rng = Random("trust")
        self.now = now
        self.stages: list[Stage] = [ClusterStage(CLUSTER), CertificateStage(CLUSTER, deterministic=True)]
        self.refused_keys: Counter[str] = Counter()
        self.service = CertificateAuthority(self.store, CLUSTER, refused_keys=self.refused_keys)
        self.edit(lambda tx: clusters.bootstrap(tx, CLUSTER, MANAGER, api.ClusterSpec(), root, CSR, b"", NewCluster()))
        self.elect()

    def elect(self) -> None:
        """A new leadership."""
        for stage in self.stages:
            stage.rebuild(self.store, self.now)

    def run_pass(self, *writes: Write) -> list[Effect]:
        """One pass, as Leader does it; effects: answers to the writes, then those of the service."""
        tx = Tx(self.store, self.now, self.rng)
        effects: list[Effect] = []
        for write in writes:
            assert write.stream is not None
            try:
                with tx.savepoint():
                    answer = write.run(tx)
                assert answer is not None
                effects.append(Reply(write.stream, answer))
            except SwarmError as error:
                effects.append(StreamEnd(write.stream, error))
        for stage in self.stages:
            for kind, object_id in tx.log:
                stage.note(kind, object_id)
            stage.run(tx)
        return effects + self.commit(tx)

    def edit(self, change: Callable[[Tx], object]) -> list[Effect]:
        """Any other change, without a pass of the stages, which get notes of it."""
        tx = Tx(self.store, self.now, self.rng)
        change(tx)
        for stage in self.stages:
            for kind, object_id in tx.log:
                stage.note(kind, object_id)
        return self.commit(tx)

    def commit(self, tx: Tx) -> list[Effect]:
        actions = tx.actions()
        if not actions:
            return []
        changes = self.store.apply(actions, self.store.index + 1)
        return list(self.service.committed(changes, self.now))

    def call(self, method: str, request: Message, peer: Peer = LOCAL, stream: int = 1) -> list[Effect]:
        """The effects of a call; a write gets its own pass."""
        effects: list[Effect] = []
        for effect in self.service.handle(Call(stream, method, request, peer), self.now):
            effects += self.run_pass(effect) if isinstance(effect, Write) else [effect]
        return effects

    def issue(
        self, peer: Peer, token: str = "", csr: bytes = CSR, availability: int = 0
    ) -> api.IssueNodeCertificateResponse:
        """IssueNodeCertificate; raises the error that the caller would get."""
        request = api.IssueNodeCertificateRequest(csr=csr, token=token, availability=availability)  # type: ignore[arg-type]
        return answer(self.call("NodeCA/IssueNodeCertificate", request, peer), api.IssueNodeCertificateResponse)

    def join(self, role: str = "worker") -> api.Node:
        """A new node with a certificate."""
        response = self.issue(Peer(addr="10.0.0.9:4000"), getattr(self.cluster.root_ca.join_tokens, role))
        return self.node(response.node_id)

    def status(self, node_id: str, stream: int = 1) -> list[Effect]:
        request = api.NodeCertificateStatusRequest(node_id=node_id)
        return self.call("NodeCA/NodeCertificateStatus", request, Peer(), stream)

    @property
    def cluster(self) -> api.Cluster:
        cluster = self.store.get(api.Cluster, CLUSTER)
        assert cluster is not None
        return cluster

    def node(self, node_id: str) -> api.Node:
        node = self.store.get(api.Node, node_id)
        assert node is not None
        return node


def answer(effects: Sequence[Effect], kind: type[M]) -> M:
    """The only answer; raises the error if it is one."""
    assert len(effects) == 1
    effect = effects[0]
    if isinstance(effect, StreamEnd):
        assert effect.error is not None
        raise effect.error
    assert isinstance(effect, Reply)
    assert isinstance(effect.message, kind)
    return effect.message


def peer_of(node: api.Node, org: str = CLUSTER) -> Peer:
    """A caller with this node's certificate."""
    return Peer(node.id, "swarm-manager" if node.role == api.MANAGER else "swarm-worker", org, "10.0.0.9:4000")


@pytest.fixture
def trust() -> TrustHarness:
    """A cluster one pass old."""
    trust = TrustHarness()
    trust.run_pass()
    return trust
