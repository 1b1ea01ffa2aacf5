"""Ports and attachments: nothing leaks, nothing waits in silence."""

from __future__ import annotations

from collections.abc import Callable

from swarm import api
from swarm.manager.allocator.allocator import AllocatorStage
from tests.swarm.manager import commands
from tests.swarm.manager.leader_harness import LeaderHarness


def add_network(harness: LeaderHarness, name: str, driver: str, ingress: bool = False) -> None:
    network = api.Network(id=name)
    network.spec.annotations.name = name
    network.spec.driver_config.name = driver
    network.spec.ingress = ingress
    harness.write(lambda tx: tx.create(network))


def allocator(harness: LeaderHarness) -> AllocatorStage:
    stage = harness.stages["allocator"]
    assert isinstance(stage, AllocatorStage)
    return stage


def test_publishing_and_removing_again_and_again_leaks_no_port() -> None:
    harness = LeaderHarness()
    harness.agents = True
    commands.node(harness, "add", "w1", {})
    for _ in range(12):
        commands.service(harness, "create", "web", {"image": "x", "replicas": "1", "port": "80,8080:81"})
        service = harness.store.get(api.Service, "web")
        assert service is not None
        assert [port.published_port for port in service.endpoint.ports] == [30000, 8080]
        commands.service(harness, "rm", "web", {})
        assert allocator(harness).ports.state() == {}
        assert allocator(harness).audit(harness.store)


def test_a_task_on_a_predefined_network_gets_its_attachment() -> None:
    harness = LeaderHarness()
    commands.node(harness, "add", "w1", {})
    harness.write(lambda tx: tx.edit(api.Node, "w1").description.engine.plugins.add(type="Network", name="host"))
    add_network(harness, "host", "host")
    commands.service(harness, "create", "web", {"image": "x", "replicas": "1", "network": "host"})
    (task,) = harness.store.find(api.Task, "service", "web")
    network = harness.store.get(api.Network, "host")
    assert network is not None
    assert network.driver_state.name == "host"
    assert network.ipam.HasField("driver")
    assert task.status.state == api.ASSIGNED
    assert [(x.network.id, list(x.addresses)) for x in task.networks] == [("host", [])]
    service = harness.store.get(api.Service, "web")
    assert service is not None
    assert [(vip.network_id, vip.addr) for vip in service.endpoint.virtual_ips] == [("host", "")]


def test_a_service_that_leaves_a_node_local_network_or_wants_no_virtual_ip_keeps_none() -> None:
    harness = LeaderHarness()
    add_network(harness, "host", "host")
    add_network(harness, "bridge", "bridge")
    commands.service(harness, "create", "web", {"image": "x", "replicas": "1", "network": "host"})

    def networks_of_web(change: Callable[[api.Service], object]) -> list[str]:
        harness.write(lambda tx: change(tx.edit(api.Service, "web")))
        service = harness.store.get(api.Service, "web")
        assert service is not None
        return [vip.network_id for vip in service.endpoint.virtual_ips]

    def move(service: api.Service) -> None:
        service.spec.task.networks[0].target = "bridge"

    assert networks_of_web(move) == ["bridge"]
    assert networks_of_web(lambda web: setattr(web.spec.endpoint, "mode", api.EndpointSpec.DNSRR)) == []


def test_a_task_waits_with_a_reason_and_goes_on_when_the_network_comes() -> None:
    harness = LeaderHarness()
    commands.node(harness, "add", "w1", {})
    harness.write(lambda tx: tx.edit(api.Node, "w1").description.engine.plugins.add(type="Network", name="bridge"))
    commands.service(harness, "create", "web", {"image": "x", "replicas": "1", "network": "late"})
    (task,) = harness.store.find(api.Task, "service", "web")
    assert (task.status.state, task.status.err) == (api.NEW, "network late not found")
    add_network(harness, "late", "bridge")
    (task,) = harness.store.find(api.Task, "service", "web")
    assert (task.status.state, task.status.err) == (api.ASSIGNED, "")


def test_a_service_without_ports_and_networks_has_no_endpoint() -> None:
    harness = LeaderHarness()
    commands.service(harness, "create", "web", {"image": "x", "replicas": "1"})
    service = harness.store.get(api.Service, "web")
    assert service is not None
    assert not service.HasField("endpoint")


def test_dynamic_ports_run_out_with_a_reason() -> None:
    other = api.Service(id="other")
    for number in range(30000, 32768):
        other.endpoint.ports.add(published_port=number)
    harness = LeaderHarness()
    allocator(harness).ports.account("other", other)
    commands.service(harness, "create", "web", {"image": "x", "replicas": "1", "port": "80"})
    (task,) = harness.store.find(api.Task, "service", "web")
    assert task.status.err == "no free port left in the dynamic port range"
