"""state.json on disk: replaced in one step, and synchronised before anybody relies on it (moby: docker-state.json)."""

from __future__ import annotations

import os
from pathlib import Path

from swarm.node.state import NodeState

STATE_FILE = "state.json"


class StateFile:
    """The state.json of the node in this directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / STATE_FILE

    def load(self) -> NodeState | None:
        """The state in the file; None if there is no file. Raises StateDamaged, OSError."""
        return NodeState.from_json(self._file.read_text(errors="replace")) if self._file.exists() else None

    def save(self, state: NodeState) -> None:
        """Replace it. Raises OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as writing:
            writing.write(state.to_json())
            writing.flush()
            os.fsync(writing.fileno())
        temporary.replace(self._file)

    def drop(self) -> None:
        """Delete it. Raises OSError."""
        self._file.unlink(missing_ok=True)
