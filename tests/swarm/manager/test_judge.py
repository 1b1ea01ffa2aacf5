"""Calls that were allowed on arrival are judged again where they are served."""

from __future__ import annotations

import pytest

from swarm import api
from swarm.api import raftpb
from swarm.errors import PermissionDenied, SwarmError, Unavailable
from swarm.manager.events import ManagerEffect, PeerChecked
from swarm.manager.service import Write
from swarm.raft import events
from swarm.rpc import MANAGER_ROLE, WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.tx import Tx
from tests.swarm.manager.group.test_changes import JOINER, Lab, demote, elect_again, promote, yes

MANAGER = Peer("n3", MANAGER_ROLE, "c1", "10.0.0.3:40000")
WORKER = Peer("n5", WORKER_ROLE, "c1", "10.0.0.5:40000")
FORWARDED = Peer("n5", WORKER_ROLE, "c1", "10.0.0.5:40000", forwarder="n3")
NEW_CONFIG = api.CreateConfigRequest(spec=api.ConfigSpec(annotations=api.Annotations(name="c"), data=b"1"))
BEAT = api.HeartbeatRequest()


def furnish(tx: Tx) -> None:
    """The cluster, with a worker."""
    cluster = api.Cluster(id="c1")
    cluster.spec.annotations.name = "default"
    cluster.root_ca.join_tokens.manager = "token"
    tx.create(cluster)
    tx.create(api.Node(id="n5", role=api.WORKER))


def remove(node_id: str, tx: Tx) -> None:
    """docker node rm."""
    tx.edit(api.Cluster, "c1").blacklisted_certificates[node_id].SetInParent()
    tx.remove(api.Node, node_id)


def lab() -> Lab:
    made = Lab()
    made.tell(Write(furnish))
    return made


def refusal(effects: list[ManagerEffect], stream: int) -> SwarmError | None:
    """How a call was refused; None: it was answered."""
    (answer,) = [one for one in effects if isinstance(one, Reply | StreamEnd) and one.stream == stream]
    return answer.error if isinstance(answer, StreamEnd) else None


def call(lab: Lab, method: str, request: object, peer: Peer) -> list[ManagerEffect]:
    lab.stream += 1
    return lab.tell(Call(lab.stream, method, request, peer))  # type: ignore[arg-type]


LOSSES = {
    "demoted": (MANAGER, "Control/CreateConfig", NEW_CONFIG, lambda tx: demote(tx, "n3"), Unavailable),
    "removed": (MANAGER, "Control/CreateConfig", NEW_CONFIG, lambda tx: remove("n3", tx), PermissionDenied),
    "a worker": (WORKER, "Dispatcher/Heartbeat", BEAT, lambda tx: remove("n5", tx), PermissionDenied),
    "forwarder": (FORWARDED, "Dispatcher/Heartbeat", BEAT, lambda tx: demote(tx, "n3"), Unavailable),
    "forwarder gone": (FORWARDED, "Dispatcher/Heartbeat", BEAT, lambda tx: remove("n3", tx), PermissionDenied),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_call_is_judged_by_the_store_of_the_moment_in_which_it_is_served(name: str) -> None:
    peer, method, request, loss, error = LOSSES[name]
    made = lab()
    assert not isinstance(refusal(call(made, method, request, peer), made.stream), error)
    made.tell(Write(loss))
    assert isinstance(refusal(call(made, method, request, peer), made.stream), error)


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("forwarder")])
def test_a_call_that_waited_for_a_leader_is_judged_by_what_the_leader_knows(name: str) -> None:
    """Forwarded calls do not wait: their forwarder asks the next leader."""
    peer, _, request, loss, error = LOSSES[name]
    method = "CA/GetUnlockKey" if peer is MANAGER else "Dispatcher/Heartbeat"
    made = lab()
    voter = made.joined()
    made.tell(Write(loss))  # it is in the log, and decided only after the next election
    made.lose_leadership()
    asked = api.GetUnlockKeyRequest() if peer is MANAGER else request
    assert call(made, method, asked, peer) == []
    waiting = made.stream
    assert isinstance(refusal(elect_again(made, voter), waiting), error)


def test_a_write_in_the_leaders_queue_is_judged_when_it_is_run() -> None:
    made = lab()
    write = write_of(made.manager.handle(Write(lambda tx: demote(tx, "n3")), made.now))
    made.stream += 1
    queued = Call(made.stream, "Control/CreateConfig", NEW_CONFIG, MANAGER)
    assert made.manager.handle(queued, made.now) == []
    effects = made.tell(events.Persisted(write.token))
    assert isinstance(refusal(effects, made.stream), Unavailable)
    assert not list(made.manager.store.all(api.Config))


def write_of(effects: list[ManagerEffect]) -> events.Persist:
    """What is to be written on the disk."""
    (write,) = [effect for effect in effects if isinstance(effect, events.Persist)]
    return write


def test_a_word_of_an_open_stream_is_judged_when_it_comes() -> None:
    made = lab()
    assert call(made, "LogBroker/PublishLogs", None, WORKER) == []
    made.tell(Write(lambda tx: remove("n5", tx)))
    effects = made.tell(StreamData(made.stream, api.PublishLogsMessage(subscription_id="s")))
    assert isinstance(refusal(effects, made.stream), PermissionDenied)


def test_a_worker_that_was_promoted_keeps_a_workers_calls() -> None:
    made = lab()
    made.tell(Write(promote("n5")))
    answer = refusal(call(made, "Dispatcher/Heartbeat", BEAT, WORKER), made.stream)
    assert not isinstance(answer, PermissionDenied | Unavailable)


def test_a_joiner_that_is_demoted_while_it_is_checked_or_waits_becomes_no_member() -> None:
    made = lab()
    made.join()
    made.tell(Write(lambda tx: demote(tx, JOINER.node_id)))
    assert isinstance(refusal(made.tell(PeerChecked(made.stream, "", True)), made.stream), Unavailable)
    made.tell(Write(promote(JOINER.node_id)))
    made.join()
    write = write_of(made.manager.handle(Write(lambda tx: demote(tx, "n2")), made.now))
    assert made.manager.handle(PeerChecked(made.stream, "", True), made.now) == [], "a pass is in flight"
    assert isinstance(refusal(made.tell(events.Persisted(write.token)), made.stream), Unavailable)
    assert sorted(made.manager.group.members) == [1]


def test_a_node_that_is_about_to_be_a_member_is_demoted_only_after_it_is_one() -> None:
    made = lab()
    made.join()
    write = write_of(made.manager.handle(PeerChecked(made.stream, "", True), made.now))

    def wish(tx: Tx) -> None:
        tx.edit(api.Node, "n2").spec.desired_role = api.WORKER

    made.manager.handle(Write(wish), made.now)
    made.tell(events.Persisted(write.token))
    node = made.manager.store.get(api.Node, "n2")
    assert node is not None
    assert node.role == api.MANAGER or not made.manager.group.by_node("n2")


def test_the_only_member_manages_whatever_its_node_says() -> None:
    """A new cluster was forced on a manager that had been demoted in the old one."""
    made = lab()
    made.tell(Write(lambda tx: demote(tx, "n1")))
    made.tell(None)
    node = made.manager.store.get(api.Node, "n1")
    assert node is not None
    assert (node.role, node.spec.desired_role) == (api.MANAGER, api.MANAGER)


@pytest.mark.parametrize("name", ["demoted", "removed"])
def test_a_read_is_judged_again_when_the_group_has_confirmed_its_leader(name: str) -> None:
    """Its caller was a manager on arrival, and is none any more in the store from which it would be answered."""
    _, _, _, loss, error = LOSSES[name]
    made = lab()
    voter = made.joined()
    made.now += 0.9  # nobody has confirmed lately that it leads
    assert not answers(call(made, "Control/ListNodes", api.ListNodesRequest(), MANAGER))
    waiting = made.stream
    assert isinstance(refusal(agree(made, made.tell(Write(loss)), voter), waiting), error)


def answers(effects: list[ManagerEffect]) -> list[ManagerEffect]:
    return [one for one in effects if isinstance(one, Reply | StreamEnd)]


def agree(made: Lab, effects: list[ManagerEffect], voter: int) -> list[ManagerEffect]:
    """The other member takes what is written, and after that confirms who leads; what else is done."""
    out: list[ManagerEffect] = []
    for _ in range(8):
        while effects:
            effect = effects.pop(0)
            if not isinstance(effect, events.Send):
                out.append(effect)
            elif (answer := yes(effect.message, voter)) is not None:
                effects += made.tell(events.Received(answer))
            elif effect.message.type == raftpb.MsgHeartbeat:
                confirmed = raftpb.Message(type=raftpb.MsgHeartbeatResp, to=1, term=effect.message.term)
                setattr(confirmed, "from", voter)
                confirmed.context = effect.message.context
                effects += made.tell(events.Received(confirmed))
        made.now += 0.1
        effects = made.tell(None)
    return out
