"""What nodes are told of their networks: all of it first, then changes, and nothing of other networks."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import Code
from swarm.manager.discovery.discovery import Discovery
from swarm.manager.node_keys import Superseded
from swarm.rpc import WORKER_ROLE, Peer, StreamData, StreamEnd
from tests.swarm.manager.service_harness import ServiceHarness


class Cluster:
    """Two networks, three nodes, and what the tests put into them."""

    def __init__(self) -> None:
        self.harness = ServiceHarness()
        self.create = self.harness.create
        self.edit = self.harness.edit
        self.remove = self.harness.remove
        self.create(api.Cluster(id="c", VXLANUDPPort=4789))
        for number in (1, 2, 3):
            node = api.Node(id=f"n{number}")
            node.status.state = api.NodeStatus.READY
            node.status.addr = f"192.168.0.{number}"
            node.description.hostname = f"h{number}"
            node.description.data_path_address = f"10.99.0.{number}"
            self.create(node)
        for number, name in enumerate(("front", "back")):
            network = api.Network(id=name)
            network.spec.annotations.name = name
            network.ipam.configs.add(subnet=f"10.0.{number}.0/24", gateway=f"10.0.{number}.1")
            network.driver_state.name = "overlay"
            network.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"] = str(4097 + number)
            self.create(network)
        self.harness.service = Discovery(self.harness.store, self.harness.now, "n1")

    def run(self, task_id: str, node_id: str, networks: dict[str, str], service_id: str = "s") -> None:
        """A task of a service runs on a node, with these addresses."""
        task = api.Task(id=task_id, node_id=node_id, service_id=service_id, slot=1, desired_state=api.RUNNING)
        task.service_annotations.name = "web"
        task.status.state = api.RUNNING
        for network_id, address in networks.items():
            attachment = task.networks.add(addresses=[f"{address}/24"])
            attachment.network.CopyFrom(self.harness.need(api.Network, network_id))
        self.create(task)

    def state(self, task_id: str, state: api.TaskState, desired: api.TaskState | None = None) -> None:
        """A task reaches a state."""

        def change(task: api.Task) -> None:
            task.status.state = state
            if desired is not None:
                task.desired_state = desired

        self.edit(api.Task, task_id, change)

    def watch(self, node_id: str) -> int:
        """A node asks; its stream."""
        return self.harness.call(rpc.WATCH_NETWORKS.name, api.WatchNetworksRequest(), node_id)

    def news(self, stream: int) -> list[api.NetworkChange]:
        """What a node is told from now on until nothing more is due."""
        self.harness.pass_time(1.0)
        return [change for message in self.messages(stream) for change in message.changes]

    def messages(self, stream: int) -> list[api.WatchNetworksResponse]:
        """The messages on a stream since the last look."""
        return self.harness.data(stream, api.WatchNetworksResponse)


def names(changes: Iterable[api.NetworkChange]) -> list[str]:
    """network kind ID of each change."""
    out = []
    for change in changes:
        kind = change.WhichOneof("change")
        assert kind is not None
        value = getattr(change, kind)
        ids = {"peer": "node_id", "service": "service_id", "endpoint": "endpoint_id", "network": "name"}
        out.append(f"{change.network_id} {kind} {getattr(value, ids[kind]) if kind in ids else value}")
    return out


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_node_is_told_all_of_its_networks_and_nothing_of_others(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    cluster.run("t2", "n2", {"front": "10.0.0.12", "back": "10.0.1.12"})
    stream = cluster.watch("n1")
    [message] = cluster.messages(stream)
    assert message.complete
    assert (message.local.node_id, message.local.address, message.local.vxlan_port) == ("n1", "10.99.0.1", 4789)
    assert names(message.changes) == [
        "front network front",
        "front peer n1",
        "front peer n2",
        "front endpoint t1",
        "front endpoint t2",
    ]
    endpoint = message.changes[-1].endpoint
    assert (endpoint.node_id, endpoint.address, endpoint.name) == ("n2", "10.0.0.12", "web.1.t2")
    assert endpoint.readiness == api.EndpointRecord.READY
    assert message.changes[0].network.subnets[0] == api.SubnetRecord(pool="10.0.0.0/24", gateway="10.0.0.1", vni=4097)
    assert message.changes[2].peer.address == "10.99.0.2"


def test_a_node_without_networks_is_told_that_there_is_nothing(cluster: Cluster) -> None:
    cluster.run("t2", "n2", {"front": "10.0.0.12"})
    [message] = cluster.messages(cluster.watch("n3"))
    assert message.complete
    assert names(message.changes) == []


def test_changes_go_to_the_nodes_of_the_network_alone(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    cluster.run("t2", "n2", {"back": "10.0.1.12"})
    streams = {node_id: cluster.watch(node_id) for node_id in ("n1", "n2")}
    for stream in streams.values():
        cluster.news(stream)
    cluster.run("t3", "n3", {"front": "10.0.0.13"})
    assert names(cluster.news(streams["n1"])) == ["front peer n3", "front endpoint t3"]
    assert names(cluster.news(streams["n2"])) == []


def test_a_node_learns_a_network_when_its_first_task_comes_and_forgets_it_with_its_last(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    stream = cluster.watch("n2")
    assert cluster.news(stream) == []
    cluster.run("t2", "n2", {"front": "10.0.0.12"})
    assert names(cluster.news(stream)) == [
        "front network front",
        "front peer n1",
        "front peer n2",
        "front endpoint t1",
        "front endpoint t2",
    ]
    cluster.state("t2", api.COMPLETE)
    assert names(cluster.news(stream)) == ["front network_removed True"]


def test_a_task_that_shall_stop_drains_and_is_gone_when_it_has_ended(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    cluster.run("t2", "n2", {"front": "10.0.0.12"})
    stream = cluster.watch("n1")
    cluster.news(stream)
    cluster.state("t2", api.RUNNING, api.SHUTDOWN)
    [change] = cluster.news(stream)
    assert change.endpoint.readiness == api.EndpointRecord.DRAINING
    cluster.state("t2", api.SHUTDOWN)
    assert names(cluster.news(stream)) == ["front peer_removed n2", "front endpoint_removed t2"]


def test_a_task_is_ready_only_when_it_runs(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    cluster.state("t1", api.STARTING)
    stream = cluster.watch("n1")
    assert cluster.news(stream)[-1].endpoint.readiness == api.EndpointRecord.STARTING
    cluster.state("t1", api.RUNNING)
    assert cluster.news(stream)[-1].endpoint.readiness == api.EndpointRecord.READY


def test_many_changes_of_one_record_are_told_as_one(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    stream = cluster.watch("n1")
    cluster.messages(stream)
    for state in (api.PREPARING, api.STARTING, api.RUNNING) * 10:
        cluster.state("t1", state)
    cluster.state("t1", api.STARTING)
    assert names(cluster.news(stream)) == ["front endpoint t1"]


def test_everything_comes_in_messages_of_bounded_size_and_the_last_completes(cluster: Cluster) -> None:
    for number in range(defaults.DISCOVERY_CHANGES_MAX + 1):
        cluster.run(f"t{number}", "n1", {"front": f"10.0.0.{number % 250 + 2}"})
    messages = cluster.messages(cluster.watch("n1"))
    assert [len(message.changes) for message in messages] == [defaults.DISCOVERY_CHANGES_MAX, 3]
    assert [message.complete for message in messages] == [False, True]


def test_a_node_that_is_not_heard_of_is_suspected_and_its_endpoints_stay(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    cluster.run("t2", "n2", {"front": "10.0.0.12"})
    stream = cluster.watch("n1")
    cluster.news(stream)
    cluster.edit(api.Node, "n2", lambda node: setattr(node.status, "state", api.NodeStatus.DOWN))
    [change] = cluster.news(stream)
    assert change.peer.suspected


def test_a_service_is_told_with_its_virtual_address_and_aliases(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    stream = cluster.watch("n1")
    cluster.news(stream)
    service = api.Service(id="s")
    service.spec.annotations.name = "web"
    service.spec.annotations.labels["sideswarm.sticky"] = "true"
    service.spec.task.networks.add(target="front", aliases=["www"])
    service.endpoint.virtual_ips.add(network_id="front", addr="10.0.0.5/24")
    cluster.create(service)
    [change] = cluster.news(stream)
    assert change.service == api.ServiceRecord(
        service_id="s", name="web", virtual_ip="10.0.0.5", aliases=["www"], sticky=True
    )
    cluster.remove(api.Service, "s")
    assert names(cluster.news(stream)) == ["front service_removed s"]


@pytest.fixture
def mesh(cluster: Cluster) -> Cluster:
    """The ingress network, in which every node has an address."""
    network = api.Network(id="ingress")
    network.spec.annotations.name = "ingress"
    network.spec.ingress = True
    network.ipam.configs.add(subnet="10.255.0.0/24", gateway="10.255.0.1")
    network.driver_state.name = "overlay"
    network.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"] = "4096"
    cluster.create(network)
    for number in (1, 2, 3):

        def attach(node: api.Node, number: int = number) -> None:
            attachment = node.attachments.add(addresses=[f"10.255.0.{number + 1}/24"])
            attachment.network.CopyFrom(network)

        cluster.edit(api.Node, f"n{number}", attach)
    return cluster


def published() -> api.Service:
    service = api.Service(id="s")
    service.spec.annotations.name = "web"
    service.spec.endpoint.ports.add(target_port=80, published_port=8080)
    service.endpoint.ports.add(target_port=80, published_port=8080)
    return service


def test_every_node_takes_part_in_the_mesh_while_a_port_is_published(mesh: Cluster) -> None:
    stream = mesh.watch("n3")
    assert names(mesh.news(stream)) == []
    mesh.create(published())
    told = mesh.news(stream)
    assert names(told) == [
        "ingress network ingress",
        "ingress peer n1",
        "ingress peer n2",
        "ingress peer n3",
        "ingress service s",
    ]
    assert told[1].peer.load_balancer == "10.255.0.2"
    assert told[-1].service.ports[0] == api.PublishedPort(protocol="tcp", published=8080, target=80)
    mesh.remove(api.Service, "s")
    assert names(mesh.news(stream)) == ["ingress network_removed True"]


def test_a_network_that_gets_its_subnets_later_is_told_then(cluster: Cluster) -> None:
    network = api.Network(id="late")
    network.spec.annotations.name = "late"
    cluster.create(network)
    stream = cluster.watch("n1")
    cluster.run("t1", "n1", {"late": "10.0.7.2"})
    assert names(cluster.news(stream)) == []

    def allocate(network: api.Network) -> None:
        network.ipam.configs.add(subnet="10.0.7.0/24", gateway="10.0.7.1")
        network.driver_state.name = "overlay"
        network.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"] = "4099"

    cluster.edit(api.Network, "late", allocate)
    assert names(cluster.news(stream)) == ["late network late", "late peer n1", "late endpoint t1"]


def test_streams_end_when_the_node_is_removed_or_the_leader_stops(cluster: Cluster) -> None:
    first, second = cluster.watch("n1"), cluster.watch("n2")
    cluster.remove(api.Node, "n1")
    [ended] = [event for event in cluster.harness.take(first) if isinstance(event, StreamEnd)]
    assert ended.error is not None
    assert cluster.harness.service is not None
    [stopped] = cluster.harness.service.stop()
    assert isinstance(stopped, StreamEnd)
    assert stopped.stream == second


def test_a_stranger_is_refused(cluster: Cluster) -> None:
    [ended] = cluster.harness.take(cluster.watch("nobody"))
    assert isinstance(ended, StreamEnd)
    assert ended.error is not None
    assert ended.error.code is Code.NOT_FOUND


def test_only_the_newest_streams_of_a_node_are_served(cluster: Cluster) -> None:
    streams = [cluster.watch("n1") for _ in range(defaults.DISCOVERY_STREAMS_PER_NODE_MAX + 1)]
    ends = [event for event in cluster.harness.out if isinstance(event, StreamEnd)]
    assert [event.stream for event in ends] == [streams[0]]
    assert isinstance(cluster.harness.take(streams[-1])[0], StreamData)


def test_a_node_that_leaves_a_network_for_a_moment_keeps_nothing_that_went_meanwhile(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    cluster.run("t2", "n2", {"front": "10.0.0.12"})
    stream = cluster.watch("n1")
    cluster.news(stream)
    cluster.run("t9", "n1", {"front": "10.0.0.19"})  # told at once: what follows waits for the next message
    cluster.messages(stream)
    cluster.state("t1", api.COMPLETE)
    cluster.state("t9", api.COMPLETE)
    cluster.state("t2", api.COMPLETE)
    cluster.run("t3", "n1", {"front": "10.0.0.13"})
    told = names(cluster.news(stream))
    assert "front network_removed True" in told or "front endpoint_removed t2" in told


def test_much_to_tell_goes_little_by_little_and_the_last_message_completes(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    for number in range(5):
        service = api.Service(id=f"s{number}")
        service.spec.task.networks.add(target="front", aliases=["a" * 900_000])
        cluster.create(service)
    stream = cluster.watch("n1")
    told: list[api.WatchNetworksResponse] = []
    while not (told and told[-1].complete):
        messages = cluster.messages(stream)
        assert 0 < sum(message.ByteSize() for message in messages) < defaults.DISCOVERY_BATCH_BYTES + 1_000_000
        told += messages
        cluster.harness.pass_time(defaults.DISCOVERY_BATCH_S)
    assert len(told) > 2
    assert [message.complete for message in told[:-1]] == [False] * (len(told) - 1)
    changes = names(change for message in told for change in message.changes)
    assert changes == [
        "front network front",
        "front peer n1",
        *(f"front service s{n}" for n in range(5)),
        "front endpoint t1",
    ]


def test_what_changes_while_everything_is_told_is_told_too(cluster: Cluster) -> None:
    cluster.run("t1", "n1", {"front": "10.0.0.11"})
    service = api.Service(id="s1")
    service.spec.task.networks.add(target="front", aliases=["a" * 1_100_000])
    cluster.create(service)
    stream = cluster.watch("n1")
    [first] = cluster.messages(stream)
    assert not first.complete
    cluster.remove(api.Service, "s1")
    assert names(cluster.news(stream)) == ["front service_removed s1", "front endpoint t1"]


def test_a_new_stream_of_a_node_ends_those_of_superseded_keys(cluster: Cluster) -> None:
    old, new = b"old", b"new"

    def record(key: bytes) -> None:
        def change(node: api.Node) -> None:
            del node.authority.issued[:]
            node.authority.key = key

        cluster.edit(api.Node, "n1", change)

    def watch(key: bytes) -> int:
        peer = Peer("n1", WORKER_ROLE, "org", "10.0.0.5:999", key=key)
        return cluster.harness.call_as(rpc.WATCH_NETWORKS.name, api.WatchNetworksRequest(), peer)

    record(old)
    thief = watch(old)
    cluster.messages(thief)
    record(new)
    node = watch(new)
    [ended] = cluster.harness.take(thief)
    assert isinstance(ended, StreamEnd)
    assert isinstance(ended.error, Superseded)
    assert cluster.messages(node)[-1].complete
    [refused] = cluster.harness.take(watch(old))
    assert isinstance(refused, StreamEnd)
    assert isinstance(refused.error, Superseded)
