"""`docker swarm ca --rotate`: three managers of ours and a stock worker go to a new root while they work."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cryptography import x509

from integration import calls
from integration.lab import Host, Lab
from integration.waiting import until

IDLE = ("sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")


@pytest.fixture(scope="module")
def mixed() -> Iterator[list[Host]]:
    """node1 to node3: managers of ours; node4: a worker that is a stock engine."""
    lab = Lab(f"rr{os.getpid()}")
    lab.up(3, stock=1)
    lab.swarm(3)
    yield lab.hosts
    lab.down()


def _certificate(host: Host) -> x509.Certificate:
    directory = "engine/swarm" if host.stock else "swarm/swarm"
    found = host.directory / directory / "certificates/swarm-node.crt"
    return x509.load_pem_x509_certificate(found.read_bytes())


def _ready(manager: Host) -> None:
    """`docker node ls` shows four nodes that are ready, all with the swarm's root."""

    def rows() -> list[str]:
        done = manager.docker_run("node", "ls", "--format", "{{.Status}} {{.TLSStatus}}")
        return done.stdout.splitlines()

    until(rows, lambda seen: seen == ["Ready Ready"] * 4, what="four nodes with the new root")


def test_a_new_root_reaches_managers_and_a_stock_worker_and_both_tokens_change(mixed: list[Host]) -> None:
    manager, follower = mixed[0], mixed[1]
    _ready(manager)
    manager.docker("service", "create", "--detach", "--mode", "global", "--name", "on-all", "busybox:latest", *IDLE)
    until(lambda: len(calls.running(manager, "on-all")), lambda count: count == 4, what="a task on every node")
    before = calls.get(manager, "/swarm")
    tasks = sorted(task["ID"] for task in calls.running(manager, "on-all"))
    serials = [_certificate(host).serial_number for host in mixed]

    shown = follower.docker("swarm", "ca", "--rotate", timeout_s=200.0)
    assert "BEGIN CERTIFICATE" in shown
    assert "desired root digest" in shown
    _ready(manager)
    after = calls.get(manager, "/swarm")
    assert not after["RootRotationInProgress"]
    assert after["TLSInfo"]["TrustRoot"] != before["TLSInfo"]["TrustRoot"]
    assert after["TLSInfo"]["TrustRoot"].strip() in shown
    for role in ("Manager", "Worker"):
        assert after["JoinTokens"][role] != before["JoinTokens"][role]
    root = x509.load_pem_x509_certificate(after["TLSInfo"]["TrustRoot"].encode())
    for host, serial in zip(mixed, serials, strict=True):
        certificate = _certificate(host)
        assert certificate.serial_number != serial
        certificate.verify_directly_issued_by(root)
    assert sorted(task["ID"] for task in calls.running(manager, "on-all")) == tasks
