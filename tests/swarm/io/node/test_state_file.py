"""What a start finds in a node's directory, and errors and deaths at every step of leaving it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from certs.files import SYSTEM
from swarm.io.node.state_file import Found, StateFile
from swarm.node.state import NodeState, Pending, StateDamaged
from tests.bad_disk import DEATH, EIO, ENOSPC, BadDisk, Death

STATE = NodeState("node1", "cluster1", "0.0.0.0", 2377, "10.0.0.1", 2377, "", managers=(("node1", "10.0.0.1:2377"),))
OTHERS = ("certificates/swarm-node.key", "raft.db", "raft.db-wal")
CALLS_MAX = 100


def filled(directory: Path, state: NodeState = STATE) -> StateFile:
    file = StateFile(directory)
    file.save(state)
    (directory / "certificates").mkdir()
    for name in OTHERS:
        (directory / name).write_text("x")
    return file


def test_a_directory_that_is_not_there_or_empty_is_no_nodes(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "swarm").find() == Found()
    (tmp_path / "swarm" / "certificates").mkdir(parents=True)
    assert StateFile(tmp_path / "swarm").find() == Found()


def test_what_is_there_is_found(tmp_path: Path) -> None:
    file = filled(tmp_path / "swarm")
    assert file.find() == Found(STATE, others=OTHERS)
    begun = STATE.begun(Pending("SWMTKN-1-x", 1))
    file.save(begun)
    assert file.find() == Found(begun, others=OTHERS)
    assert "SWMTKN" not in repr(file.find())
    file.drop()
    assert file.find() == Found(begun, leaving=True, others=OTHERS)
    file.drop()
    assert file.find().leaving
    file.erase()
    assert not (tmp_path / "swarm").exists()
    file.erase()


def test_files_without_state_json_are_named(tmp_path: Path) -> None:
    file = filled(tmp_path)
    (tmp_path / "state.json").unlink()
    (tmp_path / ".state.json.tmp").write_text("of a write that never became true")
    assert file.find() == Found(others=OTHERS)
    file.drop()
    assert file.find() == Found(leaving=True, others=OTHERS)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00" * 100, '{"version": 2}', '{"version": 1}'])
def test_a_state_json_that_cannot_be_used_is_an_error(tmp_path: Path, text: str) -> None:
    file = filled(tmp_path)
    (tmp_path / "state.json").write_text(text)
    found = file.find()
    assert isinstance(found.error, StateDamaged)
    assert (found.state, found.leaving) == (None, False)
    file.drop()
    assert file.find() == Found(leaving=True, others=OTHERS), "what it says does not matter any more"


@pytest.mark.parametrize("damage", ['"token": 1', '"token": null', '"more": "x"'])
def test_a_pending_join_that_cannot_be_used_is_an_error(tmp_path: Path, damage: str) -> None:
    file = filled(tmp_path, STATE.begun(Pending("SWMTKN-1-x", 1)))
    path = tmp_path / "state.json"
    path.write_text(path.read_text().replace('"token": "SWMTKN-1-x"', damage))
    assert isinstance(file.find().error, StateDamaged)


def test_what_cannot_be_read_is_not_absent(tmp_path: Path) -> None:
    directory = tmp_path / "swarm"
    filled(directory)
    (directory / "state.json").unlink()
    (directory / "state.json").mkdir()
    assert isinstance(StateFile(directory).find().error, OSError)
    (directory / "state.json").rmdir()
    (directory / "state.json").symlink_to("nowhere")
    assert isinstance(StateFile(directory).find().error, OSError)
    file = tmp_path / "file"
    file.write_text("x")
    assert isinstance(StateFile(file).find().error, OSError)


@pytest.mark.parametrize("code", [EIO, ENOSPC, DEATH])
@pytest.mark.parametrize("after", [False, True])
def test_a_leave_that_fails_at_any_call_is_a_leave_or_was_none(tmp_path: Path, after: bool, code: int) -> None:
    """After an error or a death at any call the directory is a member's as before, or a leaving one's, or gone."""
    for at in range(CALLS_MAX):
        directory = tmp_path / str(at)
        filled(directory)
        disk = BadDisk(at, after, code)
        file = StateFile(directory, disk)
        dropped = False
        with contextlib.suppress(OSError, Death):
            file.drop()
            dropped = True
            file.erase()
        found = StateFile(directory).find()
        if not dropped and code != DEATH:
            assert found == Found(STATE, others=OTHERS), "a leave that was refused changed nothing"
        if found == Found():
            assert not any(path.is_file() for path in directory.rglob("*"))
        else:
            assert found.leaving or found == Found(STATE, others=OTHERS)
            assert found.state == STATE or not found.others, "who leaves knows who it was"
        StateFile(directory).drop()
        StateFile(directory).erase()
        assert not directory.exists()
        if not disk.struck:
            assert at > 5
            return
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("code", [EIO, ENOSPC, DEATH])
@pytest.mark.parametrize("after", [False, True])
def test_a_write_that_fails_at_any_call_leaves_the_old_or_the_new_state(tmp_path: Path, after: bool, code: int) -> None:
    new = replace(STATE, raft_id=8)
    for at in range(CALLS_MAX):
        directory = tmp_path / str(at)
        file = filled(directory)
        disk = BadDisk(at, after, code)
        with contextlib.suppress(OSError, Death):
            StateFile(directory, disk).save(new)
        assert file.find().state in (STATE, new)
        assert file.find().error is None
        file.save(new)
        assert file.find() == Found(new, others=OTHERS)
        if not disk.struck:
            assert at > 2
            return
    raise AssertionError("there is no end to it")


def test_a_leave_needs_no_room_on_a_full_disk(tmp_path: Path) -> None:
    class Full:
        """Nothing can be written."""

        def write(self, path: Path, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
            raise OSError(ENOSPC, "No space left on device", str(path))

        rename, unlink, mkdir, rmdir = SYSTEM.rename, SYSTEM.unlink, SYSTEM.mkdir, SYSTEM.rmdir
        sync = SYSTEM.sync

    filled(tmp_path / "swarm")
    file = StateFile(tmp_path / "swarm", Full())
    file.drop()
    file.erase()
    assert not (tmp_path / "swarm").exists()
