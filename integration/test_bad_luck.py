"""What goes wrong in the life of a swarm: wrong tokens, taken ports, dead engines and daemons, cut cables, full and
damaged disks. The texts are those that people know from stock engines, and nothing is left behind or lost."""

from __future__ import annotations

import contextlib
import operator
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from integration import calls
from integration.checked_writers import NOWHERE, CheckedWriters, Writer
from integration.lab import Host, Lab
from integration.waiting import until

IDLE = ("busybox:latest", "sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")
ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
TAKEN = "manager stopped: failed to listen on remote API address: listen tcp 0.0.0.0:2377: bind: address already in use"
LISTENER = "import socket, time\ns = socket.create_server(('0.0.0.0', 2377))\nprint('ok', flush=True)\ntime.sleep(600)"


def _refused(host: Host, *command: str) -> str:
    """What the daemon says to a command that must fail."""
    done = host.docker_run(*command)
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().removeprefix("Error response from daemon: ")


def _state(host: Host) -> str:
    return str(calls.swarm_info(host)["LocalNodeState"])


def _nothing_left(host: Host) -> None:
    """Outside any swarm, with nothing on disk and on the engine."""
    assert calls.swarm_info(host) == {
        "NodeID": "",
        "NodeAddr": "",
        "LocalNodeState": "inactive",
        "ControlAvailable": False,
        "Error": "",
        "RemoteManagers": None,
    }
    assert sorted(path.name for path in (host.directory / "swarm").iterdir()) == ["lock"]
    assert calls.containers(host, everything=True) == {}


def _ready(manager: Host, count: int) -> None:
    def look() -> list[str]:
        return [node["Status"]["State"] for node in calls.get(manager, "/nodes")]

    until(look, lambda states: states == ["ready"] * count, what=f"{count} ready nodes")


def _settled(manager: Host, service: str, count: int, besides: set[str] | None = None) -> set[str]:
    """Wait until a service has ``count`` running tasks, each in a slot of its own, and nothing else is wanted."""

    def look() -> tuple[list[str], list[str]]:
        wanted = calls.live(manager, service)
        running = [task["ID"] for task in wanted if task["Status"]["State"] == "running"]
        return running, [f"{task['Slot']} {task['NodeID']} {task['Status']['State']}" for task in wanted]

    def good(seen: tuple[list[str], list[str]]) -> bool:
        slots = {text.split()[0] for text in seen[1]}
        return len(seen[0]) == len(seen[1]) == len(slots) == count and not set(seen[0]) & (besides or set())

    return set(until(look, good, what=f"{count} running tasks of {service}")[0])


def _on(hosts: list[Host], service: str = "") -> dict[str, str]:
    """Task ID -> container ID over several engines; AssertionError when a task has two containers."""
    found: dict[str, str] = {}
    for host in hosts:
        for task_id, container in calls.containers(host, service=service).items():
            assert task_id not in found, f"task {task_id} has two containers"
            found[task_id] = container
    return found


def _service(manager: Host, name: str, replicas: int) -> set[str]:
    manager.docker(
        "service", "create", "--detach", "--name", name, "--replicas", str(replicas), "--restart-delay", "0s", *IDLE
    )
    return _settled(manager, name, replicas)


# --- joins that come to nothing ------------------------------------------------------------------------------------


def test_joins_that_are_refused_say_why_and_leave_nothing_behind(lab: Lab) -> None:
    manager, host, _ = lab.hosts
    manager.docker("swarm", "init", "--advertise-addr", manager.ip)
    token = manager.docker("swarm", "join-token", "-q", "worker").strip()
    address = f"{manager.ip}:2377"
    _, _, digest, secret = token.split("-")
    other = "43yhor31sfi136i2cco5pvn0xyl74b00nizmm3z1ima1m9x32l"
    refusals = {
        f"SWMTKN-1-{digest}-8bhraohfs3r230252d38xpt4m": (
            "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"
        ),
        f"SWMTKN-1-{other}-{secret}": (
            "remote CA does not match fingerprint. "
            "Expected: a4e651fb8c4e7dfe3149840aab676922814226b89ff0862bb72d2f2e11a3decd"
        ),
        "SWMTKN-1-nonsense": "invalid join token",
    }
    for wrong, text in refusals.items():
        assert _refused(host, "swarm", "join", "--token", wrong, address) == text
        _nothing_left(host)
    dead = f"{manager.ip}:2378"
    assert _refused(host, "swarm", "join", "--token", token, dead) == (
        'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing '
        f'dial tcp {dead}: connect: connection refused"'
    )
    _nothing_left(host)
    body = {"RemoteAddrs": [address], "JoinToken": token, "ListenAddr": "0.0.0.0:2377", "Availability": "sleepy"}
    assert calls.call(host, "POST", "/swarm/join", body) == (500, {"message": 'invalid Availability: "sleepy"'})
    _nothing_left(host)
    assert len(calls.get(manager, "/nodes")) == 1, "no attempt left a node on the manager"
    host.docker("swarm", "join", "--token", token, address)
    assert _refused(host, "swarm", "join", "--token", token, address) == ALREADY
    assert _refused(host, "swarm", "init") == ALREADY
    assert _state(host) == "active"


def test_a_join_to_a_silent_manager_goes_on_in_the_background_until_it_answers(lab: Lab) -> None:
    manager, host, third = lab.hosts
    manager.docker("swarm", "init", "--advertise-addr", manager.ip)
    token = manager.docker("swarm", "join-token", "-q", "worker").strip()
    lab.cut(manager)
    command = ["swarm", "join", "--token", token, f"{manager.ip}:2377"]
    with _background(third, *command) as given_up:
        assert _refused(host, *command) == (
            "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. "
            'Use the "docker info" command to see the current swarm status of your node.'
        )
        info = calls.swarm_info(host)
        assert (info["LocalNodeState"], info["NodeID"]) == ("pending", "")
        assert info["RemoteManagers"] == [{"NodeID": "", "Addr": f"{manager.ip}:2377"}]
        assert _refused(host, *command) == ALREADY
        given_up.wait(10)
    assert third.docker("swarm", "leave") == "Node left the swarm.\n"
    _nothing_left(third)
    lab.heal()
    until(lambda: _state(host), lambda state: state == "active", what="the join in the background")
    _ready(manager, 2)


def test_a_join_is_ended_by_a_leave_at_any_time(lab: Lab) -> None:
    manager, host, _ = lab.hosts
    manager.docker("swarm", "init", "--advertise-addr", manager.ip)
    token = manager.docker("swarm", "join-token", "-q", "worker").strip()
    lab.cut(manager)
    with _background(host, "swarm", "join", "--token", token, f"{manager.ip}:2377") as joining:
        until(lambda: _state(host), lambda state: state == "pending")
        host.docker("swarm", "leave")
        assert joining.wait(10) == 1
        assert joining.stderr is not None
        assert "`docker swarm leave` ended the attempt to join" in joining.stderr.read()
    _nothing_left(host)


@contextlib.contextmanager
def _background(host: Host, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A docker command that runs meanwhile."""
    process = subprocess.Popen(
        ["docker", "-H", host.api, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


# --- ports and files -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _port_taken(host: Host) -> Iterator[None]:
    """Somebody else listens on a host's port 2377."""
    command = ["nsenter", f"--net=/run/netns/{host.netns}", sys.executable, "-c", LISTENER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ok\n"
            yield
        finally:
            process.kill()


def _broken(host: Host, error: str) -> None:
    """State error: the engine's containers keep running, swarm calls are refused, and a plain leave ends it."""
    before = calls.containers(host)
    assert len(before) == 1
    info = calls.swarm_info(host)
    assert (info["LocalNodeState"], info["ControlAvailable"], info["NodeID"]) == ("error", False, "")
    assert error in info["Error"]
    status, body = calls.call(host, "GET", "/nodes")
    assert (status, body["message"].split(".")[0]) == (503, "This node is not a swarm manager")
    assert _refused(host, "swarm", "init") == ALREADY
    assert calls.containers(host) == before
    host.docker("swarm", "leave")
    _nothing_left(host)


def test_a_taken_port_is_named_at_init_and_at_restart(lab: Lab) -> None:
    host = lab.hosts[0]
    with _port_taken(host):
        assert _refused(host, "swarm", "init", "--advertise-addr", host.ip) == TAKEN
        _nothing_left(host)
    host.docker("swarm", "init", "--advertise-addr", host.ip)
    _service(host, "web", 1)
    lab.stop(host)
    with _port_taken(host):
        lab.start(host)
        _broken(host, TAKEN)
    host.docker("swarm", "init", "--advertise-addr", host.ip)


def _overwrite(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


def _flip(file: Path) -> None:
    """Another letter in the text of the newest entries, as a failing disk would have it."""
    content = file.read_bytes()
    assert b"default" in content
    file.write_bytes(content.replace(b"default", b"defbult"))


def _halve(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("name", "damage", "error"),
    [
        ("raft.db", _halve, "raft.db: database disk image is malformed"),
        ("raft.db", _flip, "wrong checksum"),
        ("state.json", _halve, "state.json is damaged"),
        ("certificates/swarm-node.key", _halve, "invalid PEM-encoded private key"),
        ("tasks.db", _overwrite, "tasks.db: file is not a database"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else str(value).replace("/", ".")[:24],
)
def test_damaged_files_are_named_and_a_leave_makes_a_fresh_start(
    lab: Lab, name: str, damage: Callable[[Path], None], error: str
) -> None:
    host = lab.hosts[0]
    host.docker("swarm", "init", "--advertise-addr", host.ip)
    _service(host, "web", 1)
    lab.stop(host)
    damage(host.directory / "swarm" / "swarm" / name)
    lab.start(host)
    _broken(host, error)
    host.docker("swarm", "init", "--advertise-addr", host.ip)


def test_a_single_manager_says_what_of_its_log_is_lost_and_goes_on_only_when_that_is_accepted(lab: Lab) -> None:
    host = lab.hosts[0]
    host.docker("swarm", "init", "--advertise-addr", host.ip)
    for number in range(40):
        host.docker_run("config", "create", f"c{number}", "-", stdin="x")
    lab.kill(host)
    log = host.directory / "swarm" / "swarm" / "raft.db-wal"
    content = bytearray(log.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 4
    log.write_bytes(content)
    for _ in range(2):
        lab.start(host)
        info = calls.swarm_info(host)
        assert (info["LocalNodeState"], info["ControlAvailable"]) == ("error", False)
        assert "raft.db-wal: frame " in info["Error"]
        assert "it had confirmed entries up to " in info["Error"]
        assert "`docker swarm init --force-new-cluster` goes on with what can be read" in info["Error"]
        lab.kill(host)
        assert log.read_bytes() == content, "nothing of it was touched"
    lab.start(host)
    host.docker("swarm", "init", "--force-new-cluster", "--advertise-addr", host.ip)
    assert "raft.loss_accepted" in (host.directory / "daemon.log").read_text()
    left = {config["Spec"]["Name"] for config in calls.get(host, "/configs")}
    assert 0 < len(left) < 40
    assert left == {f"c{number}" for number in range(len(left))}, "those before the damage"
    lab.kill(host)
    lab.start(host)
    assert {config["Spec"]["Name"] for config in until(lambda: calls.get(host, "/configs"), bool)} == left


def test_a_full_disk_refuses_writes_with_the_reason_and_recovers(lab: Lab) -> None:
    host = lab.hosts[0]
    root = host.directory / "swarm"
    lab.stop(host)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)], check=True)
    try:
        lab.start(host)
        host.docker("swarm", "init", "--advertise-addr", host.ip)
        tasks = _service(host, "web", 1)
        kept = [f"kept{number}" for number in range(3)]
        for name in kept:
            host.docker_run("config", "create", name, "-", stdin="x")
        filler = root / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        done = until(
            lambda: host.docker_run("config", "create", "lost", "-", stdin="y" * 100_000),
            lambda done: done.returncode != 0,
        )
        assert "the manager cannot write its log" in done.stderr
        assert "full" in done.stderr
        names = sorted(config["Spec"]["Name"] for config in calls.get(host, "/configs"))
        assert names[: len(kept)] == kept
        _refused(host, "service", "scale", "--detach", "web=2")
        assert set(calls.containers(host)) == tasks
        filler.unlink()
        until(lambda: host.docker_run("config", "create", "after", "-", stdin="z"), lambda done: done.returncode == 0)
        host.docker("service", "scale", "--detach", "web=2")
        assert tasks < _settled(host, "web", 2)
        seen = calls.get(host, "/configs")
        lab.kill(host)
        lab.start(host)
        _ready(host, 1)
        assert calls.get(host, "/configs") == seen
        assert tasks < _settled(host, "web", 2)
        host.docker("swarm", "leave", "--force")
    finally:
        lab.stop(host)
        subprocess.run(["umount", str(root)], check=True)


# --- deaths and cuts -----------------------------------------------------------------------------------------------


def test_a_killed_daemon_leaves_containers_and_cluster_as_they_are(lab: Lab, swarm: list[Host]) -> None:
    manager, worker, _ = swarm
    tasks = _service(manager, "web", 6)
    containers = _on(swarm)
    before = calls.get(manager, "/swarm"), {node["ID"] for node in calls.get(manager, "/nodes")}
    service = calls.get(manager, "/services/web")
    for host in (worker, manager):
        lab.kill(host)
        assert _on(swarm) == containers
        lab.start(host)
        until(partial(_state, host), lambda state: state == "active")
    _ready(manager, 3)
    after = calls.get(manager, "/swarm"), {node["ID"] for node in calls.get(manager, "/nodes")}
    assert after == before
    assert calls.get(manager, "/services/web") == service
    assert _settled(manager, "web", 6) == tasks
    assert _on(swarm) == containers
    manager.docker("service", "scale", "--detach", "web=7")
    assert tasks < _settled(manager, "web", 7)
    assert containers.items() < _on(swarm).items()


def test_tasks_of_a_dead_engine_go_elsewhere_and_its_containers_do_not_come_back(lab: Lab, swarm: list[Host]) -> None:
    manager, other, victim = swarm
    before = _service(manager, "web", 6)
    lost = set(calls.containers(victim))
    assert len(lost) == 2
    lab.kill(victim, "engine")
    until(lambda: calls.node_states(manager)[victim.name], lambda state: state == "down")
    after = _settled(manager, "web", 6, besides=lost)
    assert before - lost == before & after
    assert set(_on([manager, other])) == after
    lab.start(victim, "engine")
    _ready(manager, 3)
    until(lambda: calls.containers(victim), lambda found: not found, what="the end of what the engine brought back")
    assert _settled(manager, "web", 6) == after
    manager.docker("service", "scale", "--detach", "web=9")
    _settled(manager, "web", 9)
    until(lambda: calls.containers(victim), lambda found: len(found) == 3, what="work for the node that is back")


def test_a_node_that_is_cut_off_is_replaced_and_its_surplus_ends_when_it_is_back(lab: Lab, swarm: list[Host]) -> None:
    manager, other, victim = swarm
    _service(manager, "web", 6)
    lost = calls.containers(victim)
    assert len(lost) == 2
    lab.cut(victim)
    until(lambda: calls.node_states(manager)[victim.name], lambda state: state == "down")
    after = _settled(manager, "web", 6, besides=set(lost))
    assert calls.containers(victim) == lost, "nobody can tell the node, so its containers go on"
    lab.heal()
    _ready(manager, 3)
    until(lambda: calls.containers(victim), lambda found: not found, what="the end of the surplus")
    assert _settled(manager, "web", 6) == after
    assert set(_on([manager, other])) == after


def test_ten_kills_of_the_manager_lose_no_acknowledged_write_and_double_no_slot(lab: Lab, swarm: list[Host]) -> None:
    seed = int(os.environ.get("SIDESWARM_SEED") or random.SystemRandom().randrange(10**9))
    print(f"seed {seed} (SIDESWARM_SEED={seed} repeats the writers and the pauses)")
    rng, manager = random.Random(seed), swarm[0]
    places = (("node.role==worker", NOWHERE), ("node.role==worker", NOWHERE), (NOWHERE,) * 2, (NOWHERE,) * 2)
    clients = CheckedWriters(
        [Writer(manager, f"w{number}", f"{seed} {number}", where) for number, where in enumerate(places)]
    )
    for kill in range(1, 11):
        before = clients.acknowledged
        clients.start()
        try:
            until(partial(getattr, clients, "acknowledged"), partial(operator.lt, before), what="writes")
            time.sleep(rng.uniform(0.0, 1.0))
            lab.kill(manager)
        finally:
            clients.join()
        lab.start(manager)
        until(partial(_state, manager), lambda state: state == "active")
        assert clients.check(manager) == [], f"after kill {kill}, seed {seed}"
    assert clients.acknowledged > 50
    _ready(manager, 3)
    tasks = set()
    for writer in clients.writers:
        for name, replicas in writer.wanted().items():
            tasks |= _settled(manager, name, replicas)
    until(lambda: set(_on(swarm)), lambda found: found == tasks, what="exactly the containers of the running tasks")
    assert clients.check(manager) == [], f"at the end, seed {seed}"
