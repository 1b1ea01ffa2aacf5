"""Answers of the engine with additions of ours: /info, /version, the filter is-task; and /_ping.

Lists of containers go to the engine as they are, unless they ask which containers are tasks, which only we know.

(moby: daemon/server/router/system)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from email.utils import formatdate
from typing import Any

from aiohttp import web

import engine_api
from engine_api.backend import LocalNodeState, SwarmBackend
from engine_api.convert.cluster import info_section
from engine_api.convert.gojson import JsonError
from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.errors import ApiError, ServiceUnavailable
from engine_api.front.http1 import Head
from engine_api.routes.events import Events
from engine_api.server.decode import filter_values
from engine_api.server.request import ApiRequest, EngineHooks, Route, json_answer
from overlay.model import NetworkState
from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import SwarmError

SWARM_HEADER_SINCE = (1, 42)
TASK_LABEL = "com.docker.swarm.task"


class System:
    """What this daemon knows about its engine, and the events of the swarm. attach() sets the back end."""

    def __init__(
        self,
        engine: EngineClient,
        warnings: Sequence[str],
        now: Callable[[], float],
        network_state: Callable[[str], NetworkState | None] = lambda network_id: None,
        attach: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        self._engine = engine
        self._warnings = list(warnings)
        self._backend: SwarmBackend | None = None
        self._events = Events(engine, now)
        self.publish = self._events.publish
        self.stop = self._events.stop
        self.routes = (
            Route("GET", "/info", self.info),
            Route("GET", "/version", self.version),
            Route("GET", "/events", self._events.stream),
            Route("GET", "/_ping", self.ping),
            Route("HEAD", "/_ping", self.ping),
            Route("GET", "/containers/json", self.containers, shared=True, query="task"),
        )
        self.hooks = EngineHooks(
            find_local_network=self._find_local_network,
            forward=self._forward,
            ask=self._ask_any,
            network_state=network_state,
            attach=attach,
        )

    # --- the engine beside us --------------------------------------------------------------------------------------

    async def attach(self, backend: SwarmBackend) -> None:
        """Start with this back end, and ask the engine for its API version if it runs."""
        self._backend = backend
        with contextlib.suppress(EngineError, EngineUnavailable, TimeoutError):
            async with asyncio.timeout(defaults.ENGINE_PING_TIMEOUT_S):
                await self._engine.ping()

    def api_version(self) -> str:
        """The highest API version served: the lower one of ours and the engine's, as last seen."""
        return ".".join(map(str, self._engine.seen.api_version))

    def server_header(self) -> str:
        """The value of ``Server`` that the engine sends."""
        return self._engine.seen.server

    async def _find_local_network(self, name: str) -> str | None:
        """The name of a network (by name or ID) that is the engine's and not the swarm's; None: there is none."""
        try:
            network = await self._engine.inspect_network(name)
        except (EngineError, EngineUnavailable):
            return None
        return str(network["Name"]) if network.get("Scope") == "local" else None

    async def _forward(
        self, path: str, request: ApiRequest, body: bytes, query: Mapping[str, str] | None = None
    ) -> web.Response:
        """The engine's answer to a client's request that is not about the swarm. Raises ApiError."""
        http = request.http
        # without a type our client would name one, which the engine refuses even when there is no body
        content_type = http.headers.get("Content-Type", "" if body else "application/json")
        headers = {"Content-Type": content_type} if content_type else {}
        with _as_api_errors():
            answer = await self._engine.request(
                http.method,
                path,
                params=http.query if query is None else query,
                data=body,
                headers=headers,
                api_version=request.version,
            )
        if not answer.body:
            return web.Response(status=answer.status)
        return web.Response(status=answer.status, body=answer.body, content_type="application/json")

    # --- /_ping ----------------------------------------------------------------------------------------------------

    def quick_answer(self, head: Head) -> bytes | None:
        """The complete answer to /_ping, without aiohttp; None for every other request."""
        path, _ = head.path_and_query
        if not path.endswith(b"/_ping") or head.method not in (b"GET", b"HEAD") or head.length or head.chunked:
            return None
        if path != b"/_ping":
            return None  # the application checks the version in the path
        body = b"" if head.method == b"HEAD" else b"OK"
        lines = [f"{name}: {value}" for name, value in self._ping().items()]
        lines.append(f"Content-Length: {len(body)}")
        text = "\r\n".join(("HTTP/1.1 200 OK", *lines, f"Date: {formatdate(usegmt=True)}", "", ""))
        return text.encode() + body

    def _ping(self) -> dict[str, str]:
        headers = {
            "Api-Version": self.api_version(),
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Content-Type": "text/plain; charset=utf-8",
            "Docker-Experimental": self._engine.seen.experimental,
            "Ostype": "linux",
            "Pragma": "no-cache",
            "Server": self.server_header(),
        }
        if self._engine.seen.builder:
            headers["Builder-Version"] = self._engine.seen.builder
        if self._engine.seen.api_version >= SWARM_HEADER_SINCE:
            headers["Swarm"] = self._swarm_state()
        return headers

    def _swarm_state(self) -> str:
        assert self._backend is not None
        local = self._backend.local()
        if local.state is not LocalNodeState.ACTIVE:
            return str(local.state.value)
        return f"active/{'manager' if local.control_available else 'worker'}"

    async def ping(self, request: ApiRequest) -> web.StreamResponse:
        """GET and HEAD /_ping with a version in the path."""
        return web.Response(body=b"" if request.http.method == "HEAD" else b"OK", headers=self._ping())

    # --- /version, /info -------------------------------------------------------------------------------------------

    async def version(self, request: ApiRequest) -> web.StreamResponse:
        """GET /version: the engine's answer, with a component of our own."""
        answer = await self._ask("/version", request)
        component = {
            "Name": "sideswarm",
            "Version": engine_api.__version__,
            "Details": {"ApiVersion": self.api_version()},
        }
        answer["Components"] = [*(answer.get("Components") or ()), component]
        answer["ApiVersion"] = self.api_version()
        return json_answer(answer)

    async def info(self, request: ApiRequest) -> web.StreamResponse:
        """GET /info: the engine's answer, with our Swarm section and warnings."""
        answer = await self._ask("/info", request)
        section = await self._section()
        answer["Swarm"] = section
        warnings = [*(answer.get("Warnings") or ()), *self._warnings, *section.get("Warnings", ())]
        answer["Warnings"] = warnings or answer.get("Warnings")
        return json_answer(answer)

    async def _ask(self, path: str, request: ApiRequest) -> dict[str, Any]:
        answer = await self._ask_any(path, request)
        if not isinstance(answer, dict):
            raise ApiError(f"the engine's answer to {path} is not an object")
        return answer

    async def _ask_any(self, path: str, request: ApiRequest, params: Mapping[str, str] | None = None) -> Any:
        """The engine's answer to a client's request, in the client's API version."""
        with _as_api_errors():
            return (await self._engine.request("GET", path, params=params, api_version=request.version)).json()

    async def _section(self) -> dict[str, Any]:
        assert self._backend is not None
        local = self._backend.local()
        if not local.control_available:
            return info_section(local)
        try:
            clusters = await self._backend.call(rpc.LIST_CLUSTERS, api.ListClustersRequest())
            nodes = await self._backend.call(rpc.LIST_NODES, api.ListNodesRequest())
        except SwarmError as error:
            return info_section(local, error=local.error or error.rpc_text)
        except ApiError as error:
            return info_section(local, error=local.error or error.message)
        return info_section(local, clusters.clusters[0] if clusters.clusters else None, list(nodes.nodes))

    # --- /containers/json ------------------------------------------------------------------------------------------

    async def containers(self, request: ApiRequest) -> web.StreamResponse:
        """GET /containers/json with the filter is-task, which the engine cannot apply: it does not know our tasks."""
        query = dict(request.http.query)
        filters = _filters(query.get("filters", ""))
        wanted = _is_task(filters.pop("is-task", []))
        if wanted is None:  # absent or invalid: the engine answers
            return json_answer(await self._ask_any("/containers/json", request, query))
        if wanted:
            filters["label"] = [*filters.get("label", ()), TASK_LABEL]
            query["filters"] = json.dumps(filters)
            return json_answer(await self._ask_any("/containers/json", request, query))
        limit = _limit(query)
        query["filters"] = json.dumps(filters)
        rows = await self._ask_any("/containers/json", request, query)
        rows = [row for row in rows if TASK_LABEL not in (row.get("Labels") or {})]
        return json_answer(rows[:limit])


@contextlib.contextmanager
def _as_api_errors() -> Iterator[None]:
    """The engine's errors as our own, with its status and text."""
    try:
        yield
    except EngineUnavailable as error:
        raise ServiceUnavailable(str(error)) from error
    except EngineError as error:
        raise ApiError(error.message, error.status) from error


def _filters(text: str) -> dict[str, list[str]]:
    """Filters of either shape; empty if they are invalid."""
    try:
        return filter_values(text)
    except JsonError:
        return {}


def _is_task(values: Sequence[str]) -> bool | None:
    """What the filter is-task asks for; None: it is absent or invalid."""
    if not values or any(value not in ("true", "1", "false", "0") for value in values):
        return None
    return "true" in values or "1" in values


def _limit(query: dict[str, str]) -> int | None:
    """Remove the limit from a query, because it applies after filtering; None: there is none."""
    text = query.get("limit", "")
    if not re.fullmatch("[0-9]{1,18}", text) or not int(text):
        return None
    del query["limit"]
    query["all"] = "1"  # a limit implies containers that do not run
    return int(text)
