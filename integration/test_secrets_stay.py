"""What a secret is stays between its writer and its containers: no read, error, event, log or open file shows it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from engine_api.app import ROUTES
from engine_api.engine.client import EngineClient
from engine_api.routes.system import System
from integration import calls
from integration.lab import Host
from integration.waiting import until

MARK = "hush-9f27c1d4"
VERSIONS = ("", "/v1.25", "/v1.30", "/v1.41")
IDLE = "trap exit TERM; while sleep 0.2; do :; done"
STAY = "trap exit TERM; cat /run/secrets/word | wc -c; while sleep 0.2; do :; done"


def marks(text: str) -> list[bytes]:
    """How a value may look: plain, and the parts of its base64 that do not depend on what stands before it."""
    plain = text.encode()
    shifted = [base64.b64encode(b"x" * shift + plain)[4 if shift else 0 :] for shift in range(3)]
    return [plain, *(code[: len(code) - 4] for code in shifted), plain.hex().encode()]


FORMS = marks(MARK)


def leaks(content: bytes) -> bool:
    return any(form in content for form in FORMS)


def ask(host: Host, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    """Status and everything that comes back, headers included."""
    connection = http.client.HTTPConnection("docker", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(60)
        connection.sock.connect(host.api.removeprefix("unix://"))
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"Content-Type": "application/json", **sent})
        response = connection.getresponse()
        return response.status, str(response.headers).encode() + response.read()
    finally:
        connection.close()


def reads(host: Host, since: float) -> Iterator[str]:
    """Every GET of the routes table, filled in with everything there is."""
    known = {
        kind: [found[key] for found in calls.get(host, f"/{kind}")]
        for kind, key in (("services", "ID"), ("tasks", "ID"), ("secrets", "ID"), ("configs", "ID"), ("nodes", "ID"))
    }
    known["networks"] = [found["Id"] for found in calls.get(host, "/networks")]
    known["secrets"] += ["word", "large"]
    system = System(EngineClient(host.engine), [], time.time)
    for route in (*ROUTES, *system.routes):
        if route.method != "GET":
            continue
        query = ""
        if route.path.endswith("/logs"):
            query = "?stdout=1&stderr=1&details=1&timestamps=1"
        elif route.path == "/events":
            query = f"?since={since:.0f}&until={time.time():.9f}"
        if "{id}" not in route.path:
            yield route.path + query
        else:
            kind = route.path.split("/")[1]
            assert known[kind], f"nothing to read by {route.path}"
            yield from (route.path.replace("{id}", found) + query for found in known[kind])
    for container in calls.containers(host).values():
        yield f"/containers/{container}/json"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def mistakes(host: Host) -> list[tuple[str, object]]:
    """Requests that carry the value and fail."""
    secret, swarm = calls.get(host, "/secrets/word"), calls.get(host, "/swarm")
    update = f"/secrets/{secret['ID']}/update?version="
    ca = {"SigningCAKey": MARK, "SigningCACert": MARK}
    changed = {**secret["Spec"], "Data": encoded(f"{MARK}!")}
    return [
        ("/secrets/create", {"Name": "word", "Data": encoded(MARK)}),
        ("/secrets/create", {"Name": "bad name!", "Data": encoded(MARK)}),
        ("/secrets/create", {"Name": "x", "Data": f"*{MARK}*"}),
        ("/secrets/create", {"Name": "x", "Data": {MARK: MARK}}),
        ("/secrets/create", {"Name": "x", "Data": [MARK]}),
        ("/secrets/create", {"Name": "x", "Data": encoded(MARK * 50_000)}),
        ("/secrets/create", b'{"Name": "x", "Data": "' + MARK.encode()),
        (f"{update}{secret['Version']['Index']}", changed),
        (f"{update}1", changed),
        ("/swarm/unlock", {"UnlockKey": f"SWMKEY-1-{MARK}"}),
        ("/swarm/join", {"RemoteAddrs": ["127.0.0.1"], "JoinToken": f"SWMTKN-1-{MARK}"}),
        ("/swarm/init", {"ListenAddr": "0.0.0.0", "Spec": {"CAConfig": ca}}),
        (f"/swarm/update?version={swarm['Version']['Index']}", {**swarm["Spec"], "CAConfig": ca}),
    ]


def open_files(host: Host) -> list[str]:
    """Files with the value that somebody else than their owner can reach."""
    found = []
    for part in ("swarm", "run"):
        top = host.directory / part
        for file in top.rglob("*"):
            if file.is_file() and leaks(file.read_bytes()):
                way = [file, *(parent for parent in file.parents if parent.is_relative_to(top))]
                if all(step.stat().st_mode & (0o004 if step is file else 0o001) for step in way):
                    found.append(str(file))
    return found


def on_disk(host: Host, part: str) -> bool:
    return any(leaks(file.read_bytes()) for file in (host.directory / part).rglob("*") if file.is_file())


def test_the_value_of_a_secret_is_in_no_answer_event_log_or_open_file(swarm: list[Host]) -> None:
    manager, worker = swarm[:2]
    began = time.time()
    for name, value in (("word", MARK), ("large", MARK * 3000)):
        assert manager.docker_run("secret", "create", "--label", "a=b", name, "-", stdin=value).returncode == 0
    manager.docker("config", "create", "settings", "/etc/hostname")
    login = base64.urlsafe_b64encode(json.dumps({"username": "me", "password": MARK}).encode()).decode()
    secrets = {found["Spec"]["Name"]: found["ID"] for found in calls.get(manager, "/secrets")}
    mounted = [
        {"SecretID": secrets[name], "SecretName": name, "File": {"Name": name, "UID": "0", "GID": "0", "Mode": 0o400}}
        for name in secrets
    ]
    container = {"Image": "busybox:latest", "Command": ["sh", "-c", STAY], "Secrets": mounted}
    body = {"Name": "user", "TaskTemplate": {"ContainerSpec": container}, "Mode": {"Global": {}}}
    assert ask(manager, "POST", "/services/create", body, X_Registry_Auth=login)[0] == 201
    until(lambda: calls.running(manager, "user"), lambda tasks: len(tasks) == 3, what="three tasks with the secrets")
    until(lambda: manager.docker("service", "logs", "user"), lambda text: text.count(f"| {len(MARK)}\n") == 3)

    for path, wrong in mistakes(manager):
        status, answer = ask(manager, "POST", path, wrong)
        assert status >= 400, (path, answer)
        assert not leaks(answer), (path, answer)
    manager.docker("secret", "create", "gone", "/etc/hostname")
    manager.docker("secret", "rm", "gone")
    looked = list(reads(manager, began))
    assert len(looked) > 30
    for path in looked:
        for version in VERSIONS:
            status, answer = ask(manager, "GET", version + path)
            assert status in (200, 400, 404), (version + path, answer)
            assert not leaks(answer), (version + path, answer)
    shown = ask(manager, "GET", next(path for path in looked if path.startswith("/events")))[1]
    assert b'"secret"' in shown
    for command in (
        *(
            "secret ls",
            "secret inspect word large",
            "secret inspect --pretty word large",
            "service ls",
            "service ps user",
        ),
        *("service inspect user", "service inspect --pretty user", "node inspect --pretty self", "node ps", "info"),
    ):
        done = manager.docker_run(*command.split())
        assert done.returncode == 0, done.stderr
        assert not leaks((done.stdout + done.stderr).encode()), command
    for host in swarm:
        assert not leaks((host.directory / "daemon.log").read_bytes())
        assert open_files(host) == []
    assert on_disk(manager, "swarm"), "an unlocked manager's log has it, or this test looks in the wrong place"
    assert on_disk(worker, "run")
    assert not on_disk(worker, "swarm")
    assert _of_tmpfs(worker.directory / "run")
    manager.docker("service", "rm", "user")
    until(lambda: on_disk(worker, "run"), lambda seen: not seen, what="nothing left of the secrets on the worker")


def _of_tmpfs(directory: Path) -> bool:
    """Whether everything with the value is on file systems in memory."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    memory = [Path(row[1]) for row in mounts if row[2] in ("tmpfs", "ramfs")]
    files = [file for file in directory.rglob("*") if file.is_file() and leaks(file.read_bytes())]
    return all(any(file.is_relative_to(place) for place in memory if place != Path("/")) for file in files)


def _in_memory(host: Host, value: bytes) -> bool:
    """Whether the memory of a host's daemon has it."""
    with Path(f"/proc/{host.pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{host.pid}/maps").read_text().splitlines():
            where, rights = line.split()[:2]
            first, last = (int(text, 16) for text in where.split("-"))
            if rights.startswith("rw"):
                memory.seek(first)
                with contextlib.suppress(OSError):  # unmapped since
                    if value in memory.read(last - first):
                        return True
    return False


def test_a_worker_has_only_the_secrets_of_its_own_tasks_even_in_its_memory(swarm: list[Host]) -> None:
    manager, *workers = swarm
    values = {worker.name: f"{MARK}-only-for-{worker.name}" for worker in workers}
    for worker in workers:
        name, value = worker.name, values[worker.name]
        assert manager.docker_run("secret", "create", name, "-", stdin=value).returncode == 0
        place = ("--constraint", f"node.hostname=={name}")
        command = ("busybox:latest", "sh", "-c", IDLE)
        manager.docker("service", "create", "-q", "-d", "--name", name, "--secret", name, *place, *command)
    for worker in workers:
        until(partial(calls.running, manager, worker.name), what=f"the task on {worker.name}")
    for worker, other in (workers, workers[::-1]):
        assert _in_memory(worker, values[worker.name].encode())
        assert not _in_memory(worker, values[other.name].encode())
        files = [file.read_bytes() for file in worker.directory.rglob("run/**/*") if file.is_file()]
        assert any(values[worker.name].encode() in content for content in files)
        assert not any(values[other.name].encode() in content for content in files)


def test_a_container_with_the_socket_of_the_api_has_the_swarm_even_if_it_may_only_read_it(swarm: list[Host]) -> None:
    """Not a promise but a warning: what docs/security.md says of such containers is true."""
    manager, worker = swarm[:2]
    assert manager.docker_run("secret", "create", "word", "-", stdin=MARK).returncode == 0
    cli = Path(shutil.which("docker") or "").resolve()
    mounts = [f"{manager.api.removeprefix('unix://')}:/api.sock:ro", f"{cli}:/docker:ro"]
    mounts += [
        f"{place}:{place}:ro" for place in ("/lib", "/lib64") if Path(place).exists()
    ]  # of CLIs that are not static

    def inside(*command: str) -> str:
        volumes = [text for mount in mounts for text in ("--volume", mount)]
        return manager.docker("run", "--rm", *volumes, "busybox:latest", "/docker", "-H", "unix:///api.sock", *command)

    assert inside("swarm", "join-token", "-q", "manager") == manager.docker("swarm", "join-token", "-q", "manager")
    place = ("--constraint", f"node.hostname=={worker.name}", "--mount", "type=bind,source=/,target=/host")
    look = ("sh", "-c", f"cat /run/secrets/word; stat -c %u /host{worker.directory}/swarm/swarm/state.json")
    inside("service", "create", "-q", "-d", "--name", "thief", "--secret", "word", *place, "busybox:latest", *look)
    found = until(lambda: inside("service", "logs", "--raw", "thief"), lambda text: "\n" in text, what="the loot")
    assert found.startswith(f"{MARK}0\n")
