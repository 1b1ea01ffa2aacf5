"""A fake engine and executor on virtual time: containers outlive the agent's process, steps do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from swarm import api
from swarm.agent.dependencies import config_ids, secret_ids
from swarm.agent.events import CancelStep, Execute, Executed, Step

After = Callable[[float, Callable[[], None]], None]


@dataclass
class Container:
    """What the engine keeps of a task."""

    state: str  # created, running, exited
    exit_code: int = 0


class Engine:
    """Performs steps with random delays. ``chaos``: probability of a temporary error, or of a container that ends."""

    def __init__(self, rng: Random, after: After, tell: Callable[[Executed], None]) -> None:
        self.containers: dict[str, Container] = {}
        self.chaos = 0.0
        self.steps: list[str] = []
        self._rng = rng
        self._after = after
        self._tell = tell
        self._running: dict[str, tuple[int, Execute]] = {}
        self._count = 0

    def execute(self, effect: Execute) -> None:
        """Begin a step."""
        assert effect.task_id not in self._running, f"two steps of {effect.task_id} at once"
        assert set(effect.secrets) <= set(secret_ids(effect.task))
        assert set(effect.configs) <= set(config_ids(effect.task))
        if effect.step in (Step.PREPARE, Step.START):
            assert set(effect.secrets) == set(secret_ids(effect.task)), "a step without its secrets"
        self._count += 1
        token = self._count
        self._running[effect.task_id] = (token, effect)
        self.steps.append(f"{effect.task_id} {effect.step.value}")
        delay_s = self._rng.uniform(0.01, 0.5)
        self._after(delay_s, lambda: self._perform(token, effect))

    def cancel(self, effect: CancelStep) -> None:
        """Give up the running step of a task."""
        token, running = self._running[effect.task_id]
        self._after(0.01, lambda: self._end(token, Executed(running.task_id, running.step, cancelled=True)))

    def forget_steps(self) -> None:
        """The process that asked for the steps is gone."""
        self._running.clear()

    def exit(self, task_id: str, code: int) -> None:
        """The program in a container ends."""
        container = self.containers.get(task_id)
        if container is None or container.state != "running":
            return
        container.state, container.exit_code = "exited", code
        if task_id in self._running and self._running[task_id][1].step is Step.WAIT:
            self._finish_wait(self._running[task_id][0], task_id)

    def running(self) -> list[str]:
        """IDs of tasks whose container runs."""
        return sorted(i for i, c in self.containers.items() if c.state == "running")

    def _perform(self, token: int, effect: Execute) -> None:
        task_id, step = effect.task_id, effect.step
        if self._running.get(task_id, (0, None))[0] != token:
            return
        if step is not Step.WAIT and self._rng.random() < self.chaos:
            self._end(token, Executed(task_id, step, error="the engine is busy", temporary=True))
            return
        container = self.containers.get(task_id)
        if step is Step.PREPARE:
            self.containers.setdefault(task_id, Container("created"))
        elif step is Step.START:
            if container is None:
                self._end(token, Executed(task_id, step, error="no such container"))
                return
            if container.state == "created":
                container.state = "running"
                if self._rng.random() < self.chaos:
                    self._after(self._rng.uniform(0.1, 5.0), lambda: self.exit(task_id, 7))
        elif step is Step.WAIT:
            if container is None:
                self._end(token, Executed(task_id, step, error="no such container"))
            elif container.state == "exited":
                self._finish_wait(token, task_id)
            return
        elif step is Step.SHUTDOWN and container is not None:
            container.state = "exited"
        elif step is Step.REMOVE:
            self.containers.pop(task_id, None)
        facts = api.ContainerStatus(container_id=f"c-{task_id}", pid=42)
        self._end(token, Executed(task_id, step, container=facts if step is Step.START else None))

    def _finish_wait(self, token: int, task_id: str) -> None:
        code = self.containers[task_id].exit_code
        facts = api.ContainerStatus(container_id=f"c-{task_id}", exit_code=code)
        self._end(token, Executed(task_id, Step.WAIT, container=facts))

    def _end(self, token: int, event: Executed) -> None:
        if self._running.get(event.task_id, (0, None))[0] == token:
            del self._running[event.task_id]
            self._tell(event)
