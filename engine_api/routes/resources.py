"""Routes of secrets and configs: create, list, inspect, update, remove.

(moby: daemon/server/router/swarm/cluster_routes.go, daemon/cluster/{secrets,configs}.go)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from google.protobuf.message import Message

from engine_api.convert.objects import CONFIG, CONFIG_SPEC, SECRET, SECRET_SPEC
from engine_api.convert.table import Table
from engine_api.errors import BadParameter
from engine_api.routes import lookup
from engine_api.server.dialect import ApiVersion
from engine_api.server.request import ApiRequest, Route, empty_answer, json_answer, list_answer, raw_answer
from engine_api.server.request import version_message as version
from swarm import api
from swarm.api import rpc

_TEMPLATING_SINCE: ApiVersion = (1, 37)


@dataclass(frozen=True)
class Resource:
    """One kind of resource and how it is read and written. filters: accepted keys."""

    kind: lookup.Kind[Any]
    table: Table
    spec_table: Table
    spec: Callable[[], Any]
    filters: tuple[str, ...]
    create: Callable[[ApiRequest, Any], Awaitable[api.CreateSecretResponse | api.CreateConfigResponse]]
    update: Callable[[ApiRequest, str, api.Version, Any], Awaitable[Message]]
    remove: Callable[[ApiRequest, str], Awaitable[Message]]


SECRETS = Resource(
    kind=lookup.SECRET,
    table=SECRET,
    spec_table=SECRET_SPEC,
    spec=api.SecretSpec,
    filters=("names", "name", "id", "label"),
    create=lambda request, spec: request.call(rpc.CREATE_SECRET, api.CreateSecretRequest(spec=spec)),
    update=lambda request, i, v, spec: request.call(
        rpc.UPDATE_SECRET, api.UpdateSecretRequest(secret_id=i, secret_version=v, spec=spec)
    ),
    remove=lambda request, i: request.call(rpc.REMOVE_SECRET, api.RemoveSecretRequest(secret_id=i)),
)

CONFIGS = Resource(
    kind=lookup.CONFIG,
    table=CONFIG,
    spec_table=CONFIG_SPEC,
    spec=api.ConfigSpec,
    filters=("name", "id", "label"),
    create=lambda request, spec: request.call(rpc.CREATE_CONFIG, api.CreateConfigRequest(spec=spec)),
    update=lambda request, i, v, spec: request.call(
        rpc.UPDATE_CONFIG, api.UpdateConfigRequest(config_id=i, config_version=v, spec=spec)
    ),
    remove=lambda request, i: request.call(rpc.REMOVE_CONFIG, api.RemoveConfigRequest(config_id=i)),
)


def _routes(resource: Resource, since: ApiVersion) -> tuple[Route, ...]:
    word, plural = resource.kind.word, resource.kind.plural

    async def list_all(request: ApiRequest) -> web.StreamResponse:
        given = request.filters(*resource.filters)
        method = resource.kind.list
        filters = method.request.Filters(
            name_prefixes=given.get("name"), id_prefixes=given.get("id"), labels=given.labels("label")
        )
        if "names" in resource.filters:
            filters.names.extend(given.get("names"))
        answer = await request.call(method, method.request(filters=filters))
        return await list_answer(request, resource.table, getattr(answer, plural))

    async def create(request: ApiRequest) -> web.StreamResponse:
        parsed = await request.json(resource.spec_table)
        if "Templating" in parsed and request.version < _TEMPLATING_SINCE:
            shown = ".".join(map(str, request.version))
            raise BadParameter(f"{word} templating is not supported on the specified API version: {shown}")
        request.backend.require_manager()
        spec = resource.spec()
        resource.spec_table.fill(spec, parsed)
        answer = await resource.create(request, spec)
        return json_answer({"ID": getattr(answer, word).id}, 201)

    async def inspect(request: ApiRequest) -> web.StreamResponse:
        found = await lookup.find(request.backend, resource.kind, request.id)
        return raw_answer(request.api.fragments.of(resource.table, found))

    async def update(request: ApiRequest) -> web.StreamResponse:
        parsed = await request.json(resource.spec_table)
        index = request.object_version(word, reason=False)
        found = await lookup.find(request.backend, resource.kind, request.id)
        spec = resource.spec()
        resource.spec_table.fill(spec, parsed)
        await resource.update(request, found.id, version(index), spec)
        return empty_answer()

    async def remove(request: ApiRequest) -> web.StreamResponse:
        found = await lookup.find(request.backend, resource.kind, request.id)
        await resource.remove(request, found.id)
        return empty_answer(204)

    return (
        Route("GET", f"/{plural}", list_all, since),
        Route("POST", f"/{plural}/create", create, since),
        Route("GET", f"/{plural}/{{id}}", inspect, since),
        Route("POST", f"/{plural}/{{id}}/update", update, since),
        Route("DELETE", f"/{plural}/{{id}}", remove, since),
    )


ROUTES: tuple[Route, ...] = (*_routes(SECRETS, (1, 25)), *_routes(CONFIGS, (1, 30)))
