"""Attachments of plain containers: who gets one, for what, and who may give it back."""

from __future__ import annotations

from random import Random

import pytest
from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import Code
from swarm.manager.resourceapi import ResourceAllocator
from swarm.rpc import LOCAL, Reply, StreamEnd
from tests.swarm.manager.service_harness import ServiceHarness


@pytest.fixture
def harness() -> ServiceHarness:
    made = ServiceHarness()
    made.service = ResourceAllocator(Random(1), "manager")
    for node_id in ("manager", "worker"):
        made.create(api.Node(id=node_id))
    for name, attachable in (("Shared", True), ("closed", False)):
        network = api.Network(id=f"id-{name}")
        network.spec.annotations.name = name
        network.spec.attachable = attachable
        made.create(network)
    return made


def attach(harness: ServiceHarness, target: str, addresses: tuple[str, ...] = ()) -> Message:
    request = api.AttachNetworkRequest(container_id="c1")
    request.config.target = target
    request.config.addresses.extend(addresses)
    harness.call(rpc.ATTACH_NETWORK.name, request, "worker")
    return answer(harness)


def detach(harness: ServiceHarness, attachment_id: str, node_id: str = "worker") -> Message:
    harness.call(rpc.DETACH_NETWORK.name, api.DetachNetworkRequest(attachment_id=attachment_id), node_id)
    return answer(harness)


def answer(harness: ServiceHarness) -> Message:
    last = harness.out.pop()
    assert isinstance(last, Reply), last
    return last.message


def refused(harness: ServiceHarness, code: Code, text: str) -> None:
    last = harness.out.pop()
    assert isinstance(last, StreamEnd)
    assert last.error is not None
    assert (last.error.code, last.error.message) == (code, text)
    assert harness.store.count(api.Task) == 0


@pytest.mark.parametrize("target", ["id-Shared", "Shared", "shared"])
def test_a_node_gets_an_attachment_by_the_networks_id_or_name(harness: ServiceHarness, target: str) -> None:
    response = attach(harness, target, ("10.0.1.9",))
    assert isinstance(response, api.AttachNetworkResponse)
    task = harness.need(api.Task, response.attachment_id)
    assert (task.node_id, task.service_id, task.desired_state) == ("worker", "", api.RUNNING)
    assert (task.status.state, task.status.message) == (api.NEW, "created")
    assert task.spec.attachment.container_id == "c1"
    assert [(config.target, list(config.addresses)) for config in task.spec.networks] == [("id-Shared", ["10.0.1.9"])]


def test_a_call_of_this_process_is_for_this_node(harness: ServiceHarness) -> None:
    request = api.AttachNetworkRequest(container_id="c1")
    request.config.target = "Shared"
    harness.call_as(rpc.ATTACH_NETWORK.name, request, LOCAL)
    answer(harness)
    assert [task.node_id for task in harness.store.all(api.Task)] == ["manager"]


@pytest.mark.parametrize(
    ("target", "node_id", "code", "text"),
    [
        ("", "worker", Code.INVALID_ARGUMENT, "invalid argument"),
        ("nosuch", "worker", Code.NOT_FOUND, "network nosuch not found"),
        ("closed", "worker", Code.PERMISSION_DENIED, "network closed not manually attachable"),
        ("Shared", "stranger", Code.NOT_FOUND, "node stranger not found"),
    ],
)
def test_what_can_not_be_attached_is_refused(
    harness: ServiceHarness, target: str, node_id: str, code: Code, text: str
) -> None:
    request = api.AttachNetworkRequest(container_id="c1")
    request.config.target = target
    harness.call(rpc.ATTACH_NETWORK.name, request, node_id)
    refused(harness, code, text)


def test_only_the_node_that_has_an_attachment_gives_it_back(harness: ServiceHarness) -> None:
    response = attach(harness, "Shared")
    assert isinstance(response, api.AttachNetworkResponse)
    request = api.DetachNetworkRequest(attachment_id=response.attachment_id)
    harness.call(rpc.DETACH_NETWORK.name, request, "manager")
    last = harness.out.pop()
    assert isinstance(last, StreamEnd)
    assert last.error is not None
    assert last.error.message == f"attachment {response.attachment_id} doesn't belong to this node"
    harness.need(api.Task, response.attachment_id)
    detach(harness, response.attachment_id)
    harness.call(rpc.DETACH_NETWORK.name, request, "worker")
    refused(harness, Code.NOT_FOUND, f"attachment {response.attachment_id} not found")


def test_nobody_gives_back_a_task_that_is_no_attachment(harness: ServiceHarness) -> None:
    harness.create(api.Task(id="t1", node_id="worker", service_id="s"))
    harness.call(rpc.DETACH_NETWORK.name, api.DetachNetworkRequest(attachment_id="t1"), "worker")
    last = harness.out.pop()
    assert isinstance(last, StreamEnd)
    harness.need(api.Task, "t1")


def test_a_node_has_only_so_many_attachments(harness: ServiceHarness) -> None:
    def held(node_id: str, number: int) -> api.Task:
        task = api.Task(id=f"{node_id}{number}", node_id=node_id)
        task.spec.attachment.SetInParent()
        return task

    harness.create(*(held("manager", number) for number in range(defaults.ATTACHMENTS_PER_NODE_MAX)))
    attach(harness, "Shared")
    request = api.AttachNetworkRequest()
    request.config.target = "Shared"
    harness.call(rpc.ATTACH_NETWORK.name, request, "manager")
    last = harness.out.pop()
    assert isinstance(last, StreamEnd)
    assert last.error is not None
    assert last.error.code is Code.RESOURCE_EXHAUSTED
    assert harness.store.count(api.Task) == defaults.ATTACHMENTS_PER_NODE_MAX + 1
