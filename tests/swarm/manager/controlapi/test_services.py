"""The control API of services and tasks: what is changed, what is refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swarm import api, defaults
from swarm.api.methods import METHODS
from swarm.errors import InvalidArgument, OutOfSequence
from swarm.manager.controlapi.methods import CONTROL
from swarm.manager.controlapi.methods import control as control_methods
from swarm.manager.controlapi.services import insert_defaults
from swarm.manager.controlapi.validate_container import is_image_reference


def _create(control: Any, spec: api.ServiceSpec) -> api.Service:
    service: api.Service = control.call("CreateService", api.CreateServiceRequest(spec=spec)).service
    return service


def _update(control: Any, service: api.Service, spec: api.ServiceSpec, back: bool = False) -> api.Service:
    request = api.UpdateServiceRequest(
        service_id=service.id,
        service_version=service.meta.version,
        spec=spec,
        rollback=api.UpdateServiceRequest.PREVIOUS if back else api.UpdateServiceRequest.NONE,
    )
    updated: api.Service = control.call("UpdateService", request).service
    return updated


def test_every_method_of_the_control_service_is_answered() -> None:
    wanted = {name for name in METHODS if name.startswith("Control/")}
    assert set(CONTROL) == wanted


def test_an_answer_carries_the_object_as_it_is_committed(control: Any) -> None:
    created = _create(control, control.service_spec("web"))
    assert created == control.store.get(api.Service, created.id)
    assert created.meta.version.index == control.store.index - 1
    updated = _update(control, created, control.service_spec("web", replicas=3))
    assert updated == control.store.get(api.Service, created.id)
    assert updated.meta.version.index > created.meta.version.index


def test_an_update_keeps_the_previous_spec_and_names_the_version_it_was_based_on(control: Any) -> None:
    first = _create(control, control.service_spec("web", replicas=1))
    second = _update(control, first, control.service_spec("web", replicas=2))
    assert second.previous_spec == first.spec
    assert second.spec_version == first.meta.version
    assert second.previous_spec_version == first.spec_version
    third = _update(control, second, control.service_spec("web", replicas=3))
    assert third.previous_spec.replicated.replicas == 2
    assert third.previous_spec_version == second.spec_version


def test_a_rollback_swaps_specs_and_twice_leads_back(control: Any) -> None:
    first = _create(control, control.service_spec("web", replicas=1))
    second = _update(control, first, control.service_spec("web", replicas=2))
    back = _update(control, second, second.spec, back=True)
    assert (back.spec, back.spec_version) == (first.spec, first.spec_version)
    assert (back.previous_spec, back.previous_spec_version) == (second.spec, second.spec_version)
    assert back.update_status.state == api.UpdateStatus.ROLLBACK_STARTED
    assert back.update_status.message == "manually requested rollback"
    assert back.update_status.started_at.seconds == int(control.now)
    again = _update(control, back, back.spec, back=True)
    assert (again.spec, again.previous_spec) == (second.spec, first.spec)


def test_an_update_forgets_how_the_last_one_went(control: Any) -> None:
    first = _create(control, control.service_spec("web"))
    second = _update(control, first, control.service_spec("web", replicas=2))
    back = _update(control, second, second.spec, back=True)
    assert not _update(control, back, control.service_spec("web", replicas=5)).HasField("update_status")


def test_each_update_of_a_job_is_a_new_run(control: Any) -> None:
    spec = control.service_spec("job")
    spec.replicated_job.max_concurrent = 2
    created = _create(control, spec)
    assert created.job_status.HasField("job_iteration")
    assert created.job_status.job_iteration.index == 0
    assert created.job_status.last_execution.seconds == int(control.now)
    updated = _update(control, created, spec)
    assert updated.job_status.job_iteration.index == 1
    assert updated.job_status.last_execution.seconds == int(control.now)


def test_a_second_update_of_the_same_pass_does_not_overwrite_the_first(control: Any) -> None:
    service = _create(control, control.service_spec("web"))
    update = CONTROL["Control/UpdateService"].function
    tx = control.tx()

    def request(replicas: int) -> api.UpdateServiceRequest:
        spec = control.service_spec("web", replicas=replicas)
        return api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version, spec=spec)

    with tx.savepoint():
        update(tx, request(2))
    with pytest.raises(OutOfSequence), tx.savepoint():
        update(tx, request(3))
    control.commit(tx)
    assert control.store.get(api.Service, service.id).spec.replicated.replicas == 2


def test_a_refused_update_leaves_room_for_the_next_one_in_its_pass(control: Any) -> None:
    service = _create(control, control.service_spec("web"))
    update = CONTROL["Control/UpdateService"].function
    tx = control.tx()
    version = service.meta.version
    stale = api.UpdateServiceRequest(
        service_id=service.id, service_version=api.Version(index=1), spec=control.service_spec("web", replicas=2)
    )
    with pytest.raises(OutOfSequence), tx.savepoint():
        update(tx, stale)
    stale.service_version.CopyFrom(version)
    with tx.savepoint():
        update(tx, stale)
    control.commit(tx)
    assert control.store.get(api.Service, service.id).spec.replicated.replicas == 2


def test_names_are_unique_without_case_and_within_a_pass(control: Any) -> None:
    create = CONTROL["Control/CreateService"].function
    refused = control.refused("CreateService", api.CreateServiceRequest(spec=control.service_spec("MIN")))
    assert refused == "AlreadyExists: name conflicts with an existing object: service MIN already exists"
    tx = control.tx()
    create(tx, api.CreateServiceRequest(spec=control.service_spec("twin")))
    with pytest.raises(Exception, match="service twin already exists"):
        create(tx, api.CreateServiceRequest(spec=control.service_spec("twin")))


def test_a_service_keeps_its_own_ports_when_updated(control: Any) -> None:
    spec = control.service_spec("hosty")
    spec.endpoint.ports.add(target_port=80, published_port=7000, publish_mode=api.PortConfig.HOST)
    service = _create(control, spec)
    spec.endpoint.ports.add(target_port=81, published_port=7001, publish_mode=api.PortConfig.HOST)
    assert len(_update(control, service, spec).spec.endpoint.ports) == 2


def test_host_ports_may_be_shared_by_services(control: Any) -> None:
    spec = control.service_spec("other")
    spec.endpoint.ports.add(target_port=80, published_port=9090, publish_mode=api.PortConfig.HOST)
    assert _create(control, spec).id


def test_ports_chosen_by_the_allocator_count_as_taken(control: Any) -> None:
    taken = api.Service(id="dyn", spec=control.service_spec("dyn"))
    taken.endpoint.ports.add(target_port=80, published_port=30000)
    control.put(taken)
    spec = control.service_spec("other")
    spec.endpoint.ports.add(target_port=80, published_port=30000, publish_mode=api.PortConfig.HOST)
    assert control.refused("CreateService", api.CreateServiceRequest(spec=spec)) == (
        "InvalidArgument: port '30000' is already in use by service 'dyn' (dyn) as an ingress port"
    )


def test_a_service_may_use_networks_of_the_swarm_and_publish_through_the_mesh(control: Any) -> None:
    spec = control.service_spec("web")
    spec.endpoint.ports.add(target_port=80, published_port=81)
    spec.task.networks.add(target="net1", aliases=["www"], driver_attachment_opts={"a": "b"})
    spec.task.networks.add(target="nhost")
    service = _create(control, spec)
    assert service.spec == spec
    request = api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version, spec=spec)
    request.spec.endpoint.mode = api.EndpointSpec.DNSRR
    del request.spec.endpoint.ports[:]
    assert control.call("UpdateService", request).service.spec.endpoint.mode == api.EndpointSpec.DNSRR


def test_a_service_on_a_network_that_is_not_there_is_refused(control: Any) -> None:
    spec = control.service_spec("web")
    spec.task.networks.add(target="gone")
    refused = control.refused("CreateService", api.CreateServiceRequest(spec=spec))
    assert refused == "NotFound: network gone not found"
    spec.task.networks[0].target = "net1"
    service = _create(control, spec)
    spec.task.networks[0].target = "gone"
    request = api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version, spec=spec)
    assert control.refused("UpdateService", request) == "NotFound: network gone not found"


def test_without_an_ingress_network_no_service_can_publish_through_the_mesh(control: Any) -> None:
    missing = "FailedPrecondition: service needs ingress network, but no ingress network is present"
    tx = control.tx()
    tx.remove(api.Network, "ingr")
    control.commit(tx)
    spec = control.service_spec("web")
    service = _create(control, spec)
    spec.endpoint.ports.add(target_port=80)
    request = api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version, spec=spec)
    assert control.refused("UpdateService", request) == missing
    spec.annotations.name = "other"
    assert control.refused("CreateService", api.CreateServiceRequest(spec=spec)) == missing
    spec.endpoint.ports[0].publish_mode = api.PortConfig.HOST
    assert _create(control, spec).id


def test_networks_of_the_old_place_cannot_change_alone(control: Any) -> None:
    old = control.service_spec("old")
    old.networks.add(target="nhost")
    service = _create(control, old)
    request = api.UpdateServiceRequest(
        service_id=service.id, service_version=service.meta.version, spec=control.service_spec("old")
    )
    refused = control.refused("UpdateService", request)
    assert refused == "Unimplemented: networks must be migrated to TaskSpec before being changed"
    request.spec.task.networks.add(target="nhost")
    assert control.call("UpdateService", request).service.id == service.id


def test_a_reference_needs_both_id_and_name_to_be_right(control: Any) -> None:
    spec = control.service_spec("web")
    spec.task.container.secrets.add(secret_id="s1", secret_name="renamed").file.name = "x"
    refused = control.refused("CreateService", api.CreateServiceRequest(spec=spec))
    assert refused == "InvalidArgument: secret not found: renamed"
    spec.task.container.secrets[0].secret_name = "sec1"
    assert _create(control, spec).id


def test_inserted_defaults_fill_gaps_only(control: Any) -> None:
    spec = control.service_spec("web")
    spec.task.restart.condition = api.RestartPolicy.NONE
    spec.update.parallelism = 7
    insert_defaults(spec)
    assert spec.task.container.stop_grace_period.seconds == 10
    assert spec.task.container.HasField("dns_config")
    assert spec.task.HasField("resources")
    assert spec.task.HasField("placement")
    assert (spec.task.restart.condition, spec.task.restart.delay.seconds) == (api.RestartPolicy.NONE, 5)
    assert (spec.update.parallelism, spec.update.monitor.seconds) == (7, 5)
    assert (spec.rollback.parallelism, spec.rollback.monitor.seconds) == (1, 5)
    before = api.ServiceSpec()
    before.CopyFrom(spec)
    insert_defaults(spec)
    assert spec == before


def test_asking_for_defaults_does_not_change_the_service(control: Any) -> None:
    before = control.store.get(api.Service, "svcmin").SerializeToString(deterministic=True)
    shown = control.call("GetService", api.GetServiceRequest(service_id="svcmin", insert_defaults=True)).service
    assert shown.spec.task.restart.delay.seconds == 5
    assert control.store.get(api.Service, "svcmin").SerializeToString(deterministic=True) == before


def _task(control: Any, service_id: str, state: int, desired: int = api.RUNNING, iteration: int | None = None) -> None:
    task = api.Task(id=f"t{control.store.index}", service_id=service_id, desired_state=desired)  # type: ignore[arg-type]
    task.status.state = state  # type: ignore[assignment]
    if iteration is not None:
        task.job_iteration.index = iteration
    control.put(task)


def test_statuses_count_tasks_by_the_kind_of_service(control: Any) -> None:
    job = control.service_spec("job")
    job.replicated_job.max_concurrent = 4
    runs = api.Service(id="runs", spec=job)
    runs.job_status.job_iteration.index = 2
    control.put(runs)
    _task(control, "svcmin", api.RUNNING)
    _task(control, "svcmin", api.RUNNING, api.SHUTDOWN)
    _task(control, "svcmin", api.FAILED, api.SHUTDOWN)
    _task(control, "svcglob", api.RUNNING)
    _task(control, "svcglob", api.PENDING)
    _task(control, "svcglob", api.SHUTDOWN, api.SHUTDOWN)
    _task(control, "runs", api.COMPLETE, api.COMPLETE, 1)
    _task(control, "runs", api.COMPLETE, api.COMPLETE, 2)
    _task(control, "runs", api.RUNNING, api.COMPLETE, 2)
    _task(control, "gone", api.RUNNING)
    request = api.ListServiceStatusesRequest(services=["svcglob", "svcmin", "runs", "gone", "never"])
    statuses = control.call("ListServiceStatuses", request).statuses
    assert [(s.service_id, s.desired_tasks, s.running_tasks, s.completed_tasks) for s in statuses] == [
        ("svcglob", 2, 1, 0),
        ("svcmin", 1, 2, 0),
        ("runs", 4, 1, 1),
        ("gone", 0, 1, 0),
        ("never", 0, 0, 0),
    ]


def test_removing_a_service_leaves_the_removal_of_its_tasks_to_the_orchestrators(control: Any) -> None:
    _task(control, "svcmin", api.RUNNING)
    control.call("RemoveService", api.RemoveServiceRequest(service_id="svcmin"))
    assert control.store.get(api.Service, "svcmin") is None
    assert control.store.count(api.Task) == 1


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "busybox:latest",
        "library/busybox",
        "docker.io/library/busybox:1.36",
        "localhost/x",
        "localhost:5000/x/y:tag",
        "[::1]:5000/x",
        "Registry/x",
        "a__b/c--d/e.f",
        "busybox@sha256:" + "a" * 64,
        "busybox:1@sha512:" + "0" * 128,
        "a" * 237,
        "x/" + "a" * 243,
        "localhost/" + "a" * 245,
    ],
)
def test_image_references_that_are_valid(image: str) -> None:
    assert is_image_reference(image)


@pytest.mark.parametrize(
    "image",
    [
        "",
        "Busybox",
        "busy box",
        "busybox:",
        "a___b",
        "a..b",
        "-a",
        "a/",
        "/a",
        "a" * 238,
        "x/" + "a" * 244,
        "localhost/" + "a" * 246,
        "f" * 64,
        "busybox@sha256:" + "a" * 63,
        "busybox@sha256:" + "A" * 64,
        "busybox@md5:" + "a" * 32,
        "busybox\n",
        "localhost:port/x",
        "x:" + "t" * 129,
        "a-" * 5000,
    ],
)
def test_image_references_that_are_not_valid(image: str) -> None:
    assert not is_image_reference(image)


def test_long_names_are_refused_in_linear_time(control: Any) -> None:
    spec = control.service_spec("a-" * 20_000 + "!")
    refused = control.refused("CreateService", api.CreateServiceRequest(spec=spec))
    assert refused == "InvalidArgument: name must be valid as a DNS name component"


def test_runtimes_other_than_containers_are_checked(control: Any) -> None:
    spec = control.service_spec("x")
    spec.task.ClearField("container")
    request = api.CreateServiceRequest(spec=spec)
    assert control.refused("CreateService", request) == "InvalidArgument: TaskSpec: missing runtime"
    request.spec.task.attachment.container_id = "x"
    refused = control.refused("CreateService", request)
    assert refused == "Unimplemented: RuntimeSpec: unimplemented runtime in service spec"
    generic = request.spec.task.generic
    for kind, text in (
        ("ab", 'Generic runtime: Invalid name "ab"'),
        ("Container", 'Generic runtime: "Container" is a reserved name'),
        ("plugin", "Generic runtime is missing payload"),
    ):
        generic.kind = kind
        assert control.refused("CreateService", request) == f"InvalidArgument: {text}"
    generic.payload.value = b"x"
    assert control.refused("CreateService", request) == "InvalidArgument: Generic runtime is missing payload type"
    generic.payload.type_url, generic.payload.value = "t", b""
    assert control.refused("CreateService", request) == "InvalidArgument: Generic runtime has an empty payload"


LIMIT = defaults.SERVICE_REPLICAS_MAX
TOO_MANY = f"must not be greater than {LIMIT}, the limit of this manager (--max-replicas)"


@pytest.mark.parametrize("number", [LIMIT + 1, 1 << 32, 1 << 62, (1 << 63) - 1])
def test_a_service_cannot_ask_for_more_tasks_than_a_cluster_can_have(control: Any, number: int) -> None:
    spec = control.service_spec("many", replicas=number)
    create = api.CreateServiceRequest(spec=spec)
    assert control.refused("CreateService", create) == f"InvalidArgument: Number of replicas {TOO_MANY}"
    service = _create(control, control.service_spec("many", replicas=LIMIT))
    update = api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version, spec=spec)
    assert control.refused("UpdateService", update) == f"InvalidArgument: Number of replicas {TOO_MANY}"
    job = create.spec.replicated_job
    job.max_concurrent, job.total_completions = 1, number
    assert control.refused("CreateService", create).startswith("InvalidArgument: Total completed jobs must not be gr")
    job.max_concurrent = number
    assert control.refused("CreateService", create).startswith("InvalidArgument: Maximum concurrent jobs must not be g")


def test_a_negative_number_of_tasks_has_the_stock_text(control: Any) -> None:
    spec = control.service_spec("many", replicas=(1 << 64) - 1)
    create = api.CreateServiceRequest(spec=spec)
    assert control.refused("CreateService", create) == "InvalidArgument: Number of replicas must be non-negative"


def test_the_limit_can_be_set(control: Any) -> None:
    table = control_methods(control.group, replicas_max=3)
    table["Control/CreateService"].check(api.CreateServiceRequest(spec=control.service_spec("few", replicas=3)))
    with pytest.raises(InvalidArgument, match="must not be greater than 3"):
        table["Control/CreateService"].check(api.CreateServiceRequest(spec=control.service_spec("few", replicas=4)))


def test_every_write_is_checked_before_its_pass(control: Any) -> None:
    for name, handler in control.table.items():
        assert bool(handler.checks) == handler.write, name


PARTS: dict[str, Callable[[api.ServiceSpec, int], object]] = {
    "variables": lambda spec, number: spec.task.container.env.extend(["A=b"] * number),
    "labels": lambda spec, number: spec.annotations.labels.update({str(n): "" for n in range(number)}),
    "mounts": lambda spec, number: spec.task.container.mounts.extend([api.Mount()] * number),
    "ports": lambda spec, number: spec.endpoint.ports.extend([api.PortConfig()] * number),
    "networks": lambda spec, number: spec.task.networks.extend([api.NetworkAttachmentConfig()] * number),
    "constraints": lambda spec, number: spec.task.placement.constraints.extend(["node.id==a"] * number),
    "preferences": lambda spec, number: spec.task.placement.preferences.extend([api.PlacementPreference()] * number),
    "secrets": lambda spec, number: spec.task.container.secrets.extend([api.SecretReference()] * number),
    "resources": lambda spec, number: spec.task.resources.limits.generic.extend([api.GenericResource()] * number),
    "servers of names": lambda spec, number: spec.task.container.dns_config.nameservers.extend(["1.1.1.1"] * number),
    "options of a volume": lambda spec, number: (
        spec.task.container.mounts.add().volume_options.driver_config.options.update(
            {str(n): "" for n in range(number)}
        )
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_spec_with_more_parts_than_anybody_needs_is_refused_before_they_are_looked_at(
    control: Any, part: str
) -> None:
    spec = control.service_spec("many")
    PARTS[part](spec, defaults.REQUEST_PARTS_MAX + 1)
    for refused in (
        control.refused("CreateService", api.CreateServiceRequest(spec=spec)),
        control.refused("UpdateService", api.UpdateServiceRequest(service_id="x", spec=spec)),
    ):
        assert refused == "InvalidArgument: invalid argument: the request has more than 20000 parts"


def test_a_large_spec_is_none_of_them(control: Any) -> None:
    spec = control.service_spec("large")
    spec.task.container.env.extend(f"V{number}={number}" for number in range(10_000))
    assert len(_create(control, spec).spec.task.container.env) == 10_000
