"""A manager for fuzzing: a small cluster that is restored quickly, with a disk that answers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from certs import keys
from certs.root import RootCA
from swarm import api
from swarm.api import raftpb
from swarm.api.objects import KINDS
from swarm.manager import assemble
from swarm.manager import cluster as clusters
from swarm.manager.cluster import NewCluster
from swarm.manager.events import CheckPeer, DialPeer, ManagerEffect, ManagerEvent, PeerChecked, PeerDialled
from swarm.manager.manager import Manager
from swarm.manager.service import Write
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import LOCAL, MANAGER_ROLE, WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx
from tests.fuzz.messages import Words

NOW = 1_795_359_300.0
CLUSTER, SECRET_VALUE = "c1", b"nobody may read this"
KEY = ec.derive_private_key(11, ec.SECP256R1())
CSR = keys.new_csr(KEY)
ROOT = RootCA.create(NOW, ec.derive_private_key(7, ec.SECP256R1()), deterministic=True)
OTHER_ROOT = RootCA.create(NOW, ec.derive_private_key(9, ec.SECP256R1()), deterministic=True)
PEERS = (
    LOCAL,
    Peer("n1", MANAGER_ROLE, CLUSTER, "10.0.0.1:4000"),
    Peer("n2", WORKER_ROLE, CLUSTER, "10.0.0.2:4000"),
    Peer("n3", MANAGER_ROLE, CLUSTER, "[fd00::3]:4000"),
    Peer("n9", WORKER_ROLE, CLUSTER, "10.0.0.9:4000"),
    Peer(addr="10.0.0.8:4000"),
    Peer("n2", WORKER_ROLE, CLUSTER, "10.0.0.2:4000", forwarder="n3"),
)
TURNS_MAX = 500


class House:
    """Drives one Manager. now: seconds since the epoch. strict: an exception inside a stage or a write is a finding."""

    def __init__(self, snapshot: raftpb.Snapshot | None, strict: bool = True, seed: int = 1) -> None:
        self.now = NOW
        self.stream = 0
        self.written: list[events.Persist] = []
        self.dialled: list[DialPeer] = []
        self.dial_error = ""  # why members are not found where they seem to be; empty: they are
        self.others: list[Reply | StreamData | StreamEnd] = []  # what other calls were answered during the last one
        rng = Random(f"{seed}, {'at work' if snapshot else 'made'}")  # never the IDs that the snapshot has already
        state = raftpb.HardState(term=1, vote=1, commit=snapshot.metadata.index) if snapshot else None
        entries = () if snapshot else _founding()
        raft = Raft(events.Config(1), rng, state, snapshot, entries, snapshot.metadata.index if snapshot else 0, NOW)
        parts = assemble.parts("n1", CLUSTER, assemble.Group(lambda: self.manager))
        self.manager = Manager(raft, Store(), parts, rng, strict)
        if snapshot is not None:
            self.manager.restore(snapshot)
        self.settle()

    @property
    def store(self) -> Store:
        """What the manager keeps."""
        return self.manager.store

    def tell(self, event: ManagerEvent | None) -> list[ManagerEffect]:
        """Give an event; perform what concerns the disk and the members; return the other effects."""
        out: list[ManagerEffect] = []
        waiting: list[ManagerEvent | None] = [event]
        while waiting:
            for effect in self.manager.handle(waiting.pop(0), self.now):
                if isinstance(effect, events.Persist):
                    self.written.append(effect)
                    waiting.append(events.Persisted(effect.token))
                elif isinstance(effect, CheckPeer):
                    waiting.append(PeerChecked(effect.stream, "", ours=effect.stream % 2 == 0))
                elif isinstance(effect, DialPeer):
                    self.dialled.append(effect)
                    waiting.append(PeerDialled(effect.raft_id, effect.addr, self.dial_error))
                else:
                    out.append(effect)
        return out

    def settle(self) -> list[ManagerEffect]:
        """Wake the manager until nothing is due; returns the effects."""
        out: list[ManagerEffect] = []
        for _ in range(TURNS_MAX):
            due = self.manager.deadline()
            if due is None or due > self.now:
                return out
            out += self.tell(None)
        raise AssertionError(f"never quiet: due {self.manager.deadline()} at {self.now}")

    def write(self, change: Callable[[Tx], object]) -> None:
        """Change the store as another component would."""

        def run(tx: Tx) -> None:
            change(tx)

        self.tell(Write(run))
        self.settle()

    def call(self, method: str, request: Message | None, peer: Peer = LOCAL) -> list[Reply | StreamData | StreamEnd]:
        """A call, and what is answered at once."""
        self.stream += 1
        effects = self.tell(Call(self.stream, method, request, peer)) + self.settle()
        answers = [effect for effect in effects if isinstance(effect, Reply | StreamData | StreamEnd)]
        self.others = [answer for answer in answers if answer.stream != self.stream]
        return [answer for answer in answers if answer.stream == self.stream]

    def content(self) -> bytes:
        """Everything in the store."""
        return self.store.save().SerializeToString(deterministic=True)

    def words(self) -> Words:
        """Names, numbers and keys of the cluster's objects, and special values."""
        texts = [
            "",
            "n1",
            "n2",
            "n3",
            "n9",
            CLUSTER,
            "default",
            "new",
            "NEW",
            "busybox:latest",
            "a" * 70,
            "x\0y",
            "10.0.0.0/24",
        ]
        numbers = [0, 1, 2, 5, 30, 80, 1 << 20, (1 << 63) - 1, 1 << 63]
        for kind in KINDS.values():
            for obj in self.store.all(kind.message):
                texts.append(obj.id)  # type: ignore[attr-defined]
                numbers.append(obj.meta.version.index)  # type: ignore[attr-defined]
                if hasattr(getattr(obj, "spec", None), "annotations"):
                    texts.append(obj.spec.annotations.name)  # type: ignore[attr-defined]
        texts += [
            "node.role==manager",
            "node.labels.a != b",
            "engine.labels.x==y",
            "spread",
            "node.labels.z",
            "{{.Node.ID}}",
        ]
        cluster = self.store.get(api.Cluster, CLUSTER)
        if cluster is not None:
            texts += [cluster.root_ca.join_tokens.worker, cluster.root_ca.join_tokens.manager]
        blobs = [
            b"",
            CSR,
            ROOT.bundle_pem,
            ROOT.key_pem or b"",
            OTHER_ROOT.bundle_pem,
            OTHER_ROOT.key_pem or b"",
            b"x" * 32,
        ]
        return Words(texts, blobs, numbers)


def _founding() -> tuple[raftpb.Entry, ...]:
    from swarm.raft.membership import bootstrap_entries

    member = api.RaftMember(raft_id=1, node_id="n1", addr="10.0.0.1:2377")
    return bootstrap_entries(1, member.SerializeToString())


def service_spec(name: str = "web") -> api.ServiceSpec:
    """A service that the scheduler places."""
    spec = api.ServiceSpec()
    spec.annotations.name = name
    spec.task.container.image = "busybox:latest"
    spec.replicated.replicas = 2
    spec.endpoint.ports.add(protocol=api.PortConfig.TCP, target_port=80, publish_mode=api.PortConfig.HOST)
    return spec


def furnish(managers: Sequence[str] = ()) -> raftpb.Snapshot:
    """A cluster of two nodes with one object of most kinds, as a snapshot to start from; managers: further nodes."""
    house = House(None)
    details = NewCluster(address="10.0.0.1")
    house.write(lambda tx: clusters.bootstrap(tx, CLUSTER, "n1", api.ClusterSpec(), ROOT, CSR, b"", details))

    def fill(tx: Tx) -> None:
        node = api.Node(id="n2", role=api.WORKER)
        node.spec.membership = api.NodeSpec.ACCEPTED
        node.spec.annotations.name = "n2"
        node.certificate.cn, node.certificate.csr = "n2", CSR
        node.certificate.status.state = api.IssuanceStatus.ISSUED
        tx.create(node)

    house.write(fill)
    for node_id in managers:
        manager = api.Node(id=node_id, role=api.MANAGER)
        manager.spec.desired_role = api.MANAGER
        house.write(lambda tx, manager=manager: tx.create(manager))  # type: ignore[misc]
    description = api.NodeDescription(
        hostname="host", resources=api.Resources(nano_cpus=4 * 10**9, memory_bytes=1 << 33)
    )
    description.platform.architecture, description.platform.os = "x86_64", "linux"
    for peer in PEERS[1:3]:
        house.call("Dispatcher/Session", api.SessionRequest(description=description), peer)
    secret = api.CreateSecretRequest()
    secret.spec.annotations.name, secret.spec.data = "s1", SECRET_VALUE
    config = api.CreateConfigRequest()
    config.spec.annotations.name, config.spec.data = "f1", b"config"
    for method, request in (
        ("Control/CreateSecret", secret),
        ("Control/CreateConfig", config),
        ("Control/CreateService", api.CreateServiceRequest(spec=service_spec())),
    ):
        answers = house.call(method, request)
        assert isinstance(answers[-1], Reply), (method, answers)
    for _ in range(5):
        house.now += 1
        house.settle()
    membership = api.ClusterSnapshot(members=[house.manager.group.members[1]])
    content = api.Snapshot(version=api.Snapshot.V0, membership=membership, store=house.store.save())
    snapshot = raftpb.Snapshot(data=content.SerializeToString())
    snapshot.metadata.index, snapshot.metadata.term = house.store.index, 1
    snapshot.metadata.conf_state.voters.append(1)
    return snapshot
