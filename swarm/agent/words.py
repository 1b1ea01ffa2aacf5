"""The words between an agent and its executor: one step of one task at a time.

(swarmkit: agent/exec/controller.go, whose Controller methods are the steps)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from swarm import api


class Step(Enum):
    """What an executor can be asked to do for a task. At most one step of a task runs at a time."""

    PREPARE = "prepare"  # pull, create the container
    START = "start"  # start it, and wait until it is healthy where it has a health check
    WAIT = "wait"  # until the container ends
    SHUTDOWN = "shutdown"  # stop with grace period; the container stays for its logs
    REMOVE = "remove"  # delete the container and everything made for it
    UPDATE = "update"  # the task's desired state or networks changed while it runs


@dataclass(frozen=True, slots=True)
class Execute:
    """Effect: perform one step. Steps are idempotent: repeated after a crash they find what is already there.

    secrets and configs: the payloads that this task references, by ID.
    """

    task_id: str
    step: Step
    task: api.Task
    secrets: Mapping[str, api.Secret] = field(default_factory=dict)
    configs: Mapping[str, api.Config] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CancelStep:
    """Effect: give up the running step of this task (WAIT, or a PREPARE that pulls); its Executed may still come."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Event: facts about a container while a step is still running."""

    task_id: str
    container: api.ContainerStatus | None = None
    ports: api.PortStatus | None = None


@dataclass(frozen=True, slots=True)
class Executed:
    """Event: a step ended.

    error: empty on success; as users read it in ``docker service ps``. temporary: the same step should be tried again
    with the state kept. exit_code counts for WAIT (and for START when the container died at once). cancelled: the step
    was given up on request.
    """

    task_id: str
    step: Step
    error: str = ""
    temporary: bool = False
    cancelled: bool = False
    container: api.ContainerStatus | None = None
    ports: api.PortStatus | None = None


@dataclass(frozen=True, slots=True)
class PublishLogs:
    """Effect: send the logs that a subscription asks for; the driver opens LogBroker/PublishLogs by itself."""

    subscription: api.SubscriptionMessage
    tasks: tuple[api.Task, ...]


@dataclass(frozen=True, slots=True)
class StopLogs:
    """Effect: end a subscription."""

    subscription_id: str
