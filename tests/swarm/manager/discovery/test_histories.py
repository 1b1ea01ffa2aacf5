"""Whatever happens in whatever order: a node that was told of changes knows what one knows that asks now."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.model import NetworkState
from swarm import api, defaults
from swarm.agent import discovery as agent
from swarm.agent.events import Networks
from swarm.api import rpc
from swarm.manager.discovery.discovery import Discovery
from swarm.rpc import StreamData, StreamEnd
from swarm.store.tx import Tx
from tests.swarm.manager.service_harness import ServiceHarness

NODES = ("n1", "n2", "n3")
NETWORKS = ("front", "back", "ingress", "local")  # most tasks are in the first
SERVICES = ("web", "db")
TASKS = ("t1", "t2", "t3", "t4")
VNIS = "com.docker.network.driver.overlay.vxlanid_list"
OFTEN, RARE = ("task", "state", "service", "node"), ("network", "watch", "close", "elect")
ACTS = (*OFTEN * 4, "task", "task", "task", "task", *RARE)

BURSTS = st.lists(
    st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 10**6)), min_size=1, max_size=12), min_size=3, max_size=10
)
"""What happens within one message's time, again and again."""


class Reader:
    """A node with the production agent's book, and what its executor would know by it."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.book = agent.Discovery({}, 0.0)
        self.book.begin()
        self.states: dict[str, NetworkState] = {}
        self.complete = False

    def reopen(self, stream: int) -> None:
        """The node asks again, with what it knows."""
        self.stream = stream
        self.book.begin()

    def hear(self, message: api.WatchNetworksResponse) -> None:
        """A message of the manager."""
        for effect in self.book.data(message, 0.0):
            self.perform(effect)

    def perform(self, effect: Networks) -> None:
        """As overlay/io does it."""
        self.complete = effect.complete
        for network_id, state in effect.changed.items():
            if state is None:
                self.states.pop(network_id, None)
            else:
                self.states[network_id] = state


class World:
    """Random changes of a small cluster, and a reader on each node that asks."""

    def __init__(self) -> None:
        self.harness = ServiceHarness()
        self.readers: dict[str, Reader] = {}
        self.harness.create(api.Cluster(id="c", VXLANUDPPort=4789))
        for name in NODES:
            self.node(name)
        for name in NETWORKS[:3]:
            self.network(name)
            self.harness.edit(api.Network, name, _allocate)
        self.elect()

    def elect(self) -> None:
        """Another leader; every node asks it."""
        self.harness.service = None
        self.harness.service = Discovery(self.harness.store, self.harness.now, "n1")
        for node_id in list(self.readers):
            self.watch(node_id)

    def watch(self, node_id: str) -> None:
        """A node asks, perhaps again."""
        stream = self.harness.call(rpc.WATCH_NETWORKS.name, api.WatchNetworksRequest(), node_id)
        if node_id in self.readers:
            self.readers[node_id].reopen(stream)
        else:
            self.readers[node_id] = Reader(stream)

    def listen(self, seconds: float) -> None:
        """Time passes; the nodes hear what was sent."""
        self.harness.pass_time(seconds)
        out, self.harness.out = self.harness.out, []
        for event in out:
            for node_id, reader in list(self.readers.items()):
                if event.stream == reader.stream and isinstance(event, StreamEnd):
                    del self.readers[node_id]
                elif event.stream == reader.stream and isinstance(event, StreamData):
                    assert isinstance(event.message, api.WatchNetworksResponse)
                    assert len(event.message.changes) <= defaults.DISCOVERY_CHANGES_MAX
                    reader.hear(event.message)

    # --- what happens ----------------------------------------------------------------------------------------------

    def node(self, name: str) -> None:
        node = api.Node(id=name)
        node.status.state = api.NodeStatus.READY
        node.status.addr = f"192.168.0.{name[1:]}"
        self.harness.create(node)

    def network(self, name: str) -> None:
        network = api.Network(id=name)
        network.spec.annotations.name = name
        network.spec.ingress = name == "ingress"
        if name == "local":
            network.spec.driver_config.name = "bridge"
            network.driver_state.name = "bridge"
        self.harness.create(network)

    def act(self, kind: str, pick: int) -> None:
        rng = Random(pick)
        if kind == "watch":
            self.watch(rng.choice(NODES))
        elif kind == "close" and self.readers:
            assert self.harness.service is not None
            reader = self.readers.pop(rng.choice(sorted(self.readers)))
            self.harness.send(StreamEnd(reader.stream))
        elif kind == "elect":
            self.elect()
        elif kind in ("task", "state", "service", "node", "network"):
            getattr(self, f"change_{kind}")(rng)

    def change_task(self, rng: Random) -> None:
        """A task comes with its networks, or goes."""
        name = rng.choice(TASKS)
        if self.harness.store.get(api.Task, name) is not None:
            self.harness.remove(api.Task, name)
            return
        service = rng.choice((*SERVICES, ""))
        task = api.Task(id=name, node_id=rng.choice((*NODES, "")), service_id=service, slot=1)
        task.desired_state = api.RUNNING
        task.status.state = rng.choice((api.PENDING, api.ASSIGNED, api.RUNNING)) if task.node_id else api.PENDING
        for target in rng.choices(NETWORKS, (5, 1, 1, 1), k=rng.choice((1, 1, 2, 3))):
            network = self.harness.store.get(api.Network, target)
            if network is not None:
                attachment = task.networks.add(addresses=[f"10.0.0.{rng.randrange(2, 250)}/24"])
                attachment.network.CopyFrom(network)
        self.harness.create(task)

    def change_state(self, rng: Random) -> None:
        """A task gets a node, its states, another address."""
        if self.harness.store.get(api.Task, name := rng.choice(TASKS)) is None:
            return

        def change(task: api.Task) -> None:
            task.node_id = task.node_id or rng.choice(NODES)
            task.status.state = max(task.status.state, rng.choice((api.ASSIGNED, api.RUNNING, api.FAILED)))
            task.desired_state = rng.choice((api.RUNNING, api.SHUTDOWN))
            if task.networks and rng.random() < 0.2:
                del task.networks[0]

        self.harness.edit(api.Task, name, change)

    def change_service(self, rng: Random) -> None:
        """A service comes with networks and ports, changes, or goes."""
        name = rng.choice(SERVICES)
        if self.harness.store.get(api.Service, name) is not None and rng.random() < 0.4:
            self.harness.remove(api.Service, name)
            return

        def fill(service: api.Service) -> None:
            service.spec.annotations.name = name
            service.spec.task.ClearField("networks")
            service.spec.endpoint.Clear()
            service.endpoint.Clear()
            for target in rng.sample(NETWORKS[:2], rng.randrange(3)):
                service.spec.task.networks.add(target=target, aliases=[rng.choice("abc")])
                service.endpoint.virtual_ips.add(network_id=target, addr=f"10.0.0.{rng.randrange(2, 9)}/24")
            if rng.random() < 0.5:
                service.spec.endpoint.ports.add(target_port=80)
                service.endpoint.ports.add(target_port=80, published_port=rng.choice((8080, 8081)))

        def write(tx: Tx) -> None:
            if tx.get(api.Service, name) is None:
                tx.create(api.Service(id=name))
            fill(tx.edit(api.Service, name))

        self.harness.write(write)

    def change_node(self, rng: Random) -> None:
        """A node comes, goes, is suspected, or gets and loses its address in a network."""
        name = rng.choice(NODES)
        if self.harness.store.get(api.Node, name) is None:
            self.node(name)
            return
        if rng.random() < 0.2:
            self.harness.remove(api.Node, name)
            return
        network = self.harness.store.get(api.Network, rng.choice(NETWORKS[:3]))

        def change(node: api.Node) -> None:
            dice = rng.random()
            if dice < 0.3:
                node.status.state = rng.choice((api.NodeStatus.READY, api.NodeStatus.DOWN))
            elif dice < 0.5:
                node.description.data_path_address = rng.choice(("", "10.99.0.1", "10.99.0.2"))
            elif dice < 0.7:
                del node.attachments[:]
            elif network is not None:
                node.attachments.add(addresses=[f"10.255.0.{rng.randrange(2, 9)}/24"]).network.CopyFrom(network)

        self.harness.edit(api.Node, name, change)

    def change_network(self, rng: Random) -> None:
        """A network comes, gets its subnets, or goes even while it is used."""
        name = rng.choice(NETWORKS)
        network = self.harness.store.get(api.Network, name)
        if network is None:
            self.network(name)
        elif network.ipam.configs and rng.random() < 0.4:
            self.harness.remove(api.Network, name)
        elif name != "local":
            self.harness.edit(api.Network, name, _allocate)

    # --- judging ---------------------------------------------------------------------------------------------------

    def uses(self, node_id: str) -> set[str]:
        """The networks of which a node has to be told, by the words of docs/adr/0029-discovery-by-the-managers.md."""
        store = self.harness.store
        told = {network.id for network in store.all(api.Network) if network.ipam.configs}
        used = {
            attachment.network.id
            for task in store.all(api.Task)
            if task.node_id == node_id and task.status.state <= api.RUNNING
            for attachment in task.networks
        }
        node = store.get(api.Node, node_id)
        if node is not None and any(service.endpoint.ports for service in store.all(api.Service)):
            used |= {one.network.id for one in node.attachments} & {"ingress"}
        return told & used

    def check(self) -> None:
        """What was told by changes is what is told to one that asks now, and no more than it may know."""
        assert isinstance(self.harness.service, Discovery)
        assert self.harness.service.audit()
        for node_id, reader in self.readers.items():
            assert reader.complete
            assert set(reader.states) == self.uses(node_id)
            new = ServiceHarness()
            new.store = self.harness.store
            new.service = Discovery(new.store, 0.0, "n1")
            other = Reader(new.call(rpc.WATCH_NETWORKS.name, api.WatchNetworksRequest(), node_id))
            new.pass_time(10.0)
            for message in new.data(other.stream, api.WatchNetworksResponse):
                other.hear(message)
            assert reader.states == other.states


def _allocate(network: api.Network) -> None:
    """One subnet more."""
    network.ipam.configs.add(subnet="10.0.0.0/24", gateway="10.0.0.1/24")
    network.driver_state.name = "overlay"
    network.driver_state.options[VNIS] = ",".join(["4097"] * len(network.ipam.configs))


@settings(max_examples=200, deadline=None)
@given(BURSTS)
def test_a_node_knows_by_changes_what_it_would_be_told_now(bursts: list[list[tuple[str, int]]]) -> None:
    world = World()
    for node_id in NODES[:2]:
        world.watch(node_id)
    for burst in bursts:
        for kind, pick in burst:
            world.act(kind, pick)
        world.listen(1.0)
        world.check()
