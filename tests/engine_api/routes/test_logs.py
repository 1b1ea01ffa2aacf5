"""Log streams, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from swarm import api
from swarm.errors import SwarmError

LOGS = Path(__file__).parents[2] / "golden/stock-20.10/logs"
_CONTEXT = api.LogContext(
    service_id="m7vlfet3q2ubh985me3rxm9kh", node_id="5mrhki644jwyu57wrbmzqqfe6", task_id="ngyl7euy4lxudsc7b189m35km"
)


def _line(text: str, stream: int = api.LOG_STREAM_STDOUT, **attributes: str) -> api.SubscribeLogsMessage:
    message = api.LogMessage(context=_CONTEXT, stream=stream, data=text.encode())  # type: ignore[arg-type]
    message.timestamp.seconds, message.timestamp.nanos = 1_795_359_358, 348_178_420
    message.attrs.extend(api.LogAttr(key=key, value=value) for key, value in attributes.items())
    return api.SubscribeLogsMessage(messages=[message])


async def _read(client: Any, path: str) -> bytes:
    async with client.get(path) as answer:
        assert answer.status == 200
        return bytes(await answer.read())


async def test_lines_are_framed_as_recorded(backend: Any, start: Any) -> None:
    client = await start(backend)
    backend.log = [_line(f"line {n}\n") for n in (2, 3, 4)]
    assert await _read(client, "/v1.41/services/min/logs?stdout=1") == (LOGS / "service_raw.bin").read_bytes()
    backend.log = [_line("err1\n", api.LOG_STREAM_STDERR)]
    assert await _read(client, "/v1.41/services/min/logs?stderr=1") == (LOGS / "service_stderr.bin").read_bytes()


async def test_details_and_timestamps_are_as_recorded(backend: Any, start: Any) -> None:
    client = await start(backend)
    backend.log = [_line("line 2\n", FOO="bar", app="x")]
    found = await _read(client, "/v1.41/services/min/logs?stdout=1&details=1")
    assert (LOGS / "service_details.bin").read_bytes().startswith(found)
    found = await _read(client, "/v1.41/services/min/logs?stdout=1&details=1&timestamps=1")
    recorded = (LOGS / "service_timestamps.bin").read_bytes()
    assert recorded[:38] == found[:38]
    assert recorded[38:].startswith(found[38:])


async def test_where_a_line_comes_from_cannot_be_forged_and_details_are_escaped(backend: Any, start: Any) -> None:
    labels: dict[str, Any] = {"com.docker.swarm.node.id": "forged", "a b": "c=d,e"}
    backend.log = [_line("x\n", **labels)]
    found = await _read(await start(backend), "/v1.41/services/min/logs?stdout=1&details=1")
    assert b"forged" not in found
    assert b"a+b=c%3Dd%2Ce,com.docker.swarm.node.id=5mrhki644jwyu57wrbmzqqfe6," in found


async def test_a_terminal_has_no_frames(backend: Any, start: Any) -> None:
    service = next(service for service in backend.store.all(api.Service) if service.spec.annotations.name == "min")
    service.spec.task.container.tty = True
    backend.log = [_line("tty out\r\n")]
    client = await start(backend)
    assert await _read(client, "/v1.41/services/min/logs?stdout=1") == b"tty out\r\n"
    assert (await _read(client, "/v1.41/services/min/logs?stdout=1&details=1")).endswith(b" tty out\r\n")


async def test_the_query_becomes_a_subscription(backend: Any, start: Any) -> None:
    client = await start(backend)
    path = "/v1.41/services/min/logs?stdout=True&stderr=True&follow=False&tail=3&since=1795359355.5"
    assert await _read(client, path) == b""
    request = backend.subscriptions[-1]
    assert list(request.selector.service_ids) == ["lhzesbr93dtlxikk7y8ts2dzb"]
    options = request.options
    assert list(options.streams) == [api.LOG_STREAM_STDOUT, api.LOG_STREAM_STDERR]
    assert (options.follow, options.tail) == (False, -4)
    assert (options.since.seconds, options.since.nanos) == (1_795_359_355, 500_000_000)
    for tail, count in (("all", 0), ("", 0), ("0", -1)):
        await _read(client, f"/v1.41/services/min/logs?stdout=1&tail={tail}&follow=1")
        assert backend.subscriptions[-1].options.tail == count
        assert backend.subscriptions[-1].options.follow


async def test_a_service_whose_task_never_ran_has_an_empty_stream(backend: Any, start: Any) -> None:
    assert await _read(await start(backend), "/v1.41/services/nonode/logs?stdout=1") == b""


async def test_an_error_after_the_start_is_a_frame_of_the_daemon(backend: Any, start: Any) -> None:
    backend.log = [_line("a\n"), SwarmError("warning: incomplete log stream")]
    found = await _read(await start(backend), "/v1.41/services/min/logs?stdout=1")
    text = b"Error grabbing logs: rpc error: code = Unknown desc = warning: incomplete log stream\n"
    assert found == b"\x01\0\0\0\0\0\0\x02a\n" + b"\x03\0\0\0" + len(text).to_bytes(4, "big") + text


async def test_older_engines_send_no_content_type_and_newer_ones_say_whether_there_are_frames(
    backend: Any, start: Any
) -> None:
    async with (await start(backend)).get("/v1.41/services/min/logs?stdout=1") as answer:
        assert "Content-Type" not in answer.headers
        assert answer.headers["Transfer-Encoding"] == "chunked"
    client = await start(backend, "1.52")
    for version, kind in (("1.52", "multiplexed"), ("1.41", "raw")):
        async with client.get(f"/v{version}/services/min/logs?stdout=1") as answer:
            assert answer.headers["Content-Type"] == f"application/vnd.docker.{kind}-stream"


async def test_logs_of_an_attachment_are_refused_before_the_stream(backend: Any, start: Any) -> None:
    task = api.Task(id="a" * 25)
    task.spec.attachment.container_id = "c"
    backend.put(task)
    async with (await start(backend)).get(f"/v1.41/tasks/{'a' * 25}/logs?stdout=1") as answer:
        assert answer.status == 500
        assert "logs only supported on container tasks" in await answer.text()


async def test_a_reader_that_goes_away_ends_a_quiet_stream(backend: Any, start: Any) -> None:
    closed = asyncio.Event()

    async def quiet(method: str, request: Message) -> AsyncIterator[Message]:
        try:
            yield _line("first\n")
            await asyncio.Event().wait()
        finally:
            closed.set()

    backend.stream = quiet
    client = await start(backend)
    answer = await client.get("/v1.41/services/min/logs?stdout=1&follow=1")
    assert await answer.content.readexactly(14) == b"\x01\0\0\0\0\0\0\x06first\n"
    answer.close()
    await asyncio.wait_for(closed.wait(), 10)
