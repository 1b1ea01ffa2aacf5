"""The calls that this daemon makes to the real engine, over a small asynchronous HTTP client.

The API version is negotiated before the first call and checked in every answer, so an engine may be restarted with
another version while this daemon runs. Calls have time limits; only streams (events, logs) may stay open. When a
connection turns out to be dead, the call is tried once more on a new one. That is safe, because calls here are either
idempotent, or refused the second time with a conflict that the caller handles.

(moby: client/, api/swagger.yaml)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from ssl import SSLContext
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from engine_api.engine.errors import EngineError, EngineUnavailable
from swarm import defaults

API_VERSION_MAX = (1, 51)  # the newest version whose answers this client is known to parse
API_VERSION_MIN = (1, 41)

Json = dict[str, Any]
Filters = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer of the engine, status below 400."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None when it is empty. Raises EngineError when the body is something else."""
        if not self.body.strip():
            return None
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError as error:
            raise EngineError(502, f"the engine's answer is not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Seen:
    """Facts about the engine from its last answer. api_version: the lower of its version and ours."""

    api_version: tuple[int, int] = API_VERSION_MIN
    server: str = "Docker (linux)"
    builder: str = ""
    experimental: str = "false"


class EngineClient:
    """A client of one engine. Use it in one event loop and close it at the end.

    host: ``unix:///run/docker.sock`` or ``tcp://host:port``; with ``ssl_context`` the latter uses TLS. Methods raise
    EngineError (the engine refused) or EngineUnavailable (it could not be reached). Raises ValueError for an invalid
    ``host``.
    """

    def __init__(self, host: str, ssl_context: SSLContext | None = None) -> None:
        self.host = host
        scheme, _, rest = host.partition("://")
        if scheme not in ("unix", "tcp") or not rest:
            raise ValueError(f"engine address {host!r} is neither unix:///path nor tcp://host:port")
        self.local = scheme == "unix"
        self._path = rest if self.local else ""
        self._base = "http://engine" if self.local else f"{'https' if ssl_context else 'http'}://{rest.rstrip('/')}"
        self._ssl = ssl_context
        self._session: aiohttp.ClientSession | None = None
        self._version: tuple[int, int] | None = None
        self.seen = Seen()
        self._gate = asyncio.Semaphore(defaults.ENGINE_CALLS_MAX)

    async def close(self) -> None:
        """Close all connections; running calls fail."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- any call --------------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = defaults.ENGINE_CALL_TIMEOUT_S,
        api_version: tuple[int, ...] | None = None,
    ) -> Answer:
        """One call and its complete answer. ``path`` has no version. Long calls (with their own limit) are not queued.

        api_version: use this version, which a client asked for, instead of the newest.
        """
        ordinary = timeout_s is not None and timeout_s <= defaults.ENGINE_CALL_TIMEOUT_S
        async with self._gate if ordinary else nullcontext():
            limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=defaults.ENGINE_CONNECT_TIMEOUT_S)
            response = await self._open(method, path, params, json, data, headers, limit, api_version)
            with self._translated(path):
                return Answer(response.status, await response.read())

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float | None = None,
        api_version: tuple[int, ...] | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A call whose answer is read as it arrives. The context is entered when the engine has accepted the call.

        silence_s: give up when nothing arrives for this long; None: never. api_version: as in request().
        """
        limit = aiohttp.ClientTimeout(total=None, sock_connect=defaults.ENGINE_CONNECT_TIMEOUT_S, sock_read=silence_s)
        response = await self._open(method, path, params, None, None, headers, limit, api_version)
        try:
            yield self._chunks(response, path)
        finally:
            response.close()

    async def _chunks(self, response: aiohttp.ClientResponse, path: str) -> AsyncIterator[bytes]:
        with self._translated(path):
            async for chunk in response.content.iter_any():
                yield chunk

    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        json: Any,
        data: bytes | None,
        headers: Mapping[str, str] | None,
        limit: aiohttp.ClientTimeout,
        api_version: tuple[int, ...] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of a successful answer. A dead connection is replaced once."""
        sent = dict(headers or {})
        if json is not None:
            data = msgspec.json.encode(json)
            sent["Content-Type"] = "application/json"
        for attempt in (1, 2):
            version = await self.api_version()
            url = f"/v{'.'.join(map(str, api_version or version))}{path}"
            try:
                response = await self._send(method, url, params, data, sent, limit)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                self._version = None
                if attempt == 2 or isinstance(error, aiohttp.ClientConnectorError):
                    raise self._unavailable(error) from None
                continue
            except (aiohttp.ClientError, TimeoutError) as error:
                raise self._unavailable(error, path) from None
            if self._agree(response) == version or response.status != 400:
                break
            response.release()  # another engine answered, which does not support that version
        if response.status >= 300 and response.status != 304:
            with self._translated(path):
                raise EngineError(response.status, _error_text(response.reason or "", await response.read()))
        return response

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        headers: Mapping[str, str],
        limit: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self.local:
                connector = aiohttp.UnixConnector(self._path, limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl or True)
            self._session = aiohttp.ClientSession(connector=connector)
        query = f"?{urlencode(params)}" if params else ""
        url = URL(f"{self._base}{path}{query}", encoded=True)
        return await self._session.request(
            method, url, data=data, headers=headers, timeout=limit, allow_redirects=False
        )

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Raise connection errors during the reading of an answer as EngineUnavailable."""
        try:
            yield
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._version = None
            raise self._unavailable(error, path) from None

    def _unavailable(self, error: BaseException, path: str = "") -> EngineUnavailable:
        if isinstance(error, aiohttp.ClientConnectorError):
            cause = error.os_error.strerror or str(error.os_error)
            refused = isinstance(error.os_error, ConnectionRefusedError | FileNotFoundError)
            text = f"cannot connect to the Docker Engine at {self.host}: {cause}. Is it running?"
            return EngineUnavailable(text, refused)
        if isinstance(error, TimeoutError):
            return EngineUnavailable(f"the Docker Engine at {self.host} did not answer {path} in time")
        return EngineUnavailable(f"lost the connection to the Docker Engine at {self.host}: {error}")

    # --- system ----------------------------------------------------------------------------------------------------

    async def api_version(self) -> tuple[int, int]:
        """The version in use: the newest that both sides support."""
        if self._version is None:
            limit = aiohttp.ClientTimeout(
                total=defaults.ENGINE_CALL_TIMEOUT_S, sock_connect=defaults.ENGINE_CONNECT_TIMEOUT_S
            )
            try:
                response = await self._send("GET", "/_ping", None, None, {}, limit)
                body = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._unavailable(error, "/_ping") from None
            if response.status != 200:
                raise EngineUnavailable(f"the Docker Engine at {self.host} reports an error: {_error_text('', body)}")
            builder = response.headers.get("Builder-Version", "")
            experimental = response.headers.get("Docker-Experimental", "false")
            self.seen = replace(self.seen, builder=builder, experimental=experimental)
            return self._agree(response)
        return self._version

    def _agree(self, response: aiohttp.ClientResponse) -> tuple[int, int]:
        """The version to use from now on; every answer of an engine names the version that it supports."""
        offered = _version(response.headers.get("Api-Version", ""))
        if offered < API_VERSION_MIN:
            response.release()
            theirs, ours = ".".join(map(str, offered)), ".".join(map(str, API_VERSION_MIN))
            raise EngineUnavailable(
                f"the Docker Engine at {self.host} supports API version {theirs}, but at least {ours} is required"
            )
        self._version = min(offered, API_VERSION_MAX)
        server = response.headers.get("Server", self.seen.server)
        if (self._version, server) != (self.seen.api_version, self.seen.server):
            self.seen = replace(self.seen, api_version=self._version, server=server)
        return self._version

    async def ping(self) -> None:
        """Check that the engine answers. Raises EngineError, EngineUnavailable."""
        self._version = None
        await self.api_version()

    async def info(self) -> Json:
        """GET /info."""
        return await self._get("/info")

    async def version(self) -> Json:
        """GET /version."""
        return await self._get("/version")

    async def plugins(self) -> list[Json]:
        """GET /plugins: managed plugins, enabled or not."""
        return await self._list("/plugins")

    @asynccontextmanager
    async def events(self, filters: Filters, since: str = "") -> AsyncIterator[AsyncIterator[Json]]:
        """GET /events as they happen, until the engine ends. since: seconds since the epoch, as decimal text."""
        params = {"filters": _filters(filters)}
        if since:
            params["since"] = since
        async with self.stream("GET", "/events", params=params) as chunks:
            yield _json_lines(chunks)

    # --- containers ------------------------------------------------------------------------------------------------

    async def create_container(self, name: str, body: Json) -> str:
        """Create a container and return its ID. EngineError 409: the name is in use; 404: the image is missing."""
        answer = await self.request(
            "POST",
            "/containers/create",
            params={"name": name},
            json=body,
            timeout_s=defaults.ENGINE_CREATE_TIMEOUT_S,
        )
        return str(answer.json()["Id"])

    async def start_container(self, container: str) -> None:
        """Start a container; succeeds if it already runs."""
        path = f"/containers/{_quote(container)}/start"
        await self.request("POST", path, timeout_s=defaults.ENGINE_CREATE_TIMEOUT_S)

    async def stop_container(self, container: str, grace_s: int | None = None) -> None:
        """Stop a container and wait for its end; succeeds if it does not run. None: its own grace period."""
        wait_s = defaults.STOP_GRACE_PERIOD_S if grace_s is None else grace_s
        await self.request(
            "POST",
            f"/containers/{_quote(container)}/stop",
            params={} if grace_s is None else {"t": str(grace_s)},
            timeout_s=None if wait_s < 0 else wait_s + defaults.ENGINE_STOP_MARGIN_S,
        )

    async def kill_container(self, container: str, signal: str = "SIGKILL") -> None:
        """Send a signal to a container; EngineError 409 when it does not run."""
        await self.request("POST", f"/containers/{_quote(container)}/kill", params={"signal": signal})

    async def remove_container(self, container: str, *, force: bool = False, volumes: bool = False) -> None:
        """Delete a container. force: even while it runs. volumes: with its anonymous volumes."""
        flags = {"force": str(int(force)), "v": str(int(volumes))}
        path = f"/containers/{_quote(container)}"
        await self.request("DELETE", path, params=flags, timeout_s=defaults.ENGINE_CREATE_TIMEOUT_S)

    async def inspect_container(self, container: str) -> Json:
        """GET /containers/{id}/json."""
        return await self._get(f"/containers/{_quote(container)}/json")

    async def list_containers(self, filters: Filters, *, stopped: bool = True) -> list[Json]:
        """The containers that match; by default including those that do not run."""
        return await self._list("/containers/json", {"all": str(int(stopped)), "filters": _filters(filters)})

    async def wait_container(
        self, container: str, condition: str = "not-running", timeout_s: float | None = None
    ) -> int:
        """Wait for the end of a container and return its exit code."""
        path = f"/containers/{_quote(container)}/wait"
        answer = await self.request("POST", path, params={"condition": condition}, timeout_s=timeout_s)
        return int(answer.json()["StatusCode"])

    async def rename_container(self, container: str, name: str) -> None:
        """Rename a container."""
        await self.request("POST", f"/containers/{_quote(container)}/rename", params={"name": name})

    @asynccontextmanager
    async def logs(self, container: str, params: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """A container's output as the engine sends it: frames, or raw bytes if the container has a terminal."""
        async with self.stream("GET", f"/containers/{_quote(container)}/logs", params=params) as chunks:
            yield chunks

    async def put_archive(self, container: str, directory: str, archive: bytes) -> None:
        """Unpack a tar archive into a directory of a container."""
        await self.request(
            "PUT",
            f"/containers/{_quote(container)}/archive",
            params={"path": directory},
            data=archive,
            headers={"Content-Type": "application/x-tar"},
            timeout_s=defaults.ENGINE_CREATE_TIMEOUT_S,
        )

    # --- images ----------------------------------------------------------------------------------------------------

    async def inspect_image(self, reference: str) -> Json:
        """GET /images/{name}/json; EngineError 404 when the image is not present."""
        return await self._get(f"/images/{quote(reference, safe='/:@')}/json")

    async def pull_image(self, reference: str, registry_auth: str = "") -> None:
        """Pull one image; ``reference`` has a tag or digest, registry_auth is an X-Registry-Auth value.

        Errors inside the progress stream are raised as EngineError 500 with the registry's text.
        """
        headers = {"X-Registry-Auth": registry_auth} if registry_auth else {}
        call = self.stream(
            "POST",
            "/images/create",
            params={"fromImage": reference},
            headers=headers,
            silence_s=defaults.ENGINE_PULL_SILENCE_S,
        )
        failure = ""
        async with call as chunks:
            async for progress in _json_lines(chunks):
                failure = str(progress.get("error") or failure)
        if failure:
            raise EngineError(500, failure)

    # --- networks and volumes --------------------------------------------------------------------------------------

    async def list_networks(self, filters: Filters) -> list[Json]:
        """The networks that match."""
        return await self._list("/networks", {"filters": _filters(filters)})

    async def inspect_network(self, network: str) -> Json:
        """GET /networks/{id}."""
        return await self._get(f"/networks/{_quote(network)}")

    async def create_network(self, body: Json) -> str:
        """Create a network and return its ID."""
        answer = await self.request("POST", "/networks/create", json=body)
        return str(answer.json()["Id"])

    async def remove_network(self, network: str) -> None:
        """Delete a network; EngineError 403 while containers use it."""
        await self.request("DELETE", f"/networks/{_quote(network)}")

    async def connect_network(self, network: str, body: Json) -> None:
        """Attach a container: ``{"Container": id, "EndpointConfig": {...}}``."""
        await self.request("POST", f"/networks/{_quote(network)}/connect", json=body)

    async def disconnect_network(self, network: str, container: str, *, force: bool = False) -> None:
        """Detach a container."""
        body = {"Container": container, "Force": force}
        await self.request("POST", f"/networks/{_quote(network)}/disconnect", json=body)

    async def create_volume(self, body: Json) -> Json:
        """Create a named volume. An existing one with the same driver is returned unchanged."""
        answer = await self.request("POST", "/volumes/create", json=body, timeout_s=defaults.ENGINE_CREATE_TIMEOUT_S)
        created: Json = answer.json()
        return created

    async def remove_volume(self, name: str, *, force: bool = False) -> None:
        """Delete a volume; EngineError 409 while containers use it."""
        await self.request("DELETE", f"/volumes/{_quote(name)}", params={"force": str(int(force))})

    async def _get(self, path: str, params: Mapping[str, str] | None = None) -> Json:
        answer = (await self.request("GET", path, params=params)).json()
        if not isinstance(answer, dict):
            raise EngineError(502, f"the engine's answer to {path} is not an object")
        return answer

    async def _list(self, path: str, params: Mapping[str, str] | None = None) -> list[Json]:
        answer = (await self.request("GET", path, params=params)).json()
        return answer if isinstance(answer, list) else []


def _quote(name: str) -> str:
    return quote(name, safe="")


def _filters(filters: Filters) -> str:
    return msgspec.json.encode({name: list(values) for name, values in filters.items()}).decode()


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _error_text(reason: str, body: bytes) -> str:
    """The engine's error text: from ``{"message": ...}``, or else whatever it sent."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])["message"].strip()  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, KeyError, AttributeError):
        return body.decode(errors="replace").strip() or reason or "unknown error"


async def _json_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[Json]:
    """The objects of a stream with one JSON object per line."""
    pending = b""
    async for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > defaults.ENGINE_LINE_BYTES_MAX:
            raise EngineError(502, "a line of the engine's answer is too long")
        for line in lines:
            if line.strip():
                yield _json_object(line)
    if pending.strip():
        yield _json_object(pending)


def _json_object(line: bytes) -> Json:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise EngineError(502, f"the engine's answer is not JSON: {error}") from None
