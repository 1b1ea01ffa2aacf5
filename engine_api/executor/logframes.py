"""Parses the engine's log stream into log messages. Pure: no I/O.

The engine sends a frame for each line: its stream, its length, then timestamp, details and text, separated by blanks.
A container with a terminal has no frames, only lines, and all of them are standard output.

(moby: api/pkg/stdcopy, daemon/server/httputils/write_log_stream.go)
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote_plus

from engine_api.engine.errors import EngineError
from swarm import api, defaults

_HEADER_BYTES = 8
_SYSTEM_ERROR = 3
_STREAMS = {1: api.LOG_STREAM_STDOUT, 2: api.LOG_STREAM_STDERR}
_PREFIX = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z ([^ ]*) ")


class LogParser:
    """Turns chunks of one container's log into complete messages. context: is added to each of them."""

    def __init__(self, context: api.LogContext, tty: bool) -> None:
        self._context = context
        self._split = self._lines if tty else self._frames
        self._pending = b""

    def feed(self, chunk: bytes) -> Iterator[api.LogMessage]:
        """The messages that this chunk completes. Raises EngineError for malformed input."""
        self._pending += chunk
        for stream, line in self._split():
            yield self._message(stream, line)

    def finish(self) -> Iterator[api.LogMessage]:
        """The rest at the end of the stream: with a terminal, a last line without a line end."""
        rest, self._pending = self._pending, b""
        if rest and self._split == self._lines:
            yield self._message(1, rest)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        *lines, self._pending = self._pending.split(b"\n")
        if len(self._pending) > defaults.LOG_LINE_BYTES_MAX:
            lines, self._pending = [*lines, self._pending[:-1]], self._pending[-1:]
        for line in lines:
            yield 1, line + b"\n"

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        data, position = self._pending, 0
        while len(data) - position >= _HEADER_BYTES:
            stream = data[position]
            length = int.from_bytes(data[position + 4 : position + _HEADER_BYTES], "big")
            if stream > _SYSTEM_ERROR or length > defaults.LOG_LINE_BYTES_MAX:
                raise EngineError(502, "the engine's log stream is malformed")
            end = position + _HEADER_BYTES + length
            if len(data) < end:
                break
            line = data[position + _HEADER_BYTES : end]
            if stream == _SYSTEM_ERROR:
                raise EngineError(500, line.decode(errors="replace").strip())
            yield stream, line
            position = end
        self._pending = data[position:]

    def _message(self, stream: int, line: bytes) -> api.LogMessage:
        message = api.LogMessage(context=self._context, stream=_STREAMS.get(stream, api.LOG_STREAM_STDOUT))
        prefix = _PREFIX.match(line)
        if prefix is None:
            message.data = line
            return message
        message.timestamp.seconds = _epoch(prefix[1])
        message.timestamp.nanos = int(prefix[2])
        for pair in prefix[3].decode(errors="replace").split(",") if prefix[3] else ():
            key, _, value = pair.partition("=")
            message.attrs.add(key=unquote_plus(key), value=unquote_plus(value))
        message.data = line[prefix.end() :]
        return message


@lru_cache(maxsize=1024)
def _epoch(text: bytes) -> int:
    """Seconds since the epoch of ``2006-01-02T15:04:05`` in UTC; 0 for a date that does not exist."""
    year, month, day, hour, minute, second = map(int, re.split(rb"[-T:]", text))
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return 0
    return calendar.timegm((year, month, day, hour, minute, second))


def query(options: api.LogSubscriptionOptions) -> dict[str, str]:
    """Parameters of GET /containers/{id}/logs. Raises EngineError 400 for options that the engine does not support."""
    streams = options.streams or (api.LOG_STREAM_STDOUT, api.LOG_STREAM_STDERR)
    params = {
        "stdout": str(int(api.LOG_STREAM_STDOUT in streams)),
        "stderr": str(int(api.LOG_STREAM_STDERR in streams)),
        "follow": str(int(options.follow)),
        "timestamps": "1",
        "details": "1",
    }
    if options.tail > 0:
        raise EngineError(400, "tail relative to start of logs not supported via docker API")
    if options.tail < 0:
        params["tail"] = str(-options.tail - 1)
    if options.HasField("since"):
        params["since"] = f"{options.since.seconds}.{options.since.nanos:09d}"
    return params
