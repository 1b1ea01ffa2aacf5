"""A session shows which key a node uses; an old copy of its files gets none."""

from __future__ import annotations

from swarm import api, defaults
from swarm.errors import Code
from swarm.rpc import WORKER_ROLE, Peer, StreamEnd
from tests.swarm.manager.dispatcher.test_dispatcher import DispatcherHarness

OLD, NEW = b"old", b"new"


def with_keys() -> DispatcherHarness:
    """A node that was seen to use a key, and was issued another."""
    node = api.Node(id="n1")
    node.authority.key = OLD
    node.authority.issued.append(NEW)
    node.authority.certified_from.FromSeconds(500)
    return DispatcherHarness(node)


def session(cluster: DispatcherHarness, key: bytes, session_id: str = "", *, forwarder: str = "") -> int:
    peer = Peer("n1", WORKER_ROLE, "org", "10.0.0.5:999", forwarder=forwarder, key=key, not_before=500.0)
    return cluster.call_as("Dispatcher/Session", api.SessionRequest(session_id=session_id), peer)


def register(cluster: DispatcherHarness, key: bytes) -> tuple[int, str]:
    """A session; its stream and its ID."""
    stream = session(cluster, key)
    cluster.pass_time(defaults.STATUS_BATCH_S)
    return stream, cluster.data(stream, api.SessionMessage)[0].session_id


def ended(cluster: DispatcherHarness, stream: int) -> bool:
    return any(isinstance(out, StreamEnd) and out.stream == stream for out in cluster.out)


def test_a_session_with_the_newer_key_supersedes_the_older_one() -> None:
    cluster = with_keys()
    register(cluster, OLD)
    assert cluster.node().authority.key == OLD
    register(cluster, NEW)
    assert (cluster.node().authority.key, list(cluster.node().authority.issued)) == (NEW, [])
    index = cluster.store.index
    error = cluster.error(session(cluster, OLD))
    assert (error.code, "the certificate is superseded" in str(error)) == (Code.PERMISSION_DENIED, True)
    assert cluster.store.index == index


def test_a_superseded_key_does_not_end_the_session_of_its_node() -> None:
    cluster = with_keys()
    stream, session_id = register(cluster, NEW)
    session(cluster, OLD)
    session(cluster, OLD, session_id)
    session(cluster, OLD, forwarder="m2")
    cluster.pass_time(1.0)
    assert not ended(cluster, stream)
    cluster.beat(session_id)
    assert cluster.node().authority.key == NEW


def test_a_session_goes_on_when_its_key_is_superseded_elsewhere() -> None:
    cluster = with_keys()
    stream, session_id = register(cluster, OLD)

    def renewed(node: api.Node) -> None:
        node.authority.key = NEW
        del node.authority.issued[:]

    cluster.edit(api.Node, "n1", renewed)
    cluster.beat(session_id)
    cluster.pass_time(1.0)
    assert not ended(cluster, stream)


def test_of_two_keys_that_come_at_once_the_newer_one_wins_in_any_order() -> None:
    for first, second in ((OLD, NEW), (NEW, OLD)):
        cluster = with_keys()
        cluster.pass_time(1.0)
        cluster.hold = True
        streams = {key: session(cluster, key) for key in (first, second)}
        cluster.release()
        cluster.pass_time(1.0)
        assert cluster.node().authority.key == NEW
        if first == NEW:
            assert cluster.error(streams[OLD]).code == Code.PERMISSION_DENIED


def test_a_session_whose_key_nobody_tells_changes_nothing_on_record() -> None:
    cluster = with_keys()
    register(cluster, b"")
    assert (cluster.node().authority.key, list(cluster.node().authority.issued)) == (OLD, [NEW])


def test_the_same_key_again_is_not_written_again() -> None:
    cluster = with_keys()
    _, session_id = register(cluster, NEW)
    entries = len(cluster.entries)
    session(cluster, NEW, session_id)
    cluster.pass_time(1.0)
    assert len(cluster.entries) == entries
