"""state.json on disk: replaced in one step, and synchronised before anybody relies on it (moby: docker-state.json)."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from certs import files
from certs.files import SYSTEM, Files
from swarm.errors import SwarmError
from swarm.node.state import LEAVING_FILE, STATE_FILE, NodeState


@dataclass(frozen=True)
class Found:
    """What a start finds. state: None if there is no file, or if it cannot be read: then error says why.

    leaving: this node was told to leave. others: names of the other files of this node, which are there.
    """

    state: NodeState | None = None
    error: Exception | None = None
    leaving: bool = False
    others: tuple[str, ...] = ()


class StateFile:
    """The state.json of the node in this directory. Methods raise OSError when the disk fails."""

    def __init__(self, directory: Path, disk: Files = SYSTEM) -> None:
        self._directory = directory
        self._file = directory / STATE_FILE
        self._leaving = directory / LEAVING_FILE
        self._files = disk

    def find(self) -> Found:
        """Look at the directory. What cannot be read is not absent: then there is an error."""
        try:
            others = tuple(sorted(self._others(self._directory)))
            if files.exists(self._file):
                return Found(self._read(self._file), others=others)
            if not files.exists(self._leaving):
                return Found(others=others)
        except (SwarmError, OSError) as error:
            return Found(error=error)
        try:
            return Found(self._read(self._leaving), leaving=True, others=others)
        except (SwarmError, OSError):
            return Found(leaving=True, others=others)  # it is to be deleted, whatever it says

    def _read(self, file: Path) -> NodeState:
        return NodeState.from_json(file.read_text(errors="replace"))

    def _others(self, directory: Path) -> list[str]:
        """Files below the directory but those of this class, and what is left of writes that never became true."""
        found: list[str] = []
        if not files.exists(directory):
            return found
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                found += [f"{entry.name}/{name}" for name in self._others(directory / entry.name)]
            elif not files.is_temporary(entry.name) and entry.name not in (STATE_FILE, LEAVING_FILE):
                found.append(entry.name)
        return found

    def save(self, state: NodeState) -> None:
        """Replace it."""
        files.make_directory(self._directory, self._files)
        files.replace(self._file, state.to_json().encode(), self._files)

    def drop(self) -> None:
        """Record that this node leaves. That takes no room on a full disk, and what the file says can still be read."""
        files.make_directory(self._directory, self._files)
        try:
            if files.exists(self._file):
                files.move(self._file, self._leaving, self._files)
            elif not files.exists(self._leaving):
                files.replace(self._leaving, b"", self._files)
        except files.Unsettled:
            if files.exists(self._file) or not files.exists(self._leaving):
                raise

    def erase(self) -> None:
        """Delete everything of this node, what marks it as unfinished or leaving last. It may be repeated."""
        if not files.exists(self._directory):
            return
        self._empty(self._directory)
        files.remove([self._file], self._files)
        files.remove([self._leaving], self._files)
        self._remove_directory(self._directory)

    def _empty(self, directory: Path) -> None:
        kept = (STATE_FILE, LEAVING_FILE) if directory == self._directory else ()
        entries = [entry for entry in os.scandir(directory) if entry.name not in kept]
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self._empty(directory / entry.name)
                self._remove_directory(directory / entry.name)
            else:
                self._files.unlink(directory / entry.name)
        files.settle(directory, self._files)

    def _remove_directory(self, directory: Path) -> None:
        """An empty one that stays, such as a mount point, does no harm."""
        with contextlib.suppress(OSError):
            self._files.rmdir(directory)
