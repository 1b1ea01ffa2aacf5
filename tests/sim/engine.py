"""A fake engine with its executor: containers outlive the daemon, and die with the engine or the machine."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from swarm.agent.events import CancelStep, Execute, Executed, Step
from tests.swarm.agent.engine import Container, Engine

KILLED = 137


class SimEngine(Engine):
    """The engine of the agent's own tests, which can also be away: then steps fail for the time being."""

    def __init__(self, rng: Random, after: Callable[[float, Callable[[], None]], None]) -> None:
        super().__init__(rng, after, self._forward)
        self.alive = True
        self.listener: Callable[[Executed], None] | None = None

    def _forward(self, event: Executed) -> None:
        if self.listener is not None:
            self.listener(event)

    def execute(self, effect: Execute) -> None:
        """See Engine.execute."""
        if effect.task_id in self._running and self._running[effect.task_id][1].step is not effect.step:
            # the agent no longer waits for a step that it cancelled; the executor lets it end first
            del self._running[effect.task_id]
        super().execute(effect)

    def cancel(self, effect: CancelStep) -> None:
        """See Engine.cancel."""
        if effect.task_id in self._running:
            super().cancel(effect)

    def _perform(self, token: int, effect: Execute) -> None:
        if not self.alive:
            if self._running.get(effect.task_id, (0, None))[0] == token:
                error = "Cannot connect to the Docker daemon"
                self._end(token, Executed(effect.task_id, effect.step, error=error, temporary=True))
            return
        super()._perform(token, effect)
        container = self.containers.get(effect.task_id)
        if effect.step is Step.START and effect.task.HasField("job_iteration") and container is not None:
            self._after(self._rng.uniform(0.1, 3.0), lambda: self.exit(effect.task_id, 0))

    def detach(self) -> None:
        """The daemon died: nobody hears how its steps end."""
        self.listener = None
        for task_id, (_, effect) in self._running.items():
            container = self.containers.get(task_id)
            if effect.step is Step.PREPARE and self._rng.random() < 0.5:
                self.containers.setdefault(task_id, Container("created"))
            elif effect.step is Step.START and container is not None and self._rng.random() < 0.5:
                container.state = "running" if container.state == "created" and self.alive else container.state
        self.forget_steps()
        self.steps.clear()

    def die(self) -> None:
        """The engine crashes, and its containers with it (there is no live-restore with swarm)."""
        self.alive = False
        for container in self.containers.values():
            if container.state == "running":
                container.state, container.exit_code = "exited", KILLED
        for task_id, (token, effect) in list(self._running.items()):
            error = "Cannot connect to the Docker daemon"
            self._end(token, Executed(task_id, effect.step, error=error, temporary=True))

    def revive(self) -> None:
        """It is back."""
        self.alive = True

    def sweep(self, known: list[str]) -> list[str]:
        """Remove the containers of tasks that nobody knows; returns which."""
        gone = [task_id for task_id in self.containers if task_id not in known]
        for task_id in gone:
            del self.containers[task_id]
        return gone
