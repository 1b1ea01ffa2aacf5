"""Networks as users see them, with the real CLI: the same commands on ours and on stock, and the same answers."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from integration.lab import Host, Lab
from integration.waiting import until

SERVICE = ("service", "create", "--quiet", "--no-resolve-image", "--detach", "--replicas", "0")
_MASKS = (
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-z]{25}\b"), "<id>"),
    (re.compile(r"^[0-9a-z]{12}(?=\s)", re.MULTILINE), "<short>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z"), "<time>"),
    (re.compile(r"172\.\d+\.\d+\.\d+"), "<address>"),
)

Words = tuple[str, ...]

CREATES: tuple[Words, ...] = (
    ("-d", "overlay", "ov1"),
    ("-d", "overlay", "--attachable", "--subnet", "10.30.0.0/24", "--label", "tier=back", "--opt", "foo=bar", "ov2"),
    ("-d", "overlay", "--opt", "encrypted", "--internal", "enc1"),
    ("-d", "overlay", "--subnet", "10.31.0.0/16", "--ip-range", "10.31.4.0/24", "--gateway", "10.31.4.9", "ranged"),
    ("mine",),
    ("-d", "bridge", "--scope", "swarm", "nodes"),
    ("--config-only", "--subnet", "10.50.0.0/24", "conf"),
    ("--config-from", "conf", "--scope", "swarm", "-d", "bridge", "configured"),
)
TWINS = {
    "Name": "twins",
    "Driver": "overlay",
    "IPAM": {"Config": [{"Subnet": "10.32.0.0/24"}, {"Subnet": "10.33.0.0/24"}]},
}
REFUSED: tuple[Words, ...] = (
    ("-d", "overlay", "ov1"),
    ("ov1",),
    ("-d", "overlay", "mine"),
    ("-d", "overlay", "ingress"),
    ("-d", "overlay", "host"),
    ("-d", "overlay", "none"),
    ("-d", "overlay", "default"),
    ("-d", "overlay", "--ingress", "second"),
    ("-d", "overlay", "--ingress", "--attachable", "second"),
    ("--ingress", "second"),
    ("-d", "overlay", "a b"),
    ("-d", "overlay", "x" * 64),
    ("-d", "overlay", "--subnet", "nope", "bad"),
    ("-d", "overlay", "--subnet", "10.44.0.0", "bad"),
    ("-d", "overlay", "--subnet", "10.44.0.0/24", "--gateway", "10.45.0.1", "bad"),
    ("-d", "overlay", "--subnet", "10.44.0.0/24", "--ip-range", "10.45.0.0/25", "bad"),
    ("-d", "overlay", "--ipam-driver", "nosuch", "bad"),
    ("-d", "nosuch", "--scope", "swarm", "bad"),
    ("-d", "host", "--scope", "swarm", "a.b.c"),
    ("-d", "overlay", "--scope", "local", "bad"),
    ("-d", "overlay", "--label", "com.docker.swarm.predefined=true", "bad"),
    ("-d", "bridge", "--scope", "swarm", "--config-from", "conf", "--label", "a=b", "bad"),
    ("-d", "bridge", "--scope", "swarm", "--config-from", "conf", "--opt", "a=b", "bad"),
    ("-d", "overlay", "--config-only", "--internal", "bad"),
)
READS: tuple[Words, ...] = (
    ("network", "ls"),
    ("network", "ls", "--no-trunc"),
    ("network", "ls", "--filter", "driver=overlay"),
    ("network", "ls", "--filter", "driver=over"),
    ("network", "ls", "--filter", "scope=swarm"),
    ("network", "ls", "--filter", "scope=local"),
    ("network", "ls", "--filter", "scope=nosuch"),
    ("network", "ls", "--filter", "label=tier"),
    ("network", "ls", "--filter", "label=tier=back"),
    ("network", "ls", "--filter", "label=tier=front"),
    ("network", "ls", "--filter", "name=ov1"),
    ("network", "ls", "--filter", "name=mine", "--filter", "name=ov2"),
    ("network", "ls", "--filter", "type=custom"),
    ("network", "ls", "--filter", "type=builtin"),
    ("network", "ls", "--filter", "type=nosuch"),
    ("network", "ls", "--filter", "dangling=true"),
    ("network", "ls", "--filter", "dangling=false"),
    ("network", "ls", "--filter", "dangling=x"),
    ("network", "ls", "--filter", "nosuch=x"),
    ("network", "inspect", "--format", "{{.Name}} {{.Driver}} {{.Ingress}} {{.IPAM}} {{.Options}}", "ingress"),
    ("network", "inspect", "ov1"),
    ("network", "inspect", "ov2"),
    ("network", "inspect", "enc1"),
    ("network", "inspect", "ranged"),
    ("network", "inspect", "twins"),
    ("network", "inspect", "--scope", "swarm", "nodes"),
    ("network", "inspect", "--scope", "swarm", "host"),
    ("network", "inspect", "--scope", "swarm", "configured"),
    ("network", "inspect", "--scope", "local", "ov1"),
    ("network", "inspect", "--scope", "local", "mine"),
    ("network", "inspect", "--scope", "swarm", "mine"),
    ("network", "inspect", "host"),
    ("network", "inspect", "conf"),
    ("network", "inspect", "nosuch"),
)
SERVICES: tuple[Words, ...] = (
    ("--network", "ov1", "--name", "web", "--publish", "8080:80", "--publish", "published=53,target=53,protocol=udp"),
    ("--network", "name=ov2,alias=db,driver-opt=a=b", "--name", "db"),
    ("--network", "ov1", "--endpoint-mode", "dnsrr", "--name", "rr"),
    ("--network", "nodes", "--name", "local"),
    ("--network", "host", "--name", "onhost"),
    ("--publish", "mode=host,target=80,published=9090", "--name", "hostmode"),
    ("--publish", "8080:81", "--name", "bad"),
    ("--publish", "mode=host,target=80,published=8080", "--name", "bad"),
    ("--publish", "9090:81", "--name", "bad"),
    ("--publish", "7000:81", "--endpoint-mode", "dnsrr", "--name", "bad"),
    ("--publish", "7000:81", "--publish", "7000:82", "--name", "bad"),
    ("--network", "ingress", "--name", "bad"),
    ("--network", "mine", "--name", "bad"),
    ("--network", "nosuch", "--name", "bad"),
)
ENDPOINT = "{{json .Endpoint}} {{json .Spec.TaskTemplate.Networks}} {{json .Spec.EndpointSpec}}"
MADE = ("web", "db", "rr", "local", "onhost", "hostmode")
USES: tuple[Words, ...] = (
    *(
        ("service", "inspect", "--format", ENDPOINT, name)
        for name in ("web", "db", "rr", "local", "onhost", "hostmode")
    ),
    ("service", "inspect", "--pretty", "db"),
    ("service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Ports}}"),
    ("network", "rm", "ov1"),
    ("network", "rm", "nosuch"),
    ("network", "rm", "host"),
    ("service", "update", "--quiet", "--detach", "--network-rm", "ov1", "--publish-rm", "80", "web"),
    ("service", "inspect", "--format", ENDPOINT, "web"),
    ("network", "prune", "--force", "--filter", "label=nosuch"),
    ("network", "prune", "--force", "--filter", "nosuch=x"),
    ("network", "prune", "--force", "--filter", "until=24h"),
    ("network", "prune", "--force", "--filter", "label!=tier"),
    ("network", "ls"),
    ("service", "rm", *MADE),
    ("network", "rm", "ov1", "ov2"),
    ("network", "ls"),
)
CALLS: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/networks/create", {"Driver": "overlay"}),
    ("POST", "/networks/create", {"Name": 1, "Driver": "overlay"}),
    ("POST", "/networks/create", {"Name": "x", "Driver": "overlay", "IPAM": {"Config": {}}}),
    ("POST", "/networks/create", {"Name": "x", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": 1}]}}),
    ("POST", "/networks/create", {"Name": "x", "Driver": "overlay", "Options": []}),
    ("POST", "/networks/create", {"Name": "x", "Scope": "swarm"}),
    ("POST", "/networks/create", {"Name": "x", "Ingress": True}),
    ("POST", "/networks/create", {"Name": "ingress"}),
    ("POST", "/networks/create", None),
    ("GET", "/networks/ingress?verbose=x", None),
    ("GET", "/networks?filters=x", None),
    ("GET", "/networks/nosuch?scope=swarm", None),
    ("DELETE", "/networks/nosuch", None),
    ("POST", "/networks/nosuch/connect", {"Container": "x"}),
    ("POST", "/networks/ingress/connect", {"Container": "x"}),
    ("POST", "/networks/ingress/disconnect", {"Container": "x"}),
    ("POST", "/networks/prune?filters=x", None),
)


def _masked(text: str) -> str:
    for pattern, word in _MASKS:
        text = pattern.sub(word, text)
    return text


def _answer(host: Host, method: str, path: str, body: Any) -> tuple[int, str]:
    """Status and text of one call of API version 1.41."""
    connection = http.client.HTTPConnection("docker")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(host.api.removeprefix("unix://"))
    data = None if body is None else json.dumps(body)
    connection.request(method, f"/v1.41{path}", data, {"Content-Type": "application/json"} if data else {})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def _said(host: Host, *words: str) -> str:
    """All that the CLI says, without what differs from run to run, and without stock's bridge of the gateway."""
    done = host.docker_run(*words)
    lines = _masked(done.stdout + done.stderr).splitlines()
    lines = [
        re.sub(r" {2,}", " ", line) for line in lines if "docker_gwbridge" not in line
    ]  # columns are as wide as it
    if "prune" in words:
        lines.sort()  # networks go in the order of their IDs
    return "\n".join([f"exit {done.returncode}", *lines])


@pytest.fixture
def pairs(make_lab: Callable[..., Lab]) -> list[tuple[Host, Host]]:
    """A manager and a worker of ours, each with its like of stock."""
    lab = make_lab(2, stock=2)
    ours, stock = lab.hosts[:2], lab.hosts[2:]
    for manager, worker in (ours, stock):
        manager.docker("swarm", "init", "--advertise-addr", manager.ip)
        token = manager.docker("swarm", "join-token", "-q", "worker").strip()
        worker.docker("swarm", "join", "--token", token, "--advertise-addr", worker.ip, f"{manager.ip}:2377")
    return list(zip(ours, stock, strict=True))


def test_networks_look_on_ours_as_they_look_on_stock(pairs: list[tuple[Host, Host]]) -> None:
    (ours, stock), (our_worker, stock_worker) = pairs
    different: list[str] = []

    def compare(mine: Host, theirs: Host, *words: str) -> None:
        said, expected = _said(mine, *words), _said(theirs, *words)
        if said != expected:
            different.append(f"--- {' '.join(words)}\nours:\n{said}\nstock:\n{expected}")

    for words in CREATES:
        compare(ours, stock, "network", "create", *words)
    assert [_answer(host, "POST", "/networks/create", TWINS)[0] for host in (ours, stock)] == [201, 201]
    _settled(stock, 6)
    for words in REFUSED:
        compare(ours, stock, "network", "create", *words)
    for words in READS:
        compare(ours, stock, *words)
    for method, path, body in CALLS:
        said, expected = (_answer(host, method, path, body) for host in (ours, stock))
        if _masked(str(said)) != _masked(str(expected)):
            different.append(f"--- {method} {path} {body}\nours:\n{said}\nstock:\n{expected}")
    for words in SERVICES:
        compare(ours, stock, *SERVICE, *words, "busybox:latest")
    for words in USES:
        compare(ours, stock, *words)
    compare(our_worker, stock_worker, "network", "create", "-d", "overlay", "ov9")
    compare(our_worker, stock_worker, "network", "rm", "ov9")
    assert not different, "\n".join(different)


def _settled(host: Host, count: int) -> None:
    """Stock answers before its allocator is done."""

    def allocated() -> bool:
        listed = host.docker("network", "ls", "-q", "--filter", "scope=swarm", "--filter", "driver=overlay").split()
        return len(listed) == count

    until(allocated, what="all networks allocated")


def test_the_network_of_the_mesh_can_be_removed_and_made_again(swarm: list[Host]) -> None:
    manager = swarm[0]
    spec = json.loads(manager.docker("network", "inspect", "ingress"))[0]
    assert spec["IPAM"]["Config"] == [{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}]
    manager.docker(*SERVICE, "--publish", "8080:80", "--name", "web", "busybox:latest")
    refused = manager.docker_run("network", "rm", "ingress", stdin="y\n")
    assert "ingress network cannot be removed because service" in refused.stderr
    manager.docker("service", "rm", "web")
    assert manager.docker_run("network", "rm", "ingress", stdin="y\n").returncode == 0
    missing = manager.docker_run(*SERVICE, "--publish", "8080:80", "--name", "web", "busybox:latest")
    assert "service needs ingress network, but no ingress network is present" in missing.stderr
    manager.docker("network", "create", "-d", "overlay", "--ingress", "--subnet", "10.9.0.0/16", "mesh")
    manager.docker(*SERVICE, "--publish", "8080:80", "--name", "web", "busybox:latest")
    [address] = json.loads(manager.docker("service", "inspect", "--format", "{{json .Endpoint.VirtualIPs}}", "web"))
    assert address["Addr"].startswith("10.9.0.")


def test_network_events_of_the_swarm_are_as_recorded(swarm: list[Host]) -> None:
    manager = swarm[0]
    manager.docker("network", "create", "-d", "overlay", "evn")
    manager.docker("network", "rm", "evn")
    until_s = int(time.time()) + 2  # the CLI counts whole seconds
    window = ("--since", "5m", "--until", str(until_s), "--filter", "network=evn")
    shown = manager.docker("events", *window, "--format", "{{json .}}")
    rows = [json.loads(line) for line in shown.splitlines()]
    assert [(row["Type"], row["Action"], row["scope"]) for row in rows] == [
        ("network", "create", "swarm"),
        ("network", "update", "swarm"),
        ("network", "remove", "swarm"),
    ]
    assert all(row["Actor"]["Attributes"] == {"name": "evn"} for row in rows)
