"""Services: create, read, update with rollback, remove, and the counts of running tasks that lists show.

Removing a service removes the object only; the orchestrators see its tasks without a service and end them.

(swarmkit: manager/controlapi/service.go, api/defaults/service.go)
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm import api, defaults
from swarm.api.timestamps import set_seconds, stamp
from swarm.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from swarm.manager.controlapi.common import (
    Test,
    annotation_tests,
    find_one,
    in_order,
    is_one_of,
    plural,
    require,
    runtime_of,
    select,
    spec_labels,
    spec_name,
)
from swarm.manager.controlapi.validate import check_present, check_service
from swarm.manager.networks import ingress_network, is_ingress, needs_ingress
from swarm.manager.tasks import is_job
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx

_Port = tuple[int, int]


def check_create(request: api.CreateServiceRequest, replicas_max: int) -> None:
    """What CreateService checks without the cluster. It tries out templates, so it does not belong into a pass."""
    check_present(request.HasField("spec"))
    check_service(request.spec, replicas_max)


def check_update(request: api.UpdateServiceRequest, replicas_max: int) -> None:
    """What UpdateService checks without the cluster."""
    require(request.service_id and request.HasField("service_version"))
    check_present(request.HasField("spec"))
    check_service(request.spec, replicas_max)


def create_service(tx: Tx, request: api.CreateServiceRequest) -> api.CreateServiceResponse:
    """CreateService, after check_create."""
    spec = request.spec
    _refuse_ingress(tx, spec)
    _check_ports(tx, spec, "")
    _check_ingress(tx, spec)
    _check_references(tx, spec)
    _check_networks(tx, spec)
    name = spec.annotations.name
    if next(tx.find(api.Service, "name", name.lower()), None) is not None:
        # Older and newer clients match on different halves of this text.
        raise AlreadyExists(f"name conflicts with an existing object: service {name} already exists")
    service = api.Service(id=tx.new_id(), spec=spec)
    service.spec_version.SetInParent()
    if is_job(spec):
        service.job_status.job_iteration.SetInParent()
        stamp(service.job_status.last_execution, tx.now)
    return api.CreateServiceResponse(service=tx.stamped(tx.create(service)))


def get_service(view: View, request: api.GetServiceRequest) -> api.GetServiceResponse:
    """GetService; with insert_defaults the spec shows what applies where the user said nothing."""
    response = api.GetServiceResponse(service=find_one(view, api.Service, request.service_id))
    if request.insert_defaults:
        insert_defaults(response.service.spec)
    return response


def update_service(tx: Tx, request: api.UpdateServiceRequest) -> api.UpdateServiceResponse:
    """UpdateService, after check_update: a new spec, or back to the previous one."""
    spec = request.spec
    _refuse_ingress(tx, spec)
    before = find_one(tx, api.Service, request.service_id)
    if spec.HasField("endpoint") and spec.endpoint != before.spec.endpoint:
        _check_ports(tx, spec, before.id)
    _check_change(before.spec, spec)
    _check_references(tx, spec)
    if before.spec.WhichOneof("mode") != spec.WhichOneof("mode"):
        raise Unimplemented("service mode change is not allowed")
    if before.spec.annotations.name != spec.annotations.name:
        raise Unimplemented("renaming services is not supported")
    back = request.rollback == api.UpdateServiceRequest.PREVIOUS
    if back and not before.HasField("previous_spec"):
        raise FailedPrecondition(f"service {before.id} does not have a previous spec")
    wanted = before.previous_spec if back else spec
    _check_networks(tx, wanted)
    _check_ingress(tx, wanted)

    service = tx.edit(api.Service, before.id, request.service_version.index)
    if service.HasField("job_status"):
        service.job_status.job_iteration.index += 1
        stamp(service.job_status.last_execution, tx.now)
    if back:
        _roll_back(service, tx.now)
    else:
        _replace_spec(service, spec, request.service_version)
    return api.UpdateServiceResponse(service=tx.stamped(service))


def _roll_back(service: api.Service, now: float) -> None:
    """Swap the spec with the previous one; a second rollback restores it."""
    spec, version = copy_of(service.spec), copy_of(service.spec_version)
    service.spec.CopyFrom(service.previous_spec)
    service.previous_spec.CopyFrom(spec)
    if service.HasField("previous_spec_version"):
        service.spec_version.CopyFrom(service.previous_spec_version)
    else:
        service.ClearField("spec_version")
    service.previous_spec_version.CopyFrom(version)
    status = api.UpdateStatus(state=api.UpdateStatus.ROLLBACK_STARTED, message="manually requested rollback")
    stamp(status.started_at, now)
    service.update_status.CopyFrom(status)


def _replace_spec(service: api.Service, spec: api.ServiceSpec, based_on: api.Version) -> None:
    service.previous_spec.CopyFrom(service.spec)
    service.ClearField("previous_spec_version")
    if service.HasField("spec_version"):
        service.previous_spec_version.CopyFrom(service.spec_version)
    service.spec.CopyFrom(spec)
    # The version that the update was based on names this spec; it need not be the one the object gets.
    service.spec_version.CopyFrom(based_on)
    service.ClearField("update_status")


def remove_service(tx: Tx, request: api.RemoveServiceRequest) -> api.RemoveServiceResponse:
    """RemoveService."""
    tx.remove(api.Service, find_one(tx, api.Service, request.service_id).id)
    return api.RemoveServiceResponse()


def list_services(view: View, request: api.ListServicesRequest) -> api.ListServicesResponse:
    """ListServices."""
    filters = request.filters
    tests: list[Test] = annotation_tests(filters, spec_name, spec_labels)
    runtimes = list(filters.runtimes)
    if runtimes:
        tests.append(lambda service: is_one_of(runtime_of(service.spec.task), runtimes))
    return api.ListServicesResponse(services=select(view.all(api.Service), tests))


def list_service_statuses(view: View, request: api.ListServiceStatusesRequest) -> api.ListServiceStatusesResponse:
    """ListServiceStatuses: how many tasks run, should run, and have completed, for each ID in its place."""
    return api.ListServiceStatusesResponse(statuses=[_status(view, service_id) for service_id in request.services])


def _status(view: View, service_id: str) -> api.ListServiceStatusesResponse.ServiceStatus:
    status = api.ListServiceStatusesResponse.ServiceStatus(service_id=service_id)
    service = view.get(api.Service, service_id)
    mode = None if service is None else service.spec.WhichOneof("mode")
    if service is not None and mode == "replicated":
        status.desired_tasks = service.spec.replicated.replicas
    elif service is not None and mode == "replicated_job":
        status.desired_tasks = service.spec.replicated_job.max_concurrent
    iteration = None
    if service is not None and service.HasField("job_status"):
        iteration = service.job_status.job_iteration.index
    for task in view.find(api.Task, "service", service_id):
        if iteration is not None:
            if not task.HasField("job_iteration") or task.job_iteration.index != iteration:
                continue
            status.completed_tasks += task.status.state == api.COMPLETE
        status.running_tasks += task.status.state == api.RUNNING
        if mode in ("global", "global_job"):
            unfinished = task.desired_state == api.COMPLETE and task.status.state != api.COMPLETE
            status.desired_tasks += task.desired_state == api.RUNNING or unfinished
    return status


def insert_defaults(spec: api.ServiceSpec) -> None:
    """Fill in the defaults that apply where the user said nothing. Changes ``spec``."""
    task = spec.task
    if task.WhichOneof("runtime") == "container":
        container = task.container
        if not container.HasField("stop_grace_period"):
            set_seconds(container.stop_grace_period, defaults.STOP_GRACE_PERIOD_S)
        container.pull_options.SetInParent()
        container.dns_config.SetInParent()
    task.resources.SetInParent()
    task.placement.SetInParent()
    if not task.HasField("restart"):
        task.restart.condition = api.RestartPolicy.ANY
    if not task.restart.HasField("delay"):
        set_seconds(task.restart.delay, defaults.RESTART_DELAY_S)
    for name in ("update", "rollback"):
        config: api.UpdateConfig = getattr(spec, name)
        if not spec.HasField(name):
            config.parallelism = defaults.UPDATE_PARALLELISM
        if not config.HasField("monitor"):
            set_seconds(config.monitor, defaults.UPDATE_MONITOR_S)


# --- checks against the cluster ------------------------------------------------------------------------------------


def _refuse_ingress(view: View, spec: api.ServiceSpec) -> None:
    for target in _targets(spec):
        network = view.get(api.Network, target)
        if network is not None and is_ingress(network):
            name = network.spec.annotations.name
            raise InvalidArgument(f'Service cannot be explicitly attached to the ingress network "{name}"')


def _check_ingress(view: View, spec: api.ServiceSpec) -> None:
    if needs_ingress(spec) and ingress_network(view) is None:
        raise FailedPrecondition("service needs ingress network, but no ingress network is present")


def _check_networks(view: View, spec: api.ServiceSpec) -> None:
    """Refuse a network that is not there. Stock takes the service, and its tasks wait for ever."""
    for target in _targets(spec):
        if view.get(api.Network, target) is None:
            raise NotFound(f"network {target} not found")


def _targets(spec: api.ServiceSpec) -> list[str]:
    """Networks a service is attached to; the old place counts only where the new one is empty."""
    return [attachment.target for attachment in (spec.task.networks or spec.networks)]


def _check_change(before: api.ServiceSpec, after: api.ServiceSpec) -> None:
    if list(after.networks) != list(before.networks) and list(after.task.networks) == list(before.task.networks):
        raise Unimplemented("networks must be migrated to TaskSpec before being changed")


def _published(ports: Iterable[api.PortConfig], mode: int) -> set[_Port]:
    return {(port.protocol, port.published_port) for port in ports if port.published_port and port.publish_mode == mode}


def _check_ports(view: View, spec: api.ServiceSpec, service_id: str) -> None:
    """Refuse a published port that another service has. Host ports may be shared: the scheduler keeps them apart."""
    ingress = _published(spec.endpoint.ports, api.PortConfig.INGRESS)
    host = _published(spec.endpoint.ports, api.PortConfig.HOST)
    if not ingress and not host:
        return
    for other in in_order(view.all(api.Service)):
        if other.id == service_id:
            continue
        for port in (*other.spec.endpoint.ports, *other.endpoint.ports):
            key = (port.protocol, port.published_port)
            taken_as = None
            if port.publish_mode == api.PortConfig.HOST and key in ingress:
                taken_as = "a host-published port"
            elif port.publish_mode == api.PortConfig.INGRESS and (key in ingress or key in host):
                taken_as = "an ingress port"
            if taken_as is not None:
                holder = f"'{other.spec.annotations.name}' ({other.id})"
                raise InvalidArgument(
                    f"port '{port.published_port}' is already in use by service {holder} as {taken_as}"
                )


def _check_references(view: View, spec: api.ServiceSpec) -> None:
    """Secrets and configs must exist under the ID *and* the name that the reference gives."""
    container = spec.task.container
    missing = [r.secret_name for r in container.secrets if _name(view.get(api.Secret, r.secret_id)) != r.secret_name]
    require(not missing, f"{plural('secret', missing)} not found: {', '.join(missing)}")
    missing = [r.config_name for r in container.configs if _name(view.get(api.Config, r.config_id)) != r.config_name]
    require(not missing, f"{plural('config', missing)} not found: {', '.join(missing)}")


def _name(obj: api.Secret | api.Config | None) -> str | None:
    return None if obj is None else obj.spec.annotations.name
