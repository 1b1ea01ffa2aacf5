"""The daemon around the front: its sockets, its end, its neighbours, TCP with and without TLS, and no engine."""

from __future__ import annotations

import grp
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from integration import processes
from integration.front_tools import Extra, Raw, buildkit_cli, clis, environment, get, make_certificates, popen, run
from integration.lab import Host, LabError, _spawn, _wait_answer, start_daemon
from integration.waiting import until

STAY = "trap exit TERM; while sleep 0.2; do :; done"
END_S = 10.0
NOBODY = 65534
TOKEN = f"SWMTKN-1-{'0' * 50}-{'0' * 25}"
CLIS = clis()


@pytest.fixture
def extra(side: Host) -> Iterator[Extra]:
    """More daemons beside the engine of the shared host."""
    with Extra(side) as made:
        yield made


# --- sockets ---


def test_the_socket_belongs_to_a_group_and_to_nobody_else(extra: Extra) -> None:
    group = grp.getgrgid(1)
    daemon = extra.start("group", "--group", group.gr_name)
    status = Path(daemon.api.removeprefix("unix://")).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, os.geteuid(), group.gr_gid)
    number = extra.start("number", "--group", "4242")
    assert Path(number.api.removeprefix("unix://")).stat().st_gid == 4242
    nobody = extra.start("nobody", "--group", "")
    assert Path(nobody.api.removeprefix("unix://")).stat().st_gid == os.getegid()


def _as_somebody(*command: str, groups: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command of a user without privileges."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(
        command,
        user=NOBODY,
        group=NOBODY,
        extra_groups=groups,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_user_without_the_group_reaches_neither_the_api_nor_what_is_secret(extra: Extra) -> None:
    group = grp.getgrgid(1)
    flags = ("--listen-addr", "127.0.0.1:3377", "--swarm-default-advertise-addr", "lo", "--group", group.gr_name)
    daemon = extra.start("curious", *flags)
    daemon.docker("swarm", "init")
    version = ("docker", "-H", daemon.api, "version", "--format", "{{.Server.Version}}")
    refused = _as_somebody(*version)
    assert refused.returncode != 0
    assert "permission denied" in refused.stderr
    member = _as_somebody(*version, groups=(group.gr_gid,))
    assert (member.returncode, member.stderr) == (0, "")
    files = [str(file) for part in ("swarm", "run") for file in (daemon.directory / part).rglob("*") if file.is_file()]
    readable = _as_somebody("sh", "-c", 'for file; do if [ -r "$file" ]; then echo "$file"; fi; done', "sh", *files)
    assert {Path(line).name for line in readable.stdout.splitlines()} <= {"swarm-root-ca.crt", "swarm-node.crt"}
    assert {"swarm-node.key", "raft.db", "tasks.db"} <= {Path(file).name for file in files}
    for file in ("mem", "environ", "maps", "fd"):
        assert _as_somebody("ls" if file == "fd" else "cat", f"/proc/{daemon.pid}/{file}").returncode != 0
    daemon.docker("swarm", "leave", "--force")


def test_it_answers_only_when_it_is_ready_and_then_knows_its_swarm(extra: Extra) -> None:
    daemon = extra.start("ready", "--listen-addr", "127.0.0.1:3377", "--swarm-default-advertise-addr", "lo")
    daemon.docker("swarm", "init")
    node = get(daemon.api, "/info")["Swarm"]["NodeID"]
    for _ in range(2):
        processes.kill(daemon.pid)
        start_daemon(daemon)  # returns with the first answer to /_ping
        swarm = get(daemon.api, "/info")["Swarm"]
        assert (swarm["NodeID"], swarm["LocalNodeState"] in ("active", "pending")) == (node, True)
    until(lambda: daemon.docker_run("node", "ls").returncode, lambda code: code == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_time_whatever_is_open(extra: Extra, side: Host, number: int) -> None:
    daemon = extra.start(f"end{number}")
    box = side.docker("run", "-di", "busybox", "cat").strip()
    try:
        streams = []
        paths = ("GET /events", f"GET /containers/{box}/logs?follow=1&stdout=1", f"POST /containers/{box}/wait")
        attach = f"POST /containers/{box}/attach?stream=1&stdin=1&stdout=1"
        for line in (*paths, attach, "GET /half"):
            raw = Raw.to(daemon.api)
            streams.append(raw)
            raw.send(f"{line} HTTP/1.1\r\nHost: docker\r\n".encode() + (b"" if "half" in line else b"\r\n"))
            if "half" not in line and "wait" not in line:
                assert raw.head()[0] == 200
        os.kill(daemon.pid, signal.SIGHUP)
        assert get(daemon.api, "/info")["DockerRootDir"]
        os.kill(daemon.pid, number)
        assert processes.wait_gone(daemon.pid, END_S)
        assert not Path(daemon.api.removeprefix("unix://")).exists()
        for raw in streams:
            raw.rest()  # each has ended
            raw.socket.close()
        assert side.docker("inspect", "-f", "{{.State.Running}}", box).strip() == "true"
    finally:
        side.docker_run("rm", "-f", box)


def test_a_signal_during_the_start_ends_it_too(extra: Extra) -> None:
    daemon = extra.prepare("early")
    for _ in range(3):
        log = daemon.directory / "daemon.log"
        command = [
            sys.executable,
            "-m",
            "engine_api.daemon",
            "--engine",
            daemon.engine,
            "-H",
            daemon.api,
            "--data-root",
            f"{daemon.state}/swarm",
            "--plugin-directory",
            f"{daemon.state}/plugins",
        ]
        daemon.pid = _spawn(daemon, [*command, "--exec-root", f"{daemon.state}/run"], log)
        until(lambda: (daemon.directory / "swarm" / "lock").exists())
        os.kill(daemon.pid, signal.SIGTERM)
        assert processes.wait_gone(daemon.pid, END_S)
        (daemon.directory / "swarm" / "lock").unlink(missing_ok=True)


# --- neighbours ---


def test_three_daemons_with_three_engines_share_one_network_namespace(extra: Extra, side: Host) -> None:
    daemons = []
    engines = []
    try:
        for number in (1, 2, 3):
            host = extra.prepare(f"many{number}")
            bridge = f"many{number}"
            for command in (["add", bridge, "type", "bridge"], ["set", bridge, "up"]):
                assert side.inside("ip", "link", *command).returncode == 0
            side.inside("ip", "address", "add", f"172.28.{number}.1/24", "dev", bridge)
            host.engine = f"unix://{host.state}/docker.sock"
            command = ["dockerd", "--data-root", f"{host.state}/engine", "--exec-root", f"{host.state}/exec"]
            command += ["-p", f"{host.state}/docker.pid", "-H", host.engine, "-b", bridge, "--iptables=false"]
            host.engine_pid = _spawn(host, [*command, "--config-file", _empty(host)], host.directory / "engine.log")
            engines.append(host.engine_pid)
            port = f"127.0.0.1:{3380 + number}"
            host.extra += ["--listen-addr", port, "--swarm-default-advertise-addr", "lo"]
            daemons.append(host)
        for host in daemons:
            _wait_answer(host.engine, host.engine_pid, host.directory / "engine.log")
            start_daemon(host)
        swarms = []
        for number, host in enumerate(daemons, 1):
            assert f"127.0.0.1:{3380 + number}" in host.docker("swarm", "init")
            archive = side.directory.parent / "busybox.tar"
            host.docker("import", str(archive), "busybox:latest")
            host.docker("service", "create", "-d", "--name", "web", "--replicas", "2", "busybox", "sh", "-c", STAY)
            swarms.append(get(host.api, "/info")["Swarm"]["Cluster"]["ID"])
        assert len(set(swarms)) == 3
        replicas = ("service", "ls", "--format", "{{.Replicas}}")
        for host in daemons:
            until(partial(host.docker, *replicas), lambda text: text.strip() == "2/2", what=host.state)
            assert len(host.docker("ps", "-q").split()) == 2
            assert len(host.docker("node", "ls", "-q").split()) == 1
        for host in daemons:
            host.docker("service", "rm", "web")
            until(partial(host.docker, "ps", "-aq"), lambda text: not text)
            host.docker("swarm", "leave", "--force")
    finally:
        for host in daemons:
            processes.stop(host.pid)
        for pid in engines:
            processes.stop(pid)
        for number in (1, 2, 3):
            side.inside("ip", "link", "del", f"many{number}")
        for host in extra.made:
            processes.kill_mentioning(host.directory)


def _empty(host: Host) -> str:
    path = host.directory / "daemon.json"
    path.write_text("{}")
    return str(path)


# --- TCP, TLS, and the other event loop ---


def _cli(
    host: Host, address: str, *args: str, data: bytes = b"", flags: tuple[str, ...] = (), cli: str = "docker"
) -> str:
    """A CLI command over TCP from within the host's network; its standard output."""
    command = ["nsenter", f"--net=/run/netns/{host.netns}", cli, *flags, "-H", address, *args]
    done = subprocess.run(command, input=data, env=environment(host), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_plain_tcp_works_when_asked_for_and_is_warned_about(extra: Extra) -> None:
    address = "tcp://127.0.0.1:3375"
    daemon = extra.start("plain", "-H", address, "--tls=false")
    warning = "WARNING: API is accessible on http://127.0.0.1:3375 without encryption."
    assert any(text.startswith(warning) for text in get(daemon.api, "/info")["Warnings"])
    assert warning in run(daemon, "info").stderr.decode()
    assert "anyone who reaches it is root" in (daemon.directory / "daemon.log").read_text()
    assert _cli(daemon, address, "run", "--rm", "busybox", "echo", "hi") == "hi\n"
    assert _cli(daemon, address, "run", "-i", "--rm", "busybox", "cat", data=b"in\n") == "in\n"
    with Raw.inside(daemon, "127.0.0.1", 3375) as raw:
        raw.send(b"PUT /containers/none/archive?path=/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        raw.send(b"x" * 9_000_000)
        assert raw.answer()[0] == 404  # no reset, although the body is not read


def test_plain_tcp_that_nobody_asked_for_is_refused(extra: Extra) -> None:
    daemon = extra.prepare("bare", "-H", "tcp://127.0.0.1:3375")
    with pytest.raises(LabError, match="would make everybody who reaches it root on this host: use --tlsverify"):
        start_daemon(daemon)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_tls_with_client_certificates_keeps_half_closes_apart_from_ends(extra: Extra, loop: str) -> None:
    address = "tcp://127.0.0.1:3376"
    daemon = extra.prepare(f"tls{loop}", "-H", address, "--event-loop", loop)
    files = make_certificates(daemon.directory / "pki", "127.0.0.1")
    daemon.extra += ["--tlsverify", "--tlscacert", f"{files}/ca.pem"]
    daemon.extra += ["--tlscert", f"{files}/server.pem", "--tlskey", f"{files}/server-key.pem"]
    start_daemon(daemon)
    ca = ("--tlsverify", "--tlscacert", f"{files}/ca.pem")
    flags = (*ca, "--tlscert", f"{files}/cert.pem", "--tlskey", f"{files}/key.pem")
    for cli in CLIS.values():
        assert _cli(daemon, address, "run", "--rm", "busybox", "echo", "hi", flags=flags, cli=cli) == "hi\n"
        text = _cli(daemon, address, "run", "-i", "--rm", "busybox", "cat", data=b"in\n", flags=flags, cli=cli)
        assert text == "in\n"
    box = _cli(daemon, address, "run", "-d", "busybox", "sh", "-c", STAY, flags=flags).strip()
    try:
        assert _cli(daemon, address, "exec", "-i", box, "wc", "-c", data=b"x" * 5_000_000, flags=flags) == "5000000\n"
        assert "sideswarm" in _cli(daemon, address, "version", flags=flags)
        assert not get(daemon.api, "/info").get("Warnings") or "accessible" not in str(get(daemon.api, "/info"))
    finally:
        _cli(daemon, address, "rm", "-f", box, flags=flags)
    command = ["nsenter", f"--net=/run/netns/{daemon.netns}", "docker", *ca, "-H", address, "ps"]
    refused = subprocess.run(command, env=environment(daemon), capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert "certificate" in refused.stderr


def test_asyncios_own_loop_carries_the_same_traffic(extra: Extra) -> None:
    daemon = extra.start("asyncio", "--event-loop", "asyncio")
    assert run(daemon, "run", "--rm", "busybox", "sh", "-c", "echo hi; exit 4").returncode == 4
    data = os.urandom(5_000_000)
    assert run(daemon, "run", "-i", "--rm", "busybox", "cat", data=data).stdout == data
    events = popen(daemon, "events", "--format", "{{.Action}}")
    assert events.stdout is not None
    until(lambda: get(daemon.api, "/info")["NEventsListener"], lambda count: count >= 1)
    daemon.docker("run", "--rm", "busybox", "true")
    assert events.stdout.readline()
    os.kill(daemon.pid, signal.SIGTERM)
    assert processes.wait_gone(daemon.pid, END_S)
    events.communicate(timeout=60)


# --- no engine ---


@pytest.fixture
def widowed(extra: Extra) -> Host:
    """A daemon whose engine is not there."""
    return extra.start("widowed", engine=f"unix://{extra.host.state}/widowed/none.sock")


ORDINARY = (
    *("ps", "images", "info", "version", "events", "network ls", "volume ls", "system df", "pull busybox"),
    *("run busybox true", "run -d busybox", "create busybox", "start x", "stop x", "rm x", "logs -f x", "wait x"),
    *("top x", "inspect x", "stats --no-stream x", "save busybox", "load", "import -", "export x", "commit x"),
    *("tag x y", "rmi x", "diff x", "rename x y", "network create n", "volume create v", "image prune -f", "kill x"),
    *("port x", "swarm init --advertise-addr 127.0.0.1", f"swarm join --token {TOKEN} 127.0.0.1:2377"),
)
STREAMING = ("run -i busybox cat", "exec -i x cat", "attach x", "cp x:/etc/passwd -", "build .", "events")


def _fails_for_want_of_an_engine(host: Host, cli: str, command: str) -> None:
    done = run(host, *command.split(), data=b"data", cli=cli, DOCKER_BUILDKIT="0")
    text = (done.stdout + done.stderr).decode()
    assert done.returncode != 0, command
    assert "annot connect to the Docker Engine at" in text, (command, text)


def test_without_an_engine_every_kind_of_command_says_so_and_ends(
    widowed: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    monkeypatch.chdir(tmp_path)
    for command in ORDINARY:
        _fails_for_want_of_an_engine(widowed, "docker", command)
    for cli in CLIS.values():
        for command in STREAMING:
            _fails_for_want_of_an_engine(widowed, cli, command)
    with Raw.to(widowed.api) as raw:
        assert raw.ask("GET", "/nodes")[0] == 503  # and the swarm's own answers are as ever
        assert raw.ask("GET", "/_ping") == (200, b"OK")


def test_without_an_engine_buildkit_says_so_and_ends(widowed: Host, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    done = run(widowed, "build", str(tmp_path), cli=buildkit_cli(), DOCKER_BUILDKIT="1")
    assert done.returncode != 0
    assert b"annot connect to the Docker Engine at" in done.stderr + done.stdout


def test_an_engine_that_comes_later_is_found_without_a_restart(extra: Extra, side: Host) -> None:
    daemon = extra.prepare("later")
    link = daemon.directory / "engine.sock"
    daemon.engine = f"unix://{link}"
    start_daemon(daemon)
    assert run(daemon, "ps").returncode != 0
    with Raw.to(daemon.api) as raw:
        status, body = raw.ask("GET", "/_ping")
        assert (status, body) == (200, b"OK")
    link.symlink_to(side.engine.removeprefix("unix://"))
    assert run(daemon, "run", "--rm", "busybox", "echo", "hi").stdout == b"hi\n"
    with Raw.to(side.engine) as raw:
        raw.send(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
        engines = raw.answer()[1]["server"]

    def server() -> str:
        with Raw.to(daemon.api) as ours:
            ours.send(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
            return ours.answer()[1]["server"]

    until(server, lambda name: name == engines, what="the engine's name in /_ping")
    link.unlink()
    failed = run(daemon, "ps")
    assert b"annot connect to the Docker Engine" in failed.stderr
    assert json.loads(failed.stdout or b"null") is None
