"""What we add to the engine's own answers: /info, /version, /events; and /_ping, which says that we are ready.

(moby: daemon/server/router/system)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from email.utils import formatdate
from typing import Any

import structlog
from aiohttp import web

import engine_api
from engine_api.backend import Backend, LocalNodeState
from engine_api.convert.cluster import info_section
from engine_api.convert.events import Event, EventFilter, swarm_events
from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.errors import ApiError, ServiceUnavailable
from engine_api.server.decode import parse_filters
from engine_api.server.dialect import parse_version
from engine_api.server.http1 import Head
from engine_api.server.request import ApiRequest, Hooks, Route, encode, json_answer
from swarm import api
from swarm.errors import SwarmError
from swarm.store.store import Change

log = structlog.get_logger()

EVENTS_KEPT = 256
EVENTS_WAITING_MAX = 4096
API_VERSION_MAX = (1, 50)
SWARM_HEADER_SINCE = (1, 42)
EVENT_FILTERS = (
    *("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret"),
    *("service", "type", "volume"),
)


class System:
    """What this daemon knows of its engine, and the swarm's events. attach() gives it the back end."""

    def __init__(self, engine: EngineClient, warnings: Sequence[str], now: Callable[[], float]) -> None:
        self._engine = engine
        self._warnings = list(warnings)
        self._now = now
        self._backend: Backend | None = None
        self._engine_version = "1.41"
        self._server = "Docker (linux)"
        self._ping_headers: dict[str, str] = {}
        self._kept: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._listeners: dict[asyncio.Queue[Event | None], None] = {}
        self._refresher: asyncio.Task[None] | None = None
        self.routes = (
            Route("GET", "/info", self.info),
            Route("GET", "/version", self.version),
            Route("GET", "/events", self.events),
            Route("GET", "/_ping", self.ping),
            Route("HEAD", "/_ping", self.ping),
        )
        self.hooks = Hooks(find_local_network=self._find_local_network)

    # --- the engine beside us --------------------------------------------------------------------------------------

    async def attach(self, backend: Backend) -> None:
        """Begin: ``backend`` answers for the swarm. An engine that does not answer yet is asked again."""
        self._backend = backend
        with contextlib.suppress(EngineError, EngineUnavailable):
            await self.refresh()

    async def refresh(self) -> None:
        """Ask the engine for its version again. Raises EngineError or EngineUnavailable."""
        answer = await self._engine.version()
        offered = parse_version(str(answer.get("ApiVersion", "1.41")))
        self._engine_version = ".".join(map(str, min(offered, API_VERSION_MAX)))
        self._server = f"Docker/{answer.get('Version', '')} ({answer.get('Os', 'linux')})"

    def api_version(self) -> str:
        """The highest version served: the lower one of ours and the engine's."""
        return self._engine_version

    def server_header(self) -> str:
        """As the engine's."""
        return self._server

    async def _find_local_network(self, name: str) -> str | None:
        """The name of an engine's network (by name or ID) that is not the swarm's; None: there is none."""
        try:
            network = await self._engine.inspect_network(name)
        except (EngineError, EngineUnavailable):
            return None
        return str(network["Name"]) if network.get("Scope") == "local" else None

    # --- /_ping ----------------------------------------------------------------------------------------------------

    def quick_answer(self, head: Head) -> bytes | None:
        """The whole answer to /_ping, without a round through aiohttp; None for every other request."""
        path, _, _ = head.target.partition(b"?")
        if not path.endswith(b"/_ping") or head.method not in (b"GET", b"HEAD") or head.length or head.chunked:
            return None
        if path.strip(b"/") != b"_ping":
            return None  # with a version in the path: that is checked by the application
        body = b"" if head.method == b"HEAD" else b"OK"
        lines = [f"{name}: {value}" for name, value in self._ping().items()]
        lines.append(f"Content-Length: {len(body)}")
        text = "\r\n".join(("HTTP/1.1 200 OK", *lines, f"Date: {formatdate(usegmt=True)}", "", ""))
        return text.encode() + body

    def _ping(self) -> dict[str, str]:
        headers = {
            "Api-Version": self._engine_version,
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Content-Type": "text/plain; charset=utf-8",
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Pragma": "no-cache",
            "Server": self._server,
        }
        if parse_version(self._engine_version) >= SWARM_HEADER_SINCE:
            headers["Builder-Version"] = "2"
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
        """GET /version: the engine's, with a component of our own."""
        answer = await self._ask("/version")
        component = {
            "Name": "sideswarm",
            "Version": engine_api.__version__,
            "Details": {"ApiVersion": self.api_version()},
        }
        answer["Components"] = [*(answer.get("Components") or ()), component]
        answer["ApiVersion"] = self.api_version()
        return json_answer(answer)

    async def info(self, request: ApiRequest) -> web.StreamResponse:
        """GET /info: the engine's, with our Swarm section and warnings."""
        answer = await self._ask("/info")
        section = await self._section()
        answer["Swarm"] = section
        warnings = [*(answer.get("Warnings") or ()), *self._warnings, *section.get("Warnings", ())]
        answer["Warnings"] = warnings or answer.get("Warnings")
        return json_answer(answer)

    async def _ask(self, path: str) -> dict[str, Any]:
        try:
            answer = (await self._engine.request("GET", path)).json()
        except EngineUnavailable as error:
            raise ServiceUnavailable(str(error)) from error
        except EngineError as error:
            raise ApiError(error.message, error.status) from error
        if not isinstance(answer, dict):
            raise ApiError(f"the engine's answer to {path} is not an object")
        return answer

    async def _section(self) -> dict[str, Any]:
        assert self._backend is not None
        local = self._backend.local()
        if not local.control_available:
            return info_section(local)
        try:
            clusters = await self._backend.call("Control/ListClusters", api.ListClustersRequest())
            nodes = await self._backend.call("Control/ListNodes", api.ListNodesRequest())
        except SwarmError as error:
            return info_section(local, error=error.rpc_text)
        except ApiError as error:
            return info_section(local, error=error.message)
        assert isinstance(clusters, api.ListClustersResponse)
        assert isinstance(nodes, api.ListNodesResponse)
        return info_section(local, clusters.clusters[0] if clusters.clusters else None, list(nodes.nodes))

    # --- /events ---------------------------------------------------------------------------------------------------

    def publish(self, changes: Sequence[Change]) -> None:
        """The store changed: tell everyone who listens. A listener that is too slow is cut off."""
        for event in swarm_events(changes, self._now()):
            self._kept.append(event)
            for queue in list(self._listeners):
                try:
                    queue.put_nowait(event)
                except asyncio.QueueFull:
                    del self._listeners[queue]
                    _replace_last(queue)

    def stop(self) -> None:
        """End all event streams."""
        for queue in list(self._listeners):
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)

    async def events(self, request: ApiRequest) -> web.StreamResponse:
        """GET /events: the engine's as they come, ours in between."""
        wanted = EventFilter(_filter_values(request))
        since, until = _moment(request, "since"), _moment(request, "until")
        queue: asyncio.Queue[Event | None] = asyncio.Queue(EVENTS_WAITING_MAX)
        history = [event for event in self._kept if since is not None and _between(event, since, until)]
        self._listeners[queue] = None
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            async with self._engine_events(request) as chunks:
                await response.prepare(request.http)
                for event in filter(wanted.wants, history):
                    await response.write(encode(event) + b"\n")
                await _merge(response, chunks, queue, wanted, until)
        except EngineUnavailable as error:
            if not response.prepared:
                raise ServiceUnavailable(str(error)) from error
        except EngineError as error:
            raise ApiError(error.message, error.status) from error
        finally:
            self._listeners.pop(queue, None)
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    def _engine_events(self, request: ApiRequest) -> contextlib.AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._engine.stream("GET", "/events", params=dict(request.http.query))


async def _merge(
    response: web.StreamResponse,
    chunks: AsyncIterator[bytes],
    queue: asyncio.Queue[Event | None],
    wanted: EventFilter,
    until: float | None,
) -> None:
    """Write whole lines of the engine and our events as they come, until the engine ends its stream."""
    lock = asyncio.Lock()

    async def ours() -> None:
        while (event := await queue.get()) is not None:
            if wanted.wants(event) and (until is None or event["time"] <= until):
                async with lock:
                    await response.write(encode(event) + b"\n")

    async def theirs() -> None:
        rest = b""
        async for chunk in chunks:
            lines, separator, rest = (rest + chunk).rpartition(b"\n")
            if separator:
                async with lock:
                    await response.write(lines + separator)

    tasks = {asyncio.ensure_future(ours()), asyncio.ensure_future(theirs())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _replace_last(queue: asyncio.Queue[Event | None]) -> None:
    """Make room for the end mark in a full queue."""
    queue.get_nowait()
    queue.put_nowait(None)


def _filter_values(request: ApiRequest) -> Mapping[str, Sequence[str]]:
    filters = parse_filters(request.query("filters"), EVENT_FILTERS, request.dialect)
    return {key: filters.get(key) for key in EVENT_FILTERS if filters.get(key)}


def _moment(request: ApiRequest, name: str) -> float | None:
    """A since or until of the query, in seconds; the engine judges what is no number."""
    try:
        return float(request.query(name))
    except ValueError:
        return None


def _between(event: Event, since: float, until: float | None) -> bool:
    at = event["timeNano"] / 1e9
    return at >= since and (until is None or at <= until)
