"""GET /events: merges the engine's events and the swarm's into one stream.

The engine first sends past events and then, without a separator, new ones. The swarm's past events are merged into the
engine's by time. The rest of them is sent when the engine has been quiet for a moment, when its stream ends, or when
there is a new event of the swarm.

(moby: daemon/server/router/system, getEvents; daemon/events)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from aiohttp import web

from engine_api.convert.events import Event, EventFilter, swarm_events
from engine_api.convert.gojson import JsonError
from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.errors import ApiError, ServiceUnavailable
from engine_api.server.decode import filter_values
from engine_api.server.request import ApiRequest, encode
from swarm.store.store import Change

EVENTS_KEPT = 256  # as engines keep
EVENTS_WAITING_MAX = 4096
HISTORY_QUIET_S = 0.2
_NANO = 1_000_000_000


class Events:
    """The recent events of the swarm, and its listeners."""

    def __init__(self, engine: EngineClient, now: Callable[[], float]) -> None:
        self._engine = engine
        self._now = now
        self._kept: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._listeners: dict[asyncio.Queue[Event | None], None] = {}
        self._stopped = False

    def publish(self, changes: Sequence[Change]) -> None:
        """The store has changed: send events to all listeners. A listener that is too slow is cut off."""
        for event in swarm_events(changes, self._now()):
            self._kept.append(event)
            for queue in list(self._listeners):
                try:
                    queue.put_nowait(event)
                except asyncio.QueueFull:
                    self._end(queue)

    def stop(self) -> None:
        """End all streams; from now on, new ones end at once."""
        self._stopped = True
        for queue in list(self._listeners):
            self._end(queue)

    def _end(self, queue: asyncio.Queue[Event | None]) -> None:
        del self._listeners[queue]
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)

    async def stream(self, request: ApiRequest) -> web.StreamResponse:
        """GET /events. Raises ApiError."""
        query = dict(request.http.query)
        since, until = _nanoseconds(query.get("since", "")), _nanoseconds(query.get("until", ""))
        wanted = EventFilter(_filters(query.get("filters", "")))
        past: list[Event] = []
        if since is not None or until is not None:
            past = [event for event in self._kept if wanted.wants(event) and _between(event, since, until)]
        queue: asyncio.Queue[Event | None] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._listeners[queue] = None
        if self._stopped:
            self._end(queue)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            async with self._engine.stream("GET", "/events", params=query, api_version=request.version) as chunks:
                await response.prepare(request.http)
                await _Merge(response, past, wanted, until).run(chunks, queue)
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


class _Merge:
    """One stream that is being written."""

    def __init__(self, response: web.StreamResponse, past: list[Event], wanted: EventFilter, until: int | None) -> None:
        self._response = response
        self._past = deque(sorted(past, key=_time))
        self._wanted = wanted
        self._until = until
        self._lock = asyncio.Lock()

    async def run(self, chunks: AsyncIterator[bytes], queue: asyncio.Queue[Event | None]) -> None:
        """Run until the engine's stream ends, ours ends, or the reader disconnects."""
        parts = [self._theirs(chunks), self._ours(queue)]
        tasks = [asyncio.ensure_future(part) for part in parts]
        quiet = asyncio.ensure_future(self._quiet())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await self._rest_of_past()
        except ConnectionError:
            return
        finally:
            for task in (*tasks, quiet):
                task.cancel()
            await asyncio.gather(*tasks, quiet, return_exceptions=True)

    async def _quiet(self) -> None:
        await asyncio.sleep(HISTORY_QUIET_S)
        with contextlib.suppress(ConnectionError):
            await self._rest_of_past()

    async def _rest_of_past(self) -> None:
        async with self._lock:
            data = b"".join(encode(event) + b"\n" for event in self._past)
            self._past.clear()
            if data:
                await self._response.write(data)

    async def _ours(self, queue: asyncio.Queue[Event | None]) -> None:
        while (event := await queue.get()) is not None:
            if self._wanted.wants(event) and (self._until is None or _time(event) <= self._until):
                await self._rest_of_past()
                async with self._lock:
                    await self._response.write(encode(event) + b"\n")

    async def _theirs(self, chunks: AsyncIterator[bytes]) -> None:
        rest = b""
        async for chunk in chunks:
            lines, separator, rest = (rest + chunk).rpartition(b"\n")
            if separator:
                async with self._lock:
                    await self._response.write(self._mixed(lines + separator))

    def _mixed(self, lines: bytes) -> bytes:
        """Whole lines of the engine, merged with our past events that happened before them."""
        if not self._past:
            return lines
        out = bytearray()
        for line in lines.splitlines(keepends=True):
            moment = _time_of_line(line)
            while self._past and _time(self._past[0]) < moment:
                out += encode(self._past.popleft()) + b"\n"
            out += line
        return bytes(out)


def _time(event: Event) -> int:
    moment: int = event["timeNano"]
    return moment


def _time_of_line(line: bytes) -> int:
    """The time of one of the engine's events; 0 when the line is not an event."""
    try:
        return int(json.loads(line)["timeNano"])
    except (ValueError, TypeError, KeyError):
        return 0


def _filters(text: str) -> Mapping[str, Sequence[str]]:
    """The filters of a request. The engine refuses invalid ones before any event of ours is sent."""
    try:
        return filter_values(text)
    except JsonError:
        return {}


def _nanoseconds(text: str) -> int | None:
    """A since or until of the query, "seconds[.fraction]"; None: not given, or invalid, which the engine refuses."""
    seconds, _, fraction = text.partition(".")
    if not seconds.isdecimal() or (fraction and not fraction.isdecimal()):
        return None
    return int(seconds[:12]) * _NANO + int(fraction[:9].ljust(9, "0") or "0")


def _between(event: Event, since: int | None, until: int | None) -> bool:
    at = _time(event)
    return (since is None or at >= since) and (until is None or at <= until)
