"""An engine in the test's own process: keeps containers as records, answers over a real unix socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeEngine:
    """Start it with ``async with``; ``host`` is what a client needs.

    calls: "METHOD /path" of every call but pings and events. refuse: the same key, or its beginning, to (status, text).
    """

    def __init__(self, directory: Path, api_version: str = "1.41") -> None:
        self.host = f"unix://{directory}/engine.sock"
        self.api_version = api_version
        self.strict = False  # refuse calls in any other API version
        self.calls: list[str] = []
        self.event_queries: list[tuple[str, dict[str, str]]] = []
        self.queries: dict[str, dict[str, str]] = {}
        self.bodies: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.images = {"busybox:latest"}
        self.pull_lines: list[Json] = [{"status": "Pulling"}]
        self.pull_gate: asyncio.Event | None = None
        self.containers: dict[str, Json] = {}
        self.logs: dict[str, bytes] = {}
        self.logs_cut = False  # the connection breaks after what there is
        self.info: Json = {"Name": "host1", "Architecture": "x86_64", "OSType": "linux", "NCPU": 2, "MemTotal": 4096}
        self.plugins: list[Json] = []
        self.networks: list[Json] = []
        self.networks_pruned: list[str] | None = None
        self.health_of_new = ""
        self._streams: list[asyncio.Queue[Json | None]] = []
        self.followed = asyncio.Event()
        self._call = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> FakeEngine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        app = web.Application(middlewares=[self._middleware])
        version = "/v{version:[0-9.]+}"
        routes: dict[str, Handler] = {
            "GET /_ping": self._ping,
            f"GET {version}/info": self._info,
            f"GET {version}/plugins": self._plugins,
            f"GET {version}/events": self._events,
            f"POST {version}/volumes/create": self._created,
            f"POST {version}/containers/create": self._create,
            f"GET {version}/containers/json": self._list,
            f"GET {version}/containers/{{name}}/json": self._inspect,
            f"GET {version}/containers/{{name}}/logs": self._logs,
            f"POST {version}/containers/{{name}}/start": self._start,
            f"POST {version}/containers/{{name}}/stop": self._stop,
            f"DELETE {version}/containers/{{name}}": self._remove,
            f"GET {version}/networks": self._networks,
            f"GET {version}/networks/{{name}}": self._network,
            f"DELETE {version}/networks/{{name}}": self._no_content,
            f"POST {version}/networks/prune": self._prune,
            f"POST {version}/networks/{{name}}/disconnect": self._created,
            f"POST {version}/networks/create": self._created,
            f"POST {version}/networks/{{name}}/connect": self._created,
            f"GET {version}/images/{{name:.+}}/json": self._image,
            f"POST {version}/images/create": self._pull,
        }
        for route, handler in routes.items():
            method, path = route.split(" ")
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.UnixSite(self._runner, self.host.removeprefix("unix://")).start()

    async def stop(self) -> None:
        """Die, with all connections."""
        self.lose_events()
        self.followed.clear()
        if self._runner is not None:
            await self._runner.cleanup()

    async def called(self, key: str) -> None:
        """Wait until a call has come, "METHOD /path"."""
        while key not in self.calls:
            self._call.clear()
            await self._call.wait()

    # --- what happens on a real engine -----------------------------------------------------------------------------

    def exit(self, name: str, code: int, *, silently: bool = False) -> None:
        """A container ends; silently: its event is lost."""
        container = self.containers[name]
        container["State"].update(Status="exited", Running=False, Pid=0, ExitCode=code)
        if not silently:
            self.tell(name, "die", exitCode=str(code))

    def health(self, name: str, verdict: str) -> None:
        """A health check comes to a verdict."""
        self.containers[name]["State"]["Health"] = {"Status": verdict}
        self.tell(name, f"health_status: {verdict}")

    def tell(self, name: str, action: str, **attributes: str) -> None:
        """An event about a container."""
        labels = self.containers[name]["Config"]["Labels"]
        actor = {"ID": self.containers[name]["Id"], "Attributes": {**labels, "name": name, **attributes}}
        self.send({"Type": "container", "Action": action, "Actor": actor, "timeNano": time.time_ns()})

    def lose_events(self) -> None:
        """The event streams break."""
        for stream in self._streams:
            stream.put_nowait(None)

    # --- handlers --------------------------------------------------------------------------------------------------

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path.partition("/v")[2].partition("/")[2]
        key = f"{request.method} /{path}"
        if path == "events":
            self.event_queries.append((request.match_info["version"], dict(request.query)))
        elif path:
            self.calls.append(key)
            self._call.set()
            self.queries[key] = dict(request.query)
            self.headers.append(dict(request.headers))
            if request.can_read_body and request.content_type == "application/json":
                self.bodies.append(await request.json())
        for prefix, (status, text) in self.refuse.items():
            if key.startswith(prefix):
                return self._versioned(web.json_response({"message": text}, status=status))
        if path and not request.path.startswith(f"/v{self.api_version}/") and self.strict:
            text = f"client version is not supported. The API version is {self.api_version}"
            return self._versioned(web.json_response({"message": text}, status=400))
        try:
            return self._versioned(await handler(request))
        except web.HTTPException as error:
            self._versioned(error)
            raise

    def _versioned(self, response: web.StreamResponse) -> web.StreamResponse:
        if not response.prepared:
            response.headers["Api-Version"] = self.api_version
        return response

    def _stream(self) -> web.StreamResponse:
        return self._versioned(web.StreamResponse())

    async def _ping(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="OK", headers={"Api-Version": self.api_version})

    async def _info(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self.info)

    async def _plugins(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self.plugins)

    async def _created(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"Id": "new"}, status=201)

    async def _no_content(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    async def _networks(self, request: web.Request) -> web.StreamResponse:
        wanted = json.loads(request.query.get("filters") or "{}")
        keys = [key for key in ("name", "driver", "scope") if key in wanted]
        rows = [n for n in self.networks if all(n[key.capitalize()] in wanted[key] for key in keys)]
        return web.json_response(rows)

    async def _network(self, request: web.Request) -> web.StreamResponse:
        for network in self.networks:
            if request.match_info["name"] in (network["Id"], network["Name"]):
                return web.json_response(network)
        text = f"network {request.match_info['name']} not found"
        return web.json_response({"message": text}, status=404)

    async def _prune(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"NetworksDeleted": self.networks_pruned})

    def send(self, event: Json) -> None:
        """An event to everyone who follows."""
        for stream in self._streams:
            stream.put_nowait(event)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = self._stream()
        stream: asyncio.Queue[Json | None] = asyncio.Queue()
        self._streams.append(stream)
        await response.prepare(request)
        self.followed.set()
        try:
            while (event := await stream.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._streams.remove(stream)
        return response

    async def _create(self, request: web.Request) -> web.StreamResponse:
        name, body = request.query["name"], await request.json()
        if name in self.containers:
            return web.json_response({"message": f'Conflict. The container name "/{name}" is in use.'}, status=409)
        if body["Image"] not in self.images:
            return web.json_response({"message": f"No such image: {body['Image']}"}, status=404)
        self.add_container(name, body)
        return web.json_response({"Id": self.containers[name]["Id"]}, status=201)

    def add_container(self, name: str, body: Json) -> None:
        """A container that was created."""
        self.containers[name] = {
            "Id": f"id-{name}",
            "Name": f"/{name}",
            "Config": {"Tty": False, **body},
            "State": {"Status": "created", "Running": False, "Pid": 0, "ExitCode": 0},
            "NetworkSettings": {"Ports": {}},
        }

    def _find(self, request: web.Request) -> Json:
        wanted = request.match_info["name"]
        for name, container in self.containers.items():
            if wanted in (name, container["Id"]):
                return container
        raise web.HTTPNotFound(text=json.dumps({"message": f"No such container: {wanted}"}))

    async def _inspect(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._find(request))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        wanted = json.loads(request.query["filters"])["label"][0]
        rows = []
        for container in self.containers.values():
            labels = container["Config"].get("Labels") or {}
            if wanted in labels or wanted in {f"{key}={value}" for key, value in labels.items()}:
                state = container["State"]["Status"]
                health = container["State"].get("Health")
                status = f"Up 2 seconds ({health['Status']})" if health else "Up 2 seconds"
                rows.append({"Id": container["Id"], "Labels": labels, "State": state, "Status": status})
        return web.json_response(rows)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        response = self._stream()
        await response.prepare(request)
        await response.write(self.logs.get(self._find(request)["Name"].lstrip("/"), b""))
        if self.logs_cut and request.transport is not None:
            request.transport.close()
        return response

    async def _start(self, request: web.Request) -> web.StreamResponse:
        container = self._find(request)
        if container["State"]["Running"]:
            return web.Response(status=304)
        container["State"].update(Status="running", Running=True, Pid=4711)
        if self.health_of_new:
            container["State"]["Health"] = {"Status": self.health_of_new}
        self.tell(container["Name"].lstrip("/"), "start")
        return web.Response(status=204)

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        container = self._find(request)
        if not container["State"]["Running"]:
            return web.Response(status=304)
        self.exit(container["Name"].lstrip("/"), 143)
        return web.Response(status=204)

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        name = self._find(request)["Name"].lstrip("/")
        if self.containers[name]["State"]["Running"]:
            self.exit(name, 137)
        self.tell(name, "destroy")
        del self.containers[name]
        return web.Response(status=204)

    async def _image(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self.images:
            return web.json_response({"message": f"No such image: {name}"}, status=404)
        return web.json_response({"Id": f"sha256:{name}"})

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        response = self._stream()
        await response.prepare(request)
        if self.pull_gate is not None:
            await self.pull_gate.wait()
        for line in self.pull_lines:
            await response.write(json.dumps(line).encode() + b"\n")
        if not any("error" in line for line in self.pull_lines):
            self.images.add(request.query["fromImage"])
        return response
