"""Tasks: what a new one looks like, and when one is out of date."""

from __future__ import annotations

from random import Random

import pytest

from swarm import api
from swarm.manager import tasks as t
from swarm.store.store import Store
from swarm.store.tx import Tx


def make_service(version: int = 1) -> api.Service:
    service = api.Service(id="s")
    service.spec.annotations.name = "web"
    service.spec.replicated.replicas = 1
    service.spec.task.container.image = "x"
    service.spec.endpoint.mode = api.EndpointSpec.VIP
    service.spec_version.index = version
    return service


def make_task(service: api.Service) -> api.Task:
    return t.new_task(Tx(Store(), 1000.0, Random(1)), service, 1)


def newer(service: api.Service) -> api.Service:
    out = api.Service()
    out.CopyFrom(service)
    out.spec_version.index += 1
    return out


def test_a_new_task_copies_what_it_needs_of_its_service() -> None:
    task = make_task(make_service())
    assert task.desired_state == api.RUNNING
    assert (task.status.state, task.status.message) == (api.NEW, "created")
    assert task.service_annotations.name == "web"
    assert task.spec_version.index == 1
    assert task.endpoint.HasField("spec")
    assert t.task_name(task) == f"web.1.{task.id}"


def test_a_task_takes_the_log_driver_of_the_cluster_unless_it_has_its_own() -> None:
    store = Store()
    tx = Tx(store, 1000.0, Random(1))
    cluster = api.Cluster(id="c")
    cluster.spec.task_defaults.log_driver.name = "journald"
    tx.create(cluster)
    service = make_service()
    assert t.new_task(tx, service, 1).log_driver.name == "journald"
    service.spec.task.log_driver.name = "gelf"
    assert t.new_task(tx, service, 2).log_driver.name == "gelf"


def test_the_same_spec_version_is_never_dirty() -> None:
    service = make_service()
    task = make_task(service)
    service.spec.task.container.image = "y"
    assert not t.is_task_dirty(service, task, None)


@pytest.mark.parametrize(
    ("change", "dirty"),
    [
        (lambda s: s.spec.annotations.labels.update(a="b"), False),
        (lambda s: setattr(s.spec.replicated, "replicas", 5), False),
        (lambda s: setattr(s.spec.update, "parallelism", 5), False),
        (lambda s: setattr(s.spec.task.container, "image", "y"), True),
        (lambda s: setattr(s.spec.task, "force_update", 1), True),
        (lambda s: s.spec.endpoint.ports.add(target_port=80), True),
        (lambda s: s.spec.ClearField("endpoint"), True),
        (lambda s: s.spec.task.placement.constraints.append("node.labels.zone==a"), False),
        (lambda s: s.spec.task.placement.constraints.append("node.labels.zone==b"), True),
        (lambda s: setattr(s.spec.task.container.pull_options, "registry_auth", "new"), True),
    ],
)
def test_only_what_the_container_needs_makes_a_task_dirty(change: object, dirty: bool) -> None:
    service = make_service()
    task = make_task(service)
    node = api.Node(id="n")
    node.spec.annotations.labels["zone"] = "a"
    updated = newer(service)
    change(updated)  # type: ignore[operator]
    assert t.is_task_dirty(updated, task, node) is dirty


def test_new_credentials_do_not_replace_a_task_that_has_its_image() -> None:
    service = make_service()
    task = make_task(service)
    updated = newer(service)
    updated.spec.task.container.pull_options.registry_auth = "new"
    task.status.state = api.RUNNING
    assert not t.is_task_dirty(updated, task, None)
    updated.spec.task.container.image = "y"
    assert t.is_task_dirty(updated, task, None)


def test_constraints_alone_need_the_node_to_know() -> None:
    service = make_service()
    task = make_task(service)
    updated = newer(service)
    updated.spec.task.placement.constraints.append("node.labels.zone==a")
    assert t.is_task_dirty(updated, task, None)
