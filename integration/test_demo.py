"""The demo as `make demo` and `make clean-demo` run it, alone and beside an engine; nothing of it stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import demo
from integration.engine_fixture import EngineProcess
from integration.lab import NETNS, PROJECT, ROOT

WAYS_ON = ("export DOCKER_HOST=", "docker node ls", "make clean-demo")


@pytest.fixture(autouse=True)
def _no_demo() -> Iterator[None]:
    """A demo that a person left up would be in the way; one that a test leaves must not stay."""
    demo.down()
    yield
    demo.down()


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    """An engine as a person has it, without our image."""
    process = EngineProcess()
    try:
        process.open()
        process.docker("rmi", "busybox:latest")
        yield process
    finally:
        process.close()


def _demo(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "integration.demo", *args]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _course_is_shown(text: str) -> None:
    for shown in ("is now a manager", "Leader", "web.3", "web scaled to 5", "5/5", *WAYS_ON):
        assert shown in text


def _left(directory: Path) -> list[str]:
    """Mounts and processes that name a directory."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {directory}/" in line]
    commands = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{directory}/" in text:
            commands.append(text)
    return mounts + commands


def test_the_demo_shows_a_swarm_on_a_private_engine_and_leaves_nothing() -> None:
    shown = _demo("up")
    assert shown.returncode == 0, shown.stderr
    _course_is_shown(shown.stdout)
    assert _left(ROOT / demo.NAME)

    again = _demo("up")
    assert again.returncode == 1
    assert "make clean-demo" in again.stderr

    assert _demo("down").returncode == 0
    assert _left(ROOT / demo.NAME) == []
    assert not (ROOT / demo.NAME).exists()
    assert not [name for name in NETNS.iterdir() if name.name.startswith(f"{demo.NAME}-")]


def test_the_demo_leaves_an_engine_of_yours_as_it_was(engine: EngineProcess) -> None:
    questions = ("ps -aq", "images -q", "network ls -q", "volume ls -q")
    before = [engine.docker(*question.split()) for question in questions]

    shown = _demo("up", "--engine", engine.host)
    assert shown.returncode == 0, shown.stderr
    _course_is_shown(shown.stdout)
    assert [engine.docker(*question.split()) for question in questions] != before

    assert _demo("down").returncode == 0
    assert [engine.docker(*question.split()) for question in questions] == before
    assert not (ROOT / demo.NAME).exists()


def test_an_engine_that_does_not_answer_is_reported_and_nothing_is_left_behind(tmp_path: Path) -> None:
    failed = _demo("up", "--engine", f"unix://{tmp_path}/nobody.sock")
    assert failed.returncode == 1
    assert "Cannot connect to the Docker daemon" in failed.stderr
    assert not (ROOT / demo.NAME).exists()


def test_taking_down_a_demo_that_is_not_up_is_not_an_error() -> None:
    assert _demo("down").returncode == 0
