"""Certificates over their whole life, with stock peers: outside authorities, short lives, expiry, absent nodes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import keys
from certs.root import RootCA
from integration import calls
from integration.cfssl import make_root, serving_on
from integration.lab import PROJECT, Host, Lab
from integration.waiting import until
from swarm.errors import Code

IDLE = ("sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")
DAY_S = 86400.0
# a stock node renews a full minute after the beginning of a certificate of two
SHORT_LIFE = ("--expiry-s", "120", "--backdate-s", "56")


@pytest.fixture(scope="module")
def lab_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """node1 and node2 are ours, node3 is a stock engine; none in a swarm."""
    lab = Lab(f"ce{os.getpid()}")
    lab.up(2, stock=1, flags=["--allow-mixed-leadership", "--metrics-addr", ":9323"])
    yield lab
    lab.down()


@pytest.fixture
def lab(lab_of_three: Lab) -> Lab:
    """All running, none in a swarm."""
    for host in lab_of_three.hosts:
        for part in ("engine", "daemon"):
            lab_of_three.ensure(host, part)
        host.docker_run("swarm", "leave", "--force")
    return lab_of_three


@pytest.fixture
def company(tmp_path: Path) -> Path:
    """A directory with the root of a company: root.pem and root.key."""
    certificate, key = make_root("company")
    (tmp_path / "root.pem").write_bytes(certificate)
    (tmp_path / "root.key").write_bytes(key)
    return tmp_path


def begin(manager: Host, *others: Host) -> None:
    """A swarm of one manager and workers, with a task on every node."""
    manager.docker("swarm", "init", "--advertise-addr", manager.ip)
    manager.docker("swarm", "update", "--dispatcher-heartbeat", "1s")
    for host in others:
        join(host, manager)
    manager.docker("service", "create", "-q", "-d", "--mode", "global", "--name", "on-all", "busybox:latest", *IDLE)
    until(lambda: len(calls.running(manager, "on-all")), lambda count: count == 1 + len(others))


def join(host: Host, manager: Host, role: str = "worker") -> None:
    token = manager.docker("swarm", "join-token", "-q", role).strip()
    host.docker("swarm", "join", "--token", token, "--advertise-addr", host.ip, f"{manager.ip}:2377")


def directory_of(host: Host) -> Path:
    return host.directory / ("engine/swarm" if host.stock else "swarm/swarm") / "certificates"


def certificate(host: Host) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory_of(host) / "swarm-node.crt").read_bytes())


def role(host: Host) -> str:
    return keys.identity_of(certificate(host)).role


def lasts_hours(host: Host) -> float:
    """The life of this node's certificate, with the hour before it was signed."""
    return (certificate(host).not_valid_after_utc - certificate(host).not_valid_before_utc).total_seconds() / 3600.0


def newest_of(issued: Path, host: Host) -> float:
    """When the newest certificate begins that the authority outside has signed for the node of this host."""
    own = keys.identity_of(certificate(host)).node_id
    found = x509.load_pem_x509_certificates(issued.read_bytes())
    return max(leaf.not_valid_before_utc.timestamp() for leaf in found if f"CN={own}" in leaf.subject.rfc4514_string())


def renewed(host: Host, before: int = 0) -> None:
    """Wait until this node has another certificate than this one (0: than now), whenever its time comes."""
    before = before or certificate(host).serial_number
    until(lambda: certificate(host).serial_number, lambda serial: serial != before, what=f"renewal on {host.name}")


def tls_states(manager: Host) -> dict[str, str]:
    done = manager.docker_run("node", "ls", "--format", "{{.Hostname}}\t{{.TLSStatus}}")
    return dict(line.split("\t") for line in done.stdout.splitlines())


def ready(manager: Host, *hosts: Host) -> None:
    wanted = {host.name: "ready" for host in hosts}

    def states() -> dict[str, str]:
        nodes = calls.get(manager, "/nodes")
        return {node["Description"].get("Hostname", ""): node["Status"]["State"] for node in nodes}

    until(states, lambda seen: seen == wanted, what="all nodes ready")


def reachable(manager: Host, other: Host) -> bool:
    """Whether another manager is up, as this one shows it; not while there is no leader."""
    form = "{{with .ManagerStatus}}{{.Reachability}}{{end}}"
    return manager.docker_run("node", "inspect", other.name, "--format", form).stdout.strip() == "reachable"


def tasks(manager: Host) -> list[str]:
    return sorted(task["ID"] for task in calls.running(manager, "on-all"))


def log_has(host: Host, *words: str) -> bool:
    lines = (host.directory / "daemon.log").read_text().splitlines()
    return any(all(word in line for word in words) for line in lines)


def renewal_events(manager: Host, host: Host, since: float) -> list[str]:
    """`docker events` of a node that tell of something else than its state, role or availability: its certificate."""
    flags = ("--since", f"{since:.3f}", "--until", f"{time.time():.3f}", "--filter", "type=node")
    lines = manager.docker("events", *flags, "--filter", f"node={host.name}", "--format", "{{json .}}").splitlines()
    events = [json.loads(line) for line in lines]
    return [event["Action"] for event in events if set(event["Actor"]["Attributes"]) == {"name"}]


def through_roles(manager: Host, worker: Host, in_time: Callable[[], None]) -> None:
    """A worker, then a manager for a while, with certificates that are renewed when it is time."""
    in_time()
    assert role(worker) == "swarm-worker"
    manager.docker("node", "promote", worker.name)
    until(partial(reachable, manager, worker))
    in_time()
    assert role(worker) == "swarm-manager"
    until(partial(reachable, manager, worker))
    # its description changes with its certificate: until that is over its version moves on, for any two writers
    until(lambda: manager.docker_run("node", "demote", worker.name).returncode, lambda code: code == 0)
    until(lambda: role(worker), lambda seen: seen == "swarm-worker")


def through_an_authority(lab: Lab, manager: Host, worker: Host, company: Path) -> None:
    """To an authority outside with certificates that live for minutes, and back to a root of the swarm's own."""
    begin(manager, worker)
    (company / "first.pem").write_text(manager.docker("swarm", "ca"))
    running = tasks(manager)
    options = ("--cross-sign", "--also-trust", str(company / "first.pem"), *SHORT_LIFE)
    issued = ("--issued", str(company / "issued.pem"))
    with serving_on(manager, company, *options, *issued) as url:
        external = f"protocol=cfssl,url={url},cacert={company / 'root.pem'}"
        flags = ("--ca-cert", str(company / "root.pem"), "--external-ca", external)
        shown = manager.docker("swarm", "ca", "--rotate", *flags, timeout_s=60.0)
        assert shown.strip().endswith((company / "root.pem").read_text().strip())
        until(partial(tls_states, manager), lambda seen: seen == {manager.name: "Ready", worker.name: "Ready"})
        root = x509.load_pem_x509_certificate((company / "root.pem").read_bytes())
        for host in (manager, worker):
            certificate(host).verify_directly_issued_by(root)
        through_roles(manager, worker, partial(renewed, worker))
        manager.docker("swarm", "ca", "--rotate", "--quiet", timeout_s=60.0)
    until(partial(tls_states, manager), lambda seen: seen == {manager.name: "Ready", worker.name: "Ready"})
    ready(manager, manager, worker)
    for host in (manager, worker):
        signed = certificate(host).not_valid_after_utc.timestamp() - 90 * DAY_S
        begins = certificate(host).not_valid_before_utc.timestamp()
        # ours begin right after the newest one from outside, which was signed a short time ago
        assert begins == (signed - 3600.0 if manager.stock else newest_of(company / "issued.pem", host) + 1.0)
    assert tasks(manager) == running


def test_an_authority_outside_signs_for_our_manager_and_a_stock_node_in_every_role(lab: Lab, company: Path) -> None:
    ours, _, stock = lab.hosts
    through_an_authority(lab, ours, stock, company)
    assert log_has(ours, "certificate.issued", "external CA")


def test_the_same_authority_signs_for_a_stock_manager_and_our_node_in_every_role(lab: Lab, company: Path) -> None:
    ours, _, stock = lab.hosts
    through_an_authority(lab, stock, ours, company)


def test_an_authority_that_is_away_is_named_where_it_is_needed(lab: Lab, company: Path) -> None:
    ours = lab.hosts[0]
    begin(ours)
    away = f"protocol=cfssl,url=https://{ours.ip}:9/sign,cacert={company / 'root.pem'}"
    refused = ours.docker_run("swarm", "ca", "--rotate", "--ca-cert", str(company / "root.pem"), "--external-ca", away)
    assert refused.returncode
    assert "there must be at least one valid, reachable external CA corresponding to the desired CA" in refused.stderr
    assert log_has(ours, "external_ca.unusable", f"https://{ours.ip}:9/sign", "connection refused")
    ours.docker("swarm", "update", "--external-ca", f"protocol=cfssl,url=https://{ours.ip}:9/sign")
    assert f"cfssl: https://{ours.ip}:9/sign" in ours.docker("info")
    token = ours.docker("swarm", "join-token", "-q", "worker").strip()
    second = lab.hosts[1]
    calls.call(second, "POST", "/swarm/leave?force=1")
    joining = {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": second.ip, "RemoteAddrs": [f"{ours.ip}:2377"]}
    with pytest.raises(TimeoutError):  # it waits for a signature
        calls.call(second, "POST", "/swarm/join", {**joining, "JoinToken": token}, timeout_s=2.0)
    until(lambda: log_has(ours, "external_ca.unusable", "waiting=1"), what="a line of the log")
    spec = calls.get(ours, "/swarm")["Spec"]
    spec["CAConfig"]["ExternalCAs"] = []
    version = calls.get(ours, "/swarm")["Version"]["Index"]
    assert calls.call(ours, "POST", f"/swarm/update?version={version}", spec)[0] == 200
    ready(ours, ours, second)


# --- expiry --------------------------------------------------------------------------------------------------------


def ending(host: Host, root: RootCA, ended_s: float) -> None:
    """Replace a node's certificate by one of 90 days that expired so long ago; its daemon does not run."""
    expire(directory_of(host), root, ended_s)


def expire(own: Path, root: RootCA, ended_s: float) -> None:
    """The same in a directory of certificates."""
    identity = keys.identity_of((own / "swarm-node.crt").read_bytes())
    key = keys.load_private_key((own / "swarm-node.key").read_bytes())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    life_s = 90 * DAY_S
    signed = time.time() - ended_s - life_s
    issued = root.sign(keys.new_csr(key), identity.node_id, identity.role, identity.org, signed, life_s)
    (own / "swarm-node.crt").write_bytes(issued)


def local_error(host: Host) -> str:
    return str(calls.swarm_info(host)["Error"])


def old_company(directory: Path) -> tuple[RootCA, tuple[str, ...]]:
    """A root that is old enough for certificates that have expired, and how the CLI is given it."""
    certificate_pem, key_pem = make_root("company", days=20 * 365, now=time.time() - 400 * DAY_S)
    (directory / "root.pem").write_bytes(certificate_pem)
    (directory / "root.key").write_bytes(key_pem)
    flags = ("--ca-cert", str(directory / "root.pem"), "--ca-key", str(directory / "root.key"))
    return RootCA(certificate_pem, key_pem), flags


def test_nodes_whose_certificates_expired_while_they_were_off_come_back_for_a_month(lab: Lab, company: Path) -> None:
    manager, worker, _ = lab.hosts
    begin(manager, worker)
    root, flags = old_company(company)
    manager.docker("swarm", "ca", "--rotate", "--quiet", *flags, timeout_s=60.0)
    node_id = calls.swarm_info(worker)["NodeID"]
    # a manager alone, long after its time, and a worker two weeks after
    for host, ended_s in ((manager, 200 * DAY_S), (worker, 14 * DAY_S + 300)):
        lab.stop(host)
        ending(host, root, ended_s)
    since = time.time()
    for host in (manager, worker):
        lab.start(host)
    ready(manager, manager, worker)
    assert log_has(manager, "certificate.expired", node_id, "14d before this manager's clock")
    assert renewal_events(manager, worker, since)
    for host in (manager, worker):
        until(partial(local_error, host), lambda error: error == "", what="no trouble")
        assert certificate(host).not_valid_after_utc.timestamp() > time.time()
    # too late: it says why, and can leave and join again
    lab.stop(worker)
    ending(worker, root, 31 * DAY_S + 300)
    lab.start(worker)
    error = until(partial(local_error, worker), lambda seen: "leave the swarm and join again" in seen)
    assert "31d before this manager's clock" in error
    assert log_has(manager, "certificate.refused", node_id)
    counted = manager.inside("busybox", "wget", "-qO-", "http://127.0.0.1:9323/metrics").stdout
    for renewable in ("true", "false"):
        assert f'sideswarm_lapsed_certificates_total{{renewable="{renewable}"}}' in counted
    assert f"Error: {error}" in worker.docker("info")
    worker.docker("swarm", "leave", "--force")
    join(worker, manager)
    assert calls.swarm_info(worker)["NodeID"] != node_id


def ask_again(host: Host, target: Host, loot: Path) -> tuple[int, str]:
    """Ask a manager for another certificate, with a copy of some node's files, and forget it."""
    command = (sys.executable, "-m", "integration.attacks", "renewal", f"{target.ip}:2377", str(loot))
    done = host.inside("env", f"PYTHONPATH={PROJECT}", *command, timeout_s=60.0)
    assert done.returncode == 0, done.stderr
    code, text = json.loads(done.stdout)
    return code, text


def test_an_old_copy_of_a_workers_files_gets_nothing_after_its_node_was_promoted(
    lab: Lab, company: Path, tmp_path: Path
) -> None:
    manager, worker, _ = lab.hosts
    begin(manager, worker)
    root, flags = old_company(company)
    manager.docker("swarm", "ca", "--rotate", "--quiet", *flags, timeout_s=60.0)
    loot = shutil.copytree(directory_of(worker), tmp_path / "loot")
    lapsed = shutil.copytree(directory_of(worker), tmp_path / "lapsed")
    expire(lapsed, root, 14 * DAY_S)
    manager.docker("node", "promote", worker.name)
    until(partial(reachable, manager, worker))
    until(partial(role, worker), lambda seen: seen == "swarm-manager")
    for target in (manager, worker):
        for copy in (loot, lapsed):
            until(
                partial(ask_again, worker, target, copy),
                lambda seen: seen[0] == Code.PERMISSION_DENIED and "the certificate is superseded" in seen[1],
            )
    assert log_has(manager, "certificate.key_refused", calls.swarm_info(worker)["NodeID"])
    lab.stop(worker)
    lab.start(worker)
    until(partial(reachable, manager, worker))
    assert ask_again(worker, manager, directory_of(worker))[0] == 0


def test_a_node_that_lost_the_certificate_that_it_was_issued_comes_back_with_the_one_that_it_has(lab: Lab) -> None:
    manager, worker, _ = lab.hosts
    begin(manager, worker)
    for _ in range(2):
        assert ask_again(worker, manager, directory_of(worker)) == (0, "")  # as if it crashed before it was saved
    lab.stop(worker)
    lab.start(worker)
    ready(manager, manager, worker)
    manager.docker("node", "promote", worker.name)
    until(partial(reachable, manager, worker))
    assert role(worker) == "swarm-manager"


# --- nodes that are away -------------------------------------------------------------------------------------------


def test_a_rotation_waits_for_a_node_that_is_away_and_says_which(lab: Lab) -> None:
    manager, away, stock = lab.hosts
    begin(manager, away, stock)
    before = calls.get(manager, "/swarm")
    lab.stop(away)
    until(lambda: calls.node_states(manager)[away.name], lambda state: state == "down")
    manager.docker("swarm", "ca", "--rotate", "--detach")
    wanted = {manager.name: "Ready", stock.name: "Ready", away.name: "Needs Rotation"}
    until(partial(tls_states, manager), lambda seen: seen == wanted, what="all but one on the new root")

    def shown() -> dict[str, Any]:
        swarm: dict[str, Any] = calls.get(manager, "/swarm")
        return swarm

    assert shown()["RootRotationInProgress"]
    assert shown()["JoinTokens"] == before["JoinTokens"]
    warned = manager.docker_run("info")
    assert f"waits for nodes that are away: {away.name}\n" in warned.stdout + warned.stderr
    manager.docker("node", "rm", calls.node_of(manager, away)["ID"])
    until(lambda: shown()["RootRotationInProgress"], lambda rotating: not rotating, what="the end of the rotation")
    assert shown()["TLSInfo"]["TrustRoot"] != before["TLSInfo"]["TrustRoot"]
    assert all(shown()["JoinTokens"][part] != before["JoinTokens"][part] for part in ("Worker", "Manager"))
    ready(manager, manager, stock)
    # a removed node joins again with the present token, and gets a certificate of the present lifetime
    lab.start(away)
    replaced = manager.docker("swarm", "join-token", "-q", "worker").strip()
    manager.docker("swarm", "join-token", "--rotate", "worker")
    manager.docker("swarm", "update", "--cert-expiry", "2h")
    for token, why in (
        (before["JoinTokens"]["Worker"], "remote CA does not match fingerprint"),
        (replaced, "A valid join token is necessary to join this cluster"),
    ):
        away.docker_run("swarm", "leave", "--force")
        refused = away.docker_run("swarm", "join", "--token", token, "--advertise-addr", away.ip, f"{manager.ip}:2377")
        assert why in refused.stderr
    away.docker_run("swarm", "leave", "--force")
    join(away, manager)
    ready(manager, manager, away, stock)
    assert lasts_hours(away) == 3


def test_a_swarm_begins_with_an_authority_and_refuses_short_lives_in_stocks_words(lab: Lab) -> None:
    ours = lab.hosts[0]
    external = "protocol=cfssl,url=https://ca.example/sign"
    ours.docker("swarm", "init", "--advertise-addr", ours.ip, "--external-ca", external)
    assert "cfssl: https://ca.example/sign" in ours.docker("info")
    for life in ("59m", "1ns"):
        refused = ours.docker_run("swarm", "update", "--cert-expiry", life)
        assert refused.stderr == (
            "Error response from daemon: rpc error: code = InvalidArgument desc = minimum certificate expiry time is: "
            "1h0m0s\n"
        )
    ours.docker("swarm", "update", "--cert-expiry", "1h")
    assert "Expiry Duration: About an hour" in ours.docker("info")


def test_managers_that_all_expired_while_they_were_off_go_on_from_one(lab: Lab, company: Path) -> None:
    first, second, _ = lab.hosts
    first.docker("swarm", "init", "--advertise-addr", first.ip)
    join(second, first, "manager")
    root, flags = old_company(company)
    first.docker("swarm", "ca", "--rotate", "--quiet", *flags, timeout_s=60.0)
    for host in (first, second):
        lab.stop(host)
        ending(host, root, 10 * DAY_S)
    for host in (first, second):
        lab.start(host)
    for host in (first, second):
        until(partial(local_error, host), lambda error: "x509: certificate has expired" in error)
    first.docker("swarm", "init", "--force-new-cluster", "--advertise-addr", first.ip)
    ready(first, first, second)
    until(partial(reachable, first, second))
