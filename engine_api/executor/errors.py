"""Errors of a task's steps: final ones, and temporary ones after which the same step is tried again."""

from __future__ import annotations

from swarm import api


class TaskError(Exception):
    """A step failed permanently. Users read the text in ``docker service ps``.

    container and ports: facts about the container, if they matter for the task's status.
    """

    temporary = False

    def __init__(
        self,
        message: str,
        container: api.ContainerStatus | None = None,
        ports: api.PortStatus | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.container = container
        self.ports = ports


class TemporaryTaskError(TaskError):
    """The step cannot be done now. The task keeps its state, and the step is tried again."""

    temporary = True
