"""Several managers on real engines: any of them answers, roles change, faults of every kind lose nothing."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration import calls
from integration.lab import Host, Lab
from integration.nat import nat
from integration.waiting import until
from integration.writers import Load, Record, missing

TALK = ("sh", "-c", "trap exit TERM; n=0; while sleep 0.2; do n=$((n+1)); echo line $n; done")
LEAVING = "You are attempting to leave the swarm on a node that is participating as a manager. "
NO_LEADER = (
    "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are "
    "online. Make sure more than half of the managers are online."
)


class ThreeManagers:
    """Drives a swarm of sideswarmd on real engines: node1 to node3 are managers, node4 is a worker."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.managers = lab.hosts[:3]
        self.worker = lab.hosts[3]

    def gather(self) -> None:
        """Three reachable managers and a worker, nothing running; made anew unless it is so already."""
        self.lab.heal()
        for host in self.lab.hosts:
            for part in ("engine", "daemon"):
                self.lab.ensure(host, part)
        if not self._is_whole():
            for host in self.lab.hosts:
                host.docker_run("swarm", "leave", "--force")
            self._make()
        first = self.managers[0]
        self.whole(first)
        until(lambda: set(calls.node_states(first).values()), lambda states: states == {"ready"})
        for kind in ("service", "config"):
            names = first.docker(kind, "ls", "-q").split()
            if names:
                first.docker(kind, "rm", *names)
        for host in self.lab.hosts:
            until(partial(calls.containers, host, everything=True), lambda found: not found, what="no containers")

    def whole(self, host: Host, managers: int = 3) -> None:
        """Wait until this manager shows so many managers, all reachable."""
        wanted = ["Leader"] + ["Reachable"] * (managers - 1)
        until(lambda: sorted(statuses(host).values()), lambda found: found == wanted, what=f"{managers} managers")

    def _is_whole(self) -> bool:
        try:
            found = [calls.swarm_info(host) for host in self.lab.hosts]
            clusters = {info["Cluster"]["ID"] for info in found[:3] if info["ControlAvailable"]}
            roles = [info["ControlAvailable"] for info in found]
            if roles != [True, True, True, False] or len(clusters) != 1 or found[3]["LocalNodeState"] != "active":
                return False
            known = {node["ID"] for node in calls.get(self.managers[0], "/nodes")}
            return known == {info["NodeID"] for info in found} and len(statuses(self.managers[0])) == 3
        except (KeyError, TypeError, AssertionError):
            return False

    def _make(self) -> None:
        first, second, third = self.managers
        first.docker("swarm", "init", "--advertise-addr", first.ip)
        for host, role, through in (
            (second, "manager", first),
            (third, "manager", second),
            (self.worker, "worker", third),
        ):
            token = through.docker("swarm", "join-token", "-q", role).strip()
            answer = host.docker("swarm", "join", "--token", token, "--advertise-addr", host.ip, f"{through.ip}:2377")
            assert answer == f"This node joined a swarm as a {role}.\n"

    def leader(self, among: Sequence[Host] = ()) -> Host:
        """Who leads, as the given managers say."""

        def look() -> Host | None:
            for host in among or self.managers:
                status, nodes = calls.call(host, "GET", "/nodes")
                for node in nodes if status == 200 else ():
                    if node.get("ManagerStatus", {}).get("Leader"):
                        return self.lab.host(node["Description"]["Hostname"])
            return None

        found = until(look, what="a leader")
        assert found is not None
        return found

    def others(self, host: Host) -> list[Host]:
        """The managers but one."""
        return [other for other in self.managers if other.name != host.name]

    def create(self, name: str, *flags: str, through: Host | None = None, command: Sequence[str] = TALK) -> None:
        host = through or self.managers[0]
        host.docker("service", "create", "-q", "--detach", "--name", name, *flags, "busybox:latest", *command)

    def running(self, name: str, count: int, through: Host | None = None) -> list[dict[str, Any]]:
        host = through or self.managers[0]
        found = until(partial(calls.running, host, name), lambda tasks: len(tasks) == count, what=f"{count} of {name}")
        return found


def statuses(host: Host) -> dict[str, str]:
    """Host name -> MANAGER STATUS, as `docker node ls` prints it; without workers. Empty when nobody leads."""
    done = host.docker_run("node", "ls", "--format", "{{.Hostname}}\t{{.ManagerStatus}}")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: status for name, status in rows if status}


def refusal(host: Host, *command: str) -> str:
    """What a command that must fail says."""
    done = host.docker_run(*command)
    assert done.returncode, f"{' '.join(command)} did not fail: {done.stdout}"
    return done.stderr.removeprefix("Error response from daemon: ").rstrip("\n")


@pytest.fixture(scope="module")
def lab_of_four() -> Iterator[Lab]:
    lab = Lab(f"mg{os.getpid()}")
    lab.up(4)
    yield lab
    lab.down()


@pytest.fixture
def group(lab_of_four: Lab) -> ThreeManagers:
    found = ThreeManagers(lab_of_four)
    found.gather()
    return found


# --- any manager ---------------------------------------------------------------------------------------------------


def test_every_manager_shows_the_same_swarm(group: ThreeManagers) -> None:
    seen = [statuses(host) for host in group.managers]
    assert seen[0] == seen[1] == seen[2]
    for host in group.managers:
        info = calls.swarm_info(host)
        assert (info["Managers"], info["Nodes"]) == (3, 4)
        assert sorted(remote["Addr"] for remote in info["RemoteManagers"]) == [f"{m.ip}:2377" for m in group.managers]
        assert "Warnings" not in info or not info["Warnings"]
    assert len({calls.swarm_info(host)["Cluster"]["ID"] for host in group.managers}) == 1


def test_followers_take_writes_and_tell_events_and_logs_of_everywhere(group: ThreeManagers) -> None:
    leader = group.leader()
    followers = group.others(leader)
    since = f"{time.time():.9f}"  # a listener that starts late is told what it missed
    listeners = [
        subprocess.Popen(
            [
                "docker",
                "-H",
                host.api,
                "events",
                "--since",
                since,
                "--filter",
                "type=service",
                "--format",
                "{{.Action}} {{.Actor.Attributes.name}}",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in group.managers
    ]
    try:
        group.create("talk", "--mode", "global", through=followers[0])
        group.running("talk", 4, followers[1])
        for listener in listeners:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "create talk\n"
    finally:
        for listener in listeners:
            listener.terminate()
            listener.communicate()
    names = {host.name for host in group.lab.hosts}

    def writers(host: Host) -> set[str]:
        lines = host.docker("service", "logs", "talk").splitlines()
        return {line.split("|")[0].split("@")[1].strip() for line in lines}

    for host in group.managers:
        until(partial(writers, host), lambda found: found == names, what=f"logs of all nodes through {host.name}")
    followers[1].docker("service", "update", "-q", "--detach", "--label-add", "seen=yes", "talk")
    assert calls.get(leader, "/services/talk")["Spec"]["Labels"] == {"seen": "yes"}


# --- roles ---------------------------------------------------------------------------------------------------------


def test_managers_step_down_and_up_and_their_tasks_do_not_notice(group: ThreeManagers) -> None:
    group.create("talk", "--mode", "global")
    group.running("talk", 4)
    before = {host.name: calls.containers(host) for host in group.lab.hosts}
    leader = group.leader()
    followers = group.others(leader)
    followers[0].docker("node", "demote", leader.name)
    group.whole(followers[0], 2)
    until(lambda: calls.swarm_info(leader)["ControlAvailable"], lambda available: not available)
    warnings = calls.get(followers[0], "/info")["Warnings"]
    assert any("two-manager configuration" in warning for warning in warnings)
    second = group.leader(followers)
    last = next(host for host in followers if host.name != second.name)
    last.docker("node", "demote", second.name)
    until(lambda: statuses(last), lambda found: found == {last.name: "Leader"})
    until(lambda: calls.swarm_info(second)["ControlAvailable"], lambda available: not available)
    wanted = "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm"
    assert refusal(last, "node", "demote", last.name) == wanted
    until(lambda: refusal(leader, "node", "ls"), lambda text: "Worker nodes can't be used to view" in text)
    until(lambda: set(calls.node_states(last).values()), lambda states: states == {"ready"})
    last.docker("node", "promote", leader.name, second.name, group.worker.name)
    group.whole(leader, 4)
    leader.docker("node", "demote", group.worker.name)
    until(lambda: len(statuses(leader)), lambda count: count == 3)
    assert {host.name: calls.containers(host) for host in group.lab.hosts} == before


def test_a_manager_is_not_removed_and_does_not_leave_by_mistake(group: ThreeManagers) -> None:
    first, second, third = group.managers
    node_id = calls.swarm_info(third)["NodeID"]
    wanted = (
        f"rpc error: code = FailedPrecondition desc = node {node_id} is a cluster manager and is a member of the raft "
        "cluster. It must be demoted to worker before removal"
    )
    for host in (first, second):
        assert refusal(host, "node", "rm", third.name) == wanted
        assert refusal(host, "node", "rm", "--force", third.name) == wanted
    assert refusal(third, "swarm", "leave") == LEAVING + "Use `--force` to suppress this message."
    group.lab.kill(first)
    until(lambda: statuses(second).get(first.name), lambda status: status == "Unreachable")
    lost = (
        LEAVING
        + "Removing this node leaves 1 managers out of 3. Without a Raft quorum your swarm will be inaccessible. "
        "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use "
        "`--force` to suppress this message."
    )
    assert refusal(third, "swarm", "leave") == lost
    wanted = (
        "rpc error: code = FailedPrecondition desc = can't remove member from the raft: this would result in a loss of "
        "quorum"
    )
    assert refusal(second, "node", "demote", third.name) == wanted


def test_a_manager_that_left_is_demoted_and_removed_by_the_others(group: ThreeManagers) -> None:
    leader = group.leader()
    gone = group.others(leader)[0]
    assert gone.docker("swarm", "leave", "--force") == "Node left the swarm.\n"
    assert calls.swarm_info(gone)["LocalNodeState"] == "inactive"
    until(lambda: statuses(leader).get(gone.name), lambda status: status == "Unreachable")
    until(lambda: calls.node_states(leader)[gone.name], lambda state: state == "down")
    leader.docker("node", "demote", gone.name)
    until(lambda: len(statuses(leader)), lambda count: count == 2)
    until(lambda: leader.docker_run("node", "rm", gone.name).returncode, lambda code: code == 0)
    token = leader.docker("swarm", "join-token", "-q", "manager").strip()
    gone.docker("swarm", "join", "--token", token, "--advertise-addr", gone.ip, f"{leader.ip}:2377")
    group.whole(gone)


# --- engines -------------------------------------------------------------------------------------------------------


def test_tasks_of_a_node_whose_engine_died_go_elsewhere_without_waiting_for_heartbeats(group: ThreeManagers) -> None:
    first, worker = group.managers[0], group.worker
    first.docker("swarm", "update", "--dispatcher-heartbeat", "1h")
    try:
        group.create("moves", "--replicas", "4", "--restart-delay", "0s")
        group.running("moves", 4)
        group.lab.kill(worker, "engine")
        until(lambda: calls.node_of(first, worker)["Status"], lambda status: status["State"] == "down")
        assert calls.node_of(first, worker)["Status"]["Message"] == "the node's engine has ended"
        gone = calls.node_of(first, worker)["ID"]
        until(
            lambda: [task["NodeID"] for task in calls.running(first, "moves")],
            lambda nodes: len(nodes) == 4 and gone not in nodes,
            what="all tasks elsewhere",
        )
        group.lab.start(worker, "engine")
        until(lambda: calls.node_of(first, worker)["Status"]["State"], lambda state: state == "ready")
    finally:
        first.docker("swarm", "update", "--dispatcher-heartbeat", "5s")


# --- faults --------------------------------------------------------------------------------------------------------


def _kill(group: ThreeManagers, victim: Host) -> None:
    group.lab.kill(victim)


def _stop(group: ThreeManagers, victim: Host) -> None:
    group.lab.stop(victim)


def _cut(group: ThreeManagers, victim: Host) -> None:
    group.lab.cut(victim)


def _restore(group: ThreeManagers, victim: Host) -> None:
    group.lab.heal()
    group.lab.ensure(victim, "daemon")


def _goes_on(record: Record, host: Host) -> None:
    """A manager takes writes from now on."""
    before = record.writes_through(host)
    until(partial(record.writes_through, host), lambda count: count > before + 5, what=f"writes through {host.name}")


@pytest.mark.parametrize("fault", [_kill, _stop, _cut])
def test_faults_under_load_lose_nothing_that_was_acknowledged(
    group: ThreeManagers, fault: Callable[[ThreeManagers, Host], None]
) -> None:
    with Load(group.managers) as record:
        for role in ("leader", "follower"):
            leader = group.leader()
            victim = leader if role == "leader" else group.others(leader)[0]
            rest = group.others(victim)
            fault(group, victim)
            for host in rest:
                _goes_on(record, host)
            _restore(group, victim)
            group.whole(rest[0])
            _goes_on(record, victim)
    assert not record.hung
    assert not record.stale
    assert len(record.acknowledged) > 20
    for host in group.managers:
        assert missing(host, record) == []


def test_the_minority_gives_no_stale_answers_and_says_what_is_wrong(group: ThreeManagers) -> None:
    leader = group.leader()
    group.create("old", through=leader)
    rest = group.others(leader)
    group.lab.cut(leader)
    group.leader(rest)
    rest[0].docker("service", "rm", "old")
    status, answer = calls.call(leader, "GET", "/services")
    assert (status, answer["message"]) == (500, NO_LEADER)
    until(lambda: calls.swarm_info(leader)["Error"], lambda error: error == NO_LEADER)
    group.lab.heal()
    until(lambda: calls.call(leader, "GET", "/services"), lambda answer: answer == (200, []), what="news after the cut")


def test_a_lost_quorum_is_reported_and_can_be_restored(group: ThreeManagers) -> None:
    group.create("kept", "--replicas", "4")
    group.running("kept", 4)
    before = {host.name: calls.containers(host) for host in group.lab.hosts}
    first, *rest = group.managers
    for host in rest:
        group.lab.kill(host)
    assert until(lambda: refusal(first, "service", "ls")) == NO_LEADER
    info = calls.swarm_info(first)
    assert (info["Error"], info["ControlAvailable"], info["LocalNodeState"]) == (NO_LEADER, True, "active")
    assert "Managers" not in info
    done = first.docker_run("swarm", "leave")
    assert "Doing so may lose the consensus of your cluster. Use `--force`" in done.stderr
    assert {host.name: calls.containers(host) for host in group.lab.hosts} == before
    group.lab.start(rest[0])
    group.running("kept", 4, rest[0])
    first.docker("service", "scale", "--detach", "kept=3")
    group.running("kept", 3)


def test_all_managers_at_once_start_again_where_they_were(group: ThreeManagers) -> None:
    group.create("kept", "--replicas", "4")
    group.running("kept", 4)
    before = {host.name: calls.containers(host) for host in group.lab.hosts}
    for host in group.managers:
        group.lab.kill(host)
    for host in group.managers:
        group.lab.start(host)
    group.leader()
    group.running("kept", 4, group.managers[2])
    until(lambda: set(calls.node_states(group.managers[0]).values()), lambda states: states == {"ready"})
    assert {host.name: calls.containers(host) for host in group.lab.hosts} == before


def test_a_manager_whose_address_changed_is_found_where_it_calls_from(group: ThreeManagers) -> None:
    leader = group.leader()
    moved = group.others(leader)[0]
    elsewhere = moved.ip.rpartition(".")[0] + ".77"
    shown = partial(_manager_address, leader, calls.node_of(leader, moved)["ID"])
    for old, new in ((moved.ip, elsewhere), (elsewhere, moved.ip)):
        group.lab.kill(moved)
        for verb, addr in (("del", old), ("add", new)):
            done = moved.inside("ip", "addr", verb, f"{addr}/24", "dev", "eth0")
            assert not done.returncode, done.stderr
        group.lab.start(moved)
        until(shown, partial(operator.eq, ("reachable", f"{new}:2377")), what=f"the manager at {new}")
        group.whole(moved)
        moved.docker("config", "create", "--label", f"at={new}", f"from-{new}", "/etc/hostname")
    assert len(leader.docker("config", "ls", "-q", "--filter", "label=at").split()) == 2


def test_a_manager_is_not_looked_for_behind_nat_where_another_one_answers(group: ThreeManagers) -> None:
    leader = group.leader()
    behind, other = group.others(leader)
    ids = {host.name: calls.node_of(leader, host)["ID"] for host in group.managers}
    group.lab.kill(behind)
    with nat(group.lab, behind, other):
        group.lab.start(behind)
        reason = f"certificate is of node {ids[other.name]}, not {ids[behind.name]}"
        log = (leader.directory / "daemon.log").read_text
        found = until(log, lambda text: reason in text, what="a look at what answers where it calls from")
        assert "raft.peer_not_there" in next(line for line in found.splitlines() if reason in line)
        assert _manager_address(leader, ids[behind.name])[1] == f"{behind.ip}:2377"
    group.whole(behind)
    assert _manager_address(leader, ids[behind.name]) == ("reachable", f"{behind.ip}:2377")


def _manager_address(through: Host, node_id: str) -> tuple[str, str]:
    manager = calls.get(through, f"/nodes/{node_id}")["ManagerStatus"]
    return manager["Reachability"], manager["Addr"]


def _log_files(host: Host) -> list[Path]:
    return sorted((host.directory / "swarm" / "swarm").glob("raft.db*"))


def _without_log(host: Host) -> None:
    for file in _log_files(host):
        file.unlink()


def _flip_in_the_middle(host: Host) -> None:
    """One bit of what sqlite has in its write-ahead log, as a failing disk would have it."""
    file = host.directory / "swarm" / "swarm" / "raft.db-wal"
    content = bytearray(file.read_bytes())
    salts, size = content[16:24], 24 + int.from_bytes(content[8:12], "big")
    frames = range(32, len(content) - size, size)
    current = [at for at in frames if content[at + 8 : at + 16] == salts]  # behind them are frames of an older log
    content[current[len(current) // 2] + size // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"), [(_without_log, "the manager's log is gone"), (_flip_in_the_middle, "raft.db-wal: frame ")]
)
def test_a_manager_whose_log_is_lost_or_damaged_says_so_and_comes_back_as_another_member(
    group: ThreeManagers, damage: Callable[[Host], None], reason: str
) -> None:
    leader = group.leader()
    victim = group.others(leader)[0]
    names = [f"kept{number}" for number in range(30)]
    for name in names:
        leader.docker_run("config", "create", name, "-", stdin="x")
    before = _raft_id(victim)
    group.lab.kill(victim)
    damage(victim)
    group.lab.start(victim)
    log = victim.directory / "daemon.log"
    until(log.read_text, lambda text: reason in text and "manager.joined_again" in text, what="word of the loss")
    group.whole(leader)
    group.whole(victim)
    assert until(lambda: _raft_id(victim), lambda raft_id: raft_id != before)
    assert calls.swarm_info(victim)["Error"] == ""
    other = group.others(victim)[0]
    group.lab.kill(other)  # now it is needed
    group.leader([host for host in group.managers if host.name != other.name])
    found = until(lambda: {config["Spec"]["Name"] for config in calls.get(victim, "/configs")}, lambda got: bool(got))
    assert set(names) <= found
    group.lab.start(other)
    group.whole(victim)


def _raft_id(host: Host) -> int:
    state = json.loads((host.directory / "swarm" / "swarm" / "state.json").read_text())
    return int(state["raft_id"])


def test_a_new_cluster_is_forced_under_a_new_address_and_the_others_come_back_as_new_members(
    group: ThreeManagers,
) -> None:
    group.create("kept", "--mode", "global")
    group.running("kept", 4)
    first, second, third = group.managers
    before = (calls.swarm_info(first)["Cluster"]["ID"], first.docker("swarm", "join-token", "-q", "worker"))
    containers = calls.containers(first)
    for host in (second, third):
        group.lab.kill(host)
    until(lambda: refusal(first, "node", "ls"), lambda text: text == NO_LEADER)
    address = "10.99.0.101"
    assert first.inside("ip", "address", "add", f"{address}/24", "dev", "eth0").returncode == 0
    assert "is now a manager" in first.docker("swarm", "init", "--force-new-cluster", "--advertise-addr", address)
    assert statuses(first) == {first.name: "Leader"}
    info = calls.swarm_info(first)
    assert (info["NodeAddr"], info["RemoteManagers"][0]["Addr"]) == (address, f"{address}:2377")
    assert (info["Cluster"]["ID"], first.docker("swarm", "join-token", "-q", "worker")) == before
    until(lambda: calls.node_states(first)[group.worker.name], lambda state: state == "ready")
    assert calls.containers(first) == containers
    for host in (second, third):
        group.lab.start(host)
    group.whole(first)
    group.running("kept", 4, second)
    for host in group.lab.hosts:
        host.docker_run("swarm", "leave", "--force")
    assert first.inside("ip", "address", "del", f"{address}/24", "dev", "eth0").returncode == 0
