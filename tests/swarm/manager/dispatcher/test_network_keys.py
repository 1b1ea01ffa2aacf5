"""The keys of the networks reach every node."""

from __future__ import annotations

from random import Random

from swarm import api
from swarm.manager.network_keys import rotate_keys
from tests.swarm.manager.dispatcher.test_dispatcher import DispatcherHarness


def test_every_session_hears_of_new_keys_of_the_networks() -> None:
    cluster = DispatcherHarness()
    streams = [cluster.session("n1"), cluster.session("n2")]
    cluster.pass_time(1.0)
    for stream in streams:
        cluster.take(stream)
    for _ in range(2):
        cluster.write(lambda tx: rotate_keys(tx.edit(api.Cluster, "c1"), Random(1)))
        cluster.pass_time(1.0)
        wanted = list(cluster.need(api.Cluster, "c1").network_bootstrap_keys)
        assert len(wanted) == 6
        for stream in streams:
            assert list(cluster.data(stream, api.SessionMessage)[-1].network_bootstrap_keys) == wanted
    late = cluster.session("n2")
    cluster.pass_time(1.0)
    assert list(cluster.data(late, api.SessionMessage)[0].network_bootstrap_keys) == wanted
