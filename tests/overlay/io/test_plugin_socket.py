"""The engine's socket, with a real keeper: what the next daemon finds."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from overlay.errors import OverlayError
from overlay.io.keeper import Keeper
from overlay.io.plugin_socket import CONTENT_TYPE, PluginSocket
from overlay.plugin import network_options
from tests.overlay.test_plugin import WEB, Backend

CREATE = {"NetworkID": "n1", "Options": {"com.docker.network.generic": network_options(WEB)}}


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sw"))  # paths of sockets are short
    yield made
    Keeper(made / "keeper").drop("plugin")  # a keeper with nothing to keep ends
    shutil.rmtree(made)


def plugin_socket(directory: Path) -> PluginSocket:
    return PluginSocket(directory / "plugin.sock", directory / "state", Backend(), Keeper(directory / "keeper"))


async def call(directory: Path, path: str, body: bytes) -> tuple[int, str, Any]:
    connector = aiohttp.UnixConnector(str(directory / "plugin.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"http://plugin/{path}", data=body) as response,
    ):
        return response.status, response.headers["Content-Type"], json.loads(await response.read())


def test_calls_are_answered_in_the_form_of_dockers_plugins(directory: Path) -> None:
    async def run() -> None:
        served = plugin_socket(directory)
        await served.open()
        status, content_type, answer = await call(directory, "Plugin.Activate", b"")
        assert (status, content_type, answer["Implements"]) == (200, CONTENT_TYPE, ["NetworkDriver", "IpamDriver"])
        for path, body in (("NetworkDriver.Join", b"{"), ("NetworkDriver.Join", b"[]"), ("Nothing.Known", b"{}")):
            status, _, answer = await call(directory, path, body)
            assert status == 200
            assert answer["Err"]
        assert (directory / "plugin.sock").stat().st_mode & 0o077 == 0
        await served.close()

    asyncio.run(run())


def test_a_call_waits_for_the_next_daemon_while_the_engine_has_networks(directory: Path) -> None:
    async def run() -> None:
        first = plugin_socket(directory)
        await first.open()
        _, _, answer = await call(directory, "NetworkDriver.CreateNetwork", json.dumps(CREATE).encode())
        assert answer == {}
        await first.close()
        waiting = asyncio.create_task(call(directory, "Plugin.Activate", b"{}"))
        second = plugin_socket(directory)
        await second.open()
        assert (await waiting)[0] == 200
        assert second.plugin.networks == {"n1": WEB}
        await second.close()

    asyncio.run(run())


def test_a_second_daemon_does_not_take_the_socket(directory: Path) -> None:
    async def run() -> None:
        first = plugin_socket(directory)
        await first.open()
        with pytest.raises(OverlayError, match="another process serves"):
            await PluginSocket(
                directory / "plugin.sock", directory / "other", Backend(), Keeper(directory / "other-keeper")
            ).open()
        assert (await call(directory, "Plugin.Activate", b""))[0] == 200
        await first.close()

    asyncio.run(run())


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"networks": [], "endpoints": {}}', '{"networks": {"a": 1}}'])
def test_a_damaged_record_does_not_keep_the_daemon_from_starting(directory: Path, damaged: str) -> None:
    async def run() -> None:
        (directory / "state").write_text(damaged)
        served = plugin_socket(directory)
        await served.open()
        assert (await call(directory, "Plugin.Activate", b""))[0] == 200
        await served.close()

    asyncio.run(run())
