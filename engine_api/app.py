"""The aiohttp application: API versions, headers, and every error to HTTP in one place.

(moby: daemon/server/server.go, daemon/server/middleware/version.go, daemon/server/httpstatus)
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from random import Random, SystemRandom

import structlog
from aiohttp import web

from engine_api.backend import SwarmBackend, asked_now
from engine_api.errors import ApiError, BadParameter, ObjectNotFound
from engine_api.front.target import clean_path
from engine_api.routes import attaching, networks, resources, services, swarm
from engine_api.server.dialect import ApiVersion, parse_version
from engine_api.server.request import Api, ApiRequest, EngineHooks, Handler, Route, encode
from engine_api.server.streams import BARE_KEY
from swarm import defaults
from swarm.errors import Code, SwarmError

_LOG = structlog.get_logger(__name__)

STATUS_OF_CODE: dict[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
}
"""All others are 500."""

ROUTES: tuple[Route, ...] = (*swarm.ROUTES, *services.ROUTES, *resources.ROUTES, *networks.ROUTES, *attaching.ROUTES)

_VERSION_PREFIX = "/v{version:[0-9.]{1,64}}"
_JSON_ERRORS_SINCE: ApiVersion = (1, 24)
API_KEY: web.AppKey[Api] = web.AppKey("api", Api)


def build_app(
    backend: SwarmBackend,
    engine_api_version: Callable[[], str],
    server_header: Callable[[], str],
    *,
    hooks: EngineHooks | None = None,
    routes: Sequence[Route] = ROUTES,
    rng: Random | None = None,
) -> web.Application:
    """The HTTP side of swarm mode over a backend.

    engine_api_version: the highest API version to serve, such as "1.41": the lower one of ours and the engine's.
    server_header: value of ``Server``, the engine's own. routes: what is served, ROUTES unless more is wanted.
    """
    api = Api(backend, engine_api_version, server_header, hooks or EngineHooks(), rng or SystemRandom())
    app = web.Application(middlewares=[_answer_errors], client_max_size=defaults.API_BODY_BYTES_MAX)
    app[API_KEY] = api
    app.on_response_prepare.append(_add_headers)
    for route in routes:
        handler = _with_version(api, route)
        app.router.add_route(route.method, route.path, handler)
        app.router.add_route(route.method, _VERSION_PREFIX + route.path, handler)
    app.router.add_route("OPTIONS", "/{any:.*}", _options)
    return app


async def _options(http: web.Request) -> web.StreamResponse:
    return web.Response()


async def _add_headers(http: web.Request, response: web.StreamResponse) -> None:
    api = http.app[API_KEY]
    headers = response.headers
    headers["Api-Version"] = api.api_version()
    headers["Docker-Experimental"] = "false"
    headers["Ostype"] = "linux"
    headers["Server"] = api.server_header()
    if response.get(BARE_KEY):
        headers.popall("Content-Type", None)


def _with_version(api: Api, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler that aiohttp calls: checks the API version of the path, then runs the route."""
    handler: Handler = route.handler

    async def run(http: web.Request) -> web.StreamResponse:
        if http.rel_url.raw_query_string.count("&") >= defaults.API_QUERY_PARAMETERS_MAX:
            raise BadParameter("number of URL query parameters exceeded limit")  # the text of newer Go versions
        maximum_text = api.api_version()
        maximum = parse_version(maximum_text)
        text = http.match_info.get("version", maximum_text)
        version = parse_version(text)
        dialect = api.dialect()
        if version < dialect.minimum:
            minimum = ".".join(map(str, dialect.minimum))
            raise BadParameter(
                f"client version {text} is too old. Minimum supported API version is {minimum}, "
                "please upgrade your client to a newer version"
            )
        if version > maximum:
            raise BadParameter(f"client version {text} is too new. Maximum supported API version is {maximum_text}")
        if dialect.hide_old_routes and version < route.since:
            raise ObjectNotFound("page not found")
        asked_now()
        work = handler(ApiRequest(http, api, version, dialect))
        return await (work if route.method == "GET" else _to_its_end(work))

    return run


_RUNNING: set[asyncio.Future[web.StreamResponse]] = set()


async def _to_its_end(work: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    """Run what may change something; when the client hangs up, aiohttp cancels only the wait for it."""
    task = asyncio.ensure_future(work)
    _RUNNING.add(task)  # the loop itself would let go of it
    task.add_done_callback(_ended)
    return await asyncio.shield(task)


def _ended(task: asyncio.Future[web.StreamResponse]) -> None:
    _RUNNING.discard(task)
    if not task.cancelled():
        task.exception()  # whoever still waits gets it; nobody else needs it


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    path = request.rel_url.raw_path
    if (clean := clean_path(path.encode()).decode()) != path and path != "*":
        query = request.rel_url.raw_query_string
        return web.Response(status=301, headers={"Location": f"{clean}?{query}" if query else clean})
    try:
        return await handler(request)
    except (ApiError, SwarmError) as error:
        return error_answer(request, error)
    except web.HTTPRequestEntityTooLarge:
        return _message(request, 413, "http: request body too large")
    except web.HTTPException as error:
        if error.status in (404, 405):
            return _message(request, 404, "page not found")
        return _message(request, error.status, error.reason)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        # the text of the exception may contain what a user sent, so only the place is logged
        where = "".join(traceback.format_tb(error.__traceback__))
        _LOG.error("api.bug", method=request.method, path=request.path, error=type(error).__name__, where=where)
        return _message(request, 500, "internal error, see the log of the daemon")


def status_of(error: ApiError | SwarmError) -> int:
    """The HTTP status of an error."""
    return error.status if isinstance(error, ApiError) else STATUS_OF_CODE.get(error.code, 500)


def error_answer(http: web.Request, error: ApiError | SwarmError) -> web.Response:
    """An error as stock engines send it: errors of the cluster with gRPC's prefix, our own without."""
    return _message(http, status_of(error), error.message if isinstance(error, ApiError) else error.rpc_text)


def _message(http: web.Request, status: int, text: str) -> web.Response:
    """JSON, or the bare text for requests below API 1.24."""
    version = http.match_info.get("version")
    if version and parse_version(version) < _JSON_ERRORS_SINCE:
        return web.Response(status=status, text=text + "\n", content_type="text/plain", charset="utf-8")
    return web.Response(status=status, body=encode({"message": text}) + b"\n", content_type="application/json")
