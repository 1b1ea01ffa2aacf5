"""Everything that people do with an engine goes through sideswarmd unchanged: the unmodified CLI and docker-py."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pexpect
import pytest

from integration.front_tools import buildkit_cli, clis, environment, get, popen, run, terminal
from integration.lab import Host
from integration.waiting import until

MIB = 1 << 20
STAY = "trap exit TERM; while sleep 0.2; do :; done"
CLIS = clis()


@pytest.fixture
def container(side: Host) -> Iterator[Callable[..., str]]:
    """Starts a container that is removed after the test: ``container(command...)``; returns its name."""
    made: list[str] = []

    def start(*command: str, flags: tuple[str, ...] = ()) -> str:
        made.append(f"front{len(made)}")
        side.docker("run", "-d", "--name", made[-1], *flags, "busybox", *(command or ("sh", "-c", STAY)))
        return made[-1]

    yield start
    if made:
        side.docker_run("rm", "-f", *made)


def _output(done: subprocess.CompletedProcess[bytes]) -> bytes:
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what the daemon adds ---


def test_version_and_info_are_the_engines_and_a_little_more(side: Host) -> None:
    text = side.docker("version")
    assert "sideswarm" in text
    assert "Engine:" in text
    version, engines_version = get(side.api, "/version"), get(side.engine, "/version")
    assert version["Components"][:-1] == engines_version["Components"]
    assert version["Components"][-1]["Name"] == "sideswarm"
    info, engines = get(side.api, "/info"), get(side.engine, "/info")
    passing = ("SystemTime", "NFd", "NGoroutines", "NEventsListener", "Swarm")
    assert list(info) == list(engines)
    assert {key: info[key] for key in info if key not in passing} == {
        key: engines[key] for key in engines if key not in passing
    }
    assert info["DockerRootDir"] == f"{side.state}/engine"
    assert "Swarm: inactive" in side.docker("info")


# --- run, exec, attach ---


@pytest.mark.parametrize("cli", CLIS.values(), ids=CLIS)
def test_run_gives_output_errors_and_the_exit_code(side: Host, cli: str) -> None:
    done = run(side, "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", cli=cli)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert run(side, "run", "--rm", "busybox", "no-such-command", cli=cli).returncode == 127


@pytest.mark.parametrize("cli", CLIS.values(), ids=CLIS)
def test_run_at_a_terminal_follows_its_size_and_gives_the_exit_code(side: Host, cli: str) -> None:
    shell = terminal(side, "run", "-it", "--rm", "busybox", "sh", cli=cli)
    shell.expect("/ # ")
    until(lambda: _size(shell), lambda size: size == "30 100", what="the first size")
    shell.setwinsize(41, 111)
    until(lambda: _size(shell), lambda size: size == "41 111", what="the new size")
    shell.sendline("exit 7")
    _ended(shell, 7)


def _size(shell: Any) -> str:
    shell.sendline("stty size")
    shell.expect(r"(\d+ \d+)\r\n")
    size: str = shell.match.group(1)
    shell.expect("/ # ")
    return size


def test_exec_at_a_terminal(side: Host, container: Callable[..., str]) -> None:
    name = container()
    shell = terminal(side, "exec", "-it", name, "sh")
    shell.expect("/ # ")
    until(lambda: _size(shell), lambda size: size == "30 100", what="the first size")
    shell.setwinsize(41, 111)
    until(lambda: _size(shell), lambda size: size == "41 111", what="the new size")
    shell.sendline("exit 9")
    _ended(shell, 9)


def _ended(shell: Any, code: int) -> None:
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == code


def test_detach_keys_leave_the_container_running_and_attach_finds_it_again(side: Host) -> None:
    try:
        shell = terminal(side, "run", "-it", "--name", "frontd", "busybox", "sh")
        shell.expect("/ # ")
        shell.send("\x10\x11")
        _ended(shell, 0)
        assert side.docker("inspect", "-f", "{{.State.Running}}", "frontd").strip() == "true"
        shell = terminal(side, "attach", "--detach-keys", "ctrl-x,q", "frontd")
        shell.sendline("echo again $((40+2))")
        shell.expect("again 42")
        shell.send("\x18q")
        shell.expect("read escape sequence")
        shell = terminal(side, "attach", "frontd")
        shell.sendline("exit 5")
        _ended(shell, 5)
    finally:
        side.docker_run("rm", "-f", "frontd")


@pytest.mark.parametrize("cli", CLIS.values(), ids=CLIS)
def test_the_end_of_standard_input_ends_the_command_inside(side: Host, container: Callable[..., str], cli: str) -> None:
    name = container()
    assert _output(run(side, "exec", "-i", name, "cat", data=b"hello\n", cli=cli)) == b"hello\n"
    assert _output(run(side, "run", "-i", "--rm", "busybox", "cat", data=b"hello\n", cli=cli)) == b"hello\n"
    assert _output(run(side, "exec", "-i", name, "wc", "-c", cli=cli)).strip() == b"0"


def test_large_input_and_large_output_at_the_same_time(side: Host, container: Callable[..., str]) -> None:
    name, data = container(), random.Random("front").randbytes(30 * MIB)
    digest = hashlib.md5(data).hexdigest()
    assert _output(run(side, "run", "-i", "--rm", "busybox", "md5sum", data=data)).split()[0].decode() == digest
    assert _output(run(side, "exec", "-i", name, "cat", data=data)) == data


def test_a_slow_reader_slows_the_container_and_loses_nothing(side: Host) -> None:
    zeros = ("dd", "if=/dev/zero", "bs=1M", "count=100")
    reader = popen(side, "run", "--rm", "--log-driver", "none", "busybox", *zeros, stderr=subprocess.DEVNULL)
    try:
        assert reader.stdout is not None
        assert len(reader.stdout.read(1)) == 1
        before = _read_bytes(side.pid)
        history = [before]

        def stands_still() -> bool:
            history.append(_read_bytes(side.pid))
            return len(history) > 10 and history[-1] - history[-5] < MIB

        until(stands_still, what="the stream behind a reader that does not read")
        assert _read_bytes(side.pid) - before < 50 * MIB
        assert len(reader.stdout.read()) == 100 * MIB - 1
        assert reader.wait(60) == 0
    finally:
        reader.kill()
        reader.communicate()


def _read_bytes(pid: int) -> int:
    """Bytes that a process has read so far."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def test_many_commands_at_once(side: Host) -> None:
    runs = [popen(side, "run", "--rm", "busybox", "echo", f"number {number}") for number in range(8)]
    assert [process.communicate(timeout=120)[0] for process in runs] == [f"number {n}\n".encode() for n in range(8)]


# --- logs, events, the rest ---


def test_logs_are_followed_to_the_end_of_the_container(side: Host, container: Callable[..., str]) -> None:
    name = container("sh", "-c", "for i in 1 2 3; do echo line $i; done; " + STAY)
    follower = popen(side, "logs", "-f", name)
    assert follower.stdout is not None
    assert [follower.stdout.readline() for _ in range(3)] == [b"line 1\n", b"line 2\n", b"line 3\n"]
    side.docker("kill", name)
    follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert side.docker("logs", "--tail", "1", name)


def test_events_of_the_engine_and_of_the_swarm_are_one_stream(side: Host) -> None:
    begun = time.time()
    follower = popen(side, "events", "--format", "{{json .}}")
    try:
        assert follower.stdout is not None
        until(lambda: get(side.engine, "/info")["NEventsListener"], lambda count: count >= 1)
        side.docker("swarm", "init", "--advertise-addr", side.ip)
        side.docker_run("config", "create", "settings", "-", stdin="a=b")
        side.docker("run", "--rm", "--name", "eventful", "busybox", "true")
        seen: list[dict[str, Any]] = []
        while not any(event["Action"] == "destroy" for event in seen):
            seen.append(json.loads(follower.stdout.readline()))
        kinds = [(event["Type"], event["Action"], event["scope"]) for event in seen]
        assert ("config", "create", "swarm") in kinds
        assert ("container", "start", "local") in kinds

        def past(*filters: str) -> list[tuple[str, str]]:
            flags = [flag for text in filters for flag in ("--filter", text)]
            window = ("--since", f"{begun:.6f}", "--until", f"{time.time():.6f}")
            lines = side.docker("events", *window, "--format", "{{json .}}", *flags).splitlines()
            found = [json.loads(line) for line in lines]
            assert [event["timeNano"] for event in found] == sorted(event["timeNano"] for event in found)
            return [(event["Type"], event["Action"]) for event in found]

        everything = past()
        assert ("config", "create") in everything
        assert ("container", "destroy") in everything
        assert past("type=config") == [("config", "create")]
        assert past("scope=swarm", "event=create", "config=settings") == [("config", "create")]
        assert {kind for kind, _ in past("scope=local")} <= {"container", "network", "image", "volume"}
        assert {kind for kind, _ in past("container=eventful")} == {"container"}
        assert past("config=none") == []
        ended = side.docker("events", "--since", "1", "--until", "2")
        assert ended == ""
    finally:
        follower.kill()
        follower.communicate()
        side.docker_run("swarm", "leave", "--force")


def test_files_are_copied_in_and_out(side: Host, container: Callable[..., str], tmp_path: Path) -> None:
    name, data = container(), random.Random("cp").randbytes(5 * MIB)
    (tmp_path / "in").write_bytes(data)
    side.docker("cp", str(tmp_path / "in"), f"{name}:/tmp/file")
    side.docker("cp", f"{name}:/tmp/file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data
    archive = _output(run(side, "cp", f"{name}:/tmp/file", "-"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["file"]
    _output(run(side, "cp", "-", f"{name}:/var/www", data=archive))
    assert side.docker("exec", name, "md5sum", "/var/www/file").split()[0] == hashlib.md5(data).hexdigest()
    failed = run(side, "cp", f"{name}:/tmp/none", "-")
    assert failed.returncode != 0
    assert b"/tmp/none" in failed.stderr  # each CLI has words of its own


def test_containers_are_waited_for_listed_and_inspected(side: Host, container: Callable[..., str]) -> None:
    name = container("sh", "-c", "touch /new; trap 'exit 3' TERM; while sleep 0.2; do :; done")
    waiter = popen(side, "wait", name)
    until(lambda: side.docker("diff", name), lambda text: "A /new" in text)
    assert "sleep 0.2" in until(lambda: side.docker("top", name), lambda text: "sleep" in text)
    assert name in side.docker("stats", "--no-stream", name)
    assert name in side.docker("ps")
    side.docker("rename", name, "renamed")
    side.docker("rename", "renamed", name)
    side.docker("stop", name)
    assert waiter.communicate(timeout=60)[0] == b"3\n"
    missing = run(side, "start", "no-such-container")
    assert b"No such container: no-such-container" in missing.stderr


# --- images ---


def _context(directory: Path, dockerfile: str) -> str:
    directory.mkdir()
    (directory / "Dockerfile").write_text(dockerfile)
    (directory / "file").write_text("built\n")
    return str(directory)


@pytest.mark.parametrize("cli", CLIS.values(), ids=CLIS)
def test_the_classic_builder_builds_and_fails(side: Host, tmp_path: Path, cli: str) -> None:
    good = _context(tmp_path / "good", "FROM busybox\nCOPY file /file\nRUN echo run >>/file\nCMD cat /file\n")
    bad = _context(tmp_path / "bad", "FROM busybox\nRUN exit 4\n")
    try:
        _output(run(side, "build", "-t", "front:classic", good, cli=cli, DOCKER_BUILDKIT="0"))
        assert side.docker("run", "--rm", "front:classic") == "built\nrun\n"
        failed = run(side, "build", bad, cli=cli, DOCKER_BUILDKIT="0")
        assert failed.returncode == 4
        assert b"returned a non-zero code: 4" in failed.stderr + failed.stdout
    finally:
        side.docker_run("rmi", "-f", "front:classic")


def test_buildkit_builds_with_secrets_of_its_client_and_fails(side: Host, tmp_path: Path) -> None:
    cli = buildkit_cli()
    (tmp_path / "secret").write_text("s3cret")
    mount = "RUN --mount=type=secret,id=key md5sum /run/secrets/key >/sum"
    good = _context(
        tmp_path / "good", f"FROM busybox AS tools\n{mount}\nFROM scratch\nCOPY --from=tools /sum /\nCOPY file /\n"
    )
    bad = _context(tmp_path / "bad", "FROM busybox\nRUN exit 4\n")
    flags = ("--progress", "plain", "--no-cache", "--secret", f"id=key,src={tmp_path}/secret")
    try:
        built = run(side, "build", *flags, "-t", "front:kit", good, cli=cli, DOCKER_BUILDKIT="1", timeout_s=120)
        assert built.returncode == 0, built.stderr
        side.docker("create", "--name", "frontkit", "front:kit", "x")
        with tarfile.open(fileobj=io.BytesIO(_output(run(side, "cp", "frontkit:/sum", "-")))) as tar:
            member = tar.extractfile("sum")
            assert member is not None
            assert member.read().split()[0].decode() == hashlib.md5(b"s3cret").hexdigest()
        failed = run(side, "build", "--progress", "plain", bad, cli=cli, DOCKER_BUILDKIT="1", timeout_s=120)
        assert failed.returncode == 1
        assert b"exit code: 4" in failed.stderr
    finally:
        side.docker_run("rm", "frontkit")
        side.docker_run("rmi", "-f", "front:kit")
        side.docker_run("builder", "prune", "-f")


def test_200_megabytes_are_saved_and_loaded_unharmed(side: Host, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as big:
        rng = random.Random("image")
        for _ in range(200):
            big.write(rng.randbytes(MIB))
    root, saved = tmp_path / "root.tar", tmp_path / "saved.tar"
    with tarfile.open(root, "w") as tar:
        tar.add(tmp_path / "big", "big")
    try:
        image = side.docker("import", str(root), "front:big", timeout_s=120).strip()
        side.docker("save", "-o", str(saved), "front:big", timeout_s=120)
        direct = tmp_path / "direct.tar"
        side.docker("save", "-o", str(direct), "front:big", engine=True, timeout_s=120)
        assert saved.stat().st_size > 200 * MIB
        assert _digest(saved) == _digest(direct)
        side.docker("rmi", "front:big")
        with saved.open("rb") as archive:
            command = ["docker", "load"]
            loaded = subprocess.run(command, stdin=archive, env=environment(side), capture_output=True, check=False)
        assert b"Loaded image: front:big" in loaded.stdout, loaded.stderr
        assert side.docker("inspect", "-f", "{{.Id}}", "front:big").strip() == image
    finally:
        side.docker_run("rmi", "-f", "front:big")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_garbage_is_refused_in_the_engines_words_while_it_is_still_being_sent(side: Host) -> None:
    garbage = b"garbage " * (2 * MIB)
    through = run(side, "load", data=garbage)
    direct = subprocess.run(
        ["docker", "load"], input=garbage, env=environment(side, side.engine), capture_output=True, check=False
    )
    assert through.returncode == direct.returncode != 0
    assert b"unexpected EOF" in through.stderr or b"invalid tar header" in through.stderr
    assert _words(through.stderr) == _words(direct.stderr)


def _words(text: bytes) -> str:
    """An error text without the name of a temporary directory."""
    return " ".join(word for word in text.decode().split() if "docker-import" not in word)


# --- docker-py ---


@pytest.fixture
def client(side: Host) -> Iterator[docker.DockerClient]:
    """docker-py on sideswarmd."""
    with contextlib.closing(docker.DockerClient(side.api, version="auto", timeout=60)) as made:
        yield made


def test_docker_py_works_unmodified(side: Host, client: docker.DockerClient, tmp_path: Path) -> None:
    assert client.ping()
    assert client.info()["DockerRootDir"] == f"{side.state}/engine"
    assert client.version()["ApiVersion"] == client.api.api_version
    assert client.containers.run("busybox", ["echo", "hello"], remove=True) == b"hello\n"
    box = client.containers.run("busybox", ["sh", "-c", STAY], detach=True)
    try:
        assert box.exec_run(["sh", "-c", "echo out; exit 3"]) == (3, b"out\n")
        _, stream = box.exec_run(["cat"], stdin=True, socket=True)
        stream._sock.sendall(b"through a socket")
        stream._sock.shutdown(1)
        assert stream.read().endswith(b"through a socket")
        _close(stream)
        chunks, stat = box.get_archive("/etc/passwd")
        assert stat["name"] == "passwd"
        archive = b"".join(chunks)
        assert box.put_archive("/tmp", archive)
        assert box.exec_run(["cmp", "/etc/passwd", "/tmp/passwd"]).exit_code == 0
        assert box.id in [found.id for found in client.containers.list(filters={"id": box.id})]
        stats = box.stats(stream=False)
        assert stats["id"] == box.id
        with pytest.raises(docker.errors.NotFound):
            client.containers.get("no-such-container")
        with pytest.raises(docker.errors.APIError):
            client.nodes.list()
        image, _ = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN true\n"), tag="front:py")
        assert b"".join(image.save()) != b""
    finally:
        box.remove(force=True)
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.images.remove("front:py", force=True)


def _close(stream: Any) -> None:
    """docker-py's sockets are files over sockets that nobody else closes."""
    connection = stream._sock
    stream.close()
    connection.close()


def test_docker_py_attaches_to_both_directions(client: docker.DockerClient) -> None:
    box = client.containers.create("busybox", ["cat"], stdin_open=True)
    try:
        both = client.api.attach_socket(box.id, {"stdin": 1, "stdout": 1, "stream": 1})
        box.start()
        both._sock.sendall(b"ping\n")
        assert both.read(8 + 5)[8:] == b"ping\n"
        _close(both)
    finally:
        box.remove(force=True)


def test_task_containers_are_told_apart_by_is_task(side: Host, client: docker.DockerClient) -> None:
    task = client.containers.run(
        "busybox", ["sh", "-c", STAY], detach=True, labels={"com.docker.swarm.task": "", "a": "b"}
    )
    plain = client.containers.run("busybox", ["sh", "-c", STAY], detach=True, labels={"a": "b"})
    gone = client.containers.create("busybox", ["true"], labels={"a": "b"})
    try:

        def listed(**arguments: Any) -> list[str]:
            filters = {"label": ["a=b"], **arguments.pop("filters", {})}
            return [found.id for found in client.containers.list(filters=filters, **arguments)]

        assert listed(filters={"is-task": "true"}) == [task.id]
        assert listed(filters={"is-task": True}, all=True) == [task.id]
        assert listed(filters={"is-task": "false"}) == [plain.id]
        assert listed(filters={"is-task": "false"}, all=True) == [gone.id, plain.id]
        assert listed(filters={"is-task": "false"}, limit=1) == [gone.id]
        assert listed() == [plain.id, task.id]
        for target in (side.api, side.engine):
            failed = subprocess.run(
                ["docker", "ps", "--filter", "is-task=maybe"],
                env=environment(side, target),
                capture_output=True,
                text=True,
                check=False,
            )
            assert "nvalid filter 'is-task=[maybe]'" in failed.stderr
        text = side.docker("ps", "-q", "--no-trunc", "--filter", "is-task=true")
        assert text.split() == [task.id]
    finally:
        for box in (task, plain, gone):
            box.remove(force=True)
