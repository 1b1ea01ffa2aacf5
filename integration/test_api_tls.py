"""The API over TLS with Docker Machine's certificates and flags: its user may do everything, others nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pexpect
import pytest

from integration import machine_pki
from integration.front_tools import TIMEOUT_S, Extra, clis, get, python_inside
from integration.lab import Host, start_daemon
from integration.machine_pki import Machine
from integration.waiting import until

STAY = "trap exit TERM; while sleep 0.2; do :; done"
BODY_BYTES = 5_000_000
CLIS = clis()
DOCKER_PY = """
import io, os, sys, tarfile, docker
from docker.errors import DockerException

for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests would trust these instead of TLSConfig's
    os.environ.pop(name, None)
target, directory, size = sys.argv[1:]
ca = f"{directory}/ca.pem"
tls = docker.tls.TLSConfig(client_cert=(f"{directory}/cert.pem", f"{directory}/key.pem"), ca_cert=ca, verify=True)
client = docker.DockerClient(base_url=target, tls=tls)
assert client.ping()
os.environ.update(DOCKER_HOST=target, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=directory)
assert docker.from_env().version()["ApiVersion"]
assert client.containers.run("busybox", "echo hi", remove=True) == b"hi\\n"

box = client.containers.run("busybox", ["sh", "-c", "cat > /dev/null"], detach=True, stdin_open=True)
assert box.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True) == (3, (b"out\\n", b"err\\n"))
talk = client.api.exec_create(box.id, "cat", stdin=True, tty=True)["Id"]
stream = client.api.exec_start(talk, tty=True, socket=True)
stream.write(b"word\\n")
echoed = b""
while len(echoed) < 12:
    echoed += stream.read(12 - len(echoed))
assert echoed == b"word\\r\\nword\\r\\n", echoed
stream.close()
data, got = os.urandom(int(size)), io.BytesIO()
with tarfile.open(fileobj=got, mode="w") as archive:
    entry = tarfile.TarInfo("large")
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
assert box.put_archive("/tmp", got.getvalue())
back = b"".join(box.get_archive("/tmp/large")[0])
assert tarfile.open(fileobj=io.BytesIO(back)).extractfile("large").read() == data
box.remove(force=True)

assert client.secrets.create(name="tls", data=b"x" * 500_000).id
client.secrets.get("tls").remove()
for bad in (docker.tls.TLSConfig(ca_cert=ca, verify=True), False):
    try:
        docker.DockerClient(base_url=target, tls=bad, version="1.41").ping()
    except DockerException as error:
        print("refused:", error)
    except Exception as error:  # requests has a say of its own here
        print("refused:", error)
    else:
        raise SystemExit("an anonymous client was accepted")
print("done")
"""


@pytest.fixture(scope="module")
def machine(side: Host) -> Iterator[tuple[Host, Machine]]:
    """A daemon with the flags of Docker Machine's unit, a swarm of one."""
    with Extra(side) as extra:
        daemon = extra.prepare("machine", "--listen-addr", "127.0.0.1:3377", "--swarm-default-advertise-addr", "lo")
        made = Machine(daemon.directory / "pki", side.ip)
        daemon.extra += made.flags
        start_daemon(daemon)
        daemon.docker("swarm", "init")
        yield daemon, made
        daemon.docker("swarm", "leave", "--force")


def environment(host: Host, directory: Path | None) -> dict[str, str]:
    """As `docker-machine env` prints it; None: without certificates."""
    found = {**os.environ, "DOCKER_HOST": f"tcp://{host.ip}:2376", "DOCKER_CONFIG": str(host.directory / "cli")}
    if directory is not None:
        found |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(directory)}
    return found


def inside(host: Host, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{host.netns}", *command]


def cli(
    host: Host, directory: Path | None, *args: str, data: bytes = b"", program: str = "docker"
) -> subprocess.CompletedProcess[bytes]:
    """A CLI command of somebody with these certificates."""
    command = inside(host, program, *args)
    return subprocess.run(
        command, input=data, env=environment(host, directory), capture_output=True, timeout=TIMEOUT_S, check=False
    )


def answer(host: Host, directory: Path | None, *args: str, data: bytes = b"", program: str = "docker") -> bytes:
    done = cli(host, directory, *args, data=data, program=program)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", CLIS.values(), ids=CLIS)
def test_a_machines_user_has_everything_over_tls(machine: tuple[Host, Machine], program: str) -> None:
    host, made = machine
    ours = partial(answer, host, made.client, program=program)
    assert b"sideswarm" in ours("version")
    assert ours("node", "ls", "--format", "{{.ManagerStatus}}") == b"Leader\n"
    assert ours("run", "--rm", "busybox", "echo", "hi") == b"hi\n"
    box = ours("run", "-d", "busybox", "sh", "-c", STAY).decode().strip()
    try:
        data = os.urandom(BODY_BYTES)
        assert ours("exec", "-i", box, "cat", data=data) == data
        (host.directory / "large").write_bytes(data)
        ours("cp", str(host.directory / "large"), f"{box}:/large")
        assert ours("exec", box, "wc", "-c", "/large") == f"{BODY_BYTES} /large\n".encode()
    finally:
        ours("rm", "-f", box)
    shell = pexpect.spawn(
        "nsenter",
        inside(host, program, "run", "-it", "--rm", "busybox", "sh")[1:],
        env={**environment(host, made.client), "TERM": "dumb"},
        timeout=TIMEOUT_S,
        encoding="utf-8",
    )
    shell.expect("/ # ")
    shell.sendline("echo $((6*7))")
    shell.expect("42\r\n")
    shell.sendline("exit 5")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5


def test_docker_py_has_everything_over_tls(machine: tuple[Host, Machine]) -> None:
    host, made = machine
    done = python_inside(host, DOCKER_PY, f"tcp://{host.ip}:2376", str(made.client), str(BODY_BYTES))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: ") == 2
    assert done.stdout.endswith("done\n")


def refused(host: Host, directory: Path, *command: str, program: str) -> bytes:
    """What a client hears that gets nothing."""
    done = cli(host, directory, *command, program=program)
    assert b"Version" not in done.stdout.partition(b"Server:")[2], (directory, command, done)
    assert done.returncode or b"ERROR" in done.stdout, (directory, command, done)
    return done.stdout + done.stderr


def test_clients_without_a_valid_certificate_get_nothing(machine: tuple[Host, Machine], tmp_path: Path) -> None:
    host, made = machine
    people = {
        "bare": made.person(tmp_path / "bare", bare=True),
        "other CA": made.person(tmp_path / "other", machine_pki.issue("user")),
        "self-signed": made.person(tmp_path / "self"),
        "server": made.person(tmp_path / "server", purpose=machine_pki.SERVER),
        "the host's own": made.person(tmp_path / "host"),
    }
    machine_pki.issue("user.<bootstrap>").write(tmp_path / "self" / "cert.pem", tmp_path / "self" / "key.pem")
    for name in ("cert", "key"):
        shutil.copy(
            made.etc / ("server.pem" if name == "cert" else "server-key.pem"), tmp_path / "host" / f"{name}.pem"
        )
    for program in CLIS.values():
        for name, directory in people.items():
            for command in ("ps", "info", "node ls"):
                # not always at once: anonymous connections of an address are limited per second
                until(
                    partial(refused, host, directory, *command.split(), program=program),
                    lambda answer: b"remote error: tls: " in answer,
                    what=f"{name}: {command} is told why",
                )
        until(
            lambda program=program: cli(host, None, "ps", program=program).stderr,  # type: ignore[misc]
            lambda words: b"Client sent an HTTP request to an HTTPS server." in words,
        )
        served = until(
            lambda program=program: cli(host, made.client, "ps", "-q", program=program),  # type: ignore[misc]
            lambda done: done.returncode == 0,
        )
        assert served.stdout == b""
    shutil.copy(tmp_path / "self" / "cert.pem", tmp_path / "bare" / "ca.pem")
    unknown = b"x509: certificate signed by unknown authority"
    until(lambda: cli(host, tmp_path / "bare", "ps").stderr, lambda words: unknown in words)


def test_certificates_are_replaced_without_a_restart(machine: tuple[Host, Machine], tmp_path: Path) -> None:
    host, made = machine
    log = host.directory / "daemon.log"
    command = inside(host, "docker", "run", "-i", "--rm", "busybox", "cat")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(host, made.client)
    ) as talk:
        assert talk.stdin is not None
        assert talk.stdout is not None

        def echoes() -> bool:
            assert talk.stdin is not None
            assert talk.stdout is not None
            talk.stdin.write(b"word\n")
            talk.stdin.flush()
            return talk.stdout.readline() == b"word\n"

        assert echoes()
        before = made.authority
        newer = machine_pki.issue("user")
        made.serve(newer)
        os.kill(host.pid, signal.SIGHUP)
        until(lambda: "daemon.reloaded" in log.read_text(), what="the new files")
        person = made.person(tmp_path / "new", newer)
        newer.write(person / "ca.pem", tmp_path / "unused")
        assert answer(host, person, "node", "ls", "-q")
        shutil.copy(person / "ca.pem", tmp_path / "ca.pem")
        assert b"certificate" in cli(host, made.client, "ps").stderr
        (made.etc / "server-key.pem").write_text("no key")
        os.kill(host.pid, signal.SIGHUP)
        until(lambda: "daemon.reload_failed" in log.read_text(), what="the refusal of a bad file")
        assert answer(host, person, "node", "ls", "-q")
        assert echoes()
        talk.stdin.close()
        assert talk.wait(TIMEOUT_S) == 0
    made.serve(before)
    os.kill(host.pid, signal.SIGHUP)
    until(lambda: log.read_text().count("daemon.reloaded") == 2, what="the files of before")
    assert answer(host, made.client, "node", "ls", "-q")


def test_tls_for_everybody_is_served_when_asked_for_and_warned_about(
    machine: tuple[Host, Machine], side: Host, tmp_path: Path
) -> None:
    made = machine[1]
    flags = [flag.replace(":2376", ":3376") for flag in made.flags if flag != "--tlsverify"]
    with Extra(side) as extra:
        daemon = extra.prepare("anybody", *flags, "--tlsverify=false")
        start_daemon(daemon)
        warning = "WARNING: API is accessible on https://0.0.0.0:3376 without TLS client verification."
        assert any(text.startswith(warning) for text in get(daemon.api, "/info")["Warnings"])
        assert "api.insecure" in (daemon.directory / "daemon.log").read_text()
        done = subprocess.run(
            inside(
                daemon, "docker", "--tls", "-H", f"tcp://{side.ip}:3376", "version", "--format", "{{.Server.Version}}"
            ),
            env={**environment(daemon, None), "DOCKER_CERT_PATH": str(made.person(tmp_path / "bare", bare=True))},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert (done.stderr, done.returncode) == (b"", 0)
