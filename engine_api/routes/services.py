"""Routes of services and tasks.

(moby: daemon/server/router/swarm/cluster_routes.go, daemon/cluster/{services,tasks,networks}.go)
"""

from __future__ import annotations

from typing import Any

import structlog
from aiohttp import web

from engine_api.convert.names import random_name
from engine_api.convert.objects import TASK
from engine_api.convert.service import SERVICE, SERVICE_SPEC, SERVICE_STATUS, adjust_for_version, with_legacy_networks
from engine_api.errors import ApiError, BadParameter, Forbidden, ObjectNotFound
from engine_api.routes import lookup
from engine_api.server import streams
from engine_api.server.request import (
    ApiRequest,
    Route,
    by_id,
    empty_answer,
    encode,
    json_answer,
    list_answer,
    list_of,
    raw_answer,
    version_message,
)
from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import AlreadyExists, Code, SwarmError

_LOG = structlog.get_logger(__name__)
_PREDEFINED_NETWORKS = frozenset(("bridge", "host", "none", "default"))
_MODE_WORDS = {
    "replicated": "replicated",
    "global": "global",
    "replicated_job": "replicated-job",
    "global_job": "global-job",
}

# --- what create and update share -------------------------------------------------------------------------------------


async def _resolve_networks(request: ApiRequest, parsed: dict[str, Any]) -> None:
    """Networks of a spec become IDs. Raises ApiError for what no service can be attached to."""
    for attachment in parsed.get("TaskTemplate", {}).get("Networks", ()):
        target = attachment.get("Target", "")
        try:
            network = await lookup.find(request.backend, lookup.NETWORK, target)
        except (ApiError, SwarmError) as error:
            network = await _predefined_network(request, target, error)
        attachment["Target"] = network.id


async def _predefined_network(request: ApiRequest, target: str, error: ApiError | SwarmError) -> api.Network:
    """The swarm's object for the engine's bridge, host or none network; raises ``error`` when there is none."""
    find_local = request.api.hooks.find_local_network
    name = await find_local(target) if find_local else None
    if name is None:
        raise error
    if name not in _PREDEFINED_NETWORKS:
        raise Forbidden(
            f"The network {name} cannot be used with services. Only networks scoped to the swarm can be used, "
            "such as those created with the overlay driver."
        )
    try:
        return await lookup.find(request.backend, lookup.NETWORK, name)
    except ApiError as missing:
        text = f"could not find the corresponding predefined swarm network: {missing.message}"
        raise ObjectNotFound(text) from missing


async def _pin_image(request: ApiRequest, spec: api.ServiceSpec, auth: str) -> list[str] | None:
    """For clients below API 1.30, which do not do it themselves: the image by digest, or a warning."""
    image = spec.task.container.image
    if request.version >= (1, 30) or not image:
        return None
    pin = request.api.hooks.pin_image
    try:
        if pin is not None:
            spec.task.container.image = await pin(image, auth)
            return None
    except (ApiError, OSError, TimeoutError) as error:
        _LOG.warning("image not pinned", image=image, error=str(error))
    return [
        f"image {image} could not be accessed on a registry to record\n"
        f"its digest. Each node will access {image} independently,\n"
        "possibly leading to different nodes running different\nversions of the image.\n"
    ]


async def _spec(request: ApiRequest, parsed: dict[str, Any]) -> api.ServiceSpec:
    """The spec of a request, its networks resolved. Raises ApiError."""
    adjust_for_version(parsed, request.version)
    request.backend.require_manager()
    await _resolve_networks(request, parsed)
    spec = api.ServiceSpec()
    SERVICE_SPEC.fill(spec, {**parsed, "Name": parsed.get("Name") or random_name(request.api.rng)})
    return spec


# --- services ---------------------------------------------------------------------------------------------------------


async def create_service(request: ApiRequest) -> web.StreamResponse:
    """POST /services/create."""
    parsed = await request.json(SERVICE_SPEC, request.dialect.service_struct)
    spec = await _spec(request, parsed)
    auth = request.http.headers.get("X-Registry-Auth", "")
    if auth:
        spec.task.container.pull_options.registry_auth = auth
    warnings = await _pin_image(request, spec, auth)
    service = await _create(request, spec, bool(parsed.get("Name")))
    answer: dict[str, Any] = {"ID": service.id}
    if warnings or request.dialect.create_warnings:
        answer["Warnings"] = warnings
    return json_answer(answer, 201)


async def _create(request: ApiRequest, spec: api.ServiceSpec, named: bool) -> api.Service:
    """Create the service; when a generated name is taken, try others."""
    for _ in range(0 if named else defaults.API_NAME_TRIES - 1):
        try:
            answer = await request.call(rpc.CREATE_SERVICE, api.CreateServiceRequest(spec=spec))
        except SwarmError as error:
            if not isinstance(error, AlreadyExists) and error.code != Code.ALREADY_EXISTS:
                raise
            spec.annotations.name = random_name(request.api.rng)
        else:
            return answer.service
    answer = await request.call(rpc.CREATE_SERVICE, api.CreateServiceRequest(spec=spec))
    return answer.service


def _check_auth_from(request: ApiRequest) -> str:
    """Where an update without credentials takes them from. Newer engines refuse unknown values at once."""
    word = request.query("registryAuthFrom")
    if word not in ("", "spec", "previous-spec") and request.dialect.auth_from_early:
        raise BadParameter(f"invalid registryAuthFrom '{word}'")
    return word


def _keep_auth(spec: api.ServiceSpec, current: api.Service, source: str) -> str:
    """Copy the credentials of the current (or previous) spec to the new one; returns them."""
    if source in ("", "spec"):
        known = current.spec
    elif source == "previous-spec":
        if not current.HasField("previous_spec"):
            raise ApiError("service does not have a previous spec")
        known = current.previous_spec
    else:
        raise ApiError("unsupported registryAuthFrom value")
    if known.task.WhichOneof("runtime") != "container":
        raise ApiError("service does not use container tasks")
    if known.task.container.HasField("pull_options"):
        spec.task.container.pull_options.CopyFrom(known.task.container.pull_options)
    return known.task.container.pull_options.registry_auth


def _rollback(word: str) -> api.UpdateServiceRequest.Rollback:
    if word in ("", "none"):
        return api.UpdateServiceRequest.NONE
    if word == "previous":
        return api.UpdateServiceRequest.PREVIOUS
    raise ApiError(f"unrecognized rollback option {word}")


async def update_service(request: ApiRequest) -> web.StreamResponse:
    """POST /services/{id}/update: replaces the whole spec, or goes back to the previous one."""
    parsed = await request.json(SERVICE_SPEC, request.dialect.service_struct)
    index = request.object_version("service")
    auth_from = _check_auth_from(request)
    spec = await _spec(request, parsed)
    current = await lookup.find(request.backend, lookup.SERVICE, request.id)
    auth = request.http.headers.get("X-Registry-Auth", "")
    if auth:
        spec.task.container.pull_options.registry_auth = auth
    else:
        auth = _keep_auth(spec, current, auth_from)
    warnings = await _pin_image(request, spec, auth)
    await request.call(
        rpc.UPDATE_SERVICE,
        api.UpdateServiceRequest(
            service_id=current.id,
            service_version=version_message(index),
            spec=spec,
            rollback=_rollback(request.query("rollback")),
        ),
    )
    return json_answer({"Warnings": warnings})


async def list_services(request: ApiRequest) -> web.StreamResponse:
    """GET /services."""
    given = request.filters("name", "id", "label", "mode", "runtime")
    with_status = request.version >= (1, 41) and request.strict_flag("status")
    filters = api.ListServicesRequest.Filters(
        name_prefixes=given.get("name"),
        id_prefixes=given.get("id"),
        labels=given.labels("label"),
        runtimes=given.get("runtime") or ["container"],
    )
    answer = await request.call(rpc.LIST_SERVICES, api.ListServicesRequest(filters=filters))
    modes = given.get("mode")
    chosen = [
        service
        for service in by_id(answer.services)
        if not modes or _MODE_WORDS.get(service.spec.WhichOneof("mode") or "") in modes
    ]
    if request.version < (1, 25):
        return json_answer([with_legacy_networks(SERVICE.show(service)) for service in chosen])
    if not with_status:
        return await list_answer(request, SERVICE, chosen)
    return list_of(await _with_statuses(request, chosen))


async def _with_statuses(request: ApiRequest, services: list[api.Service]) -> list[bytes]:
    """Services with their task counts, which are not part of the stored object and are appended to its JSON."""
    wanted = api.ListServiceStatusesRequest(services=[service.id for service in services])
    answer = await request.call(rpc.LIST_SERVICE_STATUSES, wanted)
    statuses = {status.service_id: encode(SERVICE_STATUS.show(status)) for status in answer.statuses}
    out = []
    for service in services:
        fragment = request.api.fragments.of(SERVICE, service)
        status = statuses.get(service.id)
        out.append(fragment if status is None else fragment[:-1] + b',"ServiceStatus":' + status + b"}")
    return out


async def inspect_service(request: ApiRequest) -> web.StreamResponse:
    """GET /services/{id}."""
    insert_defaults = request.strict_flag("insertDefaults")
    service = await lookup.find(request.backend, lookup.SERVICE, request.id)
    if insert_defaults:
        wanted = api.GetServiceRequest(service_id=service.id, insert_defaults=True)
        service = (await request.call(rpc.GET_SERVICE, wanted)).service
    shown = SERVICE.show(service)
    return json_answer(with_legacy_networks(shown) if request.version < (1, 25) else shown)


async def remove_service(request: ApiRequest) -> web.StreamResponse:
    """DELETE /services/{id}."""
    service = await lookup.find(request.backend, lookup.SERVICE, request.id)
    await request.call(rpc.REMOVE_SERVICE, api.RemoveServiceRequest(service_id=service.id))
    return empty_answer()


# --- tasks ------------------------------------------------------------------------------------------------------------


async def list_tasks(request: ApiRequest) -> web.StreamResponse:
    """GET /tasks: those of containers unless another runtime is asked for."""
    given = request.filters("name", "id", "label", "service", "node", "desired-state", "_up-to-date", "runtime")
    request.backend.require_manager()
    services = [(await lookup.find(request.backend, lookup.SERVICE, word)).id for word in given.get("service")]
    nodes = [(await lookup.find(request.backend, lookup.NODE, word)).id for word in given.get("node")]
    states: list[api.TaskState] = []
    for word in given.get("desired-state"):
        if word.upper() in api.TaskState.keys():  # noqa: SIM118 - an enum wrapper is no dict
            states.append(api.TaskState.Value(word.upper()))  # type: ignore[arg-type]
        elif word:
            raise ApiError(f"Invalid desired-state filter: '{word}'")
    filters = api.ListTasksRequest.Filters(
        name_prefixes=given.get("name"),
        id_prefixes=given.get("id"),
        labels=given.labels("label"),
        service_ids=services,
        node_ids=nodes,
        desired_states=states,
        up_to_date=bool(given.get("_up-to-date")),
        runtimes=given.get("runtime") or ["container", ""],
    )
    answer = await request.call(rpc.LIST_TASKS, api.ListTasksRequest(filters=filters))
    return await list_answer(request, TASK, answer.tasks)


async def inspect_task(request: ApiRequest) -> web.StreamResponse:
    """GET /tasks/{id}."""
    task = await lookup.find(request.backend, lookup.TASK, request.id)
    return raw_answer(request.api.fragments.of(TASK, task))


# --- logs -------------------------------------------------------------------------------------------------------------


async def service_logs(request: ApiRequest) -> web.StreamResponse:
    """GET /services/{id}/logs."""
    options = streams.log_options(request)
    service = await lookup.find(request.backend, lookup.SERVICE, request.id)
    selector = api.LogSelector(service_ids=[service.id])
    return await streams.answer_logs(request, options, selector, service.spec.task)


async def task_logs(request: ApiRequest) -> web.StreamResponse:
    """GET /tasks/{id}/logs."""
    options = streams.log_options(request)
    task = await lookup.find(request.backend, lookup.TASK, request.id)
    return await streams.answer_logs(request, options, api.LogSelector(task_ids=[task.id]), task.spec)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/services", list_services),
    Route("POST", "/services/create", create_service),
    Route("GET", "/services/{id}", inspect_service),
    Route("POST", "/services/{id}/update", update_service),
    Route("DELETE", "/services/{id}", remove_service),
    Route("GET", "/services/{id}/logs", service_logs),
    Route("GET", "/tasks", list_tasks),
    Route("GET", "/tasks/{id}", inspect_task),
    Route("GET", "/tasks/{id}/logs", task_logs),
)
