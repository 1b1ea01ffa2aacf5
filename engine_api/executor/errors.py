"""Why a step of a task failed, and whether trying the same step again makes sense."""

from __future__ import annotations

from swarm import api


class TaskError(Exception):
    """A step failed for good; the text is what users read in ``docker service ps``.

    container and ports: what is known of the container, where it matters for the task's status.
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
    """The step could not be done now; the task keeps its state and the step is tried again."""

    temporary = True
