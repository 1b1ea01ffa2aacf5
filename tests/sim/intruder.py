"""A thief of certificates: it copies those of managers, and speaks with them to every member when they are worthless.

It sends every type of Raft's messages, with newer terms and entries that would make it a manager, in the name of its
own member, of other members, and of raft IDs that it makes up. What a receiver must refuse follows from facts that the
receiver has applied, not from production's judgement: that the node was removed, that its certificate begins no later
than the demotion which is on record, that the raft ID belongs to another node, or that the certificate is the one on
record of another member. A receiver that lags behind these facts cannot know, and is spared.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from certs.keys import key_fingerprint, load_certificates
from swarm import api
from swarm.api import raftpb
from swarm.api.timestamps import seconds
from swarm.rpc import MANAGER_ROLE, Peer, StreamEnd
from tests.sim.kernel import Script

if TYPE_CHECKING:
    from tests.sim.manager_driver import ManagerDriver
    from tests.sim.world import World

PAUSE_S = 0.4
STOLEN_MAX = 12
TYPES = tuple(raftpb.MessageType.values())


class Intruder:
    """See the module. attacks: how many messages were refused as they must be. active: whether it goes on."""

    def __init__(self, world: World) -> None:
        self.attacks = 0
        self.active = True
        self._world = world
        self._rng = Random(f"{world.kernel.seed}/intruder")
        self._stolen: dict[tuple[str, bytes], tuple[Peer, int]] = {}

    def start(self) -> None:
        """From now on."""
        self._world.scope.run(self._go_on())

    def _go_on(self) -> Script:
        while self.active:
            self._steal()
            self.attack()
            yield self._world.kernel.sleep(PAUSE_S)

    def _steal(self) -> None:
        for node in self._world.managing():
            manager, identity = node.manager, node.process.identity if node.process is not None else Peer()
            if manager is not None and manager.manager is not None and identity.role == MANAGER_ROLE:
                self._stolen[identity.node_id, identity.key] = identity, manager.manager.group.raft_id
        while len(self._stolen) > STOLEN_MAX:
            del self._stolen[next(iter(self._stolen))]

    def attack(self) -> None:
        """One message with every stolen certificate to every member."""
        for node in self._world.managing():
            driver = node.manager
            if driver is None or driver.manager is None or driver.closed:
                continue
            for identity, own_id in self._stolen.values():
                others = [*driver.manager.group.members, *driver.manager.group.removed]
                raft_id = self._rng.choice((own_id, self._rng.getrandbits(62) + 1, self._rng.choice(others or [0])))
                if must_refuse(driver, identity, raft_id):
                    self._send(driver, identity, raft_id)

    def _send(self, driver: ManagerDriver, identity: Peer, raft_id: int) -> None:
        assert driver.manager is not None
        raft = driver.manager.raft
        message = raftpb.Message(type=self._rng.choice(TYPES), to=driver.manager.group.raft_id)  # type: ignore[arg-type]
        setattr(message, "from", raft_id)
        message.term, message.index, message.logTerm = raft.term + 7, raft.log.committed, raft.log.last_term
        message.commit = raft.log.committed + 1
        if message.type == raftpb.MsgApp:
            node = api.Node(id=identity.node_id, role=api.MANAGER)
            action = api.StoreAction(action=api.StoreActionKind.STORE_ACTION_UPDATE, node=node)
            data = api.InternalRaftRequest(id=1, action=[action]).SerializeToString()
            message.entries.add(Index=message.index + 1, Term=message.term, Data=data)
        elif message.type == raftpb.MsgSnap:
            message.snapshot.metadata.index, message.snapshot.metadata.term = message.index + 1000, message.term
        name = raftpb.MessageType.Name(message.type)
        driver.raft_message(message, identity, lambda answer: self._answered(name, identity, raft_id, answer))

    def _answered(self, name: str, identity: Peer, raft_id: int, answer: object) -> None:
        refused = isinstance(answer, StreamEnd) and answer.error is not None
        assert refused, f"{name} of {raft_id:x} was taken from {identity.node_id}"
        self.attacks += 1


@lru_cache(maxsize=256)
def _key_of(certificate_pem: bytes) -> bytes:
    """Empty without a certificate."""
    known = load_certificates(certificate_pem)
    return key_fingerprint(known[0]) if known else b""


def must_refuse(driver: ManagerDriver, identity: Peer, raft_id: int) -> bool:
    """Whether this receiver knows enough to see that this is a lie."""
    assert driver.manager is not None
    store, group = driver.store, driver.manager.group
    if any(identity.node_id in cluster.blacklisted_certificates for cluster in store.all(api.Cluster)):
        return True
    if raft_id in group.removed or raft_id == 0:
        return True
    if raft_id in group.members and group.members[raft_id].node_id != identity.node_id:
        return True
    node = store.get(api.Node, identity.node_id)
    if node is None:
        return False
    if node.authority.HasField("void_until") and identity.not_before <= seconds(node.authority.void_until):
        return True
    on_record = _key_of(node.certificate.certificate) == identity.key
    return on_record and raft_id not in group.members and group.by_node(identity.node_id) is not None
