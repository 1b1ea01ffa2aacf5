"""Every type of Raft's messages, from every kind of sender, to a receiver in every state.

Two tables say what must be taken: which senders a receiver in each state knows for members, and that nothing else is.
The receivers are production's machines behind production's rules for callers. A refused message changes nothing: not
the store, the log, the term, the vote or who leads, and nothing is sent because of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest

from certs.keys import new_csr, new_private_key
from certs.root import RootCA
from swarm import api
from swarm.api import raftpb
from swarm.api.methods import METHODS
from swarm.errors import Code, SwarmError
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.grpc.peer import peer_of
from swarm.manager import assemble
from swarm.manager.group.members import REMOVED_TEXT
from swarm.manager.manager import Manager
from swarm.manager.standing import is_removed, newest_begins, note_certificate, note_demotion, note_signed
from swarm.raft import events
from swarm.raft.raft import Raft
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx

NOW = 1_795_359_300.0
DAY_S = 24 * 3600.0
CLUSTER = "c1"
ROOT = RootCA.create(NOW)
TYPES = tuple(raftpb.MessageType.values())
UNKNOWN_ID = 77


class Nodes:
    """The cluster's nodes as its leader has them, and every certificate that was ever signed for them."""

    def __init__(self) -> None:
        self.nodes: dict[str, api.Node] = {}
        self.peers: dict[str, list[Peer]] = {}
        self.now = NOW

    def certify(self, node_id: str, role: api.NodeRole, org: str = CLUSTER) -> Peer:
        """The next certificate of a node, a minute after the one before."""
        self.now += 60.0
        node = self.nodes.setdefault(node_id, api.Node(id=node_id))
        node.role = node.spec.desired_role = role
        name = MANAGER_ROLE if role == api.MANAGER else WORKER_ROLE
        csr = new_csr(new_private_key())
        pem = ROOT.sign(csr, node_id, name, org, self.now, 90 * DAY_S, newest_begins(node))
        note_certificate(node)
        node.certificate.CopyFrom(api.Certificate(role=role, csr=csr, cn=node_id, certificate=pem))
        node.certificate.status.state = api.IssuanceStatus.ISSUED
        note_signed(node)
        peer = peer_of(pem, f"10.0.0.{len(self.peers) + 1}:40000")
        self.peers.setdefault(node_id, []).append(peer)
        return peer

    def demote(self, node_id: str) -> None:
        """As the roles stage does it."""
        node = self.nodes[node_id]
        note_demotion(node)
        node.role = node.spec.desired_role = api.WORKER


@dataclass(frozen=True)
class Sender:
    """A caller and the raft ID that its messages name."""

    peer: Peer
    raft_id: int


def world() -> tuple[list[api.Node], dict[str, Sender]]:
    """The nodes, and every kind of sender.

    n1 is the receiver (raft ID 1), n2 and n3 are members (2, 3), n4 was demoted (4 was removed), n5 was removed from
    the cluster (5 was removed), n6 is a worker, n7 was demoted and promoted again (7 was removed, 17 is its member).
    """
    nodes = Nodes()
    for node_id in ("n1", "n2", "n3", "n4", "n5", "n7"):
        nodes.certify(node_id, api.MANAGER)
    superseded = nodes.peers["n2"][0]
    nodes.certify("n2", api.MANAGER)
    for node_id in ("n4", "n7"):
        nodes.demote(node_id)
        nodes.certify(node_id, api.WORKER)
    again = nodes.certify("n7", api.MANAGER)
    worker = nodes.certify("n6", api.WORKER)
    foreign = Nodes().certify("n2", api.MANAGER, org="another")
    peers = {node_id: found[0] for node_id, found in nodes.peers.items()}
    member = nodes.peers["n2"][-1]
    senders = {
        "a member": Sender(member, 2),
        "a member whose certificate was renewed since": Sender(superseded, 2),
        "a member that was promoted again": Sender(again, 17),
        "a stranger": Sender(Peer(addr="10.0.0.9:40000"), 2),
        "a worker": Sender(worker, UNKNOWN_ID),
        "a worker with a member's ID": Sender(worker, 2),
        "demoted, with its own ID": Sender(peers["n4"], 4),
        "demoted, with an unknown ID": Sender(peers["n4"], UNKNOWN_ID),
        "demoted, with a member's ID": Sender(peers["n4"], 2),
        "demoted, with the receiver's ID": Sender(peers["n4"], 1),
        "demoted, with no ID": Sender(peers["n4"], 0),
        "removed, with its own ID": Sender(peers["n5"], 5),
        "removed, with an unknown ID": Sender(peers["n5"], UNKNOWN_ID),
        "a void certificate of a manager, with its member's ID": Sender(peers["n7"], 17),
        "a void certificate of a manager, with its former ID": Sender(peers["n7"], 7),
        "a void certificate of a manager, with an unknown ID": Sender(peers["n7"], UNKNOWN_ID),
        "a member with an unknown ID": Sender(member, UNKNOWN_ID),
        "a member's superseded certificate with an unknown ID": Sender(superseded, UNKNOWN_ID),
        "a member with another member's ID": Sender(member, 3),
        "a member of another cluster": Sender(foreign, 2),
    }
    del nodes.nodes["n5"]
    return list(nodes.nodes.values()), senders


NODES, SENDERS = world()
MEMBERS = {1: "n1", 2: "n2", 3: "n3", 17: "n7"}
TAKEN = ("a member", "a member whose certificate was renewed since", "a member that was promoted again")
TOLD = {"demoted, with its own ID", "a void certificate of a manager, with its former ID"}
"""These hear that they were removed, and nothing else."""


class Receiver:
    """A manager of the group, whose disk answers at once."""

    def __init__(self, state: str) -> None:
        self.now = NOW + DAY_S
        self.sent: list[raftpb.Message] = []
        self.stream = 0
        alone = state == "alone"
        gone = state == "removed itself"
        members = {1: "n1"} if alone else {key: MEMBERS[key] for key in MEMBERS if key != 1 or not gone}
        content = api.Snapshot(version=api.Snapshot.V0)
        content.membership.removed.extend((1, 4, 5, 7) if gone else (4, 5, 7))
        for raft_id, node_id in members.items():
            content.membership.members.add(raft_id=raft_id, node_id=node_id, addr=f"10.0.0.{raft_id}:2377")
        if state == "joins":
            self._join()
            return
        store = Store()
        tx = Tx(store, NOW, Random(1))
        cluster = api.Cluster(id=CLUSTER)
        cluster.spec.annotations.name = "default"
        cluster.blacklisted_certificates["n5"].SetInParent()
        tx.create(cluster)
        for node in NODES:
            tx.create(node)
        store.apply(tx.actions(), 20)
        content.store.CopyFrom(store.save())
        snapshot = raftpb.Snapshot(data=content.SerializeToString())
        snapshot.metadata.index, snapshot.metadata.term = 20, 3
        snapshot.metadata.conf_state.voters.extend(members)
        hard_state = raftpb.HardState(term=3, vote=0, commit=20)
        raft = Raft(events.Config(1), Random(1), hard_state, snapshot, (), 20, self.now)
        parts = assemble.parts("n1", CLUSTER, assemble.Group(lambda: self.manager))
        self.manager = Manager(raft, Store(), parts, Random(1), strict=True)
        self.manager.restore(snapshot)
        self.authorizer = ClusterAuthorizer(
            CLUSTER, lambda node_id: is_removed(self.manager.store, node_id), self.manager.judge.why_no_manager
        )
        self._tell(None)
        {
            "alone": lambda: None,
            "leads": self._lead,
            "follows": self._follow,
            "candidate": self._stand,
            "hears nobody": lambda: None,
            "removed itself": lambda: None,
        }[state]()

    def _join(self) -> None:
        """Its log is empty. It knows who took it in: members with their nodes, and which raft IDs were removed."""
        raft = Raft(events.Config(1), Random(1), raftpb.HardState(), None, (), 0, self.now)
        parts = assemble.parts("n1", CLUSTER, assemble.Group(lambda: self.manager))
        self.manager = Manager(raft, Store(), parts, Random(1), strict=True)
        told = [api.RaftMember(raft_id=key, node_id=MEMBERS[key], addr=f"10.0.0.{key}:2377") for key in MEMBERS]
        self.manager.recall({}, told)
        self.authorizer = ClusterAuthorizer(
            CLUSTER, lambda node_id: is_removed(self.manager.store, node_id), self.manager.judge.why_no_manager
        )
        self._tell(None)

    def _tell(self, event: object) -> list[Reply | StreamEnd]:
        out: list[Reply | StreamEnd] = []
        waiting = [event]
        while waiting:
            for effect in self.manager.handle(waiting.pop(0), self.now):  # type: ignore[arg-type]
                if isinstance(effect, events.Persist):
                    waiting.append(events.Persisted(effect.token))
                elif isinstance(effect, events.Send):
                    self.sent.append(effect.message)
                elif isinstance(effect, Reply | StreamEnd):
                    out.append(effect)
        return out

    def _from(self, raft_id: int, kind: raftpb.MessageType, **fields: object) -> None:
        message = raftpb.Message(type=kind, to=1, **fields)  # type: ignore[arg-type]
        setattr(message, "from", raft_id)
        self._tell(events.Received(message))

    def _stand(self) -> None:
        self._tell(events.Campaign())

    def _lead(self) -> None:
        self._tell(events.Campaign(force=True))
        term = self.manager.raft.term
        for raft_id in (2, 3):
            self._from(raft_id, raftpb.MsgVoteResp, term=term)
        for raft_id in (2, 3):
            self._from(raft_id, raftpb.MsgAppResp, term=term, index=self.manager.raft.log.last_index)
        assert self.manager.leading

    def _follow(self) -> None:
        self._from(2, raftpb.MsgHeartbeat, term=4, commit=20)
        assert self.manager.raft.leader == 2

    def hears_its_leader(self) -> None:
        """A first message of a member that took it in."""
        assert self.hear(Sender(SENDERS["a member"].peer, 2), raftpb.MsgHeartbeat, piecewise=False) is None
        assert self.manager.raft.leader == 2

    def state(self) -> tuple[object, ...]:
        """All that a message could change."""
        raft = self.manager.raft
        log = raft.log
        content = self.manager.store.save().SerializeToString(deterministic=True)
        members = self.manager.group.save().SerializeToString(deterministic=True)
        numbers = raft.term, raft.vote, raft.role, raft.leader, log.last_index, log.last_term, log.committed
        return (*numbers, content, members, dict(self.manager.group.callers), len(self.sent))

    def hear(self, sender: Sender, kind: int, piecewise: bool) -> SwarmError | None:
        """How a message is answered: None if it is taken."""
        raft, log = self.manager.raft, self.manager.raft.log
        message = raftpb.Message(type=kind, to=1, term=raft.term + 5, index=log.last_index, logTerm=log.last_term)  # type: ignore[arg-type]
        setattr(message, "from", sender.raft_id)
        message.commit = log.last_index + 1 if kind == raftpb.MsgApp else log.committed
        if kind == raftpb.MsgApp:
            promoted = next(node for node in NODES if node.id == "n4")
            action = api.StoreAction(action=api.StoreActionKind.STORE_ACTION_UPDATE, node=promoted)
            action.node.role = api.MANAGER
            data = api.InternalRaftRequest(id=9, action=[action]).SerializeToString()
            message.entries.add(Index=log.last_index + 1, Term=message.term, Data=data)
        elif kind == raftpb.MsgSnap:
            message.snapshot.metadata.index, message.snapshot.metadata.term = log.last_index + 50, message.term
            message.snapshot.metadata.conf_state.voters.append(UNKNOWN_ID)
            message.snapshot.data = api.Snapshot().SerializeToString()
        elif kind in (raftpb.MsgVote, raftpb.MsgPreVote):
            message.context = b"CampaignTransfer"
        self.stream += 1
        method = "Raft/StreamRaftMessage" if piecewise else "Raft/ProcessRaftMessage"
        try:
            peer = self.authorizer(METHODS[method], sender.peer, {})
        except SwarmError as error:
            return error
        if not piecewise:
            answers = self._tell(Call(self.stream, method, api.ProcessRaftMessageRequest(message=message), peer))
        else:
            answers = self._tell(Call(self.stream, method, None, peer))
            answers += self._tell(StreamData(self.stream, api.StreamRaftMessageRequest(message=message)))
            answers += self._tell(StreamEnd(self.stream))
        (answer,) = [one for one in answers if one.stream == self.stream]
        return answer.error if isinstance(answer, StreamEnd) else None


STATES = ("alone", "leads", "follows", "candidate", "hears nobody", "removed itself")


@pytest.mark.parametrize("piecewise", [False, True])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", [name for name in SENDERS if name not in TAKEN])
def test_who_is_no_member_changes_nothing_with_any_message(name: str, state: str, piecewise: bool) -> None:
    receiver = Receiver(state)
    for kind in TYPES:
        before = receiver.state()
        refusal = receiver.hear(SENDERS[name], kind, piecewise)
        assert refusal is not None, (name, state, raftpb.MessageType.Name(kind))
        assert receiver.state() == before, (name, state, raftpb.MessageType.Name(kind))
        if name in TOLD or (state == "removed itself" and name.endswith("receiver's ID")):
            assert (refusal.code, refusal.message) == (Code.NOT_FOUND, REMOVED_TEXT)
        else:
            assert refusal.code == Code.PERMISSION_DENIED, refusal


@pytest.mark.parametrize("piecewise", [False, True])
@pytest.mark.parametrize("state", [state for state in STATES if state != "alone"])
@pytest.mark.parametrize("name", TAKEN)
def test_every_message_of_a_member_is_taken(name: str, state: str, piecewise: bool) -> None:
    for kind in TYPES:
        assert Receiver(state).hear(SENDERS[name], kind, piecewise) is None, raftpb.MessageType.Name(kind)


# --- a member that lags ----------------------------------------------------------------------------------------------


def promoted_since(node_id: str) -> Peer:
    """The certificate of a node that has become a manager (again) after the store's state."""
    nodes = Nodes()
    nodes.now = NOW + 3600.0
    for node in NODES:
        known = nodes.nodes[node.id] = api.Node()
        known.CopyFrom(node)
    return nodes.certify(node_id, api.MANAGER)


@pytest.mark.parametrize("state", ["hears nobody", "candidate"])
@pytest.mark.parametrize("node_id", ["n4", "n6", "n2", "n9"])
def test_a_member_that_lags_believes_a_leader_that_became_a_manager_since(state: str, node_id: str) -> None:
    """n4 was demoted, n6 is a worker, n2 was another member, n9 is not known at all."""
    for kind in (raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgVote, raftpb.MsgPreVote):
        receiver = Receiver(state)
        sender = Sender(promoted_since(node_id), UNKNOWN_ID)
        assert receiver.hear(sender, kind, piecewise=False) is None
        assert receiver.hear(sender, kind, piecewise=False) is None, "the first one has made it a believed leader"
        other = Sender(replace(sender.peer, node_id="n10"), UNKNOWN_ID)
        assert receiver.hear(other, kind, piecewise=False) is not None, "the raft ID has a node now"


@pytest.mark.parametrize("state", ["leads", "follows", "alone"])
@pytest.mark.parametrize("node_id", ["n4", "n6", "n2", "n9"])
def test_who_leads_or_hears_a_leader_believes_no_unknown_member(state: str, node_id: str) -> None:
    receiver = Receiver(state)
    for kind in TYPES:
        before = receiver.state()
        assert receiver.hear(Sender(promoted_since(node_id), UNKNOWN_ID), kind, piecewise=False) is not None
        assert receiver.state() == before


def test_a_follower_that_hears_its_leader_no_more_believes_the_next_one() -> None:
    receiver = Receiver("follows")
    sender = Sender(promoted_since("n9"), UNKNOWN_ID)
    assert receiver.hear(sender, raftpb.MsgApp, piecewise=False) is not None
    receiver.now += 60.0
    assert receiver.hear(sender, raftpb.MsgApp, piecewise=False) is None
    assert receiver.manager.raft.leader == UNKNOWN_ID


# --- a joiner -------------------------------------------------------------------------------------------------------

CANNOT_TELL = (
    "demoted, with its own ID",
    "demoted, with an unknown ID",
    "removed, with its own ID",
    "removed, with an unknown ID",
)
"""Managers by their certificates: a joiner has not heard of their nodes. It believes them until it hears its leader."""
VOID = "a void certificate of a manager, with its member's ID"
"""Only the store tells that it is void."""


@pytest.mark.parametrize("hears", [False, True])
@pytest.mark.parametrize("name", [name for name in SENDERS if name not in (*TAKEN, VOID)])
def test_a_joiner_with_an_empty_store_believes_only_who_took_it_in_once_it_has_heard_them(
    name: str, hears: bool
) -> None:
    receiver = Receiver("joins")
    if hears:
        receiver.hears_its_leader()
    if name in CANNOT_TELL and not hears:
        assert receiver.hear(SENDERS[name], raftpb.MsgHeartbeat, piecewise=False) is None
        return
    for kind in TYPES:
        before = receiver.state()
        refusal = receiver.hear(SENDERS[name], kind, piecewise=False)
        assert refusal is not None
        assert refusal.code == Code.PERMISSION_DENIED
        assert receiver.state() == before


@pytest.mark.parametrize("name", [name for name in TAKEN if "renewed" not in name])
def test_a_joiner_takes_messages_of_who_took_it_in(name: str) -> None:
    for kind in (raftpb.MsgHeartbeat, raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgTimeoutNow):
        assert Receiver("joins").hear(SENDERS[name], kind, piecewise=False) is None
