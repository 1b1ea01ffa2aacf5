"""Mixed swarms: stock engines' own swarm mode beside sideswarm, each as the other's worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from certs.keys import identity_of
from integration import calls
from integration.lab import Host, Lab
from integration.waiting import until

IDLE = ("sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")
TALK = (
    "trap exit TERM; cat /run/secrets/word /etc/cfg; echo $GREETING; echo kept > /data/index.html; "
    "httpd -p 7000 -h /data; n=0; while sleep 0.2; do n=$((n+1)); echo line $n; done"
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """node1 with sideswarm and node2 with the stock engine's own swarm mode."""
    lab = Lab(f"sp{os.getpid()}")
    lab.up(1, stock=1, flags=["--allow-mixed-leadership"])
    yield lab
    lab.down()


class MixedSwarm:
    """Drives a swarm of two, ``manager`` and ``worker``, one of them a stock engine and one sideswarmd."""

    def __init__(self, lab: Lab, manager: Host, worker: Host) -> None:
        self.lab = lab
        self.manager = manager
        self.worker = worker

    def gather(self) -> None:
        """Both in one swarm, ready and active; nothing happens to them if they are."""
        for host in self.lab.hosts:
            for part in ("engine", "daemon"):
                self.lab.ensure(host, part)
        if calls.swarm_info(self.manager)["ControlAvailable"]:
            known = [node["ID"] for node in calls.get(self.manager, "/nodes")]
            if len(known) == 2 and calls.swarm_info(self.worker)["NodeID"] in known:
                self.manager.docker("node", "update", "--availability", "active", self.worker.name)
                self.ready()
                return
        for host in (self.worker, self.manager):
            host.docker_run("swarm", "leave", "--force")
        self.manager.docker("swarm", "init", "--advertise-addr", self.manager.ip)
        self.join()
        self.ready()

    def clean(self) -> None:
        """No services, secrets, configs and containers any more."""
        for host in self.lab.hosts:
            for part in ("engine", "daemon"):
                self.lab.ensure(host, part)
        if calls.swarm_info(self.manager)["ControlAvailable"]:
            for kind in ("service", "secret", "config"):
                names = self.manager.docker(kind, "ls", "-q").split()
                if names:
                    self.manager.docker(kind, "rm", *names)
        for host in self.lab.hosts:
            until(partial(calls.containers, host, everything=True), lambda found: not found, what="no containers")

    def join(self) -> None:
        """The worker joins with the manager's token."""
        token = self.manager.docker("swarm", "join-token", "-q", "worker").strip()
        address = f"{self.manager.ip}:2377"
        joined = self.worker.docker("swarm", "join", "--token", token, "--advertise-addr", self.worker.ip, address)
        assert joined == "This node joined a swarm as a worker.\n"

    def ready(self) -> None:
        wanted = {"node1": "ready", "node2": "ready"}
        until(lambda: calls.node_states(self.manager), lambda states: states == wanted, what="both nodes ready")

    def create(self, name: str, *flags: str, replicas: int = 1, command: Sequence[str] = IDLE) -> list[str]:
        """A service on the worker, with quick restarts; returns the IDs of its running tasks."""
        place = ("--constraint", f"node.hostname=={self.worker.name}")
        options = ("--detach", "--name", name, "--restart-delay", "0s", "--replicas", str(replicas), *place, *flags)
        self.manager.docker("service", "create", *options, "busybox:latest", *command)
        return self.running(name, replicas)

    def running(self, name: str, count: int = 1, besides: Sequence[str] = ()) -> list[str]:
        """Wait until a service has ``count`` running tasks and nothing else that is wanted; their IDs."""

        def look() -> tuple[list[str], int]:
            wanted = calls.live(self.manager, name)
            return [task["ID"] for task in wanted if task["Status"]["State"] == "running"], len(wanted)

        def settled(seen: tuple[list[str], int]) -> bool:
            return len(seen[0]) == seen[1] == count and not set(seen[0]) & set(besides)

        return until(look, settled, what=f"{count} running tasks of {name}")[0]

    def task_containers(self) -> dict[str, str]:
        return calls.containers(self.worker)

    def logs(self, name: str) -> str:
        return self.manager.docker("service", "logs", "--raw", name)

    def certificate(self) -> x509.Certificate:
        """The worker's node certificate, from its disk."""
        root = "engine/swarm" if self.worker.stock else "swarm/swarm"
        return x509.load_pem_x509_certificate(
            (self.worker.directory / root / "certificates/swarm-node.crt").read_bytes()
        )

    def leave(self) -> None:
        """The worker leaves, shows as down, and is removed; its containers are gone."""
        before = calls.swarm_info(self.worker)["NodeID"]
        assert self.worker.docker("swarm", "leave") == "Node left the swarm.\n"
        assert calls.swarm_info(self.worker)["LocalNodeState"] == "inactive"
        assert calls.containers(self.worker, everything=True) == {}
        until(lambda: calls.node_states(self.manager)[self.worker.name], lambda state: state == "down")
        self.manager.docker("node", "rm", before)
        assert set(calls.node_states(self.manager)) == {self.manager.name}


def _everything_works(swarm: MixedSwarm) -> None:
    """A task with all that a stock task can have, and its logs."""
    swarm.manager.docker_run("secret", "create", "word", "-", stdin="s3cret\n")
    swarm.manager.docker_run("config", "create", "cfg", "-", stdin="settings\n")
    flags = ["--secret", "word", "--config", "source=cfg,target=/etc/cfg", "--env", "GREETING=hello {{.Node.Hostname}}"]
    flags += ["--mount", "type=volume,source=data,target=/data", "--publish", "mode=host,target=7000,published=8080"]
    swarm.create("talk", *flags, "--hostname", "{{.Service.Name}}-{{.Task.Slot}}", command=("sh", "-c", TALK))
    text = until(lambda: swarm.logs("talk"), lambda seen: "line 2\n" in seen, what="the task's lines")
    assert text.startswith(f"s3cret\nsettings\nhello {swarm.worker.name}\nline 1\nline 2\n")
    fetch = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {swarm.worker.ip} 8080"
    assert swarm.manager.inside("sh", "-c", fetch).stdout.endswith("kept\n")
    (container,) = swarm.task_containers().values()
    assert swarm.worker.docker("exec", container, "hostname") == "talk-1\n"
    _logs_follow(swarm)


def _logs_follow(swarm: MixedSwarm) -> None:
    """``docker service logs -f`` goes on with lines that were written after it began."""
    environment = {**os.environ, "DOCKER_HOST": swarm.manager.api}
    command = ["docker", "service", "logs", "--raw", "--follow", "--tail", "1", "talk"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            numbers = [int(following.stdout.readline().split()[1]) for _ in range(8)]
        finally:
            following.kill()
    assert numbers == list(range(numbers[0], numbers[0] + 8))


def _drain_and_death(swarm: MixedSwarm) -> None:
    """Drained, the node has no tasks; active, it has them again; a container that dies is replaced."""
    first = swarm.create("web", replicas=2)
    swarm.manager.docker("node", "update", "--availability", "drain", swarm.worker.name)
    until(swarm.task_containers, lambda found: not found, what="an empty node")
    pending = until(lambda: calls.live(swarm.manager, "web"), lambda found: len(found) == 2)
    assert [task["Status"]["State"] for task in pending] == ["pending", "pending"]
    swarm.manager.docker("node", "update", "--availability", "active", swarm.worker.name)
    second = swarm.running("web", 2, besides=first)
    victim = second[0]
    swarm.worker.docker("kill", swarm.task_containers()[victim])
    third = swarm.running("web", 2, besides=[victim])
    assert second[1] in third
    ended = next(task for task in calls.tasks(swarm.manager, "web") if task["ID"] == victim)
    assert (ended["Status"]["State"], ended["Status"]["ContainerStatus"]["ExitCode"]) == ("failed", 137)


def _rotation(swarm: MixedSwarm) -> None:
    """A new root for the swarm, in which the worker takes part while it works."""
    tasks = swarm.create("through")
    old_certificate, old_root = swarm.certificate(), calls.get(swarm.manager, "/swarm")
    swarm.manager.docker("swarm", "ca", "--rotate", "--quiet")

    def done() -> bool:
        return not calls.get(swarm.manager, "/swarm")["RootRotationInProgress"]

    until(done, what="the end of the rotation")
    root = calls.get(swarm.manager, "/swarm")
    assert root["TLSInfo"]["TrustRoot"] != old_root["TLSInfo"]["TrustRoot"]
    assert root["JoinTokens"]["Worker"] != old_root["JoinTokens"]["Worker"]
    new_root = x509.load_pem_x509_certificate(root["TLSInfo"]["TrustRoot"].encode())
    certificate = swarm.certificate()
    assert certificate.subject == old_certificate.subject
    assert certificate.serial_number != old_certificate.serial_number
    certificate.verify_directly_issued_by(new_root)

    def trusted() -> dict[str, str]:
        nodes = calls.get(swarm.manager, "/nodes")
        return {node["Description"]["Hostname"]: node["Description"]["TLSInfo"]["TrustRoot"] for node in nodes}

    until(trusted, lambda seen: set(seen.values()) == {root["TLSInfo"]["TrustRoot"]}, what="the new root everywhere")
    swarm.ready()
    assert swarm.running("through") == tasks
    swarm.create("after")


def _promotion(swarm: MixedSwarm) -> None:
    """Promoted, the worker shows the swarm as a manager does and stays one through a change of roots; then demoted."""
    tasks = swarm.create("web")
    swarm.manager.docker("node", "promote", swarm.worker.name)

    def place() -> str:
        return str(calls.node_of(swarm.manager, swarm.worker).get("ManagerStatus", {}).get("Reachability", ""))

    until(place, lambda seen: seen == "reachable", what="a second manager")
    until(lambda: calls.swarm_info(swarm.worker)["ControlAvailable"])
    assert [task["ID"] for task in calls.live(swarm.worker, "web")] == tasks
    swarm.worker.docker("service", "create", "--detach", "--name", "there", "--replicas", "0", "busybox:latest")
    assert calls.get(swarm.manager, "/services/there")["Spec"]["Name"] == "there"
    _rotation(swarm)
    swarm.manager.docker("node", "demote", swarm.worker.name)
    until(lambda: not calls.swarm_info(swarm.worker)["ControlAvailable"], what="a worker again")
    until(place, lambda seen: not seen)
    until(lambda: identity_of(swarm.certificate()).role, lambda role: role == "swarm-worker")
    swarm.ready()
    assert swarm.running("web") == tasks


def _removal(swarm: MixedSwarm) -> None:
    """The worker is removed while it is up and joins again as another node; so again when it has left by itself."""
    # a stock engine that leaves while it makes a container forgets to remove it: let there be one that runs already
    swarm.manager.docker("service", "rm", "through", "after")
    tasks, before = swarm.running("web"), calls.swarm_info(swarm.worker)["NodeID"]
    # a node that registers from now on is down three seconds after it has left
    swarm.manager.docker("swarm", "update", "--dispatcher-heartbeat", "1s")
    try:
        swarm.manager.docker("node", "rm", "--force", swarm.worker.name)
        assert set(calls.node_states(swarm.manager)) == {swarm.manager.name}
        until(partial(_refused, swarm.worker, before), what="a refusal")
        swarm.worker.docker("swarm", "leave", "--force")
        tasks, before = _again(swarm, tasks, before)
        swarm.leave()
        _again(swarm, tasks, before)
    finally:
        swarm.manager.docker("swarm", "update", "--dispatcher-heartbeat", "5s")


def _again(swarm: MixedSwarm, tasks: list[str], before: str) -> tuple[list[str], str]:
    """The worker joins as another node and gets other tasks; which ones, and its ID."""
    swarm.join()
    swarm.ready()
    after = calls.swarm_info(swarm.worker)["NodeID"]
    assert after != before
    return swarm.running("web", besides=tasks), after


def _refused(host: Host, node_id: str) -> bool:
    """Whether this host knows that its node was removed."""
    log = (host.directory / ("engine.log" if host.stock else "daemon.log")).read_text()
    return f"node {node_id} was removed from swarm" in log


GOSSIP_KEY = r"(Adding|Primary|Remove) [Kk]ey (\w+)"
IPSEC_KEYS = r"New: .*tag: (\w+)\), Primary: .*tag: (\w+)\), Pruned: .*tag: (\w+)\)"


def _as_many_as(count: int, found: list[Any]) -> bool:
    return len(found) == count


def _debug(stock: Host, on: bool) -> None:
    """Let a stock engine tell more, or less, in its log."""
    (stock.directory / "daemon.json").write_text(json.dumps({"debug": on}))
    if on != calls.get(stock, "/info")["Debug"]:
        os.kill(stock.engine_pid, signal.SIGHUP)
    # its log says that it is done a moment before it is
    until(lambda: calls.get(stock, "/info")["Debug"], lambda seen: seen == on, what="another level of the log")


def _said(log: Path, pattern: str) -> list[Any]:
    """What the groups of a pattern matched in the lines of a log."""
    return re.findall(pattern, log.read_text())


def _new_network_keys(manager: Host) -> None:
    shown = calls.get(manager, "/swarm")
    target = f"/swarm/update?version={shown['Version']['Index']}&rotateNetworkKeys=true"
    assert calls.call(manager, "POST", target, shown["Spec"]) == (200, None)


class TestStockWorker:
    """Our manager, a stock worker."""

    @pytest.fixture
    def swarm(self, pair: Lab) -> Iterator[MixedSwarm]:
        mixed = MixedSwarm(pair, pair.hosts[0], pair.hosts[1])
        mixed.gather()
        yield mixed
        mixed.clean()

    def test_it_runs_tasks_with_all_they_can_have_and_shows_their_lines(self, swarm: MixedSwarm) -> None:
        _everything_works(swarm)

    def test_it_is_drained_and_activated_and_its_dead_containers_are_replaced(self, swarm: MixedSwarm) -> None:
        _drain_and_death(swarm)

    def test_its_certificate_is_renewed_and_the_root_of_the_swarm_replaced(self, swarm: MixedSwarm) -> None:
        _rotation(swarm)

    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_it_keeps_its_tasks_while_our_manager_is_away(self, swarm: MixedSwarm, end: str) -> None:
        tasks, node = swarm.create("web", replicas=2), calls.swarm_info(swarm.worker)["NodeID"]
        containers = swarm.task_containers()
        getattr(swarm.lab, end)(swarm.manager)
        assert swarm.task_containers() == containers
        swarm.lab.start(swarm.manager)
        swarm.ready()
        assert sorted(swarm.running("web", 2)) == sorted(tasks)
        assert swarm.task_containers() == containers
        assert calls.swarm_info(swarm.worker)["NodeID"] == node
        swarm.manager.docker("service", "scale", "--detach", "web=3")
        assert set(tasks) < set(swarm.running("web", 3))

    def test_tasks_of_its_killed_engine_are_replaced_when_it_is_back(self, swarm: MixedSwarm) -> None:
        tasks = swarm.create("web", replicas=2)
        swarm.lab.kill(swarm.worker, "engine")
        swarm.lab.start(swarm.worker, "engine")
        replaced = swarm.running("web", 2, besides=tasks)
        until(swarm.task_containers, lambda found: sorted(found) == sorted(replaced), what="only the new containers")

    def test_it_is_promoted_and_demoted_removed_and_joins_again_leaves_and_joins_again(self, swarm: MixedSwarm) -> None:
        _promotion(swarm)
        _removal(swarm)

    def test_it_takes_the_keys_of_the_networks_and_all_their_changes(self, swarm: MixedSwarm) -> None:
        log = swarm.worker.directory / "engine.log"
        _debug(swarm.worker, True)
        try:
            ring: list[str] = []  # of gossip, oldest first, as far as it is known
            for count in range(1, 6):
                _new_network_keys(swarm.manager)
                adding, primary, remove = until(partial(_said, log, GOSSIP_KEY), partial(_as_many_as, 3 * count))[-3:]
                ring.append(adding[1])
                assert [word for word, _ in (adding, primary, remove)] == ["Adding", "Primary", "Remove"]
                assert primary[1] == ring[-2] if count > 1 else primary[1] not in ring
                assert remove[1] == ring[-4] if count > 3 else remove[1] not in ring
                before = sorted(int(tag, 16) for tag in re.findall(r"tag: (\w+)", _said(log, "Current: (.*)")[-1]))
                added, used, removed = (int(tag, 16) for tag in _said(log, IPSEC_KEYS)[-1])
                assert (removed, used) == (before[0], before[2])
                assert (len(before), added > before[2]) == (3, True)
            swarm.ready()
        finally:
            _debug(swarm.worker, False)


class TestOurWorker:
    """A stock manager, our worker."""

    @pytest.fixture
    def swarm(self, pair: Lab) -> Iterator[MixedSwarm]:
        mixed = MixedSwarm(pair, pair.hosts[1], pair.hosts[0])
        mixed.gather()
        yield mixed
        mixed.clean()

    def test_it_runs_tasks_with_all_they_can_have_and_shows_their_lines(self, swarm: MixedSwarm) -> None:
        _everything_works(swarm)

    def test_it_is_drained_and_activated_and_its_dead_containers_are_replaced(self, swarm: MixedSwarm) -> None:
        _drain_and_death(swarm)

    def test_its_certificate_is_renewed_and_the_root_of_the_swarm_replaced(self, swarm: MixedSwarm) -> None:
        _rotation(swarm)

    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_its_containers_go_on_while_our_daemon_is_away(self, swarm: MixedSwarm, end: str) -> None:
        tasks = swarm.create("web", replicas=2)
        containers = swarm.task_containers()
        getattr(swarm.lab, end)(swarm.worker)
        assert swarm.task_containers() == containers
        swarm.lab.start(swarm.worker)
        until(lambda: calls.swarm_info(swarm.worker)["LocalNodeState"], lambda state: state == "active")
        swarm.ready()
        swarm.manager.docker("service", "scale", "--detach", "web=3")
        assert set(tasks) < set(swarm.running("web", 3))
        assert containers.items() < swarm.task_containers().items()

    def test_tasks_of_its_lost_engine_go_elsewhere_and_none_is_left_twice(self, swarm: MixedSwarm) -> None:
        swarm.manager.docker(
            "service",
            "create",
            "--detach",
            "--name",
            "web",
            "--replicas",
            "2",
            "--restart-delay",
            "0s",
            "busybox:latest",
            *IDLE,
        )
        before = swarm.running("web", 2)
        assert len(swarm.task_containers()) == 1
        swarm.lab.kill(swarm.worker, "engine")
        until(lambda: calls.node_states(swarm.manager)[swarm.worker.name], lambda state: state == "down")
        until(lambda: calls.containers(swarm.manager), lambda found: len(found) == 2, what="both tasks on the manager")
        swarm.lab.start(swarm.worker, "engine")
        swarm.ready()
        until(swarm.task_containers, lambda found: not found, what="no container of the lost task")
        assert len(set(swarm.running("web", 2)) & set(before)) == 1

    def test_it_is_promoted_and_demoted_removed_and_joins_again_leaves_and_joins_again(self, swarm: MixedSwarm) -> None:
        _promotion(swarm)
        _removal(swarm)
