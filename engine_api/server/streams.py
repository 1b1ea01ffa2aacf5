"""Logs of services and tasks as a stream: frames for pipes, raw bytes for terminals.

Everything that can be refused is refused before the first byte, because after it an error can only be sent as a frame
of the daemon itself (stream 3).

(moby: daemon/server/router/swarm/helpers.go, daemon/server/httputils/logstream)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import quote_plus

from aiohttp import web
from google.protobuf.message import Message

from engine_api.errors import ApiError
from engine_api.server.request import ApiRequest
from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import SwarmError

M = TypeVar("M", bound=Message)

BARE_KEY: web.ResponseKey[bool] = web.ResponseKey("bare", bool)
"""Set on a response that must go out without Content-Type, as the older engines send logs."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SYSTEM_STREAM = 3
_STREAMS = {api.LOG_STREAM_STDOUT: 1, api.LOG_STREAM_STDERR: 2}
_CONTEXT = "com.docker.swarm"
_SINCE = re.compile(r"(-?\d+)(?:\.(\d*))?")


@dataclass(frozen=True)
class LogOptions:
    """What a log request asks for: the subscription at the cluster, and the format of the lines."""

    subscription: api.LogSubscriptionOptions
    timestamps: bool
    details: bool


def log_options(request: ApiRequest) -> LogOptions:
    """The query of a log request. Raises ApiError."""
    stdout, stderr = request.flag("stdout"), request.flag("stderr")
    if not stdout and not stderr:
        status, text = request.dialect.no_stream
        raise ApiError(text, status)
    options = api.LogSubscriptionOptions(follow=request.flag("follow"), tail=_tail(request.query("tail")))
    if stdout:
        options.streams.append(api.LOG_STREAM_STDOUT)
    if stderr:
        options.streams.append(api.LOG_STREAM_STDERR)
    _set_since(options, request)
    return LogOptions(options, timestamps=request.flag("timestamps"), details=request.flag("details"))


def _tail(text: str) -> int:
    """SwarmKit's count: 0 is everything, -(n+1) the last n lines of each task."""
    if text in ("", "all"):
        return 0
    if not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise ApiError('tail value must be a positive integer or "all"')
    lines = int(text)
    if lines < 0:
        raise ApiError("negative tail values not supported")
    return -(lines + 1)


def _set_since(options: api.LogSubscriptionOptions, request: ApiRequest) -> None:
    """Unix seconds with an optional fraction; 0 means no limit."""
    text = request.query("since")
    if not text:
        return
    match = _SINCE.fullmatch(text)
    if match is None or len(match[1]) > 12:
        status, template = request.dialect.bad_since
        seconds = text.partition(".")[0]
        raise ApiError(template % ((text, seconds) if template.count("%s") == 2 else seconds), status)
    options.since.seconds = int(match[1])
    options.since.nanos = int((match[2] or "")[:9].ljust(9, "0"))


async def answer_logs(
    request: ApiRequest, options: LogOptions, selector: api.LogSelector, task: api.TaskSpec
) -> web.StreamResponse:
    """Stream the logs of the selected tasks. task: their spec, which says if they have a terminal. Raises ApiError."""
    if task.WhichOneof("runtime") != "container":
        raise ApiError("error making log selector: logs only supported on container tasks")
    request.backend.require_manager()
    framed = not task.container.tty
    response = web.StreamResponse(headers=_content_type(request, framed))
    response[BARE_KEY] = not request.dialect.log_content_types
    response.enable_chunked_encoding()
    await response.prepare(request.http)
    messages = request.backend.stream(
        rpc.SUBSCRIBE_LOGS, api.SubscribeLogsRequest(selector=selector, options=options.subscription)
    )
    try:
        async for batch in _until_gone(messages, request.http):
            data = b"".join(_line(message, options, framed) for message in batch.messages)
            if data:
                await response.write(data)
    except (ApiError, SwarmError) as error:
        text = error.message if isinstance(error, ApiError) else error.rpc_text
        payload = f"Error grabbing logs: {text}\n".encode()
        await _write_if_open(response, _frame(_SYSTEM_STREAM, payload) if framed else payload)
    except ConnectionError:
        return response
    await _write_if_open(response, b"", last=True)
    return response


def _content_type(request: ApiRequest, framed: bool) -> dict[str, str]:
    if not request.dialect.log_content_types:
        return {}
    kind = "multiplexed" if framed and request.version >= (1, 42) else "raw"
    return {"Content-Type": f"application/vnd.docker.{kind}-stream"}


async def _write_if_open(response: web.StreamResponse, data: bytes, last: bool = False) -> None:
    try:
        await (response.write_eof() if last else response.write(data))
    except ConnectionError:
        return


async def _until_gone(messages: AsyncIterator[M], http: web.Request) -> AsyncIterator[M]:
    """The messages until they end or the reader is gone, which on a quiet stream only the connection can tell."""
    pending: asyncio.Future[M] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.ensure_future(anext(messages))
            await asyncio.wait([pending], timeout=defaults.API_DISCONNECT_POLL_S)
            if pending.done():
                done, pending = pending, None
                try:
                    yield done.result()
                except StopAsyncIteration:
                    return
            elif http.transport is None or http.transport.is_closing():
                return
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        close = getattr(messages, "aclose", None)
        if close is not None:
            await close()


def _frame(stream: int, payload: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def _line(message: api.LogMessage, options: LogOptions, framed: bool) -> bytes:
    """One line as it is sent; empty for a line that belongs to no stream."""
    stream = _STREAMS.get(message.stream)
    if stream is None:
        return b""
    head = _timestamp(message) + b" " if options.timestamps else b""
    if options.details:
        head += _details(message) + b" "
    payload = head + message.data
    return _frame(stream, payload) if framed else payload


def _timestamp(message: api.LogMessage) -> bytes:
    """RFC 3339 with exactly nine decimal places."""
    moment = _EPOCH + timedelta(seconds=message.timestamp.seconds)
    return f"{moment.isoformat()[:19]}.{message.timestamp.nanos:09d}Z".encode()


def _details(message: api.LogMessage) -> bytes:
    """Attributes sorted by key, escaped as in a query; the context of a line overrides attributes of the same name."""
    details = {attribute.key: attribute.value for attribute in message.attrs}
    details[f"{_CONTEXT}.node.id"] = message.context.node_id
    details[f"{_CONTEXT}.service.id"] = message.context.service_id
    details[f"{_CONTEXT}.task.id"] = message.context.task_id
    return ",".join(f"{quote_plus(key)}={quote_plus(details[key])}" for key in sorted(details)).encode()
