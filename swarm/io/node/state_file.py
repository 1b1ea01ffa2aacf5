"""state.json on disk: replaced in one step, and synchronised before anybody relies on it (moby: docker-state.json)."""

from __future__ import annotations

from pathlib import Path

from certs.files import Files, OsFiles
from swarm.node.state import NodeState

STATE_FILE = "state.json"
_OS = OsFiles()


class StateFile:
    """The state.json of the node in this directory."""

    def __init__(self, directory: Path, files: Files = _OS) -> None:
        self._file = directory / STATE_FILE
        self._files = files

    def load(self) -> NodeState | None:
        """The state in the file; None if there is no file. Raises StateDamaged, OSError."""
        found = self._files.read(self._file)
        return NodeState.from_json(found.decode(errors="replace")) if found is not None else None

    def save(self, state: NodeState) -> None:
        """Replace it. Raises OSError."""
        temporary = self._file.with_suffix(".new")
        self._files.write(temporary, state.to_json().encode())
        self._files.rename(temporary, self._file)
        self._files.sync_directory(self._file.parent)

    def drop(self) -> None:
        """Delete it. Raises OSError."""
        self._files.remove(self._file)
        self._files.sync_directory(self._file.parent)
