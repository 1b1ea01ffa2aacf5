"""Files of secrets and configs. Mounting needs root: the integration tests show it; here it is a plain directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine_api.executor.container import PayloadFile
from engine_api.executor.errors import TaskError
from engine_api.executor.payloads import PayloadStore, is_tmpfs


class PlainStore(PayloadStore):
    """A store on whatever file system the test has."""

    def _mount(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)


@pytest.fixture
def store(tmp_path: Path) -> PlainStore:
    return PlainStore(tmp_path / "tasks", (os.getuid(), os.getgid()))


def file(store: PayloadStore, name: str, data: bytes, mode: int = 0o400) -> PayloadFile:
    return PayloadFile(f"{store.directory('t1')}/{name}", f"/run/secrets/{name}", 0, 0, mode, data)


def test_files_are_written_with_their_mode_in_a_private_directory(store: PlainStore) -> None:
    store.write("t1", [file(store, "a", b"one"), file(store, "b", b"", 0o444)])
    directory = store.directory("t1")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {p.name: (p.read_bytes(), p.stat().st_mode & 0o777) for p in directory.iterdir()} == {
        "a": (b"one", 0o400),
        "b": (b"", 0o444),
    }


def test_a_file_that_is_there_already_is_not_replaced(store: PlainStore) -> None:
    path = Path(file(store, "a", b"").path)
    store.write("t1", [file(store, "a", b"one")])
    first = path.stat().st_ino
    store.write("t1", [file(store, "a", b"one")])
    assert path.stat().st_ino == first
    store.write("t1", [file(store, "a", b"two")])
    assert path.read_bytes() == b"two"


def test_a_task_without_files_makes_no_directory(store: PlainStore, tmp_path: Path) -> None:
    store.write("t1", [])
    store.remove("t1")
    store.sweep([])
    assert list(tmp_path.iterdir()) == []


def test_only_the_files_of_known_tasks_are_kept(store: PlainStore) -> None:
    store.write("t1", [file(store, "a", b"one")])
    store.sweep(["t1", "t2"])
    assert store.directory("t1").exists()
    store.sweep(["t2"])
    assert not store.directory("t1").exists()


def test_a_full_or_forbidden_place_is_an_error_without_the_secret(store: PlainStore) -> None:
    store.directory("t1").parent.write_bytes(b"")
    with pytest.raises(TaskError, match="error injecting secret: ") as caught:
        store.write("t1", [file(store, "a", b"hunter2")])
    assert "hunter2" not in str(caught.value)


def test_a_plain_directory_is_not_a_tmpfs(tmp_path: Path) -> None:
    assert not is_tmpfs(tmp_path)
    assert not is_tmpfs(tmp_path / "none")
