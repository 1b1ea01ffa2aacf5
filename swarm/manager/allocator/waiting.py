"""Tasks that cannot have what they need yet, by what they wait for."""

from __future__ import annotations

from collections.abc import Iterable


class Waiting:
    """Keys are IDs of services and networks; see ANY_NETWORK."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[str, ...]] = {}  # by task ID
        self._tasks: dict[str, dict[str, None]] = {}  # by key

    def add(self, task_id: str, keys: Iterable[str]) -> None:
        """This task waits for a change of any of these."""
        self.remove(task_id)
        self._keys[task_id] = unique = tuple(dict.fromkeys(keys))
        for key in unique:
            self._tasks.setdefault(key, {})[task_id] = None

    def remove(self, task_id: str) -> None:
        """This task waits no more."""
        for key in self._keys.pop(task_id, ()):
            tasks = self._tasks[key]
            del tasks[task_id]
            if not tasks:
                del self._tasks[key]

    def on(self, key: str) -> list[str]:
        """The tasks that wait for this."""
        return list(self._tasks.get(key, ()))


ANY_NETWORK = ""
"""The key of tasks that wait for a network whose ID nobody knows yet."""
