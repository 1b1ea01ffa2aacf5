"""What was begun is finished or was nothing: joins that are stopped, leaves whose client is gone, a lost state.json."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from integration import calls
from integration.lab import Host, Lab
from integration.waiting import until

STUBBORN = ("busybox:latest", "sh", "-c", "trap '' TERM; while sleep 0.2; do :; done")


def _state(host: Host) -> str:
    return str(calls.swarm_info(host)["LocalNodeState"])


def _files(host: Host) -> Path:
    return host.directory / "swarm" / "swarm"


def _content(host: Host) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(_files(host).rglob("*")) if path.is_file()}


@contextlib.contextmanager
def _paused(host: Host) -> Iterator[None]:
    os.kill(host.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(host.pid, signal.SIGCONT)


@contextlib.contextmanager
def _joining(host: Host, token: str, manager: Host) -> Iterator[None]:
    command = ["docker", "-H", host.api, "swarm", "join", "--token", token, f"{manager.ip}:2377"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.kill()


def _two_managers(manager: Host) -> None:
    def look() -> list[tuple[str, str]]:
        nodes = calls.get(manager, "/nodes")
        return sorted(
            (node["Status"]["State"], node.get("ManagerStatus", {}).get("Reachability", "")) for node in nodes
        )

    until(look, lambda seen: seen == [("ready", "reachable")] * 2, what="two managers, and no third node")


@pytest.mark.parametrize("named", [False, True], ids=["before it has a certificate", "when the group may count on it"])
def test_a_join_as_manager_that_is_stopped_goes_on_at_the_next_start(lab: Lab, named: bool) -> None:
    manager, host, _ = lab.hosts
    manager.docker("swarm", "init", "--advertise-addr", manager.ip)
    token = manager.docker("swarm", "join-token", "-q", "manager").strip()
    file = _files(host) / "state.json"
    if named:
        with _joining(host, token, manager):
            until(lambda: file.exists() and json.loads(file.read_text())["node_id"], bool, what="its certificate")
            with _paused(manager):
                lab.stop(host)
    else:
        with _paused(manager), _joining(host, token, manager):
            until(partial(_state, host), lambda state: state == "pending")
            assert file.stat().st_mode & 0o777 == 0o600, "the token is in it"
            lab.stop(host)
            assert json.loads(file.read_text())["pending"]["token"] == token
    lab.start(host)
    until(partial(_state, host), lambda state: state == "active", what="the join goes on")
    _two_managers(manager)
    assert token not in file.read_text()
    assert token not in (host.directory / "daemon.log").read_text()
    assert manager.docker_run("config", "create", "still", "-", stdin="x").returncode == 0
    host.docker("config", "inspect", "still")


def _hang_up(host: Host, path: str, after_s: float) -> None:
    """Send a request, and be gone before it is answered."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(host.api.removeprefix("unix://"))
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n".encode())
        time.sleep(after_s)


def _out(host: Host) -> None:
    until(partial(_state, host), lambda state: state == "inactive", what="the end of the leave")
    until(lambda: calls.containers(host, everything=True), lambda found: found == {})
    assert not _files(host).exists()
    host.docker("swarm", "init", "--advertise-addr", host.ip)


def _with_a_task(host: Host) -> None:
    host.docker("swarm", "init", "--advertise-addr", host.ip)
    host.docker("service", "create", "--detach", "--name", "stubborn", "--stop-grace-period", "3s", *STUBBORN)
    until(lambda: len(calls.containers(host)), lambda count: count == 1)


@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.5])
def test_a_leave_is_finished_although_its_client_hung_up(lab: Lab, after_s: float) -> None:
    host = lab.hosts[0]
    _with_a_task(host)
    _hang_up(host, "/v1.41/swarm/leave?force=1", after_s)
    _out(host)


def test_a_leave_is_finished_by_the_next_start_after_a_kill(lab: Lab) -> None:
    host = lab.hosts[0]
    _with_a_task(host)
    _hang_up(host, "/v1.41/swarm/leave?force=1", 0.0)
    until(lambda: (_files(host) / "state.json.leaving").exists(), bool, what="the intention to leave")
    lab.kill(host)
    lab.start(host)
    _out(host)


def test_a_lost_state_json_is_named_and_nothing_is_deleted(lab: Lab) -> None:
    host = lab.hosts[0]
    host.docker("swarm", "init", "--advertise-addr", host.ip)
    assert host.docker_run("config", "create", "kept", "-", stdin="x").returncode == 0
    node_id = calls.swarm_info(host)["NodeID"]
    lab.stop(host)
    file = _files(host) / "state.json"
    state = file.read_bytes()
    for text in (None, b"", state[: len(state) // 2]):
        file.unlink()
        if text is not None:
            file.write_bytes(text)
        before = _content(host)
        lab.start(host)
        info = calls.swarm_info(host)
        assert (info["LocalNodeState"], "state.json" in info["Error"]) == ("error", True), info
        if text is None:
            assert "Nothing was deleted" in info["Error"]
        lab.stop(host)
        assert _content(host) == before
        file.write_bytes(state)
    lab.start(host)
    until(partial(_state, host), lambda found: found == "active")
    assert calls.swarm_info(host)["NodeID"] == node_id
    host.docker("config", "inspect", "kept")
