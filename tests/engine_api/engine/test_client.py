"""The engine client against an engine in the same process, and against one that is not well."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from tests.engine_api.fake_engine import FakeEngine


@pytest.mark.parametrize("host", ["", "docker.sock", "http://h:2375", "unix://"])
def test_an_invalid_address_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="neither unix"):
        EngineClient(host)


@pytest.mark.parametrize(
    ("theirs", "agreed"), [("1.41", (1, 41)), ("1.48", (1, 48)), ("1.55", (1, 51)), ("2.0", (1, 51))]
)
async def test_the_newest_version_that_both_speak_is_used(
    engine: FakeEngine, client: EngineClient, theirs: str, agreed: tuple[int, int]
) -> None:
    engine.api_version = theirs
    assert await client.api_version() == agreed


@pytest.mark.parametrize("theirs", ["1.24", "", "new"])
async def test_an_engine_that_is_too_old_is_unavailable(engine: FakeEngine, client: EngineClient, theirs: str) -> None:
    engine.api_version = theirs
    with pytest.raises(EngineUnavailable, match=r"at least 1\.41 is required"):
        await client.info()


async def test_errors_carry_status_and_text_of_the_engine(engine: FakeEngine, client: EngineClient) -> None:
    with pytest.raises(EngineError) as caught:
        await client.inspect_container("web")
    assert (caught.value.status, str(caught.value)) == (404, "No such container: web")
    with pytest.raises(EngineError) as caught:
        await client.request("GET", "/nonsense")
    assert (caught.value.status, str(caught.value)) == (404, "404: Not Found")


async def test_an_engine_that_does_not_run_is_named(tmp_path: Path) -> None:
    client = EngineClient(f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineUnavailable, match=r"none\.sock: No such file or directory\. Is it running\?"):
        await client.ping()
    await client.close()


@pytest.mark.parametrize("version", ["1.47", "1.41"])
async def test_an_engine_restarted_with_another_version_is_found_again(
    engine: FakeEngine, client: EngineClient, version: str
) -> None:
    engine.api_version = "1.44"
    await client.info()
    await engine.stop()
    engine.api_version, engine.strict = version, True
    await engine.start()
    await client.create_volume({"Name": "v"})
    assert await client.api_version() == tuple(map(int, version.split(".")))


async def test_a_call_without_an_answer_ends(engine: FakeEngine, client: EngineClient) -> None:
    engine.pull_gate = asyncio.Event()
    with pytest.raises(EngineUnavailable, match="did not answer /images/create in time"):
        await client.request("POST", "/images/create", params={"fromImage": "x:1"}, timeout_s=0.01)
    engine.pull_gate.set()


async def test_an_answer_that_is_not_json_is_an_error(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK")
        writer.close()

    server = await asyncio.start_unix_server(talk, tmp_path / "odd.sock")
    client = EngineClient(f"unix://{tmp_path}/odd.sock")
    with pytest.raises(EngineError, match="not JSON"):
        await client.info()
    await client.close()
    server.close()
    await server.wait_closed()


async def test_an_engine_that_hangs_up_is_tried_once_more_and_then_unavailable(tmp_path: Path) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/_ping" in request:
            writer.write(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nConnection: close\r\nContent-Length: 2\r\n\r\nOK")
        writer.close()

    server = await asyncio.start_unix_server(talk, tmp_path / "rude.sock")
    client = EngineClient(f"unix://{tmp_path}/rude.sock")
    with pytest.raises(EngineUnavailable, match="lost the connection"):
        await client.create_volume({"Name": "v"})
    assert connections == 4  # twice: agree on the version, then call
    await client.close()
    server.close()
    await server.wait_closed()


async def test_a_pull_reports_the_error_inside_its_progress(engine: FakeEngine, client: EngineClient) -> None:
    engine.pull_lines = [{"status": "Pulling"}, {"error": "denied", "errorDetail": {"message": "denied"}}]
    with pytest.raises(EngineError, match="denied"):
        await client.pull_image("x/y:1", "c2VjcmV0")
    assert engine.headers[-1]["X-Registry-Auth"] == "c2VjcmV0"
    engine.pull_lines = [{"status": "Downloaded"}]
    await client.pull_image("x/y:1")
    assert "X-Registry-Auth" not in engine.headers[-1]


async def test_events_come_one_by_one_however_they_are_cut(engine: FakeEngine, client: EngineClient) -> None:
    engine.add_container("web", {"Labels": {}})
    async with client.events({"type": ["container"]}, since="1.5") as events:
        engine.tell("web", "start", long="x" * 200_000)
        engine.exit("web", 3)
        engine.lose_events()
        seen = [(event["Action"], event["Actor"]["Attributes"].get("exitCode")) async for event in events]
    assert seen == [("start", None), ("die", "3")]
