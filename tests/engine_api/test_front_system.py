"""What the daemon says of itself and of its engine: /_ping, the API version, /info, the file system around sockets."""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import test_utils

from engine_api.app import build_app
from engine_api.config import load
from engine_api.daemon import Daemon, StartError, loop_factory, open_many_files
from engine_api.engine.client import EngineClient
from engine_api.front.http1 import parse_request
from engine_api.routes.system import System
from tests.engine_api.conftest import NOW, FakeBackend
from tests.engine_api.fake_engine import FakeEngine


def _ping(system: System, method: str = "GET") -> tuple[dict[str, str], bytes]:
    answer = system.quick_answer(parse_request(f"{method} /_ping HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    return dict(line.split(": ", 1) for line in lines[1:]), body


async def test_the_api_version_is_the_lower_one_and_follows_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, api_version="1.45")
    client = EngineClient(engine.host)
    system = System(client, [], lambda: NOW)
    await system.attach(FakeBackend())
    assert _ping(system)[0]["Api-Version"] == "1.41"  # no engine yet: what every engine understands
    for offered, served in (("1.45", "1.45"), ("1.99", "1.51"), ("1.41", "1.41")):
        engine.api_version = offered
        await engine.start()
        await client.ping()
        assert (system.api_version(), _ping(system)[0]["Api-Version"]) == (served, served)
        await engine.stop()
    await client.close()


async def test_pings_tell_of_the_swarm_beside_engines_that_do(tmp_path: Path) -> None:
    async with FakeEngine(tmp_path, api_version="1.45") as engine:
        client = EngineClient(engine.host)
        system = System(client, [], lambda: NOW)
        await system.attach(FakeBackend())
        assert _ping(system)[0]["Swarm"] == "active/manager"
        engine.api_version = "1.41"
        await client.ping()
        assert "Swarm" not in _ping(system)[0]
        await client.close()


async def test_a_ping_by_head_has_no_body(tmp_path: Path) -> None:
    client = EngineClient(f"unix://{tmp_path}/none")
    system = System(client, [], lambda: NOW)
    await system.attach(FakeBackend())
    assert _ping(system)[1] == b"OK"
    headers, body = _ping(system, "HEAD")
    assert (headers["Content-Length"], body) == ("0", b"")
    for line in ("GET /v1.41/_ping", "POST /_ping", "GET /x/_ping"):
        assert system.quick_answer(parse_request(f"{line} HTTP/1.1\r\n\r\n".encode())) is None
    await client.close()


_CONTAINERS = "/containers/json?filters="


@pytest.mark.parametrize(
    "path",
    [
        "/info",
        "/version",
        _CONTAINERS + '{"is-task":["true"]}',
        _CONTAINERS + '{"is-task":["true"],"x":1}',
        _CONTAINERS + '{"is-task":[["true"]]}',
        _CONTAINERS + "[" * 2_000,
        _CONTAINERS + '{"is-task":["false"]}&limit=' + "9" * 5_000,
        _CONTAINERS + '{"is-task":["false"]}&limit=%C2%B2',
    ],
)
async def test_without_an_engine_every_answer_that_needs_it_says_so(tmp_path: Path, path: str) -> None:
    client = EngineClient(f"unix://{tmp_path}/none")
    system = System(client, [], lambda: NOW)
    backend = FakeBackend()
    await system.attach(backend)
    app = build_app(backend, system.api_version, system.server_header, routes=system.routes)
    async with test_utils.TestClient[Any, Any](test_utils.TestServer(app)) as http:
        response = await http.get(path)
        assert response.status == 503
        assert "Is it running?" in (await response.json())["message"]
    await client.close()


async def test_info_is_the_engines_with_our_swarm_and_all_warnings(tmp_path: Path) -> None:
    async with FakeEngine(tmp_path) as engine:
        engine.info |= {"DockerRootDir": "/var/lib/x", "Warnings": ["WARNING: theirs"], "Swarm": {"NodeID": "stock"}}
        client = EngineClient(engine.host)
        system = System(client, ["WARNING: ours"], lambda: NOW)
        backend = FakeBackend()
        await system.attach(backend)
        app = build_app(backend, system.api_version, system.server_header, routes=system.routes)
        async with test_utils.TestClient[Any, Any](test_utils.TestServer(app)) as http:
            info = await (await http.get("/v1.40/info")).json()
        assert info["DockerRootDir"] == "/var/lib/x"
        assert info["Warnings"] == ["WARNING: theirs", "WARNING: ours"]
        assert info["Swarm"]["NodeID"] == backend.node.node_id
        await client.close()


# --- the daemon's files ---


async def _refused(tmp_path: Path, name: str, *flags: str) -> str:
    """The reason why a daemon does not start."""
    places = ["--data-root", str(tmp_path / name), "--exec-root", str(tmp_path / f"{name}-run")]
    places += ["--plugin-directory", str(tmp_path / f"{name}-plugins")]
    config = load(["--engine", f"unix://{tmp_path}/none", *places, *flags], {})
    with pytest.raises(StartError) as refused:
        await Daemon(config).run()
    return str(refused.value)


async def test_a_file_in_the_place_of_the_socket_is_not_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    assert await _refused(tmp_path, "a", "-H", f"unix://{precious}") == f"{precious} exists and is not a socket"
    assert precious.read_text() == "data"


async def test_a_socket_that_another_process_serves_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "taken.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(taken))
        other.listen()
        mine = tmp_path / "mine.sock"
        text = await _refused(tmp_path, "a", "-H", f"unix://{mine}", "-H", f"unix://{taken}")
        assert text == f"another process listens on {taken}"
        assert taken.exists()
        assert not mine.exists()


async def test_a_tcp_port_that_is_taken_is_reported(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        host = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        assert (await _refused(tmp_path, "a", "-H", host, "--tls=false")).startswith(f"cannot listen on {host}: ")


async def test_tls_files_that_cannot_be_used_are_reported(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    key = str(tmp_path / "key")
    flags = ("-H", "tcp://127.0.0.1:0", "--tlsverify=false", "--tlscert", key)
    text = await _refused(tmp_path, "a", *flags, "--tlskey", key)
    assert text == f"cannot use the TLS files {key} and {key}: certificate and key cannot be used: malformed"
    text = await _refused(tmp_path, "b", *flags, "--tlskey", f"{key}.pem")
    assert text == f"cannot read {key}.pem (--tlskey): No such file or directory"


async def test_a_group_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    text = await _refused(tmp_path, "a", "-H", f"unix://{tmp_path}/a.sock", "--group", "no-such-group")
    assert text == "there is no group no-such-group (--group)"
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize("shared", ["--data-root", "--exec-root"])
async def test_two_daemons_do_not_share_their_directories(tmp_path: Path, shared: str) -> None:
    both = str(tmp_path / "both")
    flags = ["--engine", f"unix://{tmp_path}/none", "--plugin-directory", str(tmp_path / "plugins"), shared, both]
    other_flag = "--exec-root" if shared == "--data-root" else "--data-root"
    first = Daemon(load([*flags, other_flag, str(tmp_path / "1"), "-H", f"unix://{tmp_path}/1.sock"], {}))
    running = asyncio.create_task(first.run())
    await first.ready.wait()
    text = await _refused(tmp_path, "2", shared, both, "-H", f"unix://{tmp_path}/2.sock")
    assert text == f"another sideswarmd uses the {shared[2:].replace('-', ' ')} {both}"
    first.stop()
    await running
    assert not (tmp_path / "1.sock").exists()


def test_the_event_loop_can_be_chosen() -> None:
    assert loop_factory("asyncio") is None
    named = loop_factory("uvloop")
    assert named is not None
    loop = named()
    assert type(loop).__module__.startswith("uvloop")
    loop.close()


def test_the_daemon_may_open_as_many_files_as_it_is_allowed_to() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        open_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
