"""The allocator's networks: what the store gets, what waits and why, and that nothing is ever lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarm import api
from swarm.manager.allocator.allocator import AllocatorStage
from swarm.manager.allocator.subnets import VNI_OPTION
from tests.swarm.manager import commands
from tests.swarm.manager.leader_harness import LeaderHarness, report


class Net:
    """A LeaderHarness with one node and the network of the routing mesh."""

    def __init__(self, **pools: object) -> None:
        self.harness = LeaderHarness()
        self.harness.agents = True
        self.harness.write(lambda tx: self._set_pools(tx.edit(api.Cluster, "cluster"), **pools))  # type: ignore[arg-type]
        commands.node(self.harness, "add", "w1", {})
        self.add("ingress", ingress=True)

    def _set_pools(self, cluster: api.Cluster, pools: tuple[str, ...] = (), bits: int = 0) -> None:
        cluster.defaultAddressPool.extend(pools)
        cluster.subnetSize = bits

    def add(self, name: str, *configs: api.IPAMConfig, ingress: bool = False, **options: str) -> api.Network:
        network = api.Network(id=name)
        network.spec.annotations.name = name
        network.spec.ingress = ingress
        network.spec.ipam.configs.extend(configs)
        network.spec.driver_config.name = "overlay"
        network.spec.driver_config.options.update(options)
        self.harness.write(lambda tx: tx.create(network))
        return self.network(name)

    def network(self, name: str) -> api.Network:
        network = self.harness.store.get(api.Network, name)
        assert network is not None
        return network

    def remove(self, name: str) -> None:
        self.harness.write(lambda tx: tx.remove(api.Network, name))

    def create(self, name: str, **settings: str) -> None:
        commands.service(self.harness, "create", name, {"image": "x", "replicas": "1", **settings})

    def tasks(self, service: str) -> list[api.Task]:
        tasks = self.harness.store.find(api.Task, "service", service)
        return [task for task in tasks if task.desired_state <= api.RUNNING]

    def addresses(self, service: str) -> list[list[str]]:
        return [[*attachment.addresses] for task in self.tasks(service) for attachment in task.networks]

    def vips(self, service: str) -> list[tuple[str, str]]:
        found = self.harness.store.get(api.Service, service)
        assert found is not None
        return [(vip.network_id, vip.addr) for vip in found.endpoint.virtual_ips]

    def node_addresses(self) -> list[tuple[str, list[str]]]:
        node = self.harness.store.get(api.Node, "w1")
        assert node is not None
        return [(attachment.network.id, list(attachment.addresses)) for attachment in node.attachments]

    @property
    def stage(self) -> AllocatorStage:
        stage = self.harness.stages["allocator"]
        assert isinstance(stage, AllocatorStage)
        return stage


def _config(subnet: str, **fields: str) -> api.IPAMConfig:
    return api.IPAMConfig(subnet=subnet, **fields)  # type: ignore[arg-type]


def test_networks_get_subnets_gateways_and_vnis_as_stock_gives_them() -> None:
    net = Net()
    net.add("front", encrypted="")
    shown = [
        (n.id, [(c.subnet, c.gateway) for c in n.ipam.configs], n.driver_state.name, dict(n.driver_state.options))
        for n in (net.network("ingress"), net.network("front"))
    ]
    assert shown == [
        ("ingress", [("10.0.0.0/24", "10.0.0.1")], "overlay", {VNI_OPTION: "4096"}),
        ("front", [("10.0.1.0/24", "10.0.1.1")], "overlay", {VNI_OPTION: "4097", "encrypted": ""}),
    ]
    assert net.network("front").ipam.driver.name == "default"


def test_a_network_with_two_subnets_uses_the_second_when_the_first_is_full() -> None:
    net = Net()
    net.add("front", _config("10.7.0.0/30"), _config("10.8.0.0/29", gateway="10.8.0.6"))
    assert net.network("front").driver_state.options[VNI_OPTION] == "4097,4098"
    net.create("web", network="front", replicas="3")
    assert net.vips("web") == [("front", "10.7.0.2/30")]
    assert net.addresses("web") == [["10.8.0.1/29"], ["10.8.0.2/29"], ["10.8.0.3/29"]]


def test_services_tasks_and_nodes_get_addresses_of_their_own() -> None:
    net = Net()
    net.add("front")
    net.create("web", network="front", port="80")
    assert net.vips("web") == [("ingress", "10.0.0.3/24"), ("front", "10.0.1.2/24")]
    (task,) = net.tasks("web")
    assert task.status.state == api.RUNNING
    assert [(x.network.id, list(x.addresses)) for x in task.networks] == [
        ("ingress", ["10.0.0.4/24"]),
        ("front", ["10.0.1.3/24"]),
    ]
    assert net.node_addresses() == [("ingress", ["10.0.0.2/24"]), ("front", ["10.0.1.4/24"])]
    assert task.networks[1].network == net.network("front")


def test_twelve_times_created_and_removed_at_once_nothing_is_lost() -> None:
    net = Net(pools=("10.1.0.0/24",), bits=27)
    net.remove("ingress")
    before = net.stage.holdings.state()
    for number in range(12):
        net.add(f"net{number}")
        net.create("web", network=f"net{number}", replicas="20")
        assert len(net.addresses("web")) == 20
        commands.service(net.harness, "rm", "web", {})
        net.harness.tick(60.0)
        net.remove(f"net{number}")
        assert net.stage.holdings.state() == before
        assert net.stage.audit(net.harness.store)


def test_a_full_pool_says_so_and_goes_on_when_a_network_goes() -> None:
    net = Net(pools=("10.1.0.0/25",), bits=26)
    net.add("one")
    net.add("two")
    net.create("web", network="two")
    (task,) = net.tasks("web")
    assert (task.status.state, task.status.err) == (
        api.NEW,
        "network two not allocated yet: could not find an available, non-overlapping IPv4 address pool among the "
        "defaults to assign to the network: every /26 in 10.1.0.0/25 is in use, by 2 networks; "
        "remove a network, or create this one with --subnet",
    )
    net.remove("one")
    (task,) = net.tasks("web")
    assert (task.status.state, task.status.err) == (api.RUNNING, "")
    assert net.addresses("web") == [["10.1.0.67/26"]]


def test_a_full_network_says_who_is_in_it_and_goes_on_when_a_task_ends() -> None:
    net = Net()
    net.add("front", _config("10.9.0.0/29"))
    net.create("web", network="front", replicas="5")  # of 6 addresses the gateway and the virtual IP have two
    waiting = [task for task in net.tasks("web") if task.status.state == api.NEW]
    assert [task.status.err for task in waiting] == [
        "could not find an available IP: network front (10.9.0.0/29) has no free address; 4 tasks, 1 services, 0 nodes "
        "hold them; remove some, or create a network with a larger subnet"
    ]
    ends = next(task for task in net.tasks("web") if task.status.state == api.RUNNING)
    net.harness.write(lambda tx: report(tx, ends.id, api.FAILED))
    (waited,) = [task for task in net.tasks("web") if task.id == waiting[0].id]
    assert (waited.status.state, waited.networks[0].addresses) == (api.RUNNING, ends.networks[0].addresses)


def test_two_networks_never_get_the_same_addresses() -> None:
    net = Net()
    net.add("front", _config("10.3.0.0/16"))
    net.add("other", _config("10.3.9.0/24"))
    net.create("web", network="other")
    (task,) = net.tasks("web")
    assert task.status.err == (
        "network other not allocated yet: invalid pool request: Pool overlaps with other one on this address space: "
        "10.3.9.0/24 overlaps with 10.3.0.0/16 of network front"
    )


def test_what_a_removed_network_had_is_free_only_when_its_last_task_has_ended() -> None:
    net = Net(pools=("10.1.0.0/25",), bits=26)
    net.remove("ingress")
    net.add("one")
    net.add("two")
    net.create("web", network="two")
    net.harness.agents = False  # the container goes on to run
    commands.service(net.harness, "rm", "web", {})
    net.remove("two")
    net.harness.elect()  # a new leader knows of the network by its tasks alone
    net.harness.settle()
    net.add("three")
    assert not net.network("three").HasField("driver_state")
    net.harness.agents = True
    net.harness.tick(60.0)
    assert net.network("three").ipam.configs[0].subnet == "10.1.0.64/26"


def test_what_a_stock_leader_allocated_is_kept() -> None:
    net = Net()
    network = api.Network(id="stock")
    network.spec.annotations.name = "stock"
    network.spec.driver_config.name = "overlay"
    network.driver_state.name = "overlay"
    network.driver_state.options[VNI_OPTION] = "4100"
    network.ipam.driver.name = "default"
    network.ipam.configs.add(family=api.IPAMConfig.IPV4, subnet="10.0.5.0/24", gateway="10.0.5.1")
    service = api.Service(id="web")
    service.spec.annotations.name = "web"
    service.spec.task.networks.add(target="stock")
    service.spec.replicated.replicas = 1
    service.endpoint.virtual_ips.add(network_id="stock", addr="10.0.5.7/24")
    task = api.Task(id="t1", service_id="web", slot=1, node_id="w1", desired_state=api.RUNNING)
    task.spec.CopyFrom(service.spec.task)
    task.status.state = api.RUNNING
    attachment = task.networks.add(addresses=["10.0.5.9/24"])
    attachment.network.CopyFrom(network)

    def take_over(tx: object) -> None:
        for one in (network, service, task):
            tx.create(one)  # type: ignore[attr-defined]
        lb = tx.edit(api.Node, "w1").attachments.add(addresses=["10.0.5.3/24"])  # type: ignore[attr-defined]
        lb.network.CopyFrom(network)

    net.harness.write(take_over)
    net.harness.elect()
    net.harness.settle()
    kept = net.network("stock")
    assert (kept.driver_state, kept.ipam) == (network.driver_state, network.ipam)
    assert net.vips("web") == [("stock", "10.0.5.7/24")]
    assert net.addresses("web") == [["10.0.5.9/24"]]
    assert net.node_addresses() == [("ingress", ["10.0.0.2/24"]), ("stock", ["10.0.5.3/24"])]
    net.add("next")
    assert net.network("next").driver_state.options[VNI_OPTION] == "4101"


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: setattr(spec.endpoint, "mode", api.EndpointSpec.DNSRR),
        lambda spec: spec.task.ClearField("networks"),
    ],
)
def test_a_service_that_needs_no_virtual_ip_any_more_gives_it_back(change: Callable[[api.ServiceSpec], object]) -> None:
    net = Net()
    net.add("front")
    net.create("web", network="front")
    assert net.vips("web") == [("front", "10.0.1.2/24")]
    net.harness.write(lambda tx: change(tx.edit(api.Service, "web").spec))
    assert net.vips("web") == []
    assert net.stage.audit(net.harness.store)


def test_a_task_gets_the_address_that_it_asks_for_or_says_why_not() -> None:
    net = Net()
    net.add("front", _config("10.4.0.0/24"))

    def attach(task_id: str, address: str) -> api.Task:
        task = api.Task(id=task_id, slot=len(task_id), desired_state=api.RUNNING)
        task.spec.attachment.container_id = task_id
        task.spec.networks.add(target="front", addresses=[address])
        net.harness.write(lambda tx: tx.create(task))
        found = net.harness.store.get(api.Task, task_id)
        assert found is not None
        return found

    assert attach("one", "10.4.0.77").networks[0].addresses == ["10.4.0.77/24"]
    second = attach("second", "10.4.0.77")
    assert second.status.err == "could not allocate IP from IPAM: Address already in use: 10.4.0.77"
    net.harness.write(lambda tx: report(tx, "one", api.FAILED))
    found = net.harness.store.get(api.Task, "second")
    assert found is not None
    assert found.networks[0].addresses == ["10.4.0.77/24"]


def test_every_node_takes_part_in_the_routing_mesh_as_long_as_there_is_one() -> None:
    net = Net()
    commands.node(net.harness, "add", "w2", {})
    assert net.node_addresses() == [("ingress", ["10.0.0.2/24"])]
    net.remove("ingress")
    assert net.node_addresses() == []
    net.add("mesh", ingress=True)
    assert net.node_addresses() == [("mesh", ["10.0.0.2/24"])]


@pytest.mark.parametrize("subnet", ["fd00::/64", "10.9.0.0/33", "nonsense"])
def test_a_subnet_that_is_none_of_ipv4_is_refused_and_disturbs_nobody(subnet: str) -> None:
    net = Net()
    stored = net.add("odd", api.IPAMConfig(subnet=subnet))
    assert not stored.HasField("driver_state")
    net.create("web", network="odd")
    [task] = net.tasks("web")
    assert task.status.state == api.NEW
    assert task.status.err.endswith(f"invalid pool request: {subnet} is no subnet of IPv4")
    assert net.add("next").ipam.configs[0].subnet == "10.0.1.0/24"
    taken_over = api.Network(id="stock", driver_state=api.Driver(name="overlay"))
    taken_over.spec.annotations.name = "stock"
    taken_over.ipam.configs.add(subnet=subnet, gateway="fd00::1")
    net.harness.write(lambda tx: tx.create(taken_over))
    assert net.add("last").ipam.configs[0].subnet == "10.0.2.0/24"
