"""Port 2377 of real daemons under attack from a worker's host: with its stolen certificate, and without any."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from integration import attacks, calls
from integration.lab import PROJECT, Host, Lab
from integration.waiting import until
from swarm.api.methods import METHODS
from swarm.errors import Code

IDLE = ("sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")
GROWTH_MIB_MAX = (
    160  # of a manager that was never attacked; seven rounds took a fresh one from 73 to 166 and no further
)
LINES_PER_FLOOD_MAX = 4  # a kind of event is logged once a minute for each address


@pytest.fixture
def managers(lab: Lab) -> list[Host]:
    """node1 leads, node2 follows, node3 is the worker that is stolen; a task runs on each."""
    lab.swarm(2)
    first = lab.hosts[0]
    first.docker("service", "create", "--detach", "--mode", "global", "--name", "victim", "busybox:latest", *IDLE)
    until(lambda: len(calls.running(first, "victim")), lambda count: count == 3, what="a task on every node")
    return lab.hosts


def attack(host: Host, what: str, target: Host, certificates: str, *more: str) -> Any:
    """Run integration.attacks inside a host; what it says."""
    command = (sys.executable, "-m", "integration.attacks", what, f"{target.ip}:2377", certificates, *more)
    done = host.inside("env", f"PYTHONPATH={PROJECT}", *command, timeout_s=120.0)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def certificates(host: Host) -> str:
    return str(host.directory / "swarm/swarm/certificates")


def rss_mib(host: Host) -> int:
    status = Path(f"/proc/{host.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) >> 10


def log_of(host: Host, since: int = 0) -> str:
    return (host.directory / "daemon.log").read_bytes()[since:].decode(errors="replace")


def test_a_stolen_worker_and_strangers_get_what_the_descriptors_say_from_leader_and_follower(
    managers: list[Host],
) -> None:
    leader, follower, worker = managers
    refused = {int(Code.PERMISSION_DENIED)}
    for target in (leader, follower):
        for directory, role in ((certificates(worker), "swarm-worker"), ("-", "")):
            codes = attack(worker, "table", target, directory)
            assert set(codes) == set(METHODS)
            for name, code in codes.items():
                allowed = METHODS[name].insecure or role in METHODS[name].roles
                assert (code not in refused) if allowed else (code in refused), f"{name} of {target.name}: {code}"


def test_floods_harm_neither_the_managers_nor_those_they_serve(managers: list[Host]) -> None:
    leader, follower, worker = managers
    tasks = sorted(task["ID"] for task in calls.running(leader, "victim"))
    elected = [log_of(host).count("manager.leading") for host in (leader, follower)]
    before = rss_mib(leader)
    for directory in ("-", certificates(worker)):
        since = len(log_of(leader).encode())
        lost = attack(worker, "flood", leader, directory)
        assert all(lost[name] > 0 for name in attacks.ENDED), lost
        assert rss_mib(leader) - before < GROWTH_MIB_MAX
        told = [line for line in log_of(leader, since).splitlines() if "rpc." in line or "certificate." in line]
        assert len(told) < LINES_PER_FLOOD_MAX * len(lost), told
        status, _ = calls.call(leader, "POST", "/services/create", {"Name": "x", "TaskTemplate": {}})
        assert status == 400  # it answers, and says what is wrong
    assert set(calls.node_states(follower).values()) == {"ready"}
    assert sorted(task["ID"] for task in calls.running(follower, "victim")) == tasks
    assert [log_of(host).count("manager.leading") for host in (leader, follower)] == elected
    for host in managers:
        assert "Traceback" not in log_of(host)


def test_a_removed_node_is_refused_at_once_also_when_a_follower_passes_its_call_on(managers: list[Host]) -> None:
    leader, follower, worker = managers
    assert attack(worker, "call", follower, certificates(worker), "Dispatcher/Session")[0] == 0
    node = calls.node_of(leader, worker)["ID"]
    leader.docker("node", "rm", "--force", node)
    for target in (leader, follower):
        until(
            lambda target=target: attack(worker, "call", target, certificates(worker), "Dispatcher/Session"),  # type: ignore[misc]
            lambda answer: answer[0] == Code.PERMISSION_DENIED and f"node {node} was removed from swarm" in answer[1],
            what=f"{target.name} refuses the removed node",
        )
        assert attack(worker, "call", target, certificates(worker), "NodeCA/IssueNodeCertificate")[0] == (
            Code.INVALID_ARGUMENT
        )


def test_a_stolen_manager_certificate_counts_as_a_workers_after_the_demotion(
    managers: list[Host], tmp_path: Path
) -> None:
    leader, follower, third = managers
    leader.docker("node", "promote", third.name)
    until(lambda: calls.swarm_info(third)["ControlAvailable"], what="another manager")
    loot = str(tmp_path / "loot")

    def steal() -> list[int]:
        """The node may be renewing its certificate just now; then what was copied is superseded at once."""
        shutil.copytree(certificates(third), loot, dirs_exist_ok=True)
        return [attack(third, "call", target, loot, "CA/GetUnlockKey")[0] for target in (leader, follower)]

    until(steal, lambda codes: codes == [0, 0], what="a manager's certificate")
    leader.docker("node", "demote", third.name)
    until(lambda: calls.swarm_info(third)["ControlAvailable"], lambda manages: not manages, what="a worker")
    for target in (leader, follower):
        for method in ("CA/GetUnlockKey", "RaftMembership/Join"):
            code, text = attack(third, "call", target, loot, method)
            assert code == Code.UNAVAILABLE
            assert "was demoted: it is no manager any more" in text
    _speak_as_a_member(managers, third, loot)
    codes = attack(third, "table", leader, loot)
    for name, row in METHODS.items():
        more = not row.insecure and "swarm-worker" not in row.roles and not name.startswith("Raft/")
        assert (codes[name] == Code.UNAVAILABLE) is more, f"{name}: {codes[name]}"
    leader.docker("node", "rm", "--force", calls.node_of(leader, third)["ID"])
    codes = attack(third, "table", leader, loot)
    assert {name for name, code in codes.items() if code != Code.PERMISSION_DENIED} == {
        name for name, row in METHODS.items() if row.insecure
    }


def _speak_as_a_member(managers: list[Host], thief: Host, loot: str) -> None:
    """Raft's messages with the certificate of a demoted manager, from a raft ID that it made up: nothing changes."""
    leader, follower, _ = managers
    for target in (leader, follower):
        state = json.loads((target.directory / "swarm/swarm/state.json").read_text())
        answers = attack(thief, "raft", target, loot, str(state["raft_id"]))
        assert {code for code, _ in answers.values()} == {int(Code.PERMISSION_DENIED)}, answers
        assert all(text.startswith("raft: ") for _, text in answers.values()), answers
    assert calls.node_of(leader, leader)["ManagerStatus"]["Leader"], "the same one leads"
    assert calls.node_of(follower, thief)["Spec"]["Role"] == "worker"
