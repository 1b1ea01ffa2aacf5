"""Runs tests/scripts/manager/*.txt: a command, ``----``, what it changed. REWRITE=1 writes the answers anew.

Tasks are called ``service.slot#n`` (n-th task of the slot), with the node's name as slot of global ones.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from swarm import api
from swarm.store.store import Change
from swarm.store.tx import Tx
from tests.swarm.manager import commands
from tests.swarm.manager.leader_harness import LeaderHarness, report

STEPS = (["ACCEPTED"], ["PREPARING"], ["READY"], ["STARTING"])  # of agents; not worth a line
SCRIPTS = sorted((Path(__file__).parent / "manager").glob("*.txt"))


class Script:
    """Drives a LeaderHarness, and names its objects as scripts do."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.out: list[str] = []
        self.harness = LeaderHarness(changes=self.note)

    def note(self, changes: list[Change]) -> None:
        for change in changes:
            for line in self.describe(change):
                self.out.append(f"{self.harness.now - 1000.0:g} {line}" if hasattr(self, "harness") else line)

    def describe(self, change: Change) -> list[str]:
        if change.kind == "task":
            text = self.describe_task(change)
            return [text] if text.split()[1:] not in STEPS else []
        if change.kind == "service":
            return commands.describe_service(change)
        return []

    def describe_task(self, change: Change) -> str:
        before, after = change.before, change.after
        if change.object_id not in self.names:
            assert isinstance(after, api.Task)
            slot = f"{after.service_annotations.name}.{after.slot or after.node_id}"
            self.counts[slot] = self.counts.get(slot, 0) + 1
            self.names[change.object_id] = f"{slot}#{self.counts[slot]}"
        name = self.names[change.object_id]
        if not isinstance(after, api.Task):
            return f"- {name}"
        old = before if isinstance(before, api.Task) else api.Task()
        words = [name if isinstance(before, api.Task) else f"+ {name}"]
        if before is None or old.status.state != after.status.state:
            words.append(api.TaskState.Name(after.status.state))
        if after.node_id != old.node_id and after.slot:
            words.append(f"on {after.node_id}")
        if after.desired_state != old.desired_state and (before is not None or after.desired_state != api.RUNNING):
            words.append(f"desired {api.TaskState.Name(after.desired_state)}")
        if after.status.err not in ("", old.status.err):
            words.append(f"({after.status.err})")
        return " ".join(words)

    def readable(self, line: str) -> str:
        return re.sub(r"[0-9a-z]{25}", lambda match: self.names.get(match[0], match[0]), line)

    def task_id(self, name: str) -> str:
        """ID of a task by name; without ``#n`` the newest of the slot."""
        name = name if "#" in name else f"{name}#{self.counts[name]}"
        return next(task_id for task_id, known in self.names.items() if known == name)

    def run(self, line: str) -> list[str]:
        self.out = []
        words = shlex.split(line)
        settings = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        match words:
            case ["node", verb, name, *_]:
                commands.node(self.harness, verb, name, settings)
            case ["service", verb, name, *_]:
                commands.service(self.harness, verb, name, settings)
            case ["task", "state", name, state, *err]:
                task_id = self.task_id(name)
                self.harness.write(lambda tx: report(tx, task_id, getattr(api, state), " ".join(err)))
            case ["agents", switch]:
                self.harness.agents = switch == "on"
                self.harness.settle()
            case ["tick", seconds]:
                self.harness.tick(float(seconds.removesuffix("s")))
            case ["elect"]:
                self.harness.elect()
                self.harness.settle()
            case ["history", limit]:
                self.harness.write(lambda tx: self.set_history(tx, int(limit)))
            case ["ps", name]:
                self.out = [f"{self.names[x.id]} {commands.state_of(x)}" for x in commands.tasks_of(self.harness, name)]
            case _:
                raise AssertionError(f"unknown command: {line}")
        return [self.readable(text) for text in self.out] or ["(nothing)"]

    def set_history(self, tx: Tx, limit: int) -> None:
        tx.edit(api.Cluster, "cluster").spec.orchestration.task_history_retention_limit = limit


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_answers_as_written(path: Path) -> None:
    script, answers = Script(), []
    text = path.read_text()
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        comments = [line for line in lines if line.startswith("#")]
        command = next(line for line in lines if not line.startswith("#"))
        answers.append("\n".join([*comments, command, "----", *script.run(command)]))
    actual = "\n\n".join(answers) + "\n"
    if os.environ.get("REWRITE"):
        path.write_text(actual)
    assert actual == path.read_text()
