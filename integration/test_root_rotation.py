"""`docker swarm ca --rotate` with three managers of ours: through followers, under load, while the leader dies."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

from cryptography import x509

from integration import calls
from integration.lab import Host, Lab
from integration.waiting import until
from integration.writers import Load, Record, missing


def ready(host: Host) -> int:
    """How many nodes this manager shows as ready; 0 while it cannot say."""
    status, nodes = calls.call(host, "GET", "/nodes")
    return sum(node["Status"]["State"] == "ready" for node in nodes) if status == 200 else 0


def leader(hosts: list[Host]) -> Host:
    """Who leads, as these managers say."""

    def named() -> str:
        for host in hosts:
            status, nodes = calls.call(host, "GET", "/nodes")
            for node in nodes if status == 200 else ():
                if node.get("ManagerStatus", {}).get("Leader"):
                    return str(node["Description"]["Hostname"])
        return ""

    name = until(named, what="a leader")
    return next(host for host in hosts if host.name == name)


def trusted(host: Host) -> str:
    """The roots on the disk of a node."""
    return (host.directory / "swarm/swarm/certificates/swarm-root-ca.crt").read_text().strip()


def signed_by(host: Host, root_pem: str) -> bool:
    """Whether the certificate of a node is signed by the key of this root, by itself or through another one."""
    key = x509.load_pem_x509_certificate(root_pem.encode()).public_key()
    leaf = x509.load_pem_x509_certificate((host.directory / "swarm/swarm/certificates/swarm-node.crt").read_bytes())
    issuer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return issuer.key_identifier == x509.SubjectKeyIdentifier.from_public_key(key).digest


def turned(managers: list[Host], worker: Host, before: dict[str, object]) -> str:
    """Wait until all managers show another root and other tokens, and all nodes have it on disk; the root."""
    hosts = [*managers, worker]

    def shown() -> set[tuple[bool, str, str, str]]:
        found = set()
        for host in managers:
            status, swarm = calls.call(host, "GET", "/swarm")
            if status != 200:
                return set()
            tokens = swarm["JoinTokens"]
            root = swarm["TLSInfo"]["TrustRoot"].strip()
            found.add((swarm["RootRotationInProgress"], root, tokens["Worker"], tokens["Manager"]))
        return found

    seen = until(shown, lambda found: len(found) == 1 and not next(iter(found))[0], what="one root everywhere")
    _, root, *tokens = seen.pop()
    until(lambda: {trusted(host) for host in hosts}, lambda roots: roots == {root}, what="the root on every disk")
    until(lambda: [signed_by(host, root) for host in hosts], all, what="certificates of the root on every disk")
    assert not {root, *tokens} & set(before.values())
    return root


def goes_on(record: Record, hosts: list[Host]) -> None:
    """These managers take writes from now on."""
    for host in hosts:
        wanted = record.writes_through(host) + 4
        until(partial(record.writes_through, host), partial(operator.le, wanted), what=f"writes of {host.name}")


def secrets_of(host: Host) -> dict[str, object]:
    """The root and the tokens of the day."""
    swarm = calls.get(host, "/swarm")
    return {"root": swarm["TLSInfo"]["TrustRoot"].strip(), **swarm["JoinTokens"]}


def info(host: Host) -> str:
    done = host.docker_run("info")
    return done.stdout + done.stderr


def test_the_root_is_replaced_under_load_also_when_the_leader_dies_and_a_worker_is_away(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(4, managers=3)
    managers, worker = lab.hosts[:3], lab.hosts[3]
    until(partial(ready, managers[0]), lambda count: count == 4, what="four nodes that are ready")
    with Load(managers) as record:
        follower = next(host for host in managers if host is not leader(managers))
        first = secrets_of(follower)
        shown = follower.docker("swarm", "ca", "--rotate", timeout_s=120.0)
        assert "rotated TLS certificates:" in shown
        assert "rotated CA certificates:" in shown
        assert calls.get(follower, "/swarm")["TLSInfo"]["TrustRoot"].strip() in shown
        second = turned(managers, worker, first)
        goes_on(record, managers)

        # once more: one node is away, and the leader dies; the next leader continues the same rotation and ends it
        lab.stop(worker)
        dead = leader(managers)
        rest = [host for host in managers if host is not dead]
        before = secrets_of(rest[0])
        assert before["root"] == second
        rest[0].docker("swarm", "ca", "--rotate", "--detach")
        waits = f"waits for nodes that are away: {worker.name}\n"
        until(partial(info, dead), lambda text: waits in text, what="who is away")
        lab.kill(dead)
        for host in rest:
            until(partial(info, host), lambda text: waits in text, what="who is away, as another leader sees it")
        goes_on(record, rest)
        assert secrets_of(rest[1]) == before, "the root and the tokens of the day stay until the end"
        lab.start(worker)
        lab.start(dead)
        turned(managers, worker, before)
        goes_on(record, managers)
    until(partial(ready, dead), lambda count: count == 4, what="four nodes that are ready")
    assert not record.hung
    assert not record.stale
    for host in managers:
        until(partial(missing, host, record), operator.not_, what=f"every acknowledged write on {host.name}")
