"""The Engine API of a host as data: one call, and the few views of a swarm that tests keep asking for."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import quote

from integration.lab import Host

TIMEOUT_S = 60.0
_FINISHED = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")


def call(
    host: Host, method: str, path: str, body: object = None, *, engine: bool = False, timeout_s: float = TIMEOUT_S
) -> tuple[int, Any]:
    """(status, JSON body) of a request to a host's daemon, or to its engine. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("docker", timeout=timeout_s)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(timeout_s)
        connection.sock.connect((host.engine if engine else host.api).removeprefix("unix://"))
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        return response.status, json.loads(answer) if answer.strip() else None
    finally:
        connection.close()


def get(host: Host, path: str, filters: dict[str, list[str]] | None = None) -> Any:
    """The body of a GET that must succeed."""
    query = f"?filters={quote(json.dumps(filters))}" if filters else ""
    status, body = call(host, "GET", f"{path}{query}")
    assert status == 200, f"GET {path}: {status} {body}"
    return body


def swarm_info(host: Host) -> dict[str, Any]:
    """The Swarm section of /info."""
    section: dict[str, Any] = get(host, "/info")["Swarm"]
    return section


def node_states(manager: Host) -> dict[str, str]:
    """Host name -> state of every node."""
    return {node["Description"]["Hostname"]: node["Status"]["State"] for node in get(manager, "/nodes")}


def node_of(manager: Host, host: Host) -> dict[str, Any]:
    """The node object of a host; AssertionError unless there is exactly one."""
    found = [node for node in get(manager, "/nodes") if node["Description"].get("Hostname") == host.name]
    assert len(found) == 1, f"{len(found)} nodes are called {host.name}"
    node: dict[str, Any] = found[0]
    return node


def tasks(manager: Host, service: str) -> list[dict[str, Any]]:
    """All tasks of a service, history included."""
    found: list[dict[str, Any]] = get(manager, "/tasks", {"service": [service]})
    return found


def live(manager: Host, service: str) -> list[dict[str, Any]]:
    """The tasks that are wanted and have not ended."""
    return [
        task
        for task in tasks(manager, service)
        if task["DesiredState"] in ("running", "ready") and task["Status"]["State"] not in _FINISHED
    ]


def running(manager: Host, service: str) -> list[dict[str, Any]]:
    """The tasks that run and are meant to."""
    return [task for task in live(manager, service) if task["Status"]["State"] == "running"]


def containers(host: Host, *, everything: bool = False, service: str = "") -> dict[str, str]:
    """Task ID -> container ID on a host's own engine; ``everything`` includes what has stopped."""
    label = f"com.docker.swarm.service.name={service}" if service else "com.docker.swarm.task.id"
    query = f"/containers/json?all={int(everything)}&filters={quote(json.dumps({'label': [label]}))}"
    status, rows = call(host, "GET", query, engine=True)
    assert status == 200, rows
    return {row["Labels"]["com.docker.swarm.task.id"]: row["Id"] for row in rows}
