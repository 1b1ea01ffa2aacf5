"""Managers of ours and of a stock engine in one Raft group: each follows the other, and each takes over from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest
from cryptography import x509

from integration import calls
from integration.lab import Host, Lab
from integration.waiting import until

IDLE = ("sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")
ELECTION_S = 90.0  # groups with a stock member keep SwarmKit's time: 10 to 20 s for each attempt
LEAD, FOLLOW = "Leader", "Reachable"


@pytest.fixture(scope="module")
def lab_of_both() -> Iterator[Lab]:
    """node1 may lead stock managers, node2 may not, node3 is a stock engine."""
    lab = Lab(f"mx{os.getpid()}")
    lab.up(2, stock=1, flags=["--allow-mixed-leadership"])
    second = lab.hosts[1]
    lab.stop(second)
    second.extra = []
    lab.start(second)
    yield lab
    lab.down()


@pytest.fixture
def hosts(lab_of_both: Lab) -> tuple[Lab, Host, Host, Host]:
    """The hosts outside any swarm: ours with the flag, ours without, stock."""
    for host in lab_of_both.hosts:
        for part in ("engine", "daemon"):
            lab_of_both.ensure(host, part)
        host.docker_run("swarm", "leave", "--force")
    first, second, stock = lab_of_both.hosts
    return lab_of_both, first, second, stock


def join(host: Host, through: Host, *flags: str) -> None:
    token = through.docker("swarm", "join-token", "-q", "manager").strip()
    answer = host.docker("swarm", "join", "--token", token, *flags, f"{through.ip}:2377")
    assert answer == "This node joined a swarm as a manager.\n"


def statuses(host: Host) -> dict[str, str]:
    """Host name -> MANAGER STATUS; empty while nobody leads."""
    done = host.docker_run("node", "ls", "--format", "{{.Hostname}}\t{{.ManagerStatus}}")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: status for name, status in rows if status}


def becomes(host: Host, wanted: dict[str, str]) -> None:
    """Wait until this manager shows these statuses."""
    until(partial(statuses, host), lambda found: found == wanted, ELECTION_S, f"{wanted} on {host.name}")


def create(through: Host, name: str, managers: list[Host]) -> None:
    """A global service that every manager shows running on every node."""
    through.docker("service", "create", "-q", "--detach", "--name", name, "--mode", "global", "busybox:latest", *IDLE)
    for host in managers:
        until(partial(calls.running, host, name), lambda tasks: len(tasks) == 3, what=f"{name} as {host.name} shows it")


def certificate(host: Host) -> x509.Certificate:
    """The node certificate on a host's disk."""
    directory = "engine/swarm" if host.stock else "swarm/swarm"
    return x509.load_pem_x509_certificate((host.directory / directory / "certificates/swarm-node.crt").read_bytes())


def rotate(through: Host, managers: list[Host]) -> None:
    """Another root for the swarm, asked for in one manager; their tasks do not notice."""
    before, tasks = calls.get(through, "/swarm"), sorted(task["ID"] for task in calls.running(through, "kept"))
    serials = [certificate(host).serial_number for host in managers]
    shown = through.docker("swarm", "ca", "--rotate", timeout_s=200.0)
    assert "desired root digest" in shown
    for manager in managers:
        after = until(partial(calls.get, manager, "/swarm"), lambda swarm: not swarm["RootRotationInProgress"])
        assert after["TLSInfo"]["TrustRoot"] != before["TLSInfo"]["TrustRoot"]
        assert after["TLSInfo"]["TrustRoot"].strip() in shown
        assert all(after["JoinTokens"][role] != before["JoinTokens"][role] for role in ("Manager", "Worker"))
    root = x509.load_pem_x509_certificate(after["TLSInfo"]["TrustRoot"].encode())
    for host, serial in zip(managers, serials, strict=True):
        assert certificate(host).serial_number != serial
        certificate(host).verify_directly_issued_by(root)

    def rows() -> list[str]:
        return through.docker_run("node", "ls", "--format", "{{.Status}} {{.TLSStatus}}").stdout.splitlines()

    until(rows, lambda seen: seen == ["Ready Ready"] * len(managers), what="all nodes with the new root")
    assert sorted(task["ID"] for task in calls.running(through, "kept")) == tasks


def test_leadership_passes_between_stock_and_ours_by_death_and_by_demotion(
    hosts: tuple[Lab, Host, Host, Host],
) -> None:
    lab, ours, follower, stock = hosts
    stock.docker("swarm", "init", "--advertise-addr", stock.ip)
    join(ours, stock)  # the only manager: it must find the address of ours by itself
    join(follower, ours, "--advertise-addr", follower.ip)
    becomes(ours, {stock.name: LEAD, ours.name: FOLLOW, follower.name: FOLLOW})
    create(ours, "one", lab.hosts)
    # death of the stock leader: node2 must not lead stock managers, so node1 does
    lab.kill(stock)
    becomes(follower, {stock.name: "Unreachable", ours.name: LEAD, follower.name: FOLLOW})
    follower.docker("service", "update", "-q", "--detach", "--label-add", "by=ours", "one")
    lab.start(stock)
    until(lambda: calls.call(stock, "GET", "/services/one")[0], lambda status: status == 200, ELECTION_S)
    becomes(stock, {stock.name: FOLLOW, ours.name: LEAD, follower.name: FOLLOW})
    assert calls.get(stock, "/services/one")["Spec"]["Labels"] == {"by": "ours"}
    create(stock, "two", lab.hosts)
    # death of ours: the stock member takes over
    lab.kill(ours)
    becomes(follower, {stock.name: LEAD, ours.name: "Unreachable", follower.name: FOLLOW})
    follower.docker("service", "update", "-q", "--detach", "--label-add", "by=stock", "one")
    lab.start(ours)
    becomes(ours, {stock.name: LEAD, ours.name: FOLLOW, follower.name: FOLLOW})
    assert calls.get(ours, "/services/one")["Spec"]["Labels"] == {"by": "stock"}
    until(lambda: set(calls.node_states(ours).values()), lambda states: states == {"ready"}, ELECTION_S)
    # demotion of the stock leader: ours lead, and the group is theirs alone
    follower.docker("node", "demote", stock.name)
    until(partial(statuses, ours), lambda found: sorted(found.values()) == [LEAD, FOLLOW], ELECTION_S)
    assert stock.name not in statuses(ours)
    until(lambda: calls.swarm_info(stock)["ControlAvailable"], lambda available: not available, ELECTION_S)
    for manager, service in ((ours, "one"), (follower, "two")):
        until(partial(calls.running, manager, service), lambda tasks: len(tasks) == 3, what=f"{service} on every node")


def test_a_stock_manager_joins_ours_sees_another_root_and_takes_over_when_the_leader_is_demoted(
    hosts: tuple[Lab, Host, Host, Host],
) -> None:
    lab, ours, follower, stock = hosts
    ours.docker("swarm", "init", "--advertise-addr", ours.ip)
    join(follower, ours)
    join(stock, follower, "--advertise-addr", stock.ip)
    becomes(stock, {stock.name: FOLLOW, ours.name: LEAD, follower.name: FOLLOW})
    create(stock, "kept", lab.hosts)
    rotate(follower, lab.hosts)
    # whichever member is asked first, node2 hands over to the stock one
    until(lambda: stock.docker_run("node", "demote", ours.name).returncode, lambda code: code == 0)
    becomes(follower, {stock.name: LEAD, follower.name: FOLLOW})
    assert len(calls.running(follower, "kept")) == 3
    # the role of the node is still being carried out: until then its version moves on, for any two writers
    until(lambda: follower.docker_run("node", "promote", ours.name).returncode, lambda code: code == 0)
    becomes(ours, {stock.name: LEAD, ours.name: FOLLOW, follower.name: FOLLOW})


def test_a_leader_that_may_not_lead_stock_managers_admits_none(hosts: tuple[Lab, Host, Host, Host]) -> None:
    _, ours, alone, stock = hosts
    alone.docker("swarm", "init", "--advertise-addr", alone.ip)
    token = alone.docker("swarm", "join-token", "-q", "manager").strip()
    done = stock.docker_run("swarm", "join", "--token", token, "--advertise-addr", stock.ip, f"{alone.ip}:2377")
    assert done.returncode
    assert "a sideswarm manager without --allow-mixed-leadership" in done.stderr
    assert statuses(alone) == {alone.name: LEAD}
    join(ours, alone)
    becomes(alone, {alone.name: LEAD, ours.name: FOLLOW})
